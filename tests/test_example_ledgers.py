"""What the examples communicate: in four real processes on gloo, and in a dry run of the same script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from collective_rules.dryrun import run_script
from tests.ledger_of import described

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted(path for path in (ROOT / "docs" / "examples").glob("*.py") if path.name != "llama.py")
SIZE, DEADLINE = 4, 200

# What torch warns of in the examples is not looked at here.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_a_dry_run_communicates_what_real_processes_do(script: Path, tmp_path: Path) -> None:
    """Call by call, with sizes, groups, lines, modules and phases, on every rank; and the real run has no finding."""
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--nproc-per-node", str(SIZE)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    done = subprocess.run(
        [*command, "-m", "tests.ledger_of", str(tmp_path), str(script)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert 0 == done.returncode, done.stderr[-4000:]
    for rank in range(SIZE):
        real = json.loads((tmp_path / f"rank{rank}.json").read_text())
        dry = run_script(str(script), [], world_size=SIZE, rank=rank)
        assert [] == real["findings"]
        assert ("finished", None) == (dry.reason, dry.error)
        assert real["calls"]
        assert real["calls"] == json.loads(json.dumps(described(dry.ledger)))
