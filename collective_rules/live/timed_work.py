"""The Work of a message that does not wait forever: gloo waits half an hour for a partner, whatever its time-out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist


def _passed_on(name: str) -> Callable[[Any], Any]:
    """Return a method that calls the method of the same name of the Work itself."""
    return lambda timed: getattr(timed._work, name)()


class TimedWork(dist._Work):  # type: ignore[name-defined,misc]  # not in torch's stubs
    """Behaves as `work`, but a wait without a limit of its own ends after `seconds`.

    `before` is called before each wait.
    """

    def __init__(self, work: Any, seconds: float, before: Callable[[], None]) -> None:
        super().__init__()
        self._work = work
        self._limit = timedelta(seconds=seconds)
        self._before = before

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Wait as the Work does; raise RuntimeError when the time is up."""
        self._before()
        return bool(self._work.wait(timeout or self._limit))

    _source_rank = _passed_on("_source_rank")
    is_completed = _passed_on("is_completed")
    is_success = _passed_on("is_success")
    synchronize = _passed_on("synchronize")
    result = _passed_on("result")
    get_future = _passed_on("get_future")
