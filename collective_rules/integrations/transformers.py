"""A callback for the `Trainer` of transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from collective_rules.finding import Finding
from collective_rules.guarding import Guard
from collective_rules.guarding.process import AtExit
from collective_rules.integrations.training import GuardedTraining


class GuardCallback(TrainerCallback):  # type: ignore[misc]  # may not be installed where this is checked
    """Guards the training: `Trainer(..., callbacks=[GuardCallback(agree=100)])`.

    The arguments are those of `collective_rules.guard`. `guard` is the guard of the last training, `findings` holds the
    findings of all trainings. `train()` raises what a block of `guard` raises. transformers tells no callback that a
    training failed: its guard ends with the next training, or with the process.
    """

    def __init__(self, **settings: Any) -> None:
        self._training = GuardedTraining(settings)
        self._at_exit: AtExit | None = None

    @property
    def guard(self) -> Guard | None:
        """The guard of the last training; None before the first."""
        return self._training.guard

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is wrong, of all trainings that have ended."""
        return self._training.findings

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to guard: the process group is there, and the model is wrapped."""
        if self._at_exit is not None:
            self._at_exit.cancel()
        self._training.begin()
        self._at_exit = AtExit(self._training.end)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a training that ended well."""
        if self._at_exit is not None:
            self._at_exit.cancel()
        self._training.end()
