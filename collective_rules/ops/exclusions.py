"""Ops of the collective namespaces that have no rule, each with the reason. Rows only."""

from __future__ import annotations

from collections.abc import Mapping

_FSDP = "It copies between this rank's own tensors; FSDP's collectives are c10d ops of their own."
_SIGNAL = "It blocks the stream until a signal arrives on this rank; no tensor moves."

EXCLUSIONS: Mapping[str, str] = {
    "c10d::check_for_nan": "It looks at one local tensor; no other rank is involved.",
    "_c10d_functional::_wrap_tensor_autograd": "It wraps a local tensor for autograd; no other rank is involved.",
    "_dtensor::mesh_get_process_group": "It looks a process group up in a DeviceMesh; no tensor moves.",
    "fsdp::all_gather_copy_in": _FSDP,
    "fsdp::chunk_cat": _FSDP,
    "fsdp::chunk_cat_mixed_dtype": _FSDP,
    "fsdp::copy_": _FSDP,
    "fsdp::record_grad_output_stream": "It notes on which stream a buffer is used; no tensor moves.",
    "fsdp::split_with_sizes_copy": _FSDP,
    "symm_mem::_async_input_mm": "It is a local matmul that waits for local signals; no tensor moves between ranks.",
    "symm_mem::_rendezvous": "It exchanges memory handles on the host and returns a SymmetricMemory; no tensor moves.",
    "symm_mem::memset32_": "It fills part of a local tensor; no other rank is involved.",
    "symm_mem::nccl_wait_for_signal": _SIGNAL,
    "symm_mem::nccl_wait_signal": _SIGNAL,
    "symm_mem::nvshmem_wait_for_signal": _SIGNAL,
    "symm_mem::stream_write_value32_": "It writes one number of a local tensor; no other rank is involved.",
}
