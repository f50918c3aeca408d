"""The Work of a message that does not wait forever: gloo waits half an hour for a partner, whatever its time-out."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist


class _DoneWork:
    """Answers as a message's Work does when it is done, but does not keep the connections of the group open."""

    def __init__(self, work: Any) -> None:
        try:
            self._source: int | str = work._source_rank()
        except RuntimeError as error:  # of a send; the error itself holds on to the Work by its traceback
            self._source = str(error)

    def wait(self, timeout: timedelta) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def _source_rank(self) -> int:
        if isinstance(self._source, str):
            raise RuntimeError(self._source)
        return self._source

    def result(self) -> Any:
        raise RuntimeError("result() not implemented.")

    def get_future(self) -> Any:
        raise RuntimeError("Work::getFuture not implemented.")


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
        done = bool(self._work.wait(timeout or self._limit))
        if done and not isinstance(self._work, _DoneWork):
            self._work = _DoneWork(self._work)
        return done

    _source_rank = _passed_on("_source_rank")
    is_completed = _passed_on("is_completed")
    is_success = _passed_on("is_success")
    synchronize = _passed_on("synchronize")
    result = _passed_on("result")
    get_future = _passed_on("get_future")
