"""The calls of all ranks, arranged by group and rank.

`arrange` reads the calls once. Each distinct call is kept once, in `Signatures`; a rank's `CallSequence` holds only the
numbers of its calls' signatures, so that a million calls may come from a generator: one costs some 40 bytes. Each
group has one sequence of collectives and one of messages for each rank. A batch of messages becomes its members.
Groups whose name or ranks some calls leave out are merged with the one group that they fit.
"""

from __future__ import annotations

import functools
import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch

from collective_rules.backends.matching import AS_DOCUMENTED, Matching
from collective_rules.binding.batch import members
from collective_rules.call import Call, must_be_call
from collective_rules.errors import CallError
from collective_rules.notation import Name, Rest, Splits
from collective_rules.ops import Row
from collective_rules.rules import Unsolvable
from collective_rules.spec import Group, Spec

_MOST_REMEMBERED = 100_000
_LARGEST = 2**63 - 1
_ASYNC = ("async_op", "asyncOp")


class Signatures:
    """Numbers calls by op and arguments, whichever rank makes them: `calls[n]` is one call of signature n.

    `labels[n]` is equal for signatures that may be one collective: the rule, and the arguments that ranks agree on.
    `matching` says which rules' calls meet.
    """

    def __init__(self, matching: Matching = AS_DOCUMENTED) -> None:
        self.matching = matching
        self.calls: list[Call] = []
        self.labels: list[Any] = []
        self._numbers: dict[Any, int] = {}
        self._recent: dict[Any, tuple[Mapping[str, Any], int]] = {}
        self._symmetric: dict[Row, bool] = {}

    def number(self, call: Call) -> int:
        """Return the number of the call's signature."""
        arguments = call.arguments
        quick = (id(arguments), call.row, call.blocking)  # calls of a ledger share their arguments
        recent = self._recent.get(quick)
        if recent is not None:
            return recent[1]
        try:
            content: Any = (tuple(arguments), *map(_content, arguments.values()))
            number = self._number((call.row, call.blocking, content), call, content)
        except TypeError:  # a SymInt has no hash
            number = self._number(object(), call, object())
        if len(self._recent) == _MOST_REMEMBERED:
            self._recent.clear()
        self._recent[quick] = (arguments, number)
        return number

    def _number(self, key: Any, call: Call, content: Any) -> int:
        number = self._numbers.setdefault(key, len(self.calls))
        if number == len(self.calls):
            self.calls.append(call)
            rule = call.row.rule
            attributes = tuple(str(call.attribute(name)) for name in rule.agreed if name not in rule.follows)
            does = self.matching.name_of(call.op, call.row.meets)
            self.labels.append((does, content if self.is_symmetric(call.row) else attributes))
        return number

    def is_symmetric(self, row: Row) -> bool:
        """Return whether ranks that agree pass the same arguments: no name that a call binds depends on its rank."""
        symmetric = self._symmetric.get(row)
        if symmetric is None:
            symmetric = self._symmetric[row] = not (row.rule.derived or row.rule.follows) and not any(
                part.root_only or any(map(_depends_on_rank, part.sizes))
                for spelling in row.spellings
                for part in spelling.statement.parts
            )
        return symmetric


def _depends_on_rank(size: Any) -> bool:
    return isinstance(size, Splits) or (isinstance(size, (Name, Rest)) and bool(size.index))


def _content(value: Any) -> Any:
    """Return a hashable object that is equal for values which ranks cannot disagree on."""
    kind = type(value)
    if kind is tuple or kind is list:
        return tuple([_content(item) for item in value])
    if kind is Spec:
        return (value.shape, value.dtype) if value.plain else (value._key(), value._stride)
    if kind is torch.SymInt:
        raise TypeError
    return kind, value


def blocks(call: Call) -> bool:
    """Return whether the rank goes no further until the call is done, by what the call says."""
    if call.blocking is not None:
        return call.blocking
    if call.row.entry.done:
        return True
    for name in _ASYNC:
        if name in call.arguments:
            return not call.arguments[name]
    return any(output.kind == "work" for output in call.row.returns)


@attrs.define(eq=False)
class CallSequence:
    """One rank's calls of one group, in order: the numbers of their signatures, and the lines that made them.

    `indices`: the calls' own indices; None where a call has none.
    """

    group: Group
    numbers: array[int] = attrs.field(factory=lambda: array("l"))
    sources: list[str] = attrs.field(factory=list)
    indices: array[int] | None = attrs.field(factory=lambda: array("q"))

    def append(self, number: int, source: str, index: int | None) -> None:
        """Add a call."""
        if self.indices is not None:
            if index is None or abs(index) > _LARGEST:
                self.indices = None
            else:
                self.indices.append(index)
        self.numbers.append(number)
        self.sources.append(source)

    def sort(self) -> None:
        """Put the calls into the order of their indices; drop the indices if calls apart have the same one."""
        indices = self.indices
        if indices is None or all(map(operator.le, indices, indices[1:])):
            return
        if len(set(indices)) < len(indices):
            self.indices = None
            return
        order = sorted(range(len(indices)), key=indices.__getitem__)
        self.numbers = array("l", [self.numbers[place] for place in order])
        self.sources = [self.sources[place] for place in order]
        self.indices = array("q", [indices[place] for place in order])

    @property
    def key(self) -> tuple[bytes, bytes]:
        """Signatures and indices, equal for ranks that make equal calls."""
        return self.numbers.tobytes(), b"" if self.indices is None else self.indices.tobytes()

    def call(self, place: int, signatures: Signatures) -> Call:
        """Return the call at a place, from 0."""
        alike = signatures.calls[self.numbers[place]]
        index = None if self.indices is None else self.indices[place]
        return Call(alike.row, self.group, alike.arguments, self.sources[place], index, alike.blocking)


@attrs.define(eq=False, slots=False)
class GroupCalls:
    """The calls of one group: a sequence of collectives and one of messages for each group rank.

    - `malformed`: batches of messages that cannot be taken apart, with the reason.
    - `batches`: the first batch of each rank that makes one.
    """

    name: str
    ranks: tuple[int, ...]
    size: int
    collectives: dict[int, CallSequence] = attrs.field(factory=dict)
    messages: dict[int, CallSequence] = attrs.field(factory=dict)
    malformed: list[tuple[Call, Unsolvable]] = attrs.field(factory=list)
    batches: dict[int, Call] = attrs.field(factory=dict)

    def global_rank(self, rank: int) -> int:
        """Return the global rank of a group rank; the same number where the group does not list its ranks."""
        return self.ranks[rank] if self.ranks else rank

    def members(self, global_ranks: frozenset[int] | None) -> frozenset[int]:
        """Return the group ranks of these global ranks; all group ranks for None."""
        return frozenset(
            rank for rank in range(self.size) if global_ranks is None or self.global_rank(rank) in global_ranks
        )

    @functools.cached_property
    def indices(self) -> list[tuple[int, int]] | None:
        """The indices of the group's collectives, each with a count of its repetitions: a coalesced launch has one.

        None where indices do not tell which collectives match: some calls have none, or each rank made one call.
        """
        sequences = [sequence.indices for sequence in self.collectives.values() if sequence.indices]
        if len(sequences) < len(self.collectives) or all(len(indices) == 1 for indices in sequences):
            return None
        different = {indices.tobytes(): indices for indices in sequences}
        return sorted({each for indices in different.values() for each in _repeated(indices)})

    def places(self, rank: int) -> list[int | None]:
        """Return, for each of the group's collectives, the place of the rank's call; None where the rank has none."""
        own = self.collectives[rank]
        if self.indices is None or own.indices is None:
            return list(range(len(own.numbers)))
        if len(own.indices) == len(self.indices):
            return list(range(len(self.indices)))
        place_of = {each: place for place, each in enumerate(_repeated(own.indices))}
        places = [place_of.get(each) for each in self.indices]
        while places and places[-1] is None:
            places.pop()
        return places

    def index_of(self, number: int) -> int:
        """Return the index of the group's collective of this number, counted from 0."""
        if self.indices is None:
            return number
        last = len(self.indices) - 1
        return self.indices[min(number, last)][0] + max(0, number - last)

    def makes_groups(self, signatures: Signatures) -> bool:
        """Whether the group's calls are those that make its subgroups."""
        first = next(iter(self.collectives.values()), None)
        return first is not None and signatures.calls[first.numbers[0]].row.rule.makes_groups

    def may_be(self, other: GroupCalls) -> bool:
        """Return whether the other may be this group, seen by ranks that say less of it."""
        same = self.size == other.size and (not other.ranks or self.ranks == other.ranks)
        return same and not (
            self.collectives.keys() & other.collectives.keys() or self.messages.keys() & other.messages.keys()
        )

    def take(self, vague: GroupCalls) -> None:
        """Take the calls of this group by ranks that say less of it; they get its name and its ranks."""

        def named(group: Group) -> Group:
            return attrs.evolve(group, name=self.name, ranks=self.ranks)

        for own, theirs in ((self.collectives, vague.collectives), (self.messages, vague.messages)):
            for sequence in theirs.values():
                sequence.group = named(sequence.group)
            own.update(theirs)
        self.malformed += [(attrs.evolve(call, group=named(call.group)), why) for call, why in vague.malformed]
        self.batches |= {rank: attrs.evolve(call, group=named(call.group)) for rank, call in vague.batches.items()}


def _repeated(indices: array[int]) -> Iterator[tuple[int, int]]:
    """Yield each index with a count of its repetitions so far."""
    times = 0
    for place, index in enumerate(indices):
        times = times + 1 if place and indices[place - 1] == index else 0
        yield index, times


@attrs.define(eq=False)
class JobCalls:
    """The calls of all groups. `timelines`: by global rank, the sequence of each call in the program's order."""

    signatures: Signatures
    groups: list[GroupCalls]
    timelines: dict[int, list[CallSequence]]


def arrange(
    calls: Iterable[Call], matching: Matching = AS_DOCUMENTED, see: Callable[[Call], None] = lambda call: None
) -> JobCalls:
    """Return the calls by group and rank; one-sided calls have no partner, and are left out.

    `matching`: how the backend brings the calls together. `see` gets the first call in each group, and all that make
    groups.

    Raises `CallError` for an item that is no call, and for groups of one name that have different sizes.
    """
    signatures = Signatures(matching)
    groups: dict[tuple[str, tuple[int, ...]], GroupCalls] = {}
    log: list[CallSequence] = []
    by_group: dict[int, tuple[Group, _RankCalls]] = {}
    for item in calls:
        call = must_be_call(item)
        rule = call.row.rule
        if rule.makes_groups:
            see(call)
        if rule.one_sided:
            continue
        entry = by_group.get(id(call.group))
        if entry is None:
            if len(by_group) == _MOST_REMEMBERED:
                by_group.clear()
            entry = by_group[id(call.group)] = (call.group, _rank_calls(call.group, groups))
            see(call)
        own = entry[1]
        if rule.point_to_point:
            try:
                singles = list(members(call))
            except Unsolvable as error:
                own.whole.malformed.append((call, error))
                continue
            if call.row.entry.batch:
                own.whole.batches.setdefault(call.group.rank, call)
            for single in singles:
                own.messages.append(signatures.number(single), call.source, None)
                log.append(own.messages)
        else:
            own.collectives.append(signatures.number(call), call.source, call.index)
            log.append(own.collectives)
    for group in groups.values():
        group.collectives = {rank: sequence for rank, sequence in group.collectives.items() if sequence.numbers}
        group.messages = {rank: sequence for rank, sequence in group.messages.items() if sequence.numbers}
        for sequence in group.collectives.values():
            sequence.sort()
    merged = _merged(list(groups.values()))
    return JobCalls(signatures, merged, _timelines(log, merged))


@attrs.frozen
class _RankCalls:
    """The sequences of one rank in one group, and the whole group."""

    whole: GroupCalls
    collectives: CallSequence
    messages: CallSequence


def _rank_calls(group: Group, groups: dict[tuple[str, tuple[int, ...]], GroupCalls]) -> _RankCalls:
    whole = groups.setdefault((group.name, group.ranks), GroupCalls(group.name, group.ranks, group.size))
    if whole.size != group.size:
        sizes = " and ".join(map(str, sorted({whole.size, group.size})))
        raise CallError(f"calls of groups of {sizes} ranks cannot be one collective")
    collectives = whole.collectives.setdefault(group.rank, CallSequence(group))
    return _RankCalls(whole, collectives, whole.messages.setdefault(group.rank, CallSequence(group)))


def _timelines(log: list[CallSequence], groups: list[GroupCalls]) -> dict[int, list[CallSequence]]:
    """Split the log of all ranks by global rank."""
    timelines: dict[int, list[CallSequence]] = {}
    of_sequence: dict[int, list[CallSequence]] = {}
    for group in groups:
        for sequences in (group.collectives, group.messages):
            for rank, sequence in sequences.items():
                of_sequence[id(sequence)] = timelines.setdefault(group.global_rank(rank), [])
    for sequence in log:
        of_sequence[id(sequence)].append(sequence)
    return timelines


def _merged(groups: list[GroupCalls]) -> list[GroupCalls]:
    """Merge each group of which some ranks leave out the name or the ranks with the only group that it fits."""
    whole = [group for group in groups if group.name and group.ranks]
    rest = [group for group in groups if not (group.name and group.ranks)]
    for vague in sorted(rest, key=lambda group: (not group.name, not group.ranks)):
        fits = [group for group in whole if group.may_be(vague) and vague.name in ("", group.name)]
        if len(fits) == 1:
            fits[0].take(vague)
        else:
            whole.append(vague)
    return whole
