"""Guards a whole process, from the import of torch to its end."""

from __future__ import annotations

import atexit
import sys
import traceback
from collections.abc import Callable
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

    def end(error: BaseException | None) -> None:
        try:
            guard.__exit__(type(error) if error else None, error, None)
        except CollectiveRulesError as disagreement:
            if disagreement is not error:
                traceback.print_exception(disagreement)
            error = disagreement
        finally:
            tell(guard.ledger, guard.findings, error, ended_well=error is None)

    guard.__enter__()
    AtExit(end)
    return guard


class AtExit:
    """Calls `end` when the process ends, with the error that ended it, unless it is cancelled."""

    def __init__(self, end: Callable[[BaseException | None], None]) -> None:
        self._end = end
        self._raised: BaseException | None = None
        self._before, self._hook = sys.excepthook, self._note
        sys.excepthook = self._hook
        atexit.register(self._call)

    def cancel(self) -> None:
        """Do nothing at the end."""
        atexit.unregister(self._call)
        if sys.excepthook is self._hook:
            sys.excepthook = self._before

    def _note(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._raised = error
        self._before(kind, error, trace)

    def _call(self) -> None:
        self._end(self._raised)
