"""`collective-rules run`: runs an unchanged script under a guard; output and exit status are the script's own."""

from __future__ import annotations

import os
from typing import Annotated

import attrs
import typer

from collective_rules.cli.output import Report

_DEFAULT = "rank{rank}.jsonl"


def run_script_guarded(
    script: Annotated[str, typer.Argument(metavar="SCRIPT|MODULE", help="A script; a module with -m.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGS]...", help="Its own arguments.")] = None,
    *,
    is_module: Annotated[bool, typer.Option("-m", "--module", help="Run a module, as python -m does.")] = False,
    check: Annotated[str, typer.Option(help="yes (raise an error), warn, record, or no.")] = "yes",
    agree: Annotated[str, typer.Option(help="always, exit, no, or a number of collectives.")] = "100",
    backend: Annotated[
        str, typer.Option(help="Whose limits are checked; auto for each group's own, or none.")
    ] = "auto",
    keep: Annotated[int, typer.Option(help="How many calls are kept for reports.", min=0)] = 100_000,
    deadline: Annotated[float, typer.Option(help="Seconds that a rank waits for the others.")] = 60.0,
    ledger: Annotated[str | None, typer.Option(help="A directory, or a file with {rank}, that gets each call.")] = None,
    report: Annotated[str | None, typer.Option(help="A report at the end: .html, .md or .json; {rank} is it.")] = None,
) -> Report:
    """Run a training script under a guard: each collective is checked, and compared with the other ranks'.

    Start it as the script is started: torchrun --no-python collective-rules run train.py, or srun collective-rules run
    train.py. All options stand before the script. The exit status is the script's own, or 1 where a guard ended it.
    """
    from collective_rules.guarding import GuardSettings
    from collective_rules.guarding.program import run_program
    from collective_rules.reports import write

    if ledger is not None and "{rank}" not in ledger:
        ledger = os.path.join(ledger, _DEFAULT)
    words = GuardSettings.of(check=check, agree=agree, backend=backend)
    guard = attrs.evolve(words, keep=keep, deadline=deadline, ledger=ledger, modules=report is not None).guard()
    status = run_program(guard, script, arguments or (), is_module=is_module)
    if report is not None:
        write(guard.ledger, report.replace("{rank}", os.environ.get("RANK", "0")))
    return Report({}, (), False, status)
