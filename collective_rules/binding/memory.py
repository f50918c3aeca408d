"""The memory of a call's tensors: which layouts, orders of dims and overlaps are legal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import attrs

from collective_rules.binding.bound import Bound, Key, Problem, Slot
from collective_rules.binding.overlaps import sharing
from collective_rules.notation import GroupSize, Shares
from collective_rules.ops.op import ANY, CONTIGUOUS, FLAT, FORMAT, FREE, NEVER, ORDER, OWN, REAL_FLAT, REAL_FORMAT, SENT
from collective_rules.spec import Spec
from collective_rules.symbols import hint

Order = tuple[Key, Slot, tuple[int, ...]]
"""A key, the tensor of which it is, and the dims of the tensor from the slowest to the fastest."""

_OF_REAL_VIEW = {REAL_FORMAT: FORMAT, REAL_FLAT: FLAT}
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
        fault = layout_fault(bound, slot, row.layout_of(name)) if layouts_matter else ""
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


def layout_fault(bound: Bound, slot: Slot, layout: str) -> str:
    """Return why the tensor in `slot` is not of `layout`, as a clause after its name; "" where it is."""
    spec = slot.spec
    if layout in (ANY, ORDER) or spec.is_contiguous or (layout == SENT and not travels(bound, slot)):
        return ""
    if layout in _OF_REAL_VIEW and spec.dtype is not None and spec.dtype.is_complex:
        return "must be contiguous, since it is viewed as a real tensor"
    layout = _OF_REAL_VIEW.get(layout, layout)
    if layout == CONTIGUOUS:
        return "must be contiguous"
    if layout == FLAT:
        return "" if _is_flat(spec) else "must have its elements at one distance from each other, as its shape reads"
    if spec.order is None:
        return "has gaps, or elements twice, in memory that travels as it is"
    if layout == FORMAT and not _is_channels_last(spec):
        return "must be contiguous or channels_last"
    return ""


def own_layout(bound: Bound, slot: Slot) -> str:
    """Return the layout that every backend needs of the tensor in `slot`, in a group of this size."""
    return bound.call.row.layout_of(slot.part.path.name) if _layouts_matter(bound) else ANY


def travels(bound: Bound, slot: Slot) -> bool:
    """Return whether what a tensor holds goes to another rank, or comes from one.

    Of a list indexed by `p`, this rank's own stays; so does, on the root, what the root exchanges with itself.
    """
    call = bound.call
    if slot.rank is not None:
        return slot.rank != call.group.rank
    return not call.row.root_only or slot.part.root_only or not call.is_root


def _is_flat(spec: Spec) -> bool:
    counted = [(n, step) for n, step in zip(spec.shape, spec.stride, strict=True) if hint(n) != 1]
    return all(step == n * inner for (_, step), (n, inner) in itertools.pairwise(counted))


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


def memory_order(bound: Bound, also: Callable[[Slot], bool] = lambda slot: False) -> Iterator[Order]:
    """Yield (key, slot, dims from slowest to fastest) of every tensor whose memory order must be agreed.

    `also` chooses tensors besides those of which the op says so; of one that holds the ranks' pieces, one piece counts.
    """
    row = bound.call.row
    layouts_matter = _layouts_matter(bound)
    for slot in bound.slots:
        layout = row.layout_of(slot.part.path.name) if layouts_matter else ANY
        stays = layout in (ORDER, SENT) and not travels(bound, slot)
        counts = layout != ANY and not stays
        if slot.spec.shape is not None and (counts or also(slot)):
            seen = slot if counts else piece_of(slot, bound.call.group.size)
            yield Key("order", None if _reduces_list(bound) else slot.element), seen, seen.spec.order or ()


def piece_of(slot: Slot, group_size: int) -> Slot:
    """Return the slot with one rank's piece of its tensor: the tensor itself, where it does not hold the ranks' pieces.

    A tensor whose pieces do not lie one after another is returned as it is.
    """
    spec, first = slot.spec, slot.part.sizes[0] if slot.part.sizes else None
    if not isinstance(first, (Shares, GroupSize)) or not has_whole_pieces(slot):
        return slot
    kept = () if isinstance(first, GroupSize) else (spec.shape[0] // group_size,)
    stride = spec.stride[1 - len(kept) :]
    return attrs.evolve(slot, spec=Spec((*kept, *spec.shape[1:]), spec.dtype, stride, spec.device))


def has_whole_pieces(slot: Slot) -> bool:
    """Return whether the ranks' pieces, if the tensor holds them, lie one after another in memory."""
    first = slot.part.sizes[0] if slot.part.sizes else None
    return not isinstance(first, (Shares, GroupSize)) or (slot.spec.order or (0,))[0] == 0


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
    for one, two in mixed_orders(memory_order(bound)):
        verdict = f"{two.label} and {one.label} lie in memory in different orders of dims"
        yield _problem("order", verdict, one, two)


def mixed_orders(orders: Iterator[Order]) -> Iterator[tuple[Slot, Slot]]:
    """Yield the first two tensors that must have one order and have not, of what `memory_order` yields."""
    seen: dict[Key, dict[Any, Slot]] = {}
    for key, slot, order in orders:
        earlier = seen.setdefault(key, {})
        for origin in earlier.values():
            if not same_order(origin.spec, slot.spec):
                yield origin, slot
                return
        earlier.setdefault((order, tuple(map(hint, slot.spec.shape))), slot)


def _overlaps(bound: Bound) -> Iterator[Problem]:
    for verdict, one, two in overlaps(bound, bound.call.row.entry.overlap):
        yield _problem("overlap", verdict, one, two)


def overlaps(bound: Bound, overlap: str, *, raw: bool = False) -> Iterator[tuple[str, Slot, Slot]]:
    """Yield the first two tensors that may not share memory and do, where `overlap` says which may; with a verdict.

    `raw`: whether all memory travels as it is, whatever the op's row says.
    """
    writes = bound.call.row.writes
    for a, b in sharing([slot.spec for slot in bound.slots]):
        one, two = bound.slots[a], bound.slots[b]
        written = [slot for slot in (one, two) if slot.part.path.name in writes]
        if len(written) == 2 and not _harmless_twice(bound, one, two, raw=raw):
            yield f"{two.label} and {one.label} are written, and share memory", one, two
            return
        if len(written) == 1 and overlap != FREE:
            read = two if written[0] is one else one
            if not _own(bound, read, written[0], overlap):
                yield (
                    f"{written[0].label} is written while {read.label}, which shares its memory, is read",
                    read,
                    written[0],
                )
                return


def _harmless_twice(bound: Bound, a: Slot, b: Slot, *, raw: bool) -> bool:
    """In place, memory given twice gets the same contents twice, unless raw memory is reduced twice."""
    row, name = bound.call.row, a.part.path.name
    if name not in row.in_place or name in row.entry.scratch:
        return False
    if row.layout_of(name) == ANY and not raw:
        return True
    return not row.reduce_op and a.spec.extent() == b.spec.extent()


def _own(bound: Bound, read: Slot, written: Slot, overlap: str) -> bool:
    rank = bound.call.group.rank
    if overlap == NEVER or read.element != written.element:
        return False
    listed = read.rank if read.rank is not None else written.rank
    if listed is not None:
        return listed == rank if overlap == OWN else listed <= rank
    return overlap == OWN and _is_own_piece(read.spec, written.spec, rank)


def _is_own_piece(a: Spec, b: Spec, rank: int) -> bool:
    """Whether the smaller tensor is the piece of rank `rank` of the larger: the place where it is exchanged."""
    piece, whole = sorted((a, b), key=lambda spec: spec.numel)
    ends = piece.extent(), whole.extent()
    return None not in ends and ends[0][1] == ends[1][1] + rank * piece.nbytes  # type: ignore[index]  # none is None
