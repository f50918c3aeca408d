"""Distributed checkpoints in a dry run: the collectives of saving and loading, and nothing written or read.

torch.distributed.checkpoint plans on every rank, then rank 0 of the group gathers the plans as pickled objects and
answers with objects. Here every rank plans for itself, as the only one, and each exchange of objects is made with
tensors as long as this rank's own object. So ops, groups and order are those of a real run; the lengths of the byte
tensors are only of its order of magnitude, because they depend on what the other ranks hold.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed import _state_dict_utils as state_dicts
from torch.distributed import checkpoint
from torch.distributed.checkpoint import default_planner, state_dict_loader, state_dict_saver
from torch.distributed.checkpoint import utils as exchanges
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import _utils as placed
from torch.distributed.tensor import placement_types
from torch.utils._python_dispatch import _disable_current_modes

from collective_rules.dryrun.patches import Patches
from collective_rules.errors import CollectiveRulesError

__all__ = ["ease_checkpoints"]

_SMALL = 1 << 20
"""A list of tensors is real up to so many bytes."""


def ease_checkpoints(patches: Patches) -> None:
    """Have checkpoints exchange what they exchange, and neither write nor read a file."""
    save, load = state_dict_saver._save_state_dict, state_dict_loader._load_state_dict

    @functools.wraps(save)
    def save_nowhere(state_dict: Any, storage_writer: Any, *args: Any, **named: Any) -> Any:
        return save(state_dict, _Nowhere(None), *args, **named)  # type: ignore[arg-type]

    @functools.wraps(load)
    def load_nothing(state_dict: Any, storage_reader: Any, *args: Any, **named: Any) -> None:
        return load(state_dict, _Nowhere(_metadata_of(state_dict)), *args, **named)  # type: ignore[arg-type]

    patches.replace_function(state_dict_saver, "_save_state_dict", save_nowhere)
    patches.replace_function(state_dict_loader, "_load_state_dict", load_nothing)
    for module in (state_dict_saver, state_dict_loader):
        patches.replace(module, "_storage_setup", _any_storage)
    patches.replace_function(checkpoint, "async_save", _save_at_once)
    for name, exchange in (
        ("reduce_scatter", _reduce_scatter),
        ("all_reduce", _all_reduce),
        ("all_gather", _all_gather),
        ("broadcast", _broadcast),
    ):
        patches.replace(exchanges._DistWrapper, name, _distributed(getattr(exchanges._DistWrapper, name), exchange))
    kind: Any = placement_types._StridedShard
    patches.replace(kind, "local_shard_size_and_offset", _counted(kind.local_shard_size_and_offset))
    offsets = "compute_local_shape_and_global_offset"
    patches.replace_function(placed, offsets, _outside_modes(getattr(placed, offsets)))
    patches.replace(state_dicts, "_broadcast_state_dict", _broadcast_state_dict(state_dicts._broadcast_state_dict))


def _any_storage(storage: Any, checkpoint_id: Any, reader: bool = False) -> Any:
    if not storage and not checkpoint_id:
        which = "storage_reader" if reader else "storage_writer"
        raise CollectiveRulesError(f"torch.distributed.checkpoint: give checkpoint_id or {which}")
    return storage


def _metadata_of(state_dict: Any) -> Metadata:
    """The metadata of a checkpoint that holds just what this rank wants to load."""
    planner = default_planner.DefaultSavePlanner()
    planner.set_up_planner(state_dict, None, True)
    _, metadata = planner.create_global_plan([planner.create_local_plan()])
    return metadata


class _Nowhere:
    """A storage that takes everything and keeps nothing; reading leaves what is loaded into as it is."""

    def __init__(self, metadata: Metadata | None) -> None:
        self._metadata = metadata

    def storage_meta(self) -> StorageMeta | None:
        return None

    def read_metadata(self) -> Metadata | None:
        return self._metadata

    def set_up_storage_writer(self, is_coordinator: bool) -> None: ...

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool) -> None: ...

    def prepare_local_plan(self, plan: Any) -> Any:
        return plan

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        return plans

    def write_data(self, plan: Any, planner: Any) -> torch.futures.Future[list[WriteResult]]:
        results = [
            WriteResult(item.index, 0, ("__0_0.distcp", place << 20, 1 << 20)) for place, item in enumerate(plan.items)
        ]
        return _done(results)

    def read_data(self, plan: Any, planner: Any) -> torch.futures.Future[None]:
        return _done(None)

    def finish(self, metadata: Metadata, results: Any) -> None: ...


def _done(value: Any) -> torch.futures.Future[Any]:
    future: torch.futures.Future[Any] = torch.futures.Future()
    future.set_result(value)
    return future


def _save_at_once(state_dict: Any, **named: Any) -> Any:
    """Stand in for `async_save`: the same exchanges, before it returns."""
    kind = named.pop("async_checkpointer_type", state_dict_saver.AsyncCheckpointerType.THREAD)
    stager = named.pop("async_stager", None)
    future: Future[Any] = Future()
    if kind == state_dict_saver.AsyncCheckpointerType.PROCESS:
        warnings.warn(
            "async_save in a process of its own: what that process communicates is not in the ledger of a dry run",
            stacklevel=2,
        )
        future.set_result(None)
    else:
        future.set_result(state_dict_saver.save(state_dict, **named))
    if not getattr(getattr(stager, "_config", None), "use_async_staging", False):
        return future
    staged: Future[None] = Future()
    staged.set_result(None)
    return state_dict_saver.AsyncSaveResponse(staging_completion=staged, upload_completion=future)


def _counted(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return strided shards' size and offsets by arithmetic; torch makes all shards' indices, and reads one's."""
    modes = placement_types._StridedShardOffsetMode

    @functools.wraps(original)
    def count(self: Any, curr_local_size: Any, num_chunks: int, rank: Any, offset_mode: Any = modes.FIRST) -> Any:
        if type(curr_local_size) is not int or type(rank) is not int:
            return original(self, curr_local_size, num_chunks, rank, offset_mode)
        ranges = []
        outer = -(-curr_local_size // self.split_factor)
        for start in range(0, curr_local_size, outer or 1):
            length = min(outer, curr_local_size - start)
            inner = -(-length // num_chunks)
            ranges.append(range(start + min(inner * rank, length), start + min(inner * (rank + 1), length)))
        size = sum(map(len, ranges))
        mode = modes(offset_mode)
        if mode is modes.NONE:
            return size, None
        offsets = itertools.chain.from_iterable(ranges)
        return size, list(offsets) if mode is modes.ALL else next(offsets, -1)

    return count


def _outside_modes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, which counts with tensors of integers, with every mode off."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return function(*args, **named)

    return call


def _distributed(original: Callable[..., Any], exchange: Callable[..., Any]) -> Callable[..., Any]:
    """Return `exchange`, but `original` where there is nothing to exchange with."""

    @functools.wraps(original)
    def call(self: Any, *args: Any, **named: Any) -> Any:
        return (exchange if self.use_dist else original)(self, *args, **named)

    return call


def _reduce_scatter(self: Any, step: str, map_fun: Callable[[], Any], reduce_fun: Callable[[list[Any]], Any]) -> Any:
    local = map_fun()
    _gather_object(self, local)
    answer = reduce_fun([local])[0]
    _scatter_object(self, answer)
    return answer


def _all_reduce(self: Any, step: str, map_fun: Callable[[], Any], reduce_fun: Callable[[list[Any]], Any]) -> Any:
    local = map_fun()
    _gather_object(self, local)
    answer = reduce_fun([local])
    _broadcast_object(answer, self.group, self.coordinator_rank)
    return answer


def _all_gather(self: Any, step: str, map_fun: Callable[[], Any]) -> list[Any]:
    local = map_fun()
    size, length = dist.get_world_size(self.group), _length(local)
    _gather_lengths(self.group, size)
    dist.all_gather(_pieces(size, length), _bytes(length), group=self.group)
    return [local]


def _broadcast(self: Any, step: str, map_fun: Callable[[], Any]) -> Any:
    answer = map_fun()
    _broadcast_object(answer, self.group, self.coordinator_rank)
    return answer


def _gather_lengths(group: Any, size: int) -> None:
    dist.all_gather(_pieces(size, 1, torch.int64), _number(), group=group)


def _gather_object(self: Any, local: Any) -> None:
    """What `gather_object` sends to the coordinator."""
    size, length = dist.get_world_size(self.group), _length(local)
    _gather_lengths(self.group, size)
    outputs = _pieces(size, length) if self.is_coordinator else None
    dist.gather(_bytes(length), outputs, group=self.group, group_dst=self.coordinator_rank)


def _scatter_object(self: Any, answer: Any) -> None:
    """What `scatter_object_list` sends from the coordinator."""
    size, length, source = dist.get_world_size(self.group), _length(answer), self.coordinator_rank
    dist.broadcast(_number(), group=self.group, group_src=source)
    for part, dtype in ((length, torch.uint8), (1, torch.int64)):
        inputs = _pieces(size, part, dtype) if self.is_coordinator else None
        dist.scatter(torch.empty(part, dtype=dtype), inputs, group=self.group, group_src=source)


def _broadcast_object(answer: Any, group: Any, source: int) -> None:
    """What `broadcast_object_list` sends of one object."""
    dist.broadcast(_number(), group=group, group_src=source)
    dist.broadcast(_bytes(_length(answer)), group=group, group_src=source)


def _pieces(count: int, length: int, dtype: torch.dtype = torch.uint8) -> list[torch.Tensor]:
    """Return `count` tensors of `length` elements, quickly: taking a fake tensor apart would take seconds."""
    fake = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    small = count * length * dtype.itemsize <= _SMALL or fake is None
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        whole = torch.empty(count * length, dtype=dtype, device="cpu" if small else "meta")
        parts = list(whole.split(length))
    return parts if small else [FakeTensor(fake, part, torch.device("cpu")) for part in parts]


def _bytes(length: int) -> torch.Tensor:
    return torch.empty(length, dtype=torch.uint8)


def _number() -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int64)


def _length(value: Any) -> int:
    """How many bytes `value` is when it is sent."""
    return len(pickle.dumps(value))


def _broadcast_state_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    """Have rank 0 send a state dict without pickling values, and other ranks take it to hold what theirs holds."""
    names = inspect.signature(original)

    @functools.wraps(original)
    def broadcast(*args: Any, **named: Any) -> None:
        given = names.bind(*args, **named).arguments
        local, device, group, is_source = (
            given["local_state_dict"],
            given["device"],
            given.get("pg"),
            not dist.get_rank(),
        )
        full = given["full_state_dict"] if is_source else local
        told = {
            key: state_dicts._TensorInfo(value.size(), value.dtype) if torch.is_tensor(value) else value
            for key, value in full.items()
        }
        _broadcast_object(told, group, 0)
        for key, what in told.items():
            if not isinstance(what, state_dicts._TensorInfo) or not what.size:
                if is_source and key in local:
                    local[key] = full[key]
                continue
            state_dicts._broadcast_tensors({key: full[key] if is_source else what}, local, [key], device, group)
            if given.get("cpu_offload"):
                local[key] = local[key].cpu()
        for key in set(local) - set(full) if given.get("strict") else ():
            del local[key]

    return broadcast
