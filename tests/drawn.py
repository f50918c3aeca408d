"""A hypothesis strategy: single calls of one row, most of them legal, some broken in one place or more."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.ops import Row
from collective_rules.testing.drawing import Wish, draw_calls


@st.composite
def calls(draw: st.DrawFn, row: Row, *, broken: bool | None = None) -> cr.Call:
    """Draw one rank's call of `row`; what is only written may be left out, and with `broken`, something is changed.

    Where nothing may be broken, every tensor is contiguous.
    """
    group = draw_calls(draw, row, None, 4, Wish(straight=broken is False))
    made = draw(st.sampled_from([call for call in group if call.row is row]))
    only_written = set(row.writes) - set(row.reads)
    kept = {name: value for name, value in made.arguments.items() if name not in only_written or draw(st.booleans())}
    if draw(st.booleans()) if broken is None else broken:
        name = draw(st.sampled_from(sorted(kept)))
        kept[name] = _changed(draw, kept[name])
    return cr.call(row.op, group=made.group, **kept)


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        how = draw(st.sampled_from(("drop", "double", "inside")))
        if how == "drop" or not value:
            return value[1:]
        place = draw(st.integers(0, len(value) - 1))
        inside = value[place] if how == "double" else _changed(draw, value[place])
        return [*value[:place], inside, *value[place + (how == "inside") :]]
    if isinstance(value, cr.Spec):
        return draw(st.sampled_from(_changed_specs(value)))
    if isinstance(value, (bool, torch.dtype)) or value is None:
        return value
    return draw(st.sampled_from(("mean", "min"))) if isinstance(value, str) else draw(st.integers(-2, 6))


def _changed_specs(spec: cr.Spec) -> list[cr.Spec]:
    shape = spec.shape
    bent = [cr.Spec(shape, spec.dtype, tuple(2 * step for step in spec.stride)), cr.Spec(shape[::-1], spec.dtype)]
    longer = [cr.Spec((*shape, 1), spec.dtype), cr.Spec((2, *shape), spec.dtype), cr.Spec(shape[1:], spec.dtype)]
    other = [cr.Spec(shape, torch.float64), cr.Spec(None, spec.dtype), cr.Spec(shape, spec.dtype, view="neg")]
    larger = [(tuple(n + (dim == 0) for dim, n in enumerate(shape)), None), (shape, (0,) * len(shape))] if shape else []
    return bent + longer + other + [cr.Spec(sizes, spec.dtype, steps) for sizes, steps in larger]
