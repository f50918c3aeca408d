"""Imports run one way, as docs/design.md lists the rooms; no modules import each other in a circle."""

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "collective_rules"
DESIGN = ROOT / "docs" / "design.md"


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package stands for its `__init__`."""
    files = (ROOT / PACKAGE).rglob("*.py")
    return {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}


@cache
def imported_by(module: str) -> frozenset[str]:
    """The modules of the package that `module` imports anywhere, also inside functions and for types alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom) and node.module in modules():
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in modules() else node.module for name in inner)
    return frozenset(found - {module})


def room_of(module: str) -> str:
    """The folder or top-level file in which a module stands."""
    return module.partition(".")[2].partition(".")[0] or "__init__"


def rooms() -> list[str]:
    """The rooms as the design lists them, from the ground up."""
    table = DESIGN.read_text(encoding="utf-8").partition("<!-- rooms: from the ground up -->")[2]
    return re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_the_design_lists_every_room_once() -> None:
    """A new folder or top-level file gets a line in docs/design.md, where it may import what stands above it."""
    assert sorted({room_of(module) for module in modules()}) == sorted(rooms())


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_rooms_that_stand_above_it_in_the_table(room: str) -> None:
    """Otherwise move the code to a lower room, or pass in what it needs."""
    ground = rooms()[: rooms().index(room) + 1]
    own = [module for module in modules() if room_of(module) == room]
    upward = [(module, name) for module in own for name in imported_by(module) if room_of(name) not in ground]
    assert [] == upward


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Within a room neither."""
    graph = {module: imported_by(module) for module in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(reversed(error.args[1]))}", pytrace=False)
