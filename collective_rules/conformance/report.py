"""Writes the results of a conformance run as tables of text, as Markdown, and as files.

It decides the rows of each table. `page` writes HTML.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from collective_rules.conformance.page import page
from collective_rules.conformance.results import BROKEN_OUTCOMES, Conformance, Failure, KindResult, OpResult
from collective_rules.conformance.summary import headline, left_out, settings_line
from collective_rules.errors import CallError
from collective_rules.sandbox import DIES, HANGS, SILENTLY_WRONG

__all__ = ["WRITERS", "Grid", "kind_grids", "markdown", "matrix", "must_be_writable", "write"]

_NONE = "–"


@attrs.frozen
class Grid:
    """Rows of text under columns."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def matrix(found: Conformance) -> Grid:
    """Return the op × outcome matrix: how many legal calls passed, and the outcomes of the broken ones."""
    rows = tuple(
        (op.op, op.verdict, _share(op), *(_count(op.broken[each]) for each in BROKEN_OUTCOMES)) for op in found.ops
    )
    return Grid("", ("op", "verdict", "legal passed", *(f"broken {each}" for each in BROKEN_OUTCOMES)), rows)


def _share(op: OpResult) -> str:
    if not op.passed + op.failed:
        return _NONE
    skipped = f" ({op.skipped} given up)" if op.skipped else ""
    return f"{op.passed}/{op.passed + op.failed}{skipped}"


def _count(number: int) -> str:
    return str(number) if number else _NONE


def kind_grids(found: Conformance) -> list[Grid]:
    """Return the dtypes and reduce ops, in one table for all ops with the same results.

    A row for each set of reduce ops that take the same dtypes: the dtypes that are taken, those with wrong results (or
    none), and those of which the table of limits says otherwise. All others are refused.
    """
    grids = []
    columns = ("reduce op", "takes", "gets wrong", "the table says otherwise of")
    for ops, kinds in alike(found):
        rows: dict[tuple[str, ...], list[str]] = {}
        for reduce_op in dict.fromkeys(kind.reduce_op for kind in kinds):
            own = [kind for kind in kinds if kind.reduce_op == reduce_op]
            rows.setdefault(_row(own), []).append(reduce_op or _NONE)
        grids.append(Grid(", ".join(ops), columns, tuple((", ".join(names), *row) for row, names in rows.items())))
    return grids


def alike(found: Conformance) -> list[tuple[list[str], tuple[KindResult, ...]]]:
    """Return the ops with the same results of dtypes and reduce ops, and those results."""
    groups: dict[tuple[tuple[str, str, str, bool], ...], tuple[list[str], tuple[KindResult, ...]]] = {}
    for op in found.ops:
        if op.kinds:
            picture = tuple((kind.reduce_op, kind.dtype, kind.outcome, kind.agrees) for kind in op.kinds)
            groups.setdefault(picture, ([], op.kinds))[0].append(op.op)
    return list(groups.values())


def _row(kinds: Sequence[KindResult]) -> tuple[str, ...]:
    def named(fits: Callable[[KindResult], bool]) -> str:
        return " ".join(kind.dtype for kind in kinds if fits(kind)) or _NONE

    return (
        named(lambda kind: kind.taken),
        named(lambda kind: kind.outcome in (SILENTLY_WRONG, HANGS, DIES)),
        named(lambda kind: not kind.agrees),
    )


# -- Markdown


def markdown(found: Conformance) -> str:
    """Return the report as Markdown."""
    blocks = [
        f"# Conformance of {found.backend}",
        headline(found),
        settings_line(found),
        "## Ops",
        _table(matrix(found)),
    ]
    grids = kind_grids(found)
    if grids:
        blocks += ["## dtypes and reduce ops"]
        for grid in grids:
            blocks += [", ".join(f"`{op}`" for op in grid.title.split(", ")), _table(grid)]
    if found.failures:
        blocks += ["## What fails", *(_failure(failure) for failure in found.failures)]
    if found.left_out:
        blocks += ["## Left out", "\n".join(f"- {line}" for line in left_out(found))]
    return "\n\n".join(blocks) + "\n"


def _table(grid: Grid) -> str:
    lines = [grid.columns, tuple("---" for _ in grid.columns), *grid.rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    quoted = f"`{text}`" if "::" in text else text
    return quoted.replace("|", "\\|")


def _failure(failure: Failure) -> str:
    return f"### `{failure.op}`: {failure.outcome}\n\n```python\n{failure.reproducer.rstrip()}\n```"


# -- files


def _json(found: Conformance) -> str:
    return json.dumps(found.as_data(), indent=2) + "\n"


def _html(found: Conformance) -> str:
    return page(found, alike(found))


WRITERS: Mapping[str, Callable[[Conformance], str]] = {".md": markdown, ".json": _json, ".html": _html}
"""The suffixes of the files that can be written, and their writers."""


def must_be_writable(paths: Iterable[str]) -> None:
    """Raise `CallError` for a file that could not be written: a whole run would be lost.

    >>> must_be_writable(["report.pdf"])
    Traceback (most recent call last):
    collective_rules.errors.CallError: report.pdf: a report is a file that ends in .md, .json or .html
    """
    for path in map(Path, paths):
        if path.suffix not in WRITERS:
            raise CallError(f"{path}: a report is a file that ends in .md, .json or .html")
        place = path if path.exists() or path.is_symlink() else path.parent
        if not os.access(place, os.W_OK) or path.is_dir():
            raise CallError(f"{path}: {_why_not_writable(path)}")


def _why_not_writable(path: Path) -> str:
    if path.is_dir():
        return "it is a folder"
    return "it may not be written" if path.exists() or path.parent.is_dir() else f"there is no folder {path.parent}"


def write(found: Conformance, path: str) -> None:
    """Write the report to a file, as its suffix says."""
    Path(path).write_text(WRITERS[Path(path).suffix](found), encoding="utf-8")
