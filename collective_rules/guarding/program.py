"""Runs a script or a module as Python would, under a guard, and says at its end what was wrong."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from collective_rules.errors import CallError, CollectiveRulesError, DisagreementError
from collective_rules.finding import ERROR, Finding
from collective_rules.guarding.guard import Guard
from collective_rules.ledger import Ledger
from collective_rules.places import run_as_main, status_of

_LAST = 8
INTERRUPTED = 130


def run_program(guard: Guard, name: str, arguments: Sequence[str], *, is_module: bool = False) -> int:
    """Run the script, or the module `name`, under `guard`, and return its exit status: 1 where an error ended it.

    Raises `CollectiveRulesError` where there is no such script; what the program raises is printed as Python would
    print it, and the last calls of this rank behind it.
    """
    if not is_module and not Path(name).is_file():
        raise CollectiveRulesError(f"{name}: no such script (a module is run by -m)")
    arguments_before, path_before = sys.argv[:], sys.path[:]
    sys.argv[:] = [name, *arguments]
    sys.path.insert(0, os.getcwd() if is_module else str(Path(name).resolve().parent))
    status = 0
    raised: BaseException | None = None
    try:
        with guard:
            run_as_main(name, is_file=not is_module)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        status = status_of(error)
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseException as error:
        traceback.print_exc()
        status, raised = 1, error
    finally:
        sys.argv[:], sys.path[:] = arguments_before, path_before
    tell(guard.ledger, guard.findings, raised, ended_well=not status)
    return status


def tell(ledger: Ledger, findings: Sequence[Finding], raised: BaseException | None = None, *, ended_well: bool) -> None:
    """Write the findings to standard error, and the last calls of this rank where the program did not end well.

    Those that `raised` holds stand in its text, which was written before.
    """
    rank = os.environ.get("RANK", "")
    who = f"collective-rules, rank {rank}" if rank else "collective-rules"
    told = raised.findings[:1] if isinstance(raised, (CallError, DisagreementError)) else ()
    for finding in findings:
        if finding in told:
            continue
        print(f"{who}: {finding.severity}: {finding.message}", file=sys.stderr)
    if not ended_well or any(finding.severity == ERROR for finding in findings):
        print(f"{who}: the last calls of this rank", file=sys.stderr)
        for entry in ledger.entries[-_LAST:]:
            group = f"group {entry.facts.group}" if entry.facts.group else "its group"
            place = f"  {entry.source}" if entry.source else ""
            print(f"  call {entry.index} of {group}: {entry.call.op} {entry.facts.sizes}{place}", file=sys.stderr)
    sys.stderr.flush()
