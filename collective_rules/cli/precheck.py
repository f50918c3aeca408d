"""`collective-rules precheck`: whether the ranks of a script agree, found out before it is launched.

`--json`, one object: `script`, `arguments`, `endings` ([{`rank`, `ended`, `status`, `where`, `message`, `calls`}], as
`comparison.running.Ending` describes them), `seconds` it took, and what `comparison.as_json` describes, which is also
what `--report` writes into a file that ends in .json.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collective_rules.cli.output import CommandError, Report
from collective_rules.cli.script_options import at_least, with_options_after

if TYPE_CHECKING:
    from collective_rules.comparison.rehearsal import Rehearsal

__all__ = ["parse_ranks", "precheck_script"]

_MOST_RANKS = 1 << 20
_LONGEST = 10**8
"""Seconds that a rank may take: three years."""
_BEHIND: Mapping[str, Callable[[str], Any]] = {
    "world_size": at_least(1),
    "local_world_size": at_least(1),
    "steps": at_least(1),
    "jobs": at_least(1),
    "context": at_least(0),
    "item": float,
    "deadline": at_least(0.1),
    "ranks": str,
    "backend": str,
}
"""Options that may stand behind the script, too."""
_PASSED_ON = ("local_world_size", "steps", "item", "backend", "jobs", "deadline", "context")


def precheck_script(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="A script, or a module as after python -m.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="The script's own arguments.")
    ] = None,
    world_size: Annotated[int | None, typer.Option(min=1, help="The number of ranks.")] = None,
    ranks: Annotated[str, typer.Option(help="The ranks to run: all, or such as 0,1,7 or 0-3 or 0-62:2.")] = "all",
    alike: Annotated[
        list[str] | None,
        typer.Option(help="Classes of ranks that do the same, such as 0-31,32-63: of each only the first is run."),
    ] = None,
    local_world_size: Annotated[int | None, typer.Option(min=1, help="The ranks on a node, else 8.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many optimizer steps.")] = None,
    item: Annotated[
        float | None,
        typer.Option(help="What a number reads as that a dry run does not know; else the rank ends there."),
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Check each call against this backend's own limits, too, such as gloo.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Ranks to run side by side, else one a core.")] = None,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds that a rank may take.")] = 300.0,
    context: Annotated[int, typer.Option(min=0, help="Calls to show before and after where ranks part.")] = 3,
    report: Annotated[
        list[str] | None, typer.Option(help="Write a report, too: a file .html, .md or .json. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> Report:
    """Dry-run a training script as each of its ranks, sending nothing, and say where they would not agree.

    With --world-size before the script, all that follows the script is the script's own. Else these options may follow
    the script, too, and what they do not name is the script's, as is all after a --.
    """
    from collective_rules.backends import limits_of
    from collective_rules.comparison import as_json as as_data
    from collective_rules.comparison import must_be_writable, write
    from collective_rules.comparison.rehearsal import rehearse
    from collective_rules.ops import lookup

    before = {
        "world_size": world_size,
        "ranks": ranks,
        "alike": alike or [],
        "local_world_size": local_world_size,
        "steps": steps,
        "item": item,
        "backend": backend,
        "jobs": jobs,
        "deadline": deadline,
        "context": context,
        "report": report or [],
        "as_json": as_json,
    }
    options, given = with_options_after("precheck", before, list(arguments or ()), _BEHIND, ("alike", "report"))
    size = options["world_size"]
    if not options["deadline"] < _LONGEST:
        raise CommandError(f"--deadline {options['deadline']} is no number of seconds below {_LONGEST:,}")
    limits_of(options["backend"], lookup("c10d::barrier"))  # refuses a backend that is not known
    for path in options["report"]:
        must_be_writable(path)
    chosen = None if options["ranks"] == "all" else [rank for part in parse_ranks(options["ranks"]) for rank in part]
    began = time.monotonic()
    with _progress() as watch:
        found = rehearse(
            script,
            given,
            world_size=size,
            ranks=chosen,
            alike=[part for text in options["alike"] for part in parse_ranks(text)],
            watch=watch,
            **{name: options[name] for name in _PASSED_ON},
        )
    seconds = time.monotonic() - began
    sys.stderr.write(found.output)
    for path in options["report"]:
        write(found.comparison, path)
    data = {
        "script": script,
        "arguments": given,
        "endings": [
            {name: getattr(each, name) for name in ("rank", "ended", "status", "where", "message", "calls")}
            for each in found.endings
        ],
        "seconds": round(seconds, 3),
        **as_data(found.comparison),
    }
    return Report(data, _blocks(script, size, found), options["as_json"], int(found.comparison.is_wrong))


def _blocks(script: str, size: int, found: Rehearsal) -> tuple[Any, ...]:
    from collective_rules.comparison import blocks
    from collective_rules.comparison.rehearsal import endings_text
    from collective_rules.text_table import Table

    head, *rest = blocks(found.comparison)
    shown = [block for block in rest if not (isinstance(block, Table) and block.title.startswith("Files"))]
    return (f"{script} as {endings_text(found.endings, size)}\n{head}", *shown)


def parse_ranks(text: str) -> list[list[int]]:
    """Return the ranks of each part of `text`: single ones, ranges with both ends, every n-th of a range.

    Raises `CommandError` for anything else.

    >>> parse_ranks("0,4-6,8-12:2")
    [[0], [4, 5, 6], [8, 10, 12]]
    """
    return [_range(part.strip(), text) for part in text.split(",") if part.strip()]


def _range(part: str, text: str) -> list[int]:
    span, _, step = part.partition(":")
    first, dash, last = span.partition("-")
    numbers = [first, *([last] if dash else []), *([step] if ":" in part else [])]
    if not all(number.isascii() and number.isdigit() and len(number) < 10 for number in numbers):
        raise CommandError(f"{part!r} in {text!r} names no ranks; write them as 0,1,7 or 0-31,32-63 or 0-62:2")
    stop, every = int(last if dash else first), int(step or 1)
    if stop < int(first) or not every or (stop - int(first)) // every > _MOST_RANKS:
        raise CommandError(f"{part!r} in {text!r} is no range of ranks; write the smaller one first, as 0-31")
    return list(range(int(first), stop + 1, every))


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, of: None
        return
    import rich.console
    import rich.progress

    columns: tuple[Any, ...] = (
        rich.progress.TextColumn("ranks run"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
    )
    with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True), transient=True) as progress:
        task = progress.add_task("ranks run")

        def watch(done: int, of: int) -> None:
            progress.update(task, completed=done, total=of)

        yield watch
