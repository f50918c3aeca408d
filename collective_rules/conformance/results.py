"""What a conformance run came to, as data: what was tried of each op, what became of it, and what fails.

Plain text and numbers, so that a report can be written from it in any form. It judges only what is a failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from collective_rules.conformance.jobs import UNDEFINED
from collective_rules.sandbox.sandbox import DIES, HANGS, OK, RAISES

__all__ = ["BROKEN_OUTCOMES", "Conformance", "Failure", "KindResult", "OpResult", "WayResult", "broken_outcome"]

BROKEN_OUTCOMES = (RAISES, HANGS, DIES, "accepted")
"""What a backend may do with a broken call. `accepted`: nobody raised, whatever came back."""


def broken_outcome(outcome: str) -> str:
    """Return which of `BROKEN_OUTCOMES` the outcome of a broken call is.

    >>> broken_outcome("silently wrong"), broken_outcome("raises")
    ('accepted', 'raises')
    """
    return outcome if outcome in BROKEN_OUTCOMES else "accepted"


@attrs.frozen
class KindResult:
    """One dtype under one reduce op ("" without one), tried with one small call.

    - `outcome`: as of a sandbox, "undefined" (the call went through, but torch has no right answer to it), or
      "not tried". `message`: what was raised, or what is wrong.
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
        """Whether the table says what was measured, as far as there is a table and a measurement."""
        return self.table is None or self.outcome == "not tried" or self.table == self.taken


@attrs.frozen
class WayResult:
    """What became of the calls broken in one way: `counts` by `BROKEN_OUTCOMES`, and the constraints violated."""

    way: str
    ids: tuple[str, ...]
    counts: Mapping[str, int]


@attrs.frozen
class Failure:
    """A legal example that does not pass.

    - `outcome`, `message`: what became of it. `calls`: it, as records.
    - `shrunk`: whether it is the smallest that could be found; `tries`: in how many tries.
    - `alone`: whether it fails in a fresh process, too. If not, it takes the calls before it to make it fail.
    - `reproducer`: the source of a program that reproduces it without this library.
    """

    op: str
    outcome: str
    message: str
    calls: tuple[Mapping[str, Any], ...]
    shrunk: bool
    tries: int
    alone: bool
    reproducer: str


@attrs.frozen
class OpResult:
    """What was measured of one op.

    - `legal`: outcome → how many legal examples came to it; `skipped`: how many were given up after too many hung.
    - `unsupported`: why the backend has no such op at all, "" where it has. Nothing else was tried then.
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
        """How many legal examples did not. One to which torch has no right answer does neither."""
        return sum(self.legal.values()) - self.passed - self.legal.get(UNDEFINED, 0)

    @property
    def broken(self) -> dict[str, int]:
        """How many broken examples came to each of `BROKEN_OUTCOMES`."""
        return {each: sum(way.counts.get(each, 0) for way in self.ways) for each in BROKEN_OUTCOMES}

    @property
    def disagreements(self) -> tuple[KindResult, ...]:
        """Those kinds of which the table says otherwise."""
        return tuple(kind for kind in self.kinds if not kind.agrees)

    @property
    def verdict(self) -> str:
        """In two words at most: "conforms", "fails", "not supported", or "not tried" where nothing was."""
        if self.unsupported:
            return "not supported"
        return "fails" if self.failed else "conforms" if self.passed else "not tried"


@attrs.frozen
class Conformance:
    """What a run came to.

    - `backend`: as it was named. `table`: whose limits say what is legal; None where the rules alone do.
    - `sizes`, `examples`, `seed`, `deadline`: what was asked for. `seconds`: how long it took.
    - `left_out`: op → why it was not measured.
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

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The failing examples, one for each op that fails."""
        return tuple(op.failure for op in self.ops if op.failure is not None)

    @property
    def conforms(self) -> bool:
        """Whether some legal example passed, and none failed."""
        return any(op.passed for op in self.ops) and not any(op.failed for op in self.ops)

    @property
    def totals(self) -> dict[str, int]:
        """How many legal examples passed and failed, and what became of the broken ones."""
        broken = {each: sum(op.broken[each] for op in self.ops) for each in BROKEN_OUTCOMES}
        return {"passed": sum(op.passed for op in self.ops), "failed": sum(op.failed for op in self.ops)} | broken

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON has it; `collective-rules conformance --help` and the command's module say what is what."""
        data = attrs.asdict(self, recurse=False)
        return {
            **{name: data[name] for name in ("backend", "table", "torch")},
            "sizes": list(self.sizes),
            **{name: data[name] for name in ("examples", "seed", "deadline", "seconds")},
            "conforms": self.conforms,
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
    found: dict[str, int] = {}
    for outcome in outcomes:
        found[outcome] = found.get(outcome, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))
