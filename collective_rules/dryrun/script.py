"""Dry-run an unmodified script, as torchrun would start one of its processes."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from collective_rules.dryrun.fake_values import line_of
from collective_rules.dryrun.run import StepsDone, dry_run
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.ledger import Ledger
from collective_rules.places import run_as_main, status_of


@attrs.frozen
class Result:
    """The end of a dry run, and the `ledger` of the script's calls until then.

    `reason` is "finished", "stopped" (after the given number of steps), "exited" (with a status other than 0),
    "illegal" (a call; `error` is its `CallError`) or "raised" (the script raised `error`). `where` is the line of the
    script, such as "train.py:88", where the script did not finish. `status` is the script's own exit status.
    """

    ledger: Ledger
    reason: Literal["finished", "stopped", "exited", "illegal", "raised"]
    status: int = 0
    error: BaseException | None = None
    where: str = ""


def run_script(
    path_or_module: str | os.PathLike[str], arguments: Sequence[str] = (), *, world_size: int, **options: Any
) -> Result:
    """Run a script, or a module named as after `python -m`, in a `dry_run` with `world_size` and `options`.

    The result has the error that the script raises, unless it is an interrupt. Raises `CollectiveRulesError` where
    there is no such script, or the options of the dry run do not fit.
    """
    if not isinstance(path_or_module, (str, os.PathLike)):
        raise CollectiveRulesError(
            f"path_or_module={path_or_module!r}, but should be the path of a script, or the name of a module"
        )
    if not isinstance(arguments, (list, tuple)) or not all(isinstance(each, str) for each in arguments):
        raise CollectiveRulesError(f"arguments={arguments!r}, but should be a list of strings")
    before, name = set(sys.modules), os.fspath(path_or_module)
    is_file = Path(name).is_file()
    if not is_file and not _is_module(name, os.getcwd()):
        raise CollectiveRulesError(f"{name}: no such script, and no module of this name")
    ledger: Ledger | None = None
    folder = str(Path(name).resolve().parent) if is_file else os.getcwd()
    try:
        with dry_run(world_size, **options) as ledger:
            sys.argv[:] = [name, *arguments]
            sys.path.insert(0, folder)
            ending: dict[str, Any] = {"reason": "stopped"}
            ending = _run(name, is_file)
    except CallError as error:
        if ledger is None:
            raise
        # The end of the block finds the error, such as a tensor without a wait.
        ending = {"reason": "illegal", "status": 1, "error": error, "where": ""}
    finally:
        _forget_modules(before, folder)
    return Result(ledger, **ending)


def _run(path_or_module: str, is_file: bool) -> dict[str, Any]:
    try:
        run_as_main(path_or_module, is_file=is_file)
    except SystemExit as error:
        status = status_of(error)
        if status == 0:
            return {"reason": "finished"}
        return {"reason": "exited", "status": status, "error": error, "where": line_of(error.__traceback__)}
    except (KeyboardInterrupt, StepsDone):
        raise
    except BaseException as raised:
        cause = _reason_of(raised)
        reason = "illegal" if isinstance(cause, CallError) else "raised"
        where = line_of(cause.__traceback__) or line_of(raised.__traceback__)
        return {"reason": reason, "status": 1, "error": cause, "where": where}
    return {"reason": "finished"}


def _reason_of(error: BaseException) -> BaseException:
    """Return this library's error, where torch or the script raised another error because of it; else `error`."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, CollectiveRulesError):
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return cause or error


def _is_module(name: str, folder: str) -> bool:
    """Return whether `python -m name` finds a module in `folder`, or on Python's path."""
    sys.path.insert(0, folder)
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
    finally:
        sys.path.remove(folder)


def _forget_modules(before: set[str], folder: str) -> None:
    """Drop the modules that the script imported from its folder; another script may have modules of the same names."""
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).parent.is_relative_to(folder) and "site-packages" not in file:
            del sys.modules[name]
