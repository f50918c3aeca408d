"""The table of patches: each row has a target in the running torch, and a replacement."""

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
import torch

from collective_rules import dryrun
from collective_rules.dryrun.patch_table import PATCHES, Patch
from collective_rules.dryrun.patches import Patches, absent, is_in_force
from collective_rules.errors import CollectiveRulesError

ROOMS = [importlib.import_module(f"{dryrun.__name__}.{room.name}") for room in pkgutil.iter_modules(dryrun.__path__)]


@pytest.mark.parametrize("row", PATCHES, ids=lambda row: f"{row.owners}.{row.attributes}"[:60])
def test_the_running_torch_has_the_target_of_each_row(row: Patch) -> None:
    """And has none of the targets of another version: a bound that is wrong is found, too."""
    missing = absent(row)
    if is_in_force(row):
        assert [] == missing, (
            f"torch {torch.__version__} lacks {', '.join(missing)}: look up what replaced it there, give the row in "
            f"patch_table.py until={torch.__version__.partition('+')[0]!r}, and add a row since= for its successor"
        )
    else:
        assert missing, (
            f"torch {torch.__version__} has {row.owners} {row.attributes}: change since= or until= of the row"
        )


def test_each_replacement_has_a_row() -> None:
    """A replacement is a function whose first parameter is named `original`."""
    replacements = {
        f"{room.__name__.rpartition('.')[2]}.{name}"
        for room in ROOMS
        for name, function in inspect.getmembers(room, inspect.isfunction)
        if function.__module__ == room.__name__ and "original" in list(inspect.signature(function).parameters)[:1]
    }
    assert len(replacements) > 20
    assert set() == replacements - {row.by for row in PATCHES}


def test_no_target_stands_twice() -> None:
    targets = [(owner, name) for row in PATCHES for owner in row.owners.split() for name in row.attributes.split()]
    assert len(set(targets)) == len(targets)


def test_a_replacement_without_a_row_is_refused() -> None:
    def double(original: object) -> None: ...

    with pytest.raises(CollectiveRulesError, match=r"test_patch_table\.double replaces something, but .* has no row"):
        Patches().replace(double)


@pytest.mark.parametrize(
    ("owner", "by", "words"),
    [
        ("torch", "training.nobody", "names training.nobody, but there is no such"),
        ("torch", "devices._nothing", r"has no torch._gone, .* since of a test: use a torch"),
        ("torch._gone", "devices._nothing", "has no torch._gone._gone"),
    ],
)
def test_a_row_that_cannot_be_applied_is_refused(owner: str, by: str, words: str) -> None:
    with pytest.raises(CollectiveRulesError, match=words):
        Patches([Patch(owner, "_gone", by, "of a test")]).finish()


@pytest.mark.parametrize("column", [{"may_be_absent": True}, {"until": "2.0"}, {"since": "99.0"}], ids=str)
def test_a_row_of_another_torch_is_left_out(column: dict[str, Any]) -> None:
    patches = Patches([Patch("torch", "_gone", "devices._nothing", "of a test", **column)])
    patches.finish()
    patches.undo()
    assert not hasattr(torch, "_gone")
