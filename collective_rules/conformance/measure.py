"""Measures a backend: which ops, dtypes and reduce ops it takes, and what it does with broken calls.

It knows which ops can be measured, and the order of the parts of a run. It neither draws nor carries out examples.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import attrs
import torch

from collective_rules.backends import BACKENDS, table_of
from collective_rules.conformance.examples import ExamplePlan
from collective_rules.conformance.process_runner import Ranks, first_failure, run_legal
from collective_rules.conformance.results import Conformance, Failure, KindResult, LegalResults, OpResult
from collective_rules.conformance.runner import Runner, Watch, nobody
from collective_rules.conformance.selection import Selection, expectations_of, selection_of
from collective_rules.errors import CallError, UnknownOpError
from collective_rules.ops import OPS, Row, lookup
from collective_rules.sandbox import RAISES, Sandbox
from collective_rules.testing.dispatch import has_cpu_kernel
from collective_rules.testing.drawing import drawable
from collective_rules.testing.process_groups import resolve

_SHRINKING, _LEAST_SHRINKING, _ALL_SHRINKING = 30.0, 3.0, 120.0
"""Seconds for the failing example of an op at most, at least, and for those of all ops together."""

_NO_SUCH_OP = re.compile(r"not (yet )?(support|implement)|NotImplemented|pure virtual|No backend type", re.IGNORECASE)


def measure(
    backend: str,
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    expect_failures: Mapping[str, str] | None = None,
    world_sizes: Sequence[int] = (1, 2, 3, 4),
    examples: int = 20,
    seed: int = 0,
    deadline: float = 1.0,
    limits: str | None = None,
    workers: int | None = None,
    box: Sandbox | None = None,
    ranks: Callable[[int], AbstractContextManager[Ranks]] | None = None,
    device: str = "cpu",
    watch: Watch = nobody,
) -> Conformance:
    """Measure `backend`, which is what `resolve` takes as text, and return the results.

    - `select`: the ops, by names or patterns such as "c10d::*" (left out: every op that can be measured), and the ids
      of the constraints and limits that are broken (left out: all); `ignore`: those to leave out.
    - `expect_failures`: op, or a pattern → why it fails. It then fails as expected, which is no failure of the backend.
    - `examples`: the number of legal examples of each op; for each way to break a call, a tenth as many are broken.
    - `deadline`: seconds that a call may take. `workers`: how many calls are tried side by side, in a sandbox that is
      made for it; `box`: the sandbox to use instead.
    - `limits`: whose table says which calls are legal (the backend's own, if it has one), or the place of a table such
      as "my_package:TABLE". Without a table the rules alone do, but for the dtypes and reduce ops that the backend
      refuses, and for lists of several tensors where torch.distributed passes one.
    - `ranks`: makes so many ranks, which are processes, with their tensors on `device`. Only legal calls are made then.
      Left out, all ranks are threads of one process.

    The same arguments try the same examples. Raises `CallError` for wrong arguments, and for a backend that cannot be
    found or started.

    >>> found = measure("gloo", select=["c10d::barrier"], world_sizes=[2], examples=1, workers=1)
    >>> found.conforms, found.totals["passed"]
    (True, 1)
    """
    start = time.monotonic()
    plan = plan_of(backend, world_sizes, examples, seed, limits)
    chosen = selection_of(select, ignore, plan.table)
    plan = attrs.evolve(plan, ids=chosen.ids, spared=chosen.spared)
    rows, left_out = ops_to_measure(chosen, plan)
    expected = expectations_of(expect_failures or {})
    if ranks is None:
        if ":" not in backend:  # an unknown name raises here; what a factory's module does belongs in the sandbox
            resolve(backend)
        with Runner(backend, plan, deadline=deadline, workers=workers, box=box) as runner:
            results, ended = _measured(runner, rows, watch), ""
    else:
        legal, ended = run_legal(ranks, plan, rows, watch)
        results = []
        for row in rows:
            lacking = plan.untaken(row) or (unsupported((), legal[row.op]) if plan.table is None else "")
            mine = LegalResults() if lacking else legal[row.op]
            failure = first_failure(row.op, mine, backend, device) if mine.failed else None
            results.append(_op_result(row, mine, failure=failure, unsupported=lacking))
    return Conformance(
        backend=backend,
        table=plan.table,
        torch=str(torch.__version__),
        sizes=plan.sizes,
        examples=examples,
        seed=seed,
        deadline=deadline,
        seconds=round(time.monotonic() - start, 2),
        ops=tuple(attrs.evolve(result, expected=expected.get(result.op, "")) for result in results),
        left_out=left_out,
        ranks="threads" if ranks is None else "processes",
        device=device,
        ended=ended,
    )


def _measured(runner: Runner, rows: Sequence[Row], watch: Watch) -> list[OpResult]:
    kinds = runner.kinds(rows, watch)
    plan, without_table = runner.plan, runner.plan.table is None
    lacking = {row.op: unsupported(kinds[row.op]) if without_table else plan.untaken(row) for row in rows}
    drawn = {row.op: runner.legal_kinds(kinds[row.op], row) for row in rows}
    rest = [row for row in rows if not lacking[row.op]]
    legal = runner.legal(rest, drawn, watch)
    lacking |= {row.op: unsupported((), legal.pop(row.op)) for row in rest if without_table and _lacks(legal[row.op])}
    rest = [row for row in rest if not lacking[row.op]]
    optional = runner.optional(rest if without_table else rows, drawn, watch)
    broken = runner.broken(rest, drawn, watch)
    lies = {row.op: runner.lies(row, kinds[row.op]) for row in rest}
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
            unsupported=lacking[row.op],
            lies=lies.get(row.op, ()),
            optional=optional.get(row.op, {}),
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
    if limits is not None:
        table_of(limits, "limits")
    return ExamplePlan(sizes, examples, seed, limits or (backend if backend in BACKENDS else None))


def ops_to_measure(chosen: Selection, plan: ExamplePlan) -> tuple[list[Row], dict[str, str]]:
    """Return the ops that are chosen and can be measured, and why the others that are chosen cannot.

    >>> rows, left_out = ops_to_measure(selection_of(["c10d::*gather*"], [], None), ExamplePlan((2,), 1, 0))
    >>> len(rows), left_out
    (5, {'c10d::gather_into_tensor_': 'it is not in torch ...'})
    """
    reasons = {op: "it is ignored" if chosen.ignores(op) else _why_not(op, plan) for op in OPS if chosen.selects(op)}
    rows = [lookup(op) for op, why in reasons.items() if not why]
    if not reasons:
        raise CallError("nothing to measure: no op has all that is selected")
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


def unsupported(kinds: Sequence[KindResult], legal: LegalResults | None = None) -> str:
    """Return the backend's error where it does not have the op at all, "" where it has.

    Of an op that moves no tensors (a barrier) there are no kinds: its legal calls tell.

    >>> unsupported([KindResult("", "float32", "raises", "rank 0: RuntimeError: Backend x does not support alltoall")])
    'RuntimeError: Backend x does not support alltoall'
    """
    tried = [(kind.outcome, kind.message) for kind in kinds]
    if legal is not None:
        tried += [(result.outcome, result.message) for _, result in legal.tried.values()]
    if not tried or any(outcome != RAISES or not _NO_SUCH_OP.search(message) for outcome, message in tried):
        return ""
    return re.sub(r"^rank \d+: ", "", tried[0][1].splitlines()[0])


def _lacks(legal: LegalResults) -> bool:
    return bool(unsupported((), legal))
