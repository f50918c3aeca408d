"""What every test shares: hypothesis profiles, the folder of recorded facts, and process groups that send nothing."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Read when torch is imported. A functional send leaves a Work behind that cannot be waited for (testing/dispatch.py
# says why), of which torch warns when the process ends, once for each.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
# Tests run side by side, and start processes that do: more threads would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch.distributed as dist
from hypothesis import settings
from torch._C._distributed_c10d import FakeProcessGroup
from torch.testing._internal.distributed.fake_pg import FakeStore

from collective_rules.cli import main

if TYPE_CHECKING:
    from tests.live_ranks import Ranks

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts a process in the background so, and the processes that tests start and interrupt would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: an example may start gloo ranks or a sandbox process, whose time says nothing about the law.
settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, max_examples=50)
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=2_000)

# `--hypothesis-profile` is read after this file is imported, so it wins.
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded facts beside the checkout; the test is skipped where there is none."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("no folder ../shared beside the checkout: its recorded facts cannot be compared")
    return path


@pytest.fixture(scope="module")
def ranks() -> Iterator["Ranks"]:
    """Forks ranks that are compared while they run; one process for all tests of a file."""
    from tests.live_ranks import Ranks  # noqa: PLC0415 - it imports much of torch

    started = Ranks()
    yield started
    started.close()


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    """Rank 1 of a fake group of four, in which no collective is ever sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture
def silent() -> Iterator[dist.ProcessGroup]:
    """The same, but a collective that reaches the backend raises."""
    options = FakeProcessGroup.Options()
    options.error_on_collective = True
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=4, pg_options=options)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Carry out a command line in this process; return its status, standard output and standard error."""

    def carry_out(*arguments: object) -> tuple[int, str, str]:
        status = main([*map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return carry_out
