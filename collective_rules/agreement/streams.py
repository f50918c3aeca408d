"""The calls of all ranks, told apart by group and rank, each in its order. Alike calls are kept once.

A call costs some 40 bytes here beyond the first of its kind, so that a million of them may come from a generator.
"""

from __future__ import annotations

import functools
import operator
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch

from collective_rules.binding.batch import members
from collective_rules.call import Call, must_be_call
from collective_rules.errors import CallError
from collective_rules.notation import Name, Rest, Splits
from collective_rules.ops import Row
from collective_rules.rules import Unsolvable
from collective_rules.spec import Group, Spec

__all__ = ["GroupCalls", "Kinds", "Stream", "Streams", "arrange", "waits"]

_MOST_REMEMBERED = 100_000
_LARGEST = 2**63 - 1
_ASYNC = ("async_op", "asyncOp")


class Kinds:
    """Numbers calls by what they are, whoever makes them: `calls[n]` is one of kind n."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.labels: list[Any] = []
        self._numbers: dict[Any, int] = {}
        self._known: dict[Any, tuple[Mapping[str, Any], int]] = {}
        self._symmetric: dict[Row, bool] = {}

    def number(self, call: Call) -> int:
        """Return the number of the call's kind."""
        arguments = call.arguments
        quick = (id(arguments), call.row, call.blocking)  # calls of a ledger share their arguments
        known = self._known.get(quick)
        if known is not None:
            return known[1]
        try:
            content: Any = (tuple(arguments), *map(_content, arguments.values()))
            number = self._number((call.row, call.blocking, content), call, content)
        except TypeError:  # a SymInt has no hash
            number = self._number(object(), call, object())
        if len(self._known) == _MOST_REMEMBERED:
            self._known.clear()
        self._known[quick] = (arguments, number)
        return number

    def _number(self, key: Any, call: Call, content: Any) -> int:
        number = self._numbers.setdefault(key, len(self.calls))
        if number == len(self.calls):
            self.calls.append(call)
            attributes = tuple(str(call.attribute(name)) for name in call.row.rule.agreed)
            does = call.row.entry.meets or call.row.rule.name
            self.labels.append((does, content if self.is_symmetric(call.row) else attributes))
        return number

    def is_symmetric(self, row: Row) -> bool:
        """Return whether all ranks pass the same where they agree: nothing that a call binds depends on its rank."""
        known = self._symmetric.get(row)
        if known is None:
            known = self._symmetric[row] = not any(
                part.root_only or any(map(_depends_on_rank, part.sizes))
                for spelling in row.spellings
                for part in spelling.statement.parts
            )
            known = self._symmetric[row] = known and not row.rule.derived
        return known


def _repeated(indices: array[int]) -> Iterator[tuple[int, int]]:
    """Yield each index with how often it was there before: the members of a coalesced launch share one."""
    times = 0
    for place, index in enumerate(indices):
        times = times + 1 if place and indices[place - 1] == index else 0
        yield index, times


def _depends_on_rank(size: Any) -> bool:
    return isinstance(size, Splits) or (isinstance(size, (Name, Rest)) and bool(size.index))


def _content(value: Any) -> Any:
    """Return something hashable that is equal for values which ranks cannot disagree on."""
    kind = type(value)
    if kind is tuple or kind is list:
        return tuple([_content(item) for item in value])
    if kind is Spec:
        return (value.shape, value.dtype) if value.plain else (value._key(), value._stride)
    if kind is torch.SymInt:
        raise TypeError
    return kind, value


def waits(call: Call) -> bool:
    """Return whether the rank goes no further until the call is done, as far as the call tells."""
    if call.blocking is not None:
        return call.blocking
    if call.row.entry.done:
        return True
    for name in _ASYNC:
        if name in call.arguments:
            return not call.arguments[name]
    return any(output.kind == "work" for output in call.row.returns)


@attrs.define(eq=False)
class Stream:
    """One rank's calls of one group, in order: their kinds and the lines that made them.

    `indices` are those that the calls tell, None where some do not.
    """

    group: Group
    kinds: array[int] = attrs.field(factory=lambda: array("l"))
    sources: list[str] = attrs.field(factory=list)
    indices: array[int] | None = attrs.field(factory=lambda: array("q"))

    def append(self, kind: int, source: str, index: int | None) -> None:
        """Add a call."""
        if self.indices is not None:
            if index is None or abs(index) > _LARGEST:
                self.indices = None
            else:
                self.indices.append(index)
        self.kinds.append(kind)
        self.sources.append(source)

    def settle(self) -> None:
        """Put the calls into the order of their indices; where some have the same, and do not follow, forget these."""
        indices = self.indices
        if indices is None or all(map(operator.le, indices, indices[1:])):
            return
        if len(set(indices)) < len(indices):
            self.indices = None
            return
        order = sorted(range(len(indices)), key=indices.__getitem__)
        self.kinds = array("l", [self.kinds[place] for place in order])
        self.sources = [self.sources[place] for place in order]
        self.indices = array("q", [indices[place] for place in order])

    def call(self, place: int, kinds: Kinds) -> Call:
        """Return the call at a place, from 0."""
        alike = kinds.calls[self.kinds[place]]
        index = None if self.indices is None else self.indices[place]
        return Call(alike.row, self.group, alike.arguments, self.sources[place], index, alike.blocking)


@attrs.define(eq=False, slots=False)
class GroupCalls:
    """What the ranks of one group do in it: collectives and messages apart, by group rank.

    `malformed` are batches of messages that cannot be taken apart, with the reason.
    """

    name: str
    ranks: tuple[int, ...]
    size: int
    collectives: dict[int, Stream] = attrs.field(factory=dict)
    messages: dict[int, Stream] = attrs.field(factory=dict)
    malformed: list[tuple[Call, Unsolvable]] = attrs.field(factory=list)

    def place_of(self, rank: int) -> int:
        """Return the global rank of a group rank: itself, where the group does not say."""
        return self.ranks[rank] if self.ranks else rank

    def members(self, known: frozenset[int] | None) -> frozenset[int]:
        """Return the group ranks of the global ranks in `known`; all, for None."""
        return frozenset(rank for rank in range(self.size) if known is None or self.place_of(rank) in known)

    @functools.cached_property
    def indices(self) -> list[tuple[int, int]] | None:
        """The indices of the collectives that any rank tells of, each with how often it was there before.

        None where indices do not say which collectives go together: where some have none, and of one call each.
        """
        known = [stream.indices for stream in self.collectives.values() if stream.indices]
        if len(known) < len(self.collectives) or all(len(indices) == 1 for indices in known):
            return None
        different = {indices.tobytes(): indices for indices in known}
        return sorted({each for indices in different.values() for each in _repeated(indices)})

    def places(self, rank: int) -> list[int | None]:
        """Return which of a rank's calls is which of the group's collectives: None where it tells of none."""
        own = self.collectives[rank]
        if self.indices is None or own.indices is None:
            return list(range(len(own.kinds)))
        if len(own.indices) == len(self.indices):
            return list(range(len(self.indices)))
        place_of = {each: place for place, each in enumerate(_repeated(own.indices))}
        places = [place_of.get(each) for each in self.indices]
        while places and places[-1] is None:
            places.pop()
        return places

    def index_of(self, place: int) -> int:
        """Return the index of the collective at a place, from the first that any rank tells of."""
        if self.indices is None:
            return place
        last = len(self.indices) - 1
        return self.indices[min(place, last)][0] + max(0, place - last)

    def takes_in(self, other: GroupCalls) -> bool:
        """Whether the other may be the same group, of which some ranks tell less."""
        same = self.size == other.size and (not other.ranks or self.ranks == other.ranks)
        return same and not (
            self.collectives.keys() & other.collectives.keys() or self.messages.keys() & other.messages.keys()
        )


@attrs.define(eq=False)
class Streams:
    """All calls. `timelines`: by global rank, the streams that its calls went to, in the order of the program."""

    kinds: Kinds
    groups: list[GroupCalls]
    timelines: dict[int, list[Stream]]


def arrange(calls: Iterable[Call]) -> Streams:
    """Tell calls apart by group and rank; one-sided ones have no partner, and are passed over.

    Raises `CallError` for what is no call, and for groups of one name that have different sizes.
    """
    kinds = Kinds()
    groups: dict[tuple[str, tuple[int, ...]], GroupCalls] = {}
    log: list[Stream] = []
    doors: dict[int, tuple[Group, _Door]] = {}
    for item in calls:
        call = must_be_call(item)
        rule = call.row.rule
        if rule.one_sided:
            continue
        known = doors.get(id(call.group))
        if known is None:
            if len(doors) == _MOST_REMEMBERED:
                doors.clear()
            known = doors[id(call.group)] = (call.group, _door(call.group, groups))
        door = known[1]
        if rule.point_to_point:
            try:
                singles = list(members(call))
            except Unsolvable as error:
                door.together.malformed.append((call, error))
                continue
            for single in singles:
                door.messages.append(kinds.number(single), call.source, None)
                log.append(door.messages)
        else:
            door.collectives.append(kinds.number(call), call.source, call.index)
            log.append(door.collectives)
    for group in groups.values():
        group.collectives = {rank: stream for rank, stream in group.collectives.items() if stream.kinds}
        group.messages = {rank: stream for rank, stream in group.messages.items() if stream.kinds}
        for stream in group.collectives.values():
            stream.settle()
    merged = _merged(list(groups.values()))
    return Streams(kinds, merged, _timelines(log, merged))


@attrs.frozen
class _Door:
    """Where the calls of one rank of one group go."""

    together: GroupCalls
    collectives: Stream
    messages: Stream


def _door(group: Group, groups: dict[tuple[str, tuple[int, ...]], GroupCalls]) -> _Door:
    together = groups.setdefault((group.name, group.ranks), GroupCalls(group.name, group.ranks, group.size))
    if together.size != group.size:
        sizes = " and ".join(map(str, sorted({together.size, group.size})))
        raise CallError(f"calls of groups of {sizes} ranks cannot be one collective")
    collectives = together.collectives.setdefault(group.rank, Stream(group))
    messages = together.messages.setdefault(group.rank, Stream(group))
    return _Door(together, collectives, messages)


def _timelines(log: list[Stream], groups: list[GroupCalls]) -> dict[int, list[Stream]]:
    """Tell the calls of all ranks apart by global rank, in the order of each one's program."""
    timelines: dict[int, list[Stream]] = {}
    of_stream: dict[int, list[Stream]] = {}
    for group in groups:
        for known in (group.collectives, group.messages):
            for rank, stream in known.items():
                of_stream[id(stream)] = timelines.setdefault(group.place_of(rank), [])
    for stream in log:
        of_stream[id(stream)].append(stream)
    return timelines


def _merged(groups: list[GroupCalls]) -> list[GroupCalls]:
    """Put groups together of which some ranks do not tell the name, or the ranks."""
    whole = [group for group in groups if group.name and group.ranks]
    rest = [group for group in groups if not (group.name and group.ranks)]
    for vague in sorted(rest, key=lambda group: (not group.name, not group.ranks)):
        fits = [group for group in whole if group.takes_in(vague) and vague.name in ("", group.name)]
        if len(fits) == 1:
            fits[0].collectives.update(vague.collectives)
            fits[0].messages.update(vague.messages)
            fits[0].malformed += vague.malformed
        else:
            whole.append(vague)
    return whole
