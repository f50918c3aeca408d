"""What HCCL takes, Ascend's backend for `npu` tensors: read in the sources, and not run. Rows only.

Habana's backend for `hpu` tensors has the same name. Nothing here is said of it: the limits hold for tensors on an npu.

The generation of an Ascend chip is its number: `cr.Backend("hccl", compute_capability=(950,))`.

Not looked into: the HCCL library itself, in place exchanges, messages to oneself, averages of integers (a sum, then a
division in place), and the compatible mode, in which lists travel as messages of raw memory. Not stated: that
reduce_scatter_ needs the first of its inputs to be contiguous where all have one shape; nor anything of lists of
several shapes, for which there are two ways, by the version of HCCL.
"""

from __future__ import annotations

import attrs
import torch

from collective_rules.backends.limit import CORRUPTS, OVERWRITES, RAISES, BackendTable, Limit
from collective_rules.backends.nccl import NCCL
from collective_rules.backends.op_names import (
    ALL_REDUCES,
    ANY_DTYPE,
    BOOL,
    BY_PARTS,
    FP8,
    INTS,
    NAMESPACES,
    NO_DTYPE,
    PLAIN,
    REAL_BEFORE,
    UNKNOWN,
    UNSIGNED,
    WAITS,
    F,
    L,
)
from collective_rules.finding import UNDECIDABLE, WARNING
from collective_rules.ops.op import CONTIGUOUS, DENSE, FORMAT

_DTYPES = PLAIN | UNSIGNED | FP8 | {torch.int16}
_COMPLEX = frozenset({torch.complex32, torch.complex64, torch.complex128})
_REDUCED = ("sum", "avg", "product", "min", "max")
_LATER = frozenset({torch.float64, torch.uint64, torch.complex128})
_WHOLE = ANY_DTYPE - FP8 - {torch.uint16, torch.uint32}
_SUMS = {
    **dict.fromkeys(_REDUCED, _WHOLE),
    **dict.fromkeys(("product", "min", "max"), _WHOLE - _COMPLEX),
    "premul_sum": _WHOLE - INTS - BOOL - UNSIGNED - {torch.int16},
    **dict.fromkeys(("band", "bor", "bxor"), NO_DTYPE),
}
_BYTES = frozenset({torch.uint8, torch.bool})
_SCATTERED = {name: dtypes - _BYTES for name, dtypes in _SUMS.items()}
_TENSORS = (
    "c10d::_reduce_scatter_base_",
    "c10d::reduce_scatter_tensor_coalesced_",
    F + "reduce_scatter_tensor_coalesced",
    L + "reduce_scatter_tensor_coalesced",
)
_REDUCE_ELSE = "Reduce in another dtype, or with another op (a bitwise op of bool: max or min)."
_NEWER = "Reduce in another dtype, or say which chip it is: cr.Backend('hccl', compute_capability=(950,))."
_COPIED = "Call .contiguous() first, and copy the result back."

_LIMITS = (
    Limit(
        "HCCL1",
        "int8, uint8, int16, uint16, int32, uint32, int64, uint64, float16, bfloat16, float32, float64, bool, "
        "float8_e4m3fn and float8_e5m2",
        "Convert to one of these dtypes; a complex tensor travels as torch.view_as_real(...).",
        namespaces=NAMESPACES,
        but=(*REAL_BEFORE, *BY_PARTS, *WAITS, *UNKNOWN),
        dtypes=_DTYPES,
        follows=RAISES,
    ),
    Limit(
        "HCCL2",
        "as HCCL1, and complex dtypes, which torch passes on as their real and imaginary parts",
        "Convert to one of these dtypes, for instance with .view(torch.uint8) where nothing is reduced.",
        ops=(*REAL_BEFORE, *BY_PARTS),
        dtypes=_DTYPES | _COMPLEX,
        follows=RAISES,
    ),
    Limit(
        "HCCL3",
        "sum, avg, product, min and max of bool and of the dtypes of HCCL1 but uint16, uint32 and float8; premul_sum "
        "of floating ones; band, bor and bxor of none",
        _REDUCE_ELSE,
        ops=(*ALL_REDUCES, "c10d::reduce_"),
        reduces=_SUMS,
        follows=RAISES,
    ),
    Limit(
        "HCCL4",
        "as HCCL3, but for bool and uint8, which these ops do not convert first",
        _REDUCE_ELSE,
        ops=_TENSORS,
        reduces=_SCATTERED,
        follows=RAISES,
    ),
    Limit(
        "HCCL5",
        "as HCCL4, where all inputs have one shape",
        _REDUCE_ELSE,
        ops=("c10d::reduce_scatter_",),
        reduces=_SCATTERED,
        in_forms=("even",),
        follows=RAISES,
    ),
    Limit(
        "HCCL6",
        "as HCCL4, but for product, min and max of complex tensors, which see HCCL7",
        _REDUCE_ELSE,
        ops=BY_PARTS,
        reduces={**_SCATTERED, **dict.fromkeys(("product", "min", "max"), _WHOLE - _BYTES)},
        follows=RAISES,
    ),
    NCCL.taken("NCCL11", "HCCL7"),
    Limit(
        "HCCL8",
        "float64 and uint64 are reduced from Ascend950 on",
        _NEWER,
        ops=(*ALL_REDUCES, "c10d::reduce_", *_TENSORS, *BY_PARTS),
        reduces=dict.fromkeys((*_REDUCED, "premul_sum"), ANY_DTYPE - _LATER),
        before={"compute_capability": (950,)},
        follows=RAISES,
    ),
    Limit(
        "HCCL9",
        "as HCCL8, where all inputs have one shape",
        _NEWER,
        ops=("c10d::reduce_scatter_",),
        reduces=dict.fromkeys((*_REDUCED, "premul_sum"), ANY_DTYPE - _LATER),
        in_forms=("even",),
        before={"compute_capability": (950,)},
        follows=RAISES,
    ),
    Limit(
        "HCCL10",
        "a premul_sum multiplies its input in place: afterwards the input holds the products",
        "Do not use the input afterwards, or pass a copy.",
        ops=("c10d::_reduce_scatter_base_", "c10d::reduce_scatter_tensor_coalesced_"),
        reduces={"premul_sum": NO_DTYPE},
        severity=WARNING,
        follows=OVERWRITES,
    ),
    NCCL.taken("NCCL16", "HCCL11"),
    Limit(
        "HCCL12",
        "contiguous or channels_last tensors on both sides",
        _COPIED,
        ops=("c10d::_allgather_base_", "c10d::alltoall_"),
        layouts=dict.fromkeys(("input", "output", "inputs", "outputs"), FORMAT),
        follows=RAISES,
    ),
    Limit(
        "HCCL13",
        "contiguous or channels_last inputs",
        "Call .contiguous() first.",
        ops=("c10d::allgather_", "c10d::_reduce_scatter_base_"),
        layouts={"input": FORMAT},
        follows=RAISES,
    ),
    Limit(
        "HCCL14",
        "contiguous or channels_last outputs",
        "Write to a contiguous tensor, and copy the result back.",
        ops=("c10d::reduce_scatter_", "c10d::scatter_", F + "all_gather_into_tensor_out"),
        layouts={"output": FORMAT},
        follows=RAISES,
    ),
    Limit(
        "HCCL15",
        "contiguous or channels_last messages",
        "Call .contiguous() first, and copy into the tensor what was received.",
        rules=("send", "recv"),
        layouts={"input": FORMAT, "output": FORMAT},
        follows=RAISES,
    ),
    Limit(
        "HCCL16",
        "dense tensors",
        _COPIED,
        ops=(
            "c10d::allreduce_coalesced_",
            F + "all_reduce_coalesced_",
            "c10d::reduce_scatter_tensor_coalesced_",
            F + "reduce_scatter_tensor_out",
        ),
        layouts={"input": DENSE, "output": DENSE},
        follows=RAISES,
    ),
    Limit(
        "HCCL17",
        "dense outputs",
        "Gather into contiguous tensors, and copy the results back.",
        ops=("c10d::allgather_",),
        layouts={"outputs": DENSE},
        follows=RAISES,
    ),
    Limit(
        "HCCL18",
        "dense inputs",
        "Call .contiguous() first.",
        ops=("c10d::reduce_scatter_",),
        layouts={"inputs": DENSE},
        follows=RAISES,
    ),
    Limit(
        "HCCL19",
        "dense tensors, whose memory is transferred as it is: nothing looks at their layouts",
        _COPIED,
        ops=("c10d::allgather_into_tensor_coalesced_",),
        layouts={"input": DENSE, "output": DENSE},
        follows=CORRUPTS,
    ),
    Limit(
        "HCCL20",
        "a dense output: nothing looks at its layout",
        "Write to a contiguous tensor, and copy the result back.",
        ops=("c10d::_reduce_scatter_base_",),
        layouts={"output": DENSE},
        follows=CORRUPTS,
    ),
    Limit(
        "HCCL21",
        "a contiguous output: the input is made contiguous, and the output's memory is written as it is",
        "Write to a contiguous tensor, and copy the result back.",
        ops=(F + "reduce_scatter_tensor_out", F + "all_gather_into_tensor_out"),
        layouts={"output": CONTIGUOUS},
        follows=CORRUPTS,
    ),
    Limit(
        "HCCL22",
        "a contiguous output where all inputs have one shape: those are copied into contiguous memory, and the "
        "output's is written as it is",
        "Write to a contiguous tensor, and copy the result back.",
        ops=("c10d::reduce_scatter_",),
        layouts={"output": CONTIGUOUS},
        in_forms=("even",),
        follows=CORRUPTS,
    ),
    Limit(
        "HCCL23",
        "tensors in one order of dims: formats are looked at one by one, if at all, and memory travels as it is",
        "Call .contiguous() on both sides, and on every rank.",
        ops=(
            "c10d::_allgather_base_",
            "c10d::allgather_into_tensor_coalesced_",
            "c10d::_reduce_scatter_base_",
            "c10d::reduce_scatter_tensor_coalesced_",
        ),
        ordered=("input", "output"),
        follows=CORRUPTS,
    ),
    NCCL.taken("NCCL34", "HCCL24"),
    NCCL.taken("NCCL35", "HCCL25"),
    NCCL.taken("NCCL36", "HCCL26"),
    Limit(
        "HCCL27",
        "gather in the compatible mode alone, on Ascend910B and 910_93",
        "Use all_gather.",
        ops=("c10d::gather_",),
        missing=True,
        severity=UNDECIDABLE,
        follows=RAISES,
    ),
    NCCL.taken("NCCL37", "HCCL28"),
    Limit(
        "HCCL29",
        "lists of one dtype",
        "Call the op once for each dtype.",
        ops=(
            "c10d::allreduce_coalesced_",
            F + "all_reduce_coalesced",
            F + "all_reduce_coalesced_",
            L + "all_reduce_coalesced",
            "c10d::reduce_scatter_tensor_coalesced_",
            F + "reduce_scatter_tensor_coalesced",
            L + "reduce_scatter_tensor_coalesced",
        ),
        one_dtype=True,
        follows=RAISES,
    ),
    Limit(
        "HCCL30",
        "equal shapes, where the rule is content with equally many elements",
        "Reshape one side with .view(...).",
        ops=("c10d::scatter_",),
        exact=True,
        follows=RAISES,
    ),
    Limit(
        "HCCL31",
        "without split sizes, an output whose first dim the ranks divide",
        "Reshape the tensors, or pad them.",
        ops=("c10d::alltoall_base_",),
        divides=("output",),
        follows=RAISES,
    ),
)

HCCL = BackendTable(
    name="hccl",
    source="Ascend/pytorch, torch_npu/csrc/distributed/ProcessGroupHCCL.cpp and HCCLUtils.cpp",
    verified="read in the sources of torch_npu of August 2026; not run",
    limits=(
        *(attrs.evolve(limit, on=("npu",)) for limit in _LIMITS),
        Limit(
            "HCCL32",
            "tensors on an npu; those on an hpu are taken by another backend of this name, whose limits are not known",
            "Move the tensors, or make a group with a backend for their device.",
            namespaces=NAMESPACES,
            but=(*WAITS, *UNKNOWN),
            devices=("npu", "hpu"),
            follows=RAISES,
        ),
    ),
)
