"""Goes beyond exactly one limit of a backend, with calls that the rules allow: one way for each column of its table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch

from collective_rules.backends import Limit, limits_of
from collective_rules.backends.columns import DEMANDS, promoted, refuses, sets
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.binding.bound import Slot
from collective_rules.call import Call
from collective_rules.finding import WARNING
from collective_rules.ops import Row
from collective_rules.spec import Spec
from collective_rules.testing.broken.scene import Broken, Scene, edited, replaced, slots_of
from collective_rules.testing.drawing import DTYPES, Calls, legal_dtypes

__all__ = ["UNBREAKABLE", "WAYS", "beyond"]


def beyond(row: Row, backend: str | None) -> Iterator[tuple[Limit, str, Callable[[Scene], Broken]]]:
    """Yield the ways to go beyond the backend's limits for `row`: the limit, its column, and how to draw such calls."""
    for limit in limits_of(backend, row):
        for column in DEMANDS:
            if sets(limit, column) and column not in UNBREAKABLE and WAYS[column].applies(row, limit):
                yield limit, column, functools.partial(_broken, WAYS[column], limit)


def _broken(way: _Way, limit: Limit, scene: Scene) -> Broken:
    calls, change = way.calls(scene, limit)
    return Broken(calls, limit.id, None, True, change)


@attrs.frozen
class _Way:
    """How to go beyond a limit by one of its columns, for the ops to which the way applies."""

    calls: Callable[[Scene, Limit], tuple[Calls, str]]
    applies: Callable[[Row, Limit], bool] = lambda row, limit: True


def _mattering(limit: Limit, **wish: Any) -> dict[str, Any]:
    """Return the wish for a group to which the limit matters."""
    least = {"least": 1} if limit.spares_empty else {}
    most = {"most": 1} if limit.alone else {}
    return {"ranks": limit.from_size, **least, **most, **wish}


def _reduce_ops(row: Row) -> list[str]:
    return [op for op in row.entry.reduce_ops or REDUCE_OPS if op != "premul_sum"] if row.reduce_op else [""]


def _kinds(scene: Scene, limit: Limit, fits: Callable[[str, torch.dtype], bool]) -> tuple[tuple[str, torch.dtype], ...]:
    """Return the (reduce op, dtype) that fit: those that no other limit refuses, if there are any."""
    dtypes = scene.row.entry.kernel_dtypes or DTYPES
    fitting = [(op, dtype) for op in _reduce_ops(scene.row) for dtype in dtypes if fits(op, dtype)]
    others = [other for other in limits_of(scene.backend, scene.row) if other is not limit]
    alone = [(op, dtype) for op, dtype in fitting if not any(refuses(other, op, dtype) for other in others)]
    return tuple(alone or fitting)


def _refused_kinds(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    kinds = _kinds(scene, limit, functools.partial(refuses, limit))
    return scene.legal(**_mattering(limit, kinds=kinds)), "a dtype that it does not take, or does not reduce so"


def _refuses_some(row: Row, limit: Limit) -> bool:
    dtypes = row.entry.kernel_dtypes or DTYPES
    return any(refuses(limit, op, dtype) for op in _reduce_ops(row) for dtype in dtypes)


def _forms(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    forms = [each.form.name for each in scene.row.spellings if each.form.name not in (limit.forms or ())]
    form = scene.pick(forms)
    kinds = legal_dtypes(scene.row, scene.backend, 2)
    drawing = attrs.evolve(scene, backend=None).drawing(ranks=2, dims=1, least=2, form=form, kinds=kinds)
    calls = drawing.calls()
    indexed = [key for key, value in drawing.names.items() if isinstance(value, int) and key[-1]]
    if indexed:
        drawing.names[indexed[0]] = drawing.names[indexed[-1]] + 1
        calls = drawing.calls()
    return calls, f"the {form} form"


def _other_forms(row: Row, limit: Limit) -> bool:
    return any(each.form.name not in (limit.forms or ()) for each in row.spellings)


def _exact(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    several = {"count": 2} if scene.row.entry.alike else {}
    alone = any(each.form.name == "uneven" for each in scene.row.spellings)
    calls = scene.legal(**_mattering(limit, alone=alone, dims=2, least=2, **several))
    one, slot = scene.slot(each for each in calls if len(slots_of(each)) > 1)
    changed = edited(one, slot, shape=(slot.spec.numel,))
    return replaced(calls, changed), f"{slot.label} has another shape of equally many elements"


def _compares(row: Row, limit: Limit) -> bool:
    return all(len(part.sizes) == 1 for part in row.spellings[0].statement.parts)


def _several_dtypes(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    """One tensor of a list has another dtype than the rest, on every rank; for `promotes`, the first."""
    kinds = legal_dtypes(scene.row, scene.backend, 8)
    old, new = scene.pick(
        ((op, old), new) for op, old in kinds for also, new in kinds if also == op and _mixes(limit, old, new)
    )
    calls = scene.legal(**_mattering(limit, count=2, least=1, kinds=(old,)))
    place = 0 if limit.promotes else 1
    changed = tuple(_edited_all(one, lambda slot: slot.element == place, dtype=new) for one in calls)
    return changed, f"one tensor of the list has dtype {new}"


def _mixes(limit: Limit, old: torch.dtype, new: torch.dtype) -> bool:
    """Whether a list of `old` tensors with a `new` one is beyond the limit."""
    if limit.promotes:
        return promoted((new, old)) is not new
    return new is not old and (limit.severity != WARNING or promoted((new, old)) is old)


def _edited_all(one: Call, fits: Callable[[Slot], bool], **changes: Any) -> Call:
    for slot in slots_of(one):
        one = edited(one, slot, **changes) if fits(slot) else one
    return one


def _nonempty(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    calls = scene.legal(**_mattering(limit, dims=1, least=1))
    one = scene.one(calls)
    changed = edited(one, slots_of(one)[0], shape=(0,))
    return replaced(calls, changed), "an empty tensor"


def _single(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    kinds = _kinds(scene, limit, lambda op, dtype: op in (limit.single or ()))
    return scene.legal(**_mattering(limit, count=2, kinds=kinds)), "several tensors"


def _odd_strides(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    calls = scene.legal(**_mattering(limit, dims=2, least=2, most=1))
    changed = []
    for one in calls:
        (slot,) = slots_of(one)
        shape = (1, *slot.spec.shape[1:])
        changed.append(edited(one, slot, shape=shape, stride=(7, *Spec(shape).stride[1:])))
    return tuple(changed), "contiguous tensors with a stride of 7 along a size of 1"


def _sparse(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    kinds = _kinds(scene, limit, lambda op, dtype: op not in (limit.sparse_reduces or ()))
    calls = scene.legal(**_mattering(limit, dims=1, least=1, kinds=kinds))
    return tuple(_edited_all(one, lambda slot: True, layout="sparse_coo") for one in calls), "sparse tensors"


WAYS = {
    "dtypes": _Way(_refused_kinds, _refuses_some),
    "reduces": _Way(_refused_kinds, _refuses_some),
    "forms": _Way(_forms, _other_forms),
    "exact": _Way(_exact, _compares),
    "one_dtype": _Way(_several_dtypes),
    "promotes": _Way(_several_dtypes),
    "nonempty": _Way(_nonempty),
    "fresh_strides": _Way(_odd_strides),
    "single": _Way(_single),
    "sparse_reduces": _Way(_sparse),
}
"""How to go beyond a limit by each of its columns."""

UNBREAKABLE = {"missing": "every call of such an op is beyond the limit, and none is legal by it"}
"""Demands that no legal call of the op can be changed to go beyond, each with the reason."""
