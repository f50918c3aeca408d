"""Computes the strides of a tensor from the name of its layout in memory. Knows no op."""

from __future__ import annotations

from collections.abc import Sequence

STRAIGHT, TRANSPOSED, CHANNELS_LAST = "contiguous", "transposed", "channels_last"
SLICED, EXPANDED = "sliced", "expanded"

_ORDERS = {4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}


def strides(shape: Sequence[int], layout: str) -> tuple[int, ...]:
    """Return the strides, in elements, of a tensor of `shape` in `layout`.

    `transposed` reverses the dims in memory; `channels_last` is torch's, and contiguous where there are not 4 or 5
    dims; `sliced` takes every second element of a contiguous tensor; `expanded` repeats the first dim.

    >>> strides((2, 3), "transposed"), strides((2, 3), "sliced"), strides((2, 3), "expanded")
    ((1, 2), (6, 2), (0, 1))
    """
    order = tuple(range(len(shape)))
    if layout == TRANSPOSED:
        order = order[::-1]
    elif layout == CHANNELS_LAST:
        order = _ORDERS.get(len(shape), order)
    steps, step = [0] * len(shape), 2 if layout == SLICED else 1
    for dim in reversed(order):
        steps[dim] = step
        step *= max(shape[dim], 1)
    if layout == EXPANDED and shape:
        steps[0] = 0
    return tuple(steps)
