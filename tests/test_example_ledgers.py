"""What the examples communicate: in four real processes on gloo, and in a dry run of the same script."""

import json
from pathlib import Path

import pytest

from collective_rules.dryrun import run_script
from tests.example_runs import EXAMPLES, SIZE, run_example
from tests.ledger_of import described

# What torch warns of in the examples is not looked at here.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("examples")]


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_a_dry_run_communicates_what_real_processes_do(script: Path) -> None:
    """Call by call, with sizes, groups, lines, modules and phases, on every rank; and the real run has no finding."""
    for rank, real in enumerate(run_example(script)):
        dry = run_script(str(script), [], world_size=SIZE, rank=rank)
        assert [] == real["findings"]
        assert ("finished", None) == (dry.reason, dry.error)
        assert real["calls"]
        assert real["calls"] == json.loads(json.dumps(described(dry.ledger)))
