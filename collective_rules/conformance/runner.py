"""Runs a plan's examples on a backend, in the children of a sandbox. Every call is bounded in time.

It knows the payload of a child, when to give up an op, and which calls to try once more. It does not draw examples, and
writes no report.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from collective_rules.conformance.examples import Calls, Example, ExamplePlan, Kind, key_of, smallest
from collective_rules.conformance.jobs import KNOW_BACKEND, TRY_GROUP, TRY_GROUPS
from collective_rules.conformance.reproducer import reproducer
from collective_rules.conformance.results import (
    Failure,
    KindResult,
    LegalResults,
    WayResult,
    broken_outcome,
    counted,
    failure_of,
    gives_up,
)
from collective_rules.errors import CallError
from collective_rules.ops import Row
from collective_rules.records import to_record
from collective_rules.sandbox import HANGS, OK, RAISES, REFUSED, UNDEFINED, Result, Sandbox

Watch = Callable[[str, int, int], None]
"""Called with the stage of a run, how many tries of it are done, and how many there are."""

_PATIENCE = 5
"""How many deadlines a legal call gets that seemed to hang: the machine may have been busy."""

_CHUNK, _HASTE = 17, 0.25
"""How many dtypes are tried in one child, and in which part of the deadline at first: where some ranks refuse, the
other ranks of many backends wait for them in vain."""

_WARM = {
    "fake": "torch.testing._internal.distributed.fake_pg",
    "threaded": "torch.testing._internal.distributed.multi_threaded_pg",
}


def checked_deadline(deadline: float) -> float:
    """Return `deadline`; raise `CallError` where it is no number of seconds.

    >>> checked_deadline(-1)
    Traceback (most recent call last):
    collective_rules.errors.CallError: deadline=-1, but should be a number of seconds, less than an hour
    """
    if not 0 < deadline < 3600:
        raise CallError(f"deadline={deadline!r}, but should be a number of seconds, less than an hour")
    return deadline


def nobody(stage: str, done: int, total: int) -> None:
    """Watch nothing."""


class Runner:
    """Tries a plan's examples on a backend, in `workers` children side by side, `deadline` seconds for each call.

    The children are those of a sandbox of its own, or of `box`, which is left open. Raises `CallError` for a backend
    that cannot be found or started.
    """

    def __init__(
        self,
        backend: str,
        plan: ExamplePlan,
        *,
        deadline: float = 1.0,
        workers: int | None = None,
        box: Sandbox | None = None,
    ) -> None:
        self.backend, self.plan, self.deadline = backend, plan, checked_deadline(deadline)
        self._limit = 3 * deadline + 2  # a world needs some time to find that it hangs, and to report it
        workers = workers or 4 * (os.cpu_count() or 1)
        self._box, self._own = (Sandbox(workers=workers, warm=_warm(backend)), True) if box is None else (box, False)
        try:
            self.methods = self._methods()
        except BaseException:
            self.close()
            raise

    def _methods(self) -> Mapping[str, str]:
        """Start the backend, and return the methods by which its groups are called."""
        asked = {"backend": self.backend, "size": max(self.plan.sizes), "timeout": _PATIENCE * self.deadline}
        result = self._box.run(KNOW_BACKEND, asked, deadline=60.0)
        if result.outcome == OK:
            methods: Mapping[str, str] = result.value["methods"]
            return methods
        error, _, why = result.message.partition(": ")
        if result.outcome == RAISES and error in ("CallError", "CollectiveRulesError"):
            raise CallError(why)
        raise CallError(f"backend={self.backend!r} cannot be started with {asked['size']} ranks: {result}")

    def close(self) -> None:
        """End every process that was started."""
        if self._own:
            self._box.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _payload(self, times: float = 1.0, **more: Any) -> dict[str, Any]:
        return {"backend": self.backend, "timeout": times * self.deadline, **more}

    def _one(self, calls: Calls, times: float = 1.0) -> dict[str, Any]:
        return self._payload(times, calls=_records(calls))

    def try_alone(self, calls: Calls, times: float = 1.0) -> Result:
        """Try one group of calls in a fresh process, with so many times the deadline."""
        return self._box.run(TRY_GROUP, self._one(calls, times), deadline=times * self._limit)

    # -- dtypes and reduce ops

    def kinds(self, rows: Sequence[Row], watch: Watch = nobody) -> dict[str, tuple[KindResult, ...]]:
        """Try every (reduce op, dtype) of each op with one small call; return op → the results."""
        asked = {row.op: [*self.plan.kinds(row)] for row in rows}
        answers: dict[str, dict[int, tuple[str, str]]] = {row.op: {} for row in rows}
        stage, total = "dtypes and reduce ops", sum(map(len, asked.values()))
        chunks = [
            (op, range(start, min(start + _CHUNK, len(own))))
            for op, own in asked.items()
            for start in range(0, len(own), _CHUNK)
        ]
        alone: list[tuple[str, range]] = []
        while chunks:
            unfinished = []
            payloads = [
                self._payload(_HASTE, patience=self.deadline, groups=[_records(asked[op][n][-1]) for n in places])
                for op, places in chunks
            ]
            for at, result in self._box.map(TRY_GROUPS, payloads, deadline=30 + 10 * self.deadline):
                op, places = chunks[at]
                if result.outcome != OK:
                    alone.append((op, places))
                    continue
                answers[op] |= zip(places, map(tuple, result.value), strict=False)
                if len(result.value) < len(places) and not _too_many(answers[op].values()):
                    unfinished.append((op, places[len(result.value) :]))
                watch(stage, sum(map(len, answers.values())), total)
            chunks = unfinished
        for op, places in alone:  # one of them takes the process with it
            for place in places:
                if not _too_many(answers[op].values()):
                    result = self.try_alone(asked[op][place][-1])
                    answers[op][place] = result.outcome, result.message
                watch(stage, sum(map(len, answers.values())), total)
        return {op: tuple(_kind_results(own, answers[op])) for op, own in asked.items()}

    def legal_kinds(self, kinds: Sequence[KindResult], row: Row) -> tuple[Kind, ...] | None:
        """Return the kinds to draw legal examples of: those that the backend does not refuse; None for the table's.

        A kind that the backend takes and gets wrong stays, so that the examples show it. A table's kinds stay without
        its lies, which have examples of their own.
        """
        lies = any(kind.is_lie for kind in kinds)
        if not kinds or (self.plan.table is not None and not lies):
            return None
        by_name = {(reduce_op, str(dtype)): (reduce_op, dtype) for (reduce_op, dtype), *_ in self.plan.kinds(row)}
        if lies:
            stays = [kind for kind in kinds if kind.table and not kind.is_lie]
            return tuple(by_name[kind.reduce_op, f"torch.{kind.dtype}"] for kind in stays)
        out = (RAISES, REFUSED, UNDEFINED)
        taken = [by_name[kind.reduce_op, f"torch.{kind.dtype}"] for kind in kinds if kind.outcome not in out]
        return tuple(taken) or None

    def lies(self, row: Row, kinds: Sequence[KindResult]) -> tuple[Failure, ...]:
        """Return a failure for each outcome of the kinds that the table admits and the backend does not take."""
        calls = {(reduce_op, f"{dtype}"): calls for (reduce_op, dtype), _, calls in self.plan.kinds(row)}
        by_outcome: dict[str, list[KindResult]] = {}
        for kind in kinds:
            if kind.is_lie:
                by_outcome.setdefault(kind.outcome, []).append(kind)
        found = []
        for outcome, lies in by_outcome.items():
            own = calls[lies[0].reduce_op, f"torch.{lies[0].dtype}"]
            again = self.try_alone(own)
            alone = again.outcome == outcome
            result = again if alone else Result(outcome, lies[0].message.splitlines())
            claim = ", ".join(kind.name for kind in lies)
            program = reproducer(own, self.backend, result, methods=self.methods)
            found.append(failure_of(row.op, own, result, program, shrunk=True, tries=1, alone=alone, claim=claim))
        return tuple(found)

    # -- legal and broken examples

    def legal(
        self, rows: Sequence[Row], kinds: Mapping[str, tuple[Kind, ...] | None], watch: Watch = nobody
    ) -> dict[str, LegalResults]:
        """Try the legal examples of each op; return op → the results."""
        results = {row.op: LegalResults() for row in rows}
        total, sent = len(rows) * self.plan.examples, list[Example]()

        def payloads() -> Iterator[dict[str, Any]]:
            for row in rows:
                for example in self.plan.legal(row, kinds[row.op]):
                    if results[row.op].is_hopeless:
                        results[row.op].skipped += 1
                        continue
                    sent.append(example)
                    yield self._one(example.calls)

        answers = self._box.map(TRY_GROUP, payloads(), deadline=self._limit, reuse=True)
        for done, (place, result) in enumerate(answers, 1):
            watch("legal calls", done, total)
            results[sent[place].op].tried[place] = sent[place].calls, result
        for each in results.values():
            self._be_patient(each)
        return results

    def optional(
        self, rows: Sequence[Row], kinds: Mapping[str, tuple[Kind, ...] | None], watch: Watch = nobody
    ) -> dict[str, dict[str, int]]:
        """Try what a backend may take or not; return op → outcome → number of examples."""
        examples = [example for row in rows for example in self.plan.optional(row, kinds[row.op])]
        outcomes: dict[str, list[str]] = {row.op: [] for row in rows}
        payloads = [self._one(example.calls) for example in examples]
        for done, (place, result) in enumerate(self._box.map(TRY_GROUP, payloads, deadline=self._limit), 1):
            watch("optional calls", done, len(examples))
            outcomes[examples[place].op].append(result.outcome)
        return {op: counted(each) for op, each in outcomes.items()}

    def _be_patient(self, results: LegalResults) -> None:
        """Try calls that seemed to hang once more, with more time, until one really does."""
        for place in [place for place, (_, result) in results.tried.items() if result.outcome == HANGS]:
            calls, _ = results.tried[place]
            again = self.try_alone(calls, _PATIENCE)
            if again.outcome == HANGS:
                return
            results.tried[place] = calls, again

    def broken(
        self, rows: Sequence[Row], kinds: Mapping[str, tuple[Kind, ...] | None], watch: Watch = nobody
    ) -> dict[str, tuple[WayResult, ...]]:
        """Try the broken examples of each op, each in a fresh process; return op → the results of each way."""
        sent: list[Example] = []
        outcomes: dict[tuple[str, str], list[str]] = {}

        def payloads() -> Iterator[dict[str, Any]]:
            for row in rows:
                for example in self.plan.broken(row, kinds[row.op]):
                    sent.append(example)
                    outcomes.setdefault((example.op, example.way), [])
                    yield self._one(example.calls)

        for done, (place, result) in enumerate(self._many(payloads()), 1):
            # Their number is known when all have been drawn.
            ops = len({example.op for example in sent})
            watch("broken calls", done, max(done, len(sent) * len(rows) // max(ops, 1)))
            if result.outcome != REFUSED:
                example = sent[place]
                outcomes[example.op, example.way].append(result.outcome)
        ids: dict[tuple[str, str], dict[str, None]] = {}
        for example in sent:
            ids.setdefault((example.op, example.way), {})[example.id] = None
        return {
            row.op: tuple(
                WayResult(way, tuple(ids[op, way]), counted(map(broken_outcome, each)), each.count(OK))
                for (op, way), each in outcomes.items()
                if op == row.op
            )
            for row in rows
        }

    def _many(self, payloads: Iterator[dict[str, Any]]) -> Iterator[tuple[int, Result]]:
        """Try broken calls, twice as many side by side as others: most wait for a rank that has raised."""
        workers = self._box.workers
        self._box.workers = 2 * workers
        try:
            yield from self._box.map(TRY_GROUP, payloads, deadline=self._limit)
        finally:
            self._box.workers = workers

    # -- a failing example

    def failure(
        self,
        row: Row,
        kinds: tuple[Kind, ...] | None,
        results: LegalResults,
        *,
        seconds: float = 30.0,
        tries: int = 200,
    ) -> Failure:
        """Return the smallest failing example that is found within so many seconds and tries, with its reproducer.

        An example that fails only after other calls is returned as it was drawn.
        """
        calls, first = results.failed[0]
        passed = {key_of(each) for each, result in results.tried.values() if result.outcome == OK}
        again = {key_of(calls): self.try_alone(calls)}
        alone = again[key_of(calls)].outcome == first.outcome
        end = time.monotonic() + seconds

        def fails(example: Calls) -> bool:
            key = key_of(example)
            if key not in again and key not in passed and len(again) < tries and time.monotonic() < end:
                again[key] = self.try_alone(example)
            return key in again and again[key].outcome == first.outcome

        if alone:
            drawn = self.plan.strategy(row, kinds)
            calls = smallest(drawn, fails, self.plan.examples, f"{self.plan.seed} {row.op}") or calls
        result = again[key_of(calls)] if alone else first
        shrunk = alone and len(again) < tries and time.monotonic() < end
        program = reproducer(calls, self.backend, result, methods=self.methods)
        return failure_of(row.op, calls, result, program, shrunk=shrunk, tries=len(again), alone=alone)


def _warm(backend: str) -> list[str]:
    """Return the modules that every child needs, for the sandbox to import once."""
    place = backend.rpartition(":")[0]
    module = _WARM.get(backend, "" if place.endswith(".py") else place)
    return [TRY_GROUP.partition(":")[0], *([module] if module else [])]


def _records(calls: Calls) -> list[dict[str, Any]]:
    return [to_record(one) for one in calls]


def _too_many(answers: Iterable[tuple[str, str]]) -> bool:
    return gives_up(outcome for outcome, _ in answers)


def _kind_results(
    kinds: Sequence[tuple[Kind, bool | None, Calls]], answers: Mapping[int, tuple[str, str]]
) -> Iterator[KindResult]:
    for place, ((reduce_op, dtype), table, _) in enumerate(kinds):
        outcome, message = answers.get(place, ("not tried", ""))
        yield KindResult(reduce_op, str(dtype).removeprefix("torch."), outcome, message, table)
