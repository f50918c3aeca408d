"""The README's examples print what it says."""

import doctest
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_examples_of_the_readme_run() -> None:
    """Each shows its real output."""
    failed, tried = doctest.testfile(str(README), module_relative=False)
    assert 0 == failed
    assert tried > 5
