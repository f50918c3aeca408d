"""How recordings spell collectives and dtypes. Tables only.

A recording names a collective by the backend's name for it, "nccl:_all_gather_base"; `SPELLINGS` says which op that is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

_NAMES: Mapping[str, str] = {
    "c10d::allreduce_": "all_reduce allreduce all_reduce_sparse allreduce_sparse",
    "c10d::allreduce_coalesced_": "allreduce_coalesced all_reduce_coalesced",
    "c10d::broadcast_": "broadcast _broadcast_oop broadcast_oop",
    "c10d::reduce_": "reduce _reduce_oop reduce_oop",
    "c10d::allgather_": "all_gather allgather all_gather_v all_gatherv allgatherv",
    "c10d::_allgather_base_": "_all_gather_base _allgather_base all_gather_base allgather_base all_gather_single "
    "all_gather_into_tensor",
    "c10d::allgather_into_tensor_coalesced_": "all_gather_into_tensor_coalesced allgather_into_tensor_coalesced",
    "c10d::reduce_scatter_": "reduce_scatter reducescatter reduce_scatter_v reduce_scatterv",
    "c10d::_reduce_scatter_base_": "_reduce_scatter_base reduce_scatter_base reduce_scatter_single "
    "reduce_scatter_tensor",
    "c10d::reduce_scatter_tensor_coalesced_": "reduce_scatter_tensor_coalesced",
    "c10d::gather_": "gather",
    "c10d::scatter_": "scatter",
    "c10d::alltoall_": "all_to_all alltoall",
    "c10d::alltoall_base_": "all_to_allv alltoallv all_to_all_v all_to_all_single all_to_all_v_single alltoall_base",
    "c10d::send": "send isend",
    "c10d::recv_": "recv irecv",
    "c10d::recv_any_source_": "recv_any_source recvanysource",
    "c10d::barrier": "barrier allreduce_barrier all_reduce_barrier",
    "c10d::monitored_barrier_": "monitored_barrier",
}
"""Op → the names that backends give it, in lower case. "all_to_all" with one tensor is the single one."""

SPELLINGS: Mapping[str, str] = {name: op for op, names in _NAMES.items() for name in names.split()}
"""Name → op. How the op's arguments take a flat list of tensors, its row of the op table says."""

EVEN = frozenset({"all_to_all_single"})
"""Names of ops that are called without split sizes, where their op may have some."""

SUMMARIES = frozenset({"coalesced", "allgather_coalesced", "reduce_scatter_coalesced", "batch_p2p_ops"})
"""Rows that stand for several collectives, whose members have rows of their own."""

NO_COLLECTIVES = frozenset({"wait", "wait_tensor", "mark", "init", "init_process_group", "group_start", "group_end"})
"""Rows that communicate nothing of their own."""

_DTYPES: Mapping[str, torch.dtype] = {
    name: dtype
    for dtype, names in {
        torch.uint8: "byte, unsigned char",
        torch.uint16: "unsigned short, unsigned short int",
        torch.uint32: "unsigned int",
        torch.uint64: "unsigned long, unsigned long int, unsigned long long",
        torch.int8: "char, signed char",
        torch.int16: "short int",
        torch.int64: "long int, long long, long long int",
        torch.complex32: "complexhalf, complex<half>, complex<c10::half>",
        torch.complex64: "complexfloat, complex<float>",
        torch.complex128: "complexdouble, complex<double>",
        torch.float8_e4m3fn: "fp8",
        torch.float16: "fp16",
        torch.bfloat16: "bf16",
        torch.float32: "fp32",
        torch.float64: "fp64",
    }.items()
    for name in names.split(", ")
}
"""Spellings that are no name of torch's own: those of C++, and of c10::ScalarType."""

_PREFIX = re.compile(r"^(torch\.|c10::|at::|nccl|std::)+")


def dtype_of(text: Any) -> torch.dtype | None:
    """Return the dtype that a recording spells as `text`; None for what is no dtype.

    >>> [dtype_of(text) for text in ("Float", "float32", "c10::Half", "long int", "torch.bool", "Scalar")]
    [torch.float32, torch.float32, torch.float16, torch.int64, torch.bool, None]
    """
    if not isinstance(text, str) or len(text) > 64:
        return None
    name = _PREFIX.sub("", text.strip()).lower().removesuffix("tensor")
    known = _DTYPES.get(name) or getattr(torch, name, None)
    return known if isinstance(known, torch.dtype) else None


def spelled(name: str) -> tuple[str, str]:
    """Return (backend, the collective's name in lower case) of "nccl:_all_gather_base" or "send 0->1".

    >>> spelled("nccl:_all_gather_base"), spelled("gloo:send 0->1"), spelled("allreduce")
    (('nccl', '_all_gather_base'), ('gloo', 'send'), ('', 'allreduce'))
    """
    backend, _, rest = name.rpartition(":")
    return backend, rest.split(" ")[0].lower()
