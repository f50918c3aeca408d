"""What this process holds: files, sockets, threads and children, as the kernel counts them.

The kernel lists a thread for a moment after it was joined, so what is left over is read until it is as
expected, at most `PATIENCE` seconds, and what there was before until two readings agree.
"""

import os
import select
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PATIENCE = 5.0
TICK = 0.01


class Held(NamedTuple):
    files: int
    sockets: int
    threads: int
    children: int


def held(expected: Held | None = None) -> Held:
    """What this process holds, once it holds `expected`, or still holds what it held a moment ago."""
    end, last = time.monotonic() + PATIENCE, _read()
    while last != expected and time.monotonic() < end:
        time.sleep(TICK)
        before, last = last, _read()
        if expected is None and before == last:
            break
    return last


def gone(pids: Sequence[int], within: float = 10.0) -> bool:
    """Wait for the end of processes that need not be children of this one."""
    until = time.monotonic() + within
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([handle], [], [], max(0.0, until - time.monotonic()))[0]:
                return False
        finally:
            os.close(handle)
    return True


def _read() -> Held:
    names = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    links = [os.readlink(name) for name in names if name.is_symlink()]
    tasks = [*Path("/proc/self/task").iterdir()]
    children = [child for task in tasks for child in _children(task)]
    return Held(len(links), sum("socket" in link for link in links), len(tasks), len(children))


def _children(task: Path) -> list[str]:
    try:
        return (task / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return []
