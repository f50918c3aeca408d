"""The op table: the functional collectives, their autograd and legacy spellings, and DTensor's op. Rows only.

A fresh return is called `output`, or `outputs` if it is a list; it is contiguous. The in-place and `_out` ones return
the argument that they write. Legacy ops name their group by (tag, ranks, group_size) and call the functional ones
(torch/distributed/_functional_collectives_impl.py).
"""

from __future__ import annotations

from functools import partial

from collective_rules.ops.op import DENSE, NONE, Batch, Op, SplitSizes
from collective_rules.rules import size_functions as sizes

_ONE = {"input": "input", "output": "output"}
_LIST = {"input": "inputs[i]", "output": "outputs[i]"}
_IN_PLACE = {"input": "input", "output": "input"}
_OUT = {"input": "input", "output": "out"}
_SELF = {"input": "self", "output": "output"}
_TENSOR_FORMS = ("concatenated", "stacked", "reshaped")

_REDUCES = {"reduce_op": "reduce_op"}
_SIZED = {"group_size": "group_size"}
_LEGACY_REDUCES = {"reduce_op": "reduceOp", "group_size": "group_size"}

_SPLITS = {"input": SplitSizes("input_split_sizes"), "output": SplitSizes("output_split_sizes", empty=NONE)}
# Named by a string, which torch/csrc/distributed/c10d/Functional.cpp maps; premul_sum has a factor and no name there.
_NAMED = ("sum", "avg", "product", "min", "max", "band", "bor", "bxor")

_F, _A, _L = "_c10d_functional::", "_c10d_functional_autograd::", "c10d_functional::"
_MEMBERS = {"isend": _F + "isend", "irecv": _F + "irecv"}

# What several ops have in common.
_reduced = partial(Op, rule="all_reduce", attributes=_REDUCES, reduce_ops=_NAMED)
# torch views complex tensors as real ones before it sizes the output: one of no dims becomes one of a dim.
_OF_COMPLEX = ("concatenated",)
_gathered = partial(Op, rule="all_gather_into_tensor", parts=_ONE, forms=("concatenated", "scalar"), attributes=_SIZED)
_scattered = partial(Op, rule="reduce_scatter_tensor", parts=_ONE, attributes=_REDUCES | _SIZED, reduce_ops=_NAMED)
_exchanged = partial(Op, rule="all_to_all_single", parts=_ONE, forms=("split",), splits=_SPLITS)
_batch = partial(
    Op,
    rule="batch_p2p",
    parts={"inputs": "tensors[i]", "outputs": "tensors[i]"},
    returns="empty",
    batch=Batch("op_list", _MEMBERS, "peer_list", "tag_list", "tensors"),
    layouts={"tensors": DENSE},
)
_sent = partial(Op, rule="send", attributes={"peer": "dst", "tag": "tag"}, returns="empty")
_received = partial(Op, rule="recv", attributes={"peer": "src", "tag": "tag"})

FUNCTIONAL = (
    _reduced(_F + "all_reduce", parts=_ONE),
    _reduced(_F + "all_reduce_", parts=_IN_PLACE, layouts={"input": DENSE}, layouts_from=2),
    _reduced(_F + "all_reduce_coalesced", parts=_LIST),
    _reduced(_F + "all_reduce_coalesced_", parts={"input": "inputs[i]", "output": "inputs[i]"}),
    Op(_F + "broadcast", "broadcast", _ONE, attributes={"root": "src"}),
    Op(_F + "broadcast_", "broadcast", _IN_PLACE, attributes={"root": "src"}, layouts={"input": DENSE}, layouts_from=2),
    _gathered(_F + "all_gather_into_tensor", complex_forms=_OF_COMPLEX),
    _gathered(_F + "all_gather_into_tensor_out", parts=_OUT, forms=_TENSOR_FORMS, group_size_ignored=True),
    _gathered(_F + "all_gather_into_tensor_coalesced", parts=_LIST),
    _scattered(_F + "reduce_scatter_tensor"),
    _scattered(_F + "reduce_scatter_tensor_out", parts=_OUT, forms=_TENSOR_FORMS, group_size_ignored=True),
    _scattered(_F + "reduce_scatter_tensor_coalesced", parts=_LIST),
    _exchanged(_F + "all_to_all_single"),
    _sent(_F + "isend", parts={"input": "tensor"}, layouts={"tensor": DENSE}),
    _received(_F + "irecv", parts={"output": "tensor"}, layouts={"tensor": DENSE}, returns="tensor"),
    _batch(_F + "batch_p2p_ops"),
    Op(_F + "wait_tensor", "wait", {"input": "tensor"}, returns="tensor"),
    Op(
        _F + "wait_tensors",
        "wait",
        {"input": "tensors[i]"},
        returns="tensors",
        since="2.15",
        schema="_c10d_functional::wait_tensors(Tensor[] tensors) -> Tensor[]",
    ),
    _gathered(_A + "all_gather_into_tensor", complex_forms=_OF_COMPLEX),
    _scattered(_A + "reduce_scatter_tensor"),
    _exchanged(_A + "all_to_all_single"),
    _reduced(_L + "all_reduce", parts=_SELF, attributes=_LEGACY_REDUCES, group_size_ignored=True),
    _reduced(
        _L + "all_reduce_coalesced",
        parts={"input": "self[i]", "output": "outputs[i]"},
        attributes=_LEGACY_REDUCES,
        group_size_ignored=True,
    ),
    Op(_L + "broadcast", "broadcast", _SELF, attributes={"root": "src"} | _SIZED, group_size_ignored=True),
    _gathered(_L + "all_gather_into_tensor", parts={"input": "shard", "output": "output"}, complex_forms=_OF_COMPLEX),
    _gathered(_L + "all_gather_into_tensor_coalesced", parts={"input": "input[i]", "output": "outputs[i]"}),
    _scattered(_L + "reduce_scatter_tensor", attributes=_LEGACY_REDUCES),
    _scattered(_L + "reduce_scatter_tensor_coalesced", parts=_LIST, attributes=_LEGACY_REDUCES),
    _exchanged(_L + "all_to_all_single", attributes=_SIZED, requirements=(sizes.both_splits_or_neither,)),
    _sent(_L + "isend", parts={"input": "self"}, layouts={"self": DENSE}),
    _received(_L + "irecv", parts={"output": "self"}, layouts={"self": DENSE}, returns="self"),
    _batch(_L + "batch_p2p_ops"),
    Op(_L + "wait_tensor", "wait", {"input": "self"}, returns="self"),
    Op(
        "_dtensor::shard_dim_alltoall",
        "shard_dim_alltoall",
        _ONE,
        attributes={"gather_dim": "gather_dim", "shard_dim": "shard_dim"},
        done=True,
    ),
)
