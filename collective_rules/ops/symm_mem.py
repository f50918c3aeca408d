"""The op table: `symm_mem::*`, collectives on symmetric memory. Rows only.

Few have a Meta kernel and none a CPU one, so these rows are the only source of their sizes. Sources:
torch/distributed/_symmetric_memory/__init__.py and torch/csrc/distributed/c10d/symm_mem/*.{cu,cpp}. What a size cannot
tell (that a tensor lies in symmetric memory, alignment, multicast hardware) is not stated here. put and get have no
group argument, or a SymmetricMemory handle. Schema annotations that mislead: `(a!)` on the input of
`reduce_scatter_out` and of the puts (only read), none on `symm_buffer` of `one_shot_all_reduce_copy` (written).

The kernels run on the caller's stream, and the fused products wait before they return: `done`. Only the
`_low_contention` ops register a Work for their result, on which the program has to wait.
"""

from __future__ import annotations

from functools import partial

import torch

from collective_rules.ops.op import CONTIGUOUS, Op, SplitSizes
from collective_rules.rules import size_functions as sizes

_S = "symm_mem::"
_ONE = {"input": "input", "output": "output"}
_OUT = {"input": "input", "output": "out"}
_IN_PLACE = {"input": "input", "output": "input"}
_TENSOR = {"input": "tensor", "output": "output"}
_COPIED = {"input": "local_input", "buffer": "symm_buffer"}
_WEIGHTED = {"input": "A", "weights": "Bs[i]", "output": "output", "outputs": "outputs[i]"}
_VDEV = {"input": "input", "output": "out", "out_splits": "out_splits_offsets"}

_REDUCES = {"reduce_op": "reduce_op"}
_REDUCES_TO_ROOT = {"reduce_op": "reduce_op", "root": "root"}
_SUM, _SUM_AVG = ("sum",), ("sum", "avg")
_HALF_OR_SINGLE = (torch.float32, torch.bfloat16)
_NV_FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_IN = {"input": CONTIGUOUS}
_IN_AND_OUT = {"input": CONTIGUOUS, "out": CONTIGUOUS}
_IN_AND_OUTPUT = {"input": CONTIGUOUS, "output": CONTIGUOUS}
_COPIED_LAYOUTS = {"local_input": CONTIGUOUS, "symm_buffer": CONTIGUOUS}
_VDEV_LAYOUTS = {"input": CONTIGUOUS, "out": CONTIGUOUS, "out_splits_offsets": CONTIGUOUS}
_OUTERMOST = {"output": sizes.gather_dim_outermost, "outputs": sizes.gather_dim_outermost}

# What several ops have in common.
_summed = partial(
    Op, rule="all_reduce", attributes=_REDUCES, reduce_ops=_SUM, layouts=_IN, kernel_dtypes=_HALF_OR_SINGLE, done=True
)
_summed_out = partial(_summed, parts=_OUT, layouts=_IN_AND_OUT, exact=True)
_tile = partial(Op, everywhere=True, reduce_ops=_SUM, kernel_dtypes=_NV_FLOATS)
_vdev = partial(
    Op,
    rule="all_to_all_vdev",
    parts={**_VDEV, "in_splits": "in_splits"},
    layouts={**_VDEV_LAYOUTS, "in_splits": CONTIGUOUS},
)
_gathered_product = partial(
    Op,
    rule="all_gather_matmul",
    parts=_WEIGHTED,
    attributes={"gather_dim": "gather_dim"},
    strides=_OUTERMOST,
    done=True,
)
_scattered_product = partial(
    Op,
    rule="matmul_reduce_scatter",
    parts={"input": "A", "weight": "B", "output": "output"},
    reduce_ops=_SUM_AVG,
    done=True,
)
_put = partial(Op, rule="put", parts={"input": "tensor"}, attributes={"peer": "peer"}, layouts={"tensor": CONTIGUOUS})
_get = partial(Op, rule="get", parts={"output": "tensor"}, attributes={"peer": "peer"}, layouts={"tensor": CONTIGUOUS})
_get_out = partial(
    _get,
    parts={"output": "dst"},
    layouts={"dst": CONTIGUOUS},
    elements="size",
    requirements=(sizes.room_for_size,),
    since="2.14",
)
_gathered = partial(Op, rule="all_gather_into_tensor", forms=("concatenated", "scalar"), since="2.14")

SYMM_MEM = (
    _summed(_S + "one_shot_all_reduce", parts=_ONE),
    _summed_out(_S + "one_shot_all_reduce_out"),
    _summed(
        _S + "one_shot_all_reduce_copy",
        parts={**_COPIED, "output": "output"},
        forms=("copied",),
        layouts=_COPIED_LAYOUTS,
        exact=True,
    ),
    _summed(
        _S + "one_shot_all_reduce_copy_out",
        parts={**_COPIED, "output": "out"},
        forms=("copied",),
        layouts={**_COPIED_LAYOUTS, "out": CONTIGUOUS},
        requirements=(sizes.buffer_like_output,),
    ),
    _summed(_S + "two_shot_all_reduce_", parts=_IN_PLACE),
    _summed(
        _S + "two_shot_all_reduce_out",
        parts=_ONE,
        scratch=("input",),
        layouts=_IN_AND_OUTPUT,
        exact=True,
        requirements=(sizes.two_four_or_eight_ranks,),
    ),
    _summed(_S + "multimem_all_reduce_", parts=_IN_PLACE),
    _summed(_S + "multimem_one_shot_all_reduce", parts=_ONE),
    _summed_out(_S + "multimem_one_shot_all_reduce_out"),
    _summed_out(_S + "multimem_one_shot_reduce_out", rule="reduce", attributes=_REDUCES_TO_ROOT),
    _tile(
        _S + "tile_reduce",
        "reduce",
        {"input": "in_tile", "output": "out_tile"},
        attributes=_REDUCES_TO_ROOT,
        exact=True,
        requirements=(sizes.matrix,),
    ),
    _tile(
        _S + "multi_root_tile_reduce",
        "reduce_to_roots",
        {"inputs": "in_tiles[i]", "output": "out_tile"},
        attributes={"reduce_op": "reduce_op", "roots": "roots"},
        requirements=(sizes.one_root_each,),
    ),
    Op(_S + "multimem_all_gather_out", "all_gather_into_tensor", _OUT, layouts=_IN_AND_OUT),
    Op(_S + "_low_contention_all_gather", "all_gather_into_tensor", _TENSOR),
    _gathered(
        _S + "_low_contention_all_gather_ce_multicast",
        parts=_TENSOR,
        schema="symm_mem::_low_contention_all_gather_ce_multicast(Tensor tensor, str group_name) -> Tensor",
    ),
    _gathered(
        _S + "_low_contention_all_gather_ce_multicast_out",
        parts={"input": "tensor", "output": "out"},
        layouts={"out": CONTIGUOUS},
        schema="symm_mem::_low_contention_all_gather_ce_multicast_out(Tensor tensor, str group_name, "
        "Tensor(a!) out) -> Tensor(a!)",
    ),
    Op(
        _S + "reduce_scatter_out",
        "reduce_scatter_tensor",
        _ONE,
        forms=("last_dim",),
        layouts=_IN_AND_OUTPUT,
        kernel_dtypes=_HALF_OR_SINGLE,
        requirements=(sizes.two_four_or_eight_ranks, sizes.one_dim_unless_split_last),
    ),
    Op(
        _S + "_low_contention_reduce_scatter",
        "reduce_scatter_tensor",
        _TENSOR,
        attributes=_REDUCES,
        promotes={"output": sizes.summed_dtype},
        reduce_ops=_SUM_AVG,
        requirements=(sizes.average_of_floats,),
    ),
    Op(
        _S + "nccl_reduce_scatter_offset",
        "reduce_scatter_blocks",
        {"input": "input", "outputs": "out[i]"},
        attributes={"reduce_op": "red_op", "dim": "dim", "offsets": "offsets", "dst_ranks": "dst_ranks"},
        layouts={"out": CONTIGUOUS},
        reduce_ops=_SUM,
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
        layouts=_IN_AND_OUT,
        exact=True,
        since="2.14",
        schema="symm_mem::nccl_all_to_all_nd(Tensor input, Tensor(a!) out, int scatter_dim, int gather_dim, "
        "str group_name) -> ()",
    ),
    _vdev(_S + "all_to_all_vdev", forms=("ranks",)),
    _vdev(_S + "all_to_all_vdev_2d", forms=("experts",)),
    _vdev(
        _S + "all_to_all_vdev_2d_offset",
        parts={**_VDEV, "in_splits": "in_splits_offsets"},
        forms=("offsets",),
        layouts={**_VDEV_LAYOUTS, "in_splits_offsets": CONTIGUOUS},
    ),
    Op(_S + "nvshmem_broadcast", "broadcast", _IN_PLACE, attributes={"root": "root"}, layouts=_IN),
    Op(
        _S + "get_remote_tensors",
        "view_peers",
        {"input": "x", "outputs": "outputs[p]"},
        own={"outputs": "x"},
        done=True,
    ),
    _gathered_product(_S + "fused_all_gather_matmul", omits={"output": "return_A"}),
    _gathered_product(
        _S + "fused_all_gather_scaled_matmul",
        dtypes={"outputs": "out_dtypes"},
        also_reads=("A_scale", "B_scales", "biases", "result_scales"),
        row_scales={"A": "A_scale"},
        requirements=(sizes.gather_dim_not_last, sizes.one_option_for_each_weight, sizes.gathered_scale),
    ),
    _scattered_product(
        _S + "fused_matmul_reduce_scatter", attributes={"reduce_op": "reduce_op", "scatter_dim": "scatter_dim"}
    ),
    _scattered_product(
        _S + "fused_scaled_matmul_reduce_scatter",
        forms=("reshaped",),
        attributes={"reduce_op": "reduce_op", "scatter_dim": "orig_scatter_dim"},
        dtypes={"output": "out_dtype"},
        also_reads=("A_scale", "B_scale", "bias", "result_scale"),
        requirements=(sizes.scatter_dims_not_last, sizes.row_or_tensor_scale),
    ),
    _put(_S + "nvshmem_put"),
    _put(_S + "nccl_put"),
    _put(_S + "nvshmem_put_with_signal", also_reads=("sigpad",)),
    _put(_S + "nccl_put_with_signal"),
    _put(_S + "nccl_put_signal", parts={"input": "src"}, layouts={"src": CONTIGUOUS}),
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
    _get(_S + "nvshmem_get"),
    _get(_S + "nccl_get"),
    _get_out(
        _S + "nvshmem_get_out",
        schema="symm_mem::nvshmem_get_out(Tensor(a!) dst, __torch__.torch.classes.c10d.SymmetricMemory hdl, "
        "int offset, int size, int peer) -> ()",
    ),
    _get_out(
        _S + "nccl_get_out",
        schema="symm_mem::nccl_get_out(Tensor(a!) dst, __torch__.torch.classes.c10d.SymmetricMemory hdl, "
        "int offset, int size, int peer) -> ()",
    ),
    Op(_S + "_barrier", "barrier", {}),
)
