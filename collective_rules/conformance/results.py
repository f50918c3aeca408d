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
from collective_rules.sandbox import DIES, HANGS, OK, RAISES, SILENTLY_WRONG, UNDEFINED, Result

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
    def is_lie(self) -> bool:
        """Whether the table admits it, and the backend does not take it, or gets it wrong."""
        return self.table is True and self.outcome in (RAISES, HANGS, DIES, SILENTLY_WRONG)

    @property
    def is_understated(self) -> bool:
        """Whether the backend takes it, and the table does not admit it."""
        return self.table is False and self.taken

    @property
    def name(self) -> str:
        """The reduce op, if there is one, and the dtype."""
        return f"{self.reduce_op} {self.dtype}".strip()

    @property
    def agrees(self) -> bool:
        """Whether the table says what was measured; also where there is no table, or no measurement."""
        return self.table is None or self.outcome == "not tried" or self.table == self.taken


@attrs.frozen
class WayResult:
    """The results of calls broken in one way: `counts` by `BROKEN_OUTCOMES`, and the `ids` of the constraints.

    `right`: how many were accepted and did what the rule says, so that a limit that they go beyond is none.
    """

    way: str
    ids: tuple[str, ...]
    counts: Mapping[str, int]
    right: int = 0


@attrs.frozen
class Failure:
    """A legal example that does not pass.

    - `claim`: what a table admits and the backend refuses or gets wrong, "" where the example was drawn as any other.
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
    claim: str = ""


def failure_of(
    op: str,
    calls: Iterable[Call],
    result: Result,
    reproducer: str,
    *,
    shrunk: bool,
    tries: int,
    alone: bool | None,
    claim: str = "",
) -> Failure:
    """Return the failure with that result.

    >>> failure_of("c10d::send", (), Result(HANGS), "", shrunk=False, tries=1, alone=True).message
    'hangs'
    """
    records = tuple(to_record(one) for one in calls)
    message = result.message or str(result)
    return Failure(op, result.outcome, message, records, shrunk, tries, alone, reproducer, claim)


@attrs.frozen
class OpResult:
    """The results of one op.

    - `legal`: outcome → number of legal examples; `skipped`: how many were given up after too many hung.
    - `unsupported`: why the backend does not have the op, "" where it has. Nothing else was tried then.
    - `lies`: a failing call for each outcome of what the table admits, and the backend refuses or gets wrong.
    - `optional`: outcome → number of examples that a backend may take or not.
    - `expected`: why the op is expected to fail, "" where it is not.
    """

    op: str
    rule: str
    legal: Mapping[str, int]
    skipped: int = 0
    kinds: tuple[KindResult, ...] = ()
    ways: tuple[WayResult, ...] = ()
    failure: Failure | None = None
    unsupported: str = ""
    lies: tuple[Failure, ...] = ()
    optional: Mapping[str, int] = attrs.field(factory=dict)
    expected: str = ""

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Every failing call that is shown."""
        return (*self.lies, *([] if self.failure is None else [self.failure]))

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
        """The result in words: "conforms", "fails", "fails as expected", "not supported" or "not tried"."""
        if self.unsupported:
            return "not supported"
        if self.failed or self.lies:
            return "fails as expected" if self.expected else "fails"
        return "conforms" if self.passed else "not tried"

    @property
    def notes(self) -> tuple[str, ...]:
        """What is no failure: the table declares less than the backend takes, or an expected failure passes."""
        found = []
        less = f"{self.op}: the table declares less than it takes:"
        understated = [kind.name for kind in self.kinds if kind.is_understated]
        if understated:
            found.append(f"{less} {', '.join(understated)}")
        elif self.unsupported and self.optional.keys() == {OK}:
            found.append(f"{less} the op itself")
        for way in self.ways:
            limit, _, column = way.way.removeprefix("beyond ").partition(", ")
            if way.way.startswith("beyond ") and column not in ("dtypes", "reduces") and _all_right(way):
                found.append(f"{less} all goes well beyond {limit}, {column}")
        if self.expected and self.verdict not in ("fails", "fails as expected"):
            found.append(f"{self.op}: expected to fail ({self.expected}), but it does not")
        return tuple(found)


def _all_right(way: WayResult) -> bool:
    return 0 < way.right == sum(way.counts.values())


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
        """The failing examples of the ops that fail."""
        return tuple(failure for op in self.ops for failure in op.failures)

    @property
    def is_declared(self) -> bool:
        """Whether a table outside of this library says which calls are legal."""
        return self.table is not None and ":" in self.table

    @property
    def verdict(self) -> str:
        """The result in words: "conforms", "conforms within what it declares" or "does not conform"."""
        if not self.conforms:
            return "does not conform"
        return "conforms within what it declares" if self.is_declared else "conforms"

    @property
    def notes(self) -> tuple[str, ...]:
        """What is worth a look, and no failure."""
        return tuple(note for op in self.ops for note in op.notes)

    @property
    def conforms(self) -> bool:
        """Whether some legal example passed, none failed that was not expected to, and the run came to its end."""
        return any(op.passed for op in self.ops) and not self.ended and all(op.verdict != "fails" for op in self.ops)

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
            "verdict": self.verdict,
            "ended": self.ended or None,
            "totals": self.totals,
            "ops": [_op_data(op) for op in self.ops],
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        }


def _op_data(op: OpResult) -> dict[str, Any]:
    return {
        "op": op.op,
        "rule": op.rule,
        "verdict": op.verdict,
        "unsupported": op.unsupported or None,
        "legal": {"passed": op.passed, "failed": op.failed, "skipped": op.skipped, "outcomes": dict(op.legal)},
        "optional": dict(op.optional),
        "expected": op.expected or None,
        "broken": op.broken,
        "ways": [
            {"way": way.way, "ids": list(way.ids), **_all_outcomes(way.counts), "right": way.right} for way in op.ways
        ],
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
        "failures": [{**attrs.asdict(each), "calls": list(each.calls)} for each in op.failures],
    }


def _all_outcomes(counts: Mapping[str, int]) -> dict[str, int]:
    return {outcome: counts.get(outcome, 0) for outcome in BROKEN_OUTCOMES}


def counted(outcomes: Iterable[str]) -> dict[str, int]:
    """Return how often each occurs, the most frequent first.

    >>> counted(["ok", "hangs", "ok"])
    {'ok': 2, 'hangs': 1}
    """
    return dict(Counter(outcomes).most_common())
