"""How one rank's call is put to torch: its arguments, the op or the method, and the wait for what comes of it.

It knows how torch is handed a group and a reduce op, what a call may leave out, and which ops block. It knows one rank
and no other: who is called in which thread, and for how long, is `World`'s.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import attrs
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch._C import _distributed_c10d as _c10d
from torch.utils._python_dispatch import TorchDispatchMode

from collective_rules.errors import CallError
from collective_rules.ops import Argument, Row, lookup
from collective_rules.testing.methods import METHODS, call_method, left_out, reduce_op_of

__all__ = [
    "SLICE",
    "Outcome",
    "Posted",
    "Seat",
    "blocks",
    "boxed_reduce_op",
    "has_cpu_kernel",
    "post",
    "prepared",
    "seated",
    "wait",
    "wait_until",
]

_BLOCKING = frozenset({"c10d::monitored_barrier_", "_dtensor::shard_dim_alltoall"})
"""Ops that return only when the other ranks have come too; so do those of point-to-point rules: send waits for recv."""

_CPU_KEYS = ("CPU", "CompositeExplicitAutograd", "CompositeImplicitAutograd")

SLICE = 0.1
"""How many seconds Ctrl-C may wait for the end of a wait in C++."""


@attrs.frozen(eq=False)
class Outcome:
    """What one rank's call came to.

    - `returned`: what the op returned, in order, without its Work, which has been waited for.
    - `error`: what was raised instead, without its traceback (whose frames would keep the group alive).
    - `posted`: whether the op had been posted before the error: it was raised by the wait.
    """

    returned: tuple[Any, ...] = ()
    error: BaseException | None = None
    posted: bool = True


@attrs.frozen(eq=False)
class Seat:
    """One rank's place in a world: its group of `size` ranks, and the name by which functional ops find it.

    `methods`: the group is written in Python, and `c10d::*` ops are put to it as calls of its methods.
    """

    group: dist.ProcessGroup
    name: c10d.GroupName
    size: int

    @property
    def methods(self) -> bool:
        """Whether the group is anything but torch's own class, whose methods are the dispatcher's ops."""
        return type(self.group) is not dist.ProcessGroup

    def announce(self) -> None:
        """Make the group known to functional ops, which find it by its name, and to legacy ones, by its tag."""
        _c10d._register_process_group(self.name, self.group)
        c10d._world.pg_group_ranks[self.group] = {each: each for each in range(self.size)}
        c10d._world.tags_to_pg[f"user:{self.name}"] = [self.group]

    def forget(self) -> None:
        """Undo `announce`."""
        _c10d._unregister_process_group(self.name)
        c10d._world.pg_group_ranks.pop(self.group, None)
        c10d._world.tags_to_pg.pop(f"user:{self.name}", None)


def seated(name: c10d.GroupName, store: Any, rank: int, size: int, backend: Any) -> Seat:
    """Return the seat of a rank whose factory made `backend`, and announce it; a C++ Backend is wrapped in a group."""
    group = backend
    if not isinstance(backend, dist.ProcessGroup):
        gloo = isinstance(backend, dist.ProcessGroupGloo)
        kind = dist.ProcessGroup.BackendType.GLOO if gloo else dist.ProcessGroup.BackendType.CUSTOM
        group = dist.ProcessGroup(store, rank, size)
        group._set_default_backend(kind)
        group._register_backend(torch.device("cpu"), kind, backend)
    group._set_group_name(name)
    seat = Seat(group, name, size)
    seat.announce()
    return seat


def has_cpu_kernel(row: Row) -> bool:
    """Return whether torch can run the op of `row` on CPU tensors, that is on gloo.

    >>> has_cpu_kernel(lookup("c10d::allreduce_")), has_cpu_kernel(lookup("symm_mem::tile_reduce"))
    (True, False)
    """
    # symm_mem::_barrier is registered for every device, and works on a SymmetricMemory alone.
    return row.available and row.namespace != "symm_mem" and _registered(row.op)


def _registered(op: str) -> bool:
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(op, key) for key in _CPU_KEYS)


def blocks(row: Row, call: Mapping[str, Any]) -> bool:
    """Return whether posting the call on gloo may wait for another rank."""
    return row.op in _BLOCKING or row.rule.point_to_point or not call.get("async_op", True)


# -- arguments


def prepared(seat: Seat, row: Row, call: Mapping[str, Any]) -> Callable[[], Any]:
    """Return what `post` takes: a function that makes the call, with all of its arguments.

    Raises `CallError` for a call that could not be made on any backend.
    """
    if not row.available:
        raise CallError(f"{row.op} is not in torch {torch.__version__}")
    if not has_cpu_kernel(row):
        raise CallError(f"{row.op} has no CPU kernel")
    own = {argument.name: argument for argument in row.arguments if not argument.is_group}
    if not set(call) <= set(own):
        raise CallError(f"{row.op} takes {sorted(own)}, not {sorted(set(call) - set(own))}")
    known = {row.group_size: seat.size, **call}
    given = {name: known[name] if name in known else left_out(row, argument) for name, argument in own.items()}
    if seat.methods and row.op in METHODS:
        return functools.partial(_by_method, seat.group, row, given)
    boxed = {name: _boxed(argument, given[name]) for name, argument in own.items()}
    groups = {argument.name: _group(seat, argument) for argument in row.arguments if argument.is_group}
    return functools.partial(_packet(row), **boxed, **groups)


def _boxed(argument: Argument, value: Any) -> Any:
    if argument.kind.endswith(".ReduceOp"):
        return boxed_reduce_op(value) if isinstance(value, str) else value
    return list(value) if isinstance(value, tuple) else value


def _group(seat: Seat, argument: Argument) -> Any:
    if argument.kind.endswith(".ProcessGroup"):
        return seat.group.boxed()
    # A legacy op finds its group by (tag, ranks, group_size).
    return list(range(seat.size)) if argument.name == "ranks" else seat.name


def _packet(row: Row) -> Any:
    namespace, _, name = row.op.partition("::")
    return getattr(getattr(torch.ops, namespace), name)


def _by_method(group: dist.ProcessGroup, row: Row, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """Call the method; return what the op would."""
    work = call_method(group, METHODS[row.op], arguments)
    return tuple(work if output.kind == "work" else arguments[output.name] for output in row.returns)


class _Seen(Exception):  # noqa: N818 - control flow
    """The dispatcher has shown its arguments."""


class _Witness(TorchDispatchMode):
    """Keeps the arguments of the first op, which is not carried out."""

    arguments: tuple[Any, ...] = ()

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is untyped

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing all of torch._dynamo, which takes a second, to wrap a mode that it never sees."""
        return False

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
    options = dist.AllreduceOptions()
    options.reduceOp = reduce_op_of(name)
    group, tensor = dist.ProcessGroup(_c10d.HashStore(), 0, 1), torch.empty(0)
    with _Witness() as witness, contextlib.suppress(_Seen):
        group.allreduce([tensor], options)
    place = next(i for i, arg in enumerate(lookup("c10d::allreduce_").arguments) if arg.kind.endswith(".ReduceOp"))
    return witness.arguments[place]


# -- posting and waiting


@attrs.frozen(eq=False)
class Posted:
    """An op that has been posted: its outcome so far, its Works, and the tensors that came back."""

    outcome: Outcome
    works: tuple[Any, ...] = ()
    tensors: tuple[torch.Tensor, ...] = ()


def post(call: Callable[[], Any]) -> Posted:
    """Make a call that was `prepared`; what it raises is its outcome."""
    try:
        result = call()
    except Exception as error:
        return Posted(Outcome(error=error.with_traceback(None), posted=False))
    several = result if isinstance(result, tuple) else (result,)
    works = tuple(_work(item) for item in several if _is_work(item))
    returned = tuple(item for item in several if item is not None and not _is_work(item))
    return Posted(Outcome(returned), works, tuple(_tensors(returned)))


def _is_work(item: Any) -> bool:
    return isinstance(item, (torch.ScriptObject, _c10d.Work))


def _work(item: Any) -> Any:
    return _c10d.Work.unbox(item) if isinstance(item, torch.ScriptObject) else item


def wait(posted: Posted, timeout: timedelta | None) -> Outcome:
    """Wait for an op's Works, or else for the tensors that a functional op returned.

    Without a timeout, a Work is waited for as torch.distributed waits: a Work written in Python or made from a future
    may know no timeout. torch keeps a functional send's Work under the tensor that is sent, too. It cannot be waited
    for twice (gloo's send would block), so torch's warning of unwaited calls at the end of the process is not to be
    had rid of.
    """
    try:
        for work in posted.works:
            work.wait(*([] if timeout is None else [timeout]))
        for tensor in () if posted.works else posted.tensors:
            torch.ops._c10d_functional.wait_tensor(tensor)
    except Exception as error:
        return Outcome(error=error.with_traceback(None))
    return posted.outcome


def wait_until(deadline: float, posted: Posted) -> Outcome | None:
    """Wait for an op's Works; None where they do not answer until `deadline`, a time of `time.monotonic`.

    Slice by slice: a signal is handled only between two. gloo's works take no harm from a wait that is over too soon.
    """
    while True:
        start, left = time.monotonic(), min(max(deadline - time.monotonic(), 0.001), SLICE)
        outcome = wait(posted, timedelta(seconds=left))
        if outcome.error is None or _completed(posted) or time.monotonic() - start < 0.9 * left:
            return outcome
        if time.monotonic() >= deadline:
            return None


def _completed(posted: Posted) -> bool:
    """Return whether all Works of the op say that they are completed; some never say so."""
    return all(work.is_completed() for work in posted.works)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in _tensors(item)] if isinstance(value, (list, tuple)) else []
