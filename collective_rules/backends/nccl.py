"""What NCCL takes, as torch reaches it: read in the sources, and not run. Rows only.

A limit that torch or NCCL checks raises an error on the rank that goes beyond it; the other ranks hang until the
watchdog ends them. What neither checks is transferred as raw memory: those rows follow with a corrupted result.
"""

from __future__ import annotations

import torch

from collective_rules.backends.limit import CORRUPTS, RAISES, BackendTable, Limit
from collective_rules.backends.matching import Matching
from collective_rules.ops.op import CONTIGUOUS, DENSE, FLAT, FORMAT, NEVER, OWN

_FP8 = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
_FNUZ = frozenset({torch.float8_e4m3fnuz, torch.float8_e5m2fnuz})
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_INTS = frozenset({torch.int8, torch.uint8, torch.int32, torch.int64})
_BOOL = frozenset({torch.bool})
_COMPLEX = frozenset({torch.complex32, torch.complex64, torch.complex128})
_REAL = _FLOATS | _INTS | _BOOL | _FP8 | _FNUZ
_REFUSED = frozenset({torch.int16, torch.uint16, torch.uint32, torch.uint64, torch.float8_e8m0fnu})
_ANY = _REAL | _COMPLEX | _REFUSED
"""Limits on how a dtype is reduced let those pass that NCCL1, NCCL2 or NCCL3 refuses."""

_F, _A, _L = "_c10d_functional::", "_c10d_functional_autograd::", "c10d_functional::"
_ALL = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "_dtensor")
_WAITS = (_F + "wait_tensor", _F + "wait_tensors", _L + "wait_tensor")
_UNKNOWN = ("c10d::gather_into_tensor_",)  # newer than the sources that were read

_REDUCE_SCATTERS = (
    "c10d::reduce_scatter_",
    "c10d::_reduce_scatter_base_",
    "c10d::reduce_scatter_tensor_coalesced_",
    _F + "reduce_scatter_tensor_coalesced",
    _L + "reduce_scatter_tensor_coalesced",
)
_REDUCE_SCATTERS_BY_PARTS = (
    _F + "reduce_scatter_tensor",
    _F + "reduce_scatter_tensor_out",
    _A + "reduce_scatter_tensor",
    _L + "reduce_scatter_tensor",
)
_VIEWED_AS_REAL = (
    "c10d::allreduce_",
    "c10d::broadcast_",
    "c10d::reduce_",
    _F + "all_reduce",
    _F + "all_reduce_",
    _F + "broadcast",
    _F + "broadcast_",
    _F + "all_gather_into_tensor",
    _A + "all_gather_into_tensor",
    _L + "all_reduce",
    _L + "broadcast",
    _L + "all_gather_into_tensor",
    "_dtensor::shard_dim_alltoall",
)
_ALL_REDUCES = (
    "c10d::allreduce_",
    "c10d::allreduce_coalesced_",
    _F + "all_reduce",
    _F + "all_reduce_",
    _F + "all_reduce_coalesced",
    _F + "all_reduce_coalesced_",
    _L + "all_reduce",
    _L + "all_reduce_coalesced",
)
_COALESCED_ALL_REDUCES = tuple(op for op in _ALL_REDUCES if "coalesced" in op)

_NO_BITS = dict.fromkeys(("band", "bor", "bxor"), frozenset[torch.dtype]())
_SUMS = {
    "sum": _ANY,
    "avg": _ANY - _BOOL,
    "product": _ANY - _COMPLEX,
    "min": _ANY - _COMPLEX,
    "max": _ANY - _COMPLEX,
    "premul_sum": _ANY - _BOOL - _INTS - _FP8 - _FNUZ,
    **_NO_BITS,
}
_NO_FNUZ = {name: dtypes - _FNUZ for name, dtypes in _SUMS.items()}
_BY_PARTS = {**_NO_FNUZ, **dict.fromkeys(("product", "min", "max"), _ANY - _FNUZ)}

NCCL = BackendTable(
    name="nccl",
    source="torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp, torch/csrc/cuda/nccl.cpp; NCCL's enqueue.cc and guide",
    verified="read in the sources of torch 2.13.0 and NCCL 2.30.7; not run",
    matching=Matching(
        tags=False,
        alike=(("all_gather", "all_gather_into_tensor"), ("reduce_scatter", "reduce_scatter_tensor")),
        one_form=("all_gather", "reduce_scatter"),
        joins=True,
        one_stream=True,
    ),
    limits=(
        Limit(
            "NCCL1",
            "int8, uint8, int32, int64, float16, bfloat16, float32, float64, bool, and as bytes or natively the four "
            "float8_e4m3 and float8_e5m2 dtypes; no complex one in these ops",
            "Convert to one of these dtypes; a complex tensor travels as torch.view_as_real(...).",
            namespaces=_ALL,
            but=(*_VIEWED_AS_REAL, *_REDUCE_SCATTERS, *_REDUCE_SCATTERS_BY_PARTS, *_WAITS, *_UNKNOWN),
            dtypes=_REAL,
            follows=RAISES,
        ),
        Limit(
            "NCCL2",
            "as NCCL1; in a group of one nothing is looked at",
            "Convert to one of these dtypes, or reduce torch.view_as_real(...).",
            ops=_REDUCE_SCATTERS,
            dtypes=_REAL,
            from_size=2,
            follows=RAISES,
        ),
        Limit(
            "NCCL3",
            "as NCCL1, and complex dtypes, which travel as their real and imaginary parts",
            "Convert to one of these dtypes, for instance with .view(torch.uint8) where nothing is reduced.",
            ops=_VIEWED_AS_REAL,
            dtypes=_REAL | _COMPLEX,
            follows=RAISES,
        ),
        Limit(
            "NCCL4",
            "as NCCL3; in a group of one nothing is looked at",
            "Convert to one of these dtypes.",
            ops=_REDUCE_SCATTERS_BY_PARTS,
            dtypes=_REAL | _COMPLEX,
            from_size=2,
            follows=RAISES,
        ),
        Limit(
            "NCCL5",
            "sum of any dtype but float8_e4m3fnuz and float8_e5m2fnuz, avg of those but bool, product, min and max of "
            "real ones; premul_sum of floating and complex ones; band, bor and bxor of none",
            "Reduce in another dtype, or with another op (a bitwise op of bool: max or min).",
            ops=_ALL_REDUCES,
            reduces=_NO_FNUZ,
            follows=RAISES,
        ),
        Limit(
            "NCCL6",
            "as NCCL5; in a group of one nothing is looked at",
            "Reduce in another dtype, or with another op (a bitwise op of bool: max or min).",
            ops=_REDUCE_SCATTERS,
            reduces=_NO_FNUZ,
            from_size=2,
            follows=RAISES,
        ),
        Limit(
            "NCCL7",
            "as NCCL6, but for product, min and max of complex tensors, which see NCCL11",
            "Reduce in another dtype, or with another op (a bitwise op of bool: max or min).",
            ops=_REDUCE_SCATTERS_BY_PARTS,
            reduces=_BY_PARTS,
            from_size=2,
            follows=RAISES,
        ),
        Limit(
            "NCCL8",
            "as NCCL5, but for float8_e4m3fnuz and float8_e5m2fnuz, which see NCCL12",
            "Reduce in another dtype, or with another op (a bitwise op of bool: max or min).",
            ops=("c10d::reduce_",),
            reduces=_SUMS,
            follows=RAISES,
        ),
        Limit(
            "NCCL9",
            "premul_sum of float16, float32 and float64: of a factor for bfloat16 the wrong two bytes are read",
            "Multiply first, then reduce with sum.",
            ops=(*_ALL_REDUCES, "c10d::reduce_"),
            reduces={"premul_sum": _ANY - {torch.bfloat16}},
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL10",
            "as NCCL9",
            "Multiply first, then reduce with sum.",
            ops=_REDUCE_SCATTERS,
            reduces={"premul_sum": _ANY - {torch.bfloat16}},
            from_size=2,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL11",
            "product, min and max of real tensors: of complex ones, the real and imaginary parts are reduced apart",
            "Reduce with sum or avg, or reduce torch.view_as_real(...) where that is meant.",
            ops=_REDUCE_SCATTERS_BY_PARTS,
            reduces=dict.fromkeys(("product", "min", "max"), _ANY - _COMPLEX),
            from_size=2,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL12",
            "no float8_e4m3fnuz and float8_e5m2fnuz: their bytes are reduced as uint8",
            "Reduce in another dtype.",
            ops=("c10d::reduce_",),
            reduces=dict.fromkeys(("sum", "avg", "product", "min", "max"), _ANY - _FNUZ),
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL13",
            "float8_e4m3fn and float8_e5m2 are reduced from NCCL 2.24 and compute capability 9.0 on",
            "Reduce in another dtype, or say which they are: cr.Backend('nccl', version=..., compute_capability=...).",
            ops=(*_ALL_REDUCES, "c10d::reduce_"),
            reduces=dict.fromkeys(("sum", "avg", "product", "min", "max"), _ANY - _FP8),
            before={"version": (2, 24), "compute_capability": (9, 0)},
            follows=RAISES,
        ),
        Limit(
            "NCCL14",
            "as NCCL13",
            "Reduce in another dtype, or say which they are: cr.Backend('nccl', version=..., compute_capability=...).",
            ops=(*_REDUCE_SCATTERS, *_REDUCE_SCATTERS_BY_PARTS),
            reduces=dict.fromkeys(("sum", "avg", "product", "min", "max"), _ANY - _FP8),
            from_size=2,
            before={"version": (2, 24), "compute_capability": (9, 0)},
            follows=RAISES,
        ),
        Limit(
            "NCCL15",
            "in a group of one the output is a copy of the input: the factor of premul_sum is not applied",
            "Multiply first, then reduce with sum.",
            ops=_REDUCE_SCATTERS,
            reduces={"premul_sum": frozenset[torch.dtype]()},
            to_size=1,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL16",
            "contiguous or channels_last tensors, also in a group of one",
            "Call .contiguous() first, and copy the result back for an in-place op.",
            ops=("c10d::allreduce_", "c10d::broadcast_", "c10d::reduce_", _F + "all_reduce_", _F + "broadcast_"),
            layouts={"input": FORMAT},
            follows=RAISES,
        ),
        Limit(
            "NCCL17",
            "contiguous or channels_last inputs",
            "Call .contiguous() first.",
            ops=("c10d::allgather_", "c10d::gather_"),
            layouts={"input": FORMAT},
            follows=RAISES,
        ),
        Limit(
            "NCCL18",
            "contiguous or channels_last tensors on both sides",
            "Call .contiguous() first, and copy the result back.",
            ops=("c10d::_allgather_base_", "c10d::alltoall_"),
            layouts={"input": FORMAT, "output": FORMAT, "inputs": FORMAT, "outputs": FORMAT},
            follows=RAISES,
        ),
        Limit(
            "NCCL19",
            "contiguous or channels_last outputs",
            "Write to a contiguous tensor, and copy the result back.",
            ops=("c10d::reduce_scatter_", _F + "all_gather_into_tensor_out"),
            layouts={"output": FORMAT},
            follows=RAISES,
        ),
        Limit(
            "NCCL20",
            "dense tensors",
            "Call .contiguous() first, and copy the results back.",
            ops=("c10d::allreduce_coalesced_", _F + "all_reduce_coalesced_"),
            layouts={"input": DENSE},
            follows=RAISES,
        ),
        Limit(
            "NCCL21",
            "dense tensors, whose memory is transferred as it is: nothing looks at their layouts",
            "Call .contiguous() first, and copy the results back.",
            ops=("c10d::allgather_into_tensor_coalesced_",),
            layouts={"input": DENSE, "output": DENSE},
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL22",
            "as NCCL21; in a group of one the tensors are copied",
            "Call .contiguous() first, and copy the results back.",
            ops=("c10d::_reduce_scatter_base_", "c10d::reduce_scatter_tensor_coalesced_"),
            layouts={"input": DENSE, "output": DENSE},
            from_size=2,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL23",
            "in a group of one, outputs that .flatten() views: of another a copy is written",
            "Write to a contiguous tensor, and copy the result back.",
            ops=(
                "c10d::_reduce_scatter_base_",
                "c10d::reduce_scatter_tensor_coalesced_",
                _F + "reduce_scatter_tensor_out",
            ),
            layouts={"output": FLAT},
            to_size=1,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL24",
            "a contiguous output: the input is made contiguous, and the output's layout is not looked at",
            "Write to a contiguous tensor, and copy the result back.",
            ops=(_F + "reduce_scatter_tensor_out",),
            layouts={"output": CONTIGUOUS},
            from_size=2,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL25",
            "a contiguous output: the input is made contiguous, and a channels_last output holds the elements permuted",
            "Write to a contiguous tensor, and copy the result back.",
            ops=(_F + "all_gather_into_tensor_out",),
            layouts={"output": CONTIGUOUS},
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL26",
            "a contiguous output where all inputs have one shape: a channels_last one is never written",
            "Write to a contiguous tensor, and copy the result back.",
            ops=("c10d::reduce_scatter_",),
            layouts={"output": CONTIGUOUS},
            in_forms=("even",),
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL27",
            "dense tensors, but for what the root exchanges with itself: nothing looks at their layouts",
            "Gather into contiguous tensors, and copy the results back.",
            ops=("c10d::gather_",),
            layouts={"outputs": DENSE},
            spares_own=True,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL28",
            "dense outputs where they differ in shape: nothing looks at their layouts",
            "Gather into contiguous tensors, and copy the results back.",
            ops=("c10d::allgather_",),
            layouts={"outputs": DENSE},
            in_forms=("uneven",),
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL29",
            "dense inputs where they differ in shape: nothing looks at their layouts",
            "Call .contiguous() first.",
            ops=("c10d::reduce_scatter_",),
            layouts={"inputs": DENSE},
            in_forms=("uneven",),
            from_size=2,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL30",
            "tensors in one order of dims: formats are looked at one by one, if at all, and memory travels as it is",
            "Call .contiguous() on both sides, and on every rank.",
            ops=("c10d::_allgather_base_", "c10d::allgather_into_tensor_coalesced_", "c10d::alltoall_"),
            ordered=("input", "output", "inputs", "outputs"),
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL31",
            "as NCCL30; in a group of one the tensors are copied",
            "Call .contiguous() on both sides, and on every rank.",
            ops=("c10d::_reduce_scatter_base_", "c10d::reduce_scatter_tensor_coalesced_"),
            ordered=("input", "output"),
            from_size=2,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL32",
            "as NCCL30, where the tensors differ in shape",
            "Call .contiguous() on both sides, and on every rank.",
            ops=("c10d::allgather_", "c10d::reduce_scatter_"),
            ordered=("input", "output", "inputs", "outputs"),
            in_forms=("uneven",),
            from_size=2,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL33",
            "as NCCL30, but for what the root exchanges with itself",
            "Call .contiguous() on both sides, and on every rank.",
            ops=("c10d::gather_",),
            ordered=("input", "outputs"),
            from_size=2,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL34",
            "tensors in one order of dims on every rank: nothing compares them",
            "Call .contiguous() on every rank.",
            ops=("c10d::allreduce_coalesced_", _F + "all_reduce_coalesced_"),
            ordered=("input",),
            from_size=2,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL35",
            "one tensor in a list",
            "Call the op once for each tensor.",
            ops=("c10d::allreduce_", "c10d::broadcast_"),
            most_tensors=1,
            follows=RAISES,
        ),
        Limit(
            "NCCL36",
            "none of these ops",
            "Gather each tensor of the list; name the source of a message; use barrier.",
            ops=("c10d::allgather_coalesced_", "c10d::recv_any_source_", "c10d::monitored_barrier_"),
            missing=True,
            follows=RAISES,
        ),
        Limit(
            "NCCL37",
            "no sparse tensors",
            "Convert with .to_dense() first.",
            ops=("c10d::allreduce_",),
            sparse_reduces=(),
            follows=RAISES,
        ),
        Limit(
            "NCCL38",
            "lists of one dtype",
            "Call the op once for each dtype.",
            ops=_COALESCED_ALL_REDUCES,
            one_dtype=True,
            follows=RAISES,
        ),
        Limit(
            "NCCL39",
            "equal shapes, where the rule is content with equally many elements",
            "Reshape one side with .view(...).",
            ops=("c10d::gather_", "c10d::scatter_"),
            exact=True,
            follows=RAISES,
        ),
        Limit(
            "NCCL40",
            "CUDA tensors",
            "Move the tensors to a GPU, or make a group with a backend for their device.",
            namespaces=_ALL,
            but=(*_WAITS, *_UNKNOWN),
            devices=("cuda",),
            follows=RAISES,
        ),
        Limit(
            "NCCL41",
            "in place, this rank's own piece alone: no other memory that is read may be written",
            "Write to a fresh tensor, for instance torch.empty_like(...).",
            ops=(
                "c10d::_allgather_base_",
                "c10d::allgather_into_tensor_coalesced_",
                "c10d::gather_",
                _F + "all_gather_into_tensor_out",
            ),
            overlap=OWN,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL42",
            "as NCCL41; in a group of one the tensors are copied",
            "Write to a fresh tensor, for instance torch.empty_like(...).",
            ops=(
                "c10d::_reduce_scatter_base_",
                "c10d::reduce_scatter_tensor_coalesced_",
                _F + "reduce_scatter_tensor_out",
            ),
            overlap=OWN,
            from_size=2,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL43",
            "as NCCL41, where the tensors differ in shape; those of one shape are copied first",
            "Write to a fresh tensor, for instance torch.empty_like(...).",
            ops=("c10d::allgather_", "c10d::reduce_scatter_"),
            overlap=OWN,
            in_forms=("uneven",),
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL44",
            "tensors that share no memory",
            "Write to fresh tensors, for instance torch.empty_like(...).",
            ops=("c10d::alltoall_", "c10d::allreduce_coalesced_", _F + "all_reduce_coalesced_"),
            overlap=NEVER,
            follows=CORRUPTS,
        ),
        Limit(
            "NCCL45",
            "contiguous tensors, but for what the root exchanges with itself: memory travels as it is, and nothing "
            "compares the layouts of the root and the receivers",
            "Call .contiguous() first, and copy what was received.",
            ops=("c10d::scatter_",),
            layouts={"inputs": CONTIGUOUS, "output": CONTIGUOUS},
            spares_own=True,
            follows=CORRUPTS,
        ),
    ),
)
