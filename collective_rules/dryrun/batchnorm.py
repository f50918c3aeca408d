"""SyncBatchNorm of a program for accelerators, without the kernels that torch has for accelerators only.

Forward, each rank's mean, inverse deviation and count are gathered; backward, two sums are reduced. The formats are
those of torch/nn/modules/_functions.py, the values this rank's own batch normalisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from collective_rules.dryrun.patches import Patches


def patch_batch_norm(patches: Patches, is_mapped: Callable[[], bool]) -> None:
    """Have SyncBatchNorm work on the cpu where `is_mapped()` says that the program means an accelerator."""

    def normalize(original: Callable[..., Any], norm: Any, x: torch.Tensor) -> Any:
        group = norm.process_group or dist.group.WORLD
        if not (is_mapped() and norm.training and dist.is_initialized() and dist.get_world_size(group) > 1):
            return original(norm, x)
        if norm.track_running_stats:
            norm.num_batches_tracked.add_(1)
        apply: Callable[..., Any] = _Normalize.apply
        return apply(x, norm.weight, norm.bias, norm.eps, group)

    def accept(original: Callable[..., None], ddp: Any, module: torch.nn.Module) -> None:
        if not is_mapped():
            original(ddp, module)

    patches.replace(normalize, accept)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float, group: Any
    ) -> torch.Tensor:
        world = dist.get_world_size(group)
        wide = torch.float64 if x.dtype is torch.float64 else torch.float32
        stats = torch.zeros(2 * x.shape[1] + 1, dtype=wide if x.numel() else x.dtype)
        if dist.get_backend(group) == "gloo":
            dist.all_gather([torch.empty_like(stats) for _ in range(world)], stats, group)
        else:
            dist.all_gather_single(stats.new_empty(1, stats.numel() * world), stats, group)
        ctx.save_for_backward(x, weight, bias)
        ctx.eps, ctx.group, ctx.wide = eps, group, wide
        return functional.batch_norm(x, None, None, weight, bias, True, 0.0, eps) if x.numel() else torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x, weight, bias = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            sums = torch.zeros(2 * x.shape[1], dtype=ctx.wide if x.numel() else x.dtype)
            dist.all_reduce(sums, group=ctx.group)
        wanted = [value for value, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needed]
        if not x.numel():
            return (None,) * 5
        with torch.enable_grad():
            leaves = {id(value): value.detach().requires_grad_() for value in wanted}
            inputs = [leaves.get(id(value), value) for value in (x, weight, bias)]
            y = functional.batch_norm(inputs[0], None, None, inputs[1], inputs[2], True, 0.0, ctx.eps)
            computed = iter(torch.autograd.grad(y, list(leaves.values()), gradients))
        return (*(next(computed) if needed else None for needed in ctx.needs_input_grad[:3]), None, None)
