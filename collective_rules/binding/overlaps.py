"""Which tensors share memory: intervals of one allocation first, then the very elements.

Views that lie between each other's elements (the columns of one matrix) share none. Where that cannot be told at
little cost, nothing is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from collective_rules.spec import Spec
from collective_rules.symbols import hint

_MOST_OPEN = 64
"""How many intervals that are open at once are compared: beyond, the tensors are interleaved views of one matrix."""

_MOST_ELEMENTS = 4096
"""Up to how many elements are listed one by one."""


def sharing(specs: Sequence[Spec]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of places in `specs`, the smaller first, whose tensors have an element in common.

    The same object twice is the same memory. Near-linear where the tensors lie one after another.
    """
    first: dict[int, int] = {}
    for place, spec in enumerate(specs):
        if spec.shape is None or 0 not in map(hint, spec.shape):
            earlier = first.setdefault(id(spec), place)
            if earlier != place:
                yield earlier, place
    by_storage: dict[int, list[tuple[int, int, int]]] = {}
    for place in first.values():
        extent = specs[place].extent()
        if extent is not None:
            storage, start, stop = extent
            by_storage.setdefault(storage, []).append((start, stop, place))
    for extents in by_storage.values():
        for a, b in _meeting(sorted(extents)):
            if _have_common_element(specs[a], specs[b]):
                yield min(a, b), max(a, b)


def _meeting(extents: list[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the places of intervals that meet, sweeping from the start of the allocation."""
    open_: list[tuple[int, int]] = []
    for start, stop, place in extents:
        open_ = [(end, other) for end, other in open_ if end > start][-_MOST_OPEN:]
        for _, other in open_:
            yield other, place
        open_.append((stop, place))


def _have_common_element(a: Spec, b: Spec) -> bool:
    if a.dtype.itemsize != b.dtype.itemsize:
        return a.is_contiguous and b.is_contiguous
    if a.is_contiguous and b.is_contiguous:
        return True
    apart = _boxes_apart(a, b)
    if apart is not None:
        return not apart
    if a.numel > _MOST_ELEMENTS or b.numel > _MOST_ELEMENTS:
        return False
    return not _offsets(a).isdisjoint(_offsets(b))


def _boxes_apart(a: Spec, b: Spec) -> bool | None:
    """Return whether two boxes cut from one larger tensor are apart; None where they are not two such boxes."""
    if a.stride != b.stride or a.memory is None or b.memory is None:
        return None
    if b.memory.offset < a.memory.offset:
        a, b = b, a
    dims = sorted(range(len(a.stride)), key=lambda d: a.stride[d], reverse=True)
    shift = b.memory.offset - a.memory.offset  # type: ignore[union-attr]  # both are known
    apart, room = False, None
    for dim in dims:
        step = a.stride[dim]
        if step == 0:
            return None
        at, shift = divmod(shift, step)
        if room is not None and max(at + b.shape[dim], a.shape[dim]) * step > room:
            return None  # it runs over into the next row
        apart = apart or at >= a.shape[dim]
        room = step
    return apart or shift > 0


def _offsets(spec: Spec) -> set[int]:
    start = spec.memory.offset if spec.memory is not None else 0
    steps = (range(0, n * step, step) if step else (0,) for n, step in zip(spec.shape, spec.stride, strict=True))
    return {start + sum(at) for at in itertools.product(*steps)}
