"""Threads started inside the block are seen too: they run under the mode of the thread that started them.

`threading.Thread.start` is replaced from the first mode's start to the last one's end.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, _pop_mode, _push_mode

__all__ = ["follow", "unfollow"]

_lock = threading.Lock()
_start = threading.Thread.start
_followed: list[TorchDispatchMode] = []


def follow(mode: TorchDispatchMode) -> None:
    """Let threads started from now on run under `mode`."""
    with _lock:
        _followed.append(mode)
        threading.Thread.start = _start_under_modes  # type: ignore[method-assign]  # put back by unfollow


def unfollow(mode: TorchDispatchMode) -> None:
    """Undo `follow`."""
    with _lock:
        _followed[:] = [known for known in _followed if known is not mode]
        if not _followed and threading.Thread.start is _start_under_modes:
            threading.Thread.start = _start  # type: ignore[method-assign]  # as it was


@functools.wraps(_start)
def _start_under_modes(self: threading.Thread) -> None:
    modes = [mode for mode in _get_current_dispatch_mode_stack() if any(mode is known for known in _followed)]
    run: Any = self.run

    def run_under_modes() -> None:
        del self.run  # the class's own again
        # Not entered as a context: that moves process-wide flags, which threads may leave in any order.
        for mode in modes:
            _push_mode(mode)
        try:
            run()
        finally:
            for _ in modes:
                _pop_mode()

    if modes:
        self.run = run_under_modes  # type: ignore[method-assign]  # for this one run
    _start(self)
