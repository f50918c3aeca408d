"""`collective-rules conformance`: measures a backend against the rules.

Its ranks are threads of one process, processes that it starts, or, under torchrun, the processes of the job.

`--json`, one object, and what `--report` writes into a file that ends in .json:

- `backend`: as it was named. `table`: whose table of limits says what is legal, null where the rules alone do.
- `torch`: its version. `sizes` (of groups), `ranks` ("threads" or "processes"), `device`, `examples`, `seed`,
  `deadline`: the settings. `seconds`: how long it took.
- `conforms`: whether a legal call passed, none failed that was not expected to, and the run was complete. `ended`: why
  it ended early, or null. `verdict`: "conforms", "conforms within what it declares" or "does not conform".
- `totals`: {`passed`, `failed`} of legal calls, {`raises`, `hangs`, `dies`, `accepted`} of broken ones.
- `ops`: [{`op`, `rule`, `verdict` ("conforms", "fails", "fails as expected", "not supported", "not tried"),
  `unsupported` (what the backend says, or null),
  `legal`: {`passed`, `failed`, `skipped`, `outcomes`: {outcome: count}}, `broken`: as in `totals`,
  `optional`: {outcome: count} of calls that a backend may take or not, `expected` (why it should fail, or null),
  `ways`: [{`way`, `ids` (of the constraints violated), `raises`, `hangs`, `dies`, `accepted`, `right` (accepted, with
  the values that the rule says)}],
  `kinds`: [{`reduce_op` (or null), `dtype`, `outcome`, `message`, `table` (true, false, or null without one),
  `agrees`}], `failures`: [{`op`, `outcome`, `message`, `calls` (records, one a rank), `shrunk`, `tries`, `alone`
  (whether it fails in a fresh process; null: not tried), `reproducer` (a program), `claim` (what the table admits and
  the backend does not take, or "")}]}].
- `left_out`: {op: why it was not measured}. `notes`: [what is worth a look and no failure: a table that declares less
  than the backend takes, an expected failure that passes].

The exit status is 0 where the backend conforms, 1 where it does not, and 2 where the run, or a report, was impossible.

An outcome is "ok", "raises", "hangs", "dies" or "silently wrong"; of `kinds` also "undefined" (it went through, but
torch has no right answer) and "not tried".
"""

from __future__ import annotations

import contextlib
import functools
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from collective_rules.cli.output import AsJson, CommandError, Report, ReportFiles
from collective_rules.cli.progress import progress_bars
from collective_rules.errors import CollectiveRulesError
from collective_rules.text_table import Table

if TYPE_CHECKING:
    from collective_rules.conformance.process_runner import Ranks
    from collective_rules.conformance.results import Conformance

RanksAre = Literal["threads", "processes", "torchrun"]


def measure_backend(
    backend: Annotated[
        str,
        typer.Option(
            help="gloo, fake, threaded, a name registered with torch.distributed, package.module:factory or "
            "/path/to/file.py:factory; a factory is called with (store, rank, size, timeout)."
        ),
    ] = "gloo",
    world_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The most ranks of a group: 4 if left out, and on a device as many as there are. Fewer are tried, "
            "too, but not where ranks are processes on the CPU.",
        ),
    ] = None,
    ranks: Annotated[
        RanksAre | None,
        typer.Option(
            help="What each rank is: a thread, a process that is started here, or a process of torchrun's; left out, "
            "threads, but under torchrun its processes, and processes for a device. Processes take any backend, and "
            "make legal calls only."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where the ranks' tensors are: cpu or, with processes, an accelerator such as cuda.")
    ] = "cpu",
    select: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these ops, by names or patterns such as 'c10d::*', and only calls that break these constraints "
            "or limits, by ids such as AG7; also several with commas. Repeatable."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Not these ops, and no calls that break these ids. Repeatable.")
    ] = None,
    expect_failure: Annotated[
        list[str] | None,
        typer.Option(metavar="OP=REASON", help="An op (or pattern) that fails, and why: no failure then. Repeatable."),
    ] = None,
    expected_failures: Annotated[
        str | None, typer.Option(metavar="FILE", help="A file with a line OP=REASON for each expected failure.")
    ] = None,
    examples: Annotated[
        int, typer.Option(min=1, help="Legal calls of each op; a tenth as many for each way to break one.")
    ] = 20,
    seed: Annotated[int, typer.Option(help="Another number, other calls.")] = 0,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds after which a call hangs: 1 if left out, with processes 30.")
    ] = None,
    limits: Annotated[
        str | None,
        typer.Option(
            help="Whose table says which calls are legal: a backend with one, package.module:TABLE or "
            "/path/to/file.py:TABLE. Left out, the tested backend's own, if it has one."
        ),
    ] = None,
    junit: Annotated[str | None, typer.Option(metavar="FILE", help="Also write JUnit XML to a file.")] = None,
    report: ReportFiles = None,
    as_json: AsJson = False,
) -> Report:
    """Measure a backend: which ops, dtypes and reduce ops it takes, and what it does with broken calls."""
    from collective_rules.conformance import torchrun
    from collective_rules.conformance.measure import measure
    from collective_rules.conformance.selection import expected_failures_in
    from collective_rules.pages import must_be_in_folder, must_be_writable

    alone: RanksAre = "threads" if device == "cpu" else "processes"
    workers: RanksAre = ranks or ("torchrun" if torchrun.is_launched() else alone)
    seconds = deadline if deadline is not None else 1.0 if workers == "threads" else 30.0
    sizes, start = _sizes_and_ranks(workers, backend, world_size, seconds, device)
    if workers == "torchrun" and torchrun.is_follower():
        torchrun.follow(seconds, backend, device)
        raise typer.Exit
    for path in report or ():
        must_be_writable(path)
    if junit is not None:
        must_be_in_folder(junit)
    expected = dict(expected_failures_in([*_lines(expected_failures), *(expect_failure or ())]))
    with _nothing_left_here(), progress_bars() as watch:
        result = measure(
            backend,
            select=_parts(select),
            ignore=_parts(ignore),
            expect_failures=expected,
            world_sizes=sizes,
            examples=examples,
            seed=seed,
            deadline=seconds,
            limits=limits,
            ranks=start,
            device=device,
            watch=watch,
        )
    unwritten = list(_unwritten(result, report or (), junit))
    status = 2 if unwritten else int(not result.conforms)
    return Report(result.as_data(), (*_blocks(result), *unwritten), as_json, status)


def _sizes_and_ranks(
    ranks: RanksAre, backend: str, world_size: int | None, seconds: float, device: str
) -> tuple[Sequence[int], Callable[[int], contextlib.AbstractContextManager[Ranks]] | None]:
    """Return the sizes of groups, and a function that starts so many ranks; None for threads."""
    from collective_rules.conformance import torchrun
    from collective_rules.conformance.runner import checked_deadline
    from collective_rules.testing.device import device_count
    from collective_rules.testing.processes import ProcessWorld
    from collective_rules.testing.rank import checked_backend

    if ranks == "threads":
        if device != "cpu":
            raise CommandError(f"--device {device} is for ranks that are processes: say --ranks processes")
        return range(1, (world_size or 4) + 1), None
    checked_backend(backend)
    checked_deadline(seconds)
    if ranks == "processes":
        count = device_count(device)
        if count is not None and world_size is not None and world_size > count:
            raise CommandError(f"--world-size {world_size}, but there are {count} of {device}: each rank takes one")
        sizes = [world_size or 4] if count is None else range(1, (world_size or count) + 1)
        return sizes, lambda size: ProcessWorld(size, seconds, backend=backend, device=device)
    if not torchrun.is_launched():
        raise CommandError("--ranks torchrun: start this with torchrun ... -m collective_rules conformance")
    if world_size is not None:
        raise CommandError("--world-size is for torchrun to say")
    return [torchrun.world_size()], lambda size: torchrun.led(seconds, backend, device)


def _parts(texts: Iterable[str] | None) -> list[str]:
    return [part for text in texts or () for part in text.split(",") if part]


def _lines(path: str | None) -> list[str]:
    try:
        return [] if path is None else Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _unwritten(result: Conformance, paths: Iterable[str], xml: str | None) -> Iterator[str]:
    """Write each report, and yield a sentence for each that cannot be written: the run's results must not be lost."""
    from collective_rules.conformance.junit import junit
    from collective_rules.conformance.report import write
    from collective_rules.pages import write_text

    writers: list[tuple[str, Callable[[str], Path]]] = [(path, functools.partial(write, result)) for path in paths]
    if xml is not None:
        writers.append((xml, lambda path: write_text(path, junit(result))))
    for path, put in writers:
        try:
            put(path)
        except CollectiveRulesError as error:
            sys.stderr.write(f"collective-rules: {error}\n")
            yield f"Not written: {error}"


@contextlib.contextmanager
def _nothing_left_here() -> Iterator[None]:
    """Keep the files that hypothesis writes out of the current directory."""
    from hypothesis.configuration import set_hypothesis_home_dir

    with tempfile.TemporaryDirectory() as home:
        set_hypothesis_home_dir(home)
        try:
            yield
        finally:
            set_hypothesis_home_dir(None)


def _blocks(result: Conformance) -> Iterator[str | Table]:
    from collective_rules.conformance.report import kind_tables, matrix
    from collective_rules.conformance.summary import failing_title, headline, left_out, notes, settings_line

    yield f"{headline(result)}\n{settings_line(result)}"
    yield matrix(result)
    yield from kind_tables(result)
    for failure in result.failures:
        yield f"{failing_title(failure)} fails. To reproduce it without this library:\n\n{failure.reproducer.rstrip()}"
    worth = notes(result)
    if worth:
        yield "\n".join(["Notes:", *(f"  {line}" for line in worth)])
    if result.left_out:
        yield "\n".join(["Left out:", *(f"  {line}" for line in left_out(result))])
