"""The sandbox's other processes: a zygote, which forks a worker for each payload, and the workers, which run jobs.

They know jobs, deadlines and how to end all that a worker has started. What a job came to goes to the parent as JSON;
what it is for, who asks and what is tried again is `sandbox`'s to know.

The zygote has one thread, so that it can fork, and never waits for one worker alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import json
import math
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import attrs
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.sandbox.sandbox import (
    ANSWER_LIMIT,
    DIES,
    HANGS,
    OK,
    RAISES,
    START_LIMIT,
    Channel,
    Verdict,
    read_verdict,
)
from collective_rules.testing.world import boxed_reduce_op

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_TAIL = 4096
_PATIENCE = 5.0  # seconds until a process that was killed is left alone, stuck in the kernel


def main(end: int, owner: int) -> NoReturn:
    """Be the zygote of process `owner`, which is at the other end of socket `end`."""
    signal.alarm(math.ceil(START_LIMIT))
    os.set_inheritable(end, False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # Not 0: the kernel hands that much to a core_pattern that is a program. See core(5).
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (1 if hard else 0, hard))
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():
        raise CollectiveRulesError("this kernel has no /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN)")
    try:
        _Zygote(Channel(socket.socket(fileno=end)), owner).serve()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


@functools.cache
def _warm_up() -> None:
    """Do once what each worker would have to: torch imports eight hundred modules only when they are used."""
    torch.set_num_threads(1)
    boxed_reduce_op("sum")
    with FakeTensorMode():
        torch.ones(2) + 1


def load(name: str) -> Callable[[Any], Any] | None:
    """Import a module, or that of a job, and return the job's function.

    Raises `CallError`, whatever the import raises.

    >>> load("math:sqrt")(4)
    2.0
    """
    module_name, _, function = name.rpartition(":") if ":" in name else (name, "", "")
    try:
        module = _module(module_name)
    except BaseException as error:
        raise CallError(f"{name!r} cannot be imported: {_described(error)}") from None
    if not function:
        return None
    job = getattr(module, function, None)
    if not callable(job):
        raise CallError(f"job={name!r}, but should name a function of {module_name}: there is no {function!r}")
    return job  # type: ignore[no-any-return]  # callable() says no more


@functools.cache
def _module(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, name)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python module in {name}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _described(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = "(it has no text: its __str__ raises)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# -- the zygote


@attrs.define(eq=False)
class _Worker:
    """A child, and what it is at: the request's `key`, None when idle, until when, and its verdict once known."""

    pid: int
    channel: Channel
    output: int | None
    exit: int
    tail: bytes = b""
    key: int | None = None
    reuse: bool = False
    deadline: float = math.inf
    until: float = math.inf
    verdict: Verdict | None = None

    def drain(self) -> None:
        """Keep the end of what has been put out, so that no output fills a pipe, memory or disk."""
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

    def judge(self, status: int | None) -> Verdict | None:
        """Return what the request has come to by now, given the status of a worker that has ended."""
        self.drain()
        lines = self.channel.take()
        if max(self.channel.pending, *map(len, lines), 0) > ANSWER_LIMIT:
            return Verdict(RAISES, f"an answer of more than {ANSWER_LIMIT} bytes")
        if lines:
            return read_verdict(lines[0])
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            text = self.tail.decode(errors="replace").strip()
            return Verdict(DIES, text, max(0, -code), code if code >= 0 else None)
        if time.monotonic() >= self.until:
            return Verdict(HANGS, f"no answer within {self.deadline:g} s")
        return None

    def close(self) -> None:
        self.channel.close()
        os.close(self.exit)
        if self.output is not None:
            os.close(self.output)


class _Zygote:
    """Forks workers for the requests of the parent, and sees that nothing of theirs outlives them."""

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
            if worker.verdict is None:
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
        """Import modules; return why not. Not even an import that never returns outlives the parent for long."""
        signal.alarm(math.ceil(START_LIMIT))
        try:
            for name in names:
                load(name)
            _warm_up()
        except CallError as error:
            return str(error)
        finally:
            signal.alarm(0)
        return None

    def _fork(self) -> _Worker:
        ours, theirs = socket.socketpair()
        output, its_output = os.pipe()
        zygote, pid = os.getpid(), os.fork()
        if pid == 0:
            try:
                _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
                # Orphans of a job stay below its worker as long as that lives, so that they are known to be its.
                _prctl(_PR_SET_CHILD_SUBREAPER, 1)
                if os.getppid() == zygote:
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
        verdict = worker.verdict or worker.judge(status if ended else None)
        if ended:
            worker.close()
            self._workers.remove(worker)
            self._sweep()
            if worker.key is not None and verdict is not None:
                self._parent.put({"key": worker.key, "verdict": _json(verdict)})
        elif verdict is None or worker.verdict is not None:
            worker.drain()
        elif worker.reuse and worker.key is not None and verdict.outcome == OK and not _children(worker.pid):
            self._parent.put({"key": worker.key, "verdict": _json(verdict)})
            worker.key, worker.until, worker.tail = None, math.inf, b""
        else:
            worker.verdict, worker.until = verdict, math.inf
            os.kill(worker.pid, signal.SIGKILL)

    def _sweep(self) -> None:
        """Kill and reap the children that are no workers: orphans of workers that have ended, and theirs in turn."""
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
    """Answer requests until the zygote wants no more."""
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
        verdict = value if isinstance(value, Verdict) else Verdict(OK, value=value)
    except BaseException as error:
        verdict = Verdict(RAISES, _described(error))
    try:
        text = _json(verdict)
    except (TypeError, ValueError, RecursionError) as error:
        text = _json(Verdict(RAISES, f"an answer that is not JSON data: {error}"))
    if len(text) > ANSWER_LIMIT:
        message = f"an answer of {len(text)} bytes of JSON, but should be {ANSWER_LIMIT} at most"
        text = _json(Verdict(RAISES, message))
    return text.encode()


def _json(verdict: Verdict) -> str:
    return json.dumps(attrs.asdict(verdict, recurse=False))
