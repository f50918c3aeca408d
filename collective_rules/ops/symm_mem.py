"""The op table: `symm_mem::*`, collectives on symmetric memory. Rows only.

Few have a Meta kernel and none a CPU one, so these rows are the only source of their sizes. Sources:
torch/distributed/_symmetric_memory/__init__.py and torch/csrc/distributed/c10d/symm_mem/*.{cu,cpp}. What a size cannot
tell (that a tensor lies in symmetric memory, alignment, multicast hardware) is not stated here. put and get have no
group argument, or a SymmetricMemory handle. Schema annotations that mislead: `(a!)` on the input of
`reduce_scatter_out` and of the puts (only read), none on `symm_buffer` of `one_shot_all_reduce_copy` (written).
"""

from __future__ import annotations

import torch

from collective_rules.ops.op import CONTIGUOUS, Op, SplitSizes
from collective_rules.rules import size_functions as sizes

__all__ = ["SYMM_MEM"]

_S = "symm_mem::"
_ONE = {"input": "input", "output": "output"}
_OUT = {"input": "input", "output": "out"}
_IN_PLACE = {"input": "input", "output": "input"}
_REDUCES = {"reduce_op": "reduce_op"}
_SUM = ("sum",)
_HALF_OR_SINGLE = (torch.float32, torch.bfloat16)
_NV_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_SUM_AVG = ("sum", "avg")
_TENSOR_FORMS = ("concatenated", "stacked")
_IN = {"input": CONTIGUOUS}
_IN_AND_OUT = {"input": CONTIGUOUS, "out": CONTIGUOUS}
_IN_AND_OUTPUT = {"input": CONTIGUOUS, "output": CONTIGUOUS}
_TENSOR = {"tensor": CONTIGUOUS}
_VDEV = {"input": "input", "output": "out", "out_splits": "out_splits_offsets"}
_VDEV_LAYOUTS = {"input": CONTIGUOUS, "out": CONTIGUOUS, "out_splits_offsets": CONTIGUOUS}

SYMM_MEM = (
    Op(
        _S + "one_shot_all_reduce",
        "all_reduce",
        _ONE,
        attributes=_REDUCES,
        reduce_ops=_SUM,
        layouts=_IN,
        kernel_dtypes=_HALF_OR_SINGLE,
    ),
    Op(
        _S + "one_shot_all_reduce_out",
        "all_reduce",
        _OUT,
        attributes=_REDUCES,
        reduce_ops=_SUM,
        layouts=_IN_AND_OUT,
        exact=True,
        kernel_dtypes=_HALF_OR_SINGLE,
    ),
    Op(
        _S + "one_shot_all_reduce_copy",
        "all_reduce",
        {"input": "local_input", "buffer": "symm_buffer", "output": "output"},
        forms=("copied",),
        attributes=_REDUCES,
        reduce_ops=_SUM,
        layouts={"local_input": CONTIGUOUS, "symm_buffer": CONTIGUOUS},
        kernel_dtypes=_HALF_OR_SINGLE,
        exact=True,
    ),
    Op(
        _S + "one_shot_all_reduce_copy_out",
        "all_reduce",
        {"input": "local_input", "buffer": "symm_buffer", "output": "out"},
        forms=("copied",),
        attributes=_REDUCES,
        reduce_ops=_SUM,
        layouts={"local_input": CONTIGUOUS, "symm_buffer": CONTIGUOUS, "out": CONTIGUOUS},
        requirements=(sizes.buffer_like_output,),
        kernel_dtypes=_HALF_OR_SINGLE,
    ),
    Op(
        _S + "two_shot_all_reduce_",
        "all_reduce",
        _IN_PLACE,
        attributes=_REDUCES,
        reduce_ops=_SUM,
        layouts=_IN,
        kernel_dtypes=_HALF_OR_SINGLE,
    ),
    Op(
        _S + "two_shot_all_reduce_out",
        "all_reduce",
        {"input": "input", "output": "output"},
        attributes=_REDUCES,
        reduce_ops=_SUM,
        scratch=("input",),
        layouts=_IN_AND_OUTPUT,
        kernel_dtypes=_HALF_OR_SINGLE,
        exact=True,
        requirements=(sizes.two_four_or_eight_ranks,),
    ),
    Op(
        _S + "multimem_all_reduce_",
        "all_reduce",
        _IN_PLACE,
        attributes=_REDUCES,
        reduce_ops=_SUM,
        layouts=_IN,
        kernel_dtypes=_HALF_OR_SINGLE,
    ),
    Op(
        _S + "multimem_one_shot_all_reduce",
        "all_reduce",
        _ONE,
        attributes=_REDUCES,
        reduce_ops=_SUM,
        layouts=_IN,
        kernel_dtypes=_HALF_OR_SINGLE,
    ),
    Op(
        _S + "multimem_one_shot_all_reduce_out",
        "all_reduce",
        _OUT,
        attributes=_REDUCES,
        reduce_ops=_SUM,
        layouts=_IN_AND_OUT,
        kernel_dtypes=_HALF_OR_SINGLE,
        exact=True,
    ),
    Op(
        _S + "multimem_one_shot_reduce_out",
        "reduce",
        _OUT,
        attributes={"reduce_op": "reduce_op", "root": "root"},
        reduce_ops=_SUM,
        layouts=_IN_AND_OUT,
        kernel_dtypes=_HALF_OR_SINGLE,
        exact=True,
    ),
    Op(
        _S + "tile_reduce",
        "reduce",
        {"input": "in_tile", "output": "out_tile"},
        attributes={"reduce_op": "reduce_op", "root": "root"},
        reduce_ops=_SUM,
        requirements=(sizes.matrix,),
        kernel_dtypes=_NV_FLOATS,
        exact=True,
        everywhere=True,
    ),
    Op(
        _S + "multi_root_tile_reduce",
        "reduce_to_roots",
        {"inputs": "in_tiles[i]", "output": "out_tile"},
        attributes={"reduce_op": "reduce_op", "roots": "roots"},
        reduce_ops=_SUM,
        requirements=(sizes.one_root_each,),
        everywhere=True,
        kernel_dtypes=_NV_FLOATS,
    ),
    Op(
        _S + "multimem_all_gather_out",
        "all_gather_into_tensor",
        _OUT,
        layouts=_IN_AND_OUT,
    ),
    Op(
        _S + "_low_contention_all_gather",
        "all_gather_into_tensor",
        {"input": "tensor", "output": "output"},
    ),
    Op(
        _S + "_low_contention_all_gather_ce_multicast",
        "all_gather_into_tensor",
        {"input": "tensor", "output": "output"},
        forms=("concatenated", "scalar"),
        since="2.14",
        schema="symm_mem::_low_contention_all_gather_ce_multicast(Tensor tensor, str group_name) -> Tensor",
    ),
    Op(
        _S + "_low_contention_all_gather_ce_multicast_out",
        "all_gather_into_tensor",
        {"input": "tensor", "output": "out"},
        forms=("concatenated", "scalar"),
        layouts={"out": CONTIGUOUS},
        since="2.14",
        schema="symm_mem::_low_contention_all_gather_ce_multicast_out(Tensor tensor, str group_name, "
        "Tensor(a!) out) -> Tensor(a!)",
    ),
    Op(
        _S + "reduce_scatter_out",
        "reduce_scatter_tensor",
        _ONE,
        forms=("last_dim",),
        layouts=_IN_AND_OUTPUT,
        requirements=(sizes.two_four_or_eight_ranks, sizes.one_dim_unless_split_last),
        kernel_dtypes=_HALF_OR_SINGLE,
    ),
    Op(
        _S + "_low_contention_reduce_scatter",
        "reduce_scatter_tensor",
        {"input": "tensor", "output": "output"},
        attributes=_REDUCES,
        reduce_ops=_SUM_AVG,
        requirements=(sizes.average_of_floats,),
        promotes={"output": sizes.summed_dtype},
    ),
    Op(
        _S + "nccl_reduce_scatter_offset",
        "reduce_scatter_blocks",
        {"input": "input", "outputs": "out[i]"},
        attributes={"reduce_op": "red_op", "dim": "dim", "offsets": "offsets", "dst_ranks": "dst_ranks"},
        reduce_ops=_SUM,
        layouts={"out": CONTIGUOUS},
        kernel_dtypes=_NV_FLOATS,
    ),
    Op(
        _S + "nvshmem_all_to_all",
        "all_to_all_single",
        _OUT,
        forms=("flat",),
        splits={"input": SplitSizes(None), "output": SplitSizes(None)},
        layouts=_IN_AND_OUT,
    ),
    Op(
        _S + "nccl_all_to_all_nd",
        "all_to_all_nd",
        _OUT,
        forms=("stacked", "concatenated"),
        attributes={"scatter_dim": "scatter_dim", "gather_dim": "gather_dim"},
        exact=True,
        layouts=_IN_AND_OUT,
        since="2.14",
        schema="symm_mem::nccl_all_to_all_nd(Tensor input, Tensor(a!) out, int scatter_dim, int gather_dim, "
        "str group_name) -> ()",
    ),
    Op(
        _S + "all_to_all_vdev",
        "all_to_all_vdev",
        {**_VDEV, "in_splits": "in_splits"},
        forms=("ranks",),
        layouts={**_VDEV_LAYOUTS, "in_splits": CONTIGUOUS},
    ),
    Op(
        _S + "all_to_all_vdev_2d",
        "all_to_all_vdev",
        {**_VDEV, "in_splits": "in_splits"},
        forms=("experts",),
        layouts={**_VDEV_LAYOUTS, "in_splits": CONTIGUOUS},
    ),
    Op(
        _S + "all_to_all_vdev_2d_offset",
        "all_to_all_vdev",
        {**_VDEV, "in_splits": "in_splits_offsets"},
        forms=("offsets",),
        layouts={**_VDEV_LAYOUTS, "in_splits_offsets": CONTIGUOUS},
    ),
    Op(
        _S + "nvshmem_broadcast",
        "broadcast",
        _IN_PLACE,
        attributes={"root": "root"},
        layouts=_IN,
    ),
    Op(
        _S + "get_remote_tensors",
        "view_peers",
        {"input": "x", "outputs": "outputs[p]"},
        own={"outputs": "x"},
    ),
    Op(
        _S + "fused_all_gather_matmul",
        "all_gather_matmul",
        {"input": "A", "weights": "Bs[i]", "output": "output", "outputs": "outputs[i]"},
        attributes={"gather_dim": "gather_dim"},
        strides={"output": sizes.gather_dim_outermost, "outputs": sizes.gather_dim_outermost},
        omits={"output": "return_A"},
    ),
    Op(
        _S + "fused_all_gather_scaled_matmul",
        "all_gather_matmul",
        {"input": "A", "weights": "Bs[i]", "output": "output", "outputs": "outputs[i]"},
        attributes={"gather_dim": "gather_dim"},
        also_reads=("A_scale", "B_scales", "biases", "result_scales"),
        row_scales={"A": "A_scale"},
        requirements=(sizes.gather_dim_not_last, sizes.one_option_for_each_weight, sizes.gathered_scale),
        dtypes={"outputs": "out_dtypes"},
        strides={"output": sizes.gather_dim_outermost, "outputs": sizes.gather_dim_outermost},
    ),
    Op(
        _S + "fused_matmul_reduce_scatter",
        "matmul_reduce_scatter",
        {"input": "A", "weight": "B", "output": "output"},
        attributes={"reduce_op": "reduce_op", "scatter_dim": "scatter_dim"},
        reduce_ops=_SUM_AVG,
    ),
    Op(
        _S + "fused_scaled_matmul_reduce_scatter",
        "matmul_reduce_scatter",
        {"input": "A", "weight": "B", "output": "output"},
        forms=("reshaped",),
        attributes={"reduce_op": "reduce_op", "scatter_dim": "orig_scatter_dim"},
        also_reads=("A_scale", "B_scale", "bias", "result_scale"),
        reduce_ops=_SUM_AVG,
        requirements=(sizes.scatter_dims_not_last, sizes.row_or_tensor_scale),
        dtypes={"output": "out_dtype"},
    ),
    Op(_S + "nvshmem_put", "put", {"input": "tensor"}, attributes={"peer": "peer"}, layouts=_TENSOR),
    Op(_S + "nccl_put", "put", {"input": "tensor"}, attributes={"peer": "peer"}, layouts=_TENSOR),
    Op(
        _S + "nvshmem_put_with_signal",
        "put",
        {"input": "tensor"},
        attributes={"peer": "peer"},
        also_reads=("sigpad",),
        layouts=_TENSOR,
    ),
    Op(_S + "nccl_put_with_signal", "put", {"input": "tensor"}, attributes={"peer": "peer"}, layouts=_TENSOR),
    Op(
        _S + "nccl_put_signal",
        "put",
        {"input": "src"},
        attributes={"peer": "peer"},
        layouts={"src": CONTIGUOUS},
    ),
    Op(
        _S + "memcpy_to_multicast_",
        "put",
        {"input": "src", "output": "symm_mem_out"},
        forms=("multicast",),
        layouts={"src": CONTIGUOUS},
        requirements=(sizes.byte_offset_not_negative,),
        since="2.14",
        schema="symm_mem::memcpy_to_multicast_(Tensor(a!) symm_mem_out, Tensor src, int byte_offset, "
        "str group_name) -> Tensor(a!)",
    ),
    Op(_S + "nvshmem_get", "get", {"output": "tensor"}, attributes={"peer": "peer"}, layouts=_TENSOR),
    Op(_S + "nccl_get", "get", {"output": "tensor"}, attributes={"peer": "peer"}, layouts=_TENSOR),
    Op(
        _S + "nvshmem_get_out",
        "get",
        {"output": "dst"},
        attributes={"peer": "peer"},
        layouts={"dst": CONTIGUOUS},
        elements="size",
        requirements=(sizes.room_for_size,),
        since="2.14",
        schema="symm_mem::nvshmem_get_out(Tensor(a!) dst, __torch__.torch.classes.c10d.SymmetricMemory hdl, "
        "int offset, int size, int peer) -> ()",
    ),
    Op(
        _S + "nccl_get_out",
        "get",
        {"output": "dst"},
        attributes={"peer": "peer"},
        layouts={"dst": CONTIGUOUS},
        elements="size",
        requirements=(sizes.room_for_size,),
        since="2.14",
        schema="symm_mem::nccl_get_out(Tensor(a!) dst, __torch__.torch.classes.c10d.SymmetricMemory hdl, "
        "int offset, int size, int peer) -> ()",
    ),
    Op(_S + "_barrier", "barrier", {}),
)
