"""What several ranks' recordings say together, as data: the judgement of each call, of the ranks, and of the files.

It judges nothing itself: `check` judges a call, `agree` the ranks. It puts their findings in order, says once what
many calls have, and translates the ranks of groups into global ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs

from collective_rules.agree import agree
from collective_rules.agreement.sequences import Signatures
from collective_rules.agreement.wait_cycle import WAIT_CYCLE
from collective_rules.call import Call
from collective_rules.check import check
from collective_rules.comparison.context import Divergence, Timeline, divergences, earliest_first
from collective_rules.comparison.names import Labels
from collective_rules.finding import ERROR, UNDECIDABLE, WARNING, Finding
from collective_rules.messages import ranks_text, worst_first
from collective_rules.recordings import Recording, same_ranks

__all__ = ["Comparison", "File", "compare"]

_ABSENT, _WORLDS = "COMPARE1", "COMPARE2"
_MOST_RANKS = 8
_BY_BACKEND = "flight recorder"


@attrs.frozen
class File:
    """One recording: which rank's, how many calls it holds, and whether it was compared.

    `note` says what is not as usual with it.
    """

    path: str
    format: str
    rank: int | None
    world_size: int | None
    calls: int
    compared: bool = True
    note: str = ""


@attrs.frozen
class Comparison:
    """What several ranks' recordings say together.

    - `files`: the recordings. `ranks`: the global ranks that were compared. `world_size`: None where no file tells.
    - `findings`: the worst first; their `ranks` are global. `divergences`: where each group first parts.
    - `notes`: what a reader must know besides.
    """

    files: tuple[File, ...]
    ranks: tuple[int, ...]
    world_size: int | None
    findings: tuple[Finding, ...]
    divergences: tuple[Divergence, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def calls(self) -> int:
        """How many calls were compared."""
        return sum(file.calls for file in self.files if file.compared)

    @property
    def is_wrong(self) -> bool:
        """Whether there is an error."""
        return any(found.severity == ERROR for found in self.findings)


def compare(
    recordings: Iterable[Recording],
    backend: str | None = None,
    *,
    findings: Iterable[Finding] = (),
    incomplete: Iterable[int] = (),
    expected: Iterable[int] | None = None,
    notes: Iterable[str] = (),
    context: int = 3,
) -> Comparison:
    """Compare what several ranks communicated: `recordings` hold one rank each, in any formats.

    Each distinct call is checked, the ranks are compared, and where a group first parts is shown with `context` calls
    before and after it. `findings` are what is known already, `incomplete` ranks whose last calls are not there:
    whether they make a call that the others make is undecidable. `expected` are the ranks whose recordings should be
    there, if not all of the world. `notes` are taken over. Of several recordings of one rank the first is compared.

    Raises `CallError` for an unknown backend.

    >>> import collective_rules as cr
    >>> def recording(rank, numel):
    ...     call = cr.call("c10d::allreduce_", group=cr.Group(2, rank, "0", (0, 1)), tensors=[(numel,)])
    ...     return Recording(f"rank{rank}.jsonl", "ledger", rank, 2, (call,))
    >>> found = compare([recording(0, 4), recording(1, 5)])
    >>> [(each.id, each.severity, each.ranks) for each in found.findings]
    [('AR1', 'error', (0, 1))]
    """
    known = [attrs.evolve(each, rank=_rank_of(each)) for each in recordings]
    chosen: dict[int, Recording] = {}
    for each in known:
        chosen.setdefault(each.rank or 0, each)
    labels = Labels(call for each in chosen.values() for call in each.calls)
    short = {rank for rank, each in chosen.items() if each.is_cut}
    world = max((each.world_size for each in known if each.world_size is not None), default=None)
    checked = list(_checked(chosen, labels, backend))
    parted = list(_agreed(chosen, labels, backend, {*short, *incomplete} & chosen.keys()))
    absent = _expected(labels, world) if expected is None else set(expected)
    timelines = {rank: Timeline(rank, each.calls, labels) for rank, each in sorted(chosen.items())}
    judged = [
        *findings,
        *earliest_first([*checked, *(found for found, _ in parted)], timelines, labels),
        *same_ranks(known),
        *_about_worlds(known),
        *_read(known),
        *_about_the_absent(absent - chosen.keys(), len(absent)),
    ]
    shown = [found for found, is_shown in parted if is_shown]
    return Comparison(
        files=tuple(_file(each, compared=chosen.get(each.rank or 0) is each) for each in known),
        ranks=tuple(sorted(chosen)),
        world_size=world,
        findings=worst_first(judged),
        divergences=divergences(shown, timelines, labels, context),
        notes=tuple(notes),
    )


def _rank_of(recording: Recording) -> int:
    """The recording's rank; where it does not tell, the rank of its first call."""
    if recording.rank is not None:
        return recording.rank
    group = recording.calls[0].group if recording.calls else None
    return 0 if group is None else group.ranks[group.rank] if group.ranks else group.rank


def _file(recording: Recording, *, compared: bool) -> File:
    return File(
        recording.path,
        recording.format,
        recording.rank,
        recording.world_size,
        len(recording.calls),
        compared,
        "" if compared else "not compared: another file is of this rank",
    )


def _checked(chosen: Mapping[int, Recording], labels: Labels, backend: str | None) -> Iterator[Finding]:
    """Check each distinct call once, and say once what many of them have."""
    signatures = Signatures()
    known: dict[tuple[int, int, int], tuple[Finding, ...]] = {}
    seen: dict[tuple[str, str, str, str], _Seen] = {}
    for rank, recording in chosen.items():
        indices: dict[str, int] = {}
        for call in recording.calls:
            label = labels.group(call.group).name
            point_to_point = call.row.rule.point_to_point
            index = None if point_to_point else call.index
            if index is None and not point_to_point:
                index = indices.get(label, 0)
            if index is not None:
                indices[label] = index + 1
            key = (signatures.number(call), call.group.size, call.group.rank)
            found = known.get(key)
            if found is None:
                found = known[key] = check(call, backend)
            for each in found:
                alike = (each.id, each.severity, each.message, label)
                seen.setdefault(alike, _Seen(each, label, index)).add(rank, call)
    for alike_calls in seen.values():
        yield alike_calls.finding()


@attrs.define
class _Seen:
    """One thing that is wrong with several calls alike."""

    first: Finding
    label: str
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
        ranks = tuple(sorted(self.ranks))
        return attrs.evolve(
            self.first, message=message, ranks=ranks, group=self.label, index=self.index, count=self.count
        )


def _agreed(
    chosen: Mapping[int, Recording], labels: Labels, backend: str | None, incomplete: set[int]
) -> Iterator[tuple[Finding, bool]]:
    """What the ranks disagree on, and whether it is a place where they part.

    That a recording which ends early lacks a call is undecidable. So is it in a group of which a recording could not be
    read whole, and there nothing is sure of the calls that only their order tells apart. Of one that begins late, calls
    that have an index are sure, and that it ends is: but not the messages of its groups, nor what a group lacks of
    which it has no call at all. And undecidable is what a Flight Recorder tells otherwise than another format: gloo's
    names a reduce_scatter all_reduce.
    """
    torn = {rank: frozenset(each.lost) for rank, each in chosen.items() if each.lost}
    late = _Late(chosen, labels)
    sorts: dict[bool, list[int]] = {}
    for rank, recording in chosen.items():
        sorts.setdefault(recording.format == _BY_BACKEND, []).append(rank)
    told = set()
    for ranks in sorts.values():
        known = set(ranks) - incomplete - torn.keys()
        for absent, calls in late.parts(_sure_calls(chosen, ranks, torn, late, labels)):
            for found in agree(calls, backend, ranks=known - absent):
                told.add(_key(found))
                yield _placed(found, labels), found.severity != UNDECIDABLE
    doubts = []
    if incomplete:
        doubts.append(f"The record of {ranks_text(incomplete)} ends early: a call may be among what is lost.")
    if torn:
        doubts.append(f"The record of {ranks_text(torn)} could not be read whole: a call may be among what is lost.")
    if late.ranks:
        doubts.append(f"The record of {ranks_text(late.ranks)} begins late: a call may be among what is missing.")
    if len(sorts) > 1:
        doubts.append(f"The Flight Recorder of {ranks_text(sorts[True])} names ops as the backend does.")
    if doubts:
        lost = frozenset().union(*torn.values())
        anywhere = bool(incomplete) or len(sorts) > 1 or None in lost
        for found in agree(map(labels.call, _calls(chosen, chosen)), backend, ranks=chosen):
            if _key(found) in told:
                continue
            placed = _placed(found, labels)
            doubted = found.id == WAIT_CYCLE or late.concerns(found.group)
            if anywhere or doubted or labels.names.get(found.group, found.group) in lost:
                placed = attrs.evolve(placed, severity=UNDECIDABLE, message="\n".join([placed.message, *doubts]))
            yield placed, found.severity != UNDECIDABLE


def _calls(chosen: Mapping[int, Recording], ranks: Iterable[int]) -> Iterator[Call]:
    for rank in ranks:
        yield from chosen[rank].calls


def _sure_calls(
    chosen: Mapping[int, Recording],
    ranks: Iterable[int],
    torn: Mapping[int, frozenset[str | None]],
    late: _Late,
    labels: Labels,
) -> Iterator[Call]:
    """The calls that are in their place whatever else is missing, in groups that have their label as their name."""
    for rank in ranks:
        lost = torn.get(rank, ())
        for call in chosen[rank].calls:
            labelled = labels.call(call)
            by_order = call.index is None and (None in lost or call.group.name in lost)
            if not by_order and late.is_sure(rank, labelled):
                yield labelled


class _Late:
    """Recordings that lack their beginning, such as a ring buffer's, whose every entry overwrites the oldest.

    `ranks`: of which there is such a one.
    """

    def __init__(self, chosen: Mapping[int, Recording], labels: Labels) -> None:
        self.ranks = frozenset(rank for rank, each in chosen.items() if each.begins_late)
        self._labels = labels
        self._numbered: dict[str, set[int]] = {}
        for rank in self.ranks:
            for call in chosen[rank].calls:
                if call.index is not None:
                    self._numbered.setdefault(labels.group(call.group).name, set()).add(rank)

    def concerns(self, label: str) -> bool:
        """Whether such a rank is in the group."""
        return bool(self.ranks.intersection(self._labels.members(label)) or label in self._numbered)

    def is_sure(self, rank: int, call: Call) -> bool:
        """Whether a rank's call can be compared wherever these recordings begin; its group is named by its label."""
        if not self.ranks:
            return True
        if call.row.rule.point_to_point:
            return not self.concerns(call.group.name)
        return call.index is not None or rank not in self.ranks

    def parts(self, calls: Iterable[Call]) -> Iterator[tuple[frozenset[int], Iterable[Call]]]:
        """Yield calls with the ranks of which nothing is known in their groups, those of the same ranks at once."""
        if not self.ranks:
            yield frozenset(), calls
            return
        parts: dict[frozenset[int], list[Call]] = {}
        known: dict[str, list[Call]] = {}
        for call in calls:
            name = call.group.name
            if name not in known:
                here = self.ranks.intersection(self._labels.members(name))
                known[name] = parts.setdefault(here - self._numbered.get(name, set()), [])
            known[name].append(call)
        yield from parts.items()


def _key(found: Finding) -> tuple[Any, ...]:
    return found.id, found.group, found.index, found.ranks


def _placed(found: Finding, labels: Labels) -> Finding:
    """Return a finding of `agree` with global ranks; where they are others than the group's, its message says which."""
    members = labels.members(found.group)
    if found.id == WAIT_CYCLE or not members or members == tuple(range(len(members))):
        return found
    ranks = tuple(sorted(members[rank] for rank in found.ranks if rank < len(members)))
    which = f"group {found.group}" if found.group else "their group"
    pairs = ", ".join(f"{rank} is {members[rank]}" for rank in found.ranks[:_MOST_RANKS] if rank < len(members))
    told = f": {pairs}{', …' if len(found.ranks) > _MOST_RANKS else ''}" if pairs else ""
    message = f"{found.message}\nRanks are counted in {which}, which is {ranks_text(members)} of the world{told}."
    return attrs.evolve(found, ranks=ranks, message=message)


def _read(recordings: Iterable[Recording]) -> Iterator[Finding]:
    """What the files did not tell, once for all files that say the same."""
    alike: dict[tuple[str, Any], list[tuple[Recording, Finding]]] = {}
    for recording in recordings:
        for found in recording.findings:
            alike.setdefault((found.id, found.names.get("what", found.message)), []).append((recording, found))
    for several in alike.values():
        first = several[0][1]
        ranks = tuple(sorted({recording.rank for recording, _ in several if recording.rank is not None}))
        count = sum(int(found.names.get("count", 1)) for _, found in several)
        more = f"\nSo it is in {len(several)} files, of {ranks_text(ranks)}." if len(several) > 1 else ""
        yield attrs.evolve(first, message=first.message + more, ranks=ranks, count=count)


def _about_worlds(recordings: Iterable[Recording]) -> Iterator[Finding]:
    """The recordings may be of several runs."""
    sizes: dict[int, list[int]] = {}
    for recording in recordings:
        if recording.world_size is not None and recording.rank is not None:
            sizes.setdefault(recording.world_size, []).append(recording.rank)
    if len(sizes) > 1:
        rows = "\n".join(f"  world_size = {size}   {ranks_text(ranks)}" for size, ranks in sorted(sizes.items()))
        advice = "Compare recordings of one run only."
        message = f"the recordings are of runs of different sizes   [{_WORLDS}]\n{rows}\n{advice}"
        yield Finding(_WORLDS, WARNING, message, tuple(sorted(rank for ranks in sizes.values() for rank in ranks)))


def _expected(labels: Labels, world: int | None) -> set[int]:
    """All ranks of the world, and of every group."""
    return {rank for label in labels.groups for rank in labels.members(label)} | set(range(world or 0))


def _about_the_absent(absent: set[int], expected: int) -> Iterator[Finding]:
    """Ranks of which there should be a recording."""
    if absent:
        message = (
            f"there is no record of {ranks_text(absent)}, {len(absent):,} of {expected:,}   [{_ABSENT}]\n"
            "Whether they make the same calls, nothing here tells; give their files, too."
        )
        yield Finding(_ABSENT, UNDECIDABLE, message, tuple(sorted(absent)))
