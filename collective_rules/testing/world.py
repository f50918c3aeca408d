"""W real ranks in one process, called at the dispatcher by rows of the op table.

It knows which thread calls which rank, for how long, and how ranks end. It does not know what an op should do, and
judges nothing: each rank's `Returned` holds what came back.

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
    PostedOp,
    RankGroup,
    Returned,
    announced,
    blocks,
    boxed_reduce_op,
    has_cpu_kernel,
    post,
    prepared,
    wait,
    wait_until,
)
from collective_rules.testing.process_groups import Factory, Provider, resolve

__all__ = ["Returned", "World", "WorldTimeout", "boxed_reduce_op", "close_worlds", "has_cpu_kernel", "world"]


@attrs.frozen(str=False, eq=False)
class WorldTimeout(CollectiveRulesError, TimeoutError):  # noqa: N818 - Timeout says it
    """Some ranks did not answer in time; the world has been closed.

    `ranks` did not answer `what` within `timeout` seconds; `returned` is what the other ranks returned.
    """

    what: str
    ranks: tuple[int, ...]
    timeout: float
    returned: Mapping[int, Returned] = attrs.field(factory=dict)

    def __str__(self) -> str:
        errors = [f"\n  rank {rank}: {each.error}" for rank, each in self.returned.items() if each.error]
        return f"{self.what}: no answer within {self.timeout:g} s from {ranks_text(self.ranks)}{''.join(errors)}"


_LONGEST = 86_400.0


class World(contextlib.AbstractContextManager["World"]):
    """`size` ranks of a backend in this process. `groups` are their process groups, by rank.

    `backend` is what `resolve` takes: "gloo", "fake", "threaded", a registered name, the place of a factory, or a
    factory. A group written in Python has its methods called for `c10d::*`, in a thread for each rank.

    Everything has a deadline of `timeout` seconds. A world closes where a rank does not answer, where only some ranks
    succeed, and where Ctrl-C interrupts it: its ranks are out of step then.

    >>> import torch
    >>> with World(2) as ranks:
    ...     calls = [{"input": torch.tensor([float(rank)])} for rank in range(2)]
    ...     returned = ranks.run("_c10d_functional::all_gather_into_tensor", calls)
    >>> returned[1].values
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
        self._ranked: list[RankGroup] = []
        self._stuck: list[threading.Thread] = []
        self._busy = False  # whether ops may have been posted that have not been waited for
        # What gloo's threads may still refer to. A thread that lets go of a tensor last needs the interpreter lock,
        # which is held while a group's destructor joins those threads.
        self._kept: list[object] = []
        # The backend's own timeout ends the ops that are still blocked when ours is over.
        self._own_timeout = timedelta(seconds=timeout * 1.25 + 0.2)
        self._store = _c10d.HashStore()
        self._store.set_timeout(self._own_timeout)
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        """Make the backends, each in a thread: every rank waits for all others, until one fails."""
        make = functools.partial(self.backend.make, self.backend.start(), self._store)
        functions = {r: functools.partial(make, r, self.size, self._own_timeout) for r in range(self.size)}
        made = self._threads(functions, self.timeout, enough=lambda returned: returned.error is not None)
        failed = next((each.error for each in made.values() if each.error is not None), None)
        if failed is not None:
            made.clear()  # the error's traceback would keep the groups
            raise failed
        silent = tuple(rank for rank in range(self.size) if rank not in made)
        if silent:
            made.clear()
            raise WorldTimeout("connecting", silent, self.timeout)
        name = f"collective_rules.{os.getpid()}.{next(_COUNTER)}"
        for rank in range(self.size):
            backend = made[rank].values[0]
            self._ranked.append(announced(c10d.GroupName(f"{name}.{rank}"), self._store, rank, self.size, backend))
            self.groups.append(self._ranked[rank].group)

    def run(self, op: Any, calls: Sequence[Mapping[str, Any] | None]) -> tuple[Returned, ...]:
        """Make one call on each rank, wait for all, and return what each returned or raised.

        `op` is anything that `lookup` takes, or a list with one for each rank (a send meets a recv). `calls` holds
        each rank's arguments by schema name, with real tensors, without the group's; None for a rank that takes no
        part. A reduce op is a lower-case name; what may be left out has torch.distributed's default.

        The calling thread posts gloo's ops, rank by rank, so that its dispatch modes see them. An op that blocks runs
        in a thread for each rank, and so does every op of a backend whose ops may block.

        Raises `CallError` for a call that no backend could be given (a missing or unknown argument, an op that this
        torch lacks), `WorldTimeout` where a rank did not answer.

        >>> import torch
        >>> both = world(2).run("c10d::allreduce_", [{"tensors": [torch.ones(2)]}, {"tensors": [torch.ones(2)]}])
        >>> both[0].values
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

    def each(self, function: Callable[[int], Any]) -> tuple[Returned, ...]:
        """Run `function(rank)` in a thread for each rank, and return what each returned, as the only value, or raised.

        For more than a single op: a backward pass, several calls in a row.

        >>> import torch
        >>> def mean(rank):
        ...     total = torch.ops._c10d_functional.all_reduce(torch.tensor(float(rank)), "avg", world(2).groups[rank])
        ...     return torch.ops._c10d_functional.wait_tensor(total).item()
        >>> [returned.values for returned in world(2).each(mean)]
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
        for key in [key for key, each in _WORLDS.items() if each is self]:
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
        """Let go of all groups at once, each in a thread, and return the threads.

        The end of a gloo group waits for its own ops, and breaks the connections for which the others' ops wait. The
        end of another backend's group may do anything. Where no gloo op waits, this thread does it: that is faster.
        """
        while self._ranked:  # no variable may keep a group
            self._ranked.pop().forget()
        boxes = [[group] for group in self.groups]
        self.groups.clear()
        threads = [threading.Thread(target=_end, args=(box,), daemon=True) for box in boxes]
        here = self.backend.posts_at_once and not self._busy
        for thread in threads:
            thread.run() if here else thread.start()
        return [] if here else threads

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<World of {self.size} {self.backend.name} ranks{', closed' if self.closed else ''}>"

    def _require_open(self) -> None:
        if self.closed:
            other = "" if self.backend.name == "gloo" else f", backend={self.backend.name!r}"
            raise CollectiveRulesError(f"{self!r} cannot be used; world({self.size}{other}) makes another")
        if self.groups[0] not in c10d._world.pg_group_ranks:  # destroy_process_group() forgets all groups, not its own
            for ranked in self._ranked:
                ranked.announce()

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

    def _carry_out(self, rows: Sequence[Row], calls: Sequence[Mapping[str, Any] | None]) -> dict[int, Returned]:
        """Return what the ranks that answer returned. Nothing that refers to a group outlives this frame."""
        posts: dict[int, Callable[[], Any]] = {}
        for rank, (row, call) in enumerate(zip(rows, calls, strict=True)):
            if call is not None:
                posts[rank] = prepared(self._ranked[rank], row, call)
        self._kept = [calls]
        deadline = time.monotonic() + self.timeout
        if self.backend.posts_at_once and not any(blocks(rows[rank], calls[rank] or {}) for rank in posts):
            return self._post_then_wait(posts, deadline)
        return self._both(posts)

    def _both(self, posts: Mapping[int, Callable[[], Any]]) -> dict[int, Returned]:
        """Post and wait in a thread for each rank."""

        def both(call: Callable[[], Any], timeout: timedelta | None) -> Returned:
            posted = post(call)
            self._kept.append(posted)
            return wait(posted, timeout)

        timeouts = [None if ranked.methods else self._own_timeout for ranked in self._ranked]
        functions = {rank: functools.partial(both, call, timeouts[rank]) for rank, call in posts.items()}
        return self._inner(functions, self.timeout)

    def _post_then_wait(self, posts: Mapping[int, Callable[[], Any]], deadline: float) -> dict[int, Returned]:
        """Post rank by rank in this thread; wait for the Works here, and for functional results in threads."""
        posted: dict[int, PostedOp] = {}
        self._kept.append(posted)
        for rank, call in posts.items():
            posted[rank] = post(call)
        answers: dict[int, Returned] = {}
        waits: dict[int, Callable[[], Returned]] = {}
        for rank, each in posted.items():
            if each.works:
                returned = wait_until(deadline, each)
                if returned is not None:
                    answers[rank] = returned
            elif each.returned.error is None and each.tensors:
                waits[rank] = functools.partial(wait, each, None)
            else:
                answers[rank] = each.returned
        return answers | self._inner(waits, _left(deadline))

    def _inner(self, functions: Mapping[int, Callable[[], Returned]], timeout: float) -> dict[int, Returned]:
        """Do as `_threads`, for functions that return a `Returned`."""
        returned = self._threads(functions, timeout)
        return {rank: each if each.error else each.values[0] for rank, each in returned.items()}

    def _threads(
        self,
        functions: Mapping[int, Callable[[], Any]],
        timeout: float,
        enough: Callable[[Returned], bool] = lambda _: False,
    ) -> dict[int, Returned]:
        """Run each function in a thread, and return what those returned or raised that ended in time.

        The first that is `enough` ends the wait. Every exception counts: pytest's failures and SystemExit are no
        `Exception`.
        """
        answers: queue.SimpleQueue[tuple[int, Returned]] = queue.SimpleQueue()
        grad = torch.is_grad_enabled()

        def run(rank: int) -> None:
            with torch.set_grad_enabled(grad):
                try:
                    returned = Returned((functions[rank](),))
                except BaseException as error:
                    returned = Returned(error=error.with_traceback(None))
            answers.put((rank, returned))

        threads = {rank: threading.Thread(target=run, args=(rank,), daemon=True) for rank in functions}
        ended: dict[int, Returned] = {}
        deadline = time.monotonic() + timeout
        try:
            for thread in threads.values():
                thread.start()
            while len(ended) < len(threads) and not any(map(enough, ended.values())):
                # In slices: a signal that another thread has caught wakes nobody here.
                with contextlib.suppress(queue.Empty):
                    rank, returned = answers.get(timeout=min(_left(deadline), SLICE))
                    ended[rank] = returned
                if time.monotonic() >= deadline and answers.empty():
                    break
        finally:
            for rank in ended:
                threads[rank].join()
            self._stuck += [thread for thread in threads.values() if thread.is_alive()]
        return ended

    def _settle(self, what: str, asked: Iterable[int], answers: Mapping[int, Returned]) -> tuple[Returned, ...]:
        silent = tuple(rank for rank in asked if rank not in answers)
        # A method may have sent something before it raised; gloo has not.
        refused = self.backend.posts_at_once
        at_post = [refused and each.error is not None and not each.posted for each in answers.values()]
        self._busy = bool(silent)
        in_step = self.size == 1 or all(at_post) or all(each.error is None for each in answers.values())
        if silent or not in_step:
            self.close()
        if silent:
            raise WorldTimeout(what, silent, self.timeout, dict(answers))
        return tuple(answers.get(rank, Returned()) for rank in range(self.size))


def _end(box: list[dist.ProcessGroup]) -> None:
    """Shut a group down, and let go of it; an error has nobody left to go to."""
    with contextlib.suppress(Exception):
        box[0].shutdown()
    box.clear()


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


_COUNTER = itertools.count()
_WORLDS: dict[tuple[int, int, float, str | Factory], World] = {}


def world(size: int, timeout: float = 10.0, *, backend: str | Factory = "gloo") -> World:
    """Return the world of `size` ranks of `backend` in this process, which is made on first use and then kept.

    A world that was closed, by hand or after a timeout, is replaced.

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
