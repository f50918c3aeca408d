"""`collective-rules conformance`: measures a backend against the rules.

Its ranks are threads of one process, processes that it starts, or, under torchrun, the processes of the job.

`--json`, one object, and what `--report` writes into a file that ends in .json:

- `backend`: as it was named. `table`: whose table of limits says what is legal, null where the rules alone do.
- `torch`: its version. `sizes` (of groups), `ranks` ("threads" or "processes"), `device`, `examples`, `seed`,
  `deadline`: the settings. `seconds`: how long it took.
- `conforms`: whether a legal call passed, none failed, and the run was complete. `ended`: why it ended early, or null.
- `totals`: {`passed`, `failed`} of legal calls, {`raises`, `hangs`, `dies`, `accepted`} of broken ones.
- `ops`: [{`op`, `rule`, `verdict` ("conforms", "fails", "not supported", "not tried"), `unsupported` (what the backend
  says, or null), `legal`: {`passed`, `failed`, `skipped`, `outcomes`: {outcome: count}}, `broken`: as in `totals`,
  `ways`: [{`way`, `ids` (of the constraints violated), `raises`, `hangs`, `dies`, `accepted`}],
  `kinds`: [{`reduce_op` (or null), `dtype`, `outcome`, `message`, `table` (true, false, or null without one),
  `agrees`}], `failure`: null or {`op`, `outcome`, `message`, `calls` (records, one a rank), `shrunk`, `tries`, `alone`
  (whether it fails in a fresh process; null: not tried), `reproducer` (a program)}}].
- `left_out`: {op: why it was not measured}.

An outcome is "ok", "raises", "hangs", "dies" or "silently wrong"; of `kinds` also "undefined" (it went through, but
torch has no right answer) and "not tried".
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from collective_rules.cli.output import AsJson, CommandError, Report, ReportFiles
from collective_rules.cli.progress import progress_bars
from collective_rules.errors import CollectiveRulesError
from collective_rules.text_table import Table

if TYPE_CHECKING:
    from collective_rules.conformance.process_runner import Ranks
    from collective_rules.conformance.results import Conformance

__all__ = ["measure_backend"]


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
            help="The most ranks of a group, 4 if left out; fewer are tried, too, but not where ranks are processes.",
        ),
    ] = None,
    ranks: Annotated[
        RanksAre | None,
        typer.Option(
            help="What each rank is: a thread, a process that is started here, or a process of torchrun's; left out, "
            "threads, but under torchrun its processes. Processes take any backend, and make legal calls only."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where the ranks' tensors are: cpu or, with processes, an accelerator such as cuda.")
    ] = "cpu",
    ops: Annotated[
        list[str] | None,
        typer.Option(help="Only these ops: names or patterns such as 'c10d::*', also several with commas. Repeatable."),
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
        typer.Option(help="The backend whose table says which calls are legal; left out, the tested backend's own."),
    ] = None,
    report: ReportFiles = None,
    as_json: AsJson = False,
) -> Report:
    """Measure a backend: which ops, dtypes and reduce ops it takes, and what it does with broken calls."""
    from collective_rules.conformance import torchrun
    from collective_rules.conformance.measure import measure
    from collective_rules.pages import must_be_writable

    workers = ranks or ("torchrun" if torchrun.is_launched() else "threads")
    seconds = deadline if deadline is not None else 1.0 if workers == "threads" else 30.0
    sizes, start = _sizes_and_ranks(workers, backend, world_size, seconds, device)
    if workers == "torchrun" and torchrun.is_follower():
        torchrun.follow(seconds, backend, device)
        raise typer.Exit
    for path in report or ():
        must_be_writable(path)
    patterns = [pattern for text in ops or () for pattern in text.split(",") if pattern]
    with _nothing_left_here(), progress_bars() as watch:
        result = measure(
            backend,
            ops=patterns,
            world_sizes=sizes,
            examples=examples,
            seed=seed,
            deadline=seconds,
            limits=limits,
            ranks=start,
            device=device,
            watch=watch,
        )
    unwritten = list(_unwritten(result, report or ()))
    status = 2 if unwritten else int(not result.conforms)
    return Report(result.as_data(), (*_blocks(result), *unwritten), as_json, status)


def _sizes_and_ranks(
    ranks: RanksAre, backend: str, world_size: int | None, seconds: float, device: str
) -> tuple[Sequence[int], Callable[[], contextlib.AbstractContextManager[Ranks]] | None]:
    """Return the sizes of groups, and a function that starts the ranks; None for threads."""
    from collective_rules.conformance import torchrun
    from collective_rules.conformance.runner import checked_deadline
    from collective_rules.testing.processes import ProcessWorld
    from collective_rules.testing.rank import checked_backend

    if ranks == "threads":
        if device != "cpu":
            raise CommandError(f"--device {device} is for ranks that are processes: say --ranks processes")
        return range(1, (world_size or 4) + 1), None
    checked_backend(backend)
    checked_deadline(seconds)
    if ranks == "processes":
        size = world_size or 4
        return [size], lambda: ProcessWorld(size, seconds, backend=backend, device=device)
    if not torchrun.is_launched():
        raise CommandError("--ranks torchrun: start this with torchrun ... -m collective_rules conformance")
    if world_size is not None:
        raise CommandError("--world-size is for torchrun to say")
    return [torchrun.world_size()], lambda: torchrun.led(seconds, backend, device)


def _unwritten(result: Conformance, paths: Iterable[str]) -> Iterator[str]:
    """Write each report, and yield a sentence for each that cannot be written: the run's results must not be lost."""
    from collective_rules.conformance.report import write

    for path in paths:
        try:
            write(result, path)
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
    from collective_rules.conformance.summary import headline, left_out, settings_line

    yield f"{headline(result)}\n{settings_line(result)}"
    yield matrix(result)
    yield from kind_tables(result)
    for failure in result.failures:
        yield f"{failure.op} fails. To reproduce it without this library:\n\n{failure.reproducer.rstrip()}"
    if result.left_out:
        yield "\n".join(["Left out:", *(f"  {line}" for line in left_out(result))])
