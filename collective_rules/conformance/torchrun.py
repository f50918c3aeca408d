"""The ranks of a job of torchrun's: rank 0 leads them, and the others follow, over the job's store.

Each rank makes its calls in a thread. Only rank 0 waits for the end of a thread, and only until the deadline, so that
rank 0 can tell a rank to leave that hangs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NoReturn

from torch._C import _distributed_c10d as _c10d
from torch.distributed.rendezvous import rendezvous

from collective_rules.call import Call
from collective_rules.conformance.process_runner import EndedError, TerminatedError
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.records import from_record, to_record
from collective_rules.sandbox import HANGS, OK, RAISES, Result
from collective_rules.sandbox.result import read_result
from collective_rules.testing.rank import Rank, in_step, merged
from collective_rules.testing.run_calls import no_answer

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_START_LIMIT, _PATIENCE = 120.0, 600.0  # seconds for the ranks to connect, and for rank 0 to draw the next calls
_GRACE = 5.0
_FAREWELL = 30  # seconds for the interpreter to end itself: threads that hang may keep it


def is_launched() -> bool:
    """Return whether torchrun, or a launcher that sets the same variables, has started this process."""
    return all(name in os.environ for name in _LAUNCHED)


def is_follower() -> bool:
    """Return whether this process is a rank of such a job, but not rank 0."""
    return is_launched() and os.environ["RANK"] != "0"


def world_size() -> int:
    """Return the number of ranks of the job."""
    text = os.environ["WORLD_SIZE"]
    if not text.isdecimal():
        raise CallError(f"WORLD_SIZE={text!r} in the environment should be a number, as torchrun sets it")
    return int(text)


def follow(timeout: float, backend: str, device: str) -> None:
    """Be a rank that rank 0 leads, until rank 0 has no more calls."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the midst of a wait in C++, too
    Job(timeout, backend, device).follow()
    signal.alarm(_FAREWELL)


@contextlib.contextmanager
def led(timeout: float, backend: str, device: str) -> Iterator[Job]:
    """Lead the ranks as rank 0; in the end, all leave. After a signal none has to be told: all processes get it."""
    job, by_signal = Job(timeout, backend, device), False

    def terminate(*_: object) -> NoReturn:
        nonlocal by_signal
        by_signal = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the results are about to be printed
        raise TerminatedError

    signal.signal(signal.SIGTERM, terminate)
    try:
        job.connect()
        yield job
    except KeyboardInterrupt:
        by_signal = True
        raise
    finally:
        if not by_signal:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            job.leave()
        signal.alarm(_FAREWELL)


class Job:
    """This process's rank of the job, on a backend as `Rank` takes it.

    Calls go out over the job's store, and all results come back over it.
    """

    def __init__(self, timeout: float, backend: str, device: str) -> None:
        limit = timedelta(seconds=_START_LIMIT)
        store, self.rank, self.size = next(rendezvous("env://", timeout=limit))
        self._timeout = timeout
        # A wait for a key keeps all others from using the same connection: the backend, and the thread that answers.
        self._store, self._answers = (_c10d.PrefixStore("collective_rules.job", store.clone()) for _ in range(2))
        self._count, self._afresh, self._lost = 0, False, False
        self._ranks: list[Rank] = []

        def start() -> Result:
            self._ranks.append(Rank(self.rank, self.size, store, timeout, backend=backend, device=device))
            return Result(OK)

        self._begin(start)

    def connect(self) -> None:
        """On rank 0: wait for all ranks. Raises `CollectiveRulesError` where some do not come."""
        result = merged(self._gathered(_START_LIMIT))
        if result.outcome != OK:
            self._lost = True
            raise CollectiveRulesError("; ".join(result.details))

    def carry_out(self, calls: Sequence[Call]) -> Result:
        """On rank 0: have all ranks make their calls. Raises `EndedError` where some hang."""
        afresh, self._afresh = self._afresh, False
        self._tell({"calls": [to_record(call) for call in calls], "afresh": afresh})
        # Nothing in Python ends a backend that hangs while it holds the interpreter lock.
        signal.alarm(math.ceil(self._timeout + 2 * _GRACE))
        self._begin(functools.partial(self._carry_out, calls, afresh))
        results = self._gathered(self._timeout)
        signal.alarm(0)
        self._afresh = not in_step(results.values())
        self._lost = any(each.outcome == HANGS for each in results.values())
        result = merged(results)
        if self._lost:
            raise EndedError(result)
        return result

    def follow(self) -> None:
        """On other ranks: make the calls that rank 0 sends, until it sends no more."""
        while "calls" in (message := self._heard()):
            calls = [from_record(record) for record in message["calls"]]
            self._begin(functools.partial(self._carry_out, calls, message["afresh"]))
        self._close(message["lost"])
        self._store.set(f"left.{self.rank}", "")

    def leave(self) -> None:
        """On rank 0: tell the others to leave, and wait until they have, or for some seconds."""
        self._tell({"lost": self._lost})
        self._close(self._lost)
        until = time.monotonic() + _GRACE
        # The store may be this process's: the others need it until then.
        self._wait_for((f"left.{rank}" for rank in range(1, self.size)), until)

    def _carry_out(self, calls: Sequence[Call], afresh: bool) -> Result:
        return self._ranks[0].carry_out(calls, afresh=afresh)

    def _tell(self, message: dict[str, Any]) -> None:
        self._count += 1
        self._store.set(f"call.{self._count}", json.dumps(message))

    def _heard(self) -> Any:
        self._count += 1
        key = f"call.{self._count}"
        self._store.wait([key], timedelta(seconds=_PATIENCE))
        return json.loads(self._store.get(key))

    def _begin(self, function: Callable[[], Result]) -> None:
        """Run `function` in a thread, which publishes its result."""
        key = f"answer.{self._count}.{self.rank}"

        def run() -> None:
            try:
                result = function()
            except BaseException as error:
                result = Result(RAISES, [f"rank {self.rank}: {type(error).__name__}: {error}"])
            self._answers.set(key, result.text())

        threading.Thread(target=run, daemon=True).start()

    def _gathered(self, timeout: float) -> dict[int, Result]:
        """Return the results of all ranks, and delete the messages."""
        keys = {rank: f"answer.{self._count}.{rank}" for rank in range(self.size)}
        come = self._wait_for(keys.values(), time.monotonic() + timeout)
        results = {
            rank: read_result(self._store.get(key)) if key in come else Result(HANGS, [no_answer(rank, timeout)])
            for rank, key in keys.items()
        }
        for key in (*come, f"call.{self._count}"):
            self._store.delete_key(key)
        return results

    def _wait_for(self, keys: Iterable[str], until: float) -> set[str]:
        """Return those of `keys` that are there in time. It waits in Python: in C++, no signal is handled."""
        missing, come, pause = set(keys), set[str](), 0.0002
        while missing and time.monotonic() < until:
            there = {key for key in missing if self._store.check([key])}
            missing, come = missing - there, come | there
            if missing:
                time.sleep(pause)
                pause = min(1.5 * pause, 0.01)
        return come

    def _close(self, lost: bool) -> None:
        """Take down the process group, if that is possible; a group that hangs is left."""
        if not lost and self._ranks:
            thread = threading.Thread(target=self._ranks[0].close, daemon=True)
            thread.start()
            thread.join(_GRACE)
