"""Names of ops, and sets of dtypes, that several backends' tables share: which ops reach a backend in which way.

What the functional ops hand to a backend was measured on torch 2.13.0: they make what they read contiguous, those of
`REAL_BEFORE` and `BY_PARTS` view complex tensors as real ones, and those that gather or reduce and scatter one tensor
call the backend's coalesced methods.
"""

from __future__ import annotations

import torch

NO_DTYPE = frozenset[torch.dtype]()
FP8 = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
FNUZ = frozenset({torch.float8_e4m3fnuz, torch.float8_e5m2fnuz})
FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
INTS = frozenset({torch.int8, torch.uint8, torch.int32, torch.int64})
UNSIGNED = frozenset({torch.uint16, torch.uint32, torch.uint64})
BOOL = frozenset({torch.bool})
COMPLEX = frozenset({torch.complex32, torch.complex64, torch.complex128})
PLAIN = FLOATS | INTS | BOOL
ANY_DTYPE = PLAIN | COMPLEX | UNSIGNED | FP8 | FNUZ | {torch.int16, torch.float8_e8m0fnu}
"""Limits on how a dtype is reduced let those pass that a limit on dtypes refuses."""

F, A, L = "_c10d_functional::", "_c10d_functional_autograd::", "c10d_functional::"
NAMESPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "_dtensor")
WAITS = (F + "wait_tensor", F + "wait_tensors", L + "wait_tensor")
UNKNOWN = ("c10d::gather_into_tensor_",)  # newer than the sources that were read

REDUCE_SCATTERS = (
    "c10d::reduce_scatter_",
    "c10d::_reduce_scatter_base_",
    "c10d::reduce_scatter_tensor_coalesced_",
    F + "reduce_scatter_tensor_coalesced",
    L + "reduce_scatter_tensor_coalesced",
)
BY_PARTS = (
    F + "reduce_scatter_tensor",
    F + "reduce_scatter_tensor_out",
    A + "reduce_scatter_tensor",
    L + "reduce_scatter_tensor",
)
VIEWED_AS_REAL = (
    "c10d::allreduce_",
    "c10d::broadcast_",
    "c10d::reduce_",
    F + "all_reduce",
    F + "all_reduce_",
    F + "broadcast",
    F + "broadcast_",
    F + "all_gather_into_tensor",
    A + "all_gather_into_tensor",
    L + "all_reduce",
    L + "broadcast",
    L + "all_gather_into_tensor",
    "_dtensor::shard_dim_alltoall",
)
"""Complex tensors travel as real ones: torch views them so, or NCCL and XCCL do."""
REAL_BEFORE = tuple(op for op in VIEWED_AS_REAL if not op.startswith("c10d::") and op != F + "all_reduce_")
"""Complex tensors reach the backend as real ones."""
ALL_REDUCES = (
    "c10d::allreduce_",
    "c10d::allreduce_coalesced_",
    F + "all_reduce",
    F + "all_reduce_",
    F + "all_reduce_coalesced",
    F + "all_reduce_coalesced_",
    L + "all_reduce",
    L + "all_reduce_coalesced",
)
COALESCED_ALL_REDUCES = tuple(op for op in ALL_REDUCES if "coalesced" in op)

REFUSES_COMPLEX = dict.fromkeys(("product", "min", "max", "band", "bor", "bxor"), ANY_DTYPE - COMPLEX)
"""torch's functional all_reduce refuses complex tensors with these, whatever the backend."""

MISSES_COALESCED = (
    "c10d::allreduce_coalesced_",
    "c10d::allgather_coalesced_",
    "c10d::allgather_into_tensor_coalesced_",
    "c10d::reduce_scatter_tensor_coalesced_",
    *COALESCED_ALL_REDUCES[1:],
    F + "all_gather_into_tensor",
    F + "all_gather_into_tensor_coalesced",
    A + "all_gather_into_tensor",
    L + "all_gather_into_tensor",
    L + "all_gather_into_tensor_coalesced",
    F + "reduce_scatter_tensor_coalesced",
    L + "reduce_scatter_tensor_coalesced",
    *BY_PARTS,
)
"""The ops that raise where a backend has none of the coalesced methods: functional ops of one tensor call them, too."""
