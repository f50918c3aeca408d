"""Writes a report: rich tables on a terminal, plain aligned text into a pipe or a file, or one JSON object.

Nothing is cut: a terminal folds long cells, and a pipe gets whole lines. Names come from programs: their control
characters are escaped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from collective_rules.cli.output import Report
from collective_rules.text_table import Table, visible


def render(report: Report) -> None:
    """Write `report` to standard output."""
    if report.as_json:
        sys.stdout.write(json.dumps(report.data, indent=2) + "\n")
    elif sys.stdout.isatty():
        _on_terminal(report)
    else:
        sys.stdout.write(plain(report))


def plain(report: Report) -> str:
    """Return `report` as aligned text without colours or boxes, its blocks apart by an empty line."""
    return "\n".join("".join(f"{line}\n" for line in _lines(block)) for block in report.blocks)


def _lines(block: str | Table) -> Iterator[str]:
    if isinstance(block, str):
        yield from map(visible, block.splitlines())
        return
    if block.title:
        yield block.title
    rows = [tuple(map(visible, row)) for row in ((block.columns,) if block.columns else ()) + block.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [bool(block.columns) and block.columns[place] in block.right for place in range(len(widths))]
    indent = "  " if block.title else ""
    for row in rows:
        cells = zip(row, widths, right, strict=True)
        padded = [f"{cell:>{width}}" if to_right else f"{cell:<{width}}" for cell, width, to_right in cells]
        yield (indent + "  ".join(padded)).rstrip()


def _on_terminal(report: Report) -> None:
    # rich takes as long to import as typer, and a pipe never needs it.
    import rich.console
    import rich.padding
    import rich.table
    import rich.text

    # Text, never markup: `outputs[p]` is no tag.
    console = rich.console.Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    for place, block in enumerate(report.blocks):
        if place:
            console.print()
        if isinstance(block, str):
            console.print(rich.text.Text("\n".join(map(visible, block.splitlines()))), soft_wrap=True)
            continue
        if block.title:
            console.print(rich.text.Text(block.title, style="bold"))
        table = rich.table.Table(box=None, padding=(0, 2, 0, 0), show_header=bool(block.columns), header_style="bold")
        for column in block.columns or [""] * len(block.rows[0]):
            table.add_column(column, justify="right" if column in block.right else "left", overflow="fold")
        for row in block.rows:
            table.add_row(*(rich.text.Text(visible(cell)) for cell in row))
        console.print(rich.padding.Padding(table, (0, 0, 0, 2 if block.title else 0)))
