"""Replacements for functions of training loops that read values, write files or start processes."""

from __future__ import annotations

import contextlib
import copy
import os
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.pipelining._utils import InferenceMode
from torch.utils._python_dispatch import _disable_current_modes

from collective_rules.dryrun.batchnorm import patch_batch_norm
from collective_rules.dryrun.devices import DeclaredDevices
from collective_rules.dryrun.fake_values import unknown
from collective_rules.dryrun.patches import Patches
from collective_rules.dryrun.zero_optimizer import patch_consolidation
from collective_rules.mode.simulated import is_unknown


def patch_training(patches: Patches, devices: DeclaredDevices, local_rank: int) -> None:
    """Replace functions that would read values, write files or start processes."""
    patch_consolidation(patches)
    patch_batch_norm(patches, lambda: bool(devices.kinds))
    _patch_devices_of_wrappers(patches, devices)
    _patch_collectives_of_accelerators(patches, devices)
    _patch_saving(patches)
    _patch_pipelining(patches)

    def spawn(original: object, fn: Callable[..., Any], args: tuple[Any, ...] = (), *_: Any, **__: Any) -> None:
        fn(local_rank, *args)

    patches.replace(spawn)


def _patch_devices_of_wrappers(patches: Patches, devices: DeclaredDevices) -> None:
    """Have DistributedDataParallel and FSDP1 accept the devices of accelerators."""

    def wrap_on_cpu(
        original: Callable[..., None],
        ddp: Any,
        module: Any,
        device_ids: Any = None,
        output_device: Any = None,
        *args: Any,
        **named: Any,
    ) -> None:
        original(ddp, module, None, None, *args, **named)

    def check_comm_hook(original: Callable[..., None], ddp: Any, hook: Any) -> None:
        if not (devices.kinds and getattr(hook, "__name__", "").startswith("bf16_compress")):
            original(ddp, hook)

    def shard_on_cpu(original: Callable[..., None], fsdp: Any, *args: Any, device_id: Any = None, **named: Any) -> None:
        device = devices.map(torch.device("cuda", device_id) if type(device_id) is int else device_id)
        original(fsdp, *args, device_id=device, **named)

    def accept_states(original: Callable[..., None], module_states: list[torch.Tensor]) -> None:
        if not devices.kinds:
            original(module_states)

    patches.replace(wrap_on_cpu, check_comm_hook, shard_on_cpu, accept_states)


def _has_memory(original: object, tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().size() > 0


def _stay_on_cpu(original: object, handle: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def _patch_collectives_of_accelerators(patches: Patches, devices: DeclaredDevices) -> None:
    """Use the collectives of accelerators where the program means one, and torch has others for the cpu."""

    def gather_in_one(original: Callable[..., Any], handle: Any, padded: torch.Tensor) -> Any:
        if not devices.kinds:
            return original(handle, padded)
        group = handle._fake_process_group if handle._use_fake_all_gather else handle.process_group
        dist.all_gather_single(padded, handle.flat_param.data, group)
        return padded

    def swap_dims(
        original: Callable[..., Any], tensor: torch.Tensor, gather_dim: int, shard_dim: int, mesh: Any, mesh_dim: int
    ) -> Any:
        if not devices.kinds:
            return original(tensor, gather_dim, shard_dim, mesh, mesh_dim)
        op: Callable[..., Any] = torch.ops._dtensor.shard_dim_alltoall
        return op(tensor, gather_dim, shard_dim, mesh.get_group(mesh_dim).group_name)

    patches.replace(gather_in_one, swap_dims)


def _compile(original: object, model: Any = None, **_: Any) -> Any:
    """Stand in for torch.compile: everything runs eagerly."""
    return (lambda function: function) if model is None else model


@torch.no_grad()
def _draw_normal(
    original: object, tensor: torch.Tensor, mean: float, std: float, *_: Any, **named: Any
) -> torch.Tensor:
    """Stand in for `trunc_normal_`, which draws again until it reads that all values are in bounds."""
    return tensor.normal_(mean, std, generator=named.get("generator"))


_no_validation = False
_no_weakrefs = types.SimpleNamespace(getweakrefs=lambda _: [])


class _Chunks:
    """The chunks of torch's `_chunk_with_empty`, each made when it is read.

    >>> chunks = _Chunks(torch.arange(5), 4, 0)
    >>> [chunks[place].tolist() for place in range(len(chunks))]
    [[0, 1], [2, 3], [4], []]
    """

    def __init__(self, tensor: torch.Tensor, num_chunks: int, dim: int) -> None:
        self._tensor, self._count, self._dim = tensor, num_chunks, dim
        length = tensor.size(dim)
        self._piece = -(-length // num_chunks)
        self._filled = -(-length // self._piece) if self._piece else num_chunks

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> torch.Tensor:
        place = range(self._count)[place]
        if place >= self._filled:
            return self._tensor.new_empty(0)
        start = place * self._piece
        return self._tensor.narrow(self._dim, start, min(self._piece, self._tensor.size(self._dim) - start))

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (self[place] for place in range(self._count))


def _refuse_pickling(original: object, tensor: torch.Tensor, protocol: int) -> Any:
    raise unknown("pickling a tensor")


def _read_array(original: Callable[..., Any], tensor: torch.Tensor, *args: Any, **named: Any) -> Any:
    """Stand in for `numpy` and `__array__`: an unknown number is an error, or reads as `item`."""
    if is_unknown(tensor):
        tensor = tensor.clone()
    if type(tensor) is torch.Tensor:
        return original(tensor, *args, **named)
    mode: Any = getattr(tensor, "fake_mode", None)
    number = mode.read(tensor) if mode is not None else None
    if number is None:
        raise unknown(f"Tensor.{original.__name__}")
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        return original(number.to(tensor.dtype).expand(tensor.shape), *args, **named)


def _read_list(original: Callable[..., Any], tensor: torch.Tensor) -> Any:
    """Stand in for `tolist`, which reads memory: the clone of an unknown tensor is a fake tensor."""
    return tensor.clone().tolist() if is_unknown(tensor) else original(tensor)


def _write_number(original: Callable[..., str], tensor: torch.Tensor, spec: str) -> str:
    is_number = bool(spec) and tensor.dim() == 0 and type(tensor) is not torch.Tensor
    return format(tensor.item(), spec) if is_number else original(tensor, spec)


def _draw_real(original: Callable[[Any], Any], sampler: Any) -> Iterator[Any]:
    """Return the indices of a sampler, drawn as real numbers."""
    with unset_fake_temporarily():
        return iter(list(original(sampler)))


def _load_here(original: Callable[..., None], loader: Any, dataset: Any, *args: Any, **named: Any) -> None:
    """Have a data loader load in this process."""
    names = ("batch_size", "shuffle", "sampler", "batch_sampler", "num_workers", "collate_fn", "pin_memory")
    named = dict(zip(names, args, strict=False)) | named
    for name in ("num_workers", "prefetch_factor", "persistent_workers", "multiprocessing_context", "timeout"):
        named.pop(name, None)
    named["pin_memory"] = False
    original(loader, dataset, **named)


def _patch_saving(patches: Patches) -> None:
    """Keep saved objects in memory, and load them from there."""
    paths: dict[str, Any] = {}
    buffers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def save(original: object, obj: Any, f: Any, *_: Any, **__: Any) -> None:
        path = _path(f)
        if path:
            paths[path] = obj
        else:
            buffers[f] = obj

    def load(original: Callable[..., Any], f: Any, *args: Any, **named: Any) -> Any:
        path = _path(f)
        if path in paths:
            return copy.copy(paths[path])
        if not path and f in buffers:
            return copy.copy(buffers[f])
        return original(f, *args, **named)

    patches.replace(save, load)


def _path(f: Any) -> str:
    """Return the path of a file, and "" for a buffer or the like."""
    name = f if isinstance(f, (str, os.PathLike)) else getattr(f, "name", None)
    return os.path.abspath(os.fspath(name)) if isinstance(name, (str, os.PathLike)) else ""


def _disable_scaler(original: Callable[..., None], scaler: Any, *_: Any, **__: Any) -> None:
    """Have every step of a `GradScaler` be taken, as if no gradient had overflowed."""
    original(scaler, "cpu", enabled=False)


def _patch_pipelining(patches: Patches) -> None:
    """Have each stage's own vote on shapes stand for the votes of all stages, whose answers never come."""
    votes: weakref.WeakKeyDictionary[Any, torch.Tensor] = weakref.WeakKeyDictionary()

    def vote(original: Callable[..., Any], stage: Any, has_backward: bool, received_acc: Any = None) -> torch.Tensor:
        original(stage, has_backward, received_acc)
        dynamic = InferenceMode.needs_dynamic(stage._user_meta, has_backward)
        votes[stage] = torch.tensor([0 if dynamic else 1], dtype=torch.int32)
        return votes[stage]

    def count_votes(original: Callable[..., Any], stage: Any, received_result: Any = None) -> torch.Tensor:
        original(stage, received_result)
        return votes[stage]

    patches.replace(vote, count_votes)
