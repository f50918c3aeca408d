"""How recordings spell collectives and dtypes. Tables only.

A recording names a collective by what the backend calls it, "nccl:_all_gather_base", and lists its tensors flat;
`SPELLINGS` says which op that is, and how its arguments take the tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import attrs
import torch

__all__ = ["NO_COLLECTIVES", "SPELLINGS", "SUMMARIES", "Spelled", "dtype_of", "spelled"]


@attrs.frozen
class Spelled:
    """An op, and which of its arguments take the flat lists of what is read and of what is written.

    `reads`, `writes`: "x" takes the first tensor, "x[i]" all of them, "x[1]" the first as a list of one, "x[1][p]" all
    as a list of one list; "" takes none. One whose name is in both is in place. `even`: it has no split sizes.
    """

    op: str
    reads: str = ""
    writes: str = ""
    even: bool = False


_ALL_REDUCE = Spelled("c10d::allreduce_", "tensors[i]", "tensors[i]")
_ALL_REDUCE_LIST = Spelled("c10d::allreduce_coalesced_", "tensors[i]", "tensors[i]")
_BROADCAST = Spelled("c10d::broadcast_", "tensors[i]", "tensors[i]")
_REDUCE = Spelled("c10d::reduce_", "tensors[i]", "tensors[i]")
_ALL_GATHER = Spelled("c10d::allgather_", "input_tensors[1]", "output_tensors[1][p]")
_ALL_GATHER_TENSOR = Spelled("c10d::_allgather_base_", "input_tensor", "output_tensor")
_ALL_GATHER_LIST = Spelled("c10d::allgather_into_tensor_coalesced_", "inputs[i]", "outputs[i]")
_REDUCE_SCATTER = Spelled("c10d::reduce_scatter_", "input_tensors[1][p]", "output_tensors[1]")
_REDUCE_SCATTER_TENSOR = Spelled("c10d::_reduce_scatter_base_", "input_tensor", "output_tensor")
_REDUCE_SCATTER_LIST = Spelled("c10d::reduce_scatter_tensor_coalesced_", "inputs[i]", "outputs[i]")
_GATHER = Spelled("c10d::gather_", "input_tensors[1]", "output_tensors[1][p]")
_SCATTER = Spelled("c10d::scatter_", "input_tensors[1][p]", "output_tensors[1]")
_ALL_TO_ALL = Spelled("c10d::alltoall_", "input_tensors[i]", "output_tensors[i]")
_ALL_TO_ALL_SINGLE = Spelled("c10d::alltoall_base_", "input", "output")
_SEND = Spelled("c10d::send", "tensors[1]")
_RECV = Spelled("c10d::recv_", "", "tensors[1]")
_BARRIER = Spelled("c10d::barrier")
_MONITORED_BARRIER = Spelled("c10d::monitored_barrier_")

SPELLINGS: Mapping[str, Spelled] = {
    "all_reduce": _ALL_REDUCE,
    "allreduce": _ALL_REDUCE,
    "all_reduce_sparse": _ALL_REDUCE,
    "allreduce_sparse": _ALL_REDUCE,
    "allreduce_coalesced": _ALL_REDUCE_LIST,
    "all_reduce_coalesced": _ALL_REDUCE_LIST,
    "broadcast": _BROADCAST,
    "_broadcast_oop": _BROADCAST,
    "broadcast_oop": _BROADCAST,
    "reduce": _REDUCE,
    "_reduce_oop": _REDUCE,
    "reduce_oop": _REDUCE,
    "all_gather": _ALL_GATHER,
    "allgather": _ALL_GATHER,
    "all_gather_v": _ALL_GATHER,
    "all_gatherv": _ALL_GATHER,
    "allgatherv": _ALL_GATHER,
    "_all_gather_base": _ALL_GATHER_TENSOR,
    "_allgather_base": _ALL_GATHER_TENSOR,
    "all_gather_base": _ALL_GATHER_TENSOR,
    "allgather_base": _ALL_GATHER_TENSOR,
    "all_gather_single": _ALL_GATHER_TENSOR,
    "all_gather_into_tensor": _ALL_GATHER_TENSOR,
    "all_gather_into_tensor_coalesced": _ALL_GATHER_LIST,
    "allgather_into_tensor_coalesced": _ALL_GATHER_LIST,
    "reduce_scatter": _REDUCE_SCATTER,
    "reducescatter": _REDUCE_SCATTER,
    "reduce_scatter_v": _REDUCE_SCATTER,
    "reduce_scatterv": _REDUCE_SCATTER,
    "_reduce_scatter_base": _REDUCE_SCATTER_TENSOR,
    "reduce_scatter_base": _REDUCE_SCATTER_TENSOR,
    "reduce_scatter_single": _REDUCE_SCATTER_TENSOR,
    "reduce_scatter_tensor": _REDUCE_SCATTER_TENSOR,
    "reduce_scatter_tensor_coalesced": _REDUCE_SCATTER_LIST,
    "gather": _GATHER,
    "scatter": _SCATTER,
    "all_to_all": _ALL_TO_ALL,
    "alltoall": _ALL_TO_ALL,
    "all_to_allv": _ALL_TO_ALL_SINGLE,
    "alltoallv": _ALL_TO_ALL_SINGLE,
    "all_to_all_v": _ALL_TO_ALL_SINGLE,
    "all_to_all_single": Spelled("c10d::alltoall_base_", "input", "output", even=True),
    "all_to_all_v_single": _ALL_TO_ALL_SINGLE,
    "alltoall_base": _ALL_TO_ALL_SINGLE,
    "send": _SEND,
    "isend": _SEND,
    "recv": _RECV,
    "irecv": _RECV,
    "recv_any_source": Spelled("c10d::recv_any_source_", "", "tensors[1]"),
    "recvanysource": Spelled("c10d::recv_any_source_", "", "tensors[1]"),
    "barrier": _BARRIER,
    "allreduce_barrier": _BARRIER,
    "all_reduce_barrier": _BARRIER,
    "monitored_barrier": _MONITORED_BARRIER,
}
"""By the backend's name for it, in lower case. The collective behind "all_to_all" with one tensor is the single one."""

SUMMARIES = frozenset({"coalesced", "allgather_coalesced", "reduce_scatter_coalesced", "batch_p2p_ops"})
"""Rows that stand for several collectives, whose members have rows of their own."""

NO_COLLECTIVES = frozenset({"wait", "wait_tensor", "mark", "init", "init_process_group", "group_start", "group_end"})
"""Rows that communicate nothing of their own."""

_DTYPES: Mapping[str, torch.dtype] = {
    "byte": torch.uint8,
    "unsigned char": torch.uint8,
    "unsigned short": torch.uint16,
    "unsigned short int": torch.uint16,
    "unsigned int": torch.uint32,
    "unsigned long": torch.uint64,
    "unsigned long int": torch.uint64,
    "unsigned long long": torch.uint64,
    "char": torch.int8,
    "signed char": torch.int8,
    "short int": torch.int16,
    "long int": torch.int64,
    "long long": torch.int64,
    "long long int": torch.int64,
    "complexhalf": torch.complex32,
    "complexfloat": torch.complex64,
    "complexdouble": torch.complex128,
    "complex<half>": torch.complex32,
    "complex<c10::half>": torch.complex32,
    "complex<float>": torch.complex64,
    "complex<double>": torch.complex128,
    "fp8": torch.float8_e4m3fn,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp64": torch.float64,
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
