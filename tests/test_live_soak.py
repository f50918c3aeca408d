"""Legal programs under every kind of comparison, while other processes compete for the cores: no false alarm, ever.

Runs for many minutes, so only with --hypothesis-profile=thorough.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.live_ranks import Ranks

RUNS = 5
PROGRAMS = [
    ("clean", 2),
    ("clean", 4),
    ("drifts_legally", 3),
    ("trains", 2),
    ("crossed_async", 3),
    ("any_source", 3),
    ("in_a_large_group", 3),
    ("steps", 2),
    ("live_faults:long", 2),
    ("live_faults:short_blocks", 3),
    ("live_faults:destroyed_groups", 3),
    ("live_faults:first_is_slow", 3),
]
"""Legal programs, and how many ranks they have."""


@pytest.fixture
def competition() -> Iterator[None]:
    """Twice as many busy processes as there are cores."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    yield
    for process in busy:
        process.kill()
        process.wait()


@pytest.mark.skipif(settings.get_current_profile_name() != "thorough", reason="--hypothesis-profile=thorough runs it")
@pytest.mark.usefixtures("competition")
@pytest.mark.parametrize("agree", ["always", "exit", 10, "guard"])
@pytest.mark.parametrize(("program", "size"), PROGRAMS)
def test_no_legal_program_is_stopped_on_a_busy_machine(program: str, size: int, agree: str | int, ranks: Ranks) -> None:
    for run, outlives in zip(range(RUNS), itertools.cycle([True, False])):
        ended = ranks.run(program, size, agree, deadline=60, outlives=outlives)
        assert [("passed", [])] * size == [(each.outcome, each.noted) for each in ended], (run, ended)
