"""What XCCL takes, Intel's backend for `xpu` tensors: read in the sources, and not run. Rows only.

Much of it is as in NCCL's table, from which those rows are taken under their own ids. As there, a rank that goes beyond
a limit raises, and the other ranks hang.

Not looked into: oneCCL itself (what it reduces, in place exchanges, how it makes connections, the factor of premul_sum
for bfloat16), and premul_sum of integers, which torch multiplies first: with a whole factor that works, with another it
raises.
"""

from __future__ import annotations

import attrs

from collective_rules.backends.limit import CORRUPTS, OVERWRITES, RAISES, BackendTable, Limit
from collective_rules.backends.nccl import NCCL
from collective_rules.backends.op_names import (
    ALL_REDUCES,
    ANY_DTYPE,
    BOOL,
    BY_PARTS,
    COMPLEX,
    FLOATS,
    FNUZ,
    FP8,
    INTS,
    NAMESPACES,
    NO_DTYPE,
    REDUCE_SCATTERS,
    UNKNOWN,
    VIEWED_AS_REAL,
    WAITS,
    F,
)
from collective_rules.finding import WARNING
from collective_rules.ops.op import CONTIGUOUS, DENSE, FORMAT

_WHOLE = ANY_DTYPE - FP8 - FNUZ
_SUMS = {
    "sum": _WHOLE,
    "avg": _WHOLE - BOOL,
    **dict.fromkeys(("product", "min", "max"), _WHOLE - COMPLEX),
    "premul_sum": _WHOLE - COMPLEX,
    **dict.fromkeys(("band", "bor", "bxor"), NO_DTYPE),
}
_REDUCE_ELSE = "Reduce in another dtype, or with another op (a bitwise op of bool: max or min)."
_COPIED = "Call .contiguous() first, and copy the result back."
_MULTIPLIED = ("c10d::_reduce_scatter_base_", "c10d::reduce_scatter_tensor_coalesced_")

XCCL = BackendTable(
    name="xccl",
    source="intel/torch-xpu-ops, src/xccl/ProcessGroupXCCL.cpp, xccl.cpp and xccl.h",
    verified="read in the sources of torch-xpu-ops of August 2026; not run",
    matching=attrs.evolve(NCCL.matching, joins=False, one_stream=False),
    limits=(
        NCCL.taken(
            "NCCL1",
            "XCCL1",
            says="int8, uint8, int32, int64, float16, bfloat16, float32, float64, bool, and as bytes the four "
            "float8_e4m3 and float8_e5m2 dtypes; no complex one in these ops",
            namespaces=NAMESPACES,
            but=(*VIEWED_AS_REAL, *BY_PARTS, *WAITS, *UNKNOWN),
        ),
        NCCL.taken(
            "NCCL3",
            "XCCL2",
            says="as XCCL1, and complex dtypes, which travel as their real and imaginary parts",
            ops=(*VIEWED_AS_REAL, *BY_PARTS),
        ),
        Limit(
            "XCCL3",
            "no float8 dtype; sum of any other, avg of those but bool, product, min and max of real ones, premul_sum "
            "of no complex one; band, bor and bxor of none",
            _REDUCE_ELSE,
            ops=(*ALL_REDUCES, *REDUCE_SCATTERS, "c10d::reduce_"),
            reduces=_SUMS,
            follows=RAISES,
        ),
        Limit(
            "XCCL4",
            "as XCCL3, but for product, min and max of complex tensors, which see XCCL5",
            _REDUCE_ELSE,
            ops=BY_PARTS,
            reduces={**_SUMS, **dict.fromkeys(("product", "min", "max"), _WHOLE)},
            follows=RAISES,
        ),
        NCCL.taken("NCCL11", "XCCL5"),
        Limit(
            "XCCL6",
            "premul_sum of float16, bfloat16, float32 and float64",
            "Multiply first, then reduce with sum.",
            ops=("c10d::reduce_",),
            reduces={"premul_sum": ANY_DTYPE - INTS - BOOL},
            follows=RAISES,
        ),
        Limit(
            "XCCL7",
            "premul_sum from oneCCL 2022.0 on",
            "Multiply first, then reduce with sum, or say which it is: cr.Backend('xccl', version=...).",
            ops=("c10d::reduce_",),
            reduces={"premul_sum": ANY_DTYPE - FLOATS},
            before={"version": (2022, 0)},
            follows=RAISES,
        ),
        Limit(
            "XCCL8",
            "a premul_sum multiplies its input in place: afterwards the input holds the products",
            "Do not use the input afterwards, or pass a copy.",
            ops=_MULTIPLIED,
            reduces={"premul_sum": NO_DTYPE},
            severity=WARNING,
            follows=OVERWRITES,
        ),
        NCCL.taken("NCCL16", "XCCL9"),
        NCCL.taken("NCCL17", "XCCL10"),
        NCCL.taken("NCCL18", "XCCL11", ops=("c10d::_allgather_base_",), layouts={"input": FORMAT, "output": FORMAT}),
        Limit(
            "XCCL12",
            "dense tensors",
            _COPIED,
            ops=("c10d::alltoall_",),
            layouts={"inputs": DENSE, "outputs": DENSE},
            follows=RAISES,
        ),
        NCCL.taken("NCCL19", "XCCL13"),
        Limit(
            "XCCL14",
            "dense tensors, whose memory is transferred as it is: nothing looks at their layouts",
            _COPIED,
            ops=(
                "c10d::allreduce_coalesced_",
                F + "all_reduce_coalesced_",
                "c10d::allgather_into_tensor_coalesced_",
                "c10d::_reduce_scatter_base_",
                "c10d::reduce_scatter_tensor_coalesced_",
            ),
            layouts={"input": DENSE, "output": DENSE},
            follows=CORRUPTS,
        ),
        Limit(
            "XCCL15",
            "a contiguous output: the input is made contiguous, and the output's memory is written as it is",
            "Write to a contiguous tensor, and copy the result back.",
            ops=(F + "reduce_scatter_tensor_out", F + "all_gather_into_tensor_out"),
            layouts={"output": CONTIGUOUS},
            follows=CORRUPTS,
        ),
        Limit(
            "XCCL16",
            "a contiguous input where all outputs have one shape: what is received is read as contiguous",
            "Call .contiguous() first.",
            ops=("c10d::allgather_",),
            layouts={"input": CONTIGUOUS},
            in_forms=("even",),
            follows=CORRUPTS,
        ),
        NCCL.taken(
            "NCCL26",
            "XCCL17",
            says="a contiguous output where all inputs have one shape: those are copied into contiguous memory, and "
            "the output's is written as it is",
        ),
        NCCL.taken("NCCL27", "XCCL18"),
        NCCL.taken("NCCL28", "XCCL19"),
        NCCL.taken("NCCL29", "XCCL20"),
        NCCL.taken(
            "NCCL30",
            "XCCL21",
            ops=(
                "c10d::_allgather_base_",
                "c10d::allgather_into_tensor_coalesced_",
                "c10d::_reduce_scatter_base_",
                "c10d::reduce_scatter_tensor_coalesced_",
                "c10d::alltoall_",
            ),
        ),
        NCCL.taken("NCCL32", "XCCL22", says="as XCCL21, where the tensors differ in shape"),
        NCCL.taken("NCCL33", "XCCL23", says="as XCCL21, but for what the root exchanges with itself"),
        NCCL.taken("NCCL34", "XCCL24"),
        NCCL.taken("NCCL35", "XCCL25"),
        NCCL.taken("NCCL36", "XCCL26"),
        NCCL.taken("NCCL37", "XCCL27"),
        NCCL.taken("NCCL38", "XCCL28"),
        NCCL.taken("NCCL39", "XCCL29"),
        NCCL.taken(
            "NCCL40",
            "XCCL30",
            says="XPU tensors",
            advice="Move the tensors to an XPU, or make a group with a backend for their device.",
            devices=("xpu",),
        ),
        NCCL.taken("NCCL45", "XCCL31"),
        Limit(
            "XCCL32",
            "without split sizes, an output whose first dim the ranks divide",
            "Reshape the tensors, or pad them.",
            ops=("c10d::alltoall_base_",),
            divides=("output",),
            follows=RAISES,
        ),
        Limit(
            "XCCL33",
            "without split sizes, an input whose first dim the ranks divide: the rows that are left over are not sent",
            "Reshape the tensors, or pad them.",
            ops=("c10d::alltoall_base_",),
            divides=("input",),
            follows=CORRUPTS,
        ),
    ),
)
