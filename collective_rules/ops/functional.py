"""The op table: the functional collectives, their autograd and legacy spellings, and DTensor's op. Rows only.

A fresh return is called `output`, or `outputs` if it is a list; it is contiguous. The in-place and `_out` ones return
the argument that they write. Legacy ops name their group by (tag, ranks, group_size) and call the functional ones
(torch/distributed/_functional_collectives_impl.py).
"""

from __future__ import annotations

from collective_rules.ops.op import DENSE, NONE, Batch, Op, SplitSizes
from collective_rules.rules import size_functions as sizes

_ONE = {"input": "input", "output": "output"}
_LIST = {"input": "inputs[i]", "output": "outputs[i]"}
_IN_PLACE = {"input": "input", "output": "input"}
_OUT = {"input": "input", "output": "out"}
_SELF = {"input": "self", "output": "output"}
_TENSOR_FORMS = ("concatenated", "stacked", "reshaped")
_GATHERED = ("concatenated", "scalar")

_REDUCES = {"reduce_op": "reduce_op"}
_SIZED = {"group_size": "group_size"}
_REDUCES_SIZED = {"reduce_op": "reduce_op", "group_size": "group_size"}
_LEGACY_REDUCES = {"reduce_op": "reduceOp", "group_size": "group_size"}

_SPLITS = {"input": SplitSizes("input_split_sizes"), "output": SplitSizes("output_split_sizes", empty=NONE)}
# Named by a string, which torch/csrc/distributed/c10d/Functional.cpp maps; premul_sum has a factor and no name there.
_NAMED = ("sum", "avg", "product", "min", "max", "band", "bor", "bxor")

_F, _A, _L = "_c10d_functional::", "_c10d_functional_autograd::", "c10d_functional::"

FUNCTIONAL = (
    Op(_F + "all_reduce", "all_reduce", _ONE, attributes=_REDUCES, reduce_ops=_NAMED),
    Op(
        _F + "all_reduce_",
        "all_reduce",
        _IN_PLACE,
        attributes=_REDUCES,
        reduce_ops=_NAMED,
        layouts={"input": DENSE},
        layouts_from=2,
    ),
    Op(_F + "all_reduce_coalesced", "all_reduce", _LIST, attributes=_REDUCES, reduce_ops=_NAMED),
    Op(
        _F + "all_reduce_coalesced_",
        "all_reduce",
        {"input": "inputs[i]", "output": "inputs[i]"},
        attributes=_REDUCES,
        reduce_ops=_NAMED,
    ),
    Op(_F + "broadcast", "broadcast", _ONE, attributes={"root": "src"}),
    Op(_F + "broadcast_", "broadcast", _IN_PLACE, attributes={"root": "src"}, layouts={"input": DENSE}, layouts_from=2),
    Op(_F + "all_gather_into_tensor", "all_gather_into_tensor", _ONE, forms=_GATHERED, attributes=_SIZED),
    Op(
        _F + "all_gather_into_tensor_out",
        "all_gather_into_tensor",
        _OUT,
        forms=_TENSOR_FORMS,
        attributes=_SIZED,
        group_size_ignored=True,
    ),
    Op(_F + "all_gather_into_tensor_coalesced", "all_gather_into_tensor", _LIST, forms=_GATHERED, attributes=_SIZED),
    Op(_F + "reduce_scatter_tensor", "reduce_scatter_tensor", _ONE, attributes=_REDUCES_SIZED, reduce_ops=_NAMED),
    Op(
        _F + "reduce_scatter_tensor_out",
        "reduce_scatter_tensor",
        _OUT,
        forms=_TENSOR_FORMS,
        attributes=_REDUCES_SIZED,
        reduce_ops=_NAMED,
        group_size_ignored=True,
    ),
    Op(
        _F + "reduce_scatter_tensor_coalesced",
        "reduce_scatter_tensor",
        _LIST,
        attributes=_REDUCES_SIZED,
        reduce_ops=_NAMED,
    ),
    Op(_F + "all_to_all_single", "all_to_all_single", _ONE, forms=("split",), splits=_SPLITS),
    Op(
        _F + "isend",
        "send",
        {"input": "tensor"},
        attributes={"peer": "dst", "tag": "tag"},
        returns="empty",
        layouts={"tensor": DENSE},
    ),
    Op(
        _F + "irecv",
        "recv",
        {"output": "tensor"},
        attributes={"peer": "src", "tag": "tag"},
        returns="tensor",
        layouts={"tensor": DENSE},
    ),
    Op(
        _F + "batch_p2p_ops",
        "batch_p2p",
        {"inputs": "tensors[i]", "outputs": "tensors[i]"},
        returns="empty",
        batch=Batch("op_list", {"isend": _F + "isend", "irecv": _F + "irecv"}, "peer_list", "tag_list", "tensors"),
        layouts={"tensors": DENSE},
    ),
    Op(_F + "wait_tensor", "wait", {"input": "tensor"}, returns="tensor"),
    Op(
        _F + "wait_tensors",
        "wait",
        {"input": "tensors[i]"},
        returns="tensors",
        since="2.15",
        schema="_c10d_functional::wait_tensors(Tensor[] tensors) -> Tensor[]",
    ),
    Op(_A + "all_gather_into_tensor", "all_gather_into_tensor", _ONE, forms=_GATHERED, attributes=_SIZED),
    Op(_A + "reduce_scatter_tensor", "reduce_scatter_tensor", _ONE, attributes=_REDUCES_SIZED, reduce_ops=_NAMED),
    Op(_A + "all_to_all_single", "all_to_all_single", _ONE, forms=("split",), splits=_SPLITS),
    Op(_L + "all_reduce", "all_reduce", _SELF, attributes=_LEGACY_REDUCES, reduce_ops=_NAMED, group_size_ignored=True),
    Op(
        _L + "all_reduce_coalesced",
        "all_reduce",
        {"input": "self[i]", "output": "outputs[i]"},
        attributes=_LEGACY_REDUCES,
        reduce_ops=_NAMED,
        group_size_ignored=True,
    ),
    Op(
        _L + "broadcast",
        "broadcast",
        _SELF,
        attributes={"root": "src", "group_size": "group_size"},
        group_size_ignored=True,
    ),
    Op(
        _L + "all_gather_into_tensor",
        "all_gather_into_tensor",
        {"input": "shard", "output": "output"},
        forms=_GATHERED,
        attributes=_SIZED,
    ),
    Op(
        _L + "all_gather_into_tensor_coalesced",
        "all_gather_into_tensor",
        {"input": "input[i]", "output": "outputs[i]"},
        forms=_GATHERED,
        attributes=_SIZED,
    ),
    Op(_L + "reduce_scatter_tensor", "reduce_scatter_tensor", _ONE, attributes=_LEGACY_REDUCES, reduce_ops=_NAMED),
    Op(
        _L + "reduce_scatter_tensor_coalesced",
        "reduce_scatter_tensor",
        _LIST,
        attributes=_LEGACY_REDUCES,
        reduce_ops=_NAMED,
    ),
    Op(
        _L + "all_to_all_single",
        "all_to_all_single",
        _ONE,
        forms=("split",),
        attributes=_SIZED,
        splits=_SPLITS,
        requirements=(sizes.both_splits_or_neither,),
    ),
    Op(
        _L + "isend",
        "send",
        {"input": "self"},
        attributes={"peer": "dst", "tag": "tag"},
        returns="empty",
        layouts={"self": DENSE},
    ),
    Op(
        _L + "irecv",
        "recv",
        {"output": "self"},
        attributes={"peer": "src", "tag": "tag"},
        returns="self",
        layouts={"self": DENSE},
    ),
    Op(
        _L + "batch_p2p_ops",
        "batch_p2p",
        {"inputs": "tensors[i]", "outputs": "tensors[i]"},
        returns="empty",
        batch=Batch("op_list", {"isend": _F + "isend", "irecv": _F + "irecv"}, "peer_list", "tag_list", "tensors"),
        layouts={"tensors": DENSE},
    ),
    Op(_L + "wait_tensor", "wait", {"input": "self"}, returns="self"),
    Op(
        "_dtensor::shard_dim_alltoall",
        "shard_dim_alltoall",
        _ONE,
        attributes={"gather_dim": "gather_dim", "shard_dim": "shard_dim"},
        done=True,
    ),
)
