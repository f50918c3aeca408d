"""`collective-rules precheck`: says whether the ranks of a script agree, before the script is launched.

`--json`, one object: `script`, `arguments`, `endings` ([{`rank`, `ended`, `status`, `where`, `message`, `calls`}], the
fields of `comparison.rehearsal.RankResult`), `seconds` (its duration), and the keys that `comparison.as_json`
describes; `--report` writes these keys alone into a file that ends in .json.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collective_rules.cli.output import AsJson, Backend, CommandError, ContextCalls, Report, ReportFiles
from collective_rules.cli.progress import progress_bars
from collective_rules.cli.script_options import Item, LocalWorldSize, Script, ScriptArguments, Steps, WorldSize

if TYPE_CHECKING:
    from collective_rules.comparison.rehearsal import Rehearsal

_MOST_RANKS = 1 << 20


def precheck_script(
    script: Script,
    arguments: ScriptArguments = None,
    *,
    world_size: WorldSize,
    ranks: Annotated[str, typer.Option(help="The ranks to run: all, or such as 0,1,7 or 0-3 or 0-62:2.")] = "all",
    alike: Annotated[
        list[str] | None,
        typer.Option(help="Classes of ranks that do the same, such as 0-31,32-63: of each only the first is run."),
    ] = None,
    local_world_size: LocalWorldSize = None,
    steps: Steps = None,
    item: Item = None,
    backend: Backend = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Ranks to run side by side, else one a core.")] = None,
    deadline: Annotated[float, typer.Option(min=0.1, help="Seconds that a rank may take.")] = 300.0,
    context: ContextCalls = 3,
    report: ReportFiles = None,
    as_json: AsJson = False,
) -> Report:
    """Dry-run a training script as each of its ranks, sending nothing, and say where they would not agree.

    With --world-size before the script, all arguments behind the script are the script's own. Otherwise, these options
    may also follow the script: all other arguments are the script's, and so are all after a --.
    """
    from collective_rules.comparison import as_json as as_data
    from collective_rules.comparison import write
    from collective_rules.comparison.options import PrecheckOptions
    from collective_rules.comparison.rehearsal import rehearse
    from collective_rules.pages import must_be_writable

    options = PrecheckOptions(
        world_size=world_size,
        local_world_size=local_world_size,
        steps=steps,
        item=item,
        ranks=None if ranks == "all" else [rank for part in parse_ranks(ranks) for rank in part],
        alike=[part for text in alike or () for part in parse_ranks(text)],
        backend=backend,
        deadline=deadline,
        jobs=jobs,
        context=context,
    )
    for path in report or ():
        must_be_writable(path)
    began = time.monotonic()
    with progress_bars() as watch:
        rehearsal = rehearse(script, arguments or (), options, watch=functools.partial(watch, "ranks run"))
    seconds = time.monotonic() - began
    sys.stderr.write(rehearsal.output)
    for path in report or ():
        write(rehearsal.comparison, path)
    fields = ("rank", "ended", "status", "where", "message", "calls")
    data = {
        "script": script,
        "arguments": list(arguments or ()),
        "endings": [{name: getattr(result, name) for name in fields} for result in rehearsal.results],
        "seconds": round(seconds, 3),
        **as_data(rehearsal.comparison),
    }
    return Report(data, _blocks(script, world_size, rehearsal), as_json, rehearsal.status)


def _blocks(script: str, size: int, rehearsal: Rehearsal) -> tuple[Any, ...]:
    from collective_rules.comparison import blocks
    from collective_rules.comparison.rehearsal import results_text
    from collective_rules.text_table import Table

    head, *rest = blocks(rehearsal.comparison)
    shown = [block for block in rest if not (isinstance(block, Table) and block.title.startswith("Files"))]
    return (f"{script} as {results_text(rehearsal.results, size)}\n{head}", *shown)


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
