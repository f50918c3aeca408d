"""The sandbox's other processes: a fork server, which forks a worker for each payload, and the workers, which run jobs.

They know jobs, deadlines and how to end all that a worker has started, and send results to the parent as JSON. Retries
are not theirs.

The fork server has one thread, so that it can fork, and never waits for one worker alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import math
import os
import resource
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import attrs
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.places import described, import_place
from collective_rules.sandbox.channel import Channel
from collective_rules.sandbox.result import DIES, HANGS, OK, RAISES, Result, read_result
from collective_rules.sandbox.sandbox import START_LIMIT

ANSWER_LIMIT = 16 * 2**20
"""How many bytes of JSON an answer may have."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_TAIL = 4096
_PATIENCE = 5.0  # seconds until a process that was killed is left alone, stuck in the kernel


def main(end: int, owner: int) -> NoReturn:
    """Be the fork server of process `owner`, which is at the other end of socket `end`."""
    signal.alarm(math.ceil(START_LIMIT))
    os.set_inheritable(end, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Not 0: the kernel hands that much to a core_pattern that is a program. See core(5).
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (1 if hard else 0, hard))
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        raise CollectiveRulesError("this kernel has no /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN)")
    try:
        _ForkServer(Channel(socket.socket(fileno=end)), owner).serve()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


@functools.cache
def _warm_up() -> None:
    """Use torch once, so that no worker imports the hundreds of modules that torch imports on first use."""
    torch.set_num_threads(1)
    with FakeTensorMode():
        torch.ones(2) + 1


def load(name: str) -> Callable[[Any], Any] | None:
    """Import a module, or the module of a job, and return the job's function.

    Raises `CallError`, whatever the import raises.

    >>> load("math:sqrt")(4)
    2.0
    """
    module_name, _, function = name.rpartition(":") if ":" in name else (name, "", "")
    try:
        module = import_place(module_name)
    except BaseException as error:
        raise CallError(f"{name!r} cannot be imported: {described(error)}") from None
    if not function:
        return None
    job = getattr(module, function, None)
    if not callable(job):
        raise CallError(f"job={name!r}, but should name a function of {module_name}: there is no {function!r}")
    return job  # type: ignore[no-any-return]  # callable() says no more


@functools.cache
def _call_warm_up(module: str) -> None:
    """Call the module's `sandbox_warm_up`, if it defines one."""
    getattr(import_place(module), "sandbox_warm_up", int)()


# -- the fork server


@attrs.define(eq=False)
class _Worker:
    """A child, and its request: the `key`, None when idle, until when it may run, and the result once it is there."""

    pid: int
    channel: Channel
    output: int | None
    exit: int
    tail: bytes = b""
    key: int | None = None
    reuse: bool = False
    deadline: float = math.inf
    until: float = math.inf
    result: Result | None = None

    def drain(self) -> None:
        """Keep the end of the output, so that no output fills a pipe, memory or disk."""
        with contextlib.suppress(BlockingIOError):
            # Not until there is no more: there may always be.
            for _ in range(16):
                if self.output is None:
                    return
                chunk = os.read(self.output, 2**16)
                self.tail = (self.tail + chunk)[-_TAIL:]
                if not chunk:
                    os.close(self.output)
                    self.output = None

    def result_by_now(self, status: int | None) -> Result | None:
        """Return the request's result, if there is one by now; `status` is that of a worker that has ended."""
        self.drain()
        lines = self.channel.take()
        if max(self.channel.pending, *map(len, lines), 0) > ANSWER_LIMIT:
            return Result(RAISES, [f"an answer of more than {ANSWER_LIMIT} bytes"])
        if lines:
            return read_result(lines[0])
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            text = self.tail.decode(errors="replace").strip()
            return Result(DIES, text.splitlines(), max(0, -code), code if code >= 0 else None)
        if time.monotonic() >= self.until:
            return Result(HANGS, [f"no answer within {self.deadline:g} s"])
        return None

    def close(self) -> None:
        self.channel.close()
        os.close(self.exit)
        if self.output is not None:
            os.close(self.output)


class _ForkServer:
    """Forks workers for the parent's requests, and ends the processes that they leave behind."""

    def __init__(self, parent: Channel, owner: int) -> None:
        self._parent, self._workers = parent, list[_Worker]()
        # Not PR_SET_PDEATHSIG: it tells of the end of the thread that started this process, too.
        self._owner = os.pidfd_open(owner)
        self._gone = os.getppid() != owner

    def serve(self) -> NoReturn:
        """Carry out requests until the parent closes its end or is gone."""
        while not self._gone and not self._parent.ended:
            self._wait()
            # Before a request is given to an idle worker: it may have died.
            for worker in [*self._workers]:
                self._look_after(worker)
            for line in self._parent.take():
                self._obey(json.loads(line))
            self._parent.flush()
        self._workers.clear()
        self._sweep()
        os._exit(0)

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._owner, select.POLLIN)
        self._parent.register(poll)
        for worker in self._workers:
            poll.register(worker.exit, select.POLLIN)
            if worker.result is None:
                worker.channel.register(poll)
            if worker.output is not None:
                poll.register(worker.output, select.POLLIN)
        until = min((worker.until for worker in self._workers), default=math.inf)
        left = None if until == math.inf else min(max(0.0, math.ceil(1000 * (until - time.monotonic()))), 1e6)
        self._gone = any(end == self._owner for end, _ in poll.poll(left))

    def _obey(self, request: dict[str, Any]) -> None:
        if "import" in request:
            self._parent.put({"key": request["key"], "refused": self._import(request["import"])})
        elif "cancel" in request:
            for worker in self._workers:
                if worker.key in request["cancel"]:
                    worker.until = 0.0
            for worker in [worker for worker in self._workers if worker.key is None]:
                self._workers.remove(worker)
                worker.close()
            self._sweep()
            self._parent.put({"key": request["key"]})
        else:
            idle = next((worker for worker in self._workers if worker.key is None), None)
            worker = idle if idle is not None and request["reuse"] else self._fork()
            worker.key, worker.reuse, worker.deadline = request["key"], request["reuse"], request["deadline"]
            worker.until = time.monotonic() + worker.deadline
            worker.channel.put(request)

    def _import(self, names: list[str]) -> str | None:
        """Import modules, and return why one cannot be. An alarm ends an import that never returns."""
        signal.alarm(math.ceil(START_LIMIT))
        try:
            for name in names:
                load(name)
                _call_warm_up(name.rpartition(":")[0] or name)
            _warm_up()
        except CallError as error:
            return str(error)
        finally:
            signal.alarm(0)
        return None

    def _fork(self) -> _Worker:
        ours, theirs = socket.socketpair()
        output, its_output = os.pipe()
        server, pid = os.getpid(), os.fork()
        if pid == 0:
            try:
                _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                # Orphans of a job become children of its worker as long as that lives: they are known to be the job's.
                _prctl(_PR_SET_CHILD_SUBREAPER, 1)
                if os.getppid() == server:
                    self._become_worker(ours, theirs, output, its_output)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()
        os.close(its_output)
        os.set_blocking(output, False)
        worker = _Worker(pid, Channel(ours), output, os.pidfd_open(pid))
        self._workers.append(worker)
        return worker

    def _become_worker(self, ours: socket.socket, theirs: socket.socket, output: int, its_output: int) -> None:
        os.setsid()
        ours.close()
        self._parent.close()
        for end in (self._owner, output):
            os.close(end)
        for worker in self._workers:
            worker.close()
        for stream in (1, 2):
            os.dup2(its_output, stream)
        os.close(its_output)
        _work(theirs)

    def _look_after(self, worker: _Worker) -> None:
        # Asked before its answer is looked for: what it wrote before it ended is there by then.
        ended, status = os.waitpid(worker.pid, os.WNOHANG)
        worker.channel.flush()
        result = worker.result or worker.result_by_now(status if ended else None)
        if ended:
            worker.close()
            self._workers.remove(worker)
            self._sweep()
            if worker.key is not None and result is not None:
                self._parent.put({"key": worker.key, "result": result.text()})
        elif result is None or worker.result is not None:
            worker.drain()
        elif worker.reuse and worker.key is not None and result.outcome == OK and not _children(worker.pid):
            self._parent.put({"key": worker.key, "result": result.text()})
            worker.key, worker.until, worker.tail = None, math.inf, b""
        else:
            worker.result, worker.until = result, math.inf
            os.kill(worker.pid, signal.SIGKILL)

    def _sweep(self) -> None:
        """Kill and reap the children that are no workers: the orphans of ended workers, and their orphans."""
        deadline = time.monotonic() + _PATIENCE
        workers = {worker.pid for worker in self._workers}
        while (strays := _children(os.getpid()) - workers) and time.monotonic() < deadline:
            for pid in strays:
                with contextlib.suppress(PermissionError):  # of another user
                    os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.001)


def _children(pid: int) -> set[int]:
    """Return the children of all threads of a process."""
    children: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children.update(map(int, (thread / "children").read_text().split()))
    return children


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option})")


# -- a worker


def _work(end: socket.socket) -> NoReturn:
    """Answer requests until the fork server closes its end."""
    worker = os.getpid()
    for line in end.makefile("rb"):
        answer = _answer(json.loads(line))
        if os.getpid() != worker:  # a job has forked, and both came back
            os._exit(1)
        end.sendall(answer + b"\n")
    os._exit(0)


def _answer(request: dict[str, Any]) -> bytes:
    try:
        function = load(request["job"])
        if function is None:
            raise CallError(f"job={request['job']!r} names no function")
        value = function(json.loads(request["payload"]))
        result = value if isinstance(value, Result) else Result(OK, value=value)
    except BaseException as error:
        result = Result(RAISES, described(error).splitlines())
    try:
        text = result.text()
    except (TypeError, ValueError, RecursionError) as error:
        text = Result(RAISES, [f"an answer that is not JSON data: {error}"]).text()
    if len(text) > ANSWER_LIMIT:
        text = Result(RAISES, [f"an answer of {len(text)} bytes of JSON, but should be {ANSWER_LIMIT} at most"]).text()
    return text.encode()
