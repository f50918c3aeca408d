"""Goes beyond exactly one limit of a backend, with calls that the rules allow: one way for each column of its table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch

from collective_rules.backends import Limit, limits_of
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.binding.bound import Slot
from collective_rules.call import Call
from collective_rules.finding import WARNING
from collective_rules.ops import Row
from collective_rules.spec import Spec
from collective_rules.testing.broken.scene import Broken, Scene, edited, replaced, slots_of
from collective_rules.testing.drawing import DTYPES, Calls, legal_dtypes, refuses

__all__ = ["beyond"]


def beyond(row: Row, backend: str | None) -> Iterator[tuple[Limit, str, Callable[[Scene], Broken]]]:
    """Yield the ways to go beyond the backend's limits for `row`: the limit, its column, and how to draw such calls."""
    for limit in limits_of(backend, row):
        for column, way in _WAYS.items():
            if getattr(limit, column) and way.applies(row, limit):
                yield limit, column, _bind(way, limit)


def _bind(way: _Way, limit: Limit) -> Callable[[Scene], Broken]:
    def broken(scene: Scene) -> Broken:
        calls, change = way.calls(scene, limit)
        return Broken(calls, limit.id, None, True, change)

    return broken


def _always(row: Row, limit: Limit) -> bool:
    return True


@attrs.frozen
class _Way:
    applies: Callable[[Row, Limit], bool]
    calls: Callable[[Scene, Limit], tuple[Calls, str]]


def _kinds(scene: Scene, limit: Limit, fits: Callable[[str, torch.dtype], bool]) -> tuple[tuple[str, torch.dtype], ...]:
    """The (reduce op, dtype) that `fits`; those that no other limit refuses, if there are any."""
    row = scene.row
    names = [op for op in row.entry.reduce_ops or REDUCE_OPS if op != "premul_sum"] if row.reduce_op else [""]
    found = [(op, dtype) for op in names for dtype in row.entry.kernel_dtypes or DTYPES if fits(op, dtype)]
    others = [other for other in limits_of(scene.backend, row) if other is not limit]
    alone = [(op, dtype) for op, dtype in found if not any(refuses(other, op, dtype) for other in others)]
    return tuple(alone or found)


def _dtypes(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    kinds = _kinds(scene, limit, lambda op, dtype: limit.dtypes is not None and dtype not in limit.dtypes)
    return scene.legal(ranks=limit.from_size, kinds=kinds), "a dtype that it does not take"


def _reduces(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    taken = limit.reduces or {}
    kinds = _kinds(scene, limit, lambda op, dtype: dtype not in taken.get(op, {dtype}))
    calls = scene.legal(ranks=limit.from_size, kinds=kinds, least=1, most=1 if limit.alone else 3)
    return calls, "a reduce op that it does not take for the dtype"


def _reduces_something(row: Row, limit: Limit) -> bool:
    return any(op in (limit.reduces or {}) for op in row.entry.reduce_ops or (limit.reduces or {}))


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
    calls = scene.legal(alone=alone, dims=2, least=2, **several)
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
    calls = scene.legal(count=2, ranks=limit.from_size, least=1, kinds=(old,))
    place = 0 if limit.promotes else 1
    changed = tuple(_edited_all(one, lambda slot: slot.element == place, dtype=new) for one in calls)
    return changed, f"one tensor of the list has dtype {new}"


def _mixes(limit: Limit, old: torch.dtype, new: torch.dtype) -> bool:
    """Whether a list of `old` tensors with a `new` one is beyond the limit."""
    if limit.promotes:
        return torch.promote_types(new, old) is not new
    return new is not old and (limit.severity != WARNING or torch.promote_types(new, old) is old)


def _edited_all(one: Call, fits: Callable[[Slot], bool], **changes: Any) -> Call:
    for slot in slots_of(one):
        one = edited(one, slot, **changes) if fits(slot) else one
    return one


def _nonempty(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    calls = scene.legal(dims=1, least=1)
    one = scene.one(calls)
    changed = edited(one, slots_of(one)[0], shape=(0,))
    return replaced(calls, changed), "an empty tensor"


def _single(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    kinds = _kinds(
        scene, limit, lambda op, dtype: op in limit.single and dtype.is_floating_point and dtype.itemsize > 1
    )
    return scene.legal(count=2, kinds=kinds, ranks=limit.from_size), "several tensors"


def _odd_strides(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    calls = scene.legal(dims=2, least=2, most=1)
    changed = []
    for one in calls:
        (slot,) = slots_of(one)
        shape = (1, *slot.spec.shape[1:])
        changed.append(edited(one, slot, shape=shape, stride=(7, *Spec(shape).stride[1:])))
    return tuple(changed), "contiguous tensors with a stride of 7 along a size of 1"


def _sparse(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    kinds = _kinds(scene, limit, lambda op, dtype: op not in (limit.sparse_reduces or ()))
    calls = scene.legal(dims=1, least=1, ranks=limit.from_size, kinds=kinds)
    return tuple(_edited_all(one, lambda slot: True, layout="sparse_coo") for one in calls), "sparse tensors"


_WAYS = {
    "dtypes": _Way(_always, _dtypes),
    "reduces": _Way(_reduces_something, _reduces),
    "forms": _Way(_other_forms, _forms),
    "exact": _Way(_compares, _exact),
    "one_dtype": _Way(_always, _several_dtypes),
    "promotes": _Way(_always, _several_dtypes),
    "nonempty": _Way(_always, _nonempty),
    "fresh_strides": _Way(_always, _odd_strides),
    "single": _Way(_always, _single),
    "sparse_reduces": _Way(_always, _sparse),
}
