"""What a call binds, as data: its tensors in their places, the names, and what does not hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import attrs

from collective_rules.call import Call
from collective_rules.finding import ERROR, WARNING
from collective_rules.notation import Name, Part, Rest, Shares, Size
from collective_rules.ops import Spelling
from collective_rules.spec import Spec


class Key(NamedTuple):
    """A name that calls bind; `str(key)` is the name as messages write it.

    - `name`: a name of the rule's text (`d`, `s`, `S`), or a value that the text does not name: "dtype", "length" (of
      the lists), "order" (of the dims in memory), "elements" (their number), "tag" and the other attributes.
    - `element`: the place in a list of coalesced tensors; None where all its tensors have one value.
    - `ranks`: the ranks that the name's indices stand for; None among them is a peer that is not known.

    >>> [str(key) for key in (Key("d"), Key("d", 1), Key("d", None, (0,)), Key("S", None, (2, 3)))]
    ['d', 'd[i=1]', 'd[0]', 'S[2,3]']
    """

    name: str
    element: int | None = None
    ranks: tuple[Any, ...] = ()

    @property
    def is_shared(self) -> bool:
        """Whether every rank binds it, to the same value: it has no index."""
        return not self.ranks

    @property
    def is_pair(self) -> bool:
        """Whether it is of two ranks: the first sends, and the second receives."""
        return len(self.ranks) == 2

    def __str__(self) -> str:
        element = [] if self.element is None else [f"i={self.element}"]
        index = element + ["*" if rank is None else str(rank) for rank in self.ranks]
        return f"{self.name}[{','.join(index)}]" if index else self.name


LENGTH = Key("length")
"""The key of the length of the lists indexed by `i`."""


@attrs.frozen
class Slot:
    """One tensor of a call: which part it plays, and where in the argument's lists it stands."""

    part: Part
    element: int | None
    rank: int | None
    spec: Spec

    @property
    def label(self) -> str:
        """How a person would write it, `output_tensors[0][2]`."""
        at = {"1": 0, "i": self.element, "p": self.rank}
        return self.part.path.name + "".join(f"[{at[i]}]" for i in self.part.path.index)


@attrs.frozen
class Problem:
    """One thing that does not hold.

    `verdict` is a clause without the op; `part` and `size` say where in the rule's text; `values` are shown below it,
    and `names` are what was bound beside them.
    """

    kind: str
    verdict: str
    part: Part | None = None
    values: Mapping[str, Any] = attrs.field(factory=dict)
    severity: str = ERROR
    advice: str = ""
    size: Size | None = None
    names: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Demand:
    """Something that only the run can tell: `infer` has torch check it there."""

    condition: Any
    problem: Problem


@attrs.define
class Bound:
    """What one call binds under one form: `names`, where each came from, and what does not hold.

    `count` is the length of the lists indexed by `i`, `fitting` the number of tensors before the first problem.
    """

    call: Call
    spelling: Spelling
    names: dict[Key, Any] = attrs.field(factory=dict)
    origins: dict[Key, Slot] = attrs.field(factory=dict)
    slots: list[Slot] = attrs.field(factory=list)
    problems: list[Problem] = attrs.field(factory=list)
    demands: list[Demand] = attrs.field(factory=list)
    count: int | None = None
    fitting: int = 0

    @property
    def badness(self) -> tuple[int, int, int]:
        """How far the call is from this form: errors, warnings, and how early the first one came."""
        severities = [problem.severity for problem in self.problems]
        return severities.count(ERROR), severities.count(WARNING), -self.fitting

    def key(self, size: Name | Shares | Rest, slot_element: int | None, rank: int | None) -> Key:
        """Return the key of `size` in a part's element: names that vary carry their indices."""
        element = None if size.name in self.spelling.shared else slot_element
        if isinstance(size, Shares) or not size.index:
            return Key(size.name, element)
        rank_of = {"r": self.call.group.rank, "p": rank, "peer": self.call.attribute("peer")}
        return Key(size.name, element, tuple([rank_of[index] for index in size.index]))


def aliased(value: Any, name: str | None) -> Any:
    """Return the same tensor, or the same list of tensors, as the memory of the argument `name` (None: fresh)."""
    if isinstance(value, tuple):
        return tuple([aliased(item, name) for item in value])
    return value.with_alias(name) if isinstance(value, Spec) else value


def slots(call: Call, part: Part) -> Iterator[Slot]:
    """Yield the tensors of one part, in order, whatever the lengths of its lists."""
    yield from walk(call.arguments.get(part.path.name), part, part.path.index, None, None)


def walk(value: Any, part: Part, index: tuple[str, ...], element: int | None, rank: int | None) -> Iterator[Slot]:
    """Yield the tensors below `value`, an argument or a part of its lists."""
    if not index:
        if isinstance(value, Spec):
            yield Slot(part, element, rank, value)
        return
    for place, item in enumerate(value or ()):
        inner = {"i": (place, rank), "p": (element, place)}.get(index[0], (element, rank))
        yield from walk(item, part, index[1:], *inner)
