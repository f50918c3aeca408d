"""Describes one call in a few words, short enough for calls of several ranks side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from collective_rules.call import Call
from collective_rules.nested import leaves
from collective_rules.spec import Spec, is_size

_MOST_SIZES, _MOST_SPLITS = 3, 8
_ATTRIBUTES = ("reduce_op", "root", "roots", "peer", "tag")
_RANKS = ("root", "roots", "peer")


def call_text(call: Call) -> str:
    """Return the op, the tensors that it reads (writes, if it reads none), and the attributes that ranks must share.

    >>> import collective_rules as cr
    >>> call_text(cr.call("c10d::allreduce_", group=cr.Group(4), tensors=[(2, 3)]))
    'allreduce_ float32[2, 3] sum'
    >>> call_text(cr.call("c10d::send", group=cr.Group(4), tensors=[()], dst=1, tag=7))
    'send float32[] peer=1 tag=7'
    """
    words = [call.op.split("::", 1)[1], tensors_text(call), *_attributes(call), *_splits(call)]
    return " ".join(filter(None, words))


def tensors_text(call: Call) -> str:
    """Return the tensors that the call reads, or the tensors that it writes if it reads none.

    >>> import collective_rules as cr
    >>> tensors_text(cr.call("c10d::allreduce_coalesced_", group=cr.Group(4), tensors=[(2,), (3,), (2,)]))
    '2 × float32[2], float32[3]'
    """
    for names in (call.row.reads, call.row.writes):
        counts = Counter(map(_spec_text, leaves([call.arguments.get(name) for name in names], Spec)))
        if counts:
            texts = [f"{count} × {text}" if count > 1 else text for text, count in counts.items()]
            more = [f"… {len(texts) - _MOST_SIZES} more"] if len(texts) > _MOST_SIZES else []
            return ", ".join([*texts[:_MOST_SIZES], *more])
    return ""


def _spec_text(spec: Spec) -> str:
    dtype = "?" if spec.dtype is None else str(spec.dtype).removeprefix("torch.")
    if spec.shape is None:
        return f"{dtype}[?]"
    stride = "" if spec.is_contiguous_or_unknown else f" stride {spec.stride}"
    return f"{dtype}[{', '.join(map(str, spec.shape))}]{stride}"


def _attributes(call: Call) -> Iterator[str]:
    for name in _ATTRIBUTES:
        value = call.attribute(name)
        if name in _RANKS:
            value = _globally(call, value)
        if name == "reduce_op" and value is not None:
            yield str(value)
        elif value is not None and not (name == "tag" and value == 0):
            yield f"{name}={value}"


def _globally(call: Call, value: Any) -> Any:
    """Return ranks of the group as global ranks."""
    if isinstance(value, (list, tuple)):
        return tuple(_globally(call, each) for each in value)
    return call.group.to_global(value) if is_size(value) else value


def _splits(call: Call) -> Iterator[str]:
    for name in call.row.splits:
        value = call.arguments.get(name)
        if isinstance(value, tuple) and value:
            shown = ", ".join(map(str, value[:_MOST_SPLITS]))
            yield f"{name}=[{shown}{', …' if len(value) > _MOST_SPLITS else ''}]"
