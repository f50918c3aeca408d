"""Broken memory: gaps, orders, overlaps, lazy views."""

from __future__ import annotations

import itertools

import torch

from collective_rules.binding.binder import bind
from collective_rules.binding.bound import Slot
from collective_rules.binding.memory import memory_order, travels
from collective_rules.call import Call
from collective_rules.ops import Row
from collective_rules.ops.op import ANY, CONTIGUOUS, DENSE, FORMAT, FREE, NEVER, ORDER, OWN, SENT
from collective_rules.spec import Memory
from collective_rules.testing.broken.edits import edited, slots_of
from collective_rules.testing.broken.scene import Breach, Broken, Scene
from collective_rules.testing.broken.traits import given_parts, has_layout, is_collective, list_parts
from collective_rules.testing.drawing import Calls, Dtypes
from collective_rules.testing.layouts import CHANNELS_LAST, SLICED, TRANSPOSED, strides

_RAW = (SENT, DENSE, FORMAT, CONTIGUOUS)


def _sliced(scene: Scene) -> Broken:
    row = scene.row
    ranks = max(row.entry.layouts_from, 2 if has_layout(row, SENT) else 1)
    calls = scene.legal(min_ranks=ranks, min_dims=1, min_size=2, form=row.spellings[0].form.name)
    raw = [(one, slot) for one in calls if one.row is row for slot in slots_of(one) if _is_raw(one, slot)]
    one, slot = scene.pick((one, slot) for one, slot in raw if slot.spec.numel > 1)
    changed = edited(one, slot, stride=strides(slot.spec.shape, SLICED))
    return scene.local(calls, changed, "dense", f"{slot.label} is a slice")


def _is_raw(one: Call, slot: Slot) -> bool:
    layout = one.row.layout_of(slot.part.path.name)
    return layout in _RAW and (layout != SENT or travels(bind(one), slot))


def _one_transposed(scene: Scene) -> Broken:
    entry = scene.row.entry
    ranks = max(entry.layouts_from, 3 if has_layout(scene.row, SENT) else 1)
    calls = scene.legal(min_ranks=ranks, min_dims=2, min_size=2, min_tensors=2 if entry.one_tensor else 1)
    one, slot = scene.pick((one, slot) for one in calls for slot in _ordered(one))
    changed = edited(one, slot, stride=strides(slot.spec.shape, TRANSPOSED))
    return scene.local(calls, changed, "order", f"{slot.label} is transposed")


def _ordered(one: Call) -> list[Slot]:
    """Return the tensors whose memory order another tensor of the call must share."""
    orders = [(key, slot) for key, slot, _ in memory_order(bind(one))]
    keys = [key for key, _ in orders]
    shared = [slot for key, slot in orders if keys.count(key) > 1]
    return [slot for slot in shared if one.row.layout_of(slot.part.path.name) in (SENT, DENSE, ORDER)]


def _ordered_together(row: Row) -> bool:
    bound = [part for part in given_parts(row) if row.layout_of(part.path.name) in (SENT, DENSE, ORDER, FORMAT)]
    together = len(bound) > 1 or any("p" in part.path.index for part in bound)
    return together or (row.entry.one_tensor and bool(row.reduce_op) and bool(bound))


def _transposed_on_one_rank(scene: Scene) -> Broken:
    dims, layout = (3, CHANNELS_LAST) if has_layout(scene.row, FORMAT) else (2, TRANSPOSED)
    drawing, calls = scene.drawing(min_ranks=2, min_dims=dims, min_size=2)
    drawing.values.layouts = dict.fromkeys(drawing.values.layouts, layout)
    return scene.on_one_rank(drawing, calls, "order", f"this rank's tensors are {layout}")


def _expanded(scene: Scene) -> Broken:
    calls = scene.legal(min_dims=1, min_size=2)
    one, slot = scene.slot(calls, lambda slot: _copied_out(scene.row, slot.part.path.name))
    dim = next(dim for dim, n in enumerate(slot.spec.shape) if n > 1)
    steps = list(slot.spec.stride)
    steps[dim] = 0
    return scene.local(calls, edited(one, slot, stride=steps), "overlap", f"{slot.label} is expanded along dim {dim}")


def _copied_out(row: Row, name: str) -> bool:
    return name in row.writes and name not in row.fresh and row.layout_of(name) == ANY


def _one_memory(scene: Scene) -> Broken:
    """Put a written tensor into the memory of a tensor that is read, where the op does not admit it."""
    row = scene.row
    calls = scene.legal(min_ranks=2, min_dims=1, min_size=2, min_tensors=2 if list_parts(row, "i") else 1)
    changed, change = in_one_memory(scene, calls)
    return scene.local(calls, changed, "overlap", change)


def in_one_memory(scene: Scene, calls: Calls, overlap: str = "") -> tuple[Call, str]:
    """Return one of the calls with two tensors in one memory that may not share it, and what was changed."""
    row = scene.row
    pairs = ((one, *pair) for one in calls if one.row is row for pair in apart(one, overlap))
    one, a, b = scene.pick(pairs)
    start = 1 if row.in_place and not row.reduce_op else 0  # the same contents written twice do no harm
    changed = edited(edited(one, a, memory=Memory(0, 0)), b, memory=Memory(0, start))
    return changed, f"{b.label} lies in the memory of {a.label}"


def apart(one: Call, overlap: str = "") -> list[tuple[Slot, Slot]]:
    """Return the pairs of tensors of the call that may not share memory, by the op's row or by a limit's `overlap`.

    Both of a pair lie at the start of one memory, where the piece of rank 0 is in place.
    """
    row, slots, rank = one.row, slots_of(one), one.group.rank
    raw, overlap = bool(overlap), overlap or row.entry.overlap
    reads = [slot for slot in slots if slot.part.path.name in row.reads and slot.part.path.name not in row.writes]
    writes = [slot for slot in slots if slot.part.path.name in row.writes]
    pairs = [(a, b, a.rank if a.rank is not None else b.rank) for a in reads for b in writes if a.element == b.element]
    if overlap == FREE:
        pairs = []
    elif overlap == OWN:
        pairs = [pair for pair in pairs if pair[2] != rank and (pair[2] is not None or rank > 0)]
    elif overlap != NEVER:
        pairs = [pair for pair in pairs if pair[2] is not None and pair[2] > rank]
    copied = any(row.layout_of(name) == ANY for name in row.in_place) and not raw
    twice = [] if copied or (raw and not row.in_place) else list(itertools.pairwise(writes))
    return [(a, b) for a, b, _ in pairs] + twice


def _may_overlap(row: Row) -> bool:
    lists = [part for part in given_parts(row) if part.path.name in row.writes and set(part.path.index) & {"p", "i"}]
    twice = bool(lists) and (not row.in_place or has_layout(row, DENSE))
    return is_collective(row) and (twice or (row.entry.overlap != FREE and not row.in_place))


def _float32(scene: Scene) -> Dtypes:
    return tuple(each for each in scene.dtypes() if each[1] is torch.float32)


def _negative_view(scene: Scene) -> Broken:
    calls = scene.legal(min_ranks=2, min_dims=1, min_size=1, dtypes=_float32(scene))
    one, slot = scene.slot(calls, lambda slot: _loses_view(scene.row, slot.part.path.name))
    return scene.local(calls, edited(one, slot, view="neg"), "view", f"{slot.label} is a negative view")


def _loses_view(row: Row, name: str) -> bool:
    return name in row.writes and name not in row.fresh and row.by_name[name].depth < 2


def _takes_no_sparse(row: Row) -> bool:
    return not row.entry.sparse and bool(given_parts(row)) and not row.entry.batch


def _sparse(scene: Scene) -> Broken:
    one, slot = scene.slot(calls := scene.legal(min_dims=1, min_size=1, dtypes=_float32(scene)))
    return scene.local(calls, edited(one, slot, layout="sparse_coo"), "strided", f"{slot.label} is sparse")


def _has_order(row: Row) -> bool:
    return has_layout(row, SENT, DENSE, ORDER, FORMAT) and is_collective(row)


def _has_copied_out(row: Row) -> bool:
    return any(_copied_out(row, part.path.name) for part in given_parts(row))


MEMORY: tuple[Breach, ...] = (
    Breach("a slice", "dense", lambda row: has_layout(row, *_RAW), _sliced),
    Breach("one transposed", "order", lambda row: is_collective(row) and _ordered_together(row), _one_transposed),
    Breach("transposed on one rank", "order", _has_order, _transposed_on_one_rank),
    Breach("expanded", "overlap", _has_copied_out, _expanded),
    Breach("shared memory", "overlap", _may_overlap, _one_memory),
    Breach("a negative view", "view", lambda row: any(_loses_view(row, name) for name in row.writes), _negative_view),
    Breach("sparse", "strided", _takes_no_sparse, _sparse),
)
