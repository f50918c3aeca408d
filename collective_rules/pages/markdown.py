"""Markdown in GitHub's dialect: names from programs and files are shown as they are, never read as markup."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from collective_rules.text_table import Table


def document(parts: Iterable[str]) -> str:
    """Return the parts with an empty line between each two."""
    return "\n\n".join(parts) + "\n"


def table_text(table: Table) -> str:
    """Return a table without its title."""
    rule = tuple("---:" if column in table.right else "---" for column in table.columns)
    rows = [tuple(map(escaped, row)) for row in table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (table.columns, rule, *rows))


def escaped(text: str) -> str:
    """Return text on one line in which Markdown and HTML read no markup."""
    plain = escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_|\[\]~])", r"\\\1", plain)


def fenced(text: str, language: str = "text") -> str:
    """Return a block of code, its fence longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
