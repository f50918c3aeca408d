"""A comparison as blocks of text and tables, as Markdown, and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from collective_rules.comparison.compare import Comparison, File
from collective_rules.comparison.context import Context, Divergence, Line
from collective_rules.comparison.names import label_text
from collective_rules.finding import SEVERITIES, Finding
from collective_rules.messages import ranks_text
from collective_rules.pages.markdown import document, escaped, fenced, table_text
from collective_rules.pages.wording import plural
from collective_rules.text_table import Table

__all__ = [
    "as_json",
    "blocks",
    "context_title",
    "divergence_title",
    "file_table",
    "finding_text",
    "headline",
    "markdown",
]

_MOST_FINDINGS, _MOST_GROUPS, _MOST_CONTEXTS, _MOST_FILES = 20, 4, 6, 40
_MARK = "▶"


def headline(found: Comparison) -> str:
    """Return in one sentence what was compared, and how many findings there are."""
    counts = Counter(each.severity for each in found.findings)
    named = [plural(counts[severity], severity) for severity in ("error", "warning") if counts[severity]]
    if counts["undecidable"]:
        named.append(f"{counts['undecidable']:,} undecidable")
    verdict = ", ".join(named) if named else "nothing is wrong"
    if named and not found.is_wrong:
        verdict = f"no error, {verdict}"
    of = f" of {found.world_size:,}" if found.world_size else ""
    who = f"{ranks_text(found.ranks)}{of}" if found.ranks else "no rank"
    return f"Compared {plural(found.calls, 'call')} of {who}: {verdict}."


def blocks(found: Comparison) -> tuple[str | Table, ...]:
    """Return what a terminal shows: the findings, where each group first parts, what the ranks did then, the files."""
    return tuple(_blocks(found))


def _blocks(found: Comparison) -> Iterator[str | Table]:
    yield headline(found)
    yield from (finding_text(each) for each in found.findings[:_MOST_FINDINGS])
    if len(found.findings) > _MOST_FINDINGS:
        yield f"… and {len(found.findings) - _MOST_FINDINGS} more findings; --json has them all"
    for number, each in enumerate(found.divergences[:_MOST_GROUPS]):
        if each.columns:
            yield _side_by_side(each)
        # What follows in other groups is mostly what the first one brings about: a report has it all.
        for place, context in enumerate(each.contexts[:_MOST_CONTEXTS] if not (number and each.columns) else ()):
            title = context_title(context)
            yield _context(context, title if place or each.columns else f"{divergence_title(each)}. {title}")
        if not number and len(each.contexts) > _MOST_CONTEXTS:
            yield f"… and {len(each.contexts) - _MOST_CONTEXTS} more kinds of ranks"
    if len(found.divergences) > _MOST_GROUPS:
        yield f"… and {plural(len(found.divergences) - _MOST_GROUPS, 'more group')} that part"
    yield file_table(found, _MOST_FILES)
    if found.notes:
        yield "\n".join(found.notes)


def finding_text(found: Finding) -> str:
    """Return the finding's message, with its severity."""
    count = f" ×{found.count:,}" if found.count > 1 else ""
    return f"{found.severity}{count}: {found.message}"


def divergence_title(found: Divergence) -> str:
    """Return where the group first parts."""
    what = "a message" if found.index is None else f"collective {found.index}"
    name = label_text(found.group)
    return f"{name[0].upper()}{name[1:]} ({ranks_text(found.ranks)}) first parts at {what}"


def context_title(context: Context) -> str:
    """Return whose calls they are."""
    does = "does" if len(context.ranks) == 1 else "do"
    return f"What {ranks_text(context.ranks)} {does} then, in all groups"


def _side_by_side(found: Divergence) -> Table:
    columns = ("", "collective", *(ranks_text(column.ranks) for column in found.columns))
    rows = tuple(
        (
            _MARK if row == found.index else "",
            str(row),
            *(_cell(column.calls[place]) for column in found.columns),
        )
        for place, row in enumerate(found.rows)
    )
    return Table(columns, rows, divergence_title(found), frozenset({"collective"}))


def _cell(line: Line | None) -> str:
    if line is None:
        return "–"
    return f"{line.call}   {line.source}" if line.source else line.call


def _context(context: Context, title: str) -> Table:
    rows = tuple(
        (
            _MARK if line.here else "",
            "" if line.place is None else str(line.place),
            line.call,
            line.group,
            line.source,
        )
        for line in context.lines
    )
    return Table(("", "call", "what", "group", "line"), rows, title, frozenset({"call"}))


def file_table(found: Comparison, most: int) -> Table:
    """Return a row for each file, at most so many."""
    rows = tuple(map(_file_row, found.files[:most]))
    left = len(found.files) - len(rows)
    title = f"Files ({left:,} more are not shown)" if left else "Files"
    if not any(row[-1] for row in rows):
        return Table(("rank", "calls", "format", "file"), tuple(row[:-1] for row in rows), title, _NUMBERS)
    return Table(("rank", "calls", "format", "file", ""), rows, title, _NUMBERS)


_NUMBERS = frozenset({"rank", "calls"})


def _file_row(file: File) -> tuple[str, ...]:
    return ("?" if file.rank is None else str(file.rank), f"{file.calls:,}", file.format, file.path, file.note)


def markdown(found: Comparison) -> str:
    """Return the comparison as Markdown; what the files hold is shown as it is, never read as markup."""
    parts = ["# Comparison of ranks", escaped(headline(found))]
    parts += [fenced(finding_text(each)) for each in found.findings]
    for each in found.divergences:
        parts += [f"## {escaped(divergence_title(each))}", escaped(each.verdict)]
        if each.columns:
            parts.append(table_text(_side_by_side(each)))
        for context in each.contexts[:_MOST_CONTEXTS]:
            parts += [f"### {escaped(context_title(context))}", table_text(_context(context, ""))]
    parts += ["## Files", table_text(file_table(found, len(found.files))), *map(escaped, found.notes)]
    return document(parts)


def as_json(found: Comparison) -> dict[str, Any]:
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
    counts = Counter(each.severity for each in found.findings)
    names = dict(zip(SEVERITIES, ("errors", "warnings", "undecidable"), strict=True))
    return {
        "world_size": found.world_size,
        "ranks": list(found.ranks),
        "calls": found.calls,
        **{name: counts[severity] for severity, name in names.items()},
        "findings": [_finding(each) for each in found.findings],
        "divergences": [_data(each) for each in found.divergences],
        "files": [_data(each) for each in found.files],
        "notes": list(found.notes),
    }


def _finding(found: Finding) -> dict[str, Any]:
    told = ("id", "severity", "message", "ranks", "group", "index", "count")
    return {name: _data(getattr(found, name)) for name in told}


def _data(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_data(item) for item in value]
    if hasattr(value, "__attrs_attrs__"):
        return {field.name: _data(getattr(value, field.name)) for field in value.__attrs_attrs__}
    return value
