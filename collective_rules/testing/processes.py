"""W ranks in W processes, for any backend that torch can start in one.

A `ProcessWorld` has a process for each rank, ends those that hang or are out of step, and merges the results of the
ranks. It does not know which calls are worth making, nor what an op should do. Linux only.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import IO, Any, NoReturn

import attrs
import torch
from torch._C import _distributed_c10d as _c10d

from collective_rules.call import Call, must_be_call
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.records import from_record, to_record
from collective_rules.sandbox import DIES, HANGS, OK, RAISES, Result, signal_text
from collective_rules.sandbox.channel import Channel
from collective_rules.sandbox.result import read_result
from collective_rules.spec import is_size
from collective_rules.testing.device import checked_device
from collective_rules.testing.rank import Rank, checked_backend, in_step, merged
from collective_rules.testing.run_calls import by_rank, no_answer

_START_LIMIT = 120.0  # seconds for W processes to import torch and connect, on a busy machine
_GRACE = 0.5  # seconds for the other ranks to answer when one has died
_FAREWELL = 3.0  # seconds for a process to leave by itself
_TAIL = 4096
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from collective_rules.testing.processes import serve; serve(**json.loads(sys.argv[2]))"
)


class ProcessWorld(contextlib.AbstractContextManager["ProcessWorld"]):
    """`size` ranks, each in a process of its own: a `World` for any backend.

    `backend` is a name that torch.distributed knows ("gloo", "nccl", that of a registered plug-in), or a
    "module:factory" as `resolve` takes it. `device` is "cpu", or the type of an accelerator, of which rank r takes the
    one with the number r modulo their count.

    Every group of calls has `timeout` seconds. The processes end with this one, however it ends. Where a rank does not
    answer, dies or goes wrong, all processes are ended; the next calls start new ones.

    Raises `CallError` for a device that is not there, `CollectiveRulesError` where the ranks do not connect.

    >>> import collective_rules as cr
    >>> with ProcessWorld(1) as ranks:
    ...     ranks.carry_out([cr.call("c10d::allreduce_", group=cr.Group(1), tensors=[(2, 3)])])
    Result('ok')
    """

    def __init__(self, size: int, timeout: float = 30.0, *, backend: str = "gloo", device: str = "cpu") -> None:
        if not is_size(size) or size < 1:
            raise CallError(f"size={size!r}, but a world has at least one rank")
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
            raise CallError(f"timeout={timeout!r}, but should be a positive number of seconds")
        checked_backend(backend)
        checked_device(device)
        self.size, self.timeout, self.backend, self.device = size, timeout, backend, device
        self.closed = False
        self._workers: list[_Worker] = []
        self._start()

    def carry_out(self, calls: Sequence[Call]) -> Result:
        """Make `calls` (one for each rank that takes part), and judge what comes back, as `run_calls.carry_out` does.

        The outcome is "dies" where a process ended meanwhile.

        Raises `CallError` for calls that do not fit this world, or that no backend could be given.
        """
        if self.closed:
            raise CollectiveRulesError(f"{self!r} cannot be used")
        records = {rank: to_record(call) for rank, call in by_rank([*map(must_be_call, calls)], self).items()}
        if not self._workers:
            self._start()
        try:
            for rank in records:
                self._workers[rank].channel.put({"calls": [*records.values()]})
            results = self._results(records, self.timeout, (DIES,))
        except BaseException:  # it is unknown how far the ranks came
            self._end(0.0)
            raise
        if not in_step(results.values()):
            self._end(0.0)
        return merged(results)

    def close(self) -> None:
        """End all processes. A closed world cannot be used again."""
        self.closed = True
        self._end(_FAREWELL)

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ProcessWorld of {self.size} {self.backend} ranks{', closed' if self.closed else ''}>"

    def _start(self) -> None:
        settings = {"size": self.size, "timeout": self.timeout, "backend": self.backend, "device": self.device}
        try:
            # The store's address is known, and its port taken, before the rank that serves it has started.
            with socket.create_server(("127.0.0.1", 0)) as listener:
                for rank in range(self.size):
                    self._workers.append(_Worker.start(rank, settings, listener))
            result = merged(self._results(range(self.size), _START_LIMIT, (DIES, RAISES)))
            if result.outcome != OK:
                raise CollectiveRulesError(f"{self!r} could not be started: {'; '.join(result.details)}")
        except BaseException:
            self._end(0.0)
            raise

    def _results(self, ranks: Iterable[int], timeout: float, ends: tuple[str, ...]) -> dict[int, Result]:
        """Return the result of each of `ranks`. After an outcome that is one of `ends`, the others have little time."""
        waiting, results = set(ranks), dict[int, Result]()
        until, cut_short = time.monotonic() + timeout, False
        while waiting and (left := until - time.monotonic()) > 0:
            poll = select.poll()
            for rank in waiting:
                self._workers[rank].register(poll)
            poll.poll(math.ceil(1000 * min(left, 1e6)))
            for rank in sorted(waiting):
                result = self._workers[rank].result()
                if result is None:
                    continue
                results[rank] = result
                waiting.remove(rank)
                if result.outcome in ends and not cut_short:
                    until, cut_short = min(until, time.monotonic() + _GRACE), True
        silent = [] if cut_short else sorted(waiting)
        return results | {rank: Result(HANGS, [no_answer(rank, timeout)]) for rank in silent}

    def _end(self, patience: float) -> None:
        """End the processes, which have `patience` seconds to leave by themselves."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.channel.close()
        until = time.monotonic() + patience
        for worker in workers:
            worker.end(max(0.0, until - time.monotonic()))


@attrs.frozen(eq=False)
class _Worker:
    """The process of a rank; `exit` can be polled for its end, and `log` is where its output goes."""

    rank: int
    process: subprocess.Popen[bytes]
    channel: Channel
    exit: int
    log: IO[bytes]

    @classmethod
    def start(cls, rank: int, settings: Mapping[str, Any], listener: socket.socket) -> _Worker:
        ours, theirs = socket.socketpair()
        log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        inherited = [theirs.fileno(), *([listener.fileno()] if rank == 0 else [])]
        mine = {"rank": rank, "channel": theirs.fileno(), "port": listener.getsockname()[1], "served": inherited[1:]}
        path = json.dumps([str(entry) for entry in sys.path])
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", _BOOT, path, json.dumps({**settings, **mine})],
                stdin=subprocess.PIPE,  # never written to: see _die_with_parent
                stdout=log,
                stderr=log,
                pass_fds=inherited,
                start_new_session=True,
            )
        return cls(rank, process, Channel(ours), os.pidfd_open(process.pid), log)

    def register(self, poll: select.poll) -> None:
        self.channel.register(poll)
        poll.register(self.exit, select.POLLIN)

    def result(self) -> Result | None:
        """Return the rank's result, if it is there by now."""
        ended = self._ended(0.0)  # asked first: all that the process wrote before it ended is there by then
        self.channel.flush()
        lines = self.channel.take()
        if lines:
            return read_result(lines[0])
        return Result(DIES, self._last_words()) if ended else None

    def end(self, patience: float) -> None:
        """Kill the process and its children after `patience` seconds, and close its files."""
        self._ended(patience)
        self._kill()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.channel.close()
        self.log.close()
        os.close(self.exit)

    def _ended(self, within: float) -> bool:
        poll = select.poll()
        poll.register(self.exit, select.POLLIN)
        return bool(poll.poll(math.ceil(1000 * within)))

    def _kill(self) -> int:
        """Kill the process and its children; return its status, 0 for one that is stuck in the kernel."""
        if self.process.returncode is None:  # not reaped: nobody else has its number
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_FAREWELL)
        return self.process.returncode or 0

    def _last_words(self) -> Iterator[str]:
        """Yield how the process ended, and the last line of its output."""
        status = self._kill()
        how = f"died by {signal_text(-status)}" if status < 0 else f"ended with exit status {status}"
        yield f"rank {self.rank}: {how}"
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - _TAIL))
        for line in self.log.read().decode(errors="replace").strip().splitlines()[-1:]:
            yield f"rank {self.rank} put out last: {line}"


def serve(
    rank: int, channel: int, port: int, served: Sequence[int], *, size: int, timeout: float, backend: str, device: str
) -> NoReturn:
    """Be the process of a rank until the other end of socket `channel` is closed.

    `port` is that of the ranks' store. The rank that has a listening socket, `served`, serves the store.
    """
    _die_with_parent()
    for number in (channel, *served):
        os.set_inheritable(number, False)
    torch.set_num_threads(1)
    # The ranks are all here, whatever the host's name resolves to.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    end = socket.socket(fileno=channel)
    try:
        serving: dict[str, Any] = {"master_listen_fd": served[0]} if served else {}
        start_limit = timedelta(seconds=_START_LIMIT)
        store = _c10d.TCPStore("127.0.0.1", port, None, bool(served), start_limit, wait_for_workers=False, **serving)
        mine = Rank(rank, size, store, timeout, backend=backend, device=device)
    except Exception as error:
        _send(end, Result(RAISES, [f"rank {rank}: {type(error).__name__}: {error}"], started=False))
        os._exit(1)
    _send(end, Result(OK))
    for line in end.makefile("rb"):
        _send(end, mine.carry_out([from_record(record) for record in json.loads(line)["calls"]]))
    mine.close()
    os._exit(0)


def _send(end: socket.socket, result: Result) -> None:
    end.sendall(result.text().encode() + b"\n")


def _die_with_parent() -> None:
    """Have the kernel kill this process and its children when stdin's other end is closed, whatever they do.

    Nothing is ever written to that pipe, so that its only event is its end. Unlike PR_SET_PDEATHSIG, this does not
    tell of the end of the parent's thread; unlike a thread that reads, it does not need the interpreter lock.
    """
    fcntl.fcntl(0, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(0, 0)
    if poll.poll(0):  # it was closed before
        os._exit(1)
