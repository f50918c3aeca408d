"""A comparison as blocks of text and tables, as Markdown, and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs

from collective_rules.comparison.compare import Comparison
from collective_rules.comparison.context import Context, Divergence, Line
from collective_rules.comparison.names import group_text
from collective_rules.finding import ERROR, UNDECIDABLE, WARNING, Finding
from collective_rules.messages import ranks_text, ranks_verb
from collective_rules.pages.markdown import document, escaped, fenced, table_text
from collective_rules.pages.wording import plural
from collective_rules.text_table import Table

_MOST_FINDINGS, _MOST_GROUPS, _MOST_CONTEXTS, _MOST_FILES = 20, 4, 6, 40
_MARK = "▶"


def headline(comparison: Comparison) -> str:
    """Return in one sentence the calls and ranks that were compared, and the number of findings."""
    counts = Counter(each.severity for each in comparison.findings)
    named = [plural(counts[severity], severity) for severity in (ERROR, WARNING) if counts[severity]]
    if counts[UNDECIDABLE]:
        named.append(f"{counts[UNDECIDABLE]:,} undecidable")
    verdict = ", ".join(named) if named else "nothing is wrong"
    if named and not comparison.is_wrong:
        verdict = f"no error, {verdict}"
    of = f" of {comparison.world_size:,}" if comparison.world_size else ""
    who = f"{ranks_text(comparison.ranks)}{of}" if comparison.ranks else "no rank"
    return f"Compared {plural(comparison.calls, 'call')} of {who}: {verdict}."


def blocks(comparison: Comparison) -> tuple[str | Table, ...]:
    """Return the blocks for a terminal: the findings, where each group first parts, the calls around it, the files."""
    return tuple(_blocks(comparison))


def _blocks(comparison: Comparison) -> Iterator[str | Table]:
    yield headline(comparison)
    yield from (finding_text(each) for each in comparison.findings[:_MOST_FINDINGS])
    if len(comparison.findings) > _MOST_FINDINGS:
        yield f"… and {len(comparison.findings) - _MOST_FINDINGS} more findings; --json has them all"
    for number, each in enumerate(comparison.divergences[:_MOST_GROUPS]):
        if each.columns:
            yield _side_by_side(each)
        # Where other groups part is mostly a consequence of the first: a report has it all.
        for place, context in enumerate(each.contexts[:_MOST_CONTEXTS] if not (number and each.columns) else ()):
            title = context_title(context)
            yield _context(context, title if place or each.columns else f"{divergence_title(each)}. {title}")
        if not number and len(each.contexts) > _MOST_CONTEXTS:
            yield f"… and {len(each.contexts) - _MOST_CONTEXTS} more kinds of ranks"
    if len(comparison.divergences) > _MOST_GROUPS:
        yield f"… and {plural(len(comparison.divergences) - _MOST_GROUPS, 'more group')} that part"
    yield file_table(comparison, _MOST_FILES)
    if comparison.notes:
        yield "\n".join(comparison.notes)


def finding_text(finding: Finding) -> str:
    """Return the finding's message, with its severity."""
    count = f" ×{finding.count:,}" if finding.count > 1 else ""
    return f"{finding.severity}{count}: {finding.message}"


def divergence_title(divergence: Divergence) -> str:
    """Return a title with the place where the group first parts."""
    place = "a message" if divergence.index is None else f"collective {divergence.index}"
    name = group_text(divergence.group)
    return f"{name[0].upper()}{name[1:]} ({ranks_text(divergence.ranks)}) first parts at {place}"


def context_title(context: Context) -> str:
    """Return a title with the context's ranks."""
    return f"What {ranks_verb(context.ranks, 'does')} then, in all groups"


def _side_by_side(divergence: Divergence) -> Table:
    columns = ("", "collective", *(ranks_text(column.ranks) for column in divergence.columns))
    rows = [
        (_MARK * (row == divergence.index), str(row), *(_cell(column.calls[place]) for column in divergence.columns))
        for place, row in enumerate(divergence.rows)
    ]
    return Table(columns, tuple(rows), divergence_title(divergence), frozenset({"collective"}))


def _cell(line: Line | None) -> str:
    return "–" if line is None else f"{line.call}   {line.source}".rstrip()


def _context(context: Context, title: str) -> Table:
    rows = [
        (_MARK * line.here, "" if line.place is None else str(line.place), line.call, line.group, line.source)
        for line in context.lines
    ]
    return Table(("", "call", "what", "group", "line"), tuple(rows), title, frozenset({"call"}))


def file_table(comparison: Comparison, most: int) -> Table:
    """Return a row for each file, at most `most`; notes are a column of their own if there are any."""
    rows = [
        ("?" if file.rank is None else str(file.rank), f"{file.calls:,}", file.format, file.path, file.note)
        for file in comparison.files[:most]
    ]
    left = len(comparison.files) - len(rows)
    width = 5 if any(row[-1] for row in rows) else 4
    columns = ("rank", "calls", "format", "file", "")[:width]
    title = f"Files ({left:,} more are not shown)" if left else "Files"
    return Table(columns, tuple(row[:width] for row in rows), title, frozenset({"rank", "calls"}))


def markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown, in which text from the files is no markup."""
    parts = ["# Comparison of ranks", escaped(headline(comparison))]
    parts += [fenced(finding_text(each)) for each in comparison.findings]
    for each in comparison.divergences:
        parts += [f"## {escaped(divergence_title(each))}", escaped(each.verdict)]
        if each.columns:
            parts.append(table_text(_side_by_side(each)))
        for context in each.contexts[:_MOST_CONTEXTS]:
            parts += [f"### {escaped(context_title(context))}", table_text(_context(context, ""))]
    parts += ["## Files", table_text(file_table(comparison, len(comparison.files))), *map(escaped, comparison.notes)]
    return document(parts)


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as dicts, lists, text and numbers.

    - `world_size`, `ranks` (global, compared), `calls` (how many), `errors`, `warnings`, `undecidable` (how many).
    - `findings`: {`id`, `severity`, `message`, `ranks` (global), `group`, `index`, `count`}.
    - `divergences`: {`group`, `ranks`, `index`, `verdict`, `rows`, `columns`, `contexts`}: of `rows` (indices) each
      column has {`ranks`, `odd`, `calls`: [line or null]}; a context has {`ranks`, `odd`, `lines`}; a line is
      {`place`, `group`, `call`, `source`, `here`}.
    - `files`: {`path`, `format`, `rank`, `world_size`, `calls`, `compared`, `note`}. `notes`: text.

    >>> as_json(Comparison((), (), None, ()))["errors"]
    0
    """
    counts = Counter(each.severity for each in comparison.findings)
    return {
        "world_size": comparison.world_size,
        "ranks": list(comparison.ranks),
        "calls": comparison.calls,
        "errors": counts[ERROR],
        "warnings": counts[WARNING],
        "undecidable": counts[UNDECIDABLE],
        "findings": [attrs.asdict(each, filter=attrs.filters.exclude("names", "op")) for each in comparison.findings],
        "divergences": [attrs.asdict(each) for each in comparison.divergences],
        "files": [attrs.asdict(each) for each in comparison.files],
        "notes": list(comparison.notes),
    }
