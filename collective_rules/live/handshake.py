"""The name below which the ranks of one job keep their keys: what an earlier job left in the store is never read.

A store may outlive a job: torchrun starts a job anew on the same store, with all that the attempt before has posted.
(TORCHELASTIC_RESTART_COUNT does not name the attempt: each node counts the failures of its own processes.) So the first
of the ranks that take part draws a name, and tells it to each other rank in answer to a token of that rank. Every
process draws a token of its own, so an answer that an earlier job left is an answer to nobody. The first rank also
answers tokens of an earlier job, which nobody reads.

A default process group has one name for all its blocks. A rank waits for the name in its first block.
"""

from __future__ import annotations

import atexit
import hashlib
import threading
import time
import uuid
from weakref import WeakKeyDictionary

import attrs
import torch.distributed as dist

from collective_rules.live import keys
from collective_rules.live.store import LostStoreError, RankStore

_SHORTEST, _LONGEST = 0.005, 0.05
_A_SECOND = 5_000
"""How many questions all waiting ranks together ask the store in a second."""


class LateError(Exception):
    """The first rank has not drawn a name, and the time is up."""


@attrs.define(eq=False)
class Job:
    """The job's `name`, and how many blocks this process has entered: all ranks have the same count.

    Blocks of all kinds are counted together, so that ranks that enter with other settings find each other, and say so.
    """

    name: str
    blocks: int = 0

    def next_block(self) -> str:
        """Return the prefix of the keys of the next block."""
        self.blocks += 1
        return f"{keys.JOBS}/{self.name}/{self.blocks}"


_jobs: WeakKeyDictionary[dist.ProcessGroup, dict[tuple[int, ...], Job]] = WeakKeyDictionary()
"""By the default process group, and the ranks that take part."""
_answering: dict[tuple[int, ...], _Answering] = {}
"""The threads of this process that answer other ranks, by the ranks that take part."""
_lock = threading.Lock()


def job_of(rank: int, ranks: tuple[int, ...], seconds: float, connecting: float) -> Job:
    """Return the job of the default process group and the `ranks` that take part, of which this process is `rank`.

    Waits `seconds` for the first rank's answer, then takes the name that it drew: it may have left, and told why. Where
    there is none, the first rank may still have to connect to the store, and gets `connecting` seconds more. Raises
    `LateError` when the time is up.
    """
    with _lock:
        jobs = _jobs.setdefault(dist.distributed_c10d._get_default_group(), {})
        if ranks not in jobs:
            digest = hashlib.blake2b(repr(ranks).encode(), digest_size=6).hexdigest()
            store = RankStore(f"{keys.JOBS}/{digest}", seconds + connecting)
            name = _lead(store, ranks) if rank == ranks[0] else _follow(store, len(ranks), seconds, connecting)
            jobs[ranks] = Job(name)
        return jobs[ranks]


def _lead(store: RankStore, ranks: tuple[int, ...]) -> str:
    name = uuid.uuid4().hex[:12]
    if len(ranks) > 1:
        before = _answering.pop(ranks, None)
        if before is not None:
            before.stop()
        store.announce(keys.NAME, name)
        _answering[ranks] = _Answering(store, name, len(ranks) - 1)
    return name


def _follow(store: RankStore, size: int, seconds: float, connecting: float) -> str:
    token = uuid.uuid4().hex[:12]
    store.announce(keys.TOKENS, f"{token}\n", more=True)
    pause, start = _SHORTEST, time.monotonic()
    while (name := store.glance(keys.answer_to(token))) is None:
        waited = time.monotonic() - start
        drawn = store.glance(keys.NAME) if waited > seconds else None
        if drawn:
            return drawn.decode(errors="replace")
        if waited > seconds + connecting:
            raise LateError
        time.sleep(pause)
        pause = min(1.5 * pause, max(_LONGEST, size / _A_SECOND))
    store.announce(keys.THANKS, f"{token}/{name.decode()}\n", more=True)
    return name.decode()


class _Answering:
    """A thread that answers the tokens of the other ranks, until `others` of them have read the answer."""

    def __init__(self, store: RankStore, name: str, others: int) -> None:
        self._store, self._name, self._others = store, name, others
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="collective_rules handshake", daemon=True)
        atexit.register(self.stop)  # a daemon thread that is inside of C++ as the interpreter ends aborts the process
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, and wait for its end."""
        self._ended.set()
        self._thread.join(5.0)
        atexit.unregister(self.stop)

    def _run(self) -> None:
        store, answered, pause = self._store, dict[str, None](), _SHORTEST
        try:
            while not self._ended.wait(pause):
                fresh = [token for token in self._tokens(keys.TOKENS) if token not in answered]
                for token in fresh:
                    store.set(keys.answer_to(token), self._name.encode())
                answered |= dict.fromkeys(fresh)
                if len(answered) >= self._others and self._thanks() >= self._others:
                    for key in (keys.TOKENS, keys.THANKS, keys.NAME, *map(keys.answer_to, answered)):
                        store.delete(key)
                    return
                pause = _SHORTEST if fresh else min(1.5 * pause, _LONGEST)
        except LostStoreError:
            pass  # a rank that comes now finds no store either, and says so
        finally:
            atexit.unregister(self.stop)

    def _thanks(self) -> int:
        return sum(thanks.endswith(f"/{self._name}") for thanks in self._tokens(keys.THANKS))

    def _tokens(self, key: str) -> list[str]:
        return (self._store.find(key) or b"").decode(errors="replace").split()
