"""`collective-rules dry-run`: what a training script sends at any world size, found out in one process.

`--json`, one object: `script`, `arguments`, `world_size`, `rank`, `ended` ("finished", "stopped", "exited", "illegal"),
`status` (the script's own), `where` (its line, or ""), `message` (null or what was wrong) and `ledger`, which is what
`--report` writes into a file that ends in .json.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from collective_rules.cli.output import CommandError, Report
from collective_rules.cli.script_options import at_least, with_options_after
from collective_rules.finding import ERROR
from collective_rules.text_table import Table

if TYPE_CHECKING:
    from collective_rules.dryrun.script import Result

__all__ = ["dry_run_script"]

_BEHIND: Mapping[str, Callable[[str], Any]] = {
    "world_size": at_least(1),
    "rank": at_least(0),
    "local_world_size": at_least(1),
    "steps": at_least(1),
    "item": float,
}
"""Options that may stand behind the script, too."""


def dry_run_script(
    script: Annotated[str, typer.Argument(metavar="SCRIPT", help="A script, or a module as after python -m.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="The script's own arguments.")
    ] = None,
    world_size: Annotated[int | None, typer.Option(min=1, help="The number of ranks.")] = None,
    rank: Annotated[int, typer.Option(min=0, help="The rank to be.")] = 0,
    local_world_size: Annotated[int | None, typer.Option(min=1, help="The ranks on a node, else 8.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many optimizer steps.")] = None,
    item: Annotated[
        float | None, typer.Option(help="What a number reads as that a dry run does not know; else an error.")
    ] = None,
    report: Annotated[
        list[str] | None, typer.Option(help="Write a report, too: a file .html, .md or .json. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> Report:
    """Run a training script as one of many ranks, sending nothing, and show its collectives.

    With --world-size before the script, all that follows the script is the script's own. Else these options may follow
    the script, too, and what they do not name is the script's, as is all after a --.
    """
    from collective_rules.dryrun.script import run_script
    from collective_rules.reports import as_json as ledger_as_json
    from collective_rules.reports import must_be_writable, write

    before = {
        "world_size": world_size,
        "rank": rank,
        "local_world_size": local_world_size,
        "steps": steps,
        "item": item,
        "report": report or [],
        "as_json": as_json,
    }
    options, given = with_options_after("dry-run", before, list(arguments or ()), _BEHIND, ("report",))
    for path in options["report"]:
        must_be_writable(path)
    with contextlib.redirect_stdout(sys.stderr):
        result = run_script(script, given, **{name: options[name] for name in _BEHIND})
    if result.reason == "raised":
        raise CommandError(_complaint(script, result))
    for path in options["report"]:
        write(result.ledger, path)
    wrong = result.reason == "illegal" or any(found.severity == ERROR for found in result.ledger.findings)
    status = 2 if result.reason == "exited" else int(wrong)
    data = {
        "script": script,
        "arguments": given,
        "world_size": options["world_size"],
        "rank": options["rank"],
        "ended": result.reason,
        "status": result.status,
        "where": result.where,
        "message": None if result.error is None else _said(result.error),
        "ledger": ledger_as_json(result.ledger),
    }
    head = f"{script} as rank {options['rank']} of {options['world_size']}: {_ending(result)}"
    return Report(data, (head, *_blocks(result)), options["as_json"], status)


def _complaint(script: str, result: Result) -> str:
    from collective_rules.dryrun.fake_values import UnknownValueError

    if isinstance(result.error, UnknownValueError):
        return str(result.error)
    where = result.where or script
    return f"{where}: {type(result.error).__name__}: {_said(result.error)}"


def _said(error: BaseException | None) -> str:
    """Return the text of an error of the script's own, which may fail to tell it."""
    try:
        return str(error)
    except Exception as failure:
        return f"(no text: its __str__ raised {type(failure).__name__})"


def _ending(result: Result) -> str:
    left = getattr(result.error, "code", None)
    why = f": {left}" if isinstance(left, str) else "."
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
        yield f"error: {_said(result.error)}"
    yield from blocks(result.ledger)
