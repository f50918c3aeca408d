"""Where the ranks of a group first part, and what each of them did before and after: calls side by side, as text.

Ranks that did the same are shown as one. Knows nothing of how the findings came about.
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
from collective_rules.comparison.names import Labels
from collective_rules.comparison.summary import brief, tensors_text
from collective_rules.errors import CallError
from collective_rules.finding import ERROR, Finding
from collective_rules.ops import lookup
from collective_rules.rules import Unsolvable

__all__ = ["Column", "Context", "Divergence", "Line", "Timeline", "divergences", "earliest_first"]

_NOTHING = "(nothing more in this group)"
_MOST_NAMES = 3


@attrs.frozen
class Line:
    """One call of a rank: its place in the rank's program, its group, and what it is; `here`: where the ranks part."""

    place: int | None
    group: str
    call: str
    source: str
    here: bool = False


@attrs.frozen
class Column:
    """What `ranks` (global) call at each of a divergence's `rows`; `odd`: they are the ones that part from others."""

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

    - `group`: its label. `ranks`: its global ranks. `verdict`: the finding's first line.
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
    """One rank's calls in order, with where the collectives and the messages of each group stand in them."""

    def __init__(self, rank: int, calls: Sequence[Call], labels: Labels) -> None:
        self.rank, self.calls, self._labels = rank, calls, labels
        self._by_index: dict[str, dict[int | None, list[int]]] = {}

    @functools.cached_property
    def _places(self) -> Mapping[tuple[str, bool], list[int]]:
        places: dict[tuple[str, bool], list[int]] = {}
        for place, call in enumerate(self.calls):
            rule = call.row.rule
            if not rule.one_sided:
                key = (self._labels.group(call.group).name, rule.point_to_point)
                places.setdefault(key, []).append(place)
        return places

    def collectives(self, label: str) -> list[int]:
        """Return the places of the group's collectives."""
        return self._places.get((label, False), [])

    def messages(self, label: str) -> list[int]:
        """Return the places of what is sent and received in the group."""
        return self._places.get((label, True), [])

    def has_indices(self, label: str) -> bool:
        """Whether each of the group's collectives says which one it is."""
        return all(self.calls[place].index is not None for place in self.collectives(label))

    def at(self, label: str, index: int, *, by_index: bool) -> list[int]:
        """Return where the group's collective `index` stands: several calls may be one launch."""
        if not by_index:
            return self.collectives(label)[max(0, index) : max(0, index + 1)]
        if label not in self._by_index:
            known = self._by_index[label] = {}
            for place in self.collectives(label):
                known.setdefault(self.calls[place].index, []).append(place)
        return self._by_index[label].get(index, [])

    def after(self, label: str, index: int, *, by_index: bool) -> int:
        """Return where this rank's program stands when it has done the group's collectives before `index`."""
        places = self.collectives(label)
        if by_index:
            places = [place for place in places if (self.calls[place].index or 0) < index]
        return places[-1] + 1 if places else 0

    def line(self, place: int, *, here: bool = False) -> Line:
        """Return the call at a place as text."""
        call = self.calls[place]
        return Line(place, self._labels.group(call.group).name, brief(call), call.source, here)

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
    findings: Iterable[Finding], timelines: Mapping[int, Timeline], labels: Labels, context: int
) -> tuple[Divergence, ...]:
    """Return where each group first parts, the earliest in the programs first. `findings` have global ranks."""
    by_group: dict[str, list[Finding]] = {}
    for found in findings:
        if found.id != WAIT_CYCLE:
            by_group.setdefault(found.group, []).append(found)
    located = [
        min(places, key=lambda item: item[0])
        for label, several in by_group.items()
        if (places := [*_collective(label, several, timelines, labels, context)])
        or (places := [*_message(label, several, timelines, labels, context)])
    ]
    return tuple(found for _, found in sorted(located, key=lambda item: item[0]))


def earliest_first(findings: Iterable[Finding], timelines: Mapping[int, Timeline], labels: Labels) -> list[Finding]:
    """Return findings in the order in which the programs come to them; those whose place is not known come last."""

    def place(found: Finding) -> float:
        if found.index is None:
            return math.inf
        ranks = _known_ranks(found.group, timelines, labels)
        by_index = _by_index(found.group, ranks, timelines)
        places = [timelines[rank].at(found.group, found.index, by_index=by_index) for rank in ranks]
        return min((each[0] for each in places if each), default=math.inf)

    return sorted(findings, key=place)


def _known_ranks(label: str, timelines: Mapping[int, Timeline], labels: Labels) -> list[int]:
    return [rank for rank in labels.members(label) if rank in timelines]


def _by_index(label: str, ranks: Iterable[int], timelines: Mapping[int, Timeline]) -> bool:
    """Whether the indices that the calls tell say which collectives go together, as `agree` takes it."""
    known = [timelines[rank] for rank in ranks if timelines[rank].collectives(label)]
    return bool(known) and all(each.has_indices(label) for each in known)


def _is_message(found: Finding) -> bool:
    try:
        return lookup(found.message.split(": ", 1)[0]).rule.point_to_point
    except CallError:
        return False


def _collective(
    label: str, findings: list[Finding], timelines: Mapping[int, Timeline], labels: Labels, context: int
) -> Iterator[tuple[int, Divergence]]:
    """Yield the first collective of the group that is amiss, with its place in the programs."""
    known = [(found.severity != ERROR, found.index or 0, found) for found in findings if not _is_message(found)]
    if not known:
        return
    _, _, found = min(known, key=lambda item: item[1])
    index = found.index or 0
    ranks = _known_ranks(label, timelines, labels)
    by_index = _by_index(label, ranks, timelines)
    rows = range(min(index, max(0, index - context)), index + context + 1)

    def cells(rank: int) -> tuple[Line | None, ...]:
        own = timelines[rank]
        return tuple(_joined([own.line(p) for p in own.at(label, row, by_index=by_index)]) for row in rows)

    def lines(rank: int) -> tuple[Line, ...]:
        own = timelines[rank]
        places = own.at(label, index, by_index=by_index)
        return own.around(places, context, own.after(label, index, by_index=by_index))

    columns = _folded(ranks, cells)
    middle = {own: column[rows.index(index)] for own, column in columns.items()}
    usual = _usual({own: None if line is None else line.call for own, line in middle.items()})
    odd = set(found.ranks).intersection(ranks) or {rank for own in columns if own not in usual for rank in own}
    shown = tuple(row for row, *cell in zip(rows, *columns.values(), strict=True) if row == index or any(cell))
    yield (
        min((line.place or 0 for line in middle.values() if line is not None), default=0),
        Divergence(
            label,
            labels.members(label),
            index,
            found.message.split("\n", 1)[0],
            shown,
            tuple(
                Column(own, not odd.isdisjoint(own), tuple(c for r, c in zip(rows, column, strict=True) if r in shown))
                for own, column in columns.items()
            ),
            _contexts(ranks, lines, odd),
        ),
    )


def _message(
    label: str, findings: list[Finding], timelines: Mapping[int, Timeline], labels: Labels, context: int
) -> Iterator[tuple[int, Divergence]]:
    """Yield the first message of the group that is amiss."""
    found = findings[0]
    places = {rank: place for rank, place in _amiss(label, timelines, labels).items() if rank in found.ranks} or _amiss(
        label, timelines, labels
    )
    ranks = sorted({*places, *(rank for rank in found.ranks if rank in timelines)})
    if ranks:
        contexts = _contexts(
            ranks,
            lambda rank: timelines[rank].around([places[rank]] if rank in places else [], context),
            set(found.ranks) if set(found.ranks) < set(ranks) else set(),
        )
        verdict = found.message.split("\n", 1)[0]
        yield (
            min(places.values(), default=0),
            Divergence(label, labels.members(label), None, verdict, contexts=contexts),
        )


def _amiss(label: str, timelines: Mapping[int, Timeline], labels: Labels) -> dict[int, int]:
    """Return where each rank's first message stands that has no partner; without any, the first unlike pair."""
    origin: dict[tuple[int, int], tuple[int, int]] = {}
    calls: list[Call] = []
    for rank, own in timelines.items():
        count = 0
        for place in own.messages(label):
            call = labels.call(own.calls[place])
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
        found: dict[int, int] = {}
        for message in alone:
            rank, place = origin[message]
            found.setdefault(rank, place)
        return found
    return {}


def _unlike_pair(matched: MatchedMessages) -> list[tuple[int, int]]:
    """Return both ends of the first message whose tensors look different at its ends."""
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
    """Put ranks together whose calls look the same, wherever they stand in the program."""
    alike: dict[tuple[object, ...], tuple[list[int], tuple[Line | None, ...]]] = {}
    for rank in ranks:
        lines = of(rank)
        key = tuple(None if line is None else (line.call, line.source, line.here) for line in lines)
        alike.setdefault(key, ([], lines))[0].append(rank)
    return {tuple(own): lines for own, lines in alike.values()}


def _usual(texts: Mapping[tuple[int, ...], str | None]) -> list[tuple[int, ...]]:
    """The columns with the text that most ranks have; all, where no text has a majority."""
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
    """Return the lines of ranks that do the same, with the names of all the groups in which they do."""
    lines = []
    for same in zip(*alike, strict=True):
        names = list(dict.fromkeys(line.group for line in same))
        more = [f"… {len(names) - _MOST_NAMES} more"] if len(names) > _MOST_NAMES else []
        lines.append(attrs.evolve(same[0], group=", ".join([*names[:_MOST_NAMES], *more])))
    return tuple(lines)
