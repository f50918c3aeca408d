"""What every test shares: the hypothesis profiles and the folder of recorded facts."""

import os
from pathlib import Path

# Read when torch is imported. A functional send leaves a Work behind that cannot be waited for (testing/posting.py says
# why), of which torch warns when the process ends, once for each.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import pytest
from hypothesis import settings

# No deadline: an example may start gloo ranks or a sandbox process, whose time says nothing about the law.
settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
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
