"""What the test harness carries out in a second: `python benchmarks/testing.py`, after `pip install expecttest`.

Legal examples in one process, against torch's MultiProcessTestCase, which spawns four processes for each test; broken
examples in the sandbox. All in one run: only the ratios mean anything on another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import unittest
import warnings
from collections.abc import Callable

import attrs

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch
import torch.distributed as dist
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

import collective_rules as cr
from collective_rules.sandbox import Sandbox
from collective_rules.testing import world
from collective_rules.testing.drawing import Wish, draw_calls
from collective_rules.testing.run_calls import TRY_CALLS, carry_out, payload_of
from collective_rules.testing.strategies import broken_calls, sample, ways_to_break
from collective_rules.testing.tensors import make
from collective_rules.testing.world import has_cpu_kernel

try:
    from torch.testing._internal.common_distributed import MultiProcessTestCase
except ModuleNotFoundError as error:
    sys.exit(f"benchmarks/testing.py: torch's test harness needs {error.name}: pip install {error.name}")

SIZE = 4
OPS = [op for op in cr.ops() if has_cpu_kernel(cr.lookup(op))]


@attrs.frozen
class Row:
    """One measurement: how many of `what` in a second, and what is wanted."""

    what: str
    per_second: float
    wanted: float | None = None
    peer: str = ""
    ratio: float | None = None
    wanted_ratio: float | None = None


class SpawnPerTest(MultiProcessTestCase):
    """torch's own way: four processes for one example."""

    world_size = SIZE

    def setUp(self) -> None:
        """Spawn."""
        super().setUp()
        self._spawn_processes()

    def test_one_example(self) -> None:
        """An all_reduce, judged."""
        store = dist.FileStore(self.file_name, self.world_size)
        dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.world_size)
        tensor = torch.full((3, 2), float(self.rank))
        dist.all_reduce(tensor)
        assert torch.equal(tensor, torch.full((3, 2), 6.0))
        dist.destroy_process_group()


def spawned_per_second() -> float:
    """Examples per second of a harness that spawns."""
    start = time.perf_counter()
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(SpawnPerTest).run(result)
    if not result.wasSuccessful() or result.testsRun != 1:
        sys.exit(f"torch's own harness failed: {result.errors or result.failures}")
    return 1 / (time.perf_counter() - start)


@st.composite
def of_four(draw: st.DrawFn, op: str) -> tuple[cr.Call, ...]:
    """A legal group of exactly four ranks."""
    return draw_calls(draw, cr.lookup(op), "gloo", SIZE, Wish(min_ranks=SIZE))


def rate(work: Callable[[], int]) -> float:
    """What `work` did, per second."""
    start = time.perf_counter()
    return work() / (time.perf_counter() - start)


def posted(groups: list[tuple[cr.Call, ...]]) -> Callable[[], int]:
    """Four-rank collectives alone, their tensors made beforehand."""
    ready = []
    for group in groups:
        made = {call.group.rank: make(call) for call in group}
        ops = [made[rank].call.op if rank in made else group[0].op for rank in range(SIZE)]
        ready.append((ops, [made[rank].arguments if rank in made else None for rank in range(SIZE)]))

    def work() -> int:
        for ops, arguments in ready:
            world(SIZE).run(ops, arguments)
        return len(ready)

    return work


def judged(groups: list[tuple[cr.Call, ...]]) -> int:
    """Carry out and judge each group; none may fail."""
    for group in groups:
        result = carry_out(world(SIZE), group)
        if result.outcome != "ok":
            sys.exit(f"{group}: {result!r}")
    return len(groups)


def measure(spread: int) -> list[Row]:
    """Measure everything; `spread` broken examples of each op and way."""
    groups = [group for op in OPS for group in sample(of_four(op), 20)]
    spawned = spawned_per_second()
    collectives, examples = rate(posted(groups)), rate(lambda: judged(groups))
    # As many side by side as a conformance run tries: most of them only wait for a rank that hangs.
    with Sandbox(deadline=20.0, workers=8 * (os.cpu_count() or 1)) as sandbox:
        ways = [broken_calls(op, way=way, most_ranks=SIZE) for op in OPS for way in ways_to_break(op)]
        cases = [payload_of(each.calls) for way in ways for each in sample(way, spread)]
        sandbox.run(TRY_CALLS, cases[0])  # the imports are not counted
        wrong = rate(lambda: len(list(sandbox.map(TRY_CALLS, cases))))
    peer = "MultiProcessTestCase"
    return [
        Row(f"collectives of {SIZE} ranks in one process", collectives, 250.0, peer, collectives / spawned),
        Row("… with tensors made and results judged", examples, None, peer, examples / spawned, 100.0),
        Row("examples of a harness that spawns for each", spawned),
        Row("broken examples in the sandbox", wrong, 20.0),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--broken", type=int, default=1, help="broken examples of each op and way (default 1)")
    options = parser.parse_args()
    rows = measure(options.broken)
    if options.json:
        print(json.dumps([attrs.asdict(row) for row in rows], indent=2))
        return
    table = Table("what", "per second", "wanted", "over", "ratio", "wanted", title=f"torch {torch.__version__}")
    for row in rows:
        table.add_row(
            row.what,
            f"{row.per_second:.1f}" if row.per_second >= 10 else f"{row.per_second:.3f}",
            "" if row.wanted is None else f"≥ {row.wanted:g}",
            row.peer,
            "" if row.ratio is None else f"{row.ratio:.0f}×",
            "" if row.wanted_ratio is None else f"≥ {row.wanted_ratio:g}×",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
