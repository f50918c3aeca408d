"""What torch's MPI backend takes: read in the sources, and not run. Rows only.

A dtype or a reduce op that MPI does not have raises when the work is waited on, on every rank that asks for it.

Not looked into: the MPI library itself (whether it takes buffers that overlap, as in an all_gather in place), CUDA
tensors, which need an MPI that is aware of CUDA, and messages of a batch. Not stated: that MPI counts in 32 bits, and
more elements than that are cut off.
"""

from __future__ import annotations

import torch

from collective_rules.backends.limit import CORRUPTS, RAISES, BackendTable, Limit
from collective_rules.backends.op_names import (
    ANY_DTYPE,
    COMPLEX,
    MISSES_COALESCED,
    NAMESPACES,
    NO_DTYPE,
    REAL_BEFORE,
    UNKNOWN,
    WAITS,
    F,
    L,
)
from collective_rules.ops.op import CONTIGUOUS, DENSE, FLAT

_DTYPES = frozenset(
    {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64}
)  # fmt: skip
_OPS = {
    **dict.fromkeys(("avg", "band", "bor", "bxor", "premul_sum"), NO_DTYPE),
    **dict.fromkeys(("product", "min", "max"), ANY_DTYPE - COMPLEX),
}
_COPIED = "Call .contiguous() first, and copy the result back."

MPI = BackendTable(
    name="mpi",
    source="torch/csrc/distributed/c10d/ProcessGroupMPI.cpp",
    verified="read in the sources of torch of 2025, which have the methods that the headers of 2.13.0 declare; not run",
    limits=(
        Limit(
            "MPI1",
            "uint8, int8, int16, int32, int64, float32 and float64",
            "Convert to one of these dtypes, for instance with .view(torch.uint8) where nothing is reduced.",
            namespaces=NAMESPACES,
            but=(*REAL_BEFORE, *WAITS, *UNKNOWN),
            dtypes=_DTYPES,
            follows=RAISES,
        ),
        Limit(
            "MPI2",
            "as MPI1, and complex64 and complex128, which torch passes on as their real and imaginary parts",
            "Convert to one of these dtypes.",
            ops=REAL_BEFORE,
            dtypes=_DTYPES | {torch.complex64, torch.complex128},
            follows=RAISES,
        ),
        Limit(
            "MPI3",
            "sum of any dtype; product, min and max of real ones; no other reduction",
            "Reduce with another op (avg: sum, then divide).",
            ops=(
                "c10d::allreduce_",
                "c10d::reduce_",
                "c10d::reduce_scatter_",
                "c10d::_reduce_scatter_base_",
                F + "all_reduce",
                F + "all_reduce_",
                L + "all_reduce",
            ),
            reduces=_OPS,
            follows=RAISES,
        ),
        Limit(
            "MPI4",
            "contiguous tensors, also in a group of one",
            _COPIED,
            ops=("c10d::allreduce_", "c10d::broadcast_", "c10d::reduce_", F + "all_reduce_", F + "broadcast_"),
            layouts={"input": CONTIGUOUS},
            follows=RAISES,
        ),
        Limit(
            "MPI5",
            "contiguous tensors on both sides, also what the root exchanges with itself",
            _COPIED,
            ops=(
                "c10d::allgather_",
                "c10d::gather_",
                "c10d::scatter_",
                "c10d::reduce_scatter_",
                "c10d::alltoall_base_",
            ),
            layouts=dict.fromkeys(("input", "output", "inputs", "outputs"), CONTIGUOUS),
            follows=RAISES,
        ),
        Limit(
            "MPI6",
            "contiguous messages",
            "Call .contiguous() first, and copy into the tensor what was received.",
            rules=("send", "recv"),
            layouts={"input": CONTIGUOUS, "output": CONTIGUOUS},
            follows=RAISES,
        ),
        Limit(
            "MPI7",
            "tensors that .view(-1) takes",
            _COPIED,
            ops=("c10d::alltoall_",),
            layouts={"inputs": FLAT, "outputs": FLAT},
            follows=RAISES,
        ),
        Limit(
            "MPI8",
            "dense tensors, whose memory is transferred as it is: nothing looks at their layouts",
            _COPIED,
            ops=("c10d::_allgather_base_", "c10d::_reduce_scatter_base_"),
            layouts={"input": DENSE, "output": DENSE},
            follows=CORRUPTS,
        ),
        Limit(
            "MPI9",
            "tensors in one order of dims: memory travels as it is",
            "Call .contiguous() on both sides, and on every rank.",
            ops=("c10d::_allgather_base_", "c10d::_reduce_scatter_base_"),
            ordered=("input", "output"),
            follows=CORRUPTS,
        ),
        Limit(
            "MPI10",
            "a contiguous output: the input is made contiguous, and the output's memory is written as it is",
            "Write to a contiguous tensor, and copy the result back.",
            ops=(F + "all_gather_into_tensor_out",),
            layouts={"output": CONTIGUOUS},
            follows=CORRUPTS,
        ),
        Limit(
            "MPI11",
            "even lists alone: all tensors of equally many elements",
            "Pad to one shape, or use all_to_all_single with split sizes.",
            ops=("c10d::allgather_", "c10d::reduce_scatter_"),
            forms=("even",),
            follows=RAISES,
        ),
        Limit(
            "MPI12",
            "without split sizes, an output whose first dim the ranks divide",
            "Reshape the tensors, or pad them.",
            ops=("c10d::alltoall_base_",),
            divides=("output",),
            follows=RAISES,
        ),
        Limit(
            "MPI13",
            "none of the coalesced ops, nor of the functional ones that call them",
            "Call the op of torch.distributed for each tensor; use barrier.",
            ops=(*MISSES_COALESCED, "c10d::monitored_barrier_"),
            missing=True,
            follows=RAISES,
        ),
        Limit(
            "MPI14",
            "one tensor in a list",
            "Call the op once for each tensor.",
            ops=("c10d::allreduce_", "c10d::broadcast_"),
            most_tensors=1,
            follows=RAISES,
        ),
        Limit(
            "MPI15",
            "no sparse tensors",
            "Convert with .to_dense() first.",
            ops=("c10d::allreduce_",),
            sparse_reduces=(),
            follows=RAISES,
        ),
        Limit(
            "MPI16",
            "tensors on the cpu, and CUDA tensors where MPI is aware of CUDA",
            "Move the tensors, or make a group with a backend for their device.",
            namespaces=NAMESPACES,
            but=(*WAITS, *UNKNOWN),
            devices=("cpu", "cuda"),
            follows=RAISES,
        ),
    ),
)
