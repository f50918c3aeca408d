"""The calls by module, as a tree; equal siblings such as layers.0 … layers.31 are one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs

from collective_rules.ledger import Ledger
from collective_rules.pages.wording import bytes_text, cut, plural
from collective_rules.text_table import visible

OUTSIDE = "(outside modules)"
_MOST_LINES, _DEEPEST, _LONGEST = 400, 64, 120


@attrs.define
class _Node:
    """A module: `calls` and `sent` are sums over it and all modules below it."""

    calls: int = 0
    sent: float = 0
    children: dict[str, _Node] = attrs.field(factory=dict)

    def add(self, path: list[str], calls: int, sent: float) -> None:
        self.calls += calls
        self.sent += sent
        if path:
            self.children.setdefault(path[0], _Node()).add(path[1:], calls, sent)


@attrs.frozen
class _Shown:
    """One line: a module, or `times` equal modules with `calls` and `sent` each."""

    name: str
    calls: int
    sent: float
    times: int
    children: tuple[_Shown, ...]


def tree(ledger: Ledger) -> str:
    """Return the modules as an indented tree with the calls and bytes sent in and below each.

    Modules stand in the order of their first calls, and calls outside modules stand last. Equal numbered siblings are
    one line, `layers.{0..31}`, with the sums of all and the bytes of one. Below the 64th level a path is one name, and
    long names are cut.
    """
    top = _Node()
    for key, total in list(ledger.totals.items()):
        top.add(key.module.split(".", _DEEPEST) if key.module else [OUTSIDE], total.calls, total.sent)
    outside = top.children.pop(OUTSIDE, None)
    shown = list(_siblings(top.children))
    if outside is not None:
        shown.append(_Shown(OUTSIDE, outside.calls, outside.sent, 1, ()))
    rows = [row for place, node in enumerate(shown) for row in _lines(node, "", place == len(shown) - 1, 1, top=True)]
    if not rows:
        return "no calls"
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows[:_MOST_LINES]]
    if len(rows) > _MOST_LINES:
        lines.append(f"… and {len(rows) - _MOST_LINES} more lines")
    return "\n".join(lines)


def by_pattern(paths: Iterable[tuple[str, int, float]]) -> dict[str, tuple[int, float]]:
    """Return calls and bytes by module path with its numbers replaced, the largest first.

    >>> by_pattern([("layers.0.attn", 1, 8), ("layers.1.attn", 1, 8), ("head", 2, 4), ("", 1, 0)])
    {'layers.*.attn': (2, 16), 'head': (2, 4), '(outside modules)': (1, 0)}
    """
    sums: dict[str, tuple[int, float]] = {}
    for path, calls, sent in paths:
        name = ".".join("*" if _is_number(part) else part for part in path.split(".")) or OUTSIDE
        before = sums.get(name, (0, 0))
        sums[name] = (before[0] + calls, before[1] + sent)
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def _siblings(children: dict[str, _Node]) -> Iterator[_Shown]:
    """Yield the lines of one parent's modules, in the order in which they first called."""
    alike: dict[tuple[object, ...], tuple[_Shown, list[str]]] = {}
    for name, node in children.items():
        shown = _Shown(name, node.calls, node.sent, 1, tuple(_siblings(node.children)))
        # Only numbered modules are copies of one another.
        key = ("numbered", shown.calls, shown.sent, shown.children) if _is_number(name) else ("named", name)
        alike.setdefault(key, (shown, []))[1].append(name)
    for shown, names in alike.values():
        together = f"{{{_runs(sorted(map(int, names)))}}}" if len(names) > 1 else shown.name
        yield attrs.evolve(shown, name=together, times=len(names))


def _is_number(name: str) -> bool:
    """Return whether torch's containers give a module this number: `²` and `007` are names."""
    return name.isdigit() and name.isascii() and len(name) < 10 and (name[0] != "0" or name == "0")


def _runs(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for each in numbers:
        if runs and runs[-1][1] == each - 1:
            runs[-1][1] = each
        else:
            runs.append([each, each])
    return ",".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)


def _lines(node: _Shown, indent: str, last: bool, times: int, top: bool = False) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, calls, bytes and note of a line and of the lines below it; the parent stands for `times` modules."""
    name, here = node.name, node
    while len(here.children) == 1 and here.times == 1:
        only = here.children[0]
        if only.calls * only.times != here.calls:
            break
        here = only
        name = f"{name}.{here.name}"
    times *= here.times
    note = f"{times} × {bytes_text(here.sent)}" if times > 1 else ""
    mark = "" if top else "└ " if last else "├ "
    shown = indent + mark + cut(visible(name), _LONGEST)
    yield shown, plural(here.calls * times, "call"), bytes_text(here.sent * times), note
    below = indent + ("" if top else "  " if last else "│ ")
    for place, child in enumerate(here.children):
        yield from _lines(child, below, place == len(here.children) - 1, times)
