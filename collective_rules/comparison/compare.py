"""Compares the recordings of several ranks: the findings of each call, of the ranks together, and of the files.

`check` judges a call, and `certainty` the ranks. This module merges equal findings of many calls, and orders them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import compress
from typing import Any

import attrs

from collective_rules.agreement.group_names import NamedGroups, is_about_groups
from collective_rules.agreement.sequences import Signatures
from collective_rules.backends import Backend
from collective_rules.call import Call
from collective_rules.check import check
from collective_rules.comparison.certainty import Damage, certain_findings, doubtful_findings
from collective_rules.comparison.context import Divergence, Timeline, divergences, earliest_first
from collective_rules.comparison.names import GroupNames
from collective_rules.finding import ERROR, UNDECIDABLE, WARNING, Finding
from collective_rules.messages import ranks_text, worst_first
from collective_rules.recordings import Recording, same_ranks

_ABSENT, _WORLDS = "COMPARE1", "COMPARE2"
_MOST_TOLD = 8


@attrs.frozen
class File:
    """One recording: its rank, its number of calls, and whether it was compared; `note` says why it was not."""

    path: str
    format: str
    rank: int | None
    world_size: int | None
    calls: int
    compared: bool = True
    note: str = ""


@attrs.frozen
class Comparison:
    """The result of comparing several ranks' recordings.

    - `files`: the recordings. `ranks`: the global ranks that were compared. `world_size`: None where no file has it.
    - `findings`: the worst first. `divergences`: where each group first parts.
    - `notes`: sentences that a reader must know.
    """

    files: tuple[File, ...]
    ranks: tuple[int, ...]
    world_size: int | None
    findings: tuple[Finding, ...]
    divergences: tuple[Divergence, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def calls(self) -> int:
        """The number of calls that were compared."""
        return sum(file.calls for file in self.files if file.compared)

    @property
    def is_wrong(self) -> bool:
        """Whether there is an error."""
        return any(finding.severity == ERROR for finding in self.findings)


def compare(
    recordings: Iterable[Recording],
    backend: str | Backend | None = None,
    *,
    findings: Iterable[Finding] = (),
    incomplete: Iterable[int] = (),
    expected: Iterable[int] | None = None,
    notes: Iterable[str] = (),
    context: int = 3,
) -> Comparison:
    """Compare the collectives of several ranks: `recordings` hold one rank each, in any formats.

    Each distinct call is checked, the ranks are compared, and the place where a group first parts is shown with
    `context` calls before and after it. `findings` and `notes` become part of the result. `incomplete` are ranks whose
    last calls are missing: it is undecidable whether they make further calls. `expected` are the ranks that should have
    recordings; by default all ranks of the world. Of several recordings of one rank the first is compared.

    Raises `CallError` for an unknown backend.

    >>> import collective_rules as cr
    >>> def recording(rank, numel):
    ...     call = cr.call("c10d::allreduce_", group=cr.Group(2, rank, "0", (0, 1)), tensors=[(numel,)])
    ...     return Recording(f"rank{rank}.jsonl", "ledger", rank, 2, (call,))
    >>> comparison = compare([recording(0, 4), recording(1, 5)])
    >>> [(each.id, each.severity, each.ranks) for each in comparison.findings]
    [('AR1', 'error', (0, 1))]
    """
    ranked = [attrs.evolve(each, rank=_rank_of(each)) for each in recordings]
    by_rank: dict[int, Recording] = {}
    for each in ranked:
        by_rank.setdefault(each.rank or 0, each)
    groups = GroupNames(call for each in by_rank.values() for call in each.calls)
    world = max((each.world_size for each in ranked if each.world_size is not None), default=None)
    checked = list(_checked(by_rank, groups, backend))
    damage = Damage(by_rank, groups, set(incomplete))
    certain = list(certain_findings(damage, backend))
    doubtful = list(doubtful_findings(damage, backend, certain))
    agreed = [*certain, *map(damage.weakened, doubtful)]
    if not any(is_about_groups(finding) for finding in certain):
        agreed += _named_differently(by_rank.values())
    decided = [finding.severity != UNDECIDABLE for finding in (*certain, *doubtful)]  # by agree, damaged or not
    parting = list(compress(agreed, decided))
    wanted = _all_ranks(groups, world) if expected is None else set(expected)
    timelines = {rank: Timeline(rank, each.calls, groups) for rank, each in sorted(by_rank.items())}
    all_findings = [
        *findings,
        *earliest_first([*checked, *agreed], timelines, groups),
        *same_ranks(ranked),
        *_world_findings(ranked),
        *_file_findings(ranked),
        *_absence_findings(wanted - by_rank.keys(), len(wanted)),
    ]
    return Comparison(
        files=tuple(_file(each, is_compared=by_rank.get(each.rank or 0) is each) for each in ranked),
        ranks=tuple(sorted(by_rank)),
        world_size=world,
        findings=worst_first(all_findings),
        divergences=divergences(parting, timelines, groups, context),
        notes=(*notes, *_found_then(ranked)),
    )


def _named_differently(recordings: Iterable[Recording]) -> Iterator[Finding]:
    """Yield the findings that one number stands for groups of different ranks, by the names that are recorded."""
    named, seen = NamedGroups(), set[int]()
    for each in recordings:
        for call in each.calls if each.same_names else ():
            if id(call.group) not in seen or call.row.rule.makes_groups:
                seen.add(id(call.group))
                named.see(call)
    yield from named.findings()


def _rank_of(recording: Recording) -> int:
    """Return the recording's rank; where it has none, the global rank of its first call."""
    if recording.rank is not None:
        return recording.rank
    group = recording.calls[0].group if recording.calls else None
    return 0 if group is None else group.ranks[group.rank] if group.ranks else group.rank


def _file(recording: Recording, *, is_compared: bool) -> File:
    own = (recording.path, recording.format, recording.rank, recording.world_size, len(recording.calls))
    return File(*own, is_compared, "" if is_compared else "not compared: another file is of this rank")


def _checked(chosen: Mapping[int, Recording], groups: GroupNames, backend: str | Backend | None) -> Iterator[Finding]:
    """Check each distinct call once, and yield one finding for all calls with the same fault."""
    signatures = Signatures()
    checked: dict[tuple[int, int, int], tuple[Finding, ...]] = {}
    faults: dict[tuple[str, str, str, str], _Fault] = {}
    for rank, recording in chosen.items():
        next_index: dict[str, int] = {}
        for call in recording.calls:
            name = groups.group(call.group).name
            index = None
            if not call.row.rule.point_to_point:
                index = next_index.get(name, 0) if call.index is None else call.index
                next_index[name] = index + 1
            key = (signatures.number(call), call.group.size, call.group.rank)
            if key not in checked:
                checked[key] = check(call, backend)
            for each in checked[key]:
                same = (each.id, each.severity, each.message, name)
                faults.setdefault(same, _Fault(each, name, index)).add(rank, call)
    for fault in faults.values():
        yield fault.finding()


@attrs.define
class _Fault:
    """A fault that several calls of one group have alike; `index` is that of the first call."""

    first: Finding
    group: str
    index: int | None
    ranks: set[int] = attrs.field(factory=set)
    sources: dict[str, None] = attrs.field(factory=dict)
    count: int = 0

    def add(self, rank: int, call: Call) -> None:
        self.ranks.add(rank)
        self.count += 1
        if call.source:
            self.sources.setdefault(call.source)

    def finding(self) -> Finding:
        times = f", {self.count:,} calls" if self.count > 1 else ""
        where = f"   {', '.join(list(self.sources)[:3])}" if self.sources else ""
        message = f"{self.first.message}\n  {ranks_text(self.ranks)}{times}{where}"
        facts: dict[str, Any] = {"group": self.group, "index": self.index, "count": self.count}
        return attrs.evolve(self.first, message=message, ranks=tuple(sorted(self.ranks)), **facts)


def _file_findings(recordings: Iterable[Recording]) -> Iterator[Finding]:
    """Yield the findings of reading the files, one for all files that have the same."""
    same: dict[tuple[str, Any], list[tuple[Recording, Finding]]] = {}
    for recording in recordings:
        for finding in recording.findings:
            key = (finding.id, finding.names.get("what", finding.message))
            same.setdefault(key, []).append((recording, finding))
    for several in same.values():
        first = several[0][1]
        ranks = tuple(sorted({recording.rank for recording, _ in several if recording.rank is not None}))
        count = sum(int(finding.names.get("count", 1)) for _, finding in several)
        more = f"\nSo it is in {len(several)} files, of {ranks_text(ranks)}." if len(several) > 1 else ""
        yield attrs.evolve(first, message=first.message + more, ranks=ranks, count=count)


def _found_then(recordings: Iterable[Recording]) -> Iterator[str]:
    """Yield a sentence for each finding that guards wrote into their ledgers: a run may tell more than its calls do."""
    told: dict[str, set[int]] = {}
    for recording in recordings:
        for finding in recording.told:
            told.setdefault(f"{finding.severity}: {finding.message.splitlines()[0]}", set()).add(recording.rank or 0)
    for verdict, ranks in [*told.items()][:_MOST_TOLD]:
        yield f"While it ran, {ranks_text(ranks)} found {verdict}"
    if len(told) > _MOST_TOLD:
        yield f"While it ran, {len(told) - _MOST_TOLD} more were found."


def _world_findings(recordings: Iterable[Recording]) -> Iterator[Finding]:
    """Yield a finding where recordings are of worlds of different sizes: they may be of several runs."""
    sizes: dict[int, list[int]] = {}
    for recording in recordings:
        if recording.world_size is not None and recording.rank is not None:
            sizes.setdefault(recording.world_size, []).append(recording.rank)
    if len(sizes) > 1:
        rows = "\n".join(f"  world_size = {size}   {ranks_text(ranks)}" for size, ranks in sorted(sizes.items()))
        advice = "Compare recordings of one run only."
        message = f"the recordings are of runs of different sizes   [{_WORLDS}]\n{rows}\n{advice}"
        yield Finding(_WORLDS, WARNING, message, tuple(sorted(rank for ranks in sizes.values() for rank in ranks)))


def _all_ranks(groups: GroupNames, world: int | None) -> set[int]:
    """Return all ranks of the world, and of every group."""
    return {rank for name in groups.by_name for rank in groups.members(name)} | set(range(world or 0))


def _absence_findings(absent: set[int], expected: int) -> Iterator[Finding]:
    """Yield a finding for the ranks whose recordings are missing."""
    if absent:
        message = (
            f"there is no record of {ranks_text(absent)}, {len(absent):,} of {expected:,}   [{_ABSENT}]\n"
            "It is unknown whether they make the same calls. Give their files, too."
        )
        yield Finding(_ABSENT, UNDECIDABLE, message, tuple(sorted(absent)))
