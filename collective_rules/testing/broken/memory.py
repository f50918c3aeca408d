"""Broken memory: gaps, orders, overlaps, lazy views."""

from __future__ import annotations

import itertools

import torch
from hypothesis import strategies as st

from collective_rules.binding.binder import bind
from collective_rules.binding.bound import Slot
from collective_rules.binding.memory import memory_order
from collective_rules.call import Call
from collective_rules.ops import Row
from collective_rules.ops.op import ANY, CONTIGUOUS, DENSE, FORMAT, FREE, NEVER, ORDER, OWN
from collective_rules.spec import Memory
from collective_rules.testing.broken.scene import (
    Breach,
    Broken,
    Scene,
    edited,
    for_two_alike,
    given_parts,
    has_layout,
    is_collective,
    list_parts,
    mattering,
    slots_of,
)
from collective_rules.testing.drawing import legal_dtypes
from collective_rules.testing.layouts import CHANNELS_LAST, SLICED, TRANSPOSED, strides

__all__ = ["MEMORY"]

_RAW = (DENSE, FORMAT, CONTIGUOUS)


def _sliced(scene: Scene) -> Broken:
    row = scene.row
    calls = scene.legal(**mattering(row), dims=1, least=2, form=row.spellings[0].form.name)
    one, slot = scene.slot(calls, lambda slot: row.layout_of(slot.part.path.name) in _RAW and slot.spec.numel > 1)
    changed = edited(one, slot, stride=strides(slot.spec.shape, SLICED))
    return scene.local(calls, changed, "dense", f"{slot.label} is a slice")


def _one_transposed(scene: Scene) -> Broken:
    row = scene.row
    calls = scene.legal(**mattering(row), dims=2, least=2, **for_two_alike(row))
    ordered = [(one, slot) for one in calls for slot in _ordered(one)]
    one, slot = scene.pick(ordered)
    changed = edited(one, slot, stride=strides(slot.spec.shape, TRANSPOSED))
    return scene.local(calls, changed, "order", f"{slot.label} is transposed")


def _ordered(one: Call) -> list[Slot]:
    """The tensors whose order another of the call must have."""
    orders = [(key, slot) for key, slot, _ in memory_order(bind(one))]
    keys = [key for key, _ in orders]
    return [
        slot for key, slot in orders if keys.count(key) > 1 and one.row.layout_of(slot.part.path.name) in (DENSE, ORDER)
    ]


def _ordered_together(row: Row) -> bool:
    bound = [part for part in given_parts(row) if row.layout_of(part.path.name) in (DENSE, ORDER, FORMAT)]
    together = len(bound) > 1 or any("p" in part.path.index for part in bound)
    return together or (row.entry.alike and bool(row.reduce_op) and bool(bound))


def _transposed_on_one_rank(scene: Scene) -> Broken:
    row = scene.row
    strict = has_layout(row, FORMAT)
    drawing = scene.drawing(ranks=2, dims=3 if strict else 2, least=2)
    calls = drawing.calls()
    layout = CHANNELS_LAST if strict else TRANSPOSED
    drawing.orders = dict.fromkeys(drawing.orders, layout)
    changed = drawing.one(scene.draw(st.integers(0, drawing.size - 1)))
    return scene.between(calls, changed, "order", f"this rank's tensors are {layout}")


def _expanded(scene: Scene) -> Broken:
    row = scene.row
    calls = scene.legal(dims=1, least=2)
    one, slot = scene.slot(calls, lambda slot: _copied_out(row, slot.part.path.name))
    dim = next(dim for dim, n in enumerate(slot.spec.shape) if n > 1)
    steps = list(slot.spec.stride)
    steps[dim] = 0
    return scene.local(calls, edited(one, slot, stride=steps), "overlap", f"{slot.label} is expanded along dim {dim}")


def _copied_out(row: Row, name: str) -> bool:
    return name in row.writes and name not in row.fresh and row.layout_of(name) == ANY


def _one_memory(scene: Scene) -> Broken:
    """Break: a written tensor lies in one that is read, where the op does not admit it."""
    row = scene.row
    calls = scene.legal(ranks=2, dims=1, least=2, count=2 if list_parts(row, "i") else 1)
    found = [(one, a, b) for one in calls for a, b in _apart(one)]
    one, a, b = scene.pick(found)
    start = 1 if row.in_place and not row.reduce_op else 0  # the same contents written twice do no harm
    changed = edited(edited(one, a, memory=Memory(0, 0)), b, memory=Memory(0, start))
    return scene.local(calls, changed, "overlap", f"{b.label} lies in the memory of {a.label}")


def _apart(one: Call) -> list[tuple[Slot, Slot]]:
    """Pairs of tensors of the call that may not share memory."""
    row, slots, rank = one.row, slots_of(one), one.group.rank
    reads = [slot for slot in slots if slot.part.path.name in row.reads and slot.part.path.name not in row.writes]
    writes = [slot for slot in slots if slot.part.path.name in row.writes]
    if row.entry.overlap == FREE:
        reads = []
    elif row.entry.overlap == OWN:
        reads = [slot for slot in reads if slot.rank != rank]
    elif row.entry.overlap != NEVER:
        reads = [slot for slot in reads if slot.rank is not None and slot.rank > rank]
    copied = any(row.layout_of(name) == ANY for name in row.in_place)
    return [(a, b) for a in reads for b in writes] + ([] if copied else list(itertools.pairwise(writes)))


def _may_overlap(row: Row) -> bool:
    lists = [part for part in given_parts(row) if part.path.name in row.writes and set(part.path.index) & {"p", "i"}]
    twice = bool(lists) and (not row.in_place or has_layout(row, DENSE))
    return is_collective(row) and (twice or (row.entry.overlap != FREE and not row.in_place))


def _negative_view(scene: Scene) -> Broken:
    row = scene.row
    kinds = tuple(kind for kind in legal_dtypes(row, scene.backend, 2) if kind[1] is torch.float32)
    calls = scene.legal(ranks=2, dims=1, least=1, kinds=kinds)
    one, slot = scene.slot(calls, lambda slot: _loses_view(row, slot.part.path.name))
    return scene.local(calls, edited(one, slot, view="neg"), "view", f"{slot.label} is a negative view")


def _loses_view(row: Row, name: str) -> bool:
    return name in row.writes and name not in row.fresh and row.by_name[name].depth < 2


def _takes_no_sparse(row: Row) -> bool:
    return not row.entry.sparse and bool(given_parts(row)) and not row.entry.batch


def _sparse(scene: Scene) -> Broken:
    row = scene.row
    kinds = tuple(kind for kind in legal_dtypes(row, scene.backend, 2) if kind[1] is torch.float32)
    calls = scene.legal(dims=1, least=1, kinds=kinds)
    one, slot = scene.slot(calls)
    return scene.local(calls, edited(one, slot, layout="sparse_coo"), "strided", f"{slot.label} is sparse")


def _copied_layouts(row: Row) -> bool:
    return has_layout(row, DENSE, ORDER, FORMAT) and is_collective(row)


MEMORY: tuple[Breach, ...] = (
    Breach("a slice", "dense", lambda row: has_layout(row, *_RAW), _sliced),
    Breach("one transposed", "order", lambda row: is_collective(row) and _ordered_together(row), _one_transposed),
    Breach("transposed on one rank", "order", _copied_layouts, _transposed_on_one_rank),
    Breach(
        "expanded", "overlap", lambda row: any(_copied_out(row, part.path.name) for part in given_parts(row)), _expanded
    ),
    Breach("shared memory", "overlap", _may_overlap, _one_memory),
    Breach("a negative view", "view", lambda row: any(_loses_view(row, name) for name in row.writes), _negative_view),
    Breach("sparse", "strided", _takes_no_sparse, _sparse),
)
