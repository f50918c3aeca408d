"""Goes beyond exactly one limit of a backend, with calls that the rules allow: one way for each column of its table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import torch

from collective_rules.backends import Limit, limits_of
from collective_rules.backends.columns import DEMANDS, promoted, refuses, sets
from collective_rules.finding import WARNING
from collective_rules.ops import Row
from collective_rules.spec import Spec
from collective_rules.testing.broken.edits import edited, replaced, slots_of
from collective_rules.testing.broken.scene import Broken, Scene
from collective_rules.testing.drawing import Calls, Dtypes, dtypes_of


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
    elements = {"min_size": 1} if limit.spares_empty else {}
    tensors = {"max_tensors": 1} if limit.alone else {}
    return {"min_ranks": limit.from_size, **elements, **tensors, **wish}


def _dtypes(scene: Scene, limit: Limit, fits: Callable[[str, torch.dtype], bool]) -> Dtypes:
    """Return the (reduce op, dtype) that fit: those that no other limit refuses, if there are any."""
    fitting = tuple(each for each in dtypes_of(scene.row) if fits(*each))
    others = [other for other in limits_of(scene.backend, scene.row) if other is not limit]
    return tuple(each for each in fitting if not any(refuses(other, *each) for other in others)) or fitting


def _refused_dtypes(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    dtypes = _dtypes(scene, limit, functools.partial(refuses, limit))
    return scene.legal(**_mattering(limit, dtypes=dtypes)), "a dtype that it does not take, or does not reduce so"


def _refuses_some(row: Row, limit: Limit) -> bool:
    return any(refuses(limit, *each) for each in dtypes_of(row))


def _forms(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    forms = [each.form.name for each in scene.row.spellings if each.form.name not in (limit.forms or ())]
    form = scene.pick(forms)
    unlimited = attrs.evolve(scene, backend=None)
    drawing, calls = unlimited.drawing(min_ranks=2, min_dims=1, min_size=2, form=form, dtypes=scene.dtypes())
    sizes = drawing.values.sizes
    indexed = [key for key, value in sizes.items() if isinstance(value, int) and key.ranks]
    if indexed:
        sizes[indexed[0]] = sizes[indexed[-1]] + 1
        calls = drawing.calls()
    return calls, f"the {form} form"


def _other_forms(row: Row, limit: Limit) -> bool:
    return any(each.form.name not in (limit.forms or ()) for each in row.spellings)


def _exact(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    tensors = 2 if scene.row.entry.one_tensor else 1
    uneven = any(each.form.name == "uneven" for each in scene.row.spellings)
    wish = _mattering(limit, single_rank=uneven, min_dims=2, min_size=2, min_tensors=tensors)
    calls = scene.legal(**wish)
    one, slot = scene.slot(each for each in calls if len(slots_of(each)) > 1)
    changed = edited(one, slot, shape=(slot.spec.numel,))
    return replaced(calls, changed), f"{slot.label} has another shape of equally many elements"


def _compares(row: Row, limit: Limit) -> bool:
    return all(len(part.sizes) == 1 for part in row.spellings[0].statement.parts)


def _several_dtypes(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    """One tensor of a list has another dtype than the rest, on every rank; for `promotes`, the first."""
    dtypes = scene.dtypes(8)
    old, new = scene.pick(
        ((op, old), new) for op, old in dtypes for also, new in dtypes if also == op and _mixes(limit, old, new)
    )
    calls = scene.legal(**_mattering(limit, min_tensors=2, min_size=1, dtypes=(old,)))
    place = 0 if limit.promotes else 1
    changed = tuple(edited(one, *(slot for slot in slots_of(one) if slot.element == place), dtype=new) for one in calls)
    return changed, f"one tensor of the list has dtype {new}"


def _mixes(limit: Limit, old: torch.dtype, new: torch.dtype) -> bool:
    """Return whether a list of `old` tensors with a `new` one is beyond the limit."""
    if limit.promotes:
        return promoted((new, old)) is not new
    return new is not old and (limit.severity != WARNING or promoted((new, old)) is old)


def _nonempty(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    calls = scene.legal(**_mattering(limit, min_dims=1, min_size=1))
    one = scene.one(calls)
    changed = edited(one, slots_of(one)[0], shape=(0,))
    return replaced(calls, changed), "an empty tensor"


def _single(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    dtypes = _dtypes(scene, limit, lambda op, dtype: op in (limit.single or ()))
    return scene.legal(**_mattering(limit, min_tensors=2, dtypes=dtypes)), "several tensors"


def _odd_strides(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    calls = scene.legal(**_mattering(limit, min_dims=2, min_size=2, max_tensors=1))
    changed = []
    for one in calls:
        (slot,) = slots_of(one)
        shape = (1, *slot.spec.shape[1:])
        changed.append(edited(one, slot, shape=shape, stride=(7, *Spec(shape).stride[1:])))
    return tuple(changed), "contiguous tensors with a stride of 7 along a size of 1"


def _sparse(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    dtypes = _dtypes(scene, limit, lambda op, dtype: op not in (limit.sparse_reduces or ()))
    calls = scene.legal(**_mattering(limit, min_dims=1, min_size=1, dtypes=dtypes))
    return tuple(edited(one, *slots_of(one), layout="sparse_coo") for one in calls), "sparse tensors"


WAYS = {
    "dtypes": _Way(_refused_dtypes, _refuses_some),
    "reduces": _Way(_refused_dtypes, _refuses_some),
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
