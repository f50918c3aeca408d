"""`collective-rules compare`: what recordings of several ranks say together.

`--json` prints, and `--report` writes into a file that ends in .json, what `comparison.as_json` describes.
"""

from __future__ import annotations

from typing import Annotated

import typer

from collective_rules.cli.output import AsJson, Backend, ContextCalls, Report, ReportFiles

__all__ = ["compare_recordings"]


def compare_recordings(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Recordings, one for each rank, or a folder of them: ledgers, Flight Recorder dumps, Kineto traces, "
            "execution traces, also gzipped.",
        ),
    ],
    backend: Backend = None,
    world_size: Annotated[
        int | None, typer.Option(min=1, help="The number of ranks, where the files do not tell.")
    ] = None,
    context: ContextCalls = 3,
    report: ReportFiles = None,
    as_json: AsJson = False,
) -> Report:
    """Compare what several ranks recorded, and show where they first part."""
    from collective_rules.backends import limits_of
    from collective_rules.comparison import as_json as as_data
    from collective_rules.comparison import blocks, compare, read_all, write
    from collective_rules.ops import lookup
    from collective_rules.pages import must_be_writable

    limits_of(backend, lookup("c10d::barrier"))  # refuses a backend that is not known
    for path in report or ():
        must_be_writable(path)
    recordings, findings, notes = read_all(paths, world_size)
    found = compare(recordings, backend, findings=findings, notes=notes, context=context)
    for path in report or ():
        write(found, path)
    return Report(as_data(found), blocks(found), as_json, int(found.is_wrong))
