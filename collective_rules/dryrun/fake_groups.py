"""Process groups of any size in one process: torch's fake ones, whatever backend the program asks for."""

from __future__ import annotations

import functools
import os
import pickle
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed import device_mesh, distributed_c10d
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

from collective_rules.dryrun.devices import DeclaredDevices
from collective_rules.dryrun.patches import Patches
from collective_rules.errors import CollectiveRulesError

__all__ = ["fake_groups", "torchrun_environment"]

_OBJECTS = (
    "all_gather_object",
    "gather_object",
    "broadcast_object_list",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
)


def fake_groups(patches: Patches, mode: DeclaredDevices, world_size: int, rank: int) -> None:
    """Have every process group be a fake one, and object collectives and meshes work without values."""
    declared: dict[Any, str] = {}
    init, new_group, get_backend = dist.init_process_group, dist.new_group, dist.get_backend

    @functools.wraps(init)
    def init_process_group(
        backend: str | None = None,
        init_method: str | None = None,
        timeout: timedelta | None = None,
        world_size: int = -1,
        rank: int = -1,
        store: Any = None,
        *_: Any,
        **named: Any,
    ) -> None:
        _must_match("world_size", "WORLD_SIZE", world_size, sizes[0])
        _must_match("rank", "RANK", rank, sizes[1])
        if (backend is not None and "cuda" in backend.lower()) or backend == "nccl":
            mode.map("cuda")
        mode.map(named.get("device_id"))
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            init("fake", store=FakeStore(), rank=sizes[1], world_size=sizes[0])
        declared[dist.group.WORLD] = _main_name(backend)

    sizes = (world_size, rank)

    @functools.wraps(new_group)
    def new(
        ranks: Any = None, timeout: Any = None, backend: Any = None, pg_options: Any = None, *args: Any, **named: Any
    ) -> Any:
        named.pop("device_id", None)
        world = distributed_c10d._get_default_group()
        if ranks is not None and sizes[1] not in ranks and not args and not named.get("use_local_synchronization"):
            # A group of others: only its name is used up, as in a real run.
            distributed_c10d._process_group_name(list(ranks), use_hashed_name=False)
            return dist.GroupMember.NON_GROUP_MEMBER
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            made = new_group(ranks, None, None, None, *args, **named)
        declared[made] = _main_name(backend) if backend else declared.get(world, "undefined")
        return made

    def split_group(
        parent_pg: Any = None,
        split_ranks: Any = None,
        timeout: Any = None,
        pg_options: Any = None,
        group_desc: str | None = None,
        *_: Any,
        **__: Any,
    ) -> Any:
        own = None
        ranks = dist.get_process_group_ranks(parent_pg or distributed_c10d._get_default_group())
        for part in split_ranks or ():
            made = new([ranks[place] for place in part], group_desc=group_desc)
            own = made if rank in {ranks[place] for place in part} else own
        return own

    @functools.wraps(get_backend)
    def backend_of(group: Any = None) -> str:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        # From 2.14 on torch's pipelines take another way where a group is a fake one.
        if caller.startswith("torch.") and not caller.startswith("torch.distributed.pipelining."):
            return str(get_backend(group))
        return declared.get(group or dist.group.WORLD) or str(get_backend(group))

    @functools.wraps(dist.monitored_barrier)
    def monitored_barrier(group: Any = None, timeout: Any = None, wait_all_ranks: bool = False) -> None:
        used: Any = group or distributed_c10d._get_default_group()
        used.monitored_barrier(timeout or timedelta(minutes=30), wait_all_ranks=wait_all_ranks)

    for name, replacement in (
        ("init_process_group", init_process_group),
        ("new_group", new),
        ("split_group", split_group),
        ("get_backend", backend_of),
        ("monitored_barrier", monitored_barrier),
    ):
        patches.replace_function(distributed_c10d, name, replacement)
    for name in ("is_nccl_available", "is_gloo_available"):
        patches.replace(dist, name, lambda: True)
    exchanges = {name: getattr(distributed_c10d, name, None) for name in _OBJECTS}
    exchanges["broadcast_object_list"] = _broadcast_own(dist.broadcast_object_list)
    for name in _OBJECTS:
        if hasattr(dist, name):
            patches.replace_function(distributed_c10d, name, _with_real_tensors(exchanges[name]))
    _mesh_outside_modes(patches, mode)


def _must_match(name: str, variable: str, given: int, expected: int) -> None:
    if given not in (-1, expected):
        raise CollectiveRulesError(
            f"init_process_group({name}={given}), but the dry run has {variable}={expected}: "
            f"let the script read {variable}, or dry-run with {name}={given}"
        )


def _main_name(backend: str | None) -> str:
    """Return what `get_backend` says of "cpu:gloo,cuda:nccl", that is "nccl".

    >>> _main_name("cpu:gloo,cuda:nccl"), _main_name("gloo"), _main_name(None)
    ('nccl', 'gloo', 'nccl')
    """
    if not backend:
        return "nccl"
    pairs = dict(part.split(":", 1) for part in backend.lower().split(",") if ":" in part)
    return pairs.get("cuda") or next(iter(pairs.values()), backend.lower())


def _broadcast_own(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `broadcast_object_list` that leaves a receiver's objects as they are, where it has any."""

    @functools.wraps(original)
    def broadcast(
        object_list: list[Any], src: int | None = None, group: Any = None, device: Any = None, group_src: Any = None
    ) -> None:
        if distributed_c10d._rank_not_in_group(group) or any(value is None for value in object_list):
            original(object_list, src, group, device, group_src)
            return
        root = {"src": src or 0} if group_src is None else {"group_src": group_src}
        lengths = torch.tensor([len(pickle.dumps(value)) for value in object_list])
        for tensor in (lengths, torch.empty(int(lengths.sum()), dtype=torch.uint8)):
            dist.broadcast(tensor, group=group, **root)

    return broadcast


def _with_real_tensors(function: Any) -> Callable[..., Any]:
    """Return `function` with the fake mode, but no other, off: what it sends are the values of control data."""

    @functools.wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        named.pop("device", None)
        with unset_fake_temporarily():
            return function(*args, **named)

    return call


def _mesh_outside_modes(patches: Patches, mode: DeclaredDevices) -> None:
    """Have the methods of `DeviceMesh`, which read the values of its tensor of ranks, run outside of all modes."""

    def outside(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                return function(
                    *(mode.map(value) for value in args), **{name: mode.map(value) for name, value in named.items()}
                )

        return call

    mesh: Any = device_mesh.DeviceMesh
    for name, value in list(vars(mesh).items()):
        if isinstance(value, staticmethod):
            patches.replace(mesh, name, staticmethod(outside(value.__func__)))
        elif isinstance(value, classmethod):
            patches.replace(mesh, name, classmethod(outside(value.__func__)))
        elif callable(value) and (name == "__init__" or not name.startswith("__") or name == "__getitem__"):
            patches.replace(mesh, name, outside(value))
    patches.replace_function(device_mesh, "init_device_mesh", outside(device_mesh.init_device_mesh))


def torchrun_environment(world_size: int, rank: int, local_world_size: int) -> dict[str, str]:
    """Return what torchrun sets in the environment of this rank."""
    nodes = -(-world_size // local_world_size)
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank % local_world_size),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "GROUP_RANK": str(rank // local_world_size),
        "GROUP_WORLD_SIZE": str(nodes),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(world_size),
        "ROLE_NAME": "default",
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT", "29500"),
        "TORCHELASTIC_RUN_ID": "dry-run",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
