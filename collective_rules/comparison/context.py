"""Shows where the ranks of a group first part, and the calls of each rank around that place, side by side as text.

Ranks with the same calls are shown as one.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress

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


class _GroupPrograms:
    """The programs of one group's ranks; `ranks` are global, those with a recording.

    - `by_index`: whether collectives of one index belong together, as `agree` decides it; else those of one place do.
    """

    def __init__(self, name: str, timelines: Mapping[int, Timeline], groups: GroupNames) -> None:
        self.name, self.timelines, self.groups = name, timelines, groups
        self.members = groups.members(name)
        self.ranks = [rank for rank in self.members if rank in timelines]
        indices = [self._index(rank, place) for rank in self.ranks for place in timelines[rank].collectives(name)]
        self.by_index = bool(indices) and None not in indices
        self._places: dict[int, dict[int | None, list[int]]] = {}

    def _index(self, rank: int, place: int) -> int | None:
        return self.timelines[rank].calls[place].index

    def at(self, rank: int, index: int) -> list[int]:
        """Return the places of the collective `index` in a rank's program: several calls may be one launch."""
        if rank not in self._places:
            places = self._places[rank] = {}
            for number, place in enumerate(self.timelines[rank].collectives(self.name)):
                places.setdefault(self._index(rank, place) if self.by_index else number, []).append(place)
        return self._places[rank].get(index, [])

    def after(self, rank: int, index: int) -> int:
        """Return the place in a rank's program after the group's collectives before `index`."""
        places = self.timelines[rank].collectives(self.name)
        if self.by_index:
            places = [place for place in places if (self._index(rank, place) or 0) < index]
        return places[-1] + 1 if places else 0

    def divergence(self, findings: list[Finding], context: int) -> tuple[int, Divergence] | None:
        """Return where the group first parts, after the place in the programs; None where no recording shows it."""
        collective = [finding for finding in findings if not lookup(finding.op).rule.point_to_point]
        if collective:
            first = min(collective, key=lambda each: (each.severity != ERROR, each.index or 0))
            return self._collective(first, context)
        return self._message(findings[0], context)

    def _collective(self, finding: Finding, context: int) -> tuple[int, Divergence]:
        index = finding.index or 0
        rows = range(min(index, max(0, index - context)), index + context + 1)

        def cells(rank: int) -> tuple[Line | None, ...]:
            return tuple(_joined([self.timelines[rank].line(place) for place in self.at(rank, row)]) for row in rows)

        def lines(rank: int) -> tuple[Line, ...]:
            return self.timelines[rank].around(self.at(rank, index), context, self.after(rank, index))

        cells_of = _folded(self.ranks, cells)
        middle = {ranks: column[rows.index(index)] for ranks, column in cells_of.items()}
        usual = _usual({ranks: None if line is None else line.call for ranks, line in middle.items()})
        odd = set(finding.ranks).intersection(self.ranks) or {
            rank for ranks in cells_of if ranks not in usual for rank in ranks
        }
        shown = [row == index or any(column[place] for column in cells_of.values()) for place, row in enumerate(rows)]
        place = min((line.place or 0 for line in middle.values() if line is not None), default=0)
        columns = [
            Column(ranks, not odd.isdisjoint(ranks), tuple(compress(column, shown)))
            for ranks, column in cells_of.items()
        ]
        contexts = _contexts(self.ranks, lines, odd)
        head = (self.name, self.members, index, finding.message.partition("\n")[0])
        return place, Divergence(*head, tuple(compress(rows, shown)), tuple(columns), contexts)

    def _message(self, finding: Finding, context: int) -> tuple[int, Divergence] | None:
        unmatched = _unmatched(self.name, self.timelines, self.groups)
        places = {rank: place for rank, place in unmatched.items() if rank in finding.ranks} or unmatched
        ranks = sorted({*places, *self.timelines.keys() & {*finding.ranks}})
        if not ranks:
            return None
        contexts = _contexts(
            ranks,
            lambda rank: self.timelines[rank].around([places[rank]] if rank in places else [], context),
            set(finding.ranks) if set(finding.ranks) < set(ranks) else set(),
        )
        verdict = finding.message.partition("\n")[0]
        return min(places.values(), default=0), Divergence(self.name, self.members, None, verdict, contexts=contexts)


def divergences(
    findings: Iterable[Finding], timelines: Mapping[int, Timeline], groups: GroupNames, context: int
) -> tuple[Divergence, ...]:
    """Return the place where each group first parts, the earliest first. `findings` have global ranks."""
    by_group: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.id != WAIT_CYCLE:
            by_group.setdefault(finding.group, []).append(finding)
    located = [_GroupPrograms(name, timelines, groups).divergence(each, context) for name, each in by_group.items()]
    return tuple(divergence for _, divergence in sorted(filter(None, located), key=lambda item: item[0]))


def earliest_first(findings: Iterable[Finding], timelines: Mapping[int, Timeline], groups: GroupNames) -> list[Finding]:
    """Return findings in the order of the programs; those without a place come last."""
    programs = functools.cache(lambda name: _GroupPrograms(name, timelines, groups))

    def place(finding: Finding) -> float:
        if finding.index is None:
            return math.inf
        group = programs(finding.group)
        places = [group.at(rank, finding.index) for rank in group.ranks]
        return min((each[0] for each in places if each), default=math.inf)

    return sorted(findings, key=place)


def _unmatched(name: str, timelines: Mapping[int, Timeline], groups: GroupNames) -> dict[int, int]:
    """Return the place of each rank's first message without a partner; of the first unlike pair if all have one."""
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
    if not job.groups:
        return {}
    matched = MatchedMessages(job.groups[0], job.signatures, frozenset())
    alone = [message for message in origin if message not in matched.partner_of] or _unlike_pair(matched)
    return dict(reversed([origin[message] for message in alone]))


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
