"""The report as Markdown, with the tables of GitHub's dialect."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from collective_rules.reports.modules import tree
from collective_rules.reports.sections import findings, group_table, headline, notes, op_table, phase_table
from collective_rules.text_table import Table

if TYPE_CHECKING:
    from collective_rules.ledger import Ledger

__all__ = ["escaped", "fenced", "markdown", "table_lines"]


def markdown(ledger: Ledger) -> str:
    """Return the report as Markdown; names from the program are shown as they are, never read as markup.

    >>> from collective_rules.ledger import Ledger
    >>> print(markdown(Ledger()))
    # Communication
    <BLANKLINE>
    No collective was called.
    <BLANKLINE>
    """
    parts = ["# Communication"]
    found = findings(ledger)
    if found:
        parts += ["## Findings", escaped(found[0]), *map(fenced, found[1:])]
    if ledger.count:
        parts.append(escaped(headline(ledger)))
        for table in (op_table(ledger), phase_table(ledger), group_table(ledger)):
            parts += [f"## {escaped(table.title)}", "\n".join(table_lines(table))]
        parts += ["## By module", fenced(tree(ledger))]
    else:
        parts.append("No collective was called.")
    return "\n\n".join([*parts, *map(escaped, notes(ledger))]) + "\n"


def table_lines(table: Table) -> Iterator[str]:
    """Yield the lines of a table."""
    yield _line(table.columns)
    yield _line(tuple("---:" if column in table.right else "---" for column in table.columns))
    for row in table.rows:
        yield _line(tuple(map(escaped, row)))


def _line(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def escaped(text: str) -> str:
    """Return text without what Markdown or HTML would read as markup, on one line."""
    plain = escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_|\[\]~])", r"\\\1", plain)


def fenced(text: str) -> str:
    """Return a block of code, its fence longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
