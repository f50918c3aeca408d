"""A callback for the `Trainer` of transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from collective_rules.guarding.process import AtExit
from collective_rules.integrations.training import GuardingCallback


class GuardCallback(GuardingCallback, TrainerCallback):  # type: ignore[misc]  # may not be installed where this is checked
    """Guards the training: `Trainer(..., callbacks=[GuardCallback(agree=100)])`.

    The arguments are those of `collective_rules.guard`. `guard` is the guard of the last training, `findings` holds the
    findings of all trainings. `train()` raises what a block of `guard` raises. transformers tells no callback that a
    training failed: its guard ends with the next training, or with the process.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._at_exit: AtExit | None = None

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
