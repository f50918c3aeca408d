"""Notices SIGTERM while the program is stuck in C++, where no handler of Python runs, and passes the signal on.

torchrun ends all ranks by SIGTERM as soon as one has died, which is within a moment of a failure. faulthandler has a
handler in C that writes to a pipe: whoever looks at the pipe learns of the signal at once, in any thread. The program's
own handler is called as without this module; where it has none, the signal ends the process when `pass_on` says so. A
signal that the program ignores, or a handler that was not set by Python, is left alone. Forked processes are, too.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
from typing import Any

_SIGNAL = signal.SIGTERM


class _Watched:
    """The signal, watched `users` times over; `pipe` is None while it is left alone."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.users = 0
        self.pipe: tuple[int, int] | None = None
        self.before: Any = None
        self.has_come = False


_watched = _Watched()


def watch() -> None:
    """Watch the signal until `unwatch`; may be called several times over."""
    with _watched.lock:
        _watched.users += 1
        before = signal.getsignal(_SIGNAL)
        if _watched.users > 1 or _watched.pipe is not None or before in (None, signal.SIG_IGN):
            return
        pipe = os.pipe()
        for end in pipe:
            os.set_blocking(end, False)
        _watched.pipe, _watched.before, _watched.has_come = pipe, before, False
        faulthandler.register(_SIGNAL, file=pipe[1], all_threads=False, chain=before is not signal.SIG_DFL)


def has_come() -> bool:
    """Return whether the signal has come since it is watched."""
    with _watched.lock:
        if _watched.pipe is not None and not _watched.has_come:
            with contextlib.suppress(BlockingIOError):
                _watched.has_come = bool(os.read(_watched.pipe[0], 1))
        return _watched.has_come


def pass_on() -> None:
    """Let the signal do what it does without this module: end the process, if the program has no handler."""
    with _watched.lock:
        if has_come() and _watched.before is signal.SIG_DFL and _give_back():
            os.kill(os.getpid(), _SIGNAL)


def unwatch() -> None:
    """Take back one `watch`. After the last one the signal is as it was; one that came meanwhile is passed on."""
    with _watched.lock:
        _watched.users -= 1
        if not _watched.users and _watched.pipe is not None:
            pass_on()
            _give_back()


def _give_back() -> bool:
    """Put the handler back, unless the program has set another one that this thread cannot keep."""
    now, pipe = signal.getsignal(_SIGNAL), _watched.pipe
    is_changed = now is not _watched.before
    if pipe is None or (is_changed and threading.current_thread() is not threading.main_thread()):
        return False
    faulthandler.unregister(_SIGNAL)  # which puts back the handler of `watch`
    if is_changed:
        signal.signal(_SIGNAL, now)
    _watched.pipe = None
    for end in pipe:
        os.close(end)
    return True


def _leave_alone_in_child() -> None:
    _watched.lock = threading.RLock()  # another thread may have held the one before
    _watched.users = 0
    _give_back()
    _watched.has_come = False


os.register_at_fork(after_in_child=_leave_alone_in_child)
