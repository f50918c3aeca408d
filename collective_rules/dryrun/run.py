"""The dry run: a program of many ranks in one process, without a GPU, a network or memory for its tensors."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal
from unittest import mock

import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import _disable_current_modes

from collective_rules.dryrun.devices import DeclaredDevices, patch_devices
from collective_rules.dryrun.fake_groups import patch_groups, torchrun_environment
from collective_rules.dryrun.fake_values import FakeValues
from collective_rules.dryrun.interpreter_state import kept_state
from collective_rules.dryrun.options import DryRunOptions
from collective_rules.dryrun.patches import Patches
from collective_rules.dryrun.training import patch_training
from collective_rules.errors import CollectiveRulesError
from collective_rules.ledger import Ledger
from collective_rules.mode import CallRecorder, DispatchMode


class StepsDone(BaseException):
    """Ends a program after the given number of optimizer steps; `dry_run` suppresses it."""


@contextlib.contextmanager
def dry_run(
    world_size: int,
    rank: int = 0,
    *,
    local_world_size: int | None = None,
    steps: int | None = None,
    check: bool | Literal["raise", "warn", "record"] = "raise",
    fake: bool = True,
    item: float | None = None,
    keep: int = 100_000,
    backend: str | None = "auto",
) -> Iterator[Ledger]:
    """Run the block as one rank of `world_size`, send nothing, and yield the ledger of its collectives.

    `init_process_group` makes a fake group for each backend; torchrun's environment variables are set, with
    `local_world_size` ranks a node (8, or all if fewer). With `fake`, tensors have no memory and no values, except
    small tensors of integers; a program that reads a value gets an `UnknownValueError`, or `item` if that is given.
    The cpu stands in for accelerators, and `ledger.devices` says so. The block ends after `steps` optimizer steps.
    `check`, `keep` and `backend` are those of `RuleMode`. Compiled code runs eagerly, data loaders have no workers,
    checkpoints are neither written nor read. At the end of the block torch and the interpreter are as before.

    Raises `CollectiveRulesError` for sizes that do not fit, or where a process group exists already.

    >>> import torch, torch.distributed
    >>> with dry_run(1024, rank=3) as ledger:
    ...     torch.distributed.init_process_group("nccl")
    ...     x = torch.ones(1 << 40, device="cuda")
    ...     torch.distributed.all_reduce(x)
    >>> ledger.count, ledger.devices
    (1, {'cpu': 'cuda'})
    """
    options = DryRunOptions(
        world_size=world_size,
        rank=rank,
        local_world_size=local_world_size,
        steps=steps,
        item=item,
        check=check,
        fake=fake,
        keep=keep,
        backend=backend,
    )
    local = options.node_size
    if dist.is_initialized():
        raise CollectiveRulesError(
            "a process group is initialised already: call torch.distributed.destroy_process_group() before a dry run"
        )
    importlib.import_module("torch._dynamo")  # reads torch's names when it is first imported: before they change
    with contextlib.ExitStack() as stack:
        stack.enter_context(kept_state())
        patches = Patches()
        stack.callback(patches.undo)
        stack.callback(_destroy_groups)
        os.environ.update(torchrun_environment(world_size, rank, local))
        devices = DeclaredDevices(lambda kind: ledger.devices.setdefault("cpu", kind))
        types = devices.types_in_a_real_run
        mode = DispatchMode(CallRecorder(check=check, execute=False, backend=backend, keep=keep, device_types=types))
        patch_groups(patches, devices, world_size, rank)
        patch_devices(patches, devices, local, rank % local)
        patch_training(patches, devices, rank % local)
        patches.finish()
        if fake:
            log = logging.getLogger("torch._subclasses.fake_tensor")  # it has the traceback of an error that is raised
            stack.enter_context(mock.patch.object(log, "disabled", True))
            stack.enter_context(FakeValues(item=item, world_size=world_size, host=devices.host))
        stack.enter_context(devices)
        ledger = stack.enter_context(mode)
        if steps is not None:
            stack.callback(register_optimizer_step_post_hook(_stop_after(steps)).remove)
        with contextlib.suppress(StepsDone):
            yield ledger


def _stop_after(steps: int) -> Callable[..., None]:
    """Return a hook of optimizer steps that raises `StepsDone` in the last step."""
    left = iter(range(steps - 1))

    def count(*_: Any) -> None:
        if next(left, None) is None:
            raise StepsDone

    return count


def _destroy_groups() -> None:
    """Destroy the groups that the program left, also where it destroyed them in part."""
    distributed_c10d._world.pg_coalesce_state.clear()
    if dist.is_initialized():
        with _disable_current_modes():
            dist.destroy_process_group()
