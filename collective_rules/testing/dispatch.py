"""Makes one rank's call: the arguments for torch, the op or the method, and the wait for its result.

It knows how torch takes a group and a reduce op, which arguments a call may leave out, and which ops block. It knows
one rank only; threads and deadlines are `World`'s.
"""

from __future__ import annotations

import contextlib
import functools
import operator
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
from collective_rules.nested import leaves
from collective_rules.ops import Argument, Row, lookup
from collective_rules.testing.methods import METHODS, call_method, left_out, reduce_op_of

_CPU_KEYS = ("CPU", "CompositeExplicitAutograd", "CompositeImplicitAutograd")

SLICE = 0.1
"""How many seconds one wait in C++ may take: it delays Ctrl-C by so long."""


@attrs.frozen(eq=False)
class Returned:
    """What one rank's call returned, or raised.

    - `values`: the op's returns, in order, without its Work, which has been waited for.
    - `error`: the exception that was raised instead, without its traceback, whose frames would keep the group alive.
    - `posted`: whether the op had been posted before the error, so that the wait raised it.
    """

    values: tuple[Any, ...] = ()
    error: BaseException | None = None
    posted: bool = True


@attrs.frozen(eq=False)
class RankGroup:
    """One rank's process group of `size` ranks, and the name by which functional ops find it.

    `methods`: the group is written in Python, and `c10d::*` ops are called as its methods.
    """

    group: dist.ProcessGroup
    name: c10d.GroupName
    size: int

    @property
    def methods(self) -> bool:
        """Whether the group is of another class than torch's own, whose methods are the dispatcher's ops."""
        return type(self.group) is not dist.ProcessGroup

    def announce(self) -> None:
        """Register the group for functional ops, which find it by its name, and for legacy ops, by its tag."""
        _c10d._register_process_group(self.name, self.group)
        c10d._world.pg_group_ranks[self.group] = {each: each for each in range(self.size)}
        c10d._world.tags_to_pg[f"user:{self.name}"] = [self.group]

    def forget(self) -> None:
        """Undo `announce`."""
        _c10d._unregister_process_group(self.name)
        c10d._world.pg_group_ranks.pop(self.group, None)
        c10d._world.tags_to_pg.pop(f"user:{self.name}", None)


def announced(name: c10d.GroupName, store: Any, rank: int, size: int, backend: Any) -> RankGroup:
    """Return the announced group of a rank whose factory made `backend`; a C++ Backend is wrapped in a group."""
    group = backend
    if not isinstance(backend, dist.ProcessGroup):
        gloo = isinstance(backend, dist.ProcessGroupGloo)
        kind = dist.ProcessGroup.BackendType.GLOO if gloo else dist.ProcessGroup.BackendType.CUSTOM
        group = dist.ProcessGroup(store, rank, size)
        group._set_default_backend(kind)
        group._register_backend(torch.device("cpu"), kind, backend)
    group._set_group_name(name)
    made = RankGroup(group, name, size)
    made.announce()
    return made


def has_cpu_kernel(row: Row) -> bool:
    """Return whether torch can run the op of `row` on CPU tensors, that is on gloo.

    >>> has_cpu_kernel(lookup("c10d::allreduce_")), has_cpu_kernel(lookup("symm_mem::tile_reduce"))
    (True, False)
    """
    # symm_mem::_barrier is registered for every device, and works on a SymmetricMemory alone.
    if not row.available or row.namespace == "symm_mem":
        return False
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(row.op, key) for key in _CPU_KEYS)


def blocks(row: Row, call: Mapping[str, Any]) -> bool:
    """Return whether posting the call on gloo may wait for another rank, as a send waits for its receive."""
    return row.entry.done or row.rule.point_to_point or not call.get("async_op", True)


# -- arguments


def prepared(ranked: RankGroup, row: Row, call: Mapping[str, Any]) -> Callable[[], Any]:
    """Return a function that makes the call with all of its arguments, for `post`.

    Raises `CallError` for a call that no backend could be given.
    """
    if not row.available:
        raise CallError(f"{row.op} is not in torch {torch.__version__}")
    if not has_cpu_kernel(row):
        raise CallError(f"{row.op} has no CPU kernel")
    own = {argument.name: argument for argument in row.arguments if not argument.is_group}
    if not set(call) <= set(own):
        raise CallError(f"{row.op} takes {sorted(own)}, not {sorted(set(call) - set(own))}")
    named = {row.group_size: ranked.size, **call}
    given = {name: named[name] if name in named else left_out(row, argument) for name, argument in own.items()}
    if ranked.methods and row.op in METHODS:
        return functools.partial(_by_method, ranked.group, row, given)
    boxed = {name: _boxed(argument, given[name]) for name, argument in own.items()}
    groups = {argument.name: _group(ranked, argument) for argument in row.arguments if argument.is_group}
    packet = operator.attrgetter(row.op.replace("::", "."))(torch.ops)
    return functools.partial(packet, **boxed, **groups)


def _boxed(argument: Argument, value: Any) -> Any:
    if argument.kind.endswith(".ReduceOp"):
        return boxed_reduce_op(value) if isinstance(value, str) else value
    return list(value) if isinstance(value, tuple) else value


def _group(ranked: RankGroup, argument: Argument) -> Any:
    if argument.kind.endswith(".ProcessGroup"):
        return ranked.group.boxed()
    # A legacy op finds its group by (tag, ranks, group_size).
    return list(range(ranked.size)) if argument.name == "ranks" else ranked.name


def _by_method(group: dist.ProcessGroup, row: Row, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """Call the method, and return its results as those of the op."""
    work = call_method(group, METHODS[row.op], arguments)
    return tuple(work if output.kind == "work" else arguments[output.name] for output in row.returns)


class _ShownError(Exception):
    """The dispatcher has shown its arguments."""


class _ArgumentsOfOp(TorchDispatchMode):
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
        raise _ShownError


@functools.cache
def boxed_reduce_op(name: str) -> Any:
    """Return the reduce op called `name` as the dispatcher takes it.

    Python can make no boxed ReduceOp but SUM, so torch has to box one, for an op that is not carried out.

    >>> boxed_reduce_op("max").op() == int(torch.distributed.ReduceOp.MAX)
    True
    """
    options = dist.AllreduceOptions()
    options.reduceOp = reduce_op_of(name)
    group, tensor = dist.ProcessGroup(_c10d.HashStore(), 0, 1), torch.empty(0)
    with _ArgumentsOfOp() as seen, contextlib.suppress(_ShownError):
        group.allreduce([tensor], options)
    place = next(i for i, arg in enumerate(lookup("c10d::allreduce_").arguments) if arg.kind.endswith(".ReduceOp"))
    return seen.arguments[place]


# -- posting and waiting


@attrs.frozen(eq=False)
class PostedOp:
    """An op that has been posted: what it has returned so far, its Works, and the tensors that came back."""

    returned: Returned
    works: tuple[Any, ...] = ()
    tensors: tuple[torch.Tensor, ...] = ()


def post(call: Callable[[], Any]) -> PostedOp:
    """Make a call that was `prepared`, and keep what it returns or raises."""
    try:
        result = call()
    except Exception as error:
        return PostedOp(Returned(error=error.with_traceback(None), posted=False))
    several = result if isinstance(result, tuple) else (result,)
    works = tuple(_work(item) for item in several if _is_work(item))
    values = tuple(item for item in several if item is not None and not _is_work(item))
    tensors = tuple(leaves(values, torch.Tensor))
    return PostedOp(Returned(values), works, tensors)


def _is_work(item: Any) -> bool:
    return isinstance(item, (torch.ScriptObject, _c10d.Work))


def _work(item: Any) -> Any:
    return _c10d.Work.unbox(item) if isinstance(item, torch.ScriptObject) else item


def wait(posted: PostedOp, timeout: timedelta | None) -> Returned:
    """Wait for an op's Works, or else for the tensors that a functional op returned, and return what the op did.

    Without a timeout, this waits for a Work as torch.distributed does: a Work written in Python or made from a future
    may know no timeout. torch also keeps a functional send's Work under the tensor that is sent. It cannot be waited
    for twice (gloo's send would block), so torch warns of unwaited calls at the end of the process.
    """
    try:
        for work in posted.works:
            work.wait(*([] if timeout is None else [timeout]))
        for tensor in () if posted.works else posted.tensors:
            torch.ops._c10d_functional.wait_tensor(tensor)
    except Exception as error:
        return Returned(error=error.with_traceback(None))
    return posted.returned


def wait_until(deadline: float, posted: PostedOp) -> Returned | None:
    """Wait for an op's Works; return None where they are not done at `deadline`, a time of `time.monotonic`.

    The wait is cut into slices, because signals are handled between two of them only. A wait that ends too soon does no
    harm to gloo's Works.
    """
    while True:
        start, left = time.monotonic(), min(max(deadline - time.monotonic(), 0.001), SLICE)
        returned = wait(posted, timedelta(seconds=left))
        early = time.monotonic() - start < 0.9 * left  # asked, too: some Works never say that they are completed
        if returned.error is None or early or all(work.is_completed() for work in posted.works):
            return returned
        if time.monotonic() >= deadline:
            return None
