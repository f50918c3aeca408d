"""Shows where the ranks of a group first part, and the calls of each rank around that place, side by side as text.

Ranks that did the same are shown as one. The findings come from elsewhere.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import attrs

from collective_rules.agreement.point_to_point import MatchedMessages
from collective_rules.agreement.sequences import arrange
from collective_rules.agreement.wait_cycle import WAIT_CYCLE
from collective_rules.binding.batch import members
from collective_rules.call import Call
from collective_rules.comparison.names import GroupNames
from collective_rules.comparison.summary import call_text, tensors_text
from collective_rules.finding import ERROR, Finding
from collective_rules.ops import lookup
from collective_rules.rules import Unsolvable

__all__ = ["Column", "Context", "Divergence", "Line", "Timeline", "divergences", "earliest_first"]

_NOTHING = "(nothing more in this group)"
_MOST_NAMES = 3


@attrs.frozen
class Line:
    """One call of a rank: its place in the rank's program, its group, and its text; `here`: the ranks part at it."""

    place: int | None
    group: str
    call: str
    source: str
    here: bool = False


@attrs.frozen
class Column:
    """The calls of `ranks` (global) at each of a divergence's `rows`; `odd`: these ranks part from the others."""

    ranks: tuple[int, ...]
    odd: bool
    calls: tuple[Line | None, ...]


@attrs.frozen
class Context:
    """The calls of `ranks` (global) around the place where they part, of all groups, in the order of the program."""

    ranks: tuple[int, ...]
    odd: bool
    lines: tuple[Line, ...]


@attrs.frozen
class Divergence:
    """Where the ranks of one group first part.

    - `group`: its unique name. `ranks`: its global ranks. `verdict`: the finding's first line.
    - `index`: which of the group's collectives it is, from 0; None of a message from rank to rank.
    - `rows`: indices around it, with a column for ranks that make the same calls there; none of a message.
    - `contexts`: what the ranks did then, whatever the group.
    """

    group: str
    ranks: tuple[int, ...]
    index: int | None
    verdict: str
    rows: tuple[int, ...] = ()
    columns: tuple[Column, ...] = ()
    contexts: tuple[Context, ...] = ()


class Timeline:
    """One rank's calls in order, and the places of each group's collectives and messages among them."""

    def __init__(self, rank: int, calls: Sequence[Call], groups: GroupNames) -> None:
        self.rank, self.calls, self._groups = rank, calls, groups
        self._by_index: dict[str, dict[int | None, list[int]]] = {}

    @functools.cached_property
    def _places(self) -> Mapping[tuple[str, bool], list[int]]:
        places: dict[tuple[str, bool], list[int]] = {}
        for place, call in enumerate(self.calls):
            rule = call.row.rule
            if not rule.one_sided:
                key = (self._groups.group(call.group).name, rule.point_to_point)
                places.setdefault(key, []).append(place)
        return places

    def collectives(self, name: str) -> list[int]:
        """Return the places of the group's collectives."""
        return self._places.get((name, False), [])

    def messages(self, name: str) -> list[int]:
        """Return the places of the group's sends and receives."""
        return self._places.get((name, True), [])

    def has_indices(self, name: str) -> bool:
        """Return whether each of the group's collectives has an index."""
        return all(self.calls[place].index is not None for place in self.collectives(name))

    def at(self, name: str, index: int, *, by_index: bool) -> list[int]:
        """Return the places of the group's collective `index`: several calls may be one launch."""
        if not by_index:
            return self.collectives(name)[max(0, index) : max(0, index + 1)]
        if name not in self._by_index:
            places = self._by_index[name] = {}
            for place in self.collectives(name):
                places.setdefault(self.calls[place].index, []).append(place)
        return self._by_index[name].get(index, [])

    def after(self, name: str, index: int, *, by_index: bool) -> int:
        """Return the place in this rank's program after the group's collectives before `index`."""
        places = self.collectives(name)
        if by_index:
            places = [place for place in places if (self.calls[place].index or 0) < index]
        return places[-1] + 1 if places else 0

    def line(self, place: int, *, here: bool = False) -> Line:
        """Return the call at a place as text."""
        call = self.calls[place]
        return Line(place, self._groups.group(call.group).name, call_text(call), call.source, here)

    def around(self, places: Iterable[int], context: int, stop: int | None = None) -> tuple[Line, ...]:
        """Return the calls around some places, which are marked; without any, around `stop`."""
        marked = set(places)
        first, last = (min(marked), max(marked) + 1) if marked else (stop or 0, stop or 0)
        lines = [
            self.line(place, here=place in marked)
            for place in range(max(0, first - context), min(len(self.calls), last + context))
        ]
        if not marked:
            before = sum(line.place is not None and line.place < first for line in lines)
            lines.insert(before, Line(None, "", _NOTHING, "", here=True))
        return tuple(lines)


def divergences(
    findings: Iterable[Finding], timelines: Mapping[int, Timeline], groups: GroupNames, context: int
) -> tuple[Divergence, ...]:
    """Return the place where each group first parts, the earliest first. `findings` have global ranks."""
    by_group: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.id != WAIT_CYCLE:
            by_group.setdefault(finding.group, []).append(finding)
    located = [
        min(places, key=lambda item: item[0])
        for name, several in by_group.items()
        if (places := [*_collective(name, several, timelines, groups, context)])
        or (places := [*_message(name, several, timelines, groups, context)])
    ]
    return tuple(finding for _, finding in sorted(located, key=lambda item: item[0]))


def earliest_first(findings: Iterable[Finding], timelines: Mapping[int, Timeline], groups: GroupNames) -> list[Finding]:
    """Return findings in the order of the programs; those without a place come last."""

    def place(finding: Finding) -> float:
        if finding.index is None:
            return math.inf
        ranks = _ranks_of(finding.group, timelines, groups)
        by_index = _by_index(finding.group, ranks, timelines)
        places = [timelines[rank].at(finding.group, finding.index, by_index=by_index) for rank in ranks]
        return min((each[0] for each in places if each), default=math.inf)

    return sorted(findings, key=place)


def _ranks_of(name: str, timelines: Mapping[int, Timeline], groups: GroupNames) -> list[int]:
    return [rank for rank in groups.members(name) if rank in timelines]


def _by_index(name: str, ranks: Iterable[int], timelines: Mapping[int, Timeline]) -> bool:
    """Return whether collectives of one index belong together, as `agree` decides it; else those of one place do."""
    having = [timelines[rank] for rank in ranks if timelines[rank].collectives(name)]
    return bool(having) and all(each.has_indices(name) for each in having)


def _collective(
    name: str, findings: list[Finding], timelines: Mapping[int, Timeline], groups: GroupNames, context: int
) -> Iterator[tuple[int, Divergence]]:
    """Yield the first collective of the group that has a finding, with its place in the programs."""
    collective = [finding for finding in findings if not lookup(finding.op).rule.point_to_point]
    if not collective:
        return
    finding = min(collective, key=lambda each: (each.severity != ERROR, each.index or 0))
    index = finding.index or 0
    ranks = _ranks_of(name, timelines, groups)
    by_index = _by_index(name, ranks, timelines)
    rows = range(min(index, max(0, index - context)), index + context + 1)

    def cells(rank: int) -> tuple[Line | None, ...]:
        own = timelines[rank]
        return tuple(_joined([own.line(p) for p in own.at(name, row, by_index=by_index)]) for row in rows)

    def lines(rank: int) -> tuple[Line, ...]:
        own = timelines[rank]
        places = own.at(name, index, by_index=by_index)
        return own.around(places, context, own.after(name, index, by_index=by_index))

    columns = _folded(ranks, cells)
    middle = {own: column[rows.index(index)] for own, column in columns.items()}
    usual = _usual({own: None if line is None else line.call for own, line in middle.items()})
    odd = set(finding.ranks).intersection(ranks) or {rank for own in columns if own not in usual for rank in own}
    shown = tuple(row for row, *cell in zip(rows, *columns.values(), strict=True) if row == index or any(cell))
    yield (
        min((line.place or 0 for line in middle.values() if line is not None), default=0),
        Divergence(
            name,
            groups.members(name),
            index,
            finding.message.split("\n", 1)[0],
            shown,
            tuple(
                Column(own, not odd.isdisjoint(own), tuple(c for r, c in zip(rows, column, strict=True) if r in shown))
                for own, column in columns.items()
            ),
            _contexts(ranks, lines, odd),
        ),
    )


def _message(
    name: str, findings: list[Finding], timelines: Mapping[int, Timeline], groups: GroupNames, context: int
) -> Iterator[tuple[int, Divergence]]:
    """Yield the first message of the group that has a finding, with its place in the programs."""
    finding = findings[0]
    unmatched = _unmatched(name, timelines, groups)
    places = {rank: place for rank, place in unmatched.items() if rank in finding.ranks} or unmatched
    ranks = sorted({*places, *(rank for rank in finding.ranks if rank in timelines)})
    if ranks:
        contexts = _contexts(
            ranks,
            lambda rank: timelines[rank].around([places[rank]] if rank in places else [], context),
            set(finding.ranks) if set(finding.ranks) < set(ranks) else set(),
        )
        verdict = finding.message.split("\n", 1)[0]
        yield (
            min(places.values(), default=0),
            Divergence(name, groups.members(name), None, verdict, contexts=contexts),
        )


def _unmatched(name: str, timelines: Mapping[int, Timeline], groups: GroupNames) -> dict[int, int]:
    """Return the place of each rank's first message without a partner; where all have one, of the first unlike pair."""
    origin: dict[tuple[int, int], tuple[int, int]] = {}
    calls: list[Call] = []
    for rank, own in timelines.items():
        count = 0
        for place in own.messages(name):
            call = groups.call(own.calls[place])
            calls.append(call)
            try:
                for _ in members(call):
                    origin[call.group.rank, count] = (rank, place)
                    count += 1
            except Unsolvable:
                return {rank: place}
    job = arrange(calls)
    for group in job.groups:
        matched = MatchedMessages(group, job.signatures, frozenset())
        alone = [message for message in origin if message not in matched.partner_of]
        if not alone:
            alone = _unlike_pair(matched)
        places: dict[int, int] = {}
        for message in alone:
            rank, place = origin[message]
            places.setdefault(rank, place)
        return places
    return {}


def _unlike_pair(matched: MatchedMessages) -> list[tuple[int, int]]:
    """Return both ends of the first message whose tensors differ."""
    for pair in matched.partner_of.items():
        if len({tensors_text(matched.call(message)) for message in pair}) > 1:
            return list(pair)
    return []


def _joined(lines: list[Line]) -> Line | None:
    if len(lines) < 2:
        return lines[0] if lines else None
    return attrs.evolve(lines[0], call="; ".join(line.call for line in lines))


def _folded(
    ranks: Iterable[int], of: Callable[[int], tuple[Line | None, ...]]
) -> dict[tuple[int, ...], tuple[Line | None, ...]]:
    """Return the lines by the ranks that have them; the places in the programs may differ."""
    alike: dict[tuple[object, ...], tuple[list[int], tuple[Line | None, ...]]] = {}
    for rank in ranks:
        lines = of(rank)
        key = tuple(None if line is None else (line.call, line.source, line.here) for line in lines)
        alike.setdefault(key, ([], lines))[0].append(rank)
    return {tuple(own): lines for own, lines in alike.values()}


def _usual(texts: Mapping[tuple[int, ...], str | None]) -> list[tuple[int, ...]]:
    """Return the columns with the text that most ranks have; all, where no text has a majority."""
    counts: Counter[str | None] = Counter()
    for own, text in texts.items():
        counts[text] += len(own)
    most = counts.most_common(2)
    majority = len(most) < 2 or most[0][1] > most[1][1]
    return [own for own, text in texts.items() if not majority or text == most[0][0]]


def _contexts(ranks: Iterable[int], of: Callable[[int], tuple[Line, ...]], odd: set[int]) -> tuple[Context, ...]:
    folded = [
        Context(own, not odd.isdisjoint(own), _in_groups([of(rank) for rank in own])) for own in _folded(ranks, of)
    ]
    return tuple(sorted(folded, key=lambda each: (not each.odd, each.ranks)))


def _in_groups(alike: list[tuple[Line, ...]]) -> tuple[Line, ...]:
    """Return the lines of ranks that do the same, each with the names of all groups in which they do it."""
    lines = []
    for same in zip(*alike, strict=True):
        names = list(dict.fromkeys(line.group for line in same))
        more = [f"… {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
        lines.append(attrs.evolve(same[0], group=", ".join([*names[:_MOST_NAMES], *more])))
    return tuple(lines)
