"""The op table: `c10d::*`, the ops that torch.distributed's own functions dispatch. Rows only.

These ops declare no aliases: what they write is known from here alone. Those that return (tensors, Work) return the
written argument itself. Layouts: torch/csrc/distributed/c10d/ProcessGroupGloo.cpp and ProcessGroupNCCL.cpp hand the
memory of the arguments named below to the transport as it is.
"""

from __future__ import annotations

from functools import partial

from collective_rules.ops.op import DENSE, FORMAT, NEVER, ORDER, OWN, SENT, Op, SplitSizes

_LIST_IN_PLACE = {"input": "tensors[i]", "output": "tensors[i]"}
_BASE = {"input": "input_tensor", "output": "output_tensor"}
_COALESCED = {"input": "inputs[i]", "output": "outputs[i]"}
_TO_LIST = {"input": "input_tensors[1]", "outputs": "output_tensors[1][p]"}
_FROM_LIST = {"inputs": "input_tensors[1][p]", "output": "output_tensors[1]"}
_INTO_ONE = ("concatenated", "stacked")
_TENSOR_FORMS = (*_INTO_ONE, "reshaped")
_UNEVEN = ("even", "uneven")
_REDUCES = {"reduce_op": "reduce_op"}
_ROOT = {"root": "root_rank"}
_ROOT_TENSOR = {"root": "root_rank", "root_tensor": "root_tensor"}

_RAW = {"tensors": DENSE}

# What several ops have in common.
_in_place = partial(Op, parts=_LIST_IN_PLACE, one_tensor=True, layouts=_RAW, layouts_from=2)
_scattered = partial(Op, rule="reduce_scatter_tensor", forms=_TENSOR_FORMS, attributes=_REDUCES)
_received = partial(Op, rule="recv", parts={"output": "tensors[1]"}, layouts=_RAW)

C10D = (
    _in_place("c10d::allreduce_", "all_reduce", attributes=_REDUCES, sparse=("sparse_coo",)),
    Op("c10d::allreduce_coalesced_", "all_reduce", _LIST_IN_PLACE, attributes=_REDUCES),
    _in_place("c10d::broadcast_", "broadcast", attributes=_ROOT_TENSOR),
    _in_place(
        "c10d::reduce_",
        "reduce",
        parts={"input": "tensors[1]", "output": "tensors[1]"},
        attributes=_REDUCES | _ROOT_TENSOR,
        one_tensor=False,
        scratch=("tensors",),
    ),
    Op("c10d::allgather_", "all_gather", _TO_LIST, forms=_UNEVEN),
    Op(
        "c10d::allgather_coalesced_",
        "all_gather",
        {"input": "input_list[i]", "outputs": "output_lists[p][i]"},
        forms=_UNEVEN,
    ),
    Op(
        "c10d::_allgather_base_",
        "all_gather_into_tensor",
        _BASE,
        forms=(*_INTO_ONE, "row", "reshaped"),  # SyncBatchNorm gathers into a row, torch/nn/modules/_functions.py
    ),
    Op("c10d::allgather_into_tensor_coalesced_", "all_gather_into_tensor", _COALESCED, forms=_TENSOR_FORMS),
    Op(
        "c10d::reduce_scatter_",
        "reduce_scatter",
        _FROM_LIST,
        forms=_UNEVEN,
        attributes=_REDUCES,
        layouts={"output_tensors": DENSE},
        layouts_from=2,
    ),
    _scattered("c10d::_reduce_scatter_base_", parts=_BASE, layouts={"input_tensor": ORDER}),
    _scattered("c10d::reduce_scatter_tensor_coalesced_", parts=_COALESCED, layouts={"inputs": ORDER}),
    Op("c10d::gather_", "gather", _TO_LIST, attributes=_ROOT),
    Op(
        "c10d::gather_into_tensor_",
        "gather_into_tensor",
        _BASE,
        forms=_INTO_ONE,
        attributes=_ROOT,
        since="2.14",
        schema="c10d::gather_into_tensor_(Tensor output_tensor, Tensor input_tensor, "
        "__torch__.torch.classes.c10d.ProcessGroup process_group, int root_rank, bool async_op=True, "
        "int timeout=-1) -> (Tensor, __torch__.torch.classes.c10d.Work)",
    ),
    Op(
        "c10d::scatter_",
        "scatter",
        _FROM_LIST,
        attributes=_ROOT,
        layouts={"input_tensors": SENT, "output_tensors": SENT},
        overlap=OWN,
    ),
    Op("c10d::alltoall_", "all_to_all", {"inputs": "input_tensors[p]", "outputs": "output_tensors[p]"}, forms=_UNEVEN),
    Op(
        "c10d::alltoall_base_",
        "all_to_all_single",
        {"input": "input", "output": "output"},
        forms=("split", "rows", "flat"),
        splits={"input": SplitSizes("input_split_sizes"), "output": SplitSizes("output_split_sizes")},
        layouts={"input": FORMAT, "output": DENSE},
        overlap=NEVER,
    ),
    Op("c10d::send", "send", {"input": "tensors[1]"}, attributes={"peer": "dst", "tag": "tag"}, layouts=_RAW),
    _received("c10d::recv_", attributes={"peer": "src", "tag": "tag"}),
    _received("c10d::recv_any_source_", attributes={"tag": "tag"}),
    Op("c10d::barrier", "barrier", {}),
    # It is sends and receives, and meets no other barrier.
    Op("c10d::monitored_barrier_", "barrier", {}, meets="monitored_barrier", done=True),
)
