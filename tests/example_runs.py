"""Runs of scripts in real processes on gloo, once each for all tests: the examples of the documentation, and others."""

from __future__ import annotations

import functools
import json
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from tests.commands import ROOT
from tests.forked_ranks import fork_ranks

__all__ = ["EXAMPLES", "SIZE", "run_example", "what_is_printed", "with_ledgers", "write_script"]

EXAMPLES = sorted(path for path in (ROOT / "docs" / "examples").glob("*.py") if path.name != "llama.py")
SIZE = 4


def write_script(folder: Path, text: str) -> str:
    """Return the path of a new script."""
    path = folder / "train.py"
    path.write_text(textwrap.dedent(text))
    return str(path)


def run_example(script: Path) -> tuple[dict[str, Any], ...]:
    """Return what `ledger_of` writes for each of the four ranks of a run on gloo."""
    return with_ledgers(script, SIZE)[0]


def what_is_printed(script: Path) -> str:
    """Return what all ranks of that run print."""
    return with_ledgers(script, SIZE)[1]


@functools.cache
def with_ledgers(script: Path, size: int, arguments: tuple[str, ...] = ()) -> tuple[tuple[dict[str, Any], ...], str]:
    """Run `script` on `size` ranks, once; return what `ledger_of` writes for each rank, and what all ranks print."""
    with tempfile.TemporaryDirectory() as directory:
        printed = fork_ranks(size, "-m", "tests.ledger_of", directory, str(script), *arguments)
        written = tuple(json.loads((Path(directory) / f"rank{rank}.json").read_text()) for rank in range(size))
        return written, printed
