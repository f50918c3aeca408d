"""SIGTERM is noticed while it is watched, and does to the program what it does without that."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from collective_rules.live import termination

TERM = signal.SIGTERM


def ended(act: Callable[[], int | None]) -> int:
    """Run `act` in a forked process; return its exit status, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            signal.signal(TERM, signal.SIG_DFL)
            status = act() or 0
        finally:
            os._exit(status)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 97


def test_a_signal_without_a_handler_ends_the_process_when_it_is_passed_on() -> None:
    def act() -> int:
        termination.watch()
        assert not termination.has_come()
        os.kill(os.getpid(), TERM)
        assert termination.has_come()
        termination.pass_on()
        return 1

    assert -TERM == ended(act)


@pytest.mark.parametrize("comes", [False, True])
def test_a_signal_is_not_lost_at_the_end(comes: bool) -> None:
    def act() -> int:
        termination.watch()
        termination.watch()
        termination.unwatch()
        if comes:
            os.kill(os.getpid(), TERM)
        termination.unwatch()
        return 1

    assert (-TERM if comes else 1) == ended(act)


def test_after_the_end_the_signal_is_as_it_was() -> None:
    def act() -> None:
        for _ in range(2):
            termination.watch()
            termination.unwatch()
        os.kill(os.getpid(), TERM)

    assert -TERM == ended(act)


@pytest.mark.parametrize("when", ["before", "inside"])
@pytest.mark.parametrize("sent", ["inside", "after"])
def test_the_program_s_own_handler_is_called(when: str, sent: str) -> None:
    """One that was there, and one that the program sets while the signal is watched; in the end it is there still."""

    def act() -> int:
        heard: list[int] = []
        handler = lambda number, frame: heard.append(number)  # noqa: E731 - it must be one object
        if when == "before":
            signal.signal(TERM, handler)
        termination.watch()
        if when == "inside":
            signal.signal(TERM, handler)
        if sent == "inside":
            os.kill(os.getpid(), TERM)
            termination.pass_on()
        termination.unwatch()
        if sent == "after":
            os.kill(os.getpid(), TERM)
        return 5 if (heard, signal.getsignal(TERM)) == ([TERM], handler) else 6

    assert 5 == ended(act)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    def act() -> int:
        signal.signal(TERM, signal.SIG_IGN)
        termination.watch()
        os.kill(os.getpid(), TERM)
        termination.pass_on()
        termination.unwatch()
        return 5 + termination.has_come()

    assert 5 == ended(act)


def test_a_forked_process_can_be_ended() -> None:
    """Such as a worker that loads data."""

    def act() -> int:
        termination.watch()
        status = ended_child()
        return 5 if status == -TERM and not termination.has_come() else 6

    def ended_child() -> int:
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), TERM)
            os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert 5 == ended(act)
