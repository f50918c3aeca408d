"""Tests that are written for GPUs, on the CPU: what they put on a GPU stays where it is.

`ask_for_none` is called before torch's tests are imported, so that they do not skip themselves; `stay_on_cpu` is for
the time that one runs. It covers what those tests say, not all that torch.cuda has: many still end with an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

__all__ = ["ask_for_none", "stay_on_cpu"]


def ask_for_none(common: Any) -> None:
    """Have the decorators of torch's module of common test code ask for no GPUs."""
    common.skip_if_no_gpu = lambda test: test
    for name in ("skip_if_lt_x_gpu", "require_n_gpus_for_nccl_backend"):
        setattr(common, name, lambda *_, **__: lambda test: test)
    common.init_multigpu_helper = lambda size, backend: {rank: [rank] for rank in range(size)}


@contextlib.contextmanager
def stay_on_cpu(rank: int) -> Iterator[None]:
    """Leave on the CPU what is put on a GPU; the current one is that of `rank`."""
    build = DistributedDataParallel.__init__

    def build_on_cpu(self: Any, module: Any, device_ids: Any = None, output_device: Any = None, **others: Any) -> None:
        build(self, module, **others)

    with contextlib.ExitStack() as patches:
        for owner in (torch.Tensor, torch.nn.Module):
            patches.enter_context(mock.patch.object(owner, "cuda", lambda self, *_, **__: self))
        for name, answer in (("set_device", None), ("synchronize", None), ("current_device", rank)):
            patches.enter_context(mock.patch.object(torch.cuda, name, lambda *_, answer=answer: answer))
        patches.enter_context(mock.patch.object(DistributedDataParallel, "__init__", build_on_cpu))
        patches.enter_context(_CpuOnly())
        yield


class _CpuOnly(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if "device" in named:
            named["device"] = _on_cpu(named["device"])
        if func is torch.Tensor.to:
            args = (args[0], *(_on_cpu(value) for value in args[1:]))
        return func(*args, **named)


def _on_cpu(device: Any) -> Any:
    if isinstance(device, torch.device):
        return torch.device("cpu") if device.type == "cuda" else device
    named = isinstance(device, str) and device.startswith("cuda")
    return "cpu" if named or type(device) is int else device
