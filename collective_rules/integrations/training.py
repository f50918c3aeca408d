"""A guard from one call of a callback to another, for libraries that run the training themselves."""

from __future__ import annotations

from typing import Any

from collective_rules.finding import Finding
from collective_rules.guarding import Guard, guard


class GuardedTraining:
    """Guards from `begin` to `end`, as often as both are called. `settings` are the arguments of `guard`.

    `guard` is that of the last training, None before the first; `findings` holds the findings of all that have ended.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.guard: Guard | None = None
        self.findings: tuple[Finding, ...] = ()
        self._settings = settings
        self._active = False

    def begin(self) -> None:
        """Begin to guard. Raises `CallError` for settings that do not fit."""
        self.end(RuntimeError("the training before has not ended"))
        self.guard = guard(**self._settings)
        self.guard.__enter__()
        self._active = True

    def end(self, error: BaseException | None = None) -> None:
        """End it, once or more; `error` is what ended the training. Raises what leaving a `guard` raises."""
        if not self._active or self.guard is None:
            return
        self._active = False
        try:
            self.guard.__exit__(type(error) if error else None, error, None)
        finally:
            self.findings += self.guard.findings


class GuardingCallback:
    """What all callbacks have, before the library's own class. `settings` are the arguments of `guard`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self._training = GuardedTraining(settings)

    @property
    def guard(self) -> Guard | None:
        """The guard of the last training; None before the first."""
        return self._training.guard

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong, of all trainings that have ended."""
        return self._training.findings
