"""`collective-rules dry-run`: shows the collectives of a training script at any world size, in one process.

`--json`, one object: `script`, `arguments`, `world_size`, `rank`, `ended` ("finished", "stopped", "exited", "illegal"),
`status` (the script's own), `where` (its line, or ""), `message` (the error's text, or null) and `ledger`, which is
also written by `--report` into a file that ends in .json.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from collective_rules.cli.output import AsJson, CommandError, Report, ReportFiles
from collective_rules.cli.script_options import Item, LocalWorldSize, Script, ScriptArguments, Steps, WorldSize
from collective_rules.errors import text_of
from collective_rules.finding import ERROR
from collective_rules.text_table import Table

if TYPE_CHECKING:
    from collective_rules.dryrun.script import Result


def dry_run_script(
    script: Script,
    arguments: ScriptArguments = None,
    *,
    world_size: WorldSize,
    rank: Annotated[int, typer.Option(min=0, help="The rank to be.")] = 0,
    local_world_size: LocalWorldSize = None,
    steps: Steps = None,
    item: Item = None,
    report: ReportFiles = None,
    as_json: AsJson = False,
) -> Report:
    """Run a training script as one of many ranks, sending nothing, and show its collectives.

    With --world-size before the script, all arguments behind the script are the script's own. Otherwise, these options
    may also follow the script: all other arguments are the script's, and so are all after a --.
    """
    from collective_rules.dryrun import run_script
    from collective_rules.dryrun.options import DryRunOptions
    from collective_rules.pages import must_be_writable
    from collective_rules.reports import as_json as ledger_as_json
    from collective_rules.reports import write

    options = DryRunOptions(world_size=world_size, rank=rank, local_world_size=local_world_size, steps=steps, item=item)
    for path in report or ():
        must_be_writable(path)
    with contextlib.redirect_stdout(sys.stderr):
        result = run_script(script, arguments or (), **attrs.asdict(options))
    if result.reason == "raised":
        raise CommandError(_complaint(script, result))
    for path in report or ():
        write(result.ledger, path)
    wrong = result.reason == "illegal" or any(finding.severity == ERROR for finding in result.ledger.findings)
    status = 2 if result.reason == "exited" else int(wrong)
    data = {
        "script": script,
        "arguments": list(arguments or ()),
        "world_size": world_size,
        "rank": rank,
        "ended": result.reason,
        "status": result.status,
        "where": result.where,
        "message": None if result.error is None else text_of(result.error),
        "ledger": ledger_as_json(result.ledger),
    }
    head = f"{script} as rank {rank} of {world_size}: {_ending(result)}"
    return Report(data, (head, *_blocks(result)), as_json, status)


def _complaint(script: str, result: Result) -> str:
    from collective_rules.dryrun.fake_values import UnknownValueError

    if isinstance(result.error, UnknownValueError):
        return str(result.error)
    return f"{result.where or script}: {type(result.error).__name__}: {text_of(result.error)}"


def _ending(result: Result) -> str:
    code = getattr(result.error, "code", None)
    why = f": {code}" if isinstance(code, str) else "."
    endings = {
        "finished": "it finished.",
        "stopped": "stopped after the steps asked for.",
        "exited": f"{result.where}: it ended itself with status {result.status}{why}",
        "illegal": f"{result.where}: an illegal call; nothing after it was run.",
    }
    return endings[result.reason]


def _blocks(result: Result) -> Iterator[str | Table]:
    from collective_rules.reports import blocks

    if result.reason == "illegal":
        yield f"error: {text_of(result.error)}"
    yield from blocks(result.ledger)
