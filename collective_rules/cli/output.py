"""The report that a command returns, and the options that several commands share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import attrs
import typer

from collective_rules.text_table import Table

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Backend = Annotated[str | None, typer.Option(help="Check this backend's own limits, too, such as gloo.")]
ContextCalls = Annotated[int, typer.Option(min=0, help="Calls to show before and after the place where ranks part.")]
ReportFiles = Annotated[
    list[str] | None, typer.Option(help="Also write a report to a file .html, .md or .json. Repeatable.")
]


class CommandError(Exception):
    """The command could not be carried out; the message says why in one line."""


@attrs.frozen
class Report:
    """The result of a command: `data` for `--json`, `blocks` for people, and the exit status."""

    data: Mapping[str, Any]
    blocks: tuple[str | Table, ...]
    as_json: bool = False
    status: int = 0


def suggestion(wrong: str, names: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" with the one of `names` that is nearest to `wrong`, or nothing.

    >>> suggestion("bfloat61", ["float32", "bfloat16"])
    "; did you mean 'bfloat16'?"
    """
    near = difflib.get_close_matches(wrong, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
