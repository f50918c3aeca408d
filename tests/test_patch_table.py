"""The table of patches: each row has a target in the running torch, and a replacement."""

import importlib
import inspect
import pkgutil

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
    ("row", "words"),
    [
        (Patch("torch", "compile", "training.nobody", "of a test"), "names training.nobody, but there is no such"),
        (
            Patch("torch", "_gone", "devices._nothing", "of a test"),
            r"has no torch._gone, .* since of a test: use a torch",
        ),
        (Patch("torch._gone", "f", "devices._nothing", "of a test"), "has no torch._gone.f"),
    ],
)
def test_a_row_that_cannot_be_applied_is_refused(row: Patch, words: str) -> None:
    patches = Patches([row])
    with pytest.raises(CollectiveRulesError, match=words):
        patches.finish()


@pytest.mark.parametrize(
    "row",
    [
        Patch("torch", "_gone", "devices._nothing", "of a test", may_be_absent=True),
        Patch("torch", "_gone", "devices._nothing", "of a test", until="2.0"),
        Patch("torch", "_gone", "devices._nothing", "of a test", since="99.0"),
    ],
    ids=["may be absent", "before", "later"],
)
def test_a_row_of_another_torch_is_left_out(row: Patch) -> None:
    patches = Patches([row])
    patches.finish()
    patches.undo()
    assert not hasattr(torch, "_gone")
