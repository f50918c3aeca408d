"""What a dry run costs as the world grows: `python benchmarks/dry_run.py [--json] [--sizes 64 1024 ...]`.

An optimizer step of an 8-billion-parameter Llama-shaped model, FSDP2 × TP (8), `docs/examples/fsdp2_tp.py` as it is.
Each size runs in a fresh process: seconds of the whole process, of the dry run in it, its CPU seconds (on a busy
machine the truer figure) and its peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

SCRIPT = Path(__file__).parents[1] / "docs" / "examples" / "fsdp2_tp.py"
SIZES = (64, 1024, 8192, 65536)
ARGUMENTS = ("--config", "8b", "--tp", "8", "--device", "cuda", "--length", "8192")
WANTED = {1024: (20.0, 1e9), 65536: (None, 2e9)}
RATIO = 2.0


def measure_here(world_size: int) -> dict[str, Any]:
    """Run the step in this process."""
    warnings.filterwarnings("ignore")
    from collective_rules.dryrun import run_script  # noqa: PLC0415 - the parent process need not load torch

    start = time.perf_counter()
    result = run_script(str(SCRIPT), ARGUMENTS, world_size=world_size, steps=1)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "world_size": world_size,
        "ended": result.reason,
        "error": None if result.error is None else str(result.error),
        "calls": result.ledger.count,
        "sent": result.ledger.total.sent,
        "dry_run_seconds": time.perf_counter() - start,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * 1024,
    }


def measure(world_size: int) -> dict[str, Any]:
    """Run the step in a fresh process."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--one", str(world_size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"seconds": time.perf_counter() - start}


def judge(rows: list[dict[str, Any]]) -> list[str]:
    """Return the goals that were missed."""
    by_size = {row["world_size"]: row for row in rows}
    missed = [f"W={row['world_size']}: {row['error']}" for row in rows if row["ended"] != "stopped"]
    for size, (seconds, memory) in WANTED.items():
        row = by_size.get(size)
        if row and seconds is not None and row["seconds"] > seconds:
            missed.append(f"W={size}: {row['seconds']:.1f} s, but should be under {seconds:.0f} s")
        if row and row["peak_bytes"] > memory:
            missed.append(f"W={size}: {row['peak_bytes'] / 1e9:.2f} GB, but should be under {memory / 1e9:.0f} GB")
    if 1024 in by_size and 65536 in by_size:
        ratio = by_size[65536]["seconds"] / by_size[1024]["seconds"]
        if ratio > RATIO:
            missed.append(f"W=65536 takes {ratio:.2f} times as long as W=1024, but should at most {RATIO:.0f} times")
    return missed


def main() -> int:
    """Measure each size and say which goals are met; the exit status is 1 where one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measure_here(options.one)) + "\n")
        return 0
    rows = [measure(size) for size in options.sizes]
    missed = judge(rows)
    if options.json:
        sys.stdout.write(json.dumps({"rows": rows, "missed": missed}, indent=1) + "\n")
        return int(bool(missed))
    table = Table("ranks", "seconds", "of them the dry run", "CPU seconds", "peak GB", "calls", "GB sent by rank 0")
    for row in rows:
        table.add_row(
            f"{row['world_size']:,}",
            f"{row['seconds']:.1f}",
            f"{row['dry_run_seconds']:.1f}",
            f"{row['cpu_seconds']:.1f}",
            f"{row['peak_bytes'] / 1e9:.2f}",
            str(row["calls"]),
            f"{row['sent'] / 1e9:.2f}",
        )
    console = Console()
    console.print(table)
    console.print("\n".join(missed) or "All goals are met.")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
