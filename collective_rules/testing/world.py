"""W real gloo ranks in one process, called at the dispatcher by rows of the op table.

It knows how torch is handed a group, a reduce op and the arguments that a call leaves out, and which ops block. It does
not know what an op should do, and judges nothing: each rank's `Outcome` says what came back.

All ranks share one gloo device: with one device each, their I/O threads starve each other (4 to 8 times slower).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import attrs
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch._C import _distributed_c10d as _c10d
from torch.utils._python_dispatch import TorchDispatchMode

from collective_rules.attributes import REDUCE_OPS
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.messages import ranks_text
from collective_rules.ops import Argument, Row, lookup

__all__ = ["Outcome", "World", "WorldTimeout", "close_worlds", "world"]

_BLOCKING = frozenset({"c10d::monitored_barrier_", "_dtensor::shard_dim_alltoall"})
"""Ops that return only when the other ranks have come too; so do those of point-to-point rules: send waits for recv."""

_CPU_KEYS = ("CPU", "CompositeExplicitAutograd", "CompositeImplicitAutograd")


@attrs.frozen(eq=False)
class Outcome:
    """What one rank's call came to.

    - `returned`: what the op returned, in order, without its Work, which has been waited for.
    - `error`: what was raised instead, without its traceback (whose frames would keep the group alive).
    - `posted`: whether the op had been posted before the error: it was raised by the wait.
    """

    returned: tuple[Any, ...] = ()
    error: Exception | None = None
    posted: bool = True


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


class World:
    """`size` gloo ranks in this process. `groups` are their process groups, by rank.

    Everything has a deadline of `timeout` seconds. A world in which a rank did not answer, or only some succeeded, is
    closed: gloo's ranks have lost step with each other then.

    >>> import torch
    >>> with World(2) as ranks:
    ...     calls = [{"input": torch.tensor([float(rank)])} for rank in range(2)]
    ...     outcomes = ranks.run("_c10d_functional::all_gather_into_tensor", calls)
    >>> outcomes[1].returned
    (tensor([0., 1.]),)
    """

    def __init__(self, size: int, timeout: float = 10.0) -> None:
        if not dist.is_available() or not dist.is_gloo_available():
            raise CollectiveRulesError(f"torch {torch.__version__} was built without gloo")
        if size < 1:
            raise CallError(f"size={size}, but a world has at least one rank")
        self.size, self.timeout, self.closed = size, timeout, False
        self.groups: list[dist.ProcessGroup] = []
        self._stuck: list[threading.Thread] = []
        # What gloo's threads may still refer to. One that lets go of a tensor last needs the interpreter lock, which
        # is held while a group's destructor joins those threads.
        self._kept: list[object] = []
        # gloo's own timeout ends what is still blocked when ours is over.
        self._gloo_timeout = timedelta(seconds=timeout * 1.25 + 0.2)
        backends = self._connect()
        name = f"collective_rules.{os.getpid()}.{next(_COUNTER)}"
        for rank, backend in enumerate(backends):
            self.groups.append(_register(c10d.GroupName(f"{name}.{rank}"), self._store, rank, size, backend))

    def _connect(self) -> list[Any]:
        """Make the backends, each in a thread: every rank waits for all others."""
        device = dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")
        self._store = _c10d.HashStore()
        self._store.set_timeout(self._gloo_timeout)

        def make(rank: int) -> Any:
            options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # absent from torch's stubs
            options._devices = [device]
            options._threads = 2
            options._timeout = self._gloo_timeout
            return dist.ProcessGroupGloo(self._store, rank, self.size, options)

        made = self._threads({rank: functools.partial(make, rank) for rank in range(self.size)}, self.timeout)
        if len(made) < self.size:
            raise WorldTimeout("connecting", tuple(r for r in range(self.size) if r not in made), self.timeout)
        for outcome in made.values():
            if outcome.error is not None:
                raise outcome.error
        return [made[rank].returned[0] for rank in range(self.size)]

    def run(self, op: Any, calls: Sequence[Mapping[str, Any] | None]) -> tuple[Outcome, ...]:
        """Make one call on each rank, wait for all, and return what each came to.

        `op` is anything that `lookup` takes, or a list with one for each rank (a send meets a recv). `calls` holds
        each rank's arguments by schema name, with real tensors, without the group's; None for a rank that takes no
        part. A reduce op is a lower-case name; what may be left out has torch.distributed's default.

        Ops that block run in a thread for each rank; the others are posted by the calling thread, rank by rank, so
        that its dispatch modes see them.

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
        answers = self._threads({r: functools.partial(function, r) for r in range(self.size)}, self.timeout)
        return self._settle(getattr(function, "__name__", "each"), range(self.size), answers)

    def close(self) -> None:
        """Unregister the groups, and end their threads and connections. A closed world cannot be used again."""
        if self.closed:
            return
        self.closed = True
        for key in [key for key, known in _WORLDS.items() if known is self]:
            del _WORLDS[key]
        for group in self.groups:
            _c10d._unregister_process_group(group.group_name)
            c10d._world.pg_group_ranks.pop(group, None)
            c10d._world.tags_to_pg.pop(f"user:{group.group_name}", None)
        for thread in self._stuck:
            thread.join(2 * self._gloo_timeout.total_seconds())
        if self._stuck:
            time.sleep(0.05)  # gloo's threads let go of what the stuck threads waited for
        self._stuck = []
        self.groups.clear()
        self._kept.clear()
        del self._store

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<World of {self.size} gloo ranks{', closed' if self.closed else ''}>"

    def _require_open(self) -> None:
        if self.closed:
            raise CollectiveRulesError(f"{self!r} cannot be used; world({self.size}) makes another")
        if self.groups[0] not in c10d._world.pg_group_ranks:  # destroy_process_group() forgets all groups, not its own
            for group in self.groups:
                _announce(group, self.size)

    # -- arguments

    def _arguments(self, rank: int, row: Row, call: Mapping[str, Any]) -> dict[str, Any]:
        if not row.available:
            raise CallError(f"{row.op} is not in torch {torch.__version__}")
        if not has_cpu_kernel(row):
            raise CallError(f"{row.op} has no CPU kernel")
        own = {argument.name for argument in row.arguments if not argument.is_group}
        if not set(call) <= own:
            raise CallError(f"{row.op} takes {sorted(own)}, not {sorted(set(call) - own)}")
        return {argument.name: self._argument(rank, row, argument, call) for argument in row.arguments}

    def _argument(self, rank: int, row: Row, argument: Argument, call: Mapping[str, Any]) -> Any:
        name = argument.name
        if argument.is_group:
            return self._group(rank, argument)
        if name in call or name == row.group_size or argument.has_default:
            default = self.size if name == row.group_size else argument.default
            value = call.get(name, default)
            if argument.kind.endswith(".ReduceOp"):
                return boxed_reduce_op(value) if isinstance(value, str) else value
            return list(value) if isinstance(value, tuple) else value
        if argument.kind == "Tensor" and argument.depth and any(p.root_only for p in row.spellings[0].statement.parts):
            return []
        if argument.kind == "Tensor" and not row.spellings[0].statement.parts:
            return torch.empty(0)
        raise CallError(f"{row.op}: {name} is missing")

    def _group(self, rank: int, argument: Argument) -> Any:
        group = self.groups[rank]
        if argument.kind.endswith(".ProcessGroup"):
            return group.boxed()
        # A legacy op finds its group by (tag, ranks, group_size).
        return list(range(self.size)) if argument.name == "ranks" else group.group_name

    # -- posting and waiting

    def _carry_out(self, rows: Sequence[Row], calls: Sequence[Mapping[str, Any] | None]) -> dict[int, Outcome]:
        """Return the outcomes of the ranks that answer. Nothing that refers to a group outlives this frame."""
        posts: dict[int, Callable[[], Any]] = {}
        for rank, (row, call) in enumerate(zip(rows, calls, strict=True)):
            if call is not None:
                arguments = self._arguments(rank, row, call)
                posts[rank] = functools.partial(_packet(row), **arguments)
        self._kept = [calls]
        deadline = time.monotonic() + self.timeout
        blocking = any(_blocks(rows[rank], calls[rank] or {}) for rank in posts)
        return self._both(posts) if blocking else self._post_then_wait(posts, deadline)

    def _both(self, posts: Mapping[int, Callable[[], Any]]) -> dict[int, Outcome]:
        """Post and wait in a thread for each rank."""

        def both(post: Callable[[], Any]) -> Outcome:
            posted = _post(post)
            self._kept.append(posted)
            return _wait(posted, self._gloo_timeout)

        return self._inner({rank: functools.partial(both, post) for rank, post in posts.items()}, self.timeout)

    def _post_then_wait(self, posts: Mapping[int, Callable[[], Any]], deadline: float) -> dict[int, Outcome]:
        """Post rank by rank in this thread; wait for the Works here, and for functional results in threads."""
        posted = {rank: _post(post) for rank, post in posts.items()}
        self._kept.append(posted)
        answers: dict[int, Outcome] = {}
        waits: dict[int, Callable[[], Outcome]] = {}
        for rank, each in posted.items():
            if each.works:
                start, left = time.monotonic(), _left(deadline)
                outcome = _wait(each, timedelta(seconds=left))
                done = all(work.is_completed() for work in each.works)  # some works never say so
                if outcome.error is None or done or time.monotonic() - start < 0.9 * left:
                    answers[rank] = outcome
            elif each.outcome.error is None and each.tensors:
                waits[rank] = functools.partial(_wait, each, None)
            else:
                answers[rank] = each.outcome
        return answers | self._inner(waits, _left(deadline))

    def _inner(self, functions: Mapping[int, Callable[[], Outcome]], timeout: float) -> dict[int, Outcome]:
        """`_threads`, for functions that return their outcome and never raise."""
        return {rank: outcome.returned[0] for rank, outcome in self._threads(functions, timeout).items()}

    def _threads(self, functions: Mapping[int, Callable[[], Any]], timeout: float) -> dict[int, Outcome]:
        """Run each in a thread; return what those came to that ended in time."""
        outcomes: dict[int, Outcome] = {}
        grad = torch.is_grad_enabled()

        def run(rank: int) -> None:
            with torch.set_grad_enabled(grad):
                try:
                    outcomes[rank] = Outcome((functions[rank](),))
                except Exception as error:
                    outcomes[rank] = Outcome(error=error.with_traceback(None))

        threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in functions]
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_left(deadline))
        self._stuck += [thread for thread in threads if thread.is_alive()]
        return dict(outcomes)

    def _settle(self, what: str, asked: Iterable[int], answers: Mapping[int, Outcome]) -> tuple[Outcome, ...]:
        silent = tuple(rank for rank in asked if rank not in answers)
        at_post = [outcome.error is not None and not outcome.posted for outcome in answers.values()]
        if silent or not (all(at_post) or all(outcome.error is None for outcome in answers.values())):
            self.close()
        if silent:
            raise WorldTimeout(what, silent, self.timeout, dict(answers))
        return tuple(answers.get(rank, Outcome()) for rank in range(self.size))


def has_cpu_kernel(row: Row) -> bool:
    """Return whether torch can run the op of `row` on CPU tensors, that is on gloo.

    >>> has_cpu_kernel(lookup("c10d::allreduce_")), has_cpu_kernel(lookup("symm_mem::tile_reduce"))
    (True, False)
    """
    # symm_mem::_barrier is registered for every device, and works on a SymmetricMemory alone.
    return row.available and row.namespace != "symm_mem" and _registered(row.op)


def _registered(op: str) -> bool:
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(op, key) for key in _CPU_KEYS)


def _packet(row: Row) -> Any:
    namespace, _, name = row.op.partition("::")
    return getattr(getattr(torch.ops, namespace), name)


def _blocks(row: Row, call: Mapping[str, Any]) -> bool:
    return row.op in _BLOCKING or row.rule.point_to_point or not call.get("async_op", True)


@attrs.frozen(eq=False)
class _Posted:
    """An op that has been posted: its outcome so far, its Works, and the tensors that came back."""

    outcome: Outcome
    works: tuple[Any, ...] = ()
    tensors: tuple[torch.Tensor, ...] = ()


def _post(post: Callable[[], Any]) -> _Posted:
    try:
        result = post()
    except Exception as error:
        return _Posted(Outcome(error=error.with_traceback(None), posted=False))
    several = result if isinstance(result, tuple) else () if result is None else (result,)
    works = tuple(_c10d.Work.unbox(item) for item in several if isinstance(item, torch.ScriptObject))
    returned = tuple(item for item in several if not isinstance(item, torch.ScriptObject))
    return _Posted(Outcome(returned), works, tuple(_tensors(returned)))


def _wait(posted: _Posted, timeout: timedelta | None) -> Outcome:
    """Wait for an op's Works, or else for the tensors that a functional op returned.

    torch keeps a functional send's Work under the tensor that is sent, too. It cannot be waited for twice (gloo's send
    would block), so torch's warning of unwaited calls at the end of the process is not to be had rid of.
    """
    try:
        for work in posted.works:
            work.wait(timeout)
        for tensor in () if posted.works else posted.tensors:
            torch.ops._c10d_functional.wait_tensor(tensor)
    except Exception as error:
        return Outcome(error=error.with_traceback(None))
    return posted.outcome


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (list, tuple)) else []


class _Seen(Exception):  # noqa: N818 - control flow
    """The dispatcher has shown its arguments."""


class _Witness(TorchDispatchMode):
    """Keeps the arguments of the first op, which is not carried out."""

    arguments: tuple[Any, ...] = ()

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is untyped

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.arguments = args
        raise _Seen


@functools.cache
def boxed_reduce_op(name: str) -> Any:
    """Return the reduce op called `name` as the dispatcher takes it.

    Python can make no boxed ReduceOp but SUM, so this looks on while torch boxes one: nothing is posted.

    >>> boxed_reduce_op("max").op() == int(torch.distributed.ReduceOp.MAX)
    True
    """
    if name not in REDUCE_OPS:
        raise CallError(f"reduce_op={name!r}, but should be one of {', '.join(REDUCE_OPS)}")
    options = dist.AllreduceOptions()
    premultiplied = name == "premul_sum"
    options.reduceOp = _c10d._make_nccl_premul_sum(2.0) if premultiplied else getattr(dist.ReduceOp, name.upper())
    group, tensor = dist.ProcessGroup(_c10d.HashStore(), 0, 1), torch.empty(0)
    with _Witness() as witness, contextlib.suppress(_Seen):
        group.allreduce([tensor], options)
    place = next(i for i, arg in enumerate(lookup("c10d::allreduce_").arguments) if arg.kind.endswith(".ReduceOp"))
    return witness.arguments[place]


def _register(name: c10d.GroupName, store: Any, rank: int, size: int, backend: Any) -> dist.ProcessGroup:
    """Wrap a backend in a ProcessGroup."""
    group = dist.ProcessGroup(store, rank, size)
    gloo = dist.ProcessGroup.BackendType.GLOO
    group._set_default_backend(gloo)
    group._register_backend(torch.device("cpu"), gloo, backend)
    group._set_group_name(name)
    _announce(group, size)
    return group


def _announce(group: dist.ProcessGroup, size: int) -> None:
    """Make a group known to functional ops, which find it by its name, and to legacy ones, by its tag."""
    name = group.group_name
    _c10d._register_process_group(name, group)
    c10d._world.pg_group_ranks[group] = {each: each for each in range(size)}
    c10d._world.tags_to_pg[f"user:{name}"] = [group]


_COUNTER = itertools.count()
_WORLDS: dict[tuple[int, int, float], World] = {}


def world(size: int, timeout: float = 10.0) -> World:
    """Return the world of `size` ranks of this process: made on first use (some milliseconds), then used again.

    A world that was closed, by hand or after a timeout, is made anew.

    >>> world(3) is world(3)
    True
    """
    key = (os.getpid(), size, timeout)  # a forked child has no part in its parent's worlds
    if key not in _WORLDS:
        _WORLDS[key] = World(size, timeout)
    return _WORLDS[key]


@atexit.register
def close_worlds() -> None:
    """Close all worlds that `world` has made in this process."""
    for (pid, _, _), each in list(_WORLDS.items()):
        if pid == os.getpid():
            each.close()
