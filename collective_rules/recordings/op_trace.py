"""The part that Kineto and execution traces share: a collective is up to five rows inside one another.

They are the op as the program calls it, the op as the backend carries it out, `record_param_comms`, a note of the
backend's ("nccl:all_reduce"), and a GPU kernel. The outermost row is the call; the rows inside it tell the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import attrs

from collective_rules.ops import Argument
from collective_rules.recordings.events import is_number

PARAM = "record_param_comms"
"""The row in which torch names the group, the rank and the split sizes of a backend's collective."""
_LARGEST_SPREAD = 1 << 20
_SCALARS: Mapping[str, type] = {"int": int, "bool": bool, "str": str}


@attrs.define(eq=False)
class TraceRow:
    """A row of a trace that has to do with communication; `inner` are the rows that its thread passed inside it."""

    name: str
    number: int
    inner: list[Any] = attrs.field(factory=list, kw_only=True)

    @property
    def note(self) -> Any:
        """The first row of this one and of those inside it that is the backend's note; None where there is none."""
        return next((one for one in (self, *self.inner) if "::" not in one.name and ":" in one.name), None)


_Row = TypeVar("_Row", bound=TraceRow)


def outermost(
    rows: Iterable[_Row], around: Callable[[_Row, dict[int, _Row]], _Row | None], is_call: Callable[[_Row], bool]
) -> list[_Row]:
    """Return the calls that are inside of no other, in order; the rows inside a call become its `inner` ones.

    `around` takes a row and the calls so far, by the number of each row of theirs; it returns the call that the row
    belongs to, None for a row of its own.
    """
    calls: list[_Row] = []
    call_of: dict[int, _Row] = {}
    for row in rows:
        outer = around(row, call_of)
        if outer is not None:
            outer.inner.append(row)
        elif is_call(row):
            calls.append(outer := row)
        else:
            continue
        call_of[row.number] = outer
    return calls


def scalar(value: Any, argument: Argument) -> Any:
    """Return `value` where it fits `argument`: a number, truth value, text or list of numbers; else None."""
    if argument.depth == 1 and argument.kind == "int" and isinstance(value, list):
        return tuple(value) if all(is_number(n) for n in value) else None
    if argument.depth or type(value) is not _SCALARS.get(argument.kind):
        return None
    return value if argument.kind != "int" or is_number(value, -1) else None


def evenly_spread(size: int | None, start: Any, stride: Any) -> tuple[int, ...]:
    """Return a group's ranks, of which a trace tells the first one and their distance; empty if they are not even."""
    if not size or size > _LARGEST_SPREAD or not (is_number(start) and is_number(stride, 1)):
        return ()
    return tuple(range(start, start + stride * size, stride))
