"""Attention without values: its shapes, and the kernel where torch chooses the collectives by it.

torch shards `scaled_dot_product_attention`, and makes it a ring in `context_parallel`, for the kernels of accelerators
only. All kernels send the same; a dry run takes the one that admits the dtype and the mask. `flex_attention` has no
backward on the cpu, and traces the functions given to it. It becomes plain attention, in which tensors that those
functions hold get no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.attention.flex_attention import AuxOutput
from torch.nn.functional import scaled_dot_product_attention

_aten = torch.ops.aten


def is_distributed_attention(func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Return whether this calls `scaled_dot_product_attention` with a DTensor."""
    return func is scaled_dot_product_attention and isinstance(args[0] if args else named.get("query"), DTensor)


def attend(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Stand in for `scaled_dot_product_attention`, as aten/src/ATen/native/transformers/attention.cpp does it."""
    if attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        flash: Any = _aten._scaled_dot_product_flash_attention.default
        return flash(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if enable_gqa:
        key, value = (x.repeat_interleave(query.size(-3) // x.size(-3), -3) for x in (key, value))
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(attn_mask.logical_not(), float("-inf"))
    if attn_mask is not None:
        attn_mask = attn_mask.expand(query.size(0), query.size(1), query.size(2), key.size(2))
    efficient: Any = _aten._scaled_dot_product_efficient_attention.default
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return efficient(query, key, value, attn_mask, needs_gradient, dropout_p, is_causal, scale=scale)[0]


def _flex_attention(
    original: Callable[..., Any],
    query: Any,
    key: Any,
    value: Any,
    score_mod: Any = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    *more: Any,
    **named: Any,
) -> Any:
    """Stand in for `flex_attention` of tensors without values; call `original` for others."""
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is None:
        return original(query, key, value, score_mod, block_mask, scale, enable_gqa, *more, **named)
    output = scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=enable_gqa)
    numbers = query.float().sum(-1)
    aux = named.get("return_aux")
    if aux is not None:
        return output, AuxOutput(lse=numbers if aux.lse else None, max_scores=numbers if aux.max_scores else None)
    return (output, numbers) if named.get("return_lse", bool(more) and more[0]) else output
