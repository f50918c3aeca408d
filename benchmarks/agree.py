"""What comparing the programs of all ranks costs as they grow: `python benchmarks/agree.py [--json] [--sizes 10 ...]`.

Every rank makes a thousand calls, as FSDP × TP would: all_gathers, reduce_scatters and all_reduces in two groups, all
described afresh (no two calls share anything). Each size runs in a fresh process: seconds of making the calls, of
`agree`, and the peak memory with all calls held. "fault" changes one number of one call. "exchange" is an all_to_all
with uneven split sizes on 64 ranks, where the data themselves are W².
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from typing import Any

from rich.console import Console
from rich.table import Table

CALLS = 1000
SIZES = (10, 100, 1000)
WANTED_CALLS, WANTED_SECONDS, WANTED_BYTES = 1_000_000, 30.0, 2e9


def training(ranks: int, fault: bool) -> list[Any]:
    """Return the calls of `ranks` programs; with `fault`, one size of one call is wrong."""
    import collective_rules as cr  # noqa: PLC0415 - the parent process need not load torch

    calls = []
    for rank in range(ranks):
        row = tuple(range(rank - rank % 10, rank - rank % 10 + 10))
        column = tuple(range(rank % 10, ranks, 10))
        tp = cr.Group(10, rank % 10, f"tp{row[0]}", row)
        dp = cr.Group(len(column), rank // 10, f"dp{rank % 10}", column)
        for step in range(CALLS // 4):
            shard = 16 + step % 50
            whole = shard * dp.size
            wrong = fault and rank == ranks // 2 and step == 100
            calls += [
                cr.call("c10d::_allgather_base_", group=dp, input_tensor=(shard, 64), output_tensor=(whole, 64)),
                cr.call("c10d::allreduce_", group=tp, tensors=[(1024 + wrong, 64)]),
                cr.call("c10d::allreduce_", group=tp, tensors=[(1024, 64)]),
                cr.call("c10d::_reduce_scatter_base_", group=dp, input_tensor=(whole, 64), output_tensor=(shard, 64)),
            ]
    return calls


def exchange(calls: int) -> list[Any]:
    """Return `calls` calls of uneven all_to_alls on 64 ranks."""
    import collective_rules as cr  # noqa: PLC0415 - the parent process need not load torch

    made, ranks = [], 64
    for step in range(calls // ranks):
        for rank in range(ranks):
            sent = [(rank * peer + step) % 7 for peer in range(ranks)]
            expected = [(peer * rank + step) % 7 for peer in range(ranks)]
            made.append(
                cr.call(
                    "c10d::alltoall_base_",
                    group=cr.Group(ranks, rank),
                    input=(sum(sent), 64),
                    output=(sum(expected), 64),
                    input_split_sizes=sent,
                    output_split_sizes=expected,
                )
            )
    return made


def measure_here(what: str, ranks: int) -> dict[str, Any]:
    """Measure in this process."""
    warnings.filterwarnings("ignore")
    import collective_rules as cr  # noqa: PLC0415 - the parent process need not load torch

    start = time.perf_counter()
    calls = exchange(ranks * CALLS) if what == "exchange" else training(ranks, fault=what == "fault")
    made = time.perf_counter()
    found = cr.agree(calls)
    end = time.perf_counter()
    return {
        "what": what,
        "calls": len(calls),
        "findings": [finding.message.splitlines()[0] for finding in found],
        "make_seconds": made - start,
        "agree_seconds": end - made,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def measure(what: str, ranks: int) -> dict[str, Any]:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, "--one", what, str(ranks)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=900, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def judge(rows: list[dict[str, Any]]) -> list[str]:
    """Return the goals that were missed."""
    missed = []
    for row in rows:
        if len(row["findings"]) != (row["what"] == "fault"):
            missed.append(f"{row['what']} of {row['calls']} calls: {len(row['findings'])} findings")
        if row["what"] != "exchange" and row["calls"] >= WANTED_CALLS:
            if row["agree_seconds"] > WANTED_SECONDS:
                missed.append(f"{row['calls']} calls took {row['agree_seconds']:.1f} s, not {WANTED_SECONDS:.0f}")
            if row["peak_bytes"] > WANTED_BYTES:
                missed.append(
                    f"{row['calls']} calls took {row['peak_bytes'] / 1e9:.2f} GB, not {WANTED_BYTES / 1e9:.0f}"
                )
    return missed


def main() -> int:
    """Measure each size and say which goals are met; the exit status is 1 where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of ranks, of 1,000 calls each")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_here(options.one[0], int(options.one[1]))))
        return 0
    rows = [measure("training", size) for size in options.sizes]
    rows += [measure("fault", max(options.sizes)), measure("exchange", min(options.sizes))]
    missed = judge(rows)
    if options.json:
        print(json.dumps({"rows": rows, "missed": missed}, indent=2))
        return int(bool(missed))
    table = Table("what", "calls", "made in s", "agree in s", "µs a call", "peak GB", "found")
    for row in rows:
        times = (f"{row['make_seconds']:.1f}", f"{row['agree_seconds']:.2f}")
        each = f"{row['agree_seconds'] / row['calls'] * 1e6:.1f}"
        found = str(len(row["findings"]))
        table.add_row(row["what"], f"{row['calls']:,}", *times, each, f"{row['peak_bytes'] / 1e9:.2f}", found)
    console = Console(width=120)
    console.print(table)
    for text in missed:
        console.print(f"missed: {text}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
