"""Measures a backend: which ops, dtypes and reduce ops it takes, and what it does with broken calls.

It knows which ops can be measured, and the order of the parts of a run. It neither draws nor carries out examples.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from collective_rules.backends import BACKENDS
from collective_rules.conformance.examples import ExamplePlan
from collective_rules.conformance.process_runner import Ranks, first_failure, run_legal
from collective_rules.conformance.results import Conformance, Failure, KindResult, LegalResults, OpResult
from collective_rules.conformance.runner import Runner, Watch, nobody
from collective_rules.errors import CallError, UnknownOpError
from collective_rules.ops import OPS, Row, lookup
from collective_rules.sandbox import RAISES, Sandbox
from collective_rules.testing.dispatch import has_cpu_kernel
from collective_rules.testing.drawing import drawable
from collective_rules.testing.process_groups import resolve

__all__ = ["measure", "ops_to_measure", "plan_of", "unsupported"]

_SHRINKING, _LEAST_SHRINKING, _ALL_SHRINKING = 30.0, 3.0, 120.0
"""Seconds for the failing example of an op at most, at least, and for those of all ops together."""

_NO_SUCH_OP = re.compile(r"not (yet )?(support|implement)|NotImplemented|pure virtual|No backend type", re.IGNORECASE)


def measure(
    backend: str,
    *,
    ops: Sequence[str] = (),
    world_sizes: Sequence[int] = (1, 2, 3, 4),
    examples: int = 20,
    seed: int = 0,
    deadline: float = 1.0,
    limits: str | None = None,
    workers: int | None = None,
    box: Sandbox | None = None,
    ranks: Callable[[], AbstractContextManager[Ranks]] | None = None,
    device: str = "cpu",
    watch: Watch = nobody,
) -> Conformance:
    """Measure `backend`, which is what `resolve` takes as text, and return the results.

    - `ops`: names or patterns such as "c10d::*"; left out, every op that can be measured.
    - `examples`: the number of legal examples of each op; for each way to break a call, a tenth as many are broken.
    - `deadline`: seconds that a call may take. `workers`: how many calls are tried side by side, in a sandbox that is
      made for it; `box`: the sandbox to use instead.
    - `limits`: whose table says which calls are legal (the backend's own, if it has one). Without a table the rules
      alone do, but for the dtypes and reduce ops that the backend refuses.
    - `ranks`: makes the ranks, which are processes of one world size, with their tensors on `device`. Only legal calls
      are made then. Left out, all ranks are threads of one process.

    The same arguments try the same examples. Raises `CallError` for wrong arguments, and for a backend that cannot be
    found or started.

    >>> found = measure("gloo", ops=["c10d::barrier"], world_sizes=[2], examples=1, workers=1)
    >>> found.conforms, found.totals["passed"]
    (True, 1)
    """
    start = time.monotonic()
    plan = plan_of(backend, world_sizes, examples, seed, limits)
    rows, left_out = ops_to_measure(ops, plan)
    if ranks is None:
        if ":" not in backend:  # an unknown name raises here; what a factory's module does belongs in the sandbox
            resolve(backend)
        with Runner(backend, plan, deadline=deadline, workers=workers, box=box) as runner:
            results, ended = _measured(runner, rows, watch), ""
    else:
        with ranks() as world:
            legal, ended = run_legal(world, plan, rows, watch)
        results = []
        for row in rows:
            failure = first_failure(row.op, legal[row.op], backend, device) if legal[row.op].failed else None
            results.append(_op_result(row, legal[row.op], failure=failure))
    return Conformance(
        backend=backend,
        table=plan.table,
        torch=str(torch.__version__),
        sizes=plan.sizes,
        examples=examples,
        seed=seed,
        deadline=deadline,
        seconds=round(time.monotonic() - start, 2),
        ops=tuple(results),
        left_out=left_out,
        ranks="threads" if ranks is None else "processes",
        device=device,
        ended=ended,
    )


def _measured(runner: Runner, rows: Sequence[Row], watch: Watch) -> list[OpResult]:
    kinds = runner.kinds(rows, watch)
    lacking = {row.op: unsupported(kinds[row.op]) for row in rows if runner.plan.table is None}
    rest = [row for row in rows if not lacking.get(row.op)]
    drawn = {row.op: runner.legal_kinds(kinds[row.op], row) for row in rest}
    legal = runner.legal(rest, drawn, watch)
    broken = runner.broken(rest, drawn, watch)
    failing = [row for row in rest if legal[row.op].failed]
    seconds = max(_LEAST_SHRINKING, min(_SHRINKING, _ALL_SHRINKING / max(len(failing), 1)))
    failures: dict[str, Failure] = {}
    for place, row in enumerate(failing):
        watch("shrinking failures", place, len(failing))
        failures[row.op] = runner.failure(row, drawn[row.op], legal[row.op], seconds=seconds)
    return [
        _op_result(
            row,
            legal.get(row.op, LegalResults()),
            kinds=kinds[row.op],
            ways=broken.get(row.op, ()),
            failure=failures.get(row.op),
            unsupported=lacking.get(row.op, ""),
        )
        for row in rows
    ]


def _op_result(row: Row, legal: LegalResults, **more: Any) -> OpResult:
    return OpResult(op=row.op, rule=row.rule.name, legal=legal.outcomes, skipped=legal.skipped, **more)


def plan_of(backend: str, world_sizes: Sequence[int], examples: int, seed: int, limits: str | None) -> ExamplePlan:
    """Return the plan of a run; raise `CallError` for wrong numbers, or an unknown table."""
    sizes = tuple(sorted(set(world_sizes)))
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise CallError(f"world_sizes={world_sizes!r}, but should be numbers of ranks, each at least 1")
    if isinstance(examples, bool) or not isinstance(examples, int) or examples < 1:
        raise CallError(f"examples={examples!r}, but should be a whole number of at least 1")
    if limits is not None and limits not in BACKENDS:
        raise CallError(f"limits={limits!r}, but should be one of {', '.join(map(repr, BACKENDS))}")
    return ExamplePlan(sizes, examples, seed, limits or (backend if backend in BACKENDS else None))


def ops_to_measure(patterns: Sequence[str], plan: ExamplePlan) -> tuple[list[Row], dict[str, str]]:
    """Return the ops that match any pattern and can be measured, and why the others that match cannot.

    >>> rows, left_out = ops_to_measure(["c10d::*gather*"], ExamplePlan((2,), 1, 0))
    >>> len(rows), left_out
    (5, {'c10d::gather_into_tensor_': 'it is not in torch ...'})
    """
    for pattern in patterns:
        if not fnmatch.filter(OPS, pattern):
            near = [] if set(pattern) & set("*?[") else difflib.get_close_matches(pattern, list(OPS), n=1)
            raise CallError(f"no op matches {pattern!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    chosen = [op for op in OPS if not patterns or any(fnmatch.fnmatchcase(op, pattern) for pattern in patterns)]
    reasons = {op: _why_not(op, plan) for op in chosen}
    rows = [lookup(op) for op in chosen if not reasons[op]]
    if not rows:
        op, why = next(iter(reasons.items()))
        raise CallError(f"nothing to measure: {op}: {why}")
    return rows, {op: why for op, why in reasons.items() if why}


def _why_not(op: str, plan: ExamplePlan) -> str:
    try:
        row = lookup(op)
    except UnknownOpError:
        return f"it is not in torch {torch.__version__}"
    if not row.available:
        return f"it is not in torch {torch.__version__}"
    if not has_cpu_kernel(row):
        return "it has no CPU kernel"
    if not plan.sizes_for(row):
        return "it takes two ranks"
    return drawable(row)


def unsupported(kinds: Sequence[KindResult]) -> str:
    """Return the backend's error where it does not have the op at all, "" where it has.

    >>> unsupported([KindResult("", "float32", "raises", "rank 0: RuntimeError: Backend x does not support alltoall")])
    'RuntimeError: Backend x does not support alltoall'
    """
    if not kinds or any(kind.outcome != RAISES or not _NO_SUCH_OP.search(kind.message) for kind in kinds):
        return ""
    return re.sub(r"^rank \d+: ", "", kinds[0].message.splitlines()[0])
