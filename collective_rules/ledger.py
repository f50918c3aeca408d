"""The ledger: the last calls of a program, and totals of all its calls.

It does not know how calls are seen. Calls that are alike share one `CallFacts`, so that an entry stays small.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import attrs

from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.finding import Finding
from collective_rules.nested import leaves
from collective_rules.spec import Group, Spec
from collective_rules.symbols import number
from collective_rules.traffic import Traffic, traffic

_SUMS = ("read", "written", "sent", "buffer")
_SIZES = 8
_MOST_UNCOUNTED = 1000


class TotalKey(NamedTuple):
    """The calls that one total sums. `group` is the group's name."""

    op: str
    group: str
    module: str
    phase: str


@attrs.define(eq=False)
class CallFacts:
    """The facts that calls share which are alike, computed once.

    `bytes` are read, written, sent and buffer as plain numbers. `traffic` and `bytes` are None for a call whose bytes
    cannot be counted, `findings` until the call is checked, `expected` until its result is inferred. `sequence`: the
    group, and the kind of calls in it, among which a call has its index. `backend`: the name of the backend that
    carries the call out, "nccl"; None where that is not known.
    """

    call: Call
    traffic: Traffic | None
    sizes: str
    bytes: tuple[float, ...] | None
    group: str
    sequence: tuple[str, str]
    backend: str | None = None
    findings: tuple[Finding, ...] | None = None
    expected: Any = None

    @classmethod
    def of(cls, call: Call, backend: str | None = None) -> CallFacts:
        """Return the facts of `call`, of an illegal one too."""
        try:
            moved: Traffic | None = traffic(call)
        except (CallError, TypeError):  # illegal, or a size is known only in the run
            moved = None
        name, rule = call.group.name, call.row.rule
        apart = rule.name if rule.one_sided else "messages" if rule.point_to_point else "collectives"
        # of symbolic sizes, the hints
        numbers = None if moved is None else tuple(number(getattr(moved, name)) for name in _SUMS)
        return cls(call, moved, _sizes_text(call), numbers, name, (name, apart), backend)


@attrs.define(eq=False, repr=False)
class Entry:
    """One call in a ledger.

    - `number`: its place in the ledger, from 0. `index`: its place among its group's collectives; for a message, or a
      one-sided call, its place among those.
    - `source`: the line that made it. `module`: the innermost module at work, "layers.3.attn.wq"; "" outside of any.
    - `phase`: "forward", "backward", "optimizer" or "". `step`: the number of optimizer steps before it.
    - `at`: seconds since the block was entered.
    - `asynchronous`: whether the caller has to wait for the result. `waited`: the line that waited for the result of a
      functional collective.
    - `findings`: what is wrong with the call, where the mode checks.
    """

    facts: CallFacts
    number: int
    index: int
    source: str
    module: str
    phase: str
    step: int
    at: float
    asynchronous: bool
    waited: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def call(self) -> Call:
        """The call, with its source, its index in the group, and whether its caller waits in it."""
        facts = self.facts.call
        return Call(facts.row, facts.group, facts.arguments, self.source, self.index, not self.asynchronous)

    @property
    def traffic(self) -> Traffic | None:
        """The bytes that the call moves; None where they cannot be counted."""
        return self.facts.traffic

    def __repr__(self) -> str:
        return f"<{self.number}: {self.facts.call!r} at {self.source}>"


@attrs.define
class Total:
    """Sums over calls, in bytes by `Traffic`'s conventions.

    `sizes` counts calls by their sizes ("float32[1024, 16]"), at most eight of them; `more` counts the other calls.
    `uncounted` is the number of calls whose bytes cannot be counted.
    """

    calls: int = 0
    read: float = 0
    written: float = 0
    sent: float = 0
    buffer: float = 0
    more: int = 0
    uncounted: int = 0
    sizes: dict[str, int] = attrs.field(factory=dict)

    def count(self, facts: CallFacts, calls: int = 1) -> None:
        """Add a number of calls that are alike."""
        self.calls += calls
        if facts.bytes is None:
            self.uncounted += calls
        for name, moved in zip(_SUMS, facts.bytes or (), strict=False):
            setattr(self, name, getattr(self, name) + moved * calls)
        self._add_sizes(facts.sizes, calls)

    def add(self, other: Total) -> None:
        """Add another total."""
        for name in ("calls", "more", "uncounted", *_SUMS):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for sizes, count in other.sizes.items():
            self._add_sizes(sizes, count)

    def _add_sizes(self, sizes: str, count: int) -> None:
        if sizes in self.sizes or len(self.sizes) < _SIZES:
            self.sizes[sizes] = self.sizes.get(sizes, 0) + count
        else:
            self.more += count


class Ledger:
    """The calls that a `RuleMode` saw.

    - `entries`: the last `keep` calls, oldest first. `count`: the number of all calls.
    - `groups`: the groups by name. `findings`: all findings, in the order in which they were found.
    - `steps`: optimizer steps. `devices`: devices that stand in for others, {"cpu": "cuda"} in a dry run.
    - `followers`: functions that get every entry, before the call is sent. `finding_followers`: functions that get
      every finding.
    """

    def __init__(self, keep: int = 100_000) -> None:
        self.keep = keep
        self.groups: dict[str, Group] = {}
        self.findings: list[Finding] = []
        self.devices: dict[str, str] = {}
        self.followers: list[Callable[[Entry], None]] = []
        self.finding_followers: list[Callable[[Finding], None]] = []
        self.steps = 0
        self.count = 0
        self._kept: deque[Entry] = deque(maxlen=keep)
        self._indices: dict[tuple[str, str], int] = {}
        self._totals: dict[TotalKey, Total] = {}
        self._uncounted: dict[tuple[CallFacts, str, str], int] = {}
        self._lock = threading.RLock()

    @property
    def totals(self) -> dict[TotalKey, Total]:
        """The sums over all calls, by `TotalKey`."""
        with self._lock:
            self._count()
        return self._totals

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The last `keep` calls, oldest first."""
        return tuple(self._kept)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The kept entries' calls."""
        return tuple(entry.call for entry in self._kept)

    @property
    def total(self) -> Total:
        """The sum over all calls."""
        return self.by().get((), Total())

    def by(self, *names: str) -> dict[tuple[str, ...], Total]:
        """Return totals by some of "op", "group", "module" and "phase", those with the most bytes sent first.

        Raises `CallError` for another name.
        """
        unknown = [name for name in names if name not in TotalKey._fields]
        if unknown:
            raise CallError(
                f"{unknown[0]!r} is no name to sum by; the names are {', '.join(map(repr, TotalKey._fields))}"
            )
        sums: dict[tuple[str, ...], Total] = {}
        for key, total in list(self.totals.items()):
            sums.setdefault(tuple(getattr(key, name) for name in names), Total()).add(total)
        return dict(sorted(sums.items(), key=lambda item: -item[1].sent))

    def enter(self, facts: CallFacts, source: str, module: str, phase: str, at: float, asynchronous: bool) -> Entry:
        """Add a call."""
        sequence, place, uncounted = facts.sequence, (facts, module, phase), self._uncounted
        with self._lock:
            number = self.count
            self.count = number + 1
            index = self._indices.get(sequence, 0)
            self._indices[sequence] = index + 1
            entry = Entry(facts, number, index, source, module, phase, self.steps, at, asynchronous)
            self._kept.append(entry)
            uncounted[place] = uncounted.get(place, 0) + 1
            if not index:
                self.groups.setdefault(facts.group, facts.call.group)
            if len(uncounted) > _MOST_UNCOUNTED:
                self._count()
        for follower in self.followers:
            follower(entry)
        return entry

    def find(self, findings: Iterable[Finding]) -> None:
        """Add findings."""
        for finding in findings:
            self.findings.append(finding)
            for follower in self.finding_followers:
                follower(finding)

    def _count(self) -> None:
        """Add to the totals the calls that were entered since; all at once is cheaper than call by call."""
        for (facts, module, phase), calls in self._uncounted.items():
            key = TotalKey(facts.call.row.entry.op, facts.group, module, phase)
            total = self._totals.get(key)
            if total is None:
                total = self._totals[key] = Total()
            total.count(facts, calls)
        self._uncounted.clear()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds: all but the lock and the followers."""
        with self._lock:
            return {**vars(self), "followers": [], "finding_followers": [], "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy or a pickle."""
        vars(self).update(state)
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        return f"<Ledger of {self.count} calls, {len(self.findings)} findings>"


def _sizes_text(call: Call) -> str:
    given = [argument.name for argument in call.row.arguments if argument.kind == "Tensor"]
    reads = [name for name in given if name in call.row.reads] or [name for name in given if name in call.row.writes]
    texts = [_spec_text(spec) for spec in leaves([call.arguments.get(name) for name in reads], Spec)]
    alike = dict.fromkeys(texts)
    return ", ".join(f"{texts.count(text)} × {text}" if texts.count(text) > 1 else text for text in alike)


def _spec_text(spec: Spec) -> str:
    shape = "?" if spec.shape is None else ", ".join(map(str, spec.shape))
    return f"{str(spec.dtype).removeprefix('torch.')}[{shape}]"
