"""`collective-rules conformance`: what a backend makes of the collectives.

`--json`, one object, and what `--report` writes into a file that ends in .json:

- `backend`: as it was named. `table`: whose table of limits says what is legal, null where the rules alone do.
- `torch`: its version. `sizes` (of groups), `examples`, `seed`, `deadline`: what was asked for. `seconds`: it took.
- `conforms`: whether some legal call passed and none failed.
- `totals`: {`passed`, `failed`} of legal calls, {`raises`, `hangs`, `dies`, `accepted`} of broken ones.
- `ops`: [{`op`, `rule`, `verdict` ("conforms", "fails", "not supported", "not tried"), `unsupported` (what the backend
  says, or null), `legal`: {`passed`, `failed`, `skipped`, `outcomes`: {outcome: count}}, `broken`: as in `totals`,
  `ways`: [{`way`, `ids` (of the constraints violated), `raises`, `hangs`, `dies`, `accepted`}],
  `kinds`: [{`reduce_op` (or null), `dtype`, `outcome`, `message`, `table` (true, false, or null without one),
  `agrees`}], `failure`: null or {`op`, `outcome`, `message`, `calls` (records, one a rank), `shrunk`, `tries`, `alone`
  (whether it fails in a fresh process), `reproducer` (a program)}}].
- `left_out`: {op: why it was not measured}.

An outcome is "ok", "raises", "hangs", "dies" or "silently wrong"; of `kinds` also "undefined" (it went through, but
torch has no right answer) and "not tried".
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collective_rules.cli.output import Report
from collective_rules.text_table import Table

if TYPE_CHECKING:
    from collective_rules.conformance.results import Conformance
    from collective_rules.conformance.runner import Watch

__all__ = ["measure_backend"]

_NUMBERS = ("legal passed", "broken raises", "broken hangs", "broken dies", "broken accepted")


def measure_backend(
    backend: Annotated[
        str,
        typer.Option(
            help="gloo, fake, threaded, a name registered with torch.distributed, package.module:factory or "
            "/path/to/file.py:factory; a factory is called with (store, rank, size, timeout)."
        ),
    ] = "gloo",
    world_size: Annotated[int, typer.Option(min=1, help="The most ranks of a group; fewer are tried, too.")] = 4,
    ops: Annotated[
        list[str] | None,
        typer.Option(help="Only these ops: names or patterns such as 'c10d::*', also several with commas. Repeatable."),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=1, help="Legal calls of each op; a tenth as many for each way to break one.")
    ] = 20,
    seed: Annotated[int, typer.Option(help="Another number, other calls.")] = 0,
    deadline: Annotated[float, typer.Option(help="Seconds after which a call hangs.")] = 1.0,
    limits: Annotated[
        str | None,
        typer.Option(help="Legal is what this backend's table admits, such as gloo; left out, the backend's own."),
    ] = None,
    report: Annotated[
        list[str] | None, typer.Option(help="Write a report, too: a file .md, .json or .html. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> Report:
    """Measure a backend: which ops, dtypes and reduce ops it takes, and what it makes of broken calls."""
    from collective_rules.conformance.measure import measure
    from collective_rules.conformance.report import must_be_writable

    must_be_writable(report or ())
    patterns = [pattern for text in ops or () for pattern in text.split(",") if pattern]
    with _nothing_left_here(), _progress() as watch:
        found = measure(
            backend,
            ops=patterns,
            world_sizes=range(1, world_size + 1),
            examples=examples,
            seed=seed,
            deadline=deadline,
            limits=limits,
            watch=watch,
        )
    unwritten = list(_unwritten(found, report or ()))
    status = 2 if unwritten else int(not found.conforms)
    return Report(found.as_data(), (*_blocks(found), *unwritten), as_json, status)


def _unwritten(found: Conformance, paths: Iterable[str]) -> Iterator[str]:
    """Write each report; say which could not be: nothing of a finished run may be lost for that."""
    from collective_rules.conformance.report import write

    for path in paths:
        try:
            write(found, path)
        except OSError as error:
            sys.stderr.write(f"collective-rules: {path}: {error.strerror or error}\n")
            yield f"Not written: {path}: {error.strerror or error}"


@contextlib.contextmanager
def _nothing_left_here() -> Iterator[None]:
    """Have hypothesis keep its notes on the code that it runs elsewhere than in the current directory."""
    from hypothesis.configuration import set_hypothesis_home_dir

    with tempfile.TemporaryDirectory() as home:
        set_hypothesis_home_dir(home)
        try:
            yield
        finally:
            set_hypothesis_home_dir(None)


@contextlib.contextmanager
def _progress() -> Iterator[Watch]:
    """A bar for each stage on standard error, if that is a terminal."""
    from collective_rules.conformance.runner import nobody

    if not sys.stderr.isatty():
        yield nobody
        return
    import rich.console
    import rich.progress

    columns: tuple[Any, ...] = (
        rich.progress.TextColumn("{task.description:<22}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    tasks: dict[str, Any] = {}
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as progress:

        def watch(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage)
            progress.update(tasks[stage], completed=done, total=total)

        yield watch


def _blocks(found: Conformance) -> Iterator[str | Table]:
    from collective_rules.conformance.report import kind_grids, matrix
    from collective_rules.conformance.summary import headline, left_out, settings_line

    yield f"{headline(found)}\n{settings_line(found)}"
    grid = matrix(found)
    yield Table(grid.columns, grid.rows, right=frozenset(_NUMBERS))
    for grid in kind_grids(found):
        yield Table(grid.columns, grid.rows, title=f"dtypes of {grid.title}")
    for failure in found.failures:
        yield f"{failure.op} fails. To reproduce it without this library:\n\n{failure.reproducer.rstrip()}"
    if found.left_out:
        yield "\n".join(["Left out:", *(f"  {line}" for line in left_out(found))])
