"""What training loops use besides collectives, done so that it needs no values and no other process."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp import _flat_param as flat_parameters
from torch.distributed.fsdp import _init_utils as fsdp1
from torch.distributed.fsdp._fully_shard import _fsdp_common, _fsdp_param
from torch.distributed.pipelining import _utils as pipeline_modes
from torch.distributed.pipelining import stage as pipelining
from torch.distributed.tensor import _collective_utils as tensor_collectives
from torch.nn.attention import flex_attention as flex
from torch.nn.parallel import distributed as ddp
from torch.utils import data
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.data import distributed as distributed_data
from torch.utils.data import sampler

from collective_rules.dryrun.attention import attend_flexibly
from collective_rules.dryrun.batchnorm import ease_batch_norm
from collective_rules.dryrun.checkpoints import ease_checkpoints
from collective_rules.dryrun.devices import DeclaredDevices
from collective_rules.dryrun.fake_values import unknown
from collective_rules.dryrun.patches import Patches
from collective_rules.dryrun.zero_optimizer import ease_consolidation
from collective_rules.mode.simulated import is_unknown

__all__ = ["ease_training"]


def ease_training(patches: Patches, devices: DeclaredDevices, local_rank: int) -> None:
    """Replace what would read values, write files or start processes."""
    patches.replace_function(torch, "compile", _compile)
    patches.replace_function(flex, "flex_attention", attend_flexibly(flex.flex_attention))
    patches.replace(torch.nn.Module, "compile", lambda self, *_, **__: None)
    _ease_loading(patches)
    _ease_saving(patches)
    ease_checkpoints(patches)
    ease_consolidation(patches)
    ease_batch_norm(patches, lambda: bool(devices.kinds))
    _communicate_as_accelerators(patches, devices)
    _ease_scaler(patches)
    for owner in (_fsdp_common, _fsdp_param):
        patches.replace(owner, "_chunk_with_empty", _Chunks)
    verify = "_verify_param_shape_across_processes"
    patches.replace(ddp, verify, _real(getattr(ddp, verify)))
    # Fake tensors have weak references of their mode's, for which torch would not convert a module's parameters.
    patches.replace(torch.utils, "weakref", types.SimpleNamespace(getweakrefs=lambda _: []))
    patches.replace(torch.nn.init, "_no_grad_trunc_normal_", _draw_normal)
    patches.replace(torch.distributions.Distribution, "_validate_args", False)
    _ease_pipelining(patches)
    wrap: Callable[..., Any] = ddp.DistributedDataParallel.__init__

    @functools.wraps(wrap)
    def wrap_on_cpu(
        self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *args: Any, **named: Any
    ) -> None:
        wrap(self, module, None, None, *args, **named)

    patches.replace(ddp.DistributedDataParallel, "__init__", wrap_on_cpu)
    check_hook: Any = ddp.DistributedDataParallel._check_comm_hook

    @functools.wraps(check_hook)
    def check_other_hooks(self: Any, hook: Any) -> None:
        # Of these torch asks whether it was built for CUDA.
        if not (devices.kinds and getattr(hook, "__name__", "").startswith("bf16_compress")):
            check_hook(self, hook)

    patches.replace(ddp.DistributedDataParallel, "_check_comm_hook", check_other_hooks)
    shard: Callable[..., Any] = FullyShardedDataParallel.__init__

    @functools.wraps(shard)
    def shard_on_cpu(self: Any, *args: Any, device_id: Any = None, **named: Any) -> None:
        device = devices.map(torch.device("cuda", device_id) if type(device_id) is int else device_id)
        shard(self, *args, device_id=device, **named)

    patches.replace(FullyShardedDataParallel, "__init__", shard_on_cpu)
    for name in ("numpy", "__array__"):
        patches.replace(torch.Tensor, name, _known_only(name, getattr(torch.Tensor, name)))
    patches.replace(torch.Tensor, "tolist", _list_known(torch.Tensor.tolist))
    patches.replace(FakeTensor, "__reduce_ex__", _refuse_pickling)
    write: Callable[..., Any] = torch.Tensor.__format__

    def write_number(self: torch.Tensor, spec: str) -> str:
        number = bool(spec) and self.dim() == 0 and type(self) is not torch.Tensor
        return format(self.item(), spec) if number else str(write(self, spec))

    patches.replace(torch.Tensor, "__format__", write_number)

    def spawn(fn: Callable[..., Any], args: tuple[Any, ...] = (), *_: Any, **__: Any) -> None:
        fn(local_rank, *args)

    patches.replace_function(torch.multiprocessing, "spawn", spawn)


def _communicate_as_accelerators(patches: Patches, devices: DeclaredDevices) -> None:
    """Use the collectives of accelerators, where the program means one, and torch has others for the cpu."""
    handle: Any = flat_parameters.FlatParamHandle
    gather: Callable[..., Any] = handle._all_gather_flat_param
    swap: Callable[..., Any] = tensor_collectives.shard_dim_alltoall

    @functools.wraps(gather)
    def gather_in_one(self: Any, padded: torch.Tensor) -> Any:
        if not devices.kinds:
            return gather(self, padded)
        group = self._fake_process_group if self._use_fake_all_gather else self.process_group
        dist.all_gather_single(padded, self.flat_param.data, group)
        return padded

    @functools.wraps(swap)
    def swap_dims(tensor: torch.Tensor, gather_dim: int, shard_dim: int, mesh: Any, mesh_dim: int) -> Any:
        if not devices.kinds:
            return swap(tensor, gather_dim, shard_dim, mesh, mesh_dim)
        group = mesh.get_group(mesh_dim).group_name
        op: Callable[..., Any] = torch.ops._dtensor.shard_dim_alltoall
        return op(tensor, gather_dim, shard_dim, group)

    must_be_on_accelerator = fsdp1._check_module_states_for_sync_module_states

    @functools.wraps(must_be_on_accelerator)
    def may_be_mapped(module_states: list[torch.Tensor]) -> None:
        if not devices.kinds:
            must_be_on_accelerator(module_states)

    patches.replace(flat_parameters, "_data_ptr_allocated", lambda tensor: tensor.untyped_storage().size() > 0)
    patches.replace(fsdp1, "_check_module_states_for_sync_module_states", may_be_mapped)
    # What is moved to the cpu is there already; torch takes its memory for not yet freed.
    patches.replace(handle, "to_cpu", lambda self: contextlib.nullcontext())
    patches.replace(handle, "_all_gather_flat_param", gather_in_one)
    patches.replace_function(tensor_collectives, "shard_dim_alltoall", swap_dims)


def _compile(model: Any = None, **_: Any) -> Any:
    """Stand in for torch.compile: everything runs eagerly."""
    return (lambda function: function) if model is None else model


@torch.no_grad()
def _draw_normal(tensor: torch.Tensor, mean: float, std: float, *_: Any, **named: Any) -> torch.Tensor:
    """Stand in for `trunc_normal_`, which draws again till it has read that no value is out of bounds."""
    return tensor.normal_(mean, std, generator=named.get("generator"))


class _Chunks:
    """torch's `_chunk_with_empty` without its list, which is as long as the group is large.

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


def _real(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with the fake mode off: it reads and sends values of its own making."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **named)

    return call


def _refuse_pickling(self: torch.Tensor, protocol: int) -> Any:
    raise unknown("pickling a tensor")


def _known_only(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: torch.Tensor, *args: Any, **named: Any) -> Any:
        if is_unknown(self):
            self = self.clone()
        if type(self) is torch.Tensor:
            return method(self, *args, **named)
        mode: Any = getattr(self, "fake_mode", None)
        number = mode.read(self) if mode is not None else None
        if number is None:
            raise unknown(f"Tensor.{name}")
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return method(number.to(self.dtype).expand(self.shape), *args, **named)

    return call


def _list_known(to_list: Callable[..., Any]) -> Callable[..., Any]:
    """Return `tolist`, which reads a tensor's memory, for tensors of which it means something."""

    @functools.wraps(to_list)
    def call(self: torch.Tensor) -> Any:
        return self.clone().tolist() if is_unknown(self) else to_list(self)

    return call


def _ease_loading(patches: Patches) -> None:
    """Have samplers draw real indices, and loaders load in this process."""

    def drawn(iterate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(iterate)
        def draw(self: Any) -> Iterator[Any]:
            with unset_fake_temporarily():
                indices = list(iterate(self))
            return iter(indices)

        return draw

    samplers: tuple[Any, ...] = (
        sampler.RandomSampler,
        sampler.SubsetRandomSampler,
        sampler.WeightedRandomSampler,
        distributed_data.DistributedSampler,
    )
    for kind in samplers:
        patches.replace(kind, "__iter__", drawn(kind.__iter__))
    patches.replace_function(data.dataset, "random_split", _real(data.dataset.random_split))
    load = data.DataLoader.__init__

    @functools.wraps(load)
    def load_here(self: Any, dataset: Any, *args: Any, **named: Any) -> None:
        names = ("batch_size", "shuffle", "sampler", "batch_sampler", "num_workers", "collate_fn", "pin_memory")
        named = dict(zip(names, args, strict=False)) | named
        for name in ("num_workers", "prefetch_factor", "persistent_workers", "multiprocessing_context", "timeout"):
            named.pop(name, None)
        named["pin_memory"] = False
        load(self, dataset, **named)

    patches.replace(data.DataLoader, "__init__", load_here)


def _ease_saving(patches: Patches) -> None:
    """Write no file, and give back what the program takes for saved."""
    paths: dict[str, Any] = {}
    buffers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
    load = torch.load

    def keep(obj: Any, f: Any, *_: Any, **__: Any) -> None:
        path = _path(f)
        if path:
            paths[path] = obj
        else:
            buffers[f] = obj

    @functools.wraps(load)
    def take(f: Any, *args: Any, **named: Any) -> Any:
        path = _path(f)
        if path in paths:
            return copy.copy(paths[path])
        if not path and f in buffers:
            return copy.copy(buffers[f])
        return load(f, *args, **named)

    patches.replace_function(torch, "save", keep)
    patches.replace_function(torch, "load", take)


def _path(f: Any) -> str:
    """Return where a file is; "" for what is none, such as a buffer."""
    name = f if isinstance(f, (str, os.PathLike)) else getattr(f, "name", None)
    return os.path.abspath(os.fspath(name)) if isinstance(name, (str, os.PathLike)) else ""


def _ease_scaler(patches: Patches) -> None:
    """Have every step of a `GradScaler` be taken, as if no gradient had overflowed."""
    scaler: Any = torch.amp.GradScaler
    init = scaler.__init__

    def disabled(self: Any, device: str = "cuda", *args: Any, **named: Any) -> None:
        init(self, "cpu", enabled=False)

    patches.replace(scaler, "__init__", disabled)
    patches.replace(torch.cuda.amp.GradScaler, "__init__", lambda self, *_, **__: init(self, "cpu", enabled=False))


def _ease_pipelining(patches: Patches) -> None:
    """Let each stage's own vote (whether shapes are given) stand for all: the answer of the others never comes."""
    votes: weakref.WeakKeyDictionary[Any, torch.Tensor] = weakref.WeakKeyDictionary()
    stage = pipelining.PipelineStage
    ask, answer = stage._warmup_forward_vote, stage._warmup_backward_result

    def vote(self: Any, has_backward: bool, received_acc: Any = None) -> torch.Tensor:
        ask(self, has_backward, received_acc)
        dynamic = pipeline_modes.InferenceMode.needs_dynamic(self._user_meta, has_backward)
        votes[self] = torch.tensor([0 if dynamic else 1], dtype=torch.int32)
        return votes[self]

    def result(self: Any, received_result: Any = None) -> torch.Tensor:
        answer(self, received_result)
        return votes[self]

    patches.replace(stage, "_warmup_forward_vote", vote)
    patches.replace(stage, "_warmup_backward_result", result)
