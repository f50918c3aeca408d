"""What torch's meta and fake kernels say wrongly of a collective: one row for each defect, in torch 2.13.

A defect is a kernel that contradicts what real gloo does with a legal call, or that accepts a call which the op's rule
forbids. It says nothing of values, which such kernels do not have. Rows, and the predicates of their `when`:
tests/test_meta_kernels.py fails where a row no longer holds, and where a defect has no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

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


_C, _F, _A, _L = "c10d::", "_c10d_functional::", "_c10d_functional_autograd::", "c10d_functional::"
_SHARD_DIM = "_dtensor::shard_dim_alltoall"

_ALONE, _TWO = Group(size=1), Group(size=2)
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
            call(_C + "allreduce_coalesced_", group=_TWO, tensors=[_V]),
            call(_C + "allgather_coalesced_", group=_ALONE, input_list=[_V], output_lists=[[_V]]),
            call(_C + "allgather_into_tensor_coalesced_", group=_TWO, inputs=[_V], outputs=[(4,)]),
            call(_C + "reduce_scatter_tensor_coalesced_", group=_TWO, inputs=[(4,)], outputs=[_V]),
        ),
        issue="pytorch/pytorch#140712",
    ),
    Defect(
        ALIAS,
        "a new tensor, where the op returns the one that was waited for",
        (call(_F + "wait_tensor", group=_TWO, tensor=_V), call(_L + "wait_tensor", group=_TWO, self=_V)),
        issue="pytorch/pytorch#126773",
    ),
    Defect(
        STRIDE,
        "empty_like of the tensor, which has no gaps",
        (call(_F + "wait_tensor", group=_TWO, tensor=_SLICED), call(_L + "wait_tensor", group=_TWO, self=_SLICED)),
        when=_is_not_like_itself,
    ),
    Defect(
        ALIAS,
        "a new tensor, where the op returns out",
        (
            call(_F + "all_gather_into_tensor_out", group=_TWO, input=_V, out=(4,)),
            call(_F + "reduce_scatter_tensor_out", group=_TWO, input=(4,), out=_V, reduce_op="sum"),
        ),
    ),
    Defect(
        STRIDE,
        "the new tensor is contiguous, whatever out is",
        (
            call(_F + "all_gather_into_tensor_out", group=_ALONE, input=_V, out=_SLICED),
            call(_F + "reduce_scatter_tensor_out", group=_ALONE, input=_V, out=_SLICED, reduce_op="sum"),
        ),
        when=_out_is_like_no_fresh_one,
    ),
    Defect(
        ALIAS,
        "a new tensor, where the op returns the one that is received into",
        (
            call(_F + "irecv", group=_TWO, tensor=_V, src=1, tag=0),
            call(_L + "irecv", group=_TWO, self=_V, src=1, tag=0),
        ),
    ),
    Defect(
        STRIDE,
        "empty_like of the input, where the op returns a contiguous tensor",
        (
            call(_F + "broadcast", group=_TWO, input=_TRANSPOSED, src=0),
            call(_L + "broadcast", group=_TWO, self=_TRANSPOSED, src=0),
            call(_F + "all_reduce_coalesced", group=_TWO, inputs=[_TRANSPOSED], reduce_op="sum"),
            call(_L + "all_reduce_coalesced", group=_TWO, self=[_TRANSPOSED], reduceOp="sum"),
        ),
        when=_is_like_no_fresh_one,
        issue="pytorch/pytorch#167430, of all_reduce, which alone was mended",
    ),
    Defect(
        ALONE,
        "asks for the rank in the default group, where the op asks its own",
        (call(_SHARD_DIM, group=_TWO, input=(2, 2), gather_dim=0, shard_dim=1),),
    ),
    Defect(
        STRIDE,
        "an empty chunk has the strides of what it was cut from",
        (call(_SHARD_DIM, group=_TWO, input=(0, 2), gather_dim=0, shard_dim=1),),
        when=_cuts_an_empty_chunk,
        issue="pytorch/pytorch#141835",
    ),
)

_ON_ILLEGAL_CALLS = (
    # -- all_reduce
    Defect("accepts AR1", "two shapes in a list", (call(_C + "allreduce_", group=_TWO, tensors=[_V, (3,)]),)),
    Defect("accepts AR2", "two dtypes in a list", (call(_C + "allreduce_", group=_TWO, tensors=[_V, _DOUBLE]),)),
    Defect(
        "accepts AR3",
        "a reduce op that there is not",
        (
            call(_F + "all_reduce", group=_TWO, input=_V, reduce_op="mean"),
            call(_F + "all_reduce_", group=_TWO, input=_V, reduce_op="mean"),
            call(_F + "all_reduce_coalesced", group=_TWO, inputs=[_V], reduce_op="mean"),
            call(_F + "all_reduce_coalesced_", group=_TWO, inputs=[_V], reduce_op="mean"),
            call(_L + "all_reduce", group=_TWO, self=_V, reduceOp="mean"),
            call(_L + "all_reduce_coalesced", group=_TWO, self=[_V], reduceOp="mean"),
        ),
    ),
    Defect(
        "accepts AR4",
        "an empty list",
        (
            call(_C + "allreduce_", group=_TWO, tensors=[]),
            call(_F + "all_reduce_coalesced", group=_TWO, inputs=[], reduce_op="sum"),
            call(_F + "all_reduce_coalesced_", group=_TWO, inputs=[], reduce_op="sum"),
            call(_L + "all_reduce_coalesced", group=_TWO, self=[], reduceOp="sum"),
        ),
        (FAKE,),
    ),
    # -- broadcast and reduce
    Defect(
        "accepts BC1",
        "two shapes in a list",
        (call(_C + "broadcast_", group=_TWO, tensors=[_V, (3,)], root_rank=0),),
    ),
    Defect(
        "accepts BC2",
        "two dtypes in a list",
        (call(_C + "broadcast_", group=_TWO, tensors=[_V, _DOUBLE], root_rank=0),),
    ),
    Defect(
        "accepts BC3",
        "a root outside the group",
        (
            call(_C + "broadcast_", group=_TWO, tensors=[_V], root_rank=2),
            call(_F + "broadcast", group=_TWO, input=_V, src=2),
            call(_F + "broadcast_", group=_TWO, input=_V, src=-1),
            call(_L + "broadcast", group=_TWO, self=_V, src=2),
        ),
    ),
    Defect(
        "accepts BC4",
        "an empty list",
        (call(_C + "broadcast_", group=_TWO, tensors=[], root_rank=0),),
        (FAKE,),
    ),
    Defect(
        "accepts RD4",
        "a root outside the group",
        (call(_C + "reduce_", group=_TWO, tensors=[_V], root_rank=2),),
    ),
    Defect("accepts RD5", "two tensors", (call(_C + "reduce_", group=_TWO, tensors=[_V, _V], root_rank=0),)),
    # -- all_gather
    Defect(
        "accepts AG1",
        "fewer outputs than ranks",
        (call(_C + "allgather_", group=_TWO, input_tensors=[_V], output_tensors=[[_V]]),),
    ),
    Defect(
        "accepts AG2",
        "an output of another size",
        (call(_C + "allgather_", group=_ALONE, input_tensors=[_V], output_tensors=[[(3,)]]),),
    ),
    Defect(
        "accepts AG3",
        "an output of another dtype",
        (call(_C + "allgather_", group=_ALONE, input_tensors=[_V], output_tensors=[[_DOUBLE]]),),
    ),
    Defect(
        "accepts AG8",
        "an own output of another size",
        (call(_C + "allgather_", group=_TWO, input_tensors=[_V], output_tensors=[[(3,), (3,)]]),),
    ),
    Defect(
        "accepts AGT1",
        "an output that the ranks do not divide",
        (
            call(_C + "_allgather_base_", group=_TWO, input_tensor=_V, output_tensor=(3,)),
            call(_F + "all_gather_into_tensor_out", group=_TWO, input=_V, out=(3,)),
        ),
    ),
    Defect(
        "accepts AGT2",
        "an output of another size",
        (
            call(_C + "_allgather_base_", group=_TWO, input_tensor=_V, output_tensor=_V),
            call(_F + "all_gather_into_tensor_out", group=_TWO, input=_V, out=_V),
        ),
    ),
    Defect(
        "accepts AGT3",
        "a 0-d input, of which it makes a vector",
        (
            call(_F + "all_gather_into_tensor", group=_TWO, input=()),
            call(_F + "all_gather_into_tensor_coalesced", group=_TWO, inputs=[()]),
            call(_A + "all_gather_into_tensor", group=_TWO, input=()),
            call(_L + "all_gather_into_tensor", group=_TWO, shard=()),
            call(_L + "all_gather_into_tensor_coalesced", group=_TWO, input=[()]),
        ),
    ),
    Defect(
        "accepts AGT4",
        "an output of another dtype",
        (
            call(_C + "_allgather_base_", group=_ALONE, input_tensor=_V, output_tensor=_DOUBLE),
            call(_F + "all_gather_into_tensor_out", group=_ALONE, input=_V, out=_DOUBLE),
        ),
    ),
    Defect(
        "accepts AGT5",
        "an empty list",
        (
            call(_F + "all_gather_into_tensor_coalesced", group=_TWO, inputs=[]),
            call(_L + "all_gather_into_tensor_coalesced", group=_TWO, input=[]),
        ),
        (FAKE,),
    ),
    Defect(
        "accepts AGT6",
        "another group_size than the group's, which it multiplies by",
        (
            call(_F + "all_gather_into_tensor", group=_TWO, input=_V, group_size=3),
            call(_F + "all_gather_into_tensor_coalesced", group=_TWO, inputs=[_V], group_size=3),
            call(_A + "all_gather_into_tensor", group=_TWO, input=_V, group_size=3),
            call(_L + "all_gather_into_tensor", group=_TWO, shard=_V, group_size=3),
            call(_L + "all_gather_into_tensor_coalesced", group=_TWO, input=[_V], group_size=3),
        ),
    ),
    # -- reduce_scatter
    Defect(
        "accepts RS1",
        "fewer inputs than ranks",
        (call(_C + "reduce_scatter_", group=_TWO, input_tensors=[[_V]], output_tensors=[_V]),),
    ),
    Defect(
        "accepts RS2",
        "an output of another size",
        (call(_C + "reduce_scatter_", group=_ALONE, input_tensors=[[_V]], output_tensors=[(3,)]),),
    ),
    Defect(
        "accepts RS3",
        "an output of another dtype",
        (call(_C + "reduce_scatter_", group=_ALONE, input_tensors=[[_V]], output_tensors=[_DOUBLE]),),
    ),
    Defect(
        "accepts RS12",
        "an own input of another size",
        (call(_C + "reduce_scatter_", group=_TWO, input_tensors=[[_V, (3,)]], output_tensors=[(4,)]),),
    ),
    Defect(
        "accepts RST1",
        "an input that the ranks do not divide, which it floors",
        (
            call(_C + "_reduce_scatter_base_", group=_TWO, input_tensor=(5,), output_tensor=_V),
            call(_F + "reduce_scatter_tensor", group=_TWO, input=(5,), reduce_op="sum"),
            call(_F + "reduce_scatter_tensor_out", group=_TWO, input=(5,), out=_V, reduce_op="sum"),
            call(_F + "reduce_scatter_tensor_coalesced", group=_TWO, inputs=[(5,)], reduce_op="sum"),
            call(_A + "reduce_scatter_tensor", group=_TWO, input=(5,), reduce_op="sum"),
            call(_L + "reduce_scatter_tensor", group=_TWO, input=(5,), reduceOp="sum"),
            call(_L + "reduce_scatter_tensor_coalesced", group=_TWO, inputs=[(5,)], reduceOp="sum"),
        ),
    ),
    Defect(
        "accepts RST2",
        "an output of another size",
        (
            call(_C + "_reduce_scatter_base_", group=_TWO, input_tensor=(4,), output_tensor=(4,)),
            call(_F + "reduce_scatter_tensor_out", group=_TWO, input=(4,), out=(4,), reduce_op="sum"),
        ),
    ),
    Defect(
        "accepts RST4",
        "an output of another dtype",
        (
            call(_C + "_reduce_scatter_base_", group=_ALONE, input_tensor=_V, output_tensor=_DOUBLE),
            call(_F + "reduce_scatter_tensor_out", group=_ALONE, input=_V, out=_DOUBLE, reduce_op="sum"),
        ),
    ),
    Defect(
        "accepts RST5",
        "a reduce op that there is not",
        (
            call(_F + "reduce_scatter_tensor", group=_TWO, input=_V, reduce_op="SUM"),
            call(_F + "reduce_scatter_tensor_out", group=_TWO, input=_V, out=(1,), reduce_op="SUM"),
            call(_F + "reduce_scatter_tensor_coalesced", group=_TWO, inputs=[_V], reduce_op="SUM"),
            call(_A + "reduce_scatter_tensor", group=_TWO, input=_V, reduce_op="SUM"),
            call(_L + "reduce_scatter_tensor", group=_TWO, input=_V, reduceOp="mean"),
            call(_L + "reduce_scatter_tensor_coalesced", group=_TWO, inputs=[_V], reduceOp="mean"),
        ),
    ),
    Defect(
        "accepts RST6",
        "an empty list",
        (
            call(_F + "reduce_scatter_tensor_coalesced", group=_TWO, inputs=[], reduce_op="sum"),
            call(_L + "reduce_scatter_tensor_coalesced", group=_TWO, inputs=[], reduceOp="sum"),
        ),
        (FAKE,),
    ),
    Defect(
        "accepts RST7",
        "another group_size than the group's, which it divides by",
        (
            call(_F + "reduce_scatter_tensor", group=_TWO, input=(6,), reduce_op="sum", group_size=3),
            call(_F + "reduce_scatter_tensor_coalesced", group=_TWO, inputs=[(6,)], reduce_op="sum", group_size=3),
            call(_A + "reduce_scatter_tensor", group=_TWO, input=(6,), reduce_op="sum", group_size=3),
            call(_L + "reduce_scatter_tensor", group=_TWO, input=(6,), reduceOp="sum", group_size=3),
            call(_L + "reduce_scatter_tensor_coalesced", group=_TWO, inputs=[(6,)], reduceOp="sum", group_size=3),
        ),
    ),
    # -- gather and scatter
    Defect(
        "accepts GA1",
        "fewer outputs than ranks",
        (call(_C + "gather_", group=_TWO, input_tensors=[_V], output_tensors=[[_V]], root_rank=0),),
    ),
    Defect(
        "accepts GA2",
        "an output of another size",
        (call(_C + "gather_", group=_ALONE, input_tensors=[_V], output_tensors=[[(3,)]], root_rank=0),),
    ),
    Defect(
        "accepts GA3",
        "an output of another dtype",
        (call(_C + "gather_", group=_ALONE, input_tensors=[_V], output_tensors=[[_DOUBLE]], root_rank=0),),
    ),
    Defect(
        "accepts GA4",
        "a root outside the group",
        (call(_C + "gather_", group=_TWO, input_tensors=[_V], output_tensors=[[_V, _V]], root_rank=2),),
    ),
    Defect(
        "accepts GA5",
        "outputs off the root",
        (call(_C + "gather_", group=_TWO, input_tensors=[_V], output_tensors=[[_V, _V]], root_rank=1),),
    ),
    Defect(
        "accepts SC1",
        "fewer inputs than ranks",
        (call(_C + "scatter_", group=_TWO, input_tensors=[[_V]], output_tensors=[_V], root_rank=0),),
    ),
    Defect(
        "accepts SC2",
        "an output of another size",
        (call(_C + "scatter_", group=_ALONE, input_tensors=[[_V]], output_tensors=[(3,)], root_rank=0),),
    ),
    Defect(
        "accepts SC3",
        "an output of another dtype",
        (call(_C + "scatter_", group=_ALONE, input_tensors=[[_V]], output_tensors=[_DOUBLE], root_rank=0),),
    ),
    Defect(
        "accepts SC4",
        "a root outside the group",
        (call(_C + "scatter_", group=_TWO, input_tensors=[[_V, _V]], output_tensors=[_V], root_rank=2),),
    ),
    Defect(
        "accepts SC5",
        "inputs off the root",
        (call(_C + "scatter_", group=_TWO, input_tensors=[[_V, _V]], output_tensors=[_V], root_rank=1),),
    ),
    # -- all_to_all
    Defect(
        "accepts AA1",
        "fewer inputs than ranks",
        (call(_C + "alltoall_", group=_TWO, input_tensors=[_V], output_tensors=[_V, _V]),),
    ),
    Defect(
        "accepts AA2",
        "an output of another size",
        (call(_C + "alltoall_", group=_ALONE, input_tensors=[_V], output_tensors=[(3,)]),),
    ),
    Defect(
        "accepts AA3",
        "an own output of another size",
        (call(_C + "alltoall_", group=_TWO, input_tensors=[_V, _V], output_tensors=[(3,), (3,)]),),
    ),
    Defect(
        "accepts AA4",
        "an output of another dtype",
        (call(_C + "alltoall_", group=_ALONE, input_tensors=[_V], output_tensors=[_DOUBLE]),),
    ),
    Defect(
        "accepts AAS1",
        "an input that the ranks do not divide",
        (
            call(_C + "alltoall_base_", group=_TWO, input=(3,), output=(3,)),
            call(_F + "all_to_all_single", group=_TWO, input=(3,), input_split_sizes=[], output_split_sizes=[1, 1]),
            call(_A + "all_to_all_single", group=_TWO, input=(3,), input_split_sizes=[], output_split_sizes=[1, 1]),
            call(_L + "all_to_all_single", group=_TWO, input=(3,)),
        ),
    ),
    Defect(
        "accepts AAS2",
        "split sizes that are too few, negative, or of another sum",
        tuple(
            call(_C + "alltoall_base_", group=_TWO, input=_V, output=_V, **splits)
            for splits in (
                {"input_split_sizes": [1, 2], "output_split_sizes": [1, 1]},
                {"input_split_sizes": [1, 1], "output_split_sizes": [3, -1]},
            )
        ),
    ),
    Defect(
        "accepts AAS2",
        "split sizes of the input that are too few, negative, or of another sum",
        (
            call(_F + "all_to_all_single", group=_TWO, input=_V, input_split_sizes=[1, 2], output_split_sizes=[1, 1]),
            call(_F + "all_to_all_single", group=_TWO, input=_V, input_split_sizes=[2], output_split_sizes=[2, 0]),
            call(_F + "all_to_all_single", group=_TWO, input=_V, input_split_sizes=[3, -1], output_split_sizes=[3, 0]),
            call(_A + "all_to_all_single", group=_TWO, input=_V, input_split_sizes=[1, 2], output_split_sizes=[1, 1]),
            call(_L + "all_to_all_single", group=_TWO, input=_V, input_split_sizes=[1, 2], output_split_sizes=[1, 1]),
        ),
        when=_receives_no_negative,
    ),
    Defect(
        "accepts AAS3",
        "an own piece of another size",
        (
            call(
                _C + "alltoall_base_",
                group=_TWO,
                input=_V,
                output=_V,
                input_split_sizes=[1, 1],
                output_split_sizes=[2, 0],
            ),
            call(_F + "all_to_all_single", group=_TWO, input=_V, input_split_sizes=[1, 1], output_split_sizes=[2, 0]),
            call(_A + "all_to_all_single", group=_TWO, input=_V, input_split_sizes=[1, 1], output_split_sizes=[2, 0]),
            call(_L + "all_to_all_single", group=_TWO, input=_V, input_split_sizes=[1, 1], output_split_sizes=[2, 0]),
        ),
    ),
    Defect(
        "accepts AAS4",
        "an output of another row",
        (call(_C + "alltoall_base_", group=_TWO, input=(2, 2), output=(2, 3)),),
    ),
    Defect("accepts AAS5", "0-d tensors", (call(_C + "alltoall_base_", group=_TWO, input=(), output=()),)),
    Defect(
        "accepts AAS6",
        "an output of another dtype",
        (call(_C + "alltoall_base_", group=_TWO, input=_V, output=_DOUBLE),),
    ),
    Defect(
        "accepts AAS14",
        "another group_size than the group's",
        (call(_L + "all_to_all_single", group=_TWO, input=(6,), group_size=3),),
    ),
    Defect(
        "accepts SDA1",
        "a dim counted from the end",
        (call(_SHARD_DIM, group=_TWO, input=(2, 2), gather_dim=0, shard_dim=-1),),
        when=_counts_from_the_end,
    ),
    Defect(
        "accepts SDA2",
        "a dim that the ranks do not divide, which it floors",
        (call(_SHARD_DIM, group=_TWO, input=(2, 3), gather_dim=0, shard_dim=1),),
    ),
    # -- point to point
    Defect(
        "accepts SE3",
        "a peer outside the group, or the rank itself",
        (
            call(_C + "send", group=_TWO, tensors=[_V], dst=0, tag=0),
            call(_F + "isend", group=_TWO, tensor=_V, dst=2, tag=0),
            call(_F + "batch_p2p_ops", group=_TWO, op_list=["isend"], peer_list=[2], tag_list=[0], tensors=[_V]),
            call(_L + "isend", group=_TWO, self=_V, dst=2, tag=0),
            call(_L + "batch_p2p_ops", group=_TWO, op_list=["isend"], peer_list=[2], tag_list=[0], tensors=[_V]),
        ),
    ),
    Defect(
        "accepts SE4",
        "a negative tag",
        (
            call(_C + "send", group=_TWO, tensors=[_V], dst=1, tag=-1),
            call(_F + "isend", group=_TWO, tensor=_V, dst=1, tag=-1),
            call(_L + "isend", group=_TWO, self=_V, dst=1, tag=-1),
        ),
    ),
    Defect("accepts SE5", "two tensors", (call(_C + "send", group=_TWO, tensors=[_V, _V], dst=1, tag=0),)),
    Defect(
        "accepts RE3",
        "a peer outside the group, or the rank itself",
        (
            call(_C + "recv_", group=_TWO, tensors=[_V], src=0, tag=0),
            call(_F + "irecv", group=_TWO, tensor=_V, src=2, tag=0),
            call(_L + "irecv", group=_TWO, self=_V, src=2, tag=0),
        ),
    ),
    Defect(
        "accepts RE4",
        "a negative tag",
        (
            call(_C + "recv_", group=_TWO, tensors=[_V], src=1, tag=-1),
            call(_C + "recv_any_source_", group=_TWO, tensors=[_V], tag=-1),
            call(_F + "irecv", group=_TWO, tensor=_V, src=1, tag=-1),
            call(_L + "irecv", group=_TWO, self=_V, src=1, tag=-1),
        ),
    ),
    Defect(
        "accepts RE5",
        "two tensors",
        (
            call(_C + "recv_", group=_TWO, tensors=[_V, _V], src=1, tag=0),
            call(_C + "recv_any_source_", group=_TWO, tensors=[_V, _V], tag=0),
        ),
    ),
    Defect(
        "accepts PP1",
        "lists of several lengths",
        (
            call(_F + "batch_p2p_ops", group=_TWO, op_list=["isend"], peer_list=[1], tag_list=[], tensors=[_V]),
            call(_L + "batch_p2p_ops", group=_TWO, op_list=["isend"], peer_list=[1], tag_list=[], tensors=[_V]),
        ),
    ),
    Defect(
        "accepts PP2",
        "an op that no batch can hold",
        (
            call(_F + "batch_p2p_ops", group=_TWO, op_list=["send"], peer_list=[1], tag_list=[0], tensors=[_V]),
            call(_L + "batch_p2p_ops", group=_TWO, op_list=["send"], peer_list=[1], tag_list=[0], tensors=[_V]),
        ),
    ),
)

DEFECTS: tuple[Defect, ...] = _ON_LEGAL_CALLS + _ON_ILLEGAL_CALLS
