"""Programs whose store, machine or own objects are at fault, and not their calls: for `tests.live_ranks`."""

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from collective_rules import RuleMode, guard
from collective_rules.live import comparer, handshake, keys, shutdown, store
from collective_rules.live.session import Session

ones = torch.ones
GARBAGE = b"\xff no rank wrote this"


def slow_after_each_message(culprit: int, seconds: float, *, alone: bool) -> Callable[[int, int], None]:
    """Return a legal program in which one rank is descheduled after each message to the store.

    `alone`: only the program's own thread is, and the rank's watchdog goes on answering.
    """

    def program(rank: int, size: int) -> None:
        dist.all_reduce(ones(3))
        if rank < 2:
            (dist.send if rank == 0 else dist.recv)(ones(3), 1 - rank)
        if rank == 2:
            dist.recv(ones(3))
        elif rank == 1:
            dist.send(ones(3), 2)

    def prepare() -> tuple[Any, ...]:
        if dist.get_rank() == culprit:
            for name in ("_try", "_over_process"):
                setattr(store.RankStore, name, _slow(getattr(store.RankStore, name), seconds, alone=alone))
        return ()

    program.prepare = prepare  # type: ignore[attr-defined]  # as with_groups
    return program


def _slow(act: Any, seconds: float, *, alone: bool) -> Any:
    def act_slowly(self: Any, *args: Any) -> Any:
        result = act(self, *args)
        if not alone or threading.current_thread() is threading.main_thread():
            time.sleep(seconds)
        return result

    return act_slowly


# More than two looks of another rank's watchdog; and more than that watchdog needs to ask the others, too.
first_is_slow = slow_after_each_message(0, 0.25, alone=False)
second_is_slow = slow_after_each_message(1, 0.6, alone=True)


def _be_a_new_process() -> None:
    handshake._jobs.clear()
    for answering in [*handshake._answering.values()]:
        answering.stop()
    handshake._answering.clear()


def restarts(rank: int, size: int) -> list[int]:
    """Jobs on one store, of which each leaves all its keys behind, as if it was killed; the first rank comes late."""
    counts = []
    say_goodbye, delete = comparer.say_goodbye, store.RankStore.delete
    for attempt, agree in enumerate(("always", "always", "exit", 2, 2)):
        comparer.say_goodbye = lambda *args, **kwargs: None
        store.RankStore.delete = lambda self, key: None
        if rank == 0 and attempt:
            time.sleep(0.4)
        with RuleMode(agree=agree, deadline=30) as ledger:
            for _ in range(3):
                dist.all_reduce(ones(3 + attempt))
        counts.append(len(ledger.findings))
        comparer.say_goodbye, store.RankStore.delete = say_goodbye, delete
        dist.barrier()
        _be_a_new_process()
    return counts


def in_a_row(rank: int, size: int) -> list[int]:
    """Blocks of every kind, one after the other, with ranks that come to them at different times."""
    counts, kept = [], dist.distributed_c10d._get_default_store()
    for turn, agree in enumerate(("always", "exit", 2, "always", 2, "exit", "always")):
        time.sleep(0.2 if turn % size == rank else 0)
        with guard(agree=agree, deadline=30) as guarded:
            for _ in range(3):
                dist.all_reduce(ones(3 + turn))
        counts.append(len(guarded.findings))
    dist.barrier()
    time.sleep(0.3)
    return [*counts, kept.num_keys()]


def _session_of(mode: Any) -> Session:
    session = mode._recorder._observer._session
    assert isinstance(session, Session)
    return session


WRITTEN: dict[str, Callable[[str], str]] = {
    "posts": lambda group: keys.posts(f"{group}/1"),
    "verdict": lambda group: keys.verdict(f"{group}/1"),
    "error": lambda group: keys.ERROR,
    "wake": lambda group: keys.of_rank(keys.WAKE, 0),
    "last": lambda group: keys.of_rank(keys.LAST, 0),
    "lead": lambda group: keys.lead(0),
    "rest": lambda group: keys.REST,
    "exit": lambda group: keys.posts(keys.EXIT),
    "exit verdict": lambda group: keys.verdict(keys.EXIT),
    "tails verdict": lambda group: keys.verdict(keys.TAILS),
}
"""The key into which one rank writes a value that no rank wrote, by its kind; of a group, in the store."""


def garbage(rank: int, size: int) -> dict[str, list[str]]:
    """Blocks in which one rank writes garbage between two calls; what the ranks note."""
    noted = {}
    for kind, key_of in WRITTEN.items():
        mode = RuleMode(agree="always", deadline=4)
        with mode as ledger:
            dist.all_reduce(ones(3))
            if rank == 1:
                session = _session_of(mode)
                (group,) = (each.key for each in mode._recorder._observer._guarded())
                session.store.append(key_of(group), GARBAGE)
                session.store.append(keys.of_rank(keys.WAKE, 0), b"look\n")
            time.sleep(0.3 if kind == "error" else 0)  # until the watchdog of rank 0 has looked
            dist.all_reduce(ones(3))
            dist.all_reduce(ones(3))
        noted[kind] = [f"{found.severity} {found.id}" for found in ledger.findings]
        dist.barrier()
    return noted


def a_tail_is_garbage(rank: int, size: int) -> list[str]:
    post = shutdown._post_tail

    def post_garbage(session: Session) -> bool:
        last = post(session)
        session.store.set(keys.of_rank(keys.TAIL, session.rank), GARBAGE)
        return last

    shutdown._post_tail = post_garbage
    with guard(deadline=20) as guarded:
        dist.all_reduce(ones(3))
    return [f"{found.severity} {found.id}" for found in guarded.findings]


def the_watchdog_fails(rank: int, size: int) -> list[str]:
    """A fault of the library's own in its thread: another rank is asked, and this one still answers."""
    looks = comparer.Watchdog._compare_windows
    comparer.Watchdog._compare_windows = lambda self: looks(self) if rank != 1 else 1 / 0
    with RuleMode(agree="always", deadline=20) as ledger:
        dist.all_reduce(ones(3))
        time.sleep(0.5)
        dist.all_reduce(ones(3))
    return [f"{found.severity} {found.id} {found.message.partition('[')[0].strip()}" for found in ledger.findings]


def no_utf8(rank: int, size: int) -> None:
    """A program in a file whose path is no UTF-8; with "always" the lines of calls go through the store."""
    text = "def call(size):\n    dist.all_reduce(torch.ones(size))\n"
    scope: dict[str, Any] = {"dist": dist, "torch": torch}
    exec(compile(text, os.fsdecode(b"/tmp/tr\xffain.py"), "exec"), scope)
    scope["call"](3)
    time.sleep(0.3)
    scope["call"](3 + rank)


class EvilError(RuntimeError):
    """An error whose text and objects run the program's own code."""

    said = 0

    def __str__(self) -> str:
        EvilError.said += 1
        raise KeyError("from within __str__")

    __repr__ = __str__


def raises_evil(rank: int, size: int) -> int:
    try:
        with RuleMode(agree="always", deadline=20):
            dist.all_reduce(ones(3))
            if rank == 1:
                raise EvilError("no such batch", object())
            dist.all_reduce(ones(3))
    except EvilError:
        return EvilError.said
    raise AssertionError("no error")


def destroyed_groups(rank: int, size: int) -> list[int]:
    """How many files the process has open as groups come and go."""

    def use_a_group() -> int:
        group = dist.new_group()
        dist.all_reduce(ones(3), group=group)
        if rank < 2:
            (dist.send if rank == 0 else dist.recv)(ones(3), 1 - rank, group=group)
        dist.destroy_process_group(group)
        return len(os.listdir("/proc/self/fd"))

    return [use_a_group() for _ in range(5)]


def long(rank: int, size: int) -> None:
    """Many calls in quick succession, and messages both ways."""
    for step in range(1500):
        dist.all_reduce(ones(8))
        if step % 50 == 0 and rank < 2:
            (dist.send if rank == 0 else dist.recv)(ones(3), 1 - rank)
            (dist.recv if rank == 0 else dist.send)(ones(3), 1 - rank)


def short_blocks(rank: int, size: int) -> None:
    """Blocks within the block, each with the end that all ranks come to."""
    for step in range(10):
        with guard(agree=("always", "exit", 2)[step % 3], deadline=60):
            dist.all_reduce(ones(3))


def leaves_by_an_error(rank: int, size: int) -> list[int]:
    """How often the others look for the answer of a rank that is known to have left."""
    asked: list[int] = []
    find = store.RankStore.find

    def counted(self: Any, key: str) -> bytes | None:
        if key.startswith("said/") and key.endswith("/1"):
            asked.append(rank)
        return find(self, key)

    store.RankStore.find = counted
    with RuleMode(agree="always", deadline=20):
        dist.all_reduce(ones(3))
        if rank == 1:
            raise KeyError("no such batch")
        dist.all_reduce(ones(3))
    return asked


def the_first_never_enters(rank: int, size: int) -> list[str]:
    if rank == 0:
        time.sleep(6)
        return []
    comparer.CONNECTING = 1.0
    with RuleMode(agree="exit", deadline=2):
        dist.all_reduce(ones(3))
    return []
