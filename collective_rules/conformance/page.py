"""A conformance run as one page of HTML: no scripts, no other files, readable in light and in dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from collective_rules.conformance.results import (
    BROKEN_OUTCOMES,
    Conformance,
    Failure,
    KindResult,
    OpResult,
)
from collective_rules.conformance.summary import headline, left_out, settings_line
from collective_rules.sandbox import DIES, HANGS, OK, RAISES

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --line: #d0d7de; --soft: #f6f8fa;
  --good: #c8ecd0; --note: #e3e8ee; --mild: #fdeeb8; --bad: #f9c6c2; --worse: #e7bdf0; --mark: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #3d444d; --soft: #161b22;
  --good: #16432a; --note: #2a313c; --mild: #4d3d0c; --bad: #6b1f22; --worse: #4f2160; --mark: #e3b341; } }
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 76rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: .75rem 0 1.5rem; }
.wide { overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .2rem .6rem; text-align: center; }
th { background: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
code, pre, td:first-child { font-family: ui-monospace, SFMono-Regular, Menlo, monospace; font-size: 13px; }
pre { background: var(--soft); border: 1px solid var(--line); padding: .75rem; overflow-x: auto; }
.good { background: var(--good); } .note { background: var(--note); } .mild { background: var(--mild); }
.bad { background: var(--bad); } .worse { background: var(--worse); }
.otherwise { outline: 2px dashed var(--mark); outline-offset: -3px; }
.legend span { display: inline-block; padding: 0 .6rem; margin: 0 .4rem .3rem 0; }
summary { cursor: pointer; }
"""

_BROKEN = {RAISES: "good", HANGS: "mild", DIES: "bad", "accepted": "worse"}
_KINDS = {OK: ("good", "yes"), RAISES: ("note", "no"), HANGS: ("mild", "hangs"), DIES: ("bad", "dies")}
_KINDS |= {"not tried": ("", "?"), "undefined": ("note", "undefined"), "refused": ("note", "no")}
_WRONG = ("bad", "wrong")


def page(found: Conformance, kinds: Sequence[tuple[list[str], tuple[KindResult, ...]]]) -> str:
    """Return the page; `kinds` are the ops of which the same was measured, and what."""
    title = escape(f"Conformance of {found.backend}")
    parts = [
        f"<h1>{title}</h1>",
        f"<p><strong>{escape(headline(found))}</strong></p>",
        f"<p>{escape(settings_line(found))}</p>",
        "<h2>Ops</h2>",
        "<p>How many legal calls passed, and what became of broken ones.</p>",
        _legend([(css, name) for name, css in _BROKEN.items()]),
        _matrix(found),
    ]
    if kinds:
        marks = [*_KINDS.values(), _WRONG, ("otherwise", "the table of limits says otherwise")]
        parts += ["<h2>dtypes and reduce ops</h2>", _legend([mark for mark in marks if mark[0]])]
        parts += [_kinds(ops, own) for ops, own in kinds]
    if found.failures:
        parts += ["<h2>What fails</h2>", *map(_failure, found.failures)]
    ways = [_ways(op) for op in found.ops if op.ways]
    if ways:
        parts += ["<h2>Ways to break a call</h2>", *ways]
    if found.left_out:
        lines = "".join(f"<li>{escape(line)}</li>" for line in left_out(found))
        parts += ["<h2>Left out</h2>", f"<ul>{lines}</ul>"]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head>",
            "<body>",
            *parts,
            "</body>",
            "</html>",
            "",
        ]
    )


def _legend(entries: Iterable[tuple[str, str]]) -> str:
    shown = dict.fromkeys(f'<span class="{css}">{escape(name)}</span>' for css, name in entries)
    return f'<p class="legend">{"".join(shown)}</p>'


def _row(cells: Iterable[tuple[str, str]], tag: str = "td") -> str:
    return "<tr>" + "".join(_cell(text, css, tag) for text, css in cells) + "</tr>"


def _cell(text: str, css: str = "", tag: str = "td", title: str = "") -> str:
    given = (f' class="{css}"' if css else "") + (f' title="{escape(title)}"' if title else "")
    return f"<{tag}{given}>{escape(text)}</{tag}>"


def _table(head: Sequence[str], rows: Iterable[str]) -> str:
    top = _row([(text, "") for text in head], "th")
    return f'<div class="wide"><table><thead>{top}</thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>'


def _matrix(found: Conformance) -> str:
    return _table(
        ("op", "verdict", "legal passed", *(f"broken: {each}" for each in BROKEN_OUTCOMES)), map(_op, found.ops)
    )


def _op(op: OpResult) -> str:
    css = {"conforms": "good", "fails": "bad"}.get(op.verdict, "note")
    tried = op.passed + op.failed
    legal = f"{op.passed}/{tried}" if tried else "–"
    if op.skipped:
        legal += f" ({op.skipped} given up)"
    cells = [_cell(op.op), _cell(op.verdict, css, title=op.unsupported), _cell(legal, css if tried else "")]
    cells += [_cell(str(op.broken[each] or "–"), _BROKEN[each] if op.broken[each] else "") for each in BROKEN_OUTCOMES]
    return f"<tr>{''.join(cells)}</tr>"


def _kinds(ops: Sequence[str], kinds: Sequence[KindResult]) -> str:
    reduce_ops = list(dict.fromkeys(kind.reduce_op for kind in kinds))
    by_kind = {(kind.reduce_op, kind.dtype): kind for kind in kinds}
    rows = []
    for dtype in dict.fromkeys(kind.dtype for kind in kinds):
        cells = [_kind(by_kind[reduce_op, dtype]) for reduce_op in reduce_ops]
        rows.append(f"<tr>{_cell(dtype)}{''.join(cells)}</tr>")
    named = ", ".join(f"<code>{escape(op)}</code>" for op in ops)
    return f"<p>{named}</p>" + _table(("dtype", *(reduce_op or "taken" for reduce_op in reduce_ops)), rows)


def _kind(kind: KindResult) -> str:
    css, text = _KINDS.get(kind.outcome, _WRONG)
    if not kind.agrees:
        css, text = f"{css} otherwise", f"{text}, table: {'yes' if kind.table else 'no'}"
    return _cell(text, css, title=kind.message)


def _failure(failure: Failure) -> str:
    how = "the smallest that was found" if failure.shrunk else "not shrunk to the end"
    alone = "" if failure.alone is not False else "; it fails only after other calls"
    head = f"<h3><code>{escape(failure.op)}</code>: {escape(failure.outcome)}</h3>"
    return f"{head}<p>In {failure.tries} tries, {how}{alone}.</p><pre><code>{escape(failure.reproducer)}</code></pre>"


def _ways(op: OpResult) -> str:
    rows = [
        "<tr>"
        + _cell(way.way)
        + _cell(" ".join(way.ids))
        + "".join(
            _cell(str(way.counts.get(each, 0) or "–"), _BROKEN[each] if way.counts.get(each) else "")
            for each in BROKEN_OUTCOMES
        )
        + "</tr>"
        for way in op.ways
    ]
    table = _table(("what is broken", "violates", *BROKEN_OUTCOMES), rows)
    return f"<details><summary><code>{escape(op.op)}</code></summary>{table}</details>"
