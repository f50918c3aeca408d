"""The examples of the README and of the pages beside it print what they say."""

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/mode.md", "docs/live.md", "docs/testing.md"])
def test_the_examples_of_a_page_run(page: str) -> None:
    """Each shows its real output."""
    failed, tried = doctest.testfile(str(ROOT / page), module_relative=False)
    assert 0 == failed
    assert tried > 4
