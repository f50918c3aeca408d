"""Guards a whole process, from the import of torch to its end."""

from __future__ import annotations

import atexit
import sys
import traceback
from types import TracebackType

from collective_rules.errors import CollectiveRulesError
from collective_rules.guarding.guard import Guard
from collective_rules.guarding.program import tell
from collective_rules.guarding.settings import GuardSettings

_guards: list[Guard] = []
"""The guard of this process, once there is one."""


def guard_process(text: str) -> Guard:
    """Guard this process until it ends, with the settings in `text`, unless it is guarded already; return the guard.

    At the end the findings go to standard error, and the exit status of a program that ended well stays as it is.
    Raises `CallError` for settings that do not fit.
    """
    if _guards:
        return _guards[0]
    guard = GuardSettings.read(text).guard()
    _guards.append(guard)
    raised: list[BaseException] = []
    before = sys.excepthook

    def note(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        raised.append(error)
        before(kind, error, trace)

    def end() -> None:
        error = raised[-1] if raised else None
        try:
            guard.__exit__(type(error) if error else None, error, None)
        except CollectiveRulesError as disagreement:
            if disagreement is not error:
                traceback.print_exception(disagreement)
            error = disagreement
        finally:
            tell(guard.ledger, guard.findings, error, ended_well=error is None)

    sys.excepthook = note
    guard.__enter__()
    atexit.register(end)
    return guard
