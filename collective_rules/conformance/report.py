"""A conformance run as tables of text, as Markdown, and as a file.

It decides the rows of each table. `page` writes HTML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from collective_rules.conformance.page import page
from collective_rules.conformance.results import BROKEN_OUTCOMES, Conformance, KindResult
from collective_rules.conformance.summary import (
    NONE,
    alike,
    badge,
    failing_title,
    headline,
    left_out,
    legal_text,
    notes,
    settings_line,
)
from collective_rules.pages import Writer
from collective_rules.pages.markdown import document, escaped, fenced, table_text
from collective_rules.sandbox import DIES, HANGS, OK, SILENTLY_WRONG
from collective_rules.text_table import Table


def matrix(found: Conformance) -> Table:
    """Return the op × outcome matrix: how many legal calls passed, and the outcomes of the broken ones."""
    rows = tuple(
        (op.op, op.verdict, legal_text(op), *(str(op.broken[each] or NONE) for each in BROKEN_OUTCOMES))
        for op in found.ops
    )
    columns = ("op", "verdict", "legal passed", *(f"broken {each}" for each in BROKEN_OUTCOMES))
    return Table(columns, rows, right=frozenset(columns[2:]))


def dtype_matrix(found: Conformance) -> Table:
    """Return the op × dtype matrix: whether the backend takes it; of a reduction, how many of the reduce ops."""
    dtypes = list(dict.fromkeys(kind.dtype for op in found.ops for kind in op.kinds))
    rows = tuple(
        (op.op, *(_cell([kind for kind in op.kinds if kind.dtype == dtype]) for dtype in dtypes))
        for op in found.ops
        if op.kinds
    )
    return Table(("op", *dtypes), rows)


def _cell(kinds: Sequence[KindResult]) -> str:
    wrong = any(kind.outcome in (SILENTLY_WRONG, HANGS, DIES) for kind in kinds)
    taken = sum(kind.outcome == OK for kind in kinds)
    text = NONE if not taken else "yes" if taken == len(kinds) else f"{taken} of {len(kinds)}"
    return f"{text}, wrong" if wrong else text


def kind_tables(found: Conformance) -> list[Table]:
    """Return the dtypes and reduce ops, in one table for all ops with the same results.

    A row for each set of reduce ops that take the same dtypes: the dtypes that are taken, those with wrong results (or
    none), and those of which the table of limits says otherwise. All others are refused.
    """
    tables = []
    columns = ("reduce op", "takes", "gets wrong", "the table says otherwise of")
    for ops, kinds in alike(found):
        rows: dict[tuple[str, ...], list[str]] = {}
        for reduce_op in dict.fromkeys(kind.reduce_op for kind in kinds):
            own = [kind for kind in kinds if kind.reduce_op == reduce_op]
            rows.setdefault(_row(own), []).append(reduce_op or NONE)
        shown = tuple((", ".join(names), *row) for row, names in rows.items())
        tables.append(Table(columns, shown, f"dtypes of {', '.join(ops)}"))
    return tables


def _row(kinds: Sequence[KindResult]) -> tuple[str, ...]:
    def named(fits: Callable[[KindResult], bool]) -> str:
        return " ".join(kind.dtype for kind in kinds if fits(kind)) or NONE

    return (
        named(lambda kind: kind.taken),
        named(lambda kind: kind.outcome in (SILENTLY_WRONG, HANGS, DIES)),
        named(lambda kind: not kind.agrees),
    )


def markdown(found: Conformance) -> str:
    """Return the report as Markdown."""
    parts = [f"# Conformance of {escaped(found.backend)}", badge(found)]
    parts += [*map(escaped, (headline(found), settings_line(found)))]
    parts += ["## Ops", table_text(matrix(found))]
    worth = notes(found)
    if worth:
        parts += ["## Notes", "\n".join(f"- {escaped(line)}" for line in worth)]
    tables = kind_tables(found)
    if tables:
        parts += ["## Matrix", table_text(dtype_matrix(found)), "## dtypes and reduce ops"]
        parts += [part for table in tables for part in (escaped(table.title), table_text(table))]
    if found.failures:
        parts += ["## What fails"]
        for failure in found.failures:
            title = f"### {escaped(failing_title(failure))}: {failure.outcome}"
            parts += [title, fenced(failure.reproducer.rstrip(), "python")]
    if found.left_out:
        parts += ["## Left out", "\n".join(f"- {escaped(line)}" for line in left_out(found))]
    return document(parts)


write = Writer(page, markdown, Conformance.as_data)
