"""Plots as inline SVG: no scripts, no files, colours by the page's classes.

Texts keep their size at every width: horizontal places are percentages, vertical ones are pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import attrs

from collective_rules.reports.flows import Flows
from collective_rules.reports.wording import bytes_text, cut, plural, share_text

__all__ = ["COLOURS", "Bar", "Lane", "Mark", "Span", "bars", "lanes", "matrix", "strip"]

COLOURS = 10
"""How many colours there are: classes c0 … c9, of which the last is for everything else."""

_ROW, _BAR = 36, 12
_LANE, _TOP = 74, 22
_STRIP, _LINE = 256, 14


@attrs.frozen
class Bar:
    """One bar: its name, what it stands for, and its colour's class."""

    name: str
    calls: int
    sent: float
    colour: str = "c0"


@attrs.frozen
class Mark:
    """One bar of a lane: `start` and `width` in columns of the plot, how high it is by `sent`, and its tooltip."""

    start: int
    sent: float
    colour: str
    title: str


@attrs.frozen
class Lane:
    """What one group did."""

    name: str
    marks: tuple[Mark, ...]


@attrs.frozen
class Span:
    """Columns from `start` up to `stop` that have one phase."""

    name: str
    start: int
    stop: int


def bars(entries: Sequence[Bar], name: str) -> str:
    """Return horizontal bars, each under its name and number; `name` says what they divide."""
    largest = max((each.sent for each in entries), default=0)
    whole = sum(each.sent for each in entries)
    rows = []
    for place, each in enumerate(entries):
        top = place * _ROW
        width = 100 * each.sent / largest if largest else 0
        shown = f"{bytes_text(each.sent)} · {share_text(each.sent, whole)}"
        title = f"{each.name}: {exact(each.sent)} bytes sent in {plural(each.calls, 'call')}"
        rows.append(
            f'<g data-name="{escape(each.name)}" data-bytes="{plain(each.sent)}" data-calls="{each.calls}">'
            f"<title>{escape(title)}</title>"
            f'<text x="0" y="{top + 13}">{escape(cut(each.name, 34))}</text>'
            f'<text x="100%" y="{top + 13}" class="end soft">{shown}</text>'
            f'<rect x="0" y="{top + 18}" width="100%" height="{_BAR}" class="track"/>'
            f'<rect x="0" y="{top + 18}" width="{width:.3f}%" height="{_BAR}" class="{each.colour}"/></g>'
        )
    return _svg("bars", f"Bytes sent by {name}", len(entries) * _ROW, rows)


def lanes(groups: Sequence[Lane], phases: Iterable[Span], columns: int) -> str:
    """Return a timeline: a lane for each group, its calls in order from left to right.

    A mark's height grows with the square root of what it sends, so that small calls stay visible beside large ones.
    """
    largest = max((mark.sent for lane in groups for mark in lane.marks), default=0)
    height = _TOP + len(groups) * _LANE
    parts = []
    for span in phases:
        left, width = 100 * span.start / columns, 100 * (span.stop - span.start) / columns
        label = escape(cut(span.name, 20)) if width > 12 else ""
        parts.append(
            f'<g><title>{escape(span.name)}</title><rect x="{left:.3f}%" y="0" width="{width:.3f}%" height="{height}" '
            f'class="phase {_phase(span.name)}"/><text x="{left:.3f}%" dx="4" y="14" class="soft">{label}</text></g>'
        )
    # Wide marks keep a gap between them.
    width = 100 / columns * (0.86 if columns <= 150 else 1)
    for place, lane in enumerate(groups):
        floor = _TOP + (place + 1) * _LANE - 6
        parts.append(f'<line x1="0" x2="100%" y1="{floor + 0.5}" y2="{floor + 0.5}" class="rule"/>')
        for mark in lane.marks:
            tall = max(2.0, (_LANE - 28) * math.sqrt(mark.sent / largest)) if largest else 2.0
            parts.append(
                f'<rect x="{100 * mark.start / columns:.2f}%" y="{floor - tall:.1f}" width="{width:.2f}%" '
                f'height="{tall:.1f}" class="mark {mark.colour}" data-bytes="{plain(mark.sent)}">'
                f"<title>{escape(mark.title)}</title></rect>"
            )
        parts.append(f'<text x="0" dx="4" y="{_TOP + place * _LANE + 14}">{escape(cut(lane.name, 60))}</text>')
    return _svg("timeline", "The calls in order, a lane for each group", height, parts)


def matrix(ways: Flows) -> str:
    """Return a square for each sender (down) and receiver (across) that has traffic; this rank's row is framed."""
    cells = ways.pairs | {(ways.rank, peer): amount for peer, amount in ways.sent.items()}
    largest = max(cells.values(), default=0)
    count = len(ways.ranks)
    side = max(9, min(34, 560 // max(count, 1)))
    edge, every = 44, max(1, math.ceil(26 / side))
    at = {rank: edge + place * side for place, rank in enumerate(ways.ranks)}
    parts = []
    own_place = at.get(ways.rank, -edge)
    for place, rank in enumerate(ways.ranks):
        middle = at[rank] + side / 2
        if place % every == 0:
            parts.append(f'<text x="{middle}" y="{edge - 6}" class="mid">{rank}</text>')
        # The own rank is always named, and others that would overlap its name are not.
        if rank == ways.rank or (place % every == 0 and abs(at[rank] - own_place) >= _LINE):
            own = ' class="own"' if rank == ways.rank else ""
            parts.append(f'<text x="{edge - 6}" y="{middle + 4}" class="end"><tspan{own}>{rank}</tspan></text>')
    size = edge + count * side
    parts.append(f'<rect x="{edge}" y="{edge}" width="{count * side}" height="{count * side}" class="track"/>')
    for (sender, receiver), amount in cells.items():
        shade = 0.12 + 0.88 * math.sqrt(amount / largest) if largest else 0
        known = "" if sender == ways.rank else " (implied)"
        parts.append(
            f'<rect x="{at[receiver]}" y="{at[sender]}" width="{side - 1}" height="{side - 1}" class="heat" '
            f'fill-opacity="{shade:.2f}" data-from="{sender}" data-to="{receiver}" data-bytes="{plain(amount)}">'
            f"<title>rank {sender} to rank {receiver}: {bytes_text(amount)}{known}</title></rect>"
        )
    if ways.rank in at:
        parts.append(
            f'<rect x="{edge - 1}" y="{at[ways.rank] - 1}" width="{count * side + 1}" height="{side + 1}" '
            'class="frame"/>'
        )
    parts.append(f'<text x="{edge}" y="14" class="soft">to rank →</text>')
    parts.append(f'<text x="0" y="{edge - 6}" class="soft">from</text>')
    return (
        f'<svg class="matrix" role="img" aria-label="Bytes from rank to rank" width="{size + 2}" height="{size + 2}">'
        f"{''.join(parts)}</svg>"
    )


def strip(ways: Flows) -> str:
    """Return this rank's row over all ranks, in at most 256 cells of equally many ranks each."""
    per = math.ceil(len(ways.ranks) / _STRIP)
    cells: dict[int, float] = {}
    for place, rank in enumerate(ways.ranks):
        if rank in ways.sent:
            cells[place // per] = cells.get(place // per, 0) + ways.sent[rank]
    count = math.ceil(len(ways.ranks) / per)
    largest = max(cells.values(), default=0)
    parts = ['<rect x="0" y="0" width="100%" height="40" class="track"/>']
    for place, amount in cells.items():
        shade = 0.25 + 0.75 * math.sqrt(amount / largest) if largest else 0
        first, last = ways.ranks[place * per], ways.ranks[min((place + 1) * per, len(ways.ranks)) - 1]
        whom = f"rank {first}" if first == last else f"ranks {first} to {last}"
        parts.append(
            f'<rect x="{100 * place / count:.2f}%" y="0" width="{100 / count:.2f}%" height="40" class="heat" '
            f'fill-opacity="{shade:.2f}" data-bytes="{plain(amount)}">'
            f"<title>to {whom}: {bytes_text(amount)}</title></rect>"
        )
    own = ways.ranks.index(ways.rank) if ways.rank in ways.ranks else 0
    # Below the cells: the ring's next rank is mostly in the same one.
    parts.append(f'<rect x="{100 * own / len(ways.ranks):.2f}%" y="40" width="3" height="6" class="here"/>')
    parts.append(f'<text x="0" y="56" class="soft">rank {ways.ranks[0]}</text>')
    parts.append(f'<text x="100%" y="56" class="end soft">rank {ways.ranks[-1]}</text>')
    return _svg("strip", "Bytes that this rank sends to each rank", 62, parts)


def exact(value: float) -> str:
    """Return a number of bytes in full.

    >>> exact(1536.0), exact(2.5)
    ('1,536', '2.5')
    """
    return f"{value:,.1f}".removesuffix(".0")


def plain(value: float) -> str:
    """Return a number as a program reads it.

    >>> plain(1536.0), plain(0.1)
    ('1536', '0.1')
    """
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def legend(entries: Mapping[str, str]) -> str:
    """Return the colours by name."""
    items = "".join(
        f'<span data-colour="{colour}"><svg width="12" height="12" aria-hidden="true"><rect width="12" height="12" '
        f'class="{colour}"/></svg> {escape(name)}</span>'
        for name, colour in entries.items()
    )
    return f'<p class="legend">{items}</p>'


def _phase(name: str) -> str:
    return f"is-{name}" if name in {"forward", "backward", "optimizer"} else "is-other"


def _svg(kind: str, label: str, height: int, parts: Iterable[str]) -> str:
    inside = "".join(parts)
    return f'<svg class="{kind}" role="img" aria-label="{escape(label)}" width="100%" height="{height}">{inside}</svg>'
