"""The arithmetic of sizes: `solve` and `evaluate`. It knows no torch, no call and no list.

Values are asked for nothing but `==`, `%`, `//` and `*`. So an int, a SymInt and a piece of program text (see
`binding.compiled`) are solved by the same lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from collective_rules.notation.ast import ANY, GroupSize, Name, Number, Rest, Shares, Size, Splits


def solve(size: Size, value: Any, group_size: Any) -> tuple[Any, Any]:
    """Return (condition, number): `value` is of this size if the condition holds, and its name then is the number.

    A size without a name has the number None. Of a row or column of split sizes, the number is the sum.

    >>> solve(Shares("d"), 12, 4), solve(GroupSize(), 3, 4)
    ((True, 3), (False, None))
    """
    if isinstance(size, (GroupSize, Number)):
        return value == (group_size if isinstance(size, GroupSize) else size.value), None
    if isinstance(size, Shares):
        return value % group_size == 0, value // group_size
    return True, value


def evaluate(
    sizes: tuple[Size, ...], group_size: Any, value_of: Callable[[Name | Shares | Splits | Rest], Any]
) -> tuple[Any, ...] | None:
    """Return the shape that has these sizes, None where `value_of` a name is None.

    >>> evaluate((Shares("d"), Rest("s")), 4, lambda size: {"d": 3, "s": (5,)}[size.name])
    (12, 5)
    """
    shape: list[Any] = []
    for size in sizes:
        if isinstance(size, (GroupSize, Number)):
            shape.append(group_size if isinstance(size, GroupSize) else size.value)
            continue
        value = value_of(size)
        if value is None:
            return None
        if isinstance(size, Rest):
            shape += value
        else:
            shape.append(value * group_size if isinstance(size, Shares) else value)
    return tuple(shape)


def pairs(size: Splits, rank: int, group_size: int) -> tuple[tuple[int, int], ...]:
    """Return the (sender, receiver) of each split size that `rank` sums, in the order of the other rank.

    >>> pairs(Splits("S", "r", ":"), 1, 3), pairs(Splits("S", ":", "r"), 1, 3)
    (((1, 0), (1, 1), (1, 2)), ((0, 1), (1, 1), (2, 1)))
    """
    return tuple((other, rank) if size.row == ANY else (rank, other) for other in range(group_size))
