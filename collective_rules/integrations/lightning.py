"""A callback for Lightning's `Trainer`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

from collective_rules.integrations.training import GuardingCallback

_NAMES = ("lightning.pytorch", "pytorch_lightning")


def _callback() -> Any:
    """Return the class of callbacks, of the package that the program has imported, else of the one that is there."""
    there = [name for name in _NAMES if importlib.util.find_spec(name.partition(".")[0]) is not None]
    name = next((name for name in _NAMES if name in sys.modules), there[0] if there else None)
    if name is None:
        raise ImportError("Lightning is needed for this: pip install lightning")
    return importlib.import_module(name).Callback


class GuardCallback(GuardingCallback, _callback()):  # type: ignore[misc]  # one of two packages
    """Guards each of the trainer's runs, from its set-up to its end: `Trainer(callbacks=[GuardCallback(agree=100)])`.

    The arguments are those of `collective_rules.guard`. `guard` is the guard of the last run, `findings` holds the
    findings of all runs. The run raises what a block of `guard` raises.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin to guard: the process group is there, the model is not yet wrapped."""
        self._training.begin()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """End a run that ended well."""
        self._training.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End a run that failed."""
        self._training.end(exception)
