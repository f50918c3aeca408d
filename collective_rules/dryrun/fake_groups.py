"""Process groups of any size in one process: torch's fake ones, whatever backend the program asks for."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed import distributed_c10d
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import _disable_current_modes

from collective_rules.dryrun.devices import DeclaredDevices
from collective_rules.dryrun.patches import Patches, calling_module
from collective_rules.errors import CollectiveRulesError


def patch_groups(patches: Patches, devices: DeclaredDevices, world_size: int, rank: int) -> None:
    """Have every process group be a fake one, and object collectives and meshes work without values."""
    declared: dict[Any, str] = {}
    sizes = (world_size, rank)

    def init_process_group(
        original: Callable[..., None],
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
            devices.name("cuda")
        devices.map(named.get("device_id"))
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            original("fake", store=FakeStore(), rank=sizes[1], world_size=sizes[0])
        declared[dist.group.WORLD] = _main_name(backend)
        _backend_configs()[dist.group.WORLD] = _config(backend)

    def new_group(
        original: Callable[..., Any],
        ranks: Any = None,
        timeout: Any = None,
        backend: Any = None,
        pg_options: Any = None,
        *args: Any,
        **named: Any,
    ) -> Any:
        named.pop("device_id", None)
        world = distributed_c10d._get_default_group()
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            made = original(ranks, None, None, None, *args, **named)
        if made in (None, dist.GroupMember.NON_GROUP_MEMBER):
            return made
        declared[made] = _main_name(backend) if backend else declared.get(world, "undefined")
        _backend_configs()[made] = _config(backend) if backend else _backend_configs()[world]
        return made

    def split_group(
        original: object,
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
            members = [ranks[place] for place in part]
            made = distributed_c10d.new_group(members, group_desc=group_desc)
            own = made if rank in members else own
        return own

    def get_backend(original: Callable[..., str], group: Any = None) -> str:
        caller = calling_module()
        # From 2.14 on torch's pipelines take another way where a group is a fake one.
        if caller.startswith("torch.") and not caller.startswith("torch.distributed.pipelining."):
            return original(group)
        return declared.get(group or dist.group.WORLD) or original(group)

    def outside_modes(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return original(
                *(devices.map(value) for value in args), **{name: devices.map(value) for name, value in named.items()}
            )

    patches.replace(init_process_group, new_group, split_group, get_backend, outside_modes)


def _monitored_barrier(
    original: object, group: Any = None, timeout: timedelta | None = None, wait_all_ranks: bool = False
) -> None:
    used: Any = group or distributed_c10d._get_default_group()
    used.monitored_barrier(timeout or timedelta(minutes=30), wait_all_ranks=wait_all_ranks)


def _must_match(name: str, variable: str, given: int, expected: int) -> None:
    if given not in (-1, expected):
        raise CollectiveRulesError(
            f"init_process_group({name}={given}), but the dry run has {variable}={expected}: "
            f"let the script read {variable}, or dry-run with {name}={given}"
        )


def _main_name(backend: str | None) -> str:
    """Return the answer of `get_backend` for a backend that may have a part for each device.

    >>> _main_name("cpu:gloo,cuda:nccl"), _main_name("gloo"), _main_name(None)
    ('nccl', 'gloo', 'nccl')
    """
    if not backend:
        return "nccl"
    pairs = dict(part.split(":", 1) for part in backend.lower().split(",") if ":" in part)
    return pairs.get("cuda") or next(iter(pairs.values()), backend.lower())


def _config(backend: str | None) -> str:
    """Return the backends of a group by device type, as torch writes them for the backend that a program names.

    >>> _config("nccl"), _config("CPU:gloo,cuda:nccl"), _config(None)
    ('cuda:nccl', 'cpu:gloo,cuda:nccl', 'cpu:gloo,cuda:nccl,xpu:xccl,mps:gloo')
    """
    if not backend:
        defaults = dist.Backend.default_device_backend_map  # to which the fake backend has added itself
        return ",".join(f"{device}:{name}" for device, name in defaults.items() if name != "fake")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a backend that is not registered here
        return repr(distributed_c10d.BackendConfig(dist.Backend(backend)))


def _backend_configs() -> dict[Any, str]:
    """Return torch's own record of the backends of each group, by which a call is judged."""
    return distributed_c10d._world.pg_backend_config


def _with_real_tensors(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """Call `original` with the fake mode, but no other, off: it reads the values of tensors that it makes."""
    named.pop("device", None)
    with unset_fake_temporarily():
        return original(*args, **named)


def _broadcast_own(
    original: Callable[..., None],
    object_list: list[Any],
    src: int | None = None,
    group: Any = None,
    device: Any = None,
    group_src: int | None = None,
) -> None:
    """Stand in for `broadcast_object_list`: a receiver's objects stay as they are, where it has any."""
    with unset_fake_temporarily():
        if distributed_c10d._rank_not_in_group(group) or any(value is None for value in object_list):
            original(object_list, src, group, None, group_src)
            return
        root: dict[str, Any] = {"src": src or 0} if group_src is None else {"group_src": group_src}
        lengths = torch.tensor([len(pickle.dumps(value)) for value in object_list])
        for tensor in (lengths, torch.empty(int(lengths.sum()), dtype=torch.uint8)):
            dist.broadcast(tensor, group=group, **root)


def torchrun_environment(world_size: int, rank: int, local_world_size: int) -> dict[str, str]:
    """Return the environment variables that torchrun sets for this rank."""
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
