"""The results of a conformance run, as data: the examples of each op, their outcomes, and the failures.

Plain text and numbers, from which a report of any form can be written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from collective_rules.call import Call
from collective_rules.records import to_record
from collective_rules.sandbox import DIES, HANGS, OK, RAISES, UNDEFINED, Result

__all__ = [
    "BROKEN_OUTCOMES",
    "Conformance",
    "Failure",
    "KindResult",
    "LegalResults",
    "OpResult",
    "WayResult",
    "broken_outcome",
    "counted",
    "failure_of",
    "gives_up",
]

BROKEN_OUTCOMES = (RAISES, HANGS, DIES, "accepted")
"""What a backend may do with a broken call. `accepted`: nobody raised, whatever came back."""

_TOO_MANY = 3
"""After so many calls of one op that hang or die, no more are made."""


def gives_up(outcomes: Iterable[str]) -> bool:
    """Return whether so many calls hang or die that no more should be made.

    >>> gives_up(["hangs", "ok", "dies"]), gives_up(["hangs"] * 3)
    (False, True)
    """
    return sum(outcome in (HANGS, DIES) for outcome in outcomes) >= _TOO_MANY


@attrs.define
class LegalResults:
    """The results of the legal examples of one op, by their place among the examples; how many were `skipped`."""

    tried: dict[int, tuple[tuple[Call, ...], Result]] = attrs.field(factory=dict)
    skipped: int = 0

    @property
    def outcomes(self) -> dict[str, int]:
        """How many examples came to each outcome."""
        return counted(result.outcome for _, result in self.tried.values())

    @property
    def failed(self) -> list[tuple[tuple[Call, ...], Result]]:
        """The examples that failed, in the order in which they were drawn. An undefined one has not failed."""
        return [self.tried[at] for at in sorted(self.tried) if self.tried[at][1].outcome not in (OK, UNDEFINED)]

    @property
    def is_hopeless(self) -> bool:
        """Whether so many hang or die that no more should be tried."""
        return gives_up(result.outcome for _, result in self.tried.values())


def broken_outcome(outcome: str) -> str:
    """Return which of `BROKEN_OUTCOMES` the outcome of a broken call is.

    >>> broken_outcome("silently wrong"), broken_outcome("raises")
    ('accepted', 'raises')
    """
    return outcome if outcome in BROKEN_OUTCOMES else "accepted"


@attrs.frozen
class KindResult:
    """One dtype under one reduce op ("" without one), tried with one small call.

    - `outcome`: that of a `Result`, or "not tried". `message`: the error, or what is wrong.
    - `table`: whether the backend's table of limits admits it; None where there is no table.
    """

    reduce_op: str
    dtype: str
    outcome: str
    message: str = ""
    table: bool | None = None

    @property
    def taken(self) -> bool:
        """Whether the backend takes it, and gets it right."""
        return self.outcome == OK

    @property
    def agrees(self) -> bool:
        """Whether the table says what was measured; also where there is no table, or no measurement."""
        return self.table is None or self.outcome == "not tried" or self.table == self.taken


@attrs.frozen
class WayResult:
    """The results of calls broken in one way: `counts` by `BROKEN_OUTCOMES`, and the `ids` of the constraints."""

    way: str
    ids: tuple[str, ...]
    counts: Mapping[str, int]


@attrs.frozen
class Failure:
    """A legal example that does not pass.

    - `outcome`, `message`: its result. `calls`: its calls, as records.
    - `shrunk`: whether it is the smallest that could be found; `tries`: in how many tries.
    - `alone`: whether it fails in a fresh process, too; if not, it fails only after other calls. None: not tried.
    - `reproducer`: the source of a program that reproduces it without this library.
    """

    op: str
    outcome: str
    message: str
    calls: tuple[Mapping[str, Any], ...]
    shrunk: bool
    tries: int
    alone: bool | None
    reproducer: str


def failure_of(
    op: str, calls: Iterable[Call], result: Result, reproducer: str, *, shrunk: bool, tries: int, alone: bool | None
) -> Failure:
    """Return the failure with that result.

    >>> failure_of("c10d::send", (), Result(HANGS), "", shrunk=False, tries=1, alone=True).message
    'hangs'
    """
    records = tuple(to_record(one) for one in calls)
    return Failure(op, result.outcome, result.message or str(result), records, shrunk, tries, alone, reproducer)


@attrs.frozen
class OpResult:
    """The results of one op.

    - `legal`: outcome → number of legal examples; `skipped`: how many were given up after too many hung.
    - `unsupported`: why the backend does not have the op, "" where it has. Nothing else was tried then.
    """

    op: str
    rule: str
    legal: Mapping[str, int]
    skipped: int = 0
    kinds: tuple[KindResult, ...] = ()
    ways: tuple[WayResult, ...] = ()
    failure: Failure | None = None
    unsupported: str = ""

    @property
    def passed(self) -> int:
        """How many legal examples passed."""
        return self.legal.get(OK, 0)

    @property
    def failed(self) -> int:
        """How many legal examples failed. An undefined one neither passes nor fails."""
        return sum(self.legal.values()) - self.passed - self.legal.get(UNDEFINED, 0)

    @property
    def broken(self) -> dict[str, int]:
        """How many broken examples came to each of `BROKEN_OUTCOMES`."""
        return {each: sum(way.counts.get(each, 0) for way in self.ways) for each in BROKEN_OUTCOMES}

    @property
    def disagreements(self) -> tuple[KindResult, ...]:
        """The kinds for which the table says otherwise."""
        return tuple(kind for kind in self.kinds if not kind.agrees)

    @property
    def verdict(self) -> str:
        """The result in a word or two: "conforms", "fails", "not supported" or "not tried"."""
        if self.unsupported:
            return "not supported"
        return "fails" if self.failed else "conforms" if self.passed else "not tried"


@attrs.frozen
class Conformance:
    """The results of a run.

    - `backend`: as it was named. `table`: whose limits say which calls are legal; None where the rules alone do.
    - `sizes`, `examples`, `seed`, `deadline`: the settings. `seconds`: how long it took.
    - `left_out`: op → why it was not measured.
    - `ranks`: "threads", or "processes", where only legal calls are made; `device`: where the ranks' tensors are.
    - `ended`: why the run ended early, "" where it did not.
    """

    backend: str
    table: str | None
    torch: str
    sizes: tuple[int, ...]
    examples: int
    seed: int
    deadline: float
    seconds: float
    ops: tuple[OpResult, ...]
    left_out: Mapping[str, str] = attrs.field(factory=dict)
    ranks: str = "threads"
    device: str = "cpu"
    ended: str = ""

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The failing examples, one for each op that fails."""
        return tuple(op.failure for op in self.ops if op.failure is not None)

    @property
    def conforms(self) -> bool:
        """Whether some legal example passed, none failed, and the run came to its end."""
        return any(op.passed for op in self.ops) and not any(op.failed for op in self.ops) and not self.ended

    @property
    def totals(self) -> dict[str, int]:
        """The numbers of legal examples that passed and failed, and of broken ones by outcome."""
        broken = {each: sum(op.broken[each] for op in self.ops) for each in BROKEN_OUTCOMES}
        return {"passed": sum(op.passed for op in self.ops), "failed": sum(op.failed for op in self.ops)} | broken

    def as_data(self) -> dict[str, Any]:
        """Return the results as JSON data; `collective_rules.cli.conformance` describes each field."""
        data = attrs.asdict(self, recurse=False)
        return {
            **{name: data[name] for name in ("backend", "table", "torch")},
            "sizes": list(self.sizes),
            **{name: data[name] for name in ("ranks", "device", "examples", "seed", "deadline", "seconds")},
            "conforms": self.conforms,
            "ended": self.ended or None,
            "totals": self.totals,
            "ops": [_op_data(op) for op in self.ops],
            "left_out": dict(self.left_out),
        }


def _op_data(op: OpResult) -> dict[str, Any]:
    return {
        "op": op.op,
        "rule": op.rule,
        "verdict": op.verdict,
        "unsupported": op.unsupported or None,
        "legal": {"passed": op.passed, "failed": op.failed, "skipped": op.skipped, "outcomes": dict(op.legal)},
        "broken": op.broken,
        "ways": [{"way": way.way, "ids": list(way.ids), **_all_outcomes(way.counts)} for way in op.ways],
        "kinds": [
            {
                "reduce_op": kind.reduce_op or None,
                "dtype": kind.dtype,
                "outcome": kind.outcome,
                "message": kind.message,
                "table": kind.table,
                "agrees": kind.agrees,
            }
            for kind in op.kinds
        ],
        "failure": None if op.failure is None else {**attrs.asdict(op.failure), "calls": list(op.failure.calls)},
    }


def _all_outcomes(counts: Mapping[str, int]) -> dict[str, int]:
    return {outcome: counts.get(outcome, 0) for outcome in BROKEN_OUTCOMES}


def counted(outcomes: Iterable[str]) -> dict[str, int]:
    """Return how often each occurs, the most frequent first.

    >>> counted(["ok", "hangs", "ok"])
    {'ok': 2, 'hangs': 1}
    """
    return dict(Counter(outcomes).most_common())
