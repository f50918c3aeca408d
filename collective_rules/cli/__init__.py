"""The command line, `collective-rules`: its commands, and how each of them ends.

Exit status: 0 nothing wrong, 1 findings of severity error, 2 the command could not be carried out (one line on
standard error, nothing on standard output). An interrupt ends with 130 and a closed pipe with 141, as in a shell.

A command is a function that returns a `Report` and prints nothing. Knows no rule and no op.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperCommand

import collective_rules
from collective_rules.cli.compare import compare_recordings
from collective_rules.cli.conformance import measure_backend
from collective_rules.cli.dry_run import dry_run_script
from collective_rules.cli.infer import infer_call
from collective_rules.cli.listing import list_ops
from collective_rules.cli.output import CommandError, Report
from collective_rules.cli.precheck import precheck_script
from collective_rules.cli.render import render
from collective_rules.cli.run import run_script_guarded
from collective_rules.cli.script_options import ScriptCommand
from collective_rules.cli.show import show_op
from collective_rules.errors import CollectiveRulesError
from collective_rules.text_table import visible

__all__ = ["CANNOT", "carry_out", "main"]

_COMMANDS: Mapping[str, Callable[..., Report]] = {
    "list": list_ops,
    "show": show_op,
    "infer": infer_call,
    "compare": compare_recordings,
    "conformance": measure_backend,
    "dry-run": dry_run_script,
    "precheck": precheck_script,
    "run": run_script_guarded,
}
_OF_SCRIPTS = ("dry-run", "precheck")

CANNOT = 2
_INTERRUPTED, _CLOSED_PIPE = 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command line (that of the process, if left out) and return its exit status.

    >>> main(["list", "--namespace", "_dtensor"])
    op                            rule                notation                 since
    _dtensor::shard_dim_alltoall  shard_dim_alltoall  input: *s -> output: *t
    0
    """
    _never_fail_to_encode()
    return carry_out(lambda: _run(arguments), _refuse, "collective-rules --help")


def carry_out(run: Callable[[], int], refuse: Callable[[str], int], help_by: str) -> int:
    """Return the exit status of `run`; `refuse` writes one line on an error that is no fault of this program."""
    try:
        if sys.stdout is None:  # the process was started without one
            raise CommandError("standard output is closed, so there is nowhere to write the answer")
        status = run()
        sys.stdout.flush()
        return status
    except (CommandError, CollectiveRulesError) as error:
        return refuse(str(error))
    except typer.TyperException as error:
        return refuse(f"{error.format_message()} ({help_by} says what there is)")
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return _CLOSED_PIPE
    except OSError as error:  # a full disk
        _discard_output()
        return refuse(str(error))


def _run(arguments: Sequence[str] | None) -> int:
    command = typer.main.get_command(_app())
    answer: Report | int | None = command.main(
        None if arguments is None else list(arguments), "collective-rules", standalone_mode=False
    )
    if isinstance(answer, Report):
        render(answer)
        return answer.status
    return answer or 0  # --help, --version, or an interrupt


def _app() -> typer.Typer:
    app = typer.Typer(
        add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, callback=_collective_rules
    )
    for name, command in _COMMANDS.items():
        context = {"allow_interspersed_args": name != "run"}  # what stands behind the script is the script's own
        app.command(name, cls=ScriptCommand if name in _OF_SCRIPTS else TyperCommand, context_settings=context)(command)
    return app


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"collective-rules {collective_rules.__version__}, torch {torch.__version__}\n")
        raise typer.Exit()


def _collective_rules(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the versions, and exit.")
    ] = False,
) -> None:
    """The sizes that every PyTorch collective must have."""


def _never_fail_to_encode() -> None:
    """Escape characters that the terminal's encoding does not have."""
    stream: Any = sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _refuse(message: str) -> int:
    """Write one line; control characters, which a script's message may have, are escaped."""
    if sys.stderr is not None:
        sys.stderr.write(f"collective-rules: {visible(' '.join(message.split()))}\n")
    return CANNOT


def _discard_output() -> None:
    """Discard buffered output: the interpreter would fail on it again when it exits."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
