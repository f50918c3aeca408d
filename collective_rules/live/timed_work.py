"""The Work of a message that does not wait forever: gloo waits half an hour for a partner, whatever its time-out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


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

    def _source_rank(self) -> int:
        """Return the rank that sent the message."""
        return int(self._work._source_rank())

    def is_completed(self) -> bool:
        """Return whether the Work is over."""
        return bool(self._work.is_completed())

    def is_success(self) -> bool:
        """Return whether the Work succeeded."""
        return bool(self._work.is_success())

    def synchronize(self) -> None:
        """Synchronize as the Work does."""
        self._work.synchronize()

    def result(self) -> Any:
        """Return the tensors."""
        return self._work.result()

    def get_future(self) -> torch.futures.Future[Any]:
        """Return the Work's future."""
        return self._work.get_future()  # type: ignore[no-any-return]  # torch's
