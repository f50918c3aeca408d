"""What a command answers, before it is written: an object for `--json`, and blocks of text and tables for people."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from collective_rules.text_table import Table

__all__ = ["CommandError", "Report", "suggestion"]


class CommandError(Exception):
    """The command could not be carried out; the message says why in one line."""


@attrs.frozen
class Report:
    """A command's answer: `data` for `--json`, `blocks` for people, and the exit status."""

    data: Mapping[str, Any]
    blocks: tuple[str | Table, ...]
    as_json: bool = False
    status: int = 0


def suggestion(wrong: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known name that is nearest to `wrong`, or nothing.

    >>> suggestion("bfloat61", ["float32", "bfloat16"])
    "; did you mean 'bfloat16'?"
    """
    near = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
