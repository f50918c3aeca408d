"""The collectives of one group side by side, from the first to the last.

Ranks that make alike calls all the way are one lane, so that what is compared is what differs. Where the lanes part,
the calls that follow tell whether a lane makes them in another order, leaves some out, or has some more; then it is
put beside the others again, and one fault is one finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from collective_rules.agreement.collective import compare
from collective_rules.agreement.streams import GroupCalls, Kinds
from collective_rules.agreement.unify import disagreement, odd_ones
from collective_rules.binding.binder import bind
from collective_rules.call import Call
from collective_rules.finding import ERROR, Finding
from collective_rules.messages import ranks_text, told

__all__ = ["compare_in_order"]

_AHEAD, _FARTHEST = 16, 8
"""How many calls must match after a fault that is explained, and how many it may concern."""
_LINES, _MOST_ERRORS = 8, 100


@attrs.define(eq=False)
class _Lane:
    """Ranks whose calls are of the same kinds all the way.

    `places` are the calls in the ranks' streams, None for a collective that they do not tell of. `at` is the next one,
    `hold` how many collectives the lane sits out.
    """

    ranks: list[int]
    kinds: list[int | None]
    places: list[int | None]
    at: int = 0
    hold: int = 0
    left: bool = False

    @property
    def remaining(self) -> int:
        return len(self.kinds) - self.at

    @property
    def is_here(self) -> bool:
        return not self.hold and self.at < len(self.kinds) and self.kinds[self.at] is not None

    @property
    def is_missing(self) -> bool:
        """Whether it tells of collectives before and after this one, and not of this one."""
        return not self.hold and 0 < self.at < len(self.kinds) and self.kinds[self.at] is None

    @property
    def kind(self) -> int:
        """The kind of the call that is next, where it is here."""
        kind = self.kinds[self.at]
        return -1 if kind is None else kind


@attrs.frozen
class _Fault:
    """How a lane parts from the others: "order" of `span` calls, `span` calls "skipped", or `span` "extra"."""

    what: str
    span: int


def compare_in_order(
    group: GroupCalls, kinds: Kinds, backend: str | None, expected: frozenset[int]
) -> Iterator[Finding]:
    """Yield what the ranks' sequences of collectives disagree on, first things first.

    Of the group ranks in `expected` all calls are there; others may be missing without a finding.
    """
    if group.collectives:
        yield from _Comparison(group, kinds, backend, expected).run()


class _Comparison:
    def __init__(self, group: GroupCalls, kinds: Kinds, backend: str | None, expected: frozenset[int]) -> None:
        self.group, self.kinds, self.backend, self.expected = group, kinds, backend, expected
        self.streams = group.collectives
        self.single = all(len(stream.kinds) == 1 for stream in self.streams.values())
        self.lanes = list(self.make_lanes())
        self.known: dict[tuple[int | None, ...], tuple[Finding, ...]] = {}
        self.notes: dict[Any, Finding] = {}
        self.errors = 0
        self.lane_of = {rank: lane for lane in self.lanes for rank in lane.ranks}

    def make_lanes(self) -> Iterator[_Lane]:
        lanes: dict[tuple[bytes, bytes], _Lane] = {}
        for rank, stream in sorted(self.streams.items()):
            key = (stream.kinds.tobytes(), b"" if stream.indices is None else stream.indices.tobytes())
            if key not in lanes:
                places = self.group.places(rank)
                kinds = [None if place is None else stream.kinds[place] for place in places]
                hold = next(number for number, kind in enumerate(kinds) if kind is not None)
                lanes[key] = _Lane([], kinds[hold:], places[hold:], hold=hold)
            lanes[key].ranks.append(rank)
        yield from lanes.values()

    def run(self) -> Iterator[Finding]:
        place, parted = 0, 0
        self.note_the_absent(place)
        while any(lane.remaining for lane in self.lanes):
            self.note_those_that_left(place)
            here = [lane for lane in self.lanes if lane.is_here]
            self.note_the_missing(here, place)
            if len({self.label(lane) for lane in here}) > 1 and self.parts(here) and self.realign(here, place):
                continue
            found = self.compare(here)
            for each in found:
                self.note(each, place)
            parted = parted + 1 if len({self.label(lane)[0] for lane in here}) > 1 else 0
            if parted == 2 or self.errors >= _MOST_ERRORS:
                break  # what follows is no longer the same calls
            for lane in self.lanes:
                if lane.hold:
                    lane.hold -= 1
                elif lane.remaining:
                    lane.at += 1
            place += 1
        yield from self.notes.values()

    def label(self, lane: _Lane) -> Any:
        return self.kinds.labels[lane.kind]

    def calls(self, lanes: Sequence[_Lane]) -> list[Call]:
        """The calls of the lanes' ranks at their places, by rank."""
        calls = [
            self.streams[rank].call(place, self.kinds)
            for lane in lanes
            for rank in lane.ranks
            if (place := lane.places[lane.at]) is not None
        ]
        return sorted(calls, key=_rank)

    def compare(self, here: list[_Lane]) -> tuple[Finding, ...]:
        """What one call of each lane disagrees on; of the same calls again, the same findings."""
        column = tuple([lane.kind if lane.is_here else None for lane in self.lanes])
        kinds = set(column) - {None}
        if not here or (len(kinds) == 1 and self.is_symmetric(column)):
            return ()
        found = self.known.get(column)
        if found is None:
            found = self.known[column] = tuple(compare(self.calls(here), self.backend))
        return found

    def parts(self, here: list[_Lane]) -> bool:
        """Whether the calls do not belong together: labels also differ in what ranks need not agree on."""
        return any(found.severity == ERROR for found in self.compare(here))

    def is_symmetric(self, column: tuple[int | None, ...]) -> bool:
        kind = next(kind for kind in column if kind is not None)
        return self.kinds.is_symmetric(self.kinds.calls[kind].row)

    def note(self, found: Finding, place: int) -> None:
        """Keep a finding; those of the same constraint, ranks and lines are counted, and the first is shown."""
        lines = tuple([self.line(rank) for rank in found.ranks[:_LINES]])
        key = (found.id, found.severity, found.ranks, tuple(found.names), lines)
        known = self.notes.get(key)
        if known is not None:
            self.notes[key] = attrs.evolve(known, count=known.count + 1)
            return
        self.errors += found.severity == ERROR
        index = None if self.single else self.group.index_of(place)
        message = found.message if self.single else f"{found.message}\n{self.where(place)}"
        self.notes[key] = attrs.evolve(found, message=message, group=self.group.name, index=index)

    def line(self, rank: int) -> str:
        """The line of the rank's call that is being compared."""
        lane = self.lane_of.get(rank)
        place = lane.places[lane.at] if lane is not None and lane.is_here else None
        return "" if place is None else self.streams[rank].sources[place]

    def where(self, place: int) -> str:
        name = f" of group {self.group.name}" if self.group.name else ""
        return f"At collective {self.group.index_of(place)}{name}, counted from 0."

    # -- lanes that part

    def note_the_absent(self, place: int) -> None:
        """Find the ranks that do nothing at all."""
        missing = sorted(self.expected - self.streams.keys())
        if missing:
            calls = self.calls([lane for lane in self.lanes if not lane.hold])
            verdict = f"{ranks_text(missing)} {'does' if len(missing) == 1 else 'do'} not take part"
            rows = [("taking part", _where(calls), "")]
            names = {"missing": missing}
            few = sorted(self.streams) if len(self.streams) < len(missing) else missing
            found = disagreement(bind(calls[0]), "ranks", verdict, rows=rows, names=names, ranks=tuple(few))
            self.note(attrs.evolve(found, count=max(len(lane.kinds) + lane.hold for lane in self.lanes)), place)

    def note_the_missing(self, here: list[_Lane], place: int) -> None:
        """Find the ranks that, by their indices, make the calls before and after this one."""
        gone = [rank for lane in self.lanes if lane.is_missing for rank in lane.ranks if rank in self.expected]
        if gone and here:
            calls = self.calls(here)
            verdict = f"{ranks_text(gone)} {'does' if len(gone) == 1 else 'do'} not take part in this one alone"
            rows = [("taking part", _where(calls), "")]
            names = {"missing": sorted(gone)}
            odd = odd_ones(sorted((_ranks(calls), sorted(gone)), key=len, reverse=True))
            self.note(disagreement(bind(calls[0]), "ranks", verdict, rows=rows, names=names, ranks=odd), place)

    def note_those_that_left(self, place: int) -> None:
        """Find the ranks whose calls are at an end, where others go on."""
        gone = [lane for lane in self.lanes if not lane.remaining and not lane.left]
        here = [lane for lane in self.lanes if lane.is_here]
        for lane in gone if here else ():
            lane.left = True
        ended = sorted(rank for lane in gone for rank in lane.ranks if rank in self.expected)
        if not ended or not here:
            return
        calls = self.calls(here)
        going = [call.group.rank for call in calls]
        few, many = sorted((ended, going), key=len)
        who, verb = ranks_text(ended), "does" if len(ended) == 1 else "do"
        verdict = f"{who} {verb} not take part, and {verb} nothing in this group after {place} collectives"
        rows = [("taking part", _where(calls), "")]
        names = {"missing": ended}
        odd = tuple(few) if len(few) < len(many) else tuple(sorted(few + many))
        self.note(disagreement(bind(calls[0]), "ranks", verdict, rows=rows, names=names, ranks=odd), place)

    def realign(self, here: list[_Lane], place: int) -> bool:
        """Whether a lane was found to have parted, and was put beside the others again."""
        by_label: dict[Any, list[_Lane]] = {}
        for lane in here:
            by_label.setdefault(self.label(lane), []).append(lane)
        main = max(by_label.values(), key=lambda lanes: (sum(len(lane.ranks) for lane in lanes), -lanes[0].ranks[0]))
        model = max(main, key=lambda lane: len(lane.ranks))
        ahead = self.labels(model)
        found = False
        for label, lanes in by_label.items():
            for lane in lanes if label != self.label(model) else ():
                fault = _explain(self.labels(lane), ahead, lane.remaining, model.remaining)
                if fault is not None:
                    self.note(self.fault(fault, lane, model, main, place), place)
                    self.mend(fault, lane, model)
                    found = True
        return found

    def labels(self, lane: _Lane) -> list[Any]:
        ahead = lane.kinds[lane.at : lane.at + _AHEAD + _FARTHEST]
        return [None if kind is None else self.kinds.labels[kind] for kind in ahead]

    def mend(self, fault: _Fault, lane: _Lane, model: _Lane) -> None:
        if fault.what == "skipped":
            lane.hold = fault.span
        elif fault.what == "extra":
            lane.at += fault.span
        else:
            ahead, own = self.labels(model)[: fault.span], list(range(lane.at, lane.at + fault.span))
            order = []
            for label in ahead:
                place = next(place for place in own if self.label(attrs.evolve(lane, at=place)) == label)
                own.remove(place)
                order.append(place)
            stop = lane.at + fault.span
            lane.kinds[lane.at : stop] = [lane.kinds[place] for place in order]
            lane.places[lane.at : stop] = [lane.places[place] for place in order]

    def fault(self, fault: _Fault, lane: _Lane, model: _Lane, main: list[_Lane], place: int) -> Finding:
        own, others = self.calls([lane]), self.calls(main)
        who, rest = ranks_text(lane.ranks), ranks_text(call.group.rank for call in others)
        one = len(lane.ranks) == 1
        odd = odd_ones(sorted(([call.group.rank for call in others], lane.ranks), key=len, reverse=True))
        rows = [(f"call {self.group.index_of(place)}", told(calls[0]), _where(calls)) for calls in (others, own)]
        names: dict[str, Any] = {"call": {call.group.rank: call.op for call in sorted([*own, *others], key=_rank)}}
        if fault.what == "order":
            verdict = f"{who} {'makes' if one else 'make'} these {fault.span} calls in another order than {rest}"
            rows = []
            for at in range(fault.span):
                for lanes in (main, [lane]):
                    calls = self.calls([attrs.evolve(each, at=each.at + at) for each in lanes if at < each.remaining])
                    rows.append((f"call {self.group.index_of(place + at)}", told(calls[0]), _where(calls)))
            return disagreement(bind(own[0]), "call", verdict, rows=rows, names=names, ranks=odd)
        what = "this call" if fault.span == 1 else f"these {fault.span} calls"
        if fault.what == "skipped":
            verdict = f"{who} {'does' if one else 'do'} not make {what}, which {rest} {_makes(others)}"
            speaker = others[0]
        else:
            verdict = f"{who} {'makes' if one else 'make'} {what}, which {rest} {_makes(others, 'not')}"
            speaker = own[0]
        return disagreement(bind(speaker), "ranks", verdict, rows=rows, names=names, ranks=odd)


def _explain(own: list[Any], others: list[Any], own_left: int, others_left: int) -> _Fault | None:
    """What makes the calls that follow match again; None where one other call does, or nothing.

    Of several explanations, the one that makes the sequences equally long, then the one after which all matches, then
    the simplest. The same calls in another order explain themselves, whatever follows. Where the next fault is near,
    as of one in every step, the one after which most calls match until then.
    """
    candidates: list[tuple[_Fault | None, int, int]] = [(None, 1, 1)]
    for span in range(2, _FARTHEST + 1):
        if len(own) >= span <= len(others) and _same_items(own[:span], others[:span]):
            candidates.append((_Fault("order", span), span, span))
            break
    for span in range(1, _FARTHEST + 1):
        candidates += [(_Fault("skipped", span), 0, span), (_Fault("extra", span), span, 0)]
    fitting, nearly = [], []
    for order, (fault, mine, theirs) in enumerate(candidates):
        seen = max(0, min(len(own) - mine, len(others) - theirs, _AHEAD))
        matching = _matching(own[mine : mine + seen], others[theirs : theirs + seen])
        odds = abs(own_left - mine - others_left + theirs)
        is_order = fault is not None and fault.what == "order"
        if is_order or (matching == seen and (fault is None or seen == _AHEAD or (not odds and seen))):
            fitting.append((odds > 0, matching < seen, order, fault))
        evens = odds < abs(own_left - others_left)
        if fault is None or matching > 1 or (matching and evens):
            nearly.append((-matching, not evens, order, fault))
    best = min(fitting or nearly, key=lambda item: item[:3])
    return best[3]


def _matching(own: list[Any], others: list[Any]) -> int:
    """How many calls match before the first two that do not."""
    pairs = zip(own, others, strict=True)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), len(own))


def _same_items(own: list[Any], others: list[Any]) -> bool:
    rest = list(others)
    for label in own:
        if label not in rest:
            return False
        rest.remove(label)
    return True


def _rank(call: Call) -> int:
    return call.group.rank


def _ranks(calls: list[Call]) -> list[int]:
    return [call.group.rank for call in calls]


def _makes(calls: list[Call], negation: str = "") -> str:
    verb = ("does" if len(calls) == 1 else "do") if negation else ("makes" if len(calls) == 1 else "make")
    return f"{verb} {negation}".rstrip()


def _where(calls: list[Call]) -> str:
    sources = list(dict.fromkeys(call.source for call in calls if call.source))
    where = ranks_text(call.group.rank for call in calls)
    return f"{where}   {', '.join(sources[:3])}" if sources else where
