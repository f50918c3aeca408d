"""The memory of a call's tensors: which layouts, orders of dims and overlaps are legal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from collective_rules.binding.bound import Bound, Key, Problem, Slot
from collective_rules.binding.overlaps import sharing
from collective_rules.ops.op import ANY, CONTIGUOUS, FORMAT, FREE, NEVER, ORDER, OWN
from collective_rules.spec import Spec
from collective_rules.symbols import hint

_CHANNELS_LAST = ((0, 2, 3, 1), (0, 2, 3, 4, 1))


def memory_problems(bound: Bound) -> Iterator[Problem]:
    """Yield what is wrong with the memory of the call's tensors."""
    row, layouts_matter = bound.call.row, _layouts_matter(bound)
    plain = True
    for slot in bound.slots:
        spec, name = slot.spec, slot.part.path.name
        if spec.layout != "strided":
            if spec.layout not in row.entry.sparse and "strided" in row.rule.constraints.values():
                plain = False
                yield _problem("strided", f"{slot.label} has the layout {spec.layout}", slot)
            continue
        if spec.view and _loses_view(bound, slot, layouts_matter):
            yield _problem("view", f"{slot.label} is a lazy {spec.view} view", slot)
        if spec._stride is None or spec.shape is None:
            continue
        fault = _layout_fault(spec, row.layout_of(name)) if layouts_matter else ""
        if fault:
            plain = False
            yield _problem("dense", f"{slot.label} {fault}", slot)
        elif name in row.writes and spec.overlaps_itself and (layouts_matter or name not in row.in_place):
            yield _problem("overlap", f"{slot.label} is written, but holds some elements twice in memory", slot)
    if plain and layouts_matter:
        yield from _mixed_orders(bound)
    if len(bound.slots) > 1:
        yield from _overlaps(bound)


def _problem(kind: str, verdict: str, *slots: Slot) -> Problem:
    return Problem(kind, verdict, slots[-1].part, {slot.label: slot.spec for slot in slots})


def _layout_fault(spec: Spec, layout: str) -> str:
    if layout in (ANY, ORDER) or spec.is_contiguous:
        return ""
    if layout == CONTIGUOUS:
        return "must be contiguous"
    if spec.order is None:
        return "has gaps, or elements twice, in memory that travels as it is"
    if layout == FORMAT and not _is_channels_last(spec):
        return "must be contiguous or channels_last"
    return ""


def _is_channels_last(spec: Spec) -> bool:
    dims = next((dims for dims in _CHANNELS_LAST if len(dims) == len(spec.shape)), ())
    return spec.order == tuple(d for d in dims if hint(spec.shape[d]) != 1)


def _loses_view(bound: Bound, slot: Slot, layouts_matter: bool) -> bool:
    """Return whether the dispatcher's fallback for lazy views loses what is written, or passes raw memory on.

    The fallback resolves tensors and lists of tensors into copies, but not lists of lists.
    """
    row, name = bound.call.row, slot.part.path.name
    nested = row.by_name[name].depth > 1 if name in row.by_name else False
    if nested:
        return layouts_matter and row.layout_of(name) not in (ANY, ORDER)
    refused = name in row.by_name and row.by_name[name].depth and row.by_name[name].mutable
    return name in row.writes and (refused or name not in row.in_place or bound.call.group.size > 1)


def memory_order(bound: Bound) -> Iterator[tuple[Key, Slot, tuple[int, ...]]]:
    """Yield (key, slot, dims from slowest to fastest) of every tensor whose memory order must be agreed."""
    row = bound.call.row
    if not _layouts_matter(bound):
        return
    for slot in bound.slots:
        layout = row.layout_of(slot.part.path.name)
        stays = layout == ORDER and slot.rank == bound.call.group.rank
        if layout != ANY and not stays and slot.spec.shape is not None:
            yield Key("order", None if _reduces_list(bound) else slot.element), slot, slot.spec.order or ()


def _reduces_list(bound: Bound) -> bool:
    """Return whether the tensors of a list are reduced with each other, besides those of the other ranks."""
    return bound.call.row.entry.one_tensor and bool(bound.call.row.reduce_op)


def _layouts_matter(bound: Bound) -> bool:
    together = (bound.count or 1) if _reduces_list(bound) else 1
    return bound.call.group.size * together >= bound.call.row.entry.layouts_from


def same_order(a: Spec, b: Spec) -> bool:
    """Return whether two tensors keep the dims that count in both (those that are not 1) in one memory order.

    >>> same_order(Spec((1, 2, 2), stride=(1, 1, 2)), Spec((2, 2, 2), stride=(1, 2, 4)))
    True
    """
    if a.order == b.order or a.has_one_order or b.has_one_order:
        return True
    common = {d for d, (m, n) in enumerate(zip(a.shape, b.shape, strict=False)) if 1 not in (hint(m), hint(n))}
    one, two = ([d for d in spec.order or range(len(spec.shape)) if d in common] for spec in (a, b))
    return one == two


def _mixed_orders(bound: Bound) -> Iterator[Problem]:
    seen: dict[Key, dict[Any, Slot]] = {}
    for key, slot, order in memory_order(bound):
        earlier = seen.setdefault(key, {})
        for origin in earlier.values():
            if not same_order(origin.spec, slot.spec):
                verdict = f"{slot.label} and {origin.label} lie in memory in different orders of dims"
                yield _problem("order", verdict, origin, slot)
                return
        earlier.setdefault((order, tuple(map(hint, slot.spec.shape))), slot)


def _overlaps(bound: Bound) -> Iterator[Problem]:
    entry, writes = bound.call.row.entry, bound.call.row.writes
    for a, b in sharing([slot.spec for slot in bound.slots]):
        one, two = bound.slots[a], bound.slots[b]
        written = [slot for slot in (one, two) if slot.part.path.name in writes]
        if len(written) == 2 and not _harmless_twice(bound, one, two):
            yield _problem("overlap", f"{two.label} and {one.label} are written, and share memory", one, two)
            return
        if len(written) == 1 and entry.overlap != FREE:
            read = two if written[0] is one else one
            if not _own(bound, read):
                verdict = f"{written[0].label} is written while {read.label}, which shares its memory, is read"
                yield _problem("overlap", verdict, read, written[0])
                return


def _harmless_twice(bound: Bound, a: Slot, b: Slot) -> bool:
    """In place, memory given twice gets the same contents twice, unless raw memory is reduced twice."""
    row, name = bound.call.row, a.part.path.name
    if name not in row.in_place or name in row.entry.scratch:
        return False
    if row.layout_of(name) == ANY:
        return True
    return not row.reduce_op and a.spec.extent() == b.spec.extent()


def _own(bound: Bound, read: Slot) -> bool:
    overlap, rank = bound.call.row.entry.overlap, bound.call.group.rank
    if overlap == NEVER or read.rank is None:
        return False
    return read.rank == rank if overlap == OWN else read.rank <= rank
