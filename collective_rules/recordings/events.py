"""One collective as another tool's recording tells it, and readers of the numbers in it.

A field that is missing or damaged is unknown: None. A damaged number must not drop its call, for then the calls behind
it would be compared with the wrong ones of other ranks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import attrs
import torch

from collective_rules.errors import CallError, UnknownOpError
from collective_rules.ops import EXCLUSIONS, OPS, Row, lookup
from collective_rules.recordings.recording import Notes, short
from collective_rules.recordings.spellings import NO_COLLECTIVES, SPELLINGS, SUMMARIES
from collective_rules.spec import Spec

_LARGEST = 2**63 - 1
_LONGEST = 1 << 20
_MOST_DIMS = 64


@attrs.define(eq=False)
class Event:
    """One collective as a file tells it.

    - `name`: the op, "c10d::send", or the backend's name for it, in lower case.
    - `arguments`: those of the op that the file tells, by schema name.
    - `reads`, `writes`: the tensors as a flat list, where the file tells no more. `counted`: the file tells only their
      numbers of elements, from which shapes are made up. `bare`: the file tells no tensors of any call.
    - `read_splits`, `write_splits`: of an all_to_all; None where they are not told.
    - `group`, `size`, `ranks`: the group's name ("" where it is not told), size and global ranks; `rank` is this
      process's rank in it. `peer`: of a send or receive, in the group.
    - `root`: in the group, where that is told.
    - `at`: what the calls are ordered by. `where`: the place in the file, for messages.
    """

    name: str
    where: str = ""
    at: Any = 0
    arguments: dict[str, Any] = attrs.field(factory=dict)
    reads: tuple[Spec, ...] | None = None
    writes: tuple[Spec, ...] | None = None
    counted: bool = False
    bare: bool = False
    read_splits: tuple[int, ...] | None = None
    write_splits: tuple[int, ...] | None = None
    group: str = ""
    size: int | None = None
    ranks: tuple[int, ...] = ()
    rank: int | None = None
    peer: int | None = None
    index: int | None = None
    source: str = ""
    blocking: bool | None = None
    root: int | None = None

    @property
    def op(self) -> str:
        """The op behind the name."""
        return SPELLINGS.get(self.name, self.name)

    def take_rank(self, rank: int | None) -> None:
        """Take in the rank that `record_param_comms` has; NCCL writes the root or the peer there."""
        row = lookup(self.op)
        if row.rule.point_to_point:
            self.peer = rank
        elif row.namespace == "c10d" and row.root:
            self.root = rank
        else:
            self.rank = rank


def row_of(name: str) -> Row | None:
    """Return the row of the op `name`; None where it has none, or only waits."""
    if name not in OPS:
        return None
    try:
        row = lookup(name)
    except UnknownOpError:  # an op of another torch, whose schema is not known here
        return None
    return None if row.rule.waits else row


def name_known(name: str, notes: Notes, where: str) -> bool:
    """Return whether `name` is a collective that has a rule; note a name that is not known at all."""
    if name in SPELLINGS or row_of(name) is not None:
        return True
    if name in SUMMARIES:
        notes.add("READ9", f"a row {name!r}", where)
    elif name not in NO_COLLECTIVES and name not in EXCLUSIONS and name not in OPS:
        notes.add("READ3", repr(name if len(name) <= 80 else name[:77] + "..."), where)
    return False


def is_number(value: Any, least: int = 0) -> bool:
    """Return whether `value` is an int of 64 bits, `least` or more."""
    return type(value) is int and least <= value <= _LARGEST


def at(values: Any, place: int) -> Any:
    """Return the value at `place` of a list; None where there is no such list, or no such place."""
    return values[place] if isinstance(values, list) and place < len(values) else None


class FieldReader:
    """Reads the fields of a file's records, and notes those that cannot be read."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes

    def number(self, value: Any, what: str, where: str, least: int = 0) -> int | None:
        """Return `value` as a number; None where it is left out, or is none."""
        if value is None:
            return None
        if type(value) is float and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if is_number(value, least):
            return int(value)
        self.notes.add("READ2", f"{what}={short(value)}, which should be a number", where)
        return None

    def numbers(self, value: Any, what: str, where: str) -> tuple[int, ...] | None:
        """Return a list of numbers, or the text of one ("[0, 1]"); None where it is left out, or is none."""
        if isinstance(value, str):
            value = self._listed(value)
        if value is None:
            return None
        if isinstance(value, (list, tuple)) and len(value) <= _LONGEST and all(is_number(n) for n in value):
            return tuple(value)
        self.notes.add("READ2", f"{what}={short(value)}, which should be a list of numbers", where)
        return None

    def _listed(self, text: str) -> Any:
        """Return the list that `text` spells; None where it is shortened ("[0, 1, ..., 7]") or empty."""
        if "..." in text or not text.strip():
            return None
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text

    def spec(self, shape: Any, dtype: torch.dtype | None, what: str, where: str, stride: Any = None) -> Spec:
        """Return a tensor of `shape`, a list of sizes; of unknown shape where that is none."""
        sizes = self.numbers(shape, what, where) if isinstance(shape, (list, tuple)) else None
        if sizes is None or len(sizes) > _MOST_DIMS:
            if shape is not None and sizes is None and not isinstance(shape, (list, tuple)):
                self.notes.add("READ2", f"{what}={short(shape)}, which should be a list of sizes", where)
            return _made(None, dtype, None)
        steps = None
        if isinstance(stride, (list, tuple)) and len(stride) == len(sizes) and all(map(is_number, stride)):
            steps = tuple(stride)
        return _made(sizes, dtype, steps)

    def specs(
        self, shapes: Any, dtypes: Iterable[torch.dtype | None], what: str, where: str
    ) -> tuple[Spec, ...] | None:
        """Return one tensor for each of `shapes`; None where they are left out, or are no list of lists."""
        if shapes is None:
            return None
        if not isinstance(shapes, (list, tuple)) or not all(isinstance(shape, (list, tuple)) for shape in shapes):
            self.notes.add("READ2", f"{what}={short(shapes)}, which should be a list of shapes", where)
            return None
        known: list[torch.dtype | None] = list(dtypes)
        if len(known) != len(shapes):
            one = known[0] if len(set(known)) == 1 else None
            known = [one] * len(shapes)
        return tuple(self.spec(shape, dtype, what, where) for shape, dtype in zip(shapes, known, strict=True))

    def count(self, value: Any, dtype: torch.dtype | None, what: str, where: str) -> Spec | None:
        """Return a flat tensor of `value` elements."""
        elements = self.number(value, what, where)
        return None if elements is None else _made((elements,), dtype, None)


def _made(shape: tuple[int, ...] | None, dtype: torch.dtype | None, stride: tuple[int, ...] | None) -> Spec:
    """Return a new Spec: one that is given twice would be one memory."""
    try:
        return Spec(shape, dtype, stride)
    except CallError:
        return Spec(None, dtype)


def literal(text: Any) -> Any:
    """Return the number, truth value or list of numbers that `text` spells; None where it is none.

    >>> literal("[1, 2]"), literal("False"), literal("3"), literal("x")
    ([1, 2], False, 3, None)
    """
    if not isinstance(text, str) or not 0 < len(text) <= _LONGEST:
        return None
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):
        return None
