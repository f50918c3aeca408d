"""Compares the result of an op with the inferred one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from collective_rules.finding import ERROR, Finding
from collective_rules.infer import infer
from collective_rules.ledger import CallFacts
from collective_rules.spec import Spec

RETURNED = "MODE1"
"""The id of the finding that an op returned something else than `infer` says."""


def difference(facts: CallFacts, named: Mapping[str, Any], returned: Any) -> Finding | None:
    """Return the finding that `returned` differs from the inferred result, None where it does not."""
    row = facts.call.row
    if facts.expected is None:
        facts.expected = infer(facts.call)
    parts = returned if len(row.returns) > 1 else (returned,)
    for output, value in zip(row.returns, parts, strict=False):
        if output.kind == "argument":
            text = "" if _is(value, named.get(output.name)) else f"{output.name} came back as another tensor"
        elif output.kind == "fresh":
            text = _unlike(output.name, facts.expected.get(output.name), value)
        else:
            text = ""
        if text:
            call = facts.call
            advice = "The backend or a kernel is at fault: report it there."
            message = f"{call.op}: {text}   [{RETURNED}]\n    {row.notation}\n{advice}"
            return Finding(RETURNED, ERROR, message, (call.group.global_rank,), op=call.op)
    return None


def _is(value: Any, given: Any) -> bool:
    if isinstance(value, (list, tuple)):
        given = given if isinstance(given, (list, tuple)) else (given,)
        return len(value) == len(given) and all(map(_is, value, given))
    return value is given or (
        isinstance(value, torch.Tensor)
        and isinstance(given, torch.Tensor)
        and value.layout is torch.strided
        and value.untyped_storage()._cdata == given.untyped_storage()._cdata
    )


def _unlike(label: str, expected: Any, value: Any) -> str:
    if isinstance(expected, (list, tuple)):
        if not isinstance(value, (list, tuple)) or len(value) != len(expected):
            return f"{label} should be {len(expected)} tensors"
        texts = (_unlike(f"{label}[{i}]", *pair) for i, pair in enumerate(zip(expected, value, strict=True)))
        return next((text for text in texts if text), "")
    if not isinstance(value, torch.Tensor) or not isinstance(expected, Spec):
        return ""
    same = (
        value.dtype is expected.dtype
        and value.shape == expected.shape
        and (value.layout is not torch.strided or value.numel() == 0 or value.stride() == expected.stride)
    )
    return "" if same else f"{label}={Spec.of(value)!r}, but should be {expected!r}"
