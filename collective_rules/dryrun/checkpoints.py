"""Distributed checkpoints in a dry run: the collectives of saving and loading, and nothing written or read.

torch.distributed.checkpoint plans on every rank, then rank 0 of the group gathers the plans as pickled objects and
answers with objects. In a dry run every rank plans as if it were the only one, and each exchange of objects sends
tensors as long as this rank's own object. So ops, groups and order are those of a real run; the lengths of the byte
tensors are only of its order of magnitude, because they depend on the objects of the other ranks.
"""

from __future__ import annotations

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
from torch.distributed.checkpoint import default_planner, state_dict_saver
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor.placement_types import _StridedShardOffsetMode as _OffsetMode
from torch.utils._python_dispatch import _disable_current_modes

from collective_rules.errors import CollectiveRulesError

_SMALL = 1 << 20
"""The bytes up to which a list of tensors is real."""


def _save_nowhere(original: Callable[..., Any], state_dict: Any, storage_writer: Any, *args: Any, **named: Any) -> Any:
    return original(state_dict, _Nowhere(None), *args, **named)


def _load_nothing(
    original: Callable[..., None], state_dict: Any, storage_reader: Any, *args: Any, **named: Any
) -> None:
    original(state_dict, _Nowhere(_metadata_of(state_dict)), *args, **named)


def _any_storage(original: object, storage: Any, checkpoint_id: Any, reader: bool = False) -> Any:
    if not storage and not checkpoint_id:
        which = "storage_reader" if reader else "storage_writer"
        raise CollectiveRulesError(f"torch.distributed.checkpoint: give checkpoint_id or {which}")
    return storage


def _metadata_of(state_dict: Any) -> Metadata:
    """Return the metadata of a checkpoint that holds the values that this rank loads, and nothing else."""
    planner = default_planner.DefaultSavePlanner()
    planner.set_up_planner(state_dict, None, True)
    _, metadata = planner.create_global_plan([planner.create_local_plan()])
    return metadata


class _Nowhere:
    """A storage that accepts everything and keeps nothing; reading leaves the target as it is."""

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


def _save_at_once(original: object, state_dict: Any, **named: Any) -> Any:
    """Stand in for `async_save`: make the same exchanges before the return."""
    kind = named.pop("async_checkpointer_type", state_dict_saver.AsyncCheckpointerType.THREAD)
    stager = named.pop("async_stager", None)
    future: Future[Any] = Future()
    if kind == state_dict_saver.AsyncCheckpointerType.PROCESS:
        warnings.warn(
            "async_save in a process of its own: the ledger of a dry run lacks the calls of that process", stacklevel=3
        )
        future.set_result(None)
    else:
        future.set_result(state_dict_saver.save(state_dict, **named))
    if not getattr(getattr(stager, "_config", None), "use_async_staging", False):
        return future
    staged: Future[None] = Future()
    staged.set_result(None)
    return state_dict_saver.AsyncSaveResponse(staging_completion=staged, upload_completion=future)


def _shard_size_and_offset(
    original: Callable[..., Any],
    shard: Any,
    curr_local_size: Any,
    num_chunks: int,
    rank: Any,
    offset_mode: Any = _OffsetMode.FIRST,
) -> Any:
    """Return a strided shard's size and offsets by arithmetic; torch makes the indices of all shards, and reads one."""
    if type(curr_local_size) is not int or type(rank) is not int:
        return original(shard, curr_local_size, num_chunks, rank, offset_mode)
    ranges = []
    outer = -(-curr_local_size // shard.split_factor)
    for start in range(0, curr_local_size, outer or 1):
        length = min(outer, curr_local_size - start)
        inner = -(-length // num_chunks)
        ranges.append(range(start + min(inner * rank, length), start + min(inner * (rank + 1), length)))
    size = sum(map(len, ranges))
    mode = _OffsetMode(offset_mode)
    if mode is _OffsetMode.NONE:
        return size, None
    offsets = itertools.chain.from_iterable(ranges)
    return size, list(offsets) if mode is _OffsetMode.ALL else next(offsets, -1)


def _exchange(
    original: Callable[..., Any],
    ranks: Any,
    step: str,
    map_fun: Callable[[], Any],
    reduce_fun: Callable[[list[Any]], Any] | None = None,
) -> Any:
    """Make the exchange of a method of `_DistWrapper`, and return the result as if this rank were the only one."""
    if not ranks.use_dist:
        return original(ranks, step, map_fun, *(() if reduce_fun is None else (reduce_fun,)))
    local, name = map_fun(), original.__name__
    if name == "all_gather":
        size, length = dist.get_world_size(ranks.group), _length(local)
        _gather_lengths(ranks.group, size)
        dist.all_gather(_pieces(size, length), _bytes(length), group=ranks.group)
        return [local]
    if reduce_fun is not None:
        _gather_object(ranks, local)
    if name == "reduce_scatter":
        answer = reduce_fun([local])[0] if reduce_fun else None
        _scatter_object(ranks, answer)
    else:
        answer = reduce_fun([local]) if reduce_fun else local
        _broadcast_object(answer, ranks.group, ranks.coordinator_rank)
    return answer


def _gather_lengths(group: Any, size: int) -> None:
    dist.all_gather(_pieces(size, 1, torch.int64), _number(), group=group)


def _gather_object(ranks: Any, local: Any) -> None:
    """Send what `gather_object` sends to the coordinator."""
    size, length = dist.get_world_size(ranks.group), _length(local)
    _gather_lengths(ranks.group, size)
    outputs = _pieces(size, length) if ranks.is_coordinator else None
    dist.gather(_bytes(length), outputs, group=ranks.group, group_dst=ranks.coordinator_rank)


def _scatter_object(ranks: Any, answer: Any) -> None:
    """Send what `scatter_object_list` sends from the coordinator."""
    size, length, source = dist.get_world_size(ranks.group), _length(answer), ranks.coordinator_rank
    dist.broadcast(_number(), group=ranks.group, group_src=source)
    for part, dtype in ((length, torch.uint8), (1, torch.int64)):
        inputs = _pieces(size, part, dtype) if ranks.is_coordinator else None
        dist.scatter(torch.empty(part, dtype=dtype), inputs, group=ranks.group, group_src=source)


def _broadcast_object(answer: Any, group: Any, source: int) -> None:
    """Send what `broadcast_object_list` sends for one object."""
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
    """Return the number of bytes of `value` when it is sent."""
    return len(pickle.dumps(value))


def _broadcast_state_dict(original: Callable[..., Any], *args: Any, **named: Any) -> None:
    """Send a state dict from rank 0 without pickling values; another rank receives one like its own."""
    given = inspect.signature(original).bind(*args, **named).arguments
    local, device, group = given["local_state_dict"], given["device"], given.get("pg")
    is_source = dist.get_rank() == 0
    full = given["full_state_dict"] if is_source else local
    sent = {
        key: state_dicts._TensorInfo(value.size(), value.dtype) if torch.is_tensor(value) else value
        for key, value in full.items()
    }
    _broadcast_object(sent, group, 0)
    for key, info in sent.items():
        if not isinstance(info, state_dicts._TensorInfo) or not info.size:
            if is_source and key in local:
                local[key] = full[key]
            continue
        state_dicts._broadcast_tensors({key: full[key] if is_source else info}, local, [key], device, group)
        if given.get("cpu_offload"):
            local[key] = local[key].cpu()
    for key in set(local) - set(full) if given.get("strict") else ():
        del local[key]
