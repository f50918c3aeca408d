"""A sandbox for broken calls: each runs in a child process that may raise, hang, die or flood its output.

It knows processes, deadlines and signals, and returns a `Result` for each job. It knows nothing of collectives: the
jobs do.

One process, the fork server, imports torch and the modules of the jobs once, and forks a child for each payload, so
that a child costs milliseconds; `fork_server` is the code of those processes. This process never forks: gloo's threads
would not survive that. Linux only.
"""

from __future__ import annotations

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
from collective_rules.sandbox.channel import Channel
from collective_rules.sandbox.result import DIES, Result, read_result

START_LIMIT = 60.0
"""How many seconds the imports may take."""

_GRACE = 10.0  # seconds for the fork server to report, on a busy machine
_MARK = "COLLECTIVE_RULES_SANDBOX"
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from collective_rules.sandbox.fork_server import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


@attrs.define
class _Request:
    """A message to the fork server; `again`: a fork server died while it carried this out."""

    key: int
    message: dict[str, Any]
    deadline: float
    again: bool = False


class Sandbox(contextlib.AbstractContextManager["Sandbox"]):
    """Runs jobs in children, up to `workers` side by side, each payload within `deadline` seconds.

    A job is named "package.module:function" or "/path/to/file.py:function", and called with one payload. Payload and
    answer are JSON data. A job may also return a `Result`, which is passed on. When a run is over, every process that
    the job started has ended, also in sessions of their own; when this process dies, all of them end.

    The fork server imports the modules named by `warm`, and those of jobs, once; where a module defines the function
    `sandbox_warm_up`, it also calls that: no child has to repeat the imports. A job can rely on this: torch is imported
    and has one thread, stdin is empty, the job leads a session of its own. The random state is the same in each child.

    Only one thread may use a sandbox at a time. An exception from outside while it waits, such as KeyboardInterrupt,
    closes the sandbox. Raises `CallError` for a wrong `deadline`, `workers` or module, and `CollectiveRulesError` where
    the imports take more than a minute or kill the process.

    >>> with Sandbox(deadline=10, workers=1) as box:
    ...     print(
    ...         box.run("math:factorial", -1), box.run("os:_exit", 3), box.run("time:sleep", 60, deadline=0.1), sep="; "
    ...     )
    ...     print([(place, result.value) for place, result in box.map("math:factorial", [3, 4])])
    raises ValueError: factorial() not defined for negative values; dies with exit status 3; hangs
    [(0, 6), (1, 24)]
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

    def run(self, job: str, payload: Any, *, deadline: float | None = None) -> Result:
        """Run `job` with `payload` in a child of its own, within `deadline` seconds, and return the result.

        Raises `CallError` for a job that cannot be imported or a payload that is not JSON data, and
        `CollectiveRulesError` if the sandbox is closed.
        """
        job, deadline = self._prepare(job, deadline)
        key = self._put(_payload(job, payload, deadline, reuse=False), deadline)
        return read_result(self._reply({key})[1]["result"])

    def map(
        self, job: str, payloads: Iterable[Any], *, deadline: float | None = None, reuse: bool = False
    ) -> Iterator[tuple[int, Result]]:
        """Yield the place of each payload and the result of `job` with it, in the order of completion.

        A payload is taken when a child is free for it: `payloads` may be endless. With `reuse`, a child takes further
        payloads as long as each result is "ok" and no process that it started still runs.

        Closing the iterator early ends the children that are at work. Raises as `run` does.
        """
        return self._map(*self._prepare(job, deadline), payloads, reuse)

    def close(self) -> None:
        """End every process of the sandbox. A closed sandbox cannot be used again."""
        if self.closed:
            return
        self.closed = True
        if self._owner == os.getpid():  # a forked child has no part in it
            self._end()

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Sandbox of {self.workers} workers{', closed' if self.closed else ''}>"

    # -- requests

    def _prepare(self, job: str, deadline: float | None) -> tuple[str, float]:
        """Check the arguments of a run, and have the job's module imported."""
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
        """Have the fork server import modules and jobs; start one first where there is none."""
        _, reply = self._reply({self._put({"import": [*self._imports, *names]}, START_LIMIT)})
        if "lost" in reply:
            what = ", ".join(names or ["torch", *self._imports])
            raise CollectiveRulesError(f"the sandbox could not import {what}: {reply['lost']}")
        if reply["refused"]:
            raise CallError(reply["refused"])

    def _map(self, job: str, deadline: float, payloads: Iterable[Any], reuse: bool) -> Iterator[tuple[int, Result]]:
        places: dict[int, int] = {}
        rest = enumerate(payloads)
        try:
            while True:
                for place, payload in itertools.islice(rest, self.workers - len(places)):
                    places[self._put(_payload(job, payload, deadline, reuse=reuse), deadline)] = place
                if not places:
                    return
                key, reply = self._reply(places)
                yield places.pop(key), read_result(reply["result"])
        finally:
            if not self.closed:
                self._drop(places, reuse)

    def _drop(self, keys: Container[int], reuse: bool) -> None:
        """Forget requests, and end the children that work for them; with `reuse`, idle children too."""
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
        """Send what the fork server has a worker for. A request that may have killed a fork server is sent alone."""
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
        """Take in the replies. A fork server that is silent for too long counts as dead."""
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

    # -- the fork server

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel, self._patience = Channel(ours), START_LIMIT
        # Not a pipe: nobody reads it while the sandbox is idle.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
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
        """End the fork server and all that it started; return its last output, and its status."""
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
        """Go on without the fork server: try once more, alone, each request that it did not answer."""
        why = f"the fork server was lost ({why}): {self._end()}"
        for request in reversed(self._running.values()):
            if "cancel" not in request.message and not request.again:
                request.again = True
                self._waiting.appendleft(request)
            else:
                self._replies[request.key] = {"result": Result(DIES, [why]).text(), "lost": why}
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
    """Kill every process that has `mark` in its environment, which a dead fork server no longer can."""
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
