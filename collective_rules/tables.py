"""Rows and columns of text, as data: what a command or a report shows, before anyone lays it out."""

from __future__ import annotations

import attrs

__all__ = ["Table"]


@attrs.frozen
class Table:
    """Rows of text under `columns`; without columns, a list of names and what they are.

    `right` names the columns of numbers, which end in line.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    right: frozenset[str] = frozenset()
