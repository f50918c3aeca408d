"""Goes beyond exactly one limit of a backend, with calls that the rules allow: one way for each column of its table."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import attrs
import torch

from collective_rules.backends import Limit, limits_of
from collective_rules.backends.columns import DEMANDS, promoted, refuses, sets
from collective_rules.binding.bound import Slot
from collective_rules.call import Call, on_device
from collective_rules.finding import WARNING
from collective_rules.ops import Row
from collective_rules.ops.op import CONTIGUOUS, DENSE, EVEN, FREE, SENT
from collective_rules.spec import Spec
from collective_rules.testing.broken.edits import edited, replaced, slots_of, with_arguments
from collective_rules.testing.broken.memory import in_one_memory
from collective_rules.testing.broken.scene import Broken, Scene
from collective_rules.testing.drawing import Calls, Dtypes, dtypes_of
from collective_rules.testing.layouts import CHANNELS_LAST, SLICED, TRANSPOSED, strides


def beyond(row: Row, backend: str | None) -> Iterator[tuple[Limit, str, Callable[[Scene], Broken]]]:
    """Yield the ways to go beyond the backend's limits for `row`: the limit, its column, and how to draw such calls."""
    for limit in limits_of(backend, row):
        for column in DEMANDS:
            if sets(limit, column) and column not in UNBREAKABLE and WAYS[column].applies(row, limit):
                yield limit, column, functools.partial(_broken, WAYS[column], limit)


def _broken(way: _Way, limit: Limit, scene: Scene) -> Broken:
    calls, change = way.calls(scene, limit)
    if limit.on and not any(slot.spec.device in limit.on for one in calls for slot in slots_of(one)):
        calls = tuple(on_device(one, limit.on[0]) for one in calls)
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
    where = {"form": limit.in_forms[0]} if limit.in_forms else {}
    least = max(limit.from_size, 2 if limit.spares_own or limit.in_forms else 1)
    ranks = {"min_ranks": least, "single_rank": limit.to_size == 1}
    return {**ranks, **elements, **tensors, **where, **wish}


def _legal(scene: Scene, limit: Limit, **wish: Any) -> Calls:
    """Draw a legal group to which the limit matters, in the usual form or in the one that the limit is about."""
    usual = scene.row.spellings[0].form.name
    wished = _mattering(limit, **wish)
    if limit.in_forms and usual not in limit.in_forms:
        return _uneven(scene, **wished)
    return scene.legal(**{"form": usual, **wished})


def _uneven(scene: Scene, **wish: Any) -> Calls:
    """Draw a group in which a size that varies with the rank does differ, where there is one."""
    drawing, calls = scene.drawing(**wish)
    sizes = drawing.values.sizes
    indexed = [key for key, value in sizes.items() if isinstance(value, int) and key.ranks]
    alike = [key for key in indexed if key.element == indexed[0].element]
    if indexed:
        sizes[alike[0]] = sizes[alike[-1]] + 1
        calls = drawing.calls()
    return calls


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
    spelling = next(each for each in scene.row.spellings if each.form.name == form)
    if spelling.documented:
        return _uneven(
            unlimited, min_ranks=2, min_dims=1, min_size=2, form=form, dtypes=scene.dtypes()
        ), f"the {form} form"
    usual, splits = scene.row.spellings[0].form.name, bool(spelling.form.kept) if scene.row.splits else None
    wish = {"form": usual, "splits": splits, "dtypes": scene.dtypes()}
    calls = unlimited.legal(min_ranks=2, min_dims=2, min_size=2, **wish)
    return tuple(_reshaped(one, spelling.form.kept) for one in calls), f"the {form} form"


def _reshaped(one: Call, kept: int) -> Call:
    """Return the call whose outputs have one dim behind the first `kept`."""
    for slot in slots_of(one):
        if slot.part.path.name in one.row.writes:
            shape = slot.spec.shape
            one = edited(one, slot, shape=(*shape[:kept], math.prod(shape[kept:])))
    return one


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


def _too_many(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    count = (limit.most_tensors or 0) + 1
    return scene.legal(**_mattering(limit, min_tensors=count, max_tensors=count)), f"{count} tensors in a list"


def _listed(row: Row, limit: Limit) -> bool:
    return any("i" in part.path.index for part in row.spellings[0].statement.parts)


def _of_parts(row: Row, parts: Iterable[str], form: str = "") -> list[str]:
    """Return the arguments that play the parts of the rule."""
    paths = [row.entry.parts[part].partition("[")[0] for part in parts if part in row.entry.parts]
    return [name for name in paths if name in row.by_name]


def _alone_where_sent(row: Row, names: Iterable[str]) -> dict[str, Any]:
    """Of what goes to other ranks, the op's row says the same already."""
    return {"single_rank": True} if {row.layout_of(name) for name in names} <= {SENT} else {}


def _other_layout(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    part = scene.pick(part for part in limit.layouts or () if _of_parts(scene.row, [part]))
    (name,), wanted = _of_parts(scene.row, [part]), (limit.layouts or {})[part]
    other = {DENSE: SLICED, CONTIGUOUS: CHANNELS_LAST}.get(wanted, TRANSPOSED)
    dims, ranks = 4 if other == CHANNELS_LAST else 2, {} if limit.spares_own else _alone_where_sent(scene.row, [name])
    calls = _legal(scene, limit, min_dims=dims, min_size=2, **ranks)
    return tuple(_laid_out(one, {name}, other) for one in calls), f"{name} is {other}"


def _laid_out(one: Call, names: Collection[str], layout: str) -> Call:
    for slot in slots_of(one):
        if slot.part.path.name in names or one.row.rule.point_to_point:
            one = edited(one, slot, stride=strides(slot.spec.shape, layout))
    return one


def _has_parts(row: Row, limit: Limit) -> bool:
    stated = {name for each in row.spellings for name in each.behind}
    return bool(_of_parts(row, stated.intersection(limit.layouts or ())))


def _other_order(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    names = _of_parts(scene.row, limit.ordered or ())
    calls = _legal(scene, limit, min_dims=4, min_size=2, **_alone_where_sent(scene.row, names))
    name = names[0]
    return tuple(_laid_out(one, {name}, CHANNELS_LAST) for one in calls), f"{name} is channels_last"


def _ordered_together(row: Row, limit: Limit) -> bool:
    return len(set(_of_parts(row, limit.ordered or ()))) > 1


def _overlapping(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    lists = {"min_tensors": 2} if _listed(scene.row, limit) else {}
    calls = _legal(scene, limit, min_dims=1, min_size=2, **{"min_ranks": 2}, **lists)
    changed, change = in_one_memory(scene, calls, limit.overlap or FREE)
    return replaced(calls, changed), change


def _may_overlap(row: Row, limit: Limit) -> bool:
    given = {part.path.name for part in row.spellings[0].statement.parts if part.path.name in row.by_name}
    return row.entry.overlap == FREE and (len(given) > 1 or (bool(row.in_place) and _listed(row, limit)))


def _elsewhere(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    device = next(device for device in ("cpu", "xpu", "hpu") if device not in (limit.devices or ()))
    calls = scene.legal(**_mattering(limit))
    return tuple(on_device(one, device) for one in calls), f"the tensors are on {device}"


def _takes_tensors(row: Row, limit: Limit) -> bool:
    return bool(row.spellings[0].statement.parts)


def _undivided(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    calls = scene.legal(**_mattering(limit, min_ranks=2, min_dims=1, min_size=1, splits=False))
    return tuple(functools.reduce(_in_one_row, slots_of(one), one) for one in calls), "tensors of one row"


def _in_one_row(one: Call, slot: Slot) -> Call:
    return edited(one, slot, shape=(1, slot.spec.numel))


def _splits_evenly(row: Row, limit: Limit) -> bool:
    flat = any(spelling.form.flat and not spelling.form.kept for spelling in row.spellings)
    return flat and bool(_of_parts(row, limit.divides or ()))


def _one_sided_splits(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    """All ranks give even split sizes of one side, which say no more than none do."""
    calls = scene.legal(**_mattering(limit, min_dims=1, min_size=1, splits=False))
    ((part, _),) = (limit.splits_with or {}).items()
    changed = []
    for one in calls:
        rows = next(slot.spec.shape[0] for slot in slots_of(one) if one.row.spellings[0].behind_of(slot.part) == part)
        sizes = [rows // one.group.size] * one.group.size
        changed.append(with_arguments(one, **{str(one.row.entry.splits[part].argument): sizes}))
    return tuple(changed), f"split sizes of the {part} alone"


def _has_splits(row: Row, limit: Limit) -> bool:
    needed = {*(limit.splits_with or {}), *(limit.splits_with or {}).values()}
    return needed <= {part for part, column in row.entry.splits.items() if column.argument and column.empty == EVEN}


def _to_itself(scene: Scene, limit: Limit) -> tuple[Calls, str]:
    calls = scene.legal(**_mattering(limit))
    one = scene.one(calls)
    peers = [one.group.rank, *one.arguments[one.row.peer][1:]]
    return replaced(calls, with_arguments(one, **{one.row.peer: peers})), "the first message is to this very rank"


WAYS = {
    "dtypes": _Way(_refused_dtypes, lambda row, limit: _takes_tensors(row, limit) and _refuses_some(row, limit)),
    "reduces": _Way(_refused_dtypes, _refuses_some),
    "forms": _Way(_forms, _other_forms),
    "exact": _Way(_exact, _compares),
    "one_dtype": _Way(_several_dtypes),
    "promotes": _Way(_several_dtypes),
    "nonempty": _Way(_nonempty),
    "fresh_strides": _Way(_odd_strides),
    "single": _Way(_single),
    "sparse_reduces": _Way(_sparse),
    "most_tensors": _Way(_too_many, _listed),
    "layouts": _Way(_other_layout, _has_parts),
    "ordered": _Way(_other_order, _ordered_together),
    "overlap": _Way(_overlapping, _may_overlap),
    "devices": _Way(_elsewhere, _takes_tensors),
    "divides": _Way(_undivided, _splits_evenly),
    "splits_with": _Way(_one_sided_splits, _has_splits),
    "to_others": _Way(_to_itself, lambda row, limit: row.entry.batch is not None),
}
"""How to go beyond a limit by each of its columns."""

UNBREAKABLE = {"missing": "every call of such an op is beyond the limit, and none is legal by it"}
"""Demands that no legal call of the op can be changed to go beyond, each with the reason."""
