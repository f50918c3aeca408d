"""The report as one page of HTML: nothing is loaded, its script only filters, and all is readable without it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import attrs

from collective_rules.reports.flows import ASSUMPTION, Flows, flows
from collective_rules.reports.modules import by_pattern, tree
from collective_rules.reports.sections import findings, group_label, group_table, headline, notes, op_table, phase_table
from collective_rules.reports.style import SCRIPT, STYLE
from collective_rules.reports.svg import (
    COLOURS,
    Bar,
    Lane,
    Mark,
    Span,
    bars,
    exact,
    lanes,
    legend,
    matrix,
    plain,
    strip,
)
from collective_rules.reports.wording import bytes_text, cut, plural
from collective_rules.symbols import number
from collective_rules.text_table import Table

if TYPE_CHECKING:
    from collective_rules.ledger import Entry, Ledger

__all__ = ["page"]

_MOST_BARS, _MOST_LANES, _MOST_COLUMNS, _MOST_MARKS, _MOST_CALLS = 12, 24, 400, 3000, 400


def page(ledger: Ledger) -> str:
    """Return the whole page; its size has a bound, whatever the ledger's and the world's size."""
    title = "Communication"
    parts = [f"<h1>{title}</h1>", *_findings(ledger)]
    if ledger.count:
        colours = _colours(ledger)
        parts += [f"<p>{escape(headline(ledger))}</p>", _tiles(ledger)]
    else:
        parts.append("<p>No collective was called.</p>")
    parts += [f'<p class="note">{escape(note)}</p>' for note in notes(ledger)]
    if ledger.count:
        step, entries = _step(ledger)
        parts += [
            _charts(ledger, colours),
            *_timeline(ledger, step, entries, colours),
            *_traffic(flows(ledger)),
            *_table(op_table(ledger)),
            *_table(phase_table(ledger)),
            *_table(group_table(ledger)),
            f"<h2>By module</h2><pre>{escape(tree(ledger))}</pre>",
            _calls(step, entries),
        ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head>",
            "<body>",
            *parts,
            f"<script>{SCRIPT}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _findings(ledger: Ledger) -> list[str]:
    found = findings(ledger)
    if not found:
        return []
    shown = "".join(f'<pre class="finding">{escape(text)}</pre>' for text in found[1:])
    return [f"<h2>{escape(found[0].capitalize())}</h2>{shown}"]


def _colours(ledger: Ledger) -> dict[str, str]:
    """Return each op's class; those that send least share the last one."""
    return {op: f"c{min(place, COLOURS - 1)}" for place, (op,) in enumerate(ledger.by("op"))}


def _tiles(ledger: Ledger) -> str:
    total = ledger.total
    tiles = (
        ("calls", f"{ledger.count:,}", ledger.count),
        ("sent", bytes_text(total.sent), total.sent),
        ("read", bytes_text(total.read), total.read),
        ("written", bytes_text(total.written), total.written),
        ("groups", f"{len(ledger.groups):,}", len(ledger.groups)),
        ("optimizer steps", f"{ledger.steps:,}", ledger.steps),
    )
    shown = "".join(
        f'<div title="{exact(value)}"><b data-tile="{name}" data-value="{plain(value)}">{text}</b>'
        f"<span>{name}</span></div>"
        for name, text, value in tiles
    )
    return f'<div class="tiles">{shown}</div>'


def _charts(ledger: Ledger, colours: dict[str, str]) -> str:
    ops = [Bar(op, total.calls, total.sent, colours[op]) for (op,), total in ledger.by("op").items()]
    groups = [Bar(group_label(ledger, name), total.calls, total.sent) for (name,), total in ledger.by("group").items()]
    phases = [Bar(name or "(outside)", total.calls, total.sent) for (name,), total in ledger.by("phase").items()]
    paths = [(path, total.calls, total.sent) for (path,), total in ledger.by("module").items()]
    modules = [Bar(name, calls, sent) for name, (calls, sent) in by_pattern(paths).items()]
    figures = [
        f'<figure data-by="{name}"><figcaption>by {name}</figcaption>{bars(_shortened(entries), name)}</figure>'
        for name, entries in (("op", ops), ("group", groups), ("module", modules), ("phase", phases))
    ]
    return f'<h2>Bytes sent</h2><div class="charts">{"".join(figures)}</div>'


def _shortened(entries: Sequence[Bar]) -> list[Bar]:
    """Return at most twelve bars; the last stands for all others."""
    if len(entries) <= _MOST_BARS:
        return list(entries)
    shown, rest = entries[: _MOST_BARS - 1], entries[_MOST_BARS - 1 :]
    others = Bar(
        f"({len(rest):,} others)", sum(each.calls for each in rest), sum(each.sent for each in rest), f"c{COLOURS - 1}"
    )
    return [*shown, others]


def _step(ledger: Ledger) -> tuple[int | None, list[Entry]]:
    """Return the last whole step and its calls; without a whole one, None and all calls."""
    whole = {entry.step for entry in ledger.entries if entry.step < ledger.steps}
    if not whole:
        return None, list(ledger.entries)
    last = max(whole)
    return last, [entry for entry in ledger.entries if entry.step == last]


def _timeline(ledger: Ledger, step: int | None, entries: list[Entry], colours: dict[str, str]) -> list[str]:
    by_group: dict[str, list[tuple[int, Entry]]] = {}
    for place, entry in enumerate(entries):
        by_group.setdefault(entry.call.group.name, []).append((place, entry))
    if not by_group:
        return []
    shown = sorted(by_group, key=lambda name: -sum(_sent(entry) for _, entry in by_group[name]))[:_MOST_LANES]
    per = math.ceil(len(entries) / min(_MOST_COLUMNS, _MOST_MARKS // len(shown)))
    columns = math.ceil(len(entries) / per)
    drawn = [Lane(group_label(ledger, name), _marks(by_group[name], per, colours)) for name in shown]
    what = "all calls that were kept" if step is None else f"step {step}, the last whole one"
    said = [f"{plural(len(entries), 'call')} of {what}, in order; height grows with the square root of the bytes sent."]
    if per > 1:
        said.append(f"A bar stands for up to {per} calls in a row, in the colour of the op that sends most.")
    if len(by_group) > len(shown):
        said.append(f"Of {len(by_group):,} groups the {len(shown)} that send most are shown.")
    used = {entry.call.op for entry in entries}
    named: dict[str, list[str]] = {}
    for op, colour in colours.items():
        if op in used:
            named.setdefault(colour, []).append(op)
    key = {ops[0] if len(ops) == 1 else f"{len(ops)} others": colour for colour, ops in named.items()}
    plot = lanes(drawn, _phases(entries, per), columns)
    return ["<h2>Timeline</h2>", f"<p>{escape(' '.join(said))}</p>", legend(key), f'<div class="wide">{plot}</div>']


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
    most = max(by_op, key=lambda op: by_op[op])
    first = entries[0]
    where = [text for text in (cut(first.module, 60), first.phase, cut(first.source, 60)) if text]
    what = most if len(entries) == 1 else f"{len(entries)} calls: {', '.join(map(str, by_op))}"
    numbers = f"call {first.number}" if len(entries) == 1 else f"from call {first.number}"
    return Mark(column, sent, colours[most], "\n".join([cut(what, 120), f"{bytes_text(sent)} sent", *where, numbers]))


def _phases(entries: list[Entry], per: int) -> list[Span]:
    """Return runs of columns whose first calls have one phase."""
    spans: list[Span] = []
    for column, first in enumerate(entries[::per]):
        if spans and spans[-1].name == first.phase:
            spans[-1] = attrs.evolve(spans[-1], stop=column + 1)
        else:
            spans.append(Span(first.phase, column, column + 1))
    return [span for span in spans if span.name]


def _traffic(ways: Flows) -> list[str]:
    said = [f"What this rank, {ways.rank}, sends to each rank. {ASSUMPTION}"]
    if ways.small:
        said.append("Its own row is counted; the others are what the same calls imply, blank where they do not tell.")
    else:
        said.append(
            f"The strip shows the {len(ways.ranks):,} ranks of its groups, neighbours in one cell; "
            "its own place is marked below."
        )
    if ways.unplaced:
        said.append(f"{bytes_text(ways.unplaced)} go to receivers that the calls do not name.")
    parts = ["<h2>From rank to rank</h2>", f"<p>{escape(' '.join(said))}</p>"]
    if not ways.sent and not ways.pairs:
        return [*parts, "<p>Nothing is sent.</p>"]
    plot = matrix(ways) if ways.small else strip(ways)
    ordered = sorted(ways.sent.items(), key=lambda item: (-item[1], item[0]))
    receivers = [(f"rank {rank}", bytes_text(amount), exact(amount)) for rank, amount in ordered[:_MOST_BARS]]
    table = Table(("receiver", "sent", "bytes"), tuple(receivers), "", frozenset({"sent", "bytes"}))
    left = len(ordered) - len(receivers)
    more = f'<p class="note">and {plural(left, "other receiver")}</p>' if left else ""
    shown = f'<div class="wide">{plot}</div>'
    return [*parts, f'<div class="{"beside" if ways.small else ""}">{shown}<div>{_html(table)}{more}</div></div>']


def _calls(step: int | None, entries: list[Entry]) -> str:
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
    table = Table(columns, tuple(rows), "", frozenset({"call", "sent"}))
    what = "Calls" if step is None else f"Calls of step {step}"
    head = (
        f"{what}: the first {len(rows):,} of {len(entries):,}" if len(rows) < len(entries) else f"{what}, {len(rows):,}"
    )
    search = (
        '<p><input id="filter" type="search" placeholder="filter the calls" aria-label="filter the calls" hidden></p>'
    )
    return f'<details id="calls"><summary>{escape(head)}</summary>{search}{_html(table)}</details>'


def _table(table: Table) -> list[str]:
    return [f"<h2>{escape(table.title)}</h2>", _html(table)]


def _html(table: Table) -> str:
    right = [' class="right"' if column in table.right else "" for column in table.columns]
    head = "".join(f"<th{css}>{escape(text)}</th>" for text, css in zip(table.columns, right, strict=True))
    rows = (
        "<tr>" + "".join(f"<td{css}>{escape(text)}</td>" for text, css in zip(row, right, strict=True)) + "</tr>"
        for row in table.rows
    )
    body = "\n".join(rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _sent(entry: Entry) -> float:
    return 0 if entry.traffic is None else number(entry.traffic.sent)
