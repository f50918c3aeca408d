"""The conformance of a backend as a class of pytest tests, for the backend's author.

pytest is imported when a suite is asked for: the package does without it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from typing import Any

import attrs

from collective_rules.conformance.examples import Kind
from collective_rules.conformance.measure import ops_to_measure, plan_of, unsupported
from collective_rules.conformance.results import BROKEN_OUTCOMES, KindResult, LegalResults, OpResult
from collective_rules.conformance.runner import Runner
from collective_rules.conformance.selection import expectations_of, selection_of
from collective_rules.errors import CallError
from collective_rules.ops import lookup
from collective_rules.sandbox import DIES, HANGS, SILENTLY_WRONG
from collective_rules.testing.process_groups import Factory


def conformance_suite(
    backend: str | Factory,
    *,
    world_sizes: Sequence[int] = (1, 2, 3, 4),
    select: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    expect_failures: Mapping[str, str] | None = None,
    examples: int = 20,
    seed: int = 0,
    deadline: float = 1.0,
    limits: str | None = None,
    broken_may: Sequence[str] = BROKEN_OUTCOMES,
    seconds: float = 30.0,
) -> type:
    """Return a class of pytest tests of `backend`, with three tests of each op.

    As `TestMine = conformance_suite("my_package:factory")` in a test file, it is collected:

    - `test_legal_calls[op]` fails where a legal call fails, with a program that reproduces the smallest such call.
      An op that the backend does not have is skipped.
    - `test_broken_calls[op]` fails where a broken call has another outcome than those of "raises", "hangs", "dies" and
      "accepted" that `broken_may` lists. The test's property "broken" records the outcomes in any case.
    - `test_dtypes[op]` fails where the backend does not take what its table of limits admits; without a table, where it
      takes a dtype or reduce op and gets it wrong. The test's property "dtypes" records those that it takes.

    The tests of an op of `expect_failures` xfail where they would fail.

    `backend` is what `resolve` takes as text, or a factory that is a function of a module. Everything runs in processes
    of its own, `deadline` seconds a call; `seconds` may be spent on making a failing call smaller. The other arguments
    are those of `measure`.

    Raises `CallError` for arguments that are no good; a backend that cannot be started is an error of each test.

    >>> Suite = conformance_suite("gloo", select="c10d::*gather*", broken_may=["raises", "accepted"])
    >>> [name for name in vars(Suite) if name.startswith("test_")]
    ['test_legal_calls', 'test_broken_calls', 'test_dtypes']
    """
    import pytest  # noqa: PLC0415 - see the module's docstring

    name = backend if isinstance(backend, str) else place_of(backend)
    plan = plan_of(name, world_sizes, examples, seed, limits)
    chosen = selection_of(_listed(select), _listed(ignore), plan.table)
    plan = attrs.evolve(plan, ids=chosen.ids, spared=chosen.spared)
    rows, _ = ops_to_measure(chosen, plan)
    expected = expectations_of(expect_failures or {})
    unknown = [outcome for outcome in broken_may if outcome not in BROKEN_OUTCOMES]
    if unknown or isinstance(broken_may, str):
        raise CallError(f"broken_may={broken_may!r}, but should list some of {', '.join(BROKEN_OUTCOMES)}")
    each_op = pytest.mark.parametrize("op", [row.op for row in rows])

    def fail(op: str, fault: str) -> None:
        if fault and op in expected:
            pytest.xfail(expected[op])
        if fault:
            pytest.fail(fault, pytrace=False)

    class ConformanceSuite:
        @pytest.fixture(scope="class")
        def measured(self) -> Iterator[_Measured]:
            with Runner(name, plan, deadline=deadline) as runner:
                yield _Measured(runner)

        @each_op
        def test_legal_calls(self, op: str, measured: _Measured) -> None:
            measured.skip_unsupported(op, pytest.skip)
            fail(op, measured.legal_fault(op, seconds))

        @each_op
        def test_broken_calls(
            self, op: str, measured: _Measured, record_property: Callable[[str, object], None]
        ) -> None:
            measured.skip_unsupported(op, pytest.skip)
            counts, fault = measured.broken(op, broken_may)
            record_property("broken", counts)
            fail(op, fault)

        @each_op
        def test_dtypes(self, op: str, measured: _Measured, record_property: Callable[[str, object], None]) -> None:
            measured.skip_unsupported(op, pytest.skip)
            kinds = measured.kinds(op)
            record_property("dtypes", [f"{kind.reduce_op} {kind.dtype}".strip() for kind in kinds if kind.taken])
            fail(op, _kinds_fault(op, kinds))

    ConformanceSuite.__doc__ = f"Conformance of {name}."
    return ConformanceSuite


def _listed(texts: str | Sequence[str]) -> Sequence[str]:
    return [texts] if isinstance(texts, str) else texts


class _Measured:
    """The state that the tests of one class share: the runner, and the dtypes of each op."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._kinds: dict[str, tuple[KindResult, ...]] = {}
        self._legal: dict[str, LegalResults] = {}

    def kinds(self, op: str) -> tuple[KindResult, ...]:
        """Return the results of each (reduce op, dtype)."""
        if op not in self._kinds:
            self._kinds |= self.runner.kinds([lookup(op)])
        return self._kinds[op]

    def skip_unsupported(self, op: str, skip: Callable[[str], Any]) -> None:
        """Skip the test of an op that the backend does not have."""
        if self.runner.plan.table is None:
            why = unsupported(self.kinds(op)) or unsupported((), self._legal_results(op))
        else:
            why = self.runner.plan.untaken(lookup(op))
        if why:
            skip(f"not supported: {why}")

    def _drawn(self, op: str) -> dict[str, tuple[Kind, ...] | None]:
        return {op: self.runner.legal_kinds(self.kinds(op), lookup(op))}

    def _legal_results(self, op: str) -> LegalResults:
        if op not in self._legal:
            self._legal |= self.runner.legal([lookup(op)], self._drawn(op))
        return self._legal[op]

    def legal_fault(self, op: str, seconds: float) -> str:
        """Return why legal calls fail, with a program that reproduces it; "" where none does."""
        drawn, row = self._drawn(op), lookup(op)
        legal = self._legal_results(op)
        found = OpResult(op, row.rule.name, legal.outcomes, legal.skipped)
        if not found.failed:
            return ""
        failure = self.runner.failure(row, drawn[op], legal, seconds=seconds)
        head = (
            f"{op}: {found.failed} of {found.passed + found.failed} legal calls fail, the smallest: {failure.outcome}"
        )
        return f"{head}\n\n{failure.reproducer}"

    def broken(self, op: str, may: Sequence[str]) -> tuple[dict[str, int], str]:
        """Count the outcomes of broken calls, and return which ways to break one have outcomes that are not allowed."""
        ways = self.runner.broken([lookup(op)], self._drawn(op))[op]
        found = OpResult(op, lookup(op).rule.name, {}, ways=ways)
        faults = [
            f"  {way.way} ({', '.join(way.ids)}): {', '.join(f'{way.counts[each]} {each}' for each in wrong)}"
            for way in ways
            if (wrong := [each for each in way.counts if each not in may])
        ]
        return found.broken, "\n".join([f"{op}: outcomes that broken calls should not have", *faults]) if faults else ""


def _kinds_fault(op: str, kinds: Sequence[KindResult]) -> str:
    if any(kind.table is not None for kind in kinds):
        wrong = [(kind, "the table of limits admits it") for kind in kinds if kind.is_lie]
    else:
        gone = (SILENTLY_WRONG, HANGS, DIES)
        wrong = [(kind, next(iter(kind.message.splitlines()), "")) for kind in kinds if kind.outcome in gone]
    lines = [f"  {f'{kind.reduce_op} {kind.dtype}'.strip()}: {kind.outcome}; {why}" for kind, why in wrong]
    return "\n".join([f"{op}: dtypes and reduce ops with wrong results", *lines]) if lines else ""


def place_of(factory: Factory) -> str:
    """Return the place by which another process finds a function: "module:name", or "/path/to/file.py:name".

    >>> place_of(place_of)
    'collective_rules.conformance.suite:place_of'
    """
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", "")
    try:
        file = inspect.getsourcefile(factory)
    except TypeError:
        file = None
    if not module or not name or "<" in name or file is None:
        raise CallError(
            f"backend={factory!r}, but should be a function that stands in a module by itself, or its place"
        )
    found = _importable(module)
    return f"{module if found and os.path.samefile(found, file) else os.path.abspath(file)}:{name}"


def _importable(module: str) -> str | None:
    """Return the file that another process imports as `module`; None where it finds none."""
    path: Any = None
    parts = module.split(".")
    for place in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: place + 1]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations or []
    return spec.origin if spec is not None else None
