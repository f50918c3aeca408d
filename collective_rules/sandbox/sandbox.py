"""A sandbox for broken calls: each runs in a child process that may raise, hang, die or flood its output.

It knows processes, deadlines and signals, and says in a `Verdict` what became of a call. It knows nothing of
collectives: the job that it is told to run does. What happens in the other processes is in `fork_server`.

A process that has imported torch and whatever the jobs need, the zygote, forks a child for each payload, so that a
child costs milliseconds. This process never forks: gloo's threads would not survive that. Linux only.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import itertools
import json
import math
import os
import reprlib
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import attrs

from collective_rules.errors import CallError, CollectiveRulesError

__all__ = ["DIES", "HANGS", "OK", "OUTCOMES", "RAISES", "SILENTLY_WRONG", "Sandbox", "Verdict", "sandbox"]

OK, RAISES, HANGS, DIES, SILENTLY_WRONG = OUTCOMES = ("ok", "raises", "hangs", "dies", "silently wrong")
"""What a job may come to: the values of `Verdict.outcome`."""

ANSWER_LIMIT = 16 * 2**20
START_LIMIT = 60.0
"""Bytes of JSON that an answer may have, and seconds that the imports may take."""

_GRACE = 10.0  # for the zygote to tell what it knows, on a busy machine
_MARK = "COLLECTIVE_RULES_SANDBOX"
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from collective_rules.sandbox.fork_server import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


def _known_outcome(_: Verdict, __: object, value: str) -> None:
    if value not in OUTCOMES:
        raise CallError(f"outcome={value!r}, but should be one of {', '.join(map(repr, OUTCOMES))}")


@attrs.frozen(str=False)
class Verdict:
    """What a job came to.

    - `outcome`: one of `OUTCOMES`.
    - `message`: the type and text of what was raised; the end of the output of a job that died.
    - `signal`: what it died by, or 0; `exit_status`: how it left by itself without an answer, or None.
    - `value`: the JSON data that the job returned.

    >>> print(Verdict(RAISES, "ValueError: no"), Verdict(DIES, signal=11), Verdict(DIES, exit_status=3), sep="; ")
    raises ValueError: no; dies by signal 11 (SIGSEGV); dies with exit status 3
    """

    outcome: str = attrs.field(validator=_known_outcome)
    message: str = ""
    signal: int = 0
    exit_status: int | None = None
    value: Any = None

    def __str__(self) -> str:
        if self.outcome == RAISES:
            return f"{self.outcome} {self.message}".rstrip()
        if self.outcome != DIES:
            return self.outcome
        if not self.signal:
            return "dies" if self.exit_status is None else f"dies with exit status {self.exit_status}"
        named = {each.value: f" ({each.name})" for each in signal.Signals}
        return f"dies by signal {self.signal}{named.get(self.signal, '')}"


def read_verdict(text: str | bytes) -> Verdict:
    """Return the verdict that a child wrote as JSON; one that no child should write is a `RAISES`.

    >>> print(read_verdict('{"outcome": "hangs"}'), read_verdict("[1"), sep="; ")
    hangs; raises an answer that is not a verdict: '[1'
    """
    try:
        return Verdict(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        shown = text if isinstance(text, str) else text.decode(errors="replace")
        return Verdict(RAISES, f"an answer that is not a verdict: {reprlib.repr(shown)}")


class Channel:
    """Lines both ways over a socket, without ever blocking; `ended` when the other side has gone."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end, self._in, self._out, self.ended = end, bytearray(), bytearray(), False

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished line have come."""
        return len(self._in)

    def register(self, poll: select.poll) -> None:
        """Have `poll` wake up when there is something to do here."""
        if not self.ended:
            poll.register(self._end, select.POLLIN | (select.POLLOUT if self._out else 0))

    def put(self, message: dict[str, Any]) -> None:
        """Send as much as can be sent now; `flush` sends the rest."""
        self._out += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send as much as can be sent now of what was put."""
        try:
            while self._out and not self.ended:
                del self._out[: self._end.send(self._out[: 2**20])]
        except BlockingIOError:
            pass
        except OSError:
            self.ended = True

    def take(self) -> list[bytes]:
        """Return the lines that have come, up to some megabytes."""
        lines: list[bytes] = []
        for _ in range(64):
            try:
                chunk = self._end.recv(2**16)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                self.ended = True
                break
            self._in += chunk
            if b"\n" in chunk:
                *whole, rest = self._in.split(b"\n")
                lines += map(bytes, whole)
                self._in = rest
        return lines

    def end(self) -> None:
        """End the connection, whatever forks of this process hold it, too."""
        with contextlib.suppress(OSError):  # the other side has ended it
            self._end.shutdown(socket.SHUT_RDWR)
        self.close()

    def close(self) -> None:
        """Close this end, but not a fork's."""
        self.ended = True
        self._end.close()


@attrs.define
class _Request:
    """What the zygote is asked, within `deadline` seconds; `again` if a zygote died while this was carried out."""

    key: int
    message: dict[str, Any]
    deadline: float
    again: bool = False


class Sandbox:
    """Runs jobs in children, up to `workers` side by side, each payload within `deadline` seconds.

    A job is named "package.module:function" or "/path/to/file.py:function", and called with one payload. Payload and
    answer are JSON data. A job may also return a `Verdict`, which is passed on. When a run is over, every process that
    the job started is gone, those of sessions of their own too; so is everything when this process dies.

    The modules named by `warm`, and those of jobs, are imported once, by the process that children are forked from.
    A job can take for granted that torch and `collective_rules.testing` are imported, that torch has one thread, that
    stdin is empty, and that it leads a session of its own. The random state is the same in each child.

    To be used by one thread at a time. Any exception that is not this module's own, as KeyboardInterrupt, closes the
    sandbox if it comes while waiting. Raises `CallError` for `deadline`, `workers` or a module that is no good, and
    `CollectiveRulesError` where the imports take more than a minute or kill the process.

    >>> with Sandbox(deadline=10, workers=1) as box:
    ...     print(box.run("math:factorial", 4).value, box.run("math:factorial", -1), box.run("os:_exit", 3), sep="; ")
    24; raises ValueError: factorial() not defined for negative values; dies with exit status 3
    """

    def __init__(self, *, deadline: float = 5.0, workers: int = 4, warm: Sequence[str] = ()) -> None:
        self.deadline = _checked_deadline(deadline)
        if not isinstance(workers, int) or workers < 1:
            raise CallError(f"workers={workers!r}, but should be a whole number of at least 1")
        if isinstance(warm, str):
            raise CallError(f"warm={warm!r}, but should be a sequence of names of modules")
        self.workers, self.closed = workers, False
        self._imports, self._owner, self._mark = [*warm], os.getpid(), uuid.uuid4().hex
        self._keys = itertools.count()
        self._waiting: collections.deque[_Request] = collections.deque()
        self._running: dict[int, _Request] = {}
        self._replies: dict[int, dict[str, Any]] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._patience = 0.0
        try:
            self._import([])
        except BaseException:
            self.close()
            raise

    def run(self, job: str, payload: Any, *, deadline: float | None = None) -> Verdict:
        """Return what `job` comes to with `payload`, in a child of its own, within `deadline` seconds.

        Raises `CallError` for a job that cannot be imported or a payload that is not JSON data, and
        `CollectiveRulesError` if the sandbox is closed.

        >>> print(sandbox().run("time:sleep", 60, deadline=0.1), sandbox().run("ctypes:string_at", 0), sep="; ")
        hangs; dies by signal 11 (SIGSEGV)
        """
        job, deadline = self._prepare(job, deadline)
        key = self._put(_payload(job, payload, deadline, reuse=False), deadline)
        return read_verdict(self._reply({key})[1]["verdict"])

    def map(
        self, job: str, payloads: Iterable[Any], *, deadline: float | None = None, reuse: bool = False
    ) -> Iterator[tuple[int, Verdict]]:
        """Yield the place of each payload and what `job` comes to with it, in the order of completion.

        `payloads` are taken when there is a child for them, and may be endless. With `reuse`, a child goes on with
        further payloads as long as all is ok and it has started no process that still runs.

        To stop early ends the children that are at work. Raises as `run` does.

        >>> sorted((place, verdict.value) for place, verdict in sandbox().map("math:factorial", [3, 4], reuse=True))
        [(0, 6), (1, 24)]
        """
        return self._map(*self._prepare(job, deadline), payloads, reuse)

    def close(self) -> None:
        """End every process of the sandbox. A closed sandbox cannot be used again."""
        if self.closed:
            return
        self.closed = True
        if self._owner == os.getpid():  # a forked child has no part in it
            self._end()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sandbox of {self.workers} workers{', closed' if self.closed else ''}>"

    # -- requests

    def _prepare(self, job: str, deadline: float | None) -> tuple[str, float]:
        """Check what a run is asked to do, and have the job's module imported."""
        self._require_open()
        seconds = self.deadline if deadline is None else _checked_deadline(deadline)
        if not isinstance(job, str) or not all(job.rpartition(":")):
            raise CallError(f"job={job!r}, but should be 'package.module:function' or '/path/to/file.py:function'")
        module, _, name = job.rpartition(":")
        if module.endswith(".py"):
            job = f"{os.path.abspath(module)}:{name}"
        if job not in self._imports:
            self._import([job])
            self._imports.append(job)
        return job, seconds

    def _import(self, names: Sequence[str]) -> None:
        """Have modules and jobs imported by the zygote, which is started with those of before if there is none."""
        _, reply = self._reply({self._put({"import": [*self._imports, *names]}, START_LIMIT)})
        if "lost" in reply:
            what = ", ".join(names or ["torch", *self._imports])
            raise CollectiveRulesError(f"the sandbox could not import {what}: {reply['lost']}")
        if reply["refused"]:
            raise CallError(reply["refused"])

    def _map(self, job: str, deadline: float, payloads: Iterable[Any], reuse: bool) -> Iterator[tuple[int, Verdict]]:
        places: dict[int, int] = {}
        rest = enumerate(payloads)
        try:
            while True:
                for place, payload in itertools.islice(rest, self.workers - len(places)):
                    places[self._put(_payload(job, payload, deadline, reuse=reuse), deadline)] = place
                if not places:
                    return
                key, reply = self._reply(places)
                yield places.pop(key), read_verdict(reply["verdict"])
        finally:
            if not self.closed:
                self._drop(places, reuse)

    def _drop(self, keys: Container[int], reuse: bool) -> None:
        """Forget requests, and end the children that work for them or, with `reuse`, for nobody."""
        self._waiting = collections.deque(request for request in self._waiting if request.key not in keys)
        running = [key for key in self._running if key in keys]
        for key in running:
            self._running[key].again = True  # not to be tried again
        if running or (reuse and self._process is not None):
            cancel = self._put({"cancel": running}, _GRACE)
            for key in (*running, cancel):
                self._reply({key})
        self._replies = {key: reply for key, reply in self._replies.items() if key not in keys}

    def _put(self, message: dict[str, Any], deadline: float) -> int:
        self._require_open()
        request = _Request(next(self._keys), message, deadline)
        if "payload" in message:
            self._waiting.append(request)
        else:
            self._waiting.appendleft(request)
        self._send()
        return request.key

    def _reply(self, keys: Container[int]) -> tuple[int, dict[str, Any]]:
        """Wait for the first reply to one of `keys`."""
        self._require_open()
        try:
            while (key := next((key for key in self._replies if key in keys), None)) is None:
                self._send()
                self._listen()
        except BaseException:
            self.close()  # it is unknown how far that came
            raise
        return key, self._replies.pop(key)

    def _send(self) -> None:
        """Hand on what the zygote has a worker for. What may have killed a zygote gets one for itself."""
        while self._waiting:
            request = self._waiting[0]
            if "payload" in request.message:
                alone = request.again or any(other.again for other in self._running.values())
                if len(self._running) >= (1 if alone else self.workers):
                    break
            if self._process is None:
                self._start()
            self._running[request.key] = self._waiting.popleft()
            self._channel.put({"key": request.key, "deadline": request.deadline, **request.message})

    def _listen(self) -> None:
        """Take in what the zygote says. One that says nothing although it should is as good as dead."""
        poll = select.poll()
        self._channel.register(poll)
        patience = self._patience + _GRACE + max((each.deadline for each in self._running.values()), default=0.0)
        silent = not self._channel.ended and not poll.poll(1000 * min(patience, 1e6))
        self._channel.flush()
        for line in self._channel.take():
            reply = json.loads(line)
            self._patience = 0.0
            if self._running.pop(reply["key"], None) is not None:
                self._replies[reply["key"]] = reply
        if silent or self._channel.ended:
            self._lost(f"it said nothing for {patience:g} s" if silent else "it died")

    def _require_open(self) -> None:
        if self.closed:
            raise CollectiveRulesError(f"{self!r} cannot be used")
        if self._owner != os.getpid():
            raise CollectiveRulesError(f"{self!r} belongs to process {self._owner}, not to its fork {os.getpid()}")

    # -- the zygote

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel, self._patience = Channel(ours), START_LIMIT
        # Not a pipe: nobody reads it while the sandbox is idle.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the zygote
        path = json.dumps([str(entry) for entry in sys.path])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _BOOT, path, str(theirs.fileno()), str(self._owner)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                # OpenMP starts its threads on import, and they do not survive a fork.
                env={**os.environ, _MARK: self._mark, "OMP_NUM_THREADS": "1"},
            )
        self._channel.put({"key": -1, "import": self._imports})

    def _end(self) -> str:
        """End the zygote and all that it started; return the end of what it said, and how it ended."""
        process, self._process = self._process, None
        if process is None:
            return ""
        self._channel.end()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        finally:
            process.kill()
            status = process.wait()
            if status:
                _kill_marked(f"{_MARK}={self._mark}".encode())
            with self._log as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 4096))
                said = log.read().decode(errors="replace").strip()
        return f"{said}\nstatus {status}".strip()

    def _lost(self, why: str) -> None:
        """Do without the zygote: what it did not answer is tried once more, alone."""
        why = f"the process that children are forked from was lost ({why}): {self._end()}"
        for request in reversed(self._running.values()):
            if "cancel" not in request.message and not request.again:
                request.again = True
                self._waiting.appendleft(request)
            else:
                verdict = json.dumps({"outcome": DIES, "message": why})
                self._replies[request.key] = {"verdict": verdict, "lost": why}
        self._running.clear()


def _checked_deadline(deadline: float) -> float:
    if not isinstance(deadline, (int, float)) or not 0 < deadline < math.inf:
        raise CallError(f"deadline={deadline!r}, but should be a positive number of seconds")
    return deadline


def _payload(job: str, payload: Any, deadline: float, *, reuse: bool) -> dict[str, Any]:
    try:
        text = json.dumps(payload)
    except (TypeError, ValueError, RecursionError) as error:
        raise CallError(f"payload={reprlib.repr(payload)}, but should be JSON data: {error}") from None
    return {"job": job, "payload": text, "reuse": reuse}


def _kill_marked(mark: bytes) -> None:
    """Kill every process that has `mark` in its environment: what a zygote that died could not."""
    deadline = time.monotonic() + _GRACE
    while time.monotonic() < deadline:
        marked = [int(name) for name in os.listdir("/proc") if name.isdigit() and _is_marked(name, mark)]
        if not marked:
            return
        for pid in marked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _is_marked(pid: str, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            return mark in environ.read().split(b"\0")
    except OSError:  # gone, or somebody else's
        return False


_SANDBOXES: dict[int, Sandbox] = {}


def sandbox() -> Sandbox:
    """Return the sandbox of this process: made on first use (some seconds), then used again, closed at exit.

    >>> sandbox() is sandbox()
    True
    """
    pid = os.getpid()  # a forked child has no part in its parent's sandbox
    if pid not in _SANDBOXES or _SANDBOXES[pid].closed:
        _SANDBOXES[pid] = Sandbox()
    return _SANDBOXES[pid]


@atexit.register
def close_sandbox() -> None:
    """Close what `sandbox` has made in this process."""
    if os.getpid() in _SANDBOXES:
        _SANDBOXES[os.getpid()].close()
