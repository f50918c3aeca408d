"""What `import collective_rules` loads, and that its other names are there all the same, for people and for mypy."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import collective_rules as cr

CORE = """
import json, sys
import torch
before = {*sys.modules}
import collective_rules
print(json.dumps(sorted({*sys.modules} - before)))
"""
ROOMS = (
    "agreement",
    "cli",
    "comparison",
    "conformance",
    "dryrun",
    "ledger",
    "live",
    "mode",
    "recordings",
    "reports",
    "rule_mode",
)
HEAVY = ("hypothesis", "typer", "torch", "sympy", "rich", "jinja2")


def test_importing_the_library_loads_the_tables_and_their_readers_alone() -> None:
    """Nothing more of torch, either: `import torch` has loaded what they need."""
    loaded = json.loads(subprocess.check_output([sys.executable, "-W", "ignore", "-c", CORE]))
    assert "collective_rules.check" in loaded
    rooms = {name.split(".")[1] for name in loaded if name.startswith("collective_rules.")}
    assert set() == rooms & {*ROOMS, "sandbox", "testing"}
    assert set() == {name.split(".")[0] for name in loaded} & {*HEAVY}


@pytest.mark.parametrize("name", cr.__all__)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    assert name in dir(cr)
    assert getattr(cr, name) is getattr(cr, name)


def test_a_name_that_is_imported_on_demand_is_declared_for_type_checkers() -> None:
    """From the module that it is really taken from."""
    tree = ast.parse(Path(cr.__file__).read_text())
    blocks = [node.body for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    declared = {alias.name: node.module for node in blocks[0] for alias in node.names}
    assert cr._ON_DEMAND == declared
    assert {*declared} <= {*cr.__all__}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'collective_rules' has no attribute 'xyzzy'"):
        cr.xyzzy  # noqa: B018 - reading it is the test
