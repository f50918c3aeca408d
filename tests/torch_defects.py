"""What torch's meta and fake kernels say wrongly of a collective: one row for each defect, in torch 2.13.

A defect is a kernel that contradicts what real gloo does with a legal call, or that accepts a call which the op's rule
forbids. It says nothing of values, which such kernels do not have. Rows, and the predicates of their `when`:
tests/test_meta_kernels.py fails where a row no longer holds, and where a defect has no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch

from collective_rules import Call, Group, Spec, call
from collective_rules.spec import contiguous_stride
from collective_rules.testing.tensors import flat

__all__ = ["ALIAS", "ALONE", "BOTH", "DEFECTS", "FAKE", "META", "NO_KERNEL", "RAISES", "RETURNS", "STRIDE", "Defect"]

META, FAKE = "meta", "fake"
BOTH = (META, FAKE)

NO_KERNEL, RAISES, ALONE = "no kernel", "raises", "raises without a default group"
RETURNS, ALIAS, STRIDE = "returns", "alias", "stride"


@attrs.frozen(eq=False)
class Defect:
    """One thing that torch's kernels do wrongly.

    - `kind`: how it shows. NO_KERNEL; RAISES; ALONE (it needs a default group, which the op itself does not); RETURNS
      (another number or nesting of what comes back); "shape", "dtype" or STRIDE; ALIAS (fresh memory where the op
      returns an argument, or the other way round); or "accepts " and the id of the constraint that a call violates.
    - `what`: what the kernel does, in words.
    - `examples`: one rank's minimal calls in which it shows: at least one for each op that has the defect.
    - `witnesses`: META, FAKE (a FakeTensorMode), or both.
    - `when`: whether it shows in a call of those ops; a row excuses nothing else. Of an illegal call, it says no more
      than whether it may.
    - `issue`: where torch's developers speak of it.
    """

    kind: str
    what: str
    examples: tuple[Call, ...]
    witnesses: tuple[str, ...] = BOTH
    when: Callable[[Call], bool] = lambda call: True
    issue: str = ""


def _accepts(violation: str, *examples: Call, **more: Any) -> Defect:
    """Return the defect that illegal calls are accepted; `violation` is the constraint's id, and what violates it."""
    id, _, what = violation.partition(": ")
    return Defect(f"accepts {id}", what, examples, **more)


def _two(op: str, **arguments: Any) -> Call:
    """Return the call of rank 0 of two."""
    return call(op, group=Group(size=2), **arguments)


def _one(op: str, **arguments: Any) -> Call:
    """Return the call of a rank alone in its group."""
    return call(op, group=Group(size=1), **arguments)


_C, _F, _A, _L = "c10d::", "_c10d_functional::", "_c10d_functional_autograd::", "c10d_functional::"
_SHARD_DIM = "_dtensor::shard_dim_alltoall"

_V = (2,)
_DOUBLE = Spec(_V, torch.float64)
_TRANSPOSED = Spec((2, 3), stride=(1, 2))
_SLICED = Spec((2,), stride=(2,))


def _differs(shape: tuple[int, ...], one: Iterable[int], other: Iterable[int]) -> bool:
    """Whether the strides of a tensor differ; a dim of size 1 has none that counts."""
    return any(n != 1 and a != b for n, a, b in zip(shape, one, other, strict=True))


def _like(spec: Spec) -> tuple[int, ...]:
    """The strides of empty_like: kept of a dense tensor, without gaps else."""
    return torch.empty_like(torch.empty_strided(spec.shape, spec.stride, device="meta")).stride()


def _is_not_like_itself(call: Call) -> bool:
    spec = call.arguments[call.row.reads[0]]
    return _differs(spec.shape, _like(spec), spec.stride)


def _is_like_no_fresh_one(call: Call) -> bool:
    specs = flat(call.arguments[call.row.reads[0]])
    return any(_differs(spec.shape, _like(spec), contiguous_stride(spec.shape)) for spec in specs)


def _out_is_like_no_fresh_one(call: Call) -> bool:
    out = call.arguments["out"]
    return _differs(out.shape, out.stride, contiguous_stride(out.shape))


def _cuts_an_empty_chunk(call: Call) -> bool:
    whole = list(call.arguments["input"].shape)
    whole[call.arguments["gather_dim"]] *= call.group.size
    chunk = [*whole]
    chunk[call.arguments["shard_dim"]] //= call.group.size
    return 0 in chunk and _differs(tuple(chunk), contiguous_stride(whole), contiguous_stride(chunk))


def _receives_no_negative(call: Call) -> bool:
    return all(size >= 0 for size in call.arguments["output_split_sizes"] or ())


def _counts_from_the_end(call: Call) -> bool:
    dims = (call.arguments["gather_dim"], call.arguments["shard_dim"])
    return all(-len(call.arguments["input"].shape) <= dim < len(call.arguments["input"].shape) for dim in dims)


_ON_LEGAL_CALLS = (
    Defect(
        NO_KERNEL,
        "torch/distributed/_meta_registrations.py leaves the coalesced ops out",
        (
            _two(_C + "allreduce_coalesced_", tensors=[_V]),
            _one(_C + "allgather_coalesced_", input_list=[_V], output_lists=[[_V]]),
            _two(_C + "allgather_into_tensor_coalesced_", inputs=[_V], outputs=[(4,)]),
            _two(_C + "reduce_scatter_tensor_coalesced_", inputs=[(4,)], outputs=[_V]),
        ),
        issue="pytorch/pytorch#140712",
    ),
    Defect(
        ALIAS,
        "a new tensor, where the op returns the one that was waited for",
        (_two(_F + "wait_tensor", tensor=_V), _two(_L + "wait_tensor", self=_V)),
        issue="pytorch/pytorch#126773",
    ),
    Defect(
        STRIDE,
        "empty_like of the tensor, which has no gaps",
        (_two(_F + "wait_tensor", tensor=_SLICED), _two(_L + "wait_tensor", self=_SLICED)),
        when=_is_not_like_itself,
    ),
    Defect(
        ALIAS,
        "a new tensor, where the op returns out",
        (
            _two(_F + "all_gather_into_tensor_out", input=_V, out=(4,)),
            _two(_F + "reduce_scatter_tensor_out", input=(4,), out=_V, reduce_op="sum"),
        ),
    ),
    Defect(
        STRIDE,
        "the new tensor is contiguous, whatever out is",
        (
            _one(_F + "all_gather_into_tensor_out", input=_V, out=_SLICED),
            _one(_F + "reduce_scatter_tensor_out", input=_V, out=_SLICED, reduce_op="sum"),
        ),
        when=_out_is_like_no_fresh_one,
    ),
    Defect(
        ALIAS,
        "a new tensor, where the op returns the one that is received into",
        (_two(_F + "irecv", tensor=_V, src=1, tag=0), _two(_L + "irecv", self=_V, src=1, tag=0)),
    ),
    Defect(
        STRIDE,
        "empty_like of the input, where the op returns a contiguous tensor",
        (
            _two(_F + "broadcast", input=_TRANSPOSED, src=0),
            _two(_L + "broadcast", self=_TRANSPOSED, src=0),
            _two(_F + "all_reduce_coalesced", inputs=[_TRANSPOSED], reduce_op="sum"),
            _two(_L + "all_reduce_coalesced", self=[_TRANSPOSED], reduceOp="sum"),
        ),
        when=_is_like_no_fresh_one,
        issue="pytorch/pytorch#167430, of all_reduce, which alone was mended",
    ),
    Defect(
        ALONE,
        "asks for the rank in the default group, where the op asks its own",
        (_two(_SHARD_DIM, input=(2, 2), gather_dim=0, shard_dim=1),),
    ),
    Defect(
        STRIDE,
        "an empty chunk has the strides of what it was cut from",
        (_two(_SHARD_DIM, input=(0, 2), gather_dim=0, shard_dim=1),),
        when=_cuts_an_empty_chunk,
        issue="pytorch/pytorch#141835",
    ),
)

_ON_ILLEGAL_CALLS = (
    # -- all_reduce
    _accepts("AR1: two shapes in a list", _two(_C + "allreduce_", tensors=[_V, (3,)])),
    _accepts("AR2: two dtypes in a list", _two(_C + "allreduce_", tensors=[_V, _DOUBLE])),
    _accepts(
        "AR3: a reduce op that there is not",
        _two(_F + "all_reduce", input=_V, reduce_op="mean"),
        _two(_F + "all_reduce_", input=_V, reduce_op="mean"),
        _two(_F + "all_reduce_coalesced", inputs=[_V], reduce_op="mean"),
        _two(_F + "all_reduce_coalesced_", inputs=[_V], reduce_op="mean"),
        _two(_L + "all_reduce", self=_V, reduceOp="mean"),
        _two(_L + "all_reduce_coalesced", self=[_V], reduceOp="mean"),
    ),
    _accepts(
        "AR4: an empty list",
        _two(_C + "allreduce_", tensors=[]),
        _two(_F + "all_reduce_coalesced", inputs=[], reduce_op="sum"),
        _two(_F + "all_reduce_coalesced_", inputs=[], reduce_op="sum"),
        _two(_L + "all_reduce_coalesced", self=[], reduceOp="sum"),
        witnesses=(FAKE,),
    ),
    # -- broadcast and reduce
    _accepts("BC1: two shapes in a list", _two(_C + "broadcast_", tensors=[_V, (3,)], root_rank=0)),
    _accepts("BC2: two dtypes in a list", _two(_C + "broadcast_", tensors=[_V, _DOUBLE], root_rank=0)),
    _accepts(
        "BC3: a root outside the group",
        _two(_C + "broadcast_", tensors=[_V], root_rank=2),
        _two(_F + "broadcast", input=_V, src=2),
        _two(_F + "broadcast_", input=_V, src=-1),
        _two(_L + "broadcast", self=_V, src=2),
    ),
    _accepts("BC4: an empty list", _two(_C + "broadcast_", tensors=[], root_rank=0), witnesses=(FAKE,)),
    _accepts("RD4: a root outside the group", _two(_C + "reduce_", tensors=[_V], root_rank=2)),
    _accepts("RD5: two tensors", _two(_C + "reduce_", tensors=[_V, _V], root_rank=0)),
    # -- all_gather
    _accepts("AG1: fewer outputs than ranks", _two(_C + "allgather_", input_tensors=[_V], output_tensors=[[_V]])),
    _accepts("AG2: an output of another size", _one(_C + "allgather_", input_tensors=[_V], output_tensors=[[(3,)]])),
    _accepts(
        "AG3: an output of another dtype", _one(_C + "allgather_", input_tensors=[_V], output_tensors=[[_DOUBLE]])
    ),
    _accepts(
        "AG8: an own output of another size", _two(_C + "allgather_", input_tensors=[_V], output_tensors=[[(3,), (3,)]])
    ),
    _accepts(
        "AGT1: an output that the ranks do not divide",
        _two(_C + "_allgather_base_", input_tensor=_V, output_tensor=(3,)),
        _two(_F + "all_gather_into_tensor_out", input=_V, out=(3,)),
    ),
    _accepts(
        "AGT2: an output of another size",
        _two(_C + "_allgather_base_", input_tensor=_V, output_tensor=_V),
        _two(_F + "all_gather_into_tensor_out", input=_V, out=_V),
    ),
    _accepts("AGT3: an output without dims", _two(_C + "_allgather_base_", input_tensor=_V, output_tensor=())),
    _accepts(
        "AGT4: an output of another dtype",
        _one(_C + "_allgather_base_", input_tensor=_V, output_tensor=_DOUBLE),
        _one(_F + "all_gather_into_tensor_out", input=_V, out=_DOUBLE),
    ),
    _accepts(
        "AGT5: an empty list",
        _two(_F + "all_gather_into_tensor_coalesced", inputs=[]),
        _two(_L + "all_gather_into_tensor_coalesced", input=[]),
        witnesses=(FAKE,),
    ),
    _accepts(
        "AGT6: another group_size than the group's, which it multiplies by",
        _two(_F + "all_gather_into_tensor", input=_V, group_size=3),
        _two(_F + "all_gather_into_tensor_coalesced", inputs=[_V], group_size=3),
        _two(_A + "all_gather_into_tensor", input=_V, group_size=3),
        _two(_L + "all_gather_into_tensor", shard=_V, group_size=3),
        _two(_L + "all_gather_into_tensor_coalesced", input=[_V], group_size=3),
    ),
    # -- reduce_scatter
    _accepts("RS1: fewer inputs than ranks", _two(_C + "reduce_scatter_", input_tensors=[[_V]], output_tensors=[_V])),
    _accepts(
        "RS2: an output of another size", _one(_C + "reduce_scatter_", input_tensors=[[_V]], output_tensors=[(3,)])
    ),
    _accepts(
        "RS3: an output of another dtype", _one(_C + "reduce_scatter_", input_tensors=[[_V]], output_tensors=[_DOUBLE])
    ),
    _accepts(
        "RS12: an own input of another size",
        _two(_C + "reduce_scatter_", input_tensors=[[_V, (3,)]], output_tensors=[(4,)]),
    ),
    _accepts(
        "RST1: an input that the ranks do not divide, which it floors",
        _two(_C + "_reduce_scatter_base_", input_tensor=(5,), output_tensor=_V),
        _two(_F + "reduce_scatter_tensor", input=(5,), reduce_op="sum"),
        _two(_F + "reduce_scatter_tensor_out", input=(5,), out=_V, reduce_op="sum"),
        _two(_F + "reduce_scatter_tensor_coalesced", inputs=[(5,)], reduce_op="sum"),
        _two(_A + "reduce_scatter_tensor", input=(5,), reduce_op="sum"),
        _two(_L + "reduce_scatter_tensor", input=(5,), reduceOp="sum"),
        _two(_L + "reduce_scatter_tensor_coalesced", inputs=[(5,)], reduceOp="sum"),
    ),
    _accepts(
        "RST2: an output of another size",
        _two(_C + "_reduce_scatter_base_", input_tensor=(4,), output_tensor=(4,)),
        _two(_F + "reduce_scatter_tensor_out", input=(4,), out=(4,), reduce_op="sum"),
    ),
    _accepts(
        "RST4: an output of another dtype",
        _one(_C + "_reduce_scatter_base_", input_tensor=_V, output_tensor=_DOUBLE),
        _one(_F + "reduce_scatter_tensor_out", input=_V, out=_DOUBLE, reduce_op="sum"),
    ),
    _accepts(
        "RST5: a reduce op that there is not",
        _two(_F + "reduce_scatter_tensor", input=_V, reduce_op="SUM"),
        _two(_F + "reduce_scatter_tensor_out", input=_V, out=(1,), reduce_op="SUM"),
        _two(_F + "reduce_scatter_tensor_coalesced", inputs=[_V], reduce_op="SUM"),
        _two(_A + "reduce_scatter_tensor", input=_V, reduce_op="SUM"),
        _two(_L + "reduce_scatter_tensor", input=_V, reduceOp="mean"),
        _two(_L + "reduce_scatter_tensor_coalesced", inputs=[_V], reduceOp="mean"),
    ),
    _accepts(
        "RST6: an empty list",
        _two(_F + "reduce_scatter_tensor_coalesced", inputs=[], reduce_op="sum"),
        _two(_L + "reduce_scatter_tensor_coalesced", inputs=[], reduceOp="sum"),
        witnesses=(FAKE,),
    ),
    _accepts(
        "RST7: another group_size than the group's, which it divides by",
        _two(_F + "reduce_scatter_tensor", input=(6,), reduce_op="sum", group_size=3),
        _two(_F + "reduce_scatter_tensor_coalesced", inputs=[(6,)], reduce_op="sum", group_size=3),
        _two(_A + "reduce_scatter_tensor", input=(6,), reduce_op="sum", group_size=3),
        _two(_L + "reduce_scatter_tensor", input=(6,), reduceOp="sum", group_size=3),
        _two(_L + "reduce_scatter_tensor_coalesced", inputs=[(6,)], reduceOp="sum", group_size=3),
    ),
    # -- gather and scatter
    _accepts(
        "GA1: fewer outputs than ranks", _two(_C + "gather_", input_tensors=[_V], output_tensors=[[_V]], root_rank=0)
    ),
    _accepts(
        "GA2: an output of another size", _one(_C + "gather_", input_tensors=[_V], output_tensors=[[(3,)]], root_rank=0)
    ),
    _accepts(
        "GA3: an output of another dtype",
        _one(_C + "gather_", input_tensors=[_V], output_tensors=[[_DOUBLE]], root_rank=0),
    ),
    _accepts(
        "GA4: a root outside the group",
        _two(_C + "gather_", input_tensors=[_V], output_tensors=[[_V, _V]], root_rank=2),
    ),
    _accepts(
        "GA5: outputs off the root", _two(_C + "gather_", input_tensors=[_V], output_tensors=[[_V, _V]], root_rank=1)
    ),
    _accepts(
        "SC1: fewer inputs than ranks", _two(_C + "scatter_", input_tensors=[[_V]], output_tensors=[_V], root_rank=0)
    ),
    _accepts(
        "SC2: an output of another size",
        _one(_C + "scatter_", input_tensors=[[_V]], output_tensors=[(3,)], root_rank=0),
    ),
    _accepts(
        "SC3: an output of another dtype",
        _one(_C + "scatter_", input_tensors=[[_V]], output_tensors=[_DOUBLE], root_rank=0),
    ),
    _accepts(
        "SC4: a root outside the group",
        _two(_C + "scatter_", input_tensors=[[_V, _V]], output_tensors=[_V], root_rank=2),
    ),
    _accepts(
        "SC5: inputs off the root", _two(_C + "scatter_", input_tensors=[[_V, _V]], output_tensors=[_V], root_rank=1)
    ),
    # -- all_to_all
    _accepts("AA1: fewer inputs than ranks", _two(_C + "alltoall_", input_tensors=[_V], output_tensors=[_V, _V])),
    _accepts("AA2: an output of another size", _one(_C + "alltoall_", input_tensors=[_V], output_tensors=[(3,)])),
    _accepts(
        "AA3: an own output of another size",
        _two(_C + "alltoall_", input_tensors=[_V, _V], output_tensors=[(3,), (3,)]),
    ),
    _accepts("AA4: an output of another dtype", _one(_C + "alltoall_", input_tensors=[_V], output_tensors=[_DOUBLE])),
    _accepts(
        "AAS1: an input that the ranks do not divide",
        _two(_C + "alltoall_base_", input=(3,), output=(3,)),
        _two(_F + "all_to_all_single", input=(3,), input_split_sizes=[], output_split_sizes=[1, 1]),
        _two(_A + "all_to_all_single", input=(3,), input_split_sizes=[], output_split_sizes=[1, 1]),
        _two(_L + "all_to_all_single", input=(3,)),
    ),
    _accepts(
        "AAS2: split sizes that are too few, negative, or of another sum",
        *tuple(
            _two(_C + "alltoall_base_", input=_V, output=_V, **splits)
            for splits in (
                {"input_split_sizes": [1, 2], "output_split_sizes": [1, 1]},
                {"input_split_sizes": [1, 1], "output_split_sizes": [3, -1]},
            )
        ),
    ),
    _accepts(
        "AAS2: split sizes of the input that are too few, negative, or of another sum",
        _two(_F + "all_to_all_single", input=_V, input_split_sizes=[1, 2], output_split_sizes=[1, 1]),
        _two(_F + "all_to_all_single", input=_V, input_split_sizes=[2], output_split_sizes=[2, 0]),
        _two(_F + "all_to_all_single", input=_V, input_split_sizes=[3, -1], output_split_sizes=[3, 0]),
        _two(_A + "all_to_all_single", input=_V, input_split_sizes=[1, 2], output_split_sizes=[1, 1]),
        _two(_L + "all_to_all_single", input=_V, input_split_sizes=[1, 2], output_split_sizes=[1, 1]),
        when=_receives_no_negative,
    ),
    _accepts(
        "AAS3: an own piece of another size",
        _two(_C + "alltoall_base_", input=_V, output=_V, input_split_sizes=[1, 1], output_split_sizes=[2, 0]),
        _two(_F + "all_to_all_single", input=_V, input_split_sizes=[1, 1], output_split_sizes=[2, 0]),
        _two(_A + "all_to_all_single", input=_V, input_split_sizes=[1, 1], output_split_sizes=[2, 0]),
        _two(_L + "all_to_all_single", input=_V, input_split_sizes=[1, 1], output_split_sizes=[2, 0]),
    ),
    _accepts("AAS4: an output of another row", _two(_C + "alltoall_base_", input=(2, 2), output=(2, 3))),
    _accepts("AAS5: 0-d tensors", _two(_C + "alltoall_base_", input=(), output=())),
    _accepts("AAS6: an output of another dtype", _two(_C + "alltoall_base_", input=_V, output=_DOUBLE)),
    _accepts("AAS14: another group_size than the group's", _two(_L + "all_to_all_single", input=(6,), group_size=3)),
    _accepts(
        "SDA1: a dim counted from the end",
        _two(_SHARD_DIM, input=(2, 2), gather_dim=0, shard_dim=-1),
        when=_counts_from_the_end,
    ),
    _accepts(
        "SDA2: a dim that the ranks do not divide, which it floors",
        _two(_SHARD_DIM, input=(2, 3), gather_dim=0, shard_dim=1),
    ),
    # -- point to point
    _accepts(
        "SE3: a peer outside the group, or the rank itself",
        _two(_C + "send", tensors=[_V], dst=0, tag=0),
        _two(_F + "isend", tensor=_V, dst=2, tag=0),
        _two(_F + "batch_p2p_ops", op_list=["isend"], peer_list=[2], tag_list=[0], tensors=[_V]),
        _two(_L + "isend", self=_V, dst=2, tag=0),
        _two(_L + "batch_p2p_ops", op_list=["isend"], peer_list=[2], tag_list=[0], tensors=[_V]),
    ),
    _accepts(
        "SE4: a negative tag",
        _two(_C + "send", tensors=[_V], dst=1, tag=-1),
        _two(_F + "isend", tensor=_V, dst=1, tag=-1),
        _two(_L + "isend", self=_V, dst=1, tag=-1),
    ),
    _accepts("SE5: two tensors", _two(_C + "send", tensors=[_V, _V], dst=1, tag=0)),
    _accepts(
        "RE3: a peer outside the group, or the rank itself",
        _two(_C + "recv_", tensors=[_V], src=0, tag=0),
        _two(_F + "irecv", tensor=_V, src=2, tag=0),
        _two(_L + "irecv", self=_V, src=2, tag=0),
    ),
    _accepts(
        "RE4: a negative tag",
        _two(_C + "recv_", tensors=[_V], src=1, tag=-1),
        _two(_C + "recv_any_source_", tensors=[_V], tag=-1),
        _two(_F + "irecv", tensor=_V, src=1, tag=-1),
        _two(_L + "irecv", self=_V, src=1, tag=-1),
    ),
    _accepts(
        "RE5: two tensors",
        _two(_C + "recv_", tensors=[_V, _V], src=1, tag=0),
        _two(_C + "recv_any_source_", tensors=[_V, _V], tag=0),
    ),
    _accepts(
        "PP1: lists of several lengths",
        _two(_F + "batch_p2p_ops", op_list=["isend"], peer_list=[1], tag_list=[], tensors=[_V]),
        _two(_L + "batch_p2p_ops", op_list=["isend"], peer_list=[1], tag_list=[], tensors=[_V]),
    ),
    _accepts(
        "PP2: an op that no batch can hold",
        _two(_F + "batch_p2p_ops", op_list=["send"], peer_list=[1], tag_list=[0], tensors=[_V]),
        _two(_L + "batch_p2p_ops", op_list=["send"], peer_list=[1], tag_list=[0], tensors=[_V]),
    ),
)

DEFECTS: tuple[Defect, ...] = _ON_LEGAL_CALLS + _ON_ILLEGAL_CALLS
