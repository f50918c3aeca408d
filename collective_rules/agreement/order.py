"""The collectives of one group, compared side by side from the first to the last.

Ranks with equal sequences form one `_Cohort`, so that only what differs is compared. In each step every cohort stands
at one call, and these calls are compared as one collective. If they disagree, `divergence.explain` looks ahead: a
cohort may make the calls in another order, skip some, or make extra ones. That is one finding, and the cohort is moved
to where its calls match the others' again. Alike findings are counted, and the first is shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import attrs

from collective_rules.agreement.collective import compare
from collective_rules.agreement.divergence import EXTRA, LOOK_AHEAD, REORDERED, SKIPPED, Divergence, explain
from collective_rules.agreement.sequences import GroupCalls, Signatures
from collective_rules.agreement.unify import disagreement, odd_ones
from collective_rules.backends import Backend
from collective_rules.binding.binder import bind
from collective_rules.call import Call
from collective_rules.finding import ERROR, Finding
from collective_rules.messages import call_text, group_text, ranks_text, ranks_verb, where_text
from collective_rules.ops import lookup

_MOST_LINES, _MOST_ERRORS = 8, 100
_MOST_UNLIKE = 2
"""The comparison ends after so many steps in a row in which ranks make different collectives."""


@attrs.define(eq=False)
class _Cohort:
    """Ranks whose sequences are equal.

    - `numbers`, `places`: of each of the group's collectives, the call's signature and its place in the ranks'
      sequences; None for a collective that the ranks do not record.
    - `at`: the next call. `sits_out`: the number of steps that the cohort does not take part in.
    """

    ranks: list[int]
    numbers: list[int | None]
    places: list[int | None]
    at: int = 0
    sits_out: int = 0
    has_ended: bool = False

    @property
    def remaining(self) -> int:
        return len(self.numbers) - self.at

    @property
    def number(self) -> int | None:
        """The signature of the next call."""
        return self.numbers[self.at]

    @property
    def is_here(self) -> bool:
        return not self.sits_out and self.at < len(self.numbers) and self.number is not None

    @property
    def is_missing(self) -> bool:
        """Whether the ranks record collectives before and after this one, and not this one."""
        return not self.sits_out and 0 < self.at < len(self.numbers) and self.number is None

    def step(self) -> None:
        """Go on to the next collective."""
        if self.sits_out:
            self.sits_out -= 1
        elif self.remaining:
            self.at += 1


def compare_in_order(
    group: GroupCalls, signatures: Signatures, backend: str | Backend | None, expected: frozenset[int]
) -> Iterator[Finding]:
    """Yield the disagreements between the ranks' sequences of collectives, in order.

    `expected`: the group ranks of which all calls are given; that other ranks are missing is no finding.
    """
    if group.collectives:
        yield from _Comparison(group, signatures, backend, expected).run()


class _Comparison:
    def __init__(
        self, group: GroupCalls, signatures: Signatures, backend: str | Backend | None, expected: frozenset[int]
    ) -> None:
        self.group, self.signatures, self.backend, self.expected = group, signatures, backend, expected
        self.sequences = group.collectives
        self.is_single = all(len(sequence.numbers) == 1 for sequence in self.sequences.values())
        self.cohorts = list(self.make_cohorts())
        self.cohort_of = {group.global_rank(rank): (cohort, rank) for cohort in self.cohorts for rank in cohort.ranks}
        self.compared: dict[tuple[int | None, ...], tuple[Finding, ...]] = {}
        self.findings: dict[Any, Finding] = {}
        self.errors = 0

    def make_cohorts(self) -> Iterator[_Cohort]:
        cohorts: dict[tuple[bytes, bytes], _Cohort] = {}
        for rank, sequence in sorted(self.sequences.items()):
            key = sequence.key
            if key not in cohorts:
                places = self.group.places(rank)
                numbers = [None if place is None else sequence.numbers[place] for place in places]
                first = next(step for step, number in enumerate(numbers) if number is not None)
                cohorts[key] = _Cohort([], numbers[first:], places[first:], sits_out=first)
            cohorts[key].ranks.append(rank)
        yield from cohorts.values()

    def run(self) -> Iterator[Finding]:
        step, unlike = 0, 0
        self.report_absent(step)
        while any(cohort.remaining for cohort in self.cohorts):
            self.report_ended(step)
            here = [cohort for cohort in self.cohorts if cohort.is_here]
            self.report_missing(here, step)
            labels = {self.label(cohort) for cohort in here}
            if len(labels) > 1 and self.has_errors(here) and self.resynchronize(here, step):
                continue
            for finding in self.compare(here):
                if not (self.errors and self.is_consequence(finding)):
                    self.report(finding, step)
            unlike = unlike + 1 if len({rule for rule, _ in labels}) > 1 else 0
            if unlike == _MOST_UNLIKE or self.errors >= _MOST_ERRORS:
                break
            for cohort in self.cohorts:
                cohort.step()
            step += 1
        yield from self.findings.values()

    def label(self, cohort: _Cohort) -> Any:
        return None if cohort.number is None else self.signatures.labels[cohort.number]

    def labels(self, cohort: _Cohort) -> list[Any]:
        ahead = cohort.numbers[cohort.at : cohort.at + LOOK_AHEAD]
        return [None if number is None else self.signatures.labels[number] for number in ahead]

    def calls(self, cohorts: Sequence[_Cohort], ahead: int = 0) -> list[Call]:
        """Return the next calls of the cohorts' ranks, or those further ahead, by rank."""
        calls = [
            self.sequences[rank].call(place, self.signatures)
            for cohort in cohorts
            for rank in (cohort.ranks if ahead < cohort.remaining else ())
            if (place := cohort.places[cohort.at + ahead]) is not None
        ]
        return sorted(calls, key=attrgetter("group.rank"))

    # -- one step

    def compare(self, here: list[_Cohort]) -> tuple[Finding, ...]:
        """Return the disagreements between the cohorts' calls; for the same signatures again, the same findings."""
        column = tuple([cohort.number if cohort.is_here else None for cohort in self.cohorts])
        numbers = [number for number in column if number is not None]
        if not numbers or (
            len(set(numbers)) == 1 and self.signatures.is_symmetric(self.signatures.calls[numbers[0]].row)
        ):
            return ()
        findings = self.compared.get(column)
        if findings is None:
            findings = self.compared[column] = tuple(compare(self.calls(here), self.backend))
        return findings

    def has_errors(self, here: list[_Cohort]) -> bool:
        """Return whether the calls do not belong together: labels also differ where ranks need not agree."""
        return any(finding.severity == ERROR for finding in self.compare(here))

    def is_consequence(self, finding: Finding) -> bool:
        """Return whether ranks disagree on nothing but a value that follows from their earlier calls."""
        return {*finding.names} <= {*lookup(finding.op).rule.follows}

    def report(self, finding: Finding, step: int) -> None:
        """Keep a finding; findings of the same constraint, ranks, names and lines are counted."""
        lines = tuple([self.line(rank) for rank in finding.ranks[:_MOST_LINES]])
        key = (finding.id, finding.severity, finding.ranks, tuple(finding.names), lines)
        first = self.findings.get(key)
        if first is not None:
            self.findings[key] = attrs.evolve(first, count=first.count + 1)
            return
        self.errors += finding.severity == ERROR
        index = self.index_of(step)
        where = group_text(self.group.name, self.group.ranks)
        if index is not None:
            where = f"At collective {index}{f' of {where}' if where else ''}, counted from 0."
        elif where:
            where = f"In {where}."
        message = f"{finding.message}\n{where}" if where else finding.message
        self.findings[key] = attrs.evolve(finding, message=message, index=index, group=self.group.name)

    def index_of(self, step: int) -> int | None:
        """Return the index of the group's collective; None where each rank made one call, and they have no index."""
        if not self.is_single:
            return self.group.index_of(step)
        told = {None if each.indices is None else each.indices[0] for each in self.sequences.values()}
        return told.pop() if len(told) == 1 else None

    def line(self, rank: int) -> str:
        """Return the line of the next call of a global rank."""
        cohort, own = self.cohort_of.get(rank, (None, 0))
        place = cohort.places[cohort.at] if cohort is not None and cohort.is_here else None
        return "" if place is None else self.sequences[own].sources[place]

    def global_ranks(self, ranks: Iterable[int]) -> list[int]:
        return sorted(map(self.group.global_rank, ranks))

    def last_calls(self, cohorts: Iterable[_Cohort]) -> list[Call]:
        """Return the last call before the present one of each rank that has made one."""
        before = [(cohort, [place for place in cohort.places[: cohort.at] if place is not None]) for cohort in cohorts]
        return [
            self.sequences[rank].call(places[-1], self.signatures)
            for cohort, places in before
            for rank in (cohort.ranks if places else ())
            if rank in self.expected
        ]

    # -- ranks that do not take part

    def report_absent(self, step: int) -> None:
        """Report the ranks without any call."""
        absent = self.global_ranks(self.expected - self.sequences.keys())
        if absent:
            calls = self.calls([cohort for cohort in self.cohorts if not cohort.sits_out])
            finding = _absence(absent, calls, f"{ranks_verb(absent, 'does')} not take part")
            odd = self.global_ranks(self.sequences) if len(self.sequences) < len(absent) else absent
            count = max(len(cohort.numbers) + cohort.sits_out for cohort in self.cohorts)
            self.report(attrs.evolve(finding, ranks=tuple(odd), count=count), step)

    def report_missing(self, here: list[_Cohort], step: int) -> None:
        """Report the ranks that, by their indices, make the calls before and after this one."""
        absent = [cohort for cohort in self.cohorts if cohort.is_missing]
        missing = self.expected_ranks(absent)
        if missing and here:
            verdict = f"{ranks_verb(missing, 'does')} not take part in this one alone"
            self.report(_absence(missing, self.calls(here), verdict, self.last_calls(absent)), step)

    def report_ended(self, step: int) -> None:
        """Report the ranks that have made all their calls, once, if other ranks go on."""
        here = [cohort for cohort in self.cohorts if cohort.is_here]
        ended = [cohort for cohort in self.cohorts if here and not cohort.remaining and not cohort.has_ended]
        for cohort in ended:
            cohort.has_ended = True
        ranks = self.expected_ranks(ended)
        if ranks:
            verb = "does" if len(ranks) == 1 else "do"
            verdict = (
                f"{ranks_text(ranks)} {verb} not take part, and {verb} nothing in this group after {step} collectives"
            )
            self.report(_absence(ranks, self.calls(here), verdict, self.last_calls(ended)), step)

    def expected_ranks(self, cohorts: list[_Cohort]) -> list[int]:
        """Return the global ranks of cohorts of which all calls are given."""
        return self.global_ranks(rank for cohort in cohorts for rank in cohort.ranks if rank in self.expected)

    # -- cohorts that diverge

    def resynchronize(self, here: list[_Cohort], step: int) -> bool:
        """Report each cohort whose divergence is explained, and move it; return whether there was one."""
        by_label: dict[Any, list[_Cohort]] = {}
        for cohort in here:
            by_label.setdefault(self.label(cohort), []).append(cohort)
        majority = max(by_label.values(), key=lambda same: (sum(len(each.ranks) for each in same), -same[0].ranks[0]))
        model = max(majority, key=lambda cohort: len(cohort.ranks))
        ahead = self.labels(model)
        moved = False
        for label, cohorts in by_label.items():
            for cohort in cohorts if label != self.label(model) else ():
                divergence = explain(self.labels(cohort), ahead, cohort.remaining, model.remaining)
                if divergence is not None:
                    self.report(self.divergence_finding(divergence, cohort, majority, step), step)
                    self.move(cohort, divergence, ahead)
                    moved = True
        return moved

    def move(self, cohort: _Cohort, divergence: Divergence, ahead: list[Any]) -> None:
        """Move the cohort to where its calls match the labels `ahead`."""
        span = divergence.span
        if divergence.kind == SKIPPED:
            cohort.sits_out = span
        elif divergence.kind == EXTRA:
            cohort.at += span
        else:
            own: list[Any] = self.labels(cohort)[:span]
            order = []
            for label in ahead[:span]:
                place = own.index(label)
                own[place] = _TAKEN
                order.append(cohort.at + place)
            stop = cohort.at + span
            cohort.numbers[cohort.at : stop] = [cohort.numbers[place] for place in order]
            cohort.places[cohort.at : stop] = [cohort.places[place] for place in order]

    def divergence_finding(
        self, divergence: Divergence, cohort: _Cohort, majority: list[_Cohort], step: int
    ) -> Finding:
        own, others = self.calls([cohort]), self.calls(majority)
        other_ranks, ranks = ([self.group.global_rank(call.group.rank) for call in each] for each in (others, own))
        kind, span, rest = divergence.kind, divergence.span, ranks_text(other_ranks)
        what = "this call" if span == 1 else f"these {span} calls"
        if kind == REORDERED:
            verdict = f"{ranks_verb(ranks, 'makes')} {what} in another order than {rest}"
        elif kind == SKIPPED:
            verdict = f"{ranks_verb(ranks, 'does')} not make {what}, which {ranks_verb(other_ranks, 'makes')}"
        else:
            verdict = f"{ranks_verb(ranks, 'makes')} {what}, which {ranks_verb(other_ranks, 'does')} not"
        rows = []
        for ahead in range(span if kind == REORDERED else 1):
            for cohorts in (majority, [cohort]):
                calls = self.calls(cohorts, ahead)
                if calls:
                    rows.append((f"call {self.group.index_of(step + ahead)}", call_text(calls[0]), where_text(calls)))
        return disagreement(
            bind((others if kind == SKIPPED else own)[0]),
            "call" if kind == REORDERED else "ranks",
            verdict,
            rows=rows,
            names={
                "call": {
                    call.group.global_rank: call.op for call in sorted([*own, *others], key=attrgetter("group.rank"))
                }
            },
            ranks=odd_ones([other_ranks, ranks]),
        )


_TAKEN = object()


def _absence(missing: list[int], calls: list[Call], verdict: str, last: Sequence[Call] = ()) -> Finding:
    """Return the finding that global ranks do not take part in these calls of others.

    `last`: the calls of these ranks before.
    """
    rows = [("taking part", where_text(calls), "")]
    whose = "its last call" if len(missing) == 1 else "their last call"
    for _, alike in itertools.groupby(last, lambda call: (call_text(call), call.source)):
        before = [*alike]
        rows.append((whose, call_text(before[0]), where_text(before)))
    return disagreement(
        bind(calls[0]),
        "ranks",
        verdict,
        rows=rows,
        names={"missing": missing},
        ranks=odd_ones([[call.group.global_rank for call in calls], missing]),
    )
