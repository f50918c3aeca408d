"""Dry-running an unmodified script, as torchrun would start one of its processes."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from collective_rules.dryrun.fake_values import line_of
from collective_rules.dryrun.run import StepsDone, dry_run
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.ledger import Ledger

__all__ = ["Result", "run_script"]


@attrs.frozen
class Result:
    """How a dry run ended, and the `ledger` of what the script did till then.

    `reason` is "finished", "stopped" (after the steps asked for), "exited" (a status other than 0), "illegal" (a call
    that `error`, a `CallError`, tells of) or "raised" (`error`). `where` is the line of the script, such as
    "train.py:88", where it did not simply finish. `status` is the script's own exit status.
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

    Whatever the script raises is told by the result, an interrupt excepted. Raises `CollectiveRulesError` where there
    is no such script, or the dry run's sizes do not fit.
    """
    if not isinstance(path_or_module, (str, os.PathLike)):
        raise CollectiveRulesError(f"{path_or_module!r} is no path of a script, and no name of a module")
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
        # Found only as the block ends, such as a tensor nobody waited on.
        ending = {"reason": "illegal", "status": 1, "error": error, "where": ""}
    finally:
        _forget_modules(before, folder)
    return Result(ledger, **ending)


def _run(path_or_module: str, is_file: bool) -> dict[str, Any]:
    try:
        if is_file:
            runpy.run_path(path_or_module, run_name="__main__")
        else:
            runpy.run_module(path_or_module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
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
    """Return this library's error, where torch or the script made another one of it; else `error` itself."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, CollectiveRulesError):
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return found or error


def _is_module(name: str, folder: str) -> bool:
    """Whether `python -m name` finds something in `folder`, or where Python finds its modules."""
    sys.path.insert(0, folder)
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
    finally:
        sys.path.remove(folder)


def _forget_modules(before: set[str], folder: str) -> None:
    """Drop the modules that the script imported from beside it, so that another script's get their turn."""
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file is not None and Path(file).parent.is_relative_to(folder) and "site-packages" not in file:
            del sys.modules[name]
