"""What UCC takes, as torch reaches it: read in the sources, and not run. Rows only.

What torch checks raises on the rank that goes beyond it; the other ranks hang. What it does not check goes to UCC as
raw memory. UCC gathers lists on the cpu otherwise than on a GPU, where they are copied through one flat tensor.

Not looked into: the UCC library itself (which reductions it has for which dtype), messages of a batch or to oneself, in
place exchanges, and TORCH_UCC_USE_ALLGATHERV, which has a GPU gather lists as the cpu does. Not stated: that
`c10d::alltoall_base_` looks at dtypes where split sizes are given, and moves bytes of any dtype where none are; and
that reduce_scatter_ needs the first of its inputs to be contiguous.
"""

from __future__ import annotations

from collective_rules.backends.limit import CORRUPTS, RAISES, BackendTable, Limit
from collective_rules.backends.op_names import (
    ANY_DTYPE,
    BOOL,
    COMPLEX,
    MISSES_COALESCED,
    NAMESPACES,
    NO_DTYPE,
    PLAIN,
    REFUSES_COMPLEX,
    UNKNOWN,
    WAITS,
    A,
    F,
    L,
)
from collective_rules.finding import WARNING
from collective_rules.ops.op import CONTIGUOUS, DENSE

_DTYPES = "int8, uint8, int32, int64, float16, bfloat16, float32, float64 and bool"
_CONVERT = "Convert to one of these dtypes; a complex tensor travels as torch.view_as_real(...)."
_COPIED = "Call .contiguous() first, and copy the result back."
_ALIKE = "Call .contiguous() on both sides, and on every rank."

UCC = BackendTable(
    name="ucc",
    source="torch/csrc/distributed/c10d/ProcessGroupUCC.cpp",
    verified="read in the sources of torch after 2.13.0, and in the headers of 2.13.0; not run",
    limits=(
        Limit(
            "UCC1",
            _DTYPES,
            _CONVERT,
            ops=(
                "c10d::allreduce_",
                "c10d::broadcast_",
                "c10d::reduce_",
                "c10d::_allgather_base_",
                "c10d::_reduce_scatter_base_",
                "c10d::reduce_scatter_",
                F + "all_reduce_",
                F + "all_gather_into_tensor_out",
            ),
            rules=("send", "recv"),
            dtypes=PLAIN,
            follows=RAISES,
        ),
        Limit(
            "UCC2",
            f"{_DTYPES}, and complex dtypes, which torch passes on as their real and imaginary parts",
            _CONVERT,
            ops=(F + "all_reduce", F + "broadcast", F + "broadcast_", L + "all_reduce", L + "broadcast"),
            dtypes=PLAIN | COMPLEX,
            follows=RAISES,
        ),
        Limit(
            "UCC3",
            f"{_DTYPES}: split sizes are given",
            _CONVERT,
            ops=(F + "all_to_all_single", A + "all_to_all_single", L + "all_to_all_single"),
            dtypes=PLAIN,
            spares_empty=True,
            follows=RAISES,
        ),
        Limit(
            "UCC4",
            f"{_DTYPES}; on the cpu bytes of any dtype",
            _CONVERT,
            ops=("c10d::allgather_",),
            dtypes=PLAIN,
            on=("cuda",),
            follows=RAISES,
        ),
        Limit(
            "UCC5",
            "any reduction but premul_sum; of complex tensors sum and avg alone; avg of no bool",
            "Reduce in another dtype, or multiply first, then reduce with sum.",
            ops=(
                "c10d::allreduce_",
                "c10d::reduce_scatter_",
                "c10d::_reduce_scatter_base_",
                F + "all_reduce",
                F + "all_reduce_",
                L + "all_reduce",
            ),
            reduces={"avg": ANY_DTYPE - BOOL, "premul_sum": NO_DTYPE, **REFUSES_COMPLEX},
            follows=RAISES,
        ),
        Limit(
            "UCC6",
            "any reduction but premul_sum",
            "Multiply first, then reduce with sum.",
            ops=("c10d::reduce_",),
            reduces={"premul_sum": NO_DTYPE},
            follows=RAISES,
        ),
        Limit(
            "UCC7",
            "a sum of bool adds bytes in this op: it stores 2, 3, …, and 256 times True is False",
            "Use bor, or max.",
            ops=("c10d::reduce_",),
            reduces={"sum": ANY_DTYPE - BOOL},
            from_size=2,
            spares_empty=True,
            severity=WARNING,
            follows=CORRUPTS,
        ),
        Limit(
            "UCC8",
            "contiguous tensors, also in a group of one",
            _COPIED,
            ops=("c10d::allreduce_", "c10d::broadcast_", "c10d::reduce_", F + "all_reduce_", F + "broadcast_"),
            layouts={"input": CONTIGUOUS},
            follows=RAISES,
        ),
        Limit(
            "UCC9",
            "contiguous tensors on both sides",
            _COPIED,
            ops=("c10d::_allgather_base_", "c10d::_reduce_scatter_base_"),
            layouts={"input": CONTIGUOUS, "output": CONTIGUOUS},
            follows=RAISES,
        ),
        Limit(
            "UCC10",
            "a contiguous output",
            "Write to a contiguous tensor, and copy the result back.",
            ops=("c10d::reduce_scatter_", F + "all_gather_into_tensor_out"),
            layouts={"output": CONTIGUOUS},
            follows=RAISES,
        ),
        Limit(
            "UCC11",
            "contiguous messages",
            "Call .contiguous() first, and copy into the tensor what was received.",
            rules=("send", "recv"),
            layouts={"input": CONTIGUOUS, "output": CONTIGUOUS},
            follows=RAISES,
        ),
        Limit(
            "UCC12",
            "dense inputs: nothing looks at their layouts",
            "Call .contiguous() first.",
            ops=("c10d::allgather_",),
            layouts={"input": DENSE},
            follows=CORRUPTS,
        ),
        Limit(
            "UCC13",
            "dense outputs on the cpu: nothing looks at their layouts",
            "Gather into contiguous tensors, and copy the results back.",
            ops=("c10d::allgather_",),
            layouts={"outputs": DENSE},
            on=("cpu",),
            follows=CORRUPTS,
        ),
        Limit(
            "UCC14",
            "tensors in one order of dims on the cpu: memory travels as it is",
            _ALIKE,
            ops=("c10d::allgather_",),
            ordered=("input", "outputs"),
            on=("cpu",),
            follows=CORRUPTS,
        ),
        Limit(
            "UCC15",
            "dense tensors, also where a rank exchanges them with itself: nothing looks at their layouts",
            _COPIED,
            ops=("c10d::gather_", "c10d::scatter_", "c10d::alltoall_"),
            layouts={"input": DENSE, "output": DENSE, "inputs": DENSE, "outputs": DENSE},
            follows=CORRUPTS,
        ),
        Limit(
            "UCC16",
            "tensors in one order of dims, also where a rank exchanges them with itself: memory travels as it is",
            _ALIKE,
            ops=("c10d::gather_", "c10d::scatter_", "c10d::alltoall_"),
            ordered=("input", "output", "inputs", "outputs"),
            follows=CORRUPTS,
        ),
        Limit(
            "UCC17",
            "even lists alone: all tensors of one shape",
            "Pad to one shape, or use all_to_all_single with split sizes.",
            ops=("c10d::reduce_scatter_",),
            forms=("even",),
            follows=RAISES,
        ),
        Limit(
            "UCC18",
            "as UCC17, on a GPU",
            "Pad to one shape, or use all_to_all_single with split sizes.",
            ops=("c10d::allgather_",),
            forms=("even",),
            on=("cuda",),
            follows=RAISES,
        ),
        Limit(
            "UCC19",
            "as UCC17, on the cpu: as much is received from every rank as this one sends",
            "Pad to one shape, or use all_to_all_single with split sizes.",
            ops=("c10d::allgather_",),
            forms=("even",),
            on=("cpu",),
            follows=CORRUPTS,
        ),
        Limit(
            "UCC20",
            "without split sizes, tensors whose first dim the ranks divide",
            "Reshape the tensors, or pad them.",
            ops=("c10d::alltoall_base_",),
            divides=("input", "output"),
            follows=RAISES,
        ),
        Limit(
            "UCC21",
            "none of the coalesced ops, nor of the functional ones that call them; no message from any source",
            "Call the op of torch.distributed for each tensor; name the source of a message; use barrier.",
            ops=(*MISSES_COALESCED, "c10d::recv_any_source_", "c10d::monitored_barrier_"),
            missing=True,
            follows=RAISES,
        ),
        Limit(
            "UCC22",
            "one tensor in a list",
            "Call the op once for each tensor.",
            ops=("c10d::allreduce_", "c10d::broadcast_"),
            most_tensors=1,
            follows=RAISES,
        ),
        Limit(
            "UCC23",
            "no sparse tensors",
            "Convert with .to_dense() first.",
            ops=("c10d::allreduce_",),
            sparse_reduces=(),
            follows=RAISES,
        ),
        Limit(
            "UCC24",
            "tensors on the cpu and CUDA tensors",
            "Move the tensors, or make a group with a backend for their device.",
            namespaces=NAMESPACES,
            but=(*WAITS, *UNKNOWN),
            devices=("cpu", "cuda"),
            follows=RAISES,
        ),
    ),
)
