"""Runs a plan's legal examples on ranks that are processes, one group of calls after another.

It knows no backend: the ranks are those of a `ProcessWorld`, or of a job of torchrun's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import attrs

from collective_rules.conformance.examples import Calls, ExamplePlan
from collective_rules.conformance.reproducer import reproducer
from collective_rules.conformance.results import Failure, LegalResults, failure_of
from collective_rules.conformance.runner import Watch, nobody
from collective_rules.ops import Row
from collective_rules.sandbox import DIES, Result


class Ranks(Protocol):
    """What carries out groups of calls."""

    size: int

    def carry_out(self, calls: Calls) -> Result:
        """Make `calls`, one for each rank that takes part. Raises `EndedError` where the ranks cannot go on."""


class EndedError(Exception):
    """The ranks cannot go on; `result` is the last that they had."""

    def __init__(self, result: Result) -> None:
        super().__init__(str(result))
        self.result = result


class TerminatedError(BaseException):
    """SIGTERM has come: torchrun ends all ranks when one has died. Not an Exception: no backend's to catch."""


def run_legal(
    ranks: Callable[[int], AbstractContextManager[Ranks]], plan: ExamplePlan, rows: Sequence[Row], watch: Watch = nobody
) -> tuple[dict[str, LegalResults], str]:
    """Try the legal examples of each op in worlds of each size; return op → the results, and why the run ended early.

    `ranks` makes a world of so many ranks.
    """
    results = {row.op: LegalResults() for row in rows}
    for size in plan.sizes:
        sized = attrs.evolve(plan, sizes=(size,))
        with ranks(size) as world:
            ended = _run_size(world, sized, [row for row in rows if sized.sizes_for(row)], results, watch)
        if ended:
            return results, ended
    return results, ""


def _run_size(
    ranks: Ranks, plan: ExamplePlan, rows: Sequence[Row], results: dict[str, LegalResults], watch: Watch
) -> str:
    total, done = len(rows) * plan.examples, 0
    for row in rows:
        mine = results[row.op]
        calls: Calls = ()
        try:
            for example in plan.legal(row, None):
                if mine.is_hopeless:
                    mine.skipped += 1
                    continue
                calls = example.calls
                mine.tried[len(mine.tried)] = calls, ranks.carry_out(calls)
                done += 1
                watch("legal calls", done, total)
        except EndedError as ended:
            mine.tried[len(mine.tried)] = calls, ended.result
            return f"The job ended with {row.op}: after a hang, its ranks cannot go on."
        except TerminatedError:
            if calls:
                why = "the job was terminated: torchrun says which rank died"
                mine.tried[len(mine.tried)] = calls, Result(DIES, [why])
            return f"The job was terminated while it was at {row.op}."
    return ""


def first_failure(op: str, results: LegalResults, backend: str, device: str) -> Failure:
    """Return the first failing example, as it was drawn: in processes, a hundred tries for a smaller one take long."""
    calls, result = results.failed[0]
    program = reproducer(calls, backend, result, device=device)
    return failure_of(op, calls, result, program, shrunk=False, tries=1, alone=None)
