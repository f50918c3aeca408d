"""What a call's split sizes are: the only module that says what an empty list means, and a list that is left out."""

from __future__ import annotations

from typing import Any

from collective_rules.call import UNKNOWN, Call
from collective_rules.ops.op import EVEN, SplitSizes


def meaning(given: Any, column: SplitSizes, group_size: int) -> Any:
    """Return what `given` means as the argument of `column`: one size for each rank, `EVEN`, or `UNKNOWN`.

    >>> from collective_rules.ops.op import NONE
    >>> meaning((), SplitSizes("splits"), 2), meaning((), SplitSizes("splits", NONE), 2), meaning((3, 4), None, 2)
    ('even', (0, 0), (3, 4))
    """
    if given or given is UNKNOWN:
        return given
    return EVEN if given is None or column.empty == EVEN else (0,) * group_size


def split_sizes(call: Call, behind: str) -> Any:
    """Return the split sizes that `call` passes for the rule's part `behind`; see `meaning`."""
    column = call.row.entry.splits[behind]
    given = call.arguments.get(column.argument) if column.argument else None
    return meaning(given, column, call.group.size)


def total(sizes: Any, share: Any, group_size: int) -> Any:
    """Return the sum of `sizes`, each of which is `share` where they are even; None where that is not known."""
    if sizes is UNKNOWN:
        return None
    if sizes != EVEN:
        return sum(sizes)
    return None if share is None else share * group_size


def own_share(
    given: Any, column: SplitSizes, group_size: int, rank: int, rows: int | None, own: int | None
) -> tuple[Any, Any] | None:
    """Return `rank`'s share of the split sizes `given` and the sum of all, None where they are not plain and legal.

    `rows` is the size that is split, None for a tensor that is not given; its own share must then be `own`. This is for
    the fast path, which asks it once or twice a call.
    """
    if given is UNKNOWN:
        return None
    if not given and (given is None or column.empty == EVEN):  # as in `meaning`
        if rows is None:
            return own, total(EVEN, own, group_size)
        return None if rows % group_size else (rows // group_size, rows)
    sizes = given or meaning(given, column, group_size)
    if len(sizes) != group_size or {*map(type, sizes)} != {int} or min(sizes) < 0:
        return None
    rows_of_all, share = sum(sizes), sizes[rank]
    return (share, rows_of_all) if rows in (None, rows_of_all) and own in (None, share) else None
