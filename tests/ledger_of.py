"""Run a script under `RuleMode(check=True)` and a guard, on each rank, and write what it communicated.

With it goes what gloo's Flight Recorder holds of it, where the environment asks for one.

Started as `-m tests.ledger_of DIRECTORY SCRIPT [ARGS…]` on each rank, by `fork_ranks`.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import collective_rules as cr
from collective_rules.records import to_record
from tests.flight_recorded import dump


def described(ledger: cr.Ledger) -> list[dict[str, Any]]:
    """Each call as plain data, without what differs from run to run: time, memory, and names of groups."""
    lines = []
    for entry in ledger.entries:
        record = to_record(entry.call)
        record["group"].pop("name", None)
        record.pop("index", None)
        lines.append({**_without_memory(record), "module": entry.module, "phase": entry.phase, "step": entry.step})
    return lines


def _without_memory(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_memory(item) for name, item in value.items() if name not in {"memory", "timeout"}}
    return [_without_memory(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    directory, script, *arguments = sys.argv[1:]
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    with cr.guard(agree=False) as guard, cr.RuleMode(check=True) as ledger:
        runpy.run_path(script, run_name="__main__")
    told = {
        "calls": described(ledger),
        "findings": [str(finding) for finding in (*ledger.findings, *guard.findings)],
        "records": [to_record(call) for call in ledger.calls],
        "guarded": [to_record(call) for call in guard.ledger.calls],
        "recorder": dump(),
    }
    (Path(directory) / f"rank{os.environ['RANK']}.json").write_text(json.dumps(told))
    sys.stdout.flush()
    os._exit(0)  # at times torch aborts a process that ends well, while its threads are taken down


if __name__ == "__main__":
    main()
