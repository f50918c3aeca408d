"""W real ranks in one process, called at the dispatcher by rows of the op table.

It knows which ranks are called in which thread, how long they may take, and how they end. It does not know what an op
should do, and judges nothing: each rank's `Outcome` says what came back.

All gloo ranks share one device: with one device each, their I/O threads starve each other (4 to 8 times slower).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import attrs
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch._C import _distributed_c10d as _c10d

from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.messages import ranks_text
from collective_rules.ops import Row, lookup
from collective_rules.spec import is_size
from collective_rules.testing.dispatch import (
    SLICE,
    Outcome,
    Posted,
    Seat,
    blocks,
    boxed_reduce_op,
    has_cpu_kernel,
    post,
    prepared,
    seated,
    wait,
    wait_until,
)
from collective_rules.testing.process_groups import Factory, Provider, resolve

__all__ = ["Outcome", "World", "WorldTimeout", "boxed_reduce_op", "close_worlds", "has_cpu_kernel", "world"]


@attrs.frozen(str=False, eq=False)
class WorldTimeout(CollectiveRulesError, TimeoutError):  # noqa: N818 - Timeout says it
    """Some ranks did not answer in time; the world has been closed.

    `what` was asked, `ranks` did not answer within `timeout` seconds, `outcomes` are those of the ranks that did.
    """

    what: str
    ranks: tuple[int, ...]
    timeout: float
    outcomes: Mapping[int, Outcome] = attrs.field(factory=dict)

    def __str__(self) -> str:
        errors = [f"\n  rank {rank}: {outcome.error}" for rank, outcome in self.outcomes.items() if outcome.error]
        return f"{self.what}: no answer within {self.timeout:g} s from {ranks_text(self.ranks)}{''.join(errors)}"


_LONGEST = 86_400.0


class World:
    """`size` ranks of a backend in this process. `groups` are their process groups, by rank.

    `backend` is what `resolve` takes: "gloo", "fake", "threaded", a registered name, the place of a factory, or a
    factory. A group written in Python has its methods called for `c10d::*`, in a thread for each rank.

    Everything has a deadline of `timeout` seconds. A world in which a rank did not answer, or only some succeeded, is
    closed, and so is one that Ctrl-C interrupts: the ranks have lost step with each other then.

    >>> import torch
    >>> with World(2) as ranks:
    ...     calls = [{"input": torch.tensor([float(rank)])} for rank in range(2)]
    ...     outcomes = ranks.run("_c10d_functional::all_gather_into_tensor", calls)
    >>> outcomes[1].returned
    (tensor([0., 1.]),)
    """

    def __init__(self, size: int, timeout: float = 10.0, *, backend: str | Factory = "gloo") -> None:
        if not dist.is_available():
            raise CollectiveRulesError(f"torch {torch.__version__} was built without distributed")
        if not is_size(size) or size < 1:
            raise CallError(f"size={size!r}, but a world has at least one rank")
        if not (isinstance(timeout, (int, float)) and 0 < timeout <= _LONGEST):
            raise CallError(f"timeout={timeout!r}, but should be a number of seconds, at most {_LONGEST:g}")
        self.size, self.timeout, self.closed = size, timeout, False
        self.backend: Provider = resolve(backend)
        self.groups: list[dist.ProcessGroup] = []
        self._seats: list[Seat] = []
        self._stuck: list[threading.Thread] = []
        self._busy = False  # whether ops may have been posted that have not been waited for
        # What gloo's threads may still refer to. One that lets go of a tensor last needs the interpreter lock, which
        # is held while a group's destructor joins those threads.
        self._kept: list[object] = []
        # The backend's own timeout ends what is still blocked when ours is over.
        self._own_timeout = timedelta(seconds=timeout * 1.25 + 0.2)
        self._store = _c10d.HashStore()
        self._store.set_timeout(self._own_timeout)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        """Make the backends, each in a thread: every rank waits for all others, as long as none has failed."""
        make = functools.partial(self.backend.make, self.backend.start(), self._store)
        functions = {r: functools.partial(make, r, self.size, self._own_timeout) for r in range(self.size)}
        made = self._threads(functions, self.timeout, enough=lambda outcome: outcome.error is not None)
        failed = next((outcome.error for outcome in made.values() if outcome.error is not None), None)
        if failed is not None:
            made.clear()  # the error's traceback would keep the groups
            raise failed
        silent = tuple(rank for rank in range(self.size) if rank not in made)
        if silent:
            made.clear()
            raise WorldTimeout("connecting", silent, self.timeout)
        name = f"collective_rules.{os.getpid()}.{next(_COUNTER)}"
        for rank in range(self.size):
            backend = made[rank].returned[0]
            self._seats.append(seated(c10d.GroupName(f"{name}.{rank}"), self._store, rank, self.size, backend))
            self.groups.append(self._seats[rank].group)

    def run(self, op: Any, calls: Sequence[Mapping[str, Any] | None]) -> tuple[Outcome, ...]:
        """Make one call on each rank, wait for all, and return what each came to.

        `op` is anything that `lookup` takes, or a list with one for each rank (a send meets a recv). `calls` holds
        each rank's arguments by schema name, with real tensors, without the group's; None for a rank that takes no
        part. A reduce op is a lower-case name; what may be left out has torch.distributed's default.

        gloo's ops are posted by the calling thread, rank by rank, so that its dispatch modes see them. Those that
        block run in a thread for each rank, and so do all ops of a backend of which it is not known that none does.

        Raises `CallError` for a call that could not be made on any backend (a missing or unknown argument, an op that
        this torch lacks), `WorldTimeout` where a rank did not answer.

        >>> import torch
        >>> both = world(2).run("c10d::allreduce_", [{"tensors": [torch.ones(2)]}, {"tensors": [torch.ones(2)]}])
        >>> both[0].returned
        ([tensor([2., 2.])],)
        """
        rows = [lookup(each) for each in (op if isinstance(op, (list, tuple)) else [op] * self.size)]
        if len(calls) != self.size or len(rows) != self.size:
            raise CallError(f"{len(calls)} calls of {len(rows)} ops, but should be {self.size} of each, one for a rank")
        self._require_open()
        with self._closed_if_interrupted():
            answers = self._carry_out(rows, calls)
        asked = [rank for rank, call in enumerate(calls) if call is not None]
        return self._settle(" and ".join(dict.fromkeys(rows[rank].op for rank in asked)), asked, answers)

    def each(self, function: Callable[[int], Any]) -> tuple[Outcome, ...]:
        """Run `function(rank)` in a thread for each rank; what it returns is the one thing that came back.

        For what a single op cannot say: a backward pass, several calls in a row.

        >>> import torch
        >>> def mean(rank):
        ...     total = torch.ops._c10d_functional.all_reduce(torch.tensor(float(rank)), "avg", world(2).groups[rank])
        ...     return torch.ops._c10d_functional.wait_tensor(total).item()
        >>> [outcome.returned for outcome in world(2).each(mean)]
        [(0.5,), (0.5,)]
        """
        self._require_open()
        with self._closed_if_interrupted():
            answers = self._threads({r: functools.partial(function, r) for r in range(self.size)}, self.timeout)
        return self._settle(getattr(function, "__name__", "each"), range(self.size), answers)

    def close(self) -> None:
        """Unregister the groups, and end their threads and connections. A closed world cannot be used again.

        A thread that waits inside a backend without a timeout cannot be ended: it is left behind.
        """
        if self.closed:
            return
        self.closed = True
        deadline = time.monotonic() + 2 * self._own_timeout.total_seconds()
        for key in [key for key, known in _WORLDS.items() if known is self]:
            del _WORLDS[key]
        threads = self._shut_down() + self._stuck
        for thread in threads:
            thread.join(_left(deadline))
        if threads:
            time.sleep(0.05)  # gloo's threads let go of what the stuck threads waited for
        self._stuck = []
        self._kept.clear()
        del self._store

    def _shut_down(self) -> list[threading.Thread]:
        """Let go of the groups, of all at once, each in a thread; return the threads.

        The end of a gloo group waits for its own ops, and breaks the connections for which the others' ops wait. That
        of another backend may do anything. gloo's are ended here where nobody waits: it is faster.
        """
        while self._seats:  # no variable may keep a seat, and so its group
            self._seats.pop().forget()
        boxes = [[group] for group in self.groups]
        self.groups.clear()
        threads = [threading.Thread(target=_end, args=(box,), daemon=True) for box in boxes]
        here = self.backend.posts_at_once and not self._busy
        for thread in threads:
            thread.run() if here else thread.start()
        return [] if here else threads

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<World of {self.size} {self.backend.name} ranks{', closed' if self.closed else ''}>"

    def _require_open(self) -> None:
        if self.closed:
            other = "" if self.backend.name == "gloo" else f", backend={self.backend.name!r}"
            raise CollectiveRulesError(f"{self!r} cannot be used; world({self.size}{other}) makes another")
        if self.groups[0] not in c10d._world.pg_group_ranks:  # destroy_process_group() forgets all groups, not its own
            for seat in self._seats:
                seat.announce()

    @contextlib.contextmanager
    def _closed_if_interrupted(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        except CallError:  # of the calls: nothing has been posted
            self._busy = False
            raise
        except BaseException as error:  # Ctrl-C: some ranks have been called, and others not
            traceback.clear_frames(error.__traceback__)  # they hold the groups
            self.close()
            raise

    # -- posting and waiting

    def _carry_out(self, rows: Sequence[Row], calls: Sequence[Mapping[str, Any] | None]) -> dict[int, Outcome]:
        """Return the outcomes of the ranks that answer. Nothing that refers to a group outlives this frame."""
        posts: dict[int, Callable[[], Any]] = {}
        for rank, (row, call) in enumerate(zip(rows, calls, strict=True)):
            if call is not None:
                posts[rank] = prepared(self._seats[rank], row, call)
        self._kept = [calls]
        deadline = time.monotonic() + self.timeout
        if self.backend.posts_at_once and not any(blocks(rows[rank], calls[rank] or {}) for rank in posts):
            return self._post_then_wait(posts, deadline)
        return self._both(posts)

    def _both(self, posts: Mapping[int, Callable[[], Any]]) -> dict[int, Outcome]:
        """Post and wait in a thread for each rank."""

        def both(call: Callable[[], Any], timeout: timedelta | None) -> Outcome:
            posted = post(call)
            self._kept.append(posted)
            return wait(posted, timeout)

        timeouts = [None if seat.methods else self._own_timeout for seat in self._seats]
        functions = {rank: functools.partial(both, call, timeouts[rank]) for rank, call in posts.items()}
        return self._inner(functions, self.timeout)

    def _post_then_wait(self, posts: Mapping[int, Callable[[], Any]], deadline: float) -> dict[int, Outcome]:
        """Post rank by rank in this thread; wait for the Works here, and for functional results in threads."""
        posted: dict[int, Posted] = {}
        self._kept.append(posted)
        for rank, call in posts.items():
            posted[rank] = post(call)
        answers: dict[int, Outcome] = {}
        waits: dict[int, Callable[[], Outcome]] = {}
        for rank, each in posted.items():
            if each.works:
                outcome = wait_until(deadline, each)
                if outcome is not None:
                    answers[rank] = outcome
            elif each.outcome.error is None and each.tensors:
                waits[rank] = functools.partial(wait, each, None)
            else:
                answers[rank] = each.outcome
        return answers | self._inner(waits, _left(deadline))

    def _inner(self, functions: Mapping[int, Callable[[], Outcome]], timeout: float) -> dict[int, Outcome]:
        """`_threads`, for functions that return their outcome."""
        outcomes = self._threads(functions, timeout)
        return {rank: outcome if outcome.error else outcome.returned[0] for rank, outcome in outcomes.items()}

    def _threads(
        self,
        functions: Mapping[int, Callable[[], Any]],
        timeout: float,
        enough: Callable[[Outcome], bool] = lambda _: False,
    ) -> dict[int, Outcome]:
        """Run each in a thread; return what those came to that ended in time, and before one whose outcome is enough.

        What a thread raises is its outcome, whatever it is: pytest's failures and SystemExit are no `Exception`.
        """
        answers: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
        grad = torch.is_grad_enabled()

        def run(rank: int) -> None:
            with torch.set_grad_enabled(grad):
                try:
                    outcome = Outcome((functions[rank](),))
                except BaseException as error:
                    outcome = Outcome(error=error.with_traceback(None))
            answers.put((rank, outcome))

        threads = {rank: threading.Thread(target=run, args=(rank,), daemon=True) for rank in functions}
        outcomes: dict[int, Outcome] = {}
        deadline = time.monotonic() + timeout
        try:
            for thread in threads.values():
                thread.start()
            while len(outcomes) < len(threads) and not any(map(enough, outcomes.values())):
                # Slice by slice: a signal that another thread has caught wakes nobody here.
                with contextlib.suppress(queue.Empty):
                    rank, outcome = answers.get(timeout=min(_left(deadline), SLICE))
                    outcomes[rank] = outcome
                if time.monotonic() >= deadline and answers.empty():
                    break
        finally:
            for rank in outcomes:
                threads[rank].join()
            self._stuck += [thread for thread in threads.values() if thread.is_alive()]
        return outcomes

    def _settle(self, what: str, asked: Iterable[int], answers: Mapping[int, Outcome]) -> tuple[Outcome, ...]:
        silent = tuple(rank for rank in asked if rank not in answers)
        # A method may have sent something before it raised; gloo has not.
        refused = self.backend.posts_at_once
        at_post = [refused and outcome.error is not None and not outcome.posted for outcome in answers.values()]
        self._busy = bool(silent)
        in_step = self.size == 1 or all(at_post) or all(outcome.error is None for outcome in answers.values())
        if silent or not in_step:
            self.close()
        if silent:
            raise WorldTimeout(what, silent, self.timeout, dict(answers))
        return tuple(answers.get(rank, Outcome()) for rank in range(self.size))


def _end(box: list[dist.ProcessGroup]) -> None:
    """Shut a group down, and let go of it; nobody is left to be told what goes wrong."""
    with contextlib.suppress(Exception):
        box[0].shutdown()
    box.clear()


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


_COUNTER = itertools.count()
_WORLDS: dict[tuple[int, int, float, str | Factory], World] = {}


def world(size: int, timeout: float = 10.0, *, backend: str | Factory = "gloo") -> World:
    """Return the world of `size` ranks of `backend` in this process: made on first use (some milliseconds), then kept.

    A world that was closed, by hand or after a timeout, is made anew.

    >>> world(3) is world(3), world(3) is world(3, backend="fake")
    (True, False)
    """
    key = (os.getpid(), size, timeout, backend)  # a forked child has no part in its parent's worlds
    if key not in _WORLDS:
        _WORLDS[key] = World(size, timeout, backend=backend)
    return _WORLDS[key]


@atexit.register
def close_worlds() -> None:
    """Close all worlds that `world` has made in this process."""
    for (pid, *_), each in list(_WORLDS.items()):
        if pid == os.getpid():
            each.close()
