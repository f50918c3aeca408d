"""Attention without values: only its shapes matter, and which kernel it is where torch goes by that.

torch shards `scaled_dot_product_attention`, and makes it a ring in `context_parallel`, by the kernel that was chosen,
and knows how for those of accelerators only. Which one is chosen does not change what is sent: here it is the one that
takes the dtype and the mask. `flex_attention` has no backward on the cpu, and traces the functions given to it: it
becomes plain attention, in which tensors that those functions hold get no gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.nn.attention.flex_attention import AuxOutput
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["attend", "attend_flexibly", "is_distributed_attention"]

_aten = torch.ops.aten


def is_distributed_attention(func: Any, args: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether this calls `scaled_dot_product_attention` with a DTensor."""
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


def attend_flexibly(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `flex_attention` for tensors without values; others go to `original`."""

    @functools.wraps(original)
    def flex_attention(
        query: Any,
        key: Any,
        value: Any,
        score_mod: Any = None,
        block_mask: Any = None,
        scale: float | None = None,
        enable_gqa: bool = False,
        return_lse: bool = False,
        kernel_options: Any = None,
        *,
        return_aux: Any = None,
    ) -> Any:
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is None:
            options = {"enable_gqa": enable_gqa, "return_lse": return_lse, "return_aux": return_aux}
            return original(query, key, value, score_mod, block_mask, scale, kernel_options=kernel_options, **options)
        output = scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=enable_gqa)
        numbers = query.float().sum(-1)
        if return_aux is not None:
            return output, AuxOutput(
                lse=numbers if return_aux.lse else None, max_scores=numbers if return_aux.max_scores else None
            )
        return (output, numbers) if return_lse else output

    return flex_attention
