"""A comparison as one page of HTML: nothing is loaded, no script is needed, readable in light and in dark."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from collective_rules.comparison.compare import Comparison
from collective_rules.comparison.context import Column, Context, Divergence, Line
from collective_rules.comparison.text import context_title, divergence_title, file_table, finding_text, headline
from collective_rules.finding import Finding
from collective_rules.messages import ranks_text
from collective_rules.reports.style import STYLE
from collective_rules.reports.wording import cut, plural
from collective_rules.text_table import Table

__all__ = ["page"]

_MOST_FINDINGS, _MOST_GROUPS, _MOST_COLUMNS, _MOST_CONTEXTS, _MOST_FILES = 200, 40, 16, 8, 2000
_LONGEST = 160

_STYLE = """
.warning { border-left-color: #bf8700; } .undecidable { border-left-color: var(--dim); }
pre.finding b { font-weight: 600; }
tr.here td, tr.here th { background: var(--soft); font-weight: 600;
  box-shadow: inset 0 2px var(--frame), inset 0 -2px var(--frame); }
:root { --odd: #cf222e; } @media (prefers-color-scheme: dark) { :root { --odd: #ff7b72; } }
th.odd { color: var(--odd); } tr.here td.odd { background: var(--bad); }
td .from { display: block; color: var(--dim); font-weight: 400; } tr.here td.odd .from { color: inherit; }
td.nothing { color: var(--dim); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; } details h3 { margin-top: .8rem; }
details.around { margin: .8rem 0; } details.around summary { font-size: 1rem; }
"""


def page(found: Comparison) -> str:
    """Return the whole page: what is wrong, where each group first parts, the files; its size has a bound."""
    title = "Comparison of ranks"
    parts = [f"<h1>{title}</h1>", f"<p><strong>{escape(headline(found))}</strong></p>", *_findings(found.findings)]
    for each in found.divergences[:_MOST_GROUPS]:
        parts += _divergence(each)
    left = len(found.divergences) - _MOST_GROUPS
    if left > 0:
        parts.append(f'<p class="note">… and {plural(left, "more group")} that part</p>')
    parts += [f'<p class="note">{escape(note)}</p>' for note in found.notes]
    parts += ["<h2>Files</h2>", _table(file_table(found, _MOST_FILES))]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            f'<head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}{_STYLE}</style></head>",
            "<body>",
            *parts,
            "</body>",
            "</html>",
            "",
        ]
    )


def _findings(findings: tuple[Finding, ...]) -> Iterator[str]:
    if findings:
        yield f"<h2>{plural(len(findings), 'finding')}</h2>"
    for each in findings[:_MOST_FINDINGS]:
        first, _, rest = finding_text(each).partition("\n")
        yield f'<pre class="finding {each.severity}"><b>{escape(first)}</b>\n{escape(rest)}</pre>'
    if len(findings) > _MOST_FINDINGS:
        yield f'<p class="note">… and {len(findings) - _MOST_FINDINGS} more; the JSON has them all</p>'


def _divergence(found: Divergence) -> Iterator[str]:
    yield f"<h2>{escape(divergence_title(found))}</h2>"
    yield f"<p>{escape(found.verdict)}</p>"
    if found.columns:
        yield _side_by_side(found)
    contexts = "".join(map(_context, found.contexts[:_MOST_CONTEXTS]))
    left = len(found.contexts) - _MOST_CONTEXTS
    if left > 0:
        contexts += f'<p class="note">… and {left} more kinds of ranks</p>'
    if contexts:
        opened = "" if found.columns else " open"
        yield (
            f'<details class="around"{opened}><summary>What each rank does then, in all groups</summary>'
            f"{contexts}</details>"
        )


def _side_by_side(found: Divergence) -> str:
    # The odd ones first: of many ranks, they must not be the ones that are cut.
    columns = sorted(found.columns, key=lambda column: not column.odd)[:_MOST_COLUMNS]
    columns.sort(key=lambda column: column.ranks)
    heads = "".join(
        f'<th{_odd(column)} title="{escape(ranks_text(column.ranks))}">{escape(cut(ranks_text(column.ranks), 40))}</th>'
        for column in columns
    )
    rows = "\n".join(
        f'<tr{" class=here" if row == found.index else ""}><th class="right">{row}</th>'
        + "".join(_cell(column.calls[place], _odd(column)) for column in columns)
        + "</tr>"
        for place, row in enumerate(found.rows)
    )
    left = len(found.columns) - len(columns)
    more = f'<p class="note">… and {left} more kinds of ranks</p>' if left else ""
    head = f'<thead><tr><th class="right">collective</th>{heads}</tr></thead>'
    return f'<div class="wide"><table>{head}<tbody>\n{rows}\n</tbody></table></div>{more}'


def _odd(column: Column) -> str:
    return ' class="odd"' if column.odd else ""


def _cell(line: Line | None, css: str) -> str:
    if line is None:
        return f"<td{css or ' class=nothing'}>–</td>"
    source = f'<span class="from">{escape(cut(line.source, 60))}</span>' if line.source else ""
    return f"<td{css}>{escape(cut(line.call, _LONGEST))}{source}</td>"


def _context(context: Context) -> str:
    rows = "\n".join(
        f"<tr{' class=here' if line.here else ''}>"
        f'<th class="right">{"" if line.place is None else line.place}</th>'
        f"<td{_odd_here(context, line)}>{escape(cut(line.call, _LONGEST))}</td>"
        f"<td>{escape(cut(line.group, 40))}</td><td>{escape(cut(line.source, 80))}</td></tr>"
        for line in context.lines
    )
    head = '<thead><tr><th class="right">call</th><th>what</th><th>group</th><th>line</th></tr></thead>'
    table = f'<div class="wide"><table>{head}<tbody>\n{rows}\n</tbody></table></div>'
    return f"<h3>{escape(context_title(context))}</h3>{table}"


def _odd_here(context: Context, line: Line) -> str:
    return ' class="odd"' if context.odd and line.here else ""


def _table(table: Table) -> str:
    right = [' class="right"' if column in table.right else "" for column in table.columns]
    head = "".join(f"<th{css}>{escape(text)}</th>" for text, css in zip(table.columns, right, strict=True))
    rows = "\n".join(
        "<tr>" + "".join(f"<td{css}>{escape(text)}</td>" for text, css in zip(row, right, strict=True)) + "</tr>"
        for row in table.rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'
