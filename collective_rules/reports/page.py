"""The report as one page of HTML. It loads nothing; its script only filters, and no content depends on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

from collective_rules.ledger import Entry, Ledger
from collective_rules.pages import render
from collective_rules.pages.wording import bytes_text, cut, exact, plural
from collective_rules.reports.flows import ASSUMPTION, Flows, flows
from collective_rules.reports.modules import by_pattern, tree
from collective_rules.reports.sections import findings, group_label, group_table, headline, notes, op_table, phase_table
from collective_rules.symbols import number
from collective_rules.text_table import Table

_COLOURS = 10
"""Classes c0 … c9 of the style sheet; all further ops share the last."""
_MOST_BARS, _MOST_LANES, _MOST_COLUMNS, _MOST_MARKS, _MOST_CALLS = 12, 24, 400, 3000, 400


@attrs.frozen
class Bar:
    """One bar: its name, its calls and bytes, and the class of its colour."""

    name: str
    calls: int
    sent: float
    colour: str = "c0"


@attrs.frozen
class Mark:
    """One bar of a lane: its first column, the bytes sent, its colour's class, and its tooltip."""

    start: int
    sent: float
    colour: str
    title: str


@attrs.frozen
class Span:
    """Columns from `start` up to `stop` that have one phase."""

    name: str
    start: int
    stop: int


@attrs.frozen
class Timeline:
    """The calls in order, in `columns` of equally many calls; `legend`: the ops of each colour, `lanes`: by group."""

    text: str
    legend: Mapping[str, str]
    lanes: Mapping[str, tuple[Mark, ...]]
    phases: tuple[Span, ...]
    columns: int

    @property
    def largest(self) -> float:
        """The bytes of the largest mark."""
        return max(mark.sent for marks in self.lanes.values() for mark in marks)


def page(ledger: Ledger) -> str:
    """Return the whole page; its size has a bound for ledgers and worlds of any size."""
    colours = {op: f"c{min(place, _COLOURS - 1)}" for place, (op,) in enumerate(ledger.by("op"))}
    step, entries = _step(ledger)
    ways = flows(ledger)
    return render(
        "reports/page.html",
        title="Communication",
        findings=findings(ledger),
        headline=headline(ledger),
        notes=notes(ledger),
        tiles=_tiles(ledger) if ledger.count else (),
        figures=_figures(ledger, colours),
        timeline=_timeline(ledger, step, entries, colours),
        ways=ways,
        traffic_text=_traffic_text(ways),
        receivers=_receivers(ways),
        tables=(op_table(ledger), phase_table(ledger), group_table(ledger)),
        tree=tree(ledger),
        calls=_calls(step, entries),
    )


def _tiles(ledger: Ledger) -> tuple[tuple[str, str, float], ...]:
    """Return name, text and value of each sum."""
    total = ledger.total
    return (
        ("calls", f"{ledger.count:,}", ledger.count),
        ("sent", bytes_text(total.sent), total.sent),
        ("read", bytes_text(total.read), total.read),
        ("written", bytes_text(total.written), total.written),
        ("groups", f"{len(ledger.groups):,}", len(ledger.groups)),
        ("optimizer steps", f"{ledger.steps:,}", ledger.steps),
    )


def _figures(ledger: Ledger, colours: dict[str, str]) -> dict[str, list[Bar]]:
    ops = [Bar(op, total.calls, total.sent, colours[op]) for (op,), total in ledger.by("op").items()]
    groups = [Bar(group_label(ledger, name), total.calls, total.sent) for (name,), total in ledger.by("group").items()]
    phases = [Bar(name or "(outside)", total.calls, total.sent) for (name,), total in ledger.by("phase").items()]
    paths = [(path, total.calls, total.sent) for (path,), total in ledger.by("module").items()]
    modules = [Bar(name, calls, sent) for name, (calls, sent) in by_pattern(paths).items()]
    by = {"op": ops, "group": groups, "module": modules, "phase": phases}
    return {name: _shortened(entries) for name, entries in by.items()}


def _shortened(entries: Sequence[Bar]) -> list[Bar]:
    """Return at most twelve bars; the last stands for all others."""
    if len(entries) <= _MOST_BARS:
        return list(entries)
    shown, rest = entries[: _MOST_BARS - 1], entries[_MOST_BARS - 1 :]
    calls, sent = sum(each.calls for each in rest), sum(each.sent for each in rest)
    return [*shown, Bar(f"({len(rest):,} others)", calls, sent, f"c{_COLOURS - 1}")]


def _step(ledger: Ledger) -> tuple[int | None, list[Entry]]:
    """Return the last whole step and its calls; None and all calls if no step is whole."""
    whole = {entry.step for entry in ledger.entries if entry.step < ledger.steps}
    if not whole:
        return None, list(ledger.entries)
    last = max(whole)
    return last, [entry for entry in ledger.entries if entry.step == last]


def _timeline(ledger: Ledger, step: int | None, entries: list[Entry], colours: dict[str, str]) -> Timeline | None:
    by_group: dict[str, list[tuple[int, Entry]]] = {}
    for place, entry in enumerate(entries):
        by_group.setdefault(entry.call.group.name, []).append((place, entry))
    if not by_group:
        return None
    shown = sorted(by_group, key=lambda name: -sum(_sent(entry) for _, entry in by_group[name]))[:_MOST_LANES]
    per = math.ceil(len(entries) / min(_MOST_COLUMNS, _MOST_MARKS // len(shown)))
    columns = math.ceil(len(entries) / per)
    lanes = {group_label(ledger, name): _marks(by_group[name], per, colours) for name in shown}
    span = "all kept calls" if step is None else f"step {step}, the last whole one"
    text = [f"{plural(len(entries), 'call')} of {span}, in order; height grows with the square root of the bytes sent."]
    if per > 1:
        text.append(f"A bar stands for up to {per} calls in a row, in the colour of the op that sends most.")
    if len(by_group) > len(shown):
        text.append(f"Of {len(by_group):,} groups the {len(shown)} that send most are shown.")
    used = {entry.call.op for entry in entries}
    legend: dict[str, list[str]] = {}
    for op, colour in colours.items():
        if op in used:
            legend.setdefault(colour, []).append(op)
    named = {colour: cut(", ".join(ops), 120) for colour, ops in legend.items()}
    return Timeline(" ".join(text), named, lanes, _phases(entries, per), columns)


def _marks(entries: list[tuple[int, Entry]], per: int, colours: dict[str, str]) -> tuple[Mark, ...]:
    columns: dict[int, list[Entry]] = {}
    for place, entry in entries:
        columns.setdefault(place // per, []).append(entry)
    return tuple(_mark(column, together, colours) for column, together in columns.items())


def _mark(column: int, entries: list[Entry], colours: dict[str, str]) -> Mark:
    by_op: dict[str, float] = {}
    for entry in entries:
        op = entry.call.op
        by_op[op] = by_op.get(op, 0) + _sent(entry)
    sent = sum(by_op.values())
    most = max(by_op, key=by_op.__getitem__)
    first = entries[0]
    where = [text for text in (cut(first.module, 60), first.phase, cut(first.source, 60)) if text]
    ops = most if len(entries) == 1 else f"{len(entries)} calls: {', '.join(map(str, by_op))}"
    numbers = f"call {first.number}" if len(entries) == 1 else f"from call {first.number}"
    return Mark(column, sent, colours[most], "\n".join([cut(ops, 120), f"{bytes_text(sent)} sent", *where, numbers]))


def _phases(entries: list[Entry], per: int) -> tuple[Span, ...]:
    """Return runs of columns whose first calls have one phase."""
    spans: list[Span] = []
    for column, first in enumerate(entries[::per]):
        if spans and spans[-1].name == first.phase:
            spans[-1] = attrs.evolve(spans[-1], stop=column + 1)
        else:
            spans.append(Span(first.phase, column, column + 1))
    return tuple(span for span in spans if span.name)


def _traffic_text(ways: Flows) -> str:
    text = [f"The bytes that this rank, {ways.rank}, sends to each rank. {ASSUMPTION}"]
    if ways.small:
        text.append("Its own row is counted. The same calls imply the other rows; a blank cell is unknown.")
    else:
        text.append(
            f"The strip shows the {len(ways.ranks):,} ranks of its groups, neighbours in one cell; "
            "its own place is marked below."
        )
    if ways.unplaced:
        text.append(f"{bytes_text(ways.unplaced)} go to receivers that the calls do not name.")
    return " ".join(text)


def _receivers(ways: Flows) -> Table:
    ordered = sorted(ways.sent.items(), key=lambda item: (-item[1], item[0]))
    rows = tuple((f"rank {rank}", bytes_text(amount), exact(amount)) for rank, amount in ordered[:_MOST_BARS])
    return Table(("receiver", "sent", "bytes"), rows, "", frozenset({"sent", "bytes"}))


def _calls(step: int | None, entries: list[Entry]) -> Table:
    rows = [
        (
            f"{entry.number:,}",
            entry.call.op,
            entry.call.group.name or "–",
            cut(entry.facts.sizes, 80),
            "?" if entry.traffic is None else bytes_text(_sent(entry)),
            cut(entry.module, 80),
            entry.phase,
            cut(entry.source, 80),
            ("yes" if entry.asynchronous else "") + (f", waited at {cut(entry.waited, 60)}" if entry.waited else ""),
        )
        for entry in entries[:_MOST_CALLS]
    ]
    columns = ("call", "op", "group", "tensors", "sent", "module", "phase", "source", "async")
    scope = "Calls" if step is None else f"Calls of step {step}"
    count = f": the first {len(rows):,} of {len(entries):,}" if len(rows) < len(entries) else f", {len(rows):,}"
    title = f"{scope}{count}"
    return Table(columns, tuple(rows), title, frozenset({"call", "sent"}))


def _sent(entry: Entry) -> float:
    return 0 if entry.traffic is None else number(entry.traffic.sent)
