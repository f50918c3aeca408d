"""`collective-rules compare`: compares the recordings of several ranks.

`--json` prints the object that `comparison.as_json` describes; `--report` writes it into a file that ends in .json.
"""

from __future__ import annotations

from typing import Annotated

import typer

from collective_rules.cli.output import AsJson, Backend, ContextCalls, Report, ReportFiles


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
        int | None, typer.Option(min=1, help="The number of ranks, if the files do not have it.")
    ] = None,
    context: ContextCalls = 3,
    report: ReportFiles = None,
    as_json: AsJson = False,
) -> Report:
    """Compare the recordings of several ranks, and show where the ranks first part."""
    from collective_rules.backends import limits_of
    from collective_rules.comparison import as_json as as_data
    from collective_rules.comparison import blocks, compare, read_all, write
    from collective_rules.ops import lookup
    from collective_rules.pages import must_be_writable

    limits_of(backend, lookup("c10d::barrier"))  # refuses an unknown backend
    for path in report or ():
        must_be_writable(path)
    recordings, findings, notes = read_all(paths, world_size)
    comparison = compare(recordings, backend, findings=findings, notes=notes, context=context)
    for path in report or ():
        write(comparison, path)
    return Report(as_data(comparison), blocks(comparison), as_json, int(comparison.is_wrong))
