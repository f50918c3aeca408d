"""Rows and columns of text, as data: what a command or a report shows, before anyone lays it out."""

from __future__ import annotations

import attrs


@attrs.frozen
class Table:
    """Rows of text under `columns`; without columns, a list of names and what they are.

    `right` names the columns of numbers, which end in line.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    right: frozenset[str] = frozenset()


def visible(text: str) -> str:
    r"""Return `text` as one line in which nothing acts on a terminal or page: what is not printed is escaped.

    >>> print(visible("a\nb\x1b[31m"))
    a\nb\x1b[31m
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
