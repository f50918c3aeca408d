"""Threads started inside the block are seen too: they run under the mode of the thread that started them.

`threading.Thread.start` is replaced from the first mode's start to the last one's end.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, _pop_mode, _push_mode

from collective_rules.mode import kernels

_lock = threading.Lock()
_followed: list[TorchDispatchMode] = []
_replaced: list[tuple[Any, Any]] = []
"""The replacement of `Thread.start`, and the function that was there before, maybe another tool's replacement."""


def follow(mode: TorchDispatchMode) -> None:
    """Let threads started from now on run under `mode`."""
    with _lock:
        if not _followed:
            before: Any = threading.Thread.start
            _replaced[:] = [(_under_modes(before), before)]
            threading.Thread.start = _replaced[0][0]  # type: ignore[method-assign]  # put back by unfollow
        _followed.append(mode)


def unfollow(mode: TorchDispatchMode) -> None:
    """Undo `follow`. A replacement that another tool made meanwhile stays, and still finds what it replaced."""
    with _lock:
        _followed[:] = [each for each in _followed if each is not mode]
        if not _followed and _replaced and threading.Thread.start is _replaced[0][0]:
            threading.Thread.start = _replaced[0][1]  # type: ignore[method-assign]  # as it was


def _under_modes(start: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    """Return a `start` that runs a thread under the followed modes of the thread that starts it."""

    @functools.wraps(start)
    def start_under_modes(self: threading.Thread) -> None:
        modes = [mode for mode in _get_current_dispatch_mode_stack() if any(mode is each for each in _followed)]
        if modes and start_under_modes is _replaced[0][0]:  # else an earlier block's, which another tool kept
            self.run = _running_under(self, modes, kernels.owner())  # type: ignore[method-assign]  # for this one run
            try:
                start(self)
            except BaseException:  # the thread was started before
                vars(self).pop("run", None)
                raise
            return
        start(self)

    return start_under_modes


def _running_under(thread: threading.Thread, modes: list[Any], owner: int) -> Callable[[], None]:
    run = thread.run

    def run_under_modes() -> None:
        del thread.run  # the class's own again
        # Not entered as a context: that moves process-wide flags, which threads may leave in any order.
        for mode in modes:
            _push_mode(mode)
        kernels.adopt(owner)
        try:
            run()
        finally:
            kernels.release()
            for _ in modes:
                _pop_mode()

    return run_under_modes
