"""A backend on the bench: its sandbox, and what is tried in it. Everything here is bounded in time.

It knows what a child is given, when an op is given up, and what is tried once more. It does not know what is drawn, nor
how anything is reported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from collective_rules.conformance.examples import Calls, Example, Kind, Plan, key_of, smallest
from collective_rules.conformance.jobs import KNOW_BACKEND, REFUSED, TRY_GROUP, TRY_GROUPS, UNDEFINED
from collective_rules.conformance.reproducer import reproducer
from collective_rules.conformance.results import Failure, KindResult, WayResult, broken_outcome, counted
from collective_rules.errors import CallError
from collective_rules.ops import Row
from collective_rules.records import to_record
from collective_rules.sandbox.sandbox import DIES, HANGS, OK, RAISES, Sandbox, Verdict

__all__ = ["Bench", "Tried", "Watch", "nobody"]

Watch = Callable[[str, int, int], None]
"""Told of the stage that a run is in, how many tries of it are done, and how many there are."""

_PATIENCE = 5
"""How often the deadline a legal call gets that seemed to hang: the machine may have been busy."""

_TOO_MANY = 3
"""So many calls of one op that hang or die, and no more are made."""

_CHUNK, _HASTE = 17, 0.25
"""How many dtypes are tried in one child, and in which part of the deadline at first: where some ranks refuse, the
others of many a backend wait for them in vain."""

_WARM = {
    "fake": "torch.testing._internal.distributed.fake_pg",
    "threaded": "torch.testing._internal.distributed.multi_threaded_pg",
}


def nobody(stage: str, done: int, total: int) -> None:
    """Watch nothing."""


@attrs.define
class Tried:
    """What became of the legal examples of one op.

    - `outcomes`: of each. `passed`: the keys of those that did. `skipped`: how many were given up.
    - `failing`: those that did not, by their place among the examples: they need not end as they began.
    """

    outcomes: list[str] = attrs.field(factory=list)
    passed: set[str] = attrs.field(factory=set)
    failing: dict[int, tuple[Calls, Verdict]] = attrs.field(factory=dict)
    skipped: int = 0

    def take(self, place: int, calls: Calls, verdict: Verdict) -> None:
        """Note what became of an example."""
        if verdict.outcome == OK:
            self.passed.add(key_of(calls))
        elif verdict.value != UNDEFINED:
            self.failing[place] = calls, verdict
            return
        self.outcomes.append(str(verdict.value or verdict.outcome))

    @property
    def failed(self) -> list[tuple[Calls, Verdict]]:
        """The examples that failed, in the order in which they were drawn."""
        return [self.failing[place] for place in sorted(self.failing)]

    @property
    def is_hopeless(self) -> bool:
        """Whether so many hang or die that no more should be tried."""
        return sum(verdict.outcome in (HANGS, DIES) for _, verdict in self.failing.values()) >= _TOO_MANY


class Bench:
    """Tries what a plan draws on a backend, in children, `workers` side by side, each with `deadline` seconds.

    The children are those of a sandbox of its own, or of `box`, which is left open. Raises `CallError` for a backend
    that cannot be found or started.
    """

    def __init__(
        self,
        backend: str,
        plan: Plan,
        *,
        deadline: float = 1.0,
        workers: int | None = None,
        box: Sandbox | None = None,
    ) -> None:
        if not 0 < deadline < 3600:
            raise CallError(f"deadline={deadline!r}, but should be a number of seconds, less than an hour")
        self.backend, self.plan, self.deadline = backend, plan, deadline
        self._limit = 3 * deadline + 2  # a world needs some time to see that it hangs, and to say so
        workers = workers or 4 * (os.cpu_count() or 1)
        self._box, self._own = (Sandbox(workers=workers, warm=_warm(backend)), True) if box is None else (box, False)
        try:
            self.methods = self._known()
        except BaseException:
            self.close()
            raise

    def _known(self) -> Mapping[str, str]:
        asked = {"backend": self.backend, "size": max(self.plan.sizes), "timeout": _PATIENCE * self.deadline}
        verdict = self._box.run(KNOW_BACKEND, asked, deadline=60.0)
        if verdict.outcome == OK:
            methods: Mapping[str, str] = verdict.value["methods"]
            return methods
        error, _, why = verdict.message.partition(": ")
        if verdict.outcome == RAISES and error in ("CallError", "CollectiveRulesError"):
            raise CallError(why)
        raise CallError(f"backend={self.backend!r} cannot be started with {asked['size']} ranks: {verdict}")

    def close(self) -> None:
        """End every process that was started."""
        if self._own:
            self._box.close()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _payload(self, times: float = 1.0, **what: Any) -> dict[str, Any]:
        return {"backend": self.backend, "timeout": times * self.deadline, **what}

    def _one(self, calls: Calls, times: float = 1.0) -> dict[str, Any]:
        return self._payload(times, calls=_records(calls))

    def try_alone(self, calls: Calls, times: float = 1.0) -> Verdict:
        """Try one group of calls in a fresh process, with so many times the deadline."""
        return self._box.run(TRY_GROUP, self._one(calls, times), deadline=times * self._limit)

    # -- dtypes and reduce ops

    def kinds(self, rows: Sequence[Row], watch: Watch = nobody) -> dict[str, tuple[KindResult, ...]]:
        """Try every (reduce op, dtype) of each op with one small call; return op → what became of them."""
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
            for at, verdict in self._box.map(TRY_GROUPS, payloads, deadline=30 + 10 * self.deadline):
                op, places = chunks[at]
                if verdict.outcome != OK:
                    alone.append((op, places))
                    continue
                answers[op] |= zip(places, map(tuple, verdict.value), strict=False)
                if len(verdict.value) < len(places) and not _too_many(answers[op].values()):
                    unfinished.append((op, places[len(verdict.value) :]))
                watch(stage, sum(map(len, answers.values())), total)
            chunks = unfinished
        for op, places in alone:  # one of them takes the process with it
            for place in places:
                if not _too_many(answers[op].values()):
                    verdict = self.try_alone(asked[op][place][-1])
                    answers[op][place] = str(verdict.value or verdict.outcome), verdict.message
                watch(stage, sum(map(len, answers.values())), total)
        return {op: tuple(_kind_results(own, answers[op])) for op, own in asked.items()}

    def legal_kinds(self, kinds: Sequence[KindResult], row: Row) -> tuple[Kind, ...] | None:
        """Return the kinds to draw legal examples of: those that the backend does not refuse; None for the table's.

        A kind that it takes and gets wrong stays: that is to be found.
        """
        if self.plan.table is not None or not kinds:
            return None
        by_name = {(reduce_op, str(dtype)): (reduce_op, dtype) for (reduce_op, dtype), *_ in self.plan.kinds(row)}
        out = (RAISES, REFUSED, UNDEFINED)
        found = [by_name[kind.reduce_op, f"torch.{kind.dtype}"] for kind in kinds if kind.outcome not in out]
        return tuple(found) or None

    # -- legal and broken examples

    def legal(
        self, rows: Sequence[Row], kinds: Mapping[str, tuple[Kind, ...] | None], watch: Watch = nobody
    ) -> dict[str, Tried]:
        """Try the legal examples of each op; return op → what became of them."""
        tried = {row.op: Tried() for row in rows}
        total, sent = len(rows) * self.plan.examples, list[Example]()

        def payloads() -> Iterator[dict[str, Any]]:
            for row in rows:
                for example in self.plan.legal(row, kinds[row.op]):
                    if tried[row.op].is_hopeless:
                        tried[row.op].skipped += 1
                        continue
                    sent.append(example)
                    yield self._one(example.calls)

        answers = self._box.map(TRY_GROUP, payloads(), deadline=self._limit, reuse=True)
        for done, (place, verdict) in enumerate(answers, 1):
            watch("legal calls", done, total)
            tried[sent[place].op].take(place, sent[place].calls, verdict)
        for each in tried.values():
            self._be_patient(each)
            each.outcomes += [str(verdict.value or verdict.outcome) for _, verdict in each.failed]
        return tried

    def _be_patient(self, tried: Tried) -> None:
        """Try calls that seemed to hang once more, with more time, until one really does."""
        for place in [place for place, (_, verdict) in tried.failing.items() if verdict.outcome == HANGS]:
            calls, _ = tried.failing[place]
            again = self.try_alone(calls, _PATIENCE)
            if again.outcome == HANGS:
                return
            del tried.failing[place]
            tried.take(place, calls, again)

    def broken(
        self, rows: Sequence[Row], kinds: Mapping[str, tuple[Kind, ...] | None], watch: Watch = nobody
    ) -> dict[str, tuple[WayResult, ...]]:
        """Try the broken examples of each op, each in a fresh process; return op → what became of each way."""
        sent: list[Example] = []
        outcomes: dict[tuple[str, str], list[str]] = {}

        def payloads() -> Iterator[dict[str, Any]]:
            for row in rows:
                for example in self.plan.broken(row, kinds[row.op]):
                    sent.append(example)
                    outcomes.setdefault((example.op, example.way), [])
                    yield self._one(example.calls)

        for done, (place, verdict) in enumerate(self._many(payloads()), 1):
            # How many there will be is known when all have been drawn.
            ops = len({example.op for example in sent})
            watch("broken calls", done, max(done, len(sent) * len(rows) // max(ops, 1)))
            if verdict.value != REFUSED:
                example = sent[place]
                outcomes[example.op, example.way].append(broken_outcome(verdict.outcome))
        ids: dict[tuple[str, str], dict[str, None]] = {}
        for example in sent:
            ids.setdefault((example.op, example.way), {})[example.id] = None
        return {
            row.op: tuple(
                WayResult(way, tuple(ids[op, way]), counted(found))
                for (op, way), found in outcomes.items()
                if op == row.op
            )
            for row in rows
        }

    def _many(self, payloads: Iterator[dict[str, Any]]) -> Iterator[tuple[int, Verdict]]:
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
        tried: Tried,
        *,
        seconds: float = 30.0,
        tries: int = 200,
    ) -> Failure:
        """Return the smallest failing example that is found within so many seconds and tries, with its reproducer.

        What fails only after other calls is returned as it was first seen.
        """
        calls, verdict = tried.failed[0]
        known = {key_of(calls): self.try_alone(calls)}
        made, alone = 1, known[key_of(calls)].outcome == verdict.outcome
        end = time.monotonic() + seconds

        def fails(example: Calls) -> bool:
            nonlocal made
            key = key_of(example)
            if key not in known and key not in tried.passed and made < tries and time.monotonic() < end:
                known[key] = self.try_alone(example)
                made += 1
            return key in known and known[key].outcome == verdict.outcome

        if alone:
            found = smallest(self.plan.strategy(row, kinds), fails, self.plan.examples, f"{self.plan.seed} {row.op}")
            calls = calls if found is None else found
            verdict = known[key_of(calls)]
        return Failure(
            op=row.op,
            outcome=str(verdict.value or verdict.outcome),
            message=verdict.message or str(verdict),
            calls=tuple(_records(calls)),
            shrunk=alone and made < tries and time.monotonic() < end,
            tries=made,
            alone=alone,
            reproducer=reproducer(calls, self.backend, verdict, methods=self.methods),
        )


def _warm(backend: str) -> list[str]:
    """The modules that every child needs, and that the process they are forked from imports once for all."""
    place = backend.rpartition(":")[0]
    module = _WARM.get(backend, "" if place.endswith(".py") else place)
    return [TRY_GROUP.partition(":")[0], *([module] if module else [])]


def _records(calls: Calls) -> list[dict[str, Any]]:
    return [to_record(one) for one in calls]


def _too_many(answers: Iterable[tuple[str, str]]) -> bool:
    return sum(outcome in (HANGS, DIES) for outcome, _ in answers) >= _TOO_MANY


def _kind_results(
    kinds: Sequence[tuple[Kind, bool | None, Calls]], answers: Mapping[int, tuple[str, str]]
) -> Iterator[KindResult]:
    for place, ((reduce_op, dtype), table, _) in enumerate(kinds):
        outcome, message = answers.get(place, ("not tried", ""))
        yield KindResult(reduce_op, str(dtype).removeprefix("torch."), outcome, message, table)
