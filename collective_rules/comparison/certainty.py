"""Compares the ranks of recordings that may lack calls, and says which findings are certain.

A finding is certain where no damage of a recording can bring it about:

| damage of one rank's recording | certain all the same                                                            |
|--------------------------------|---------------------------------------------------------------------------------|
| it ends early                  | each call that it has; not that the rank makes no further call                  |
| it has gaps in some groups     | all other groups; in these groups, collectives with an index, but no absence    |
| it begins late                 | collectives with an index, and their absence if the group has any; no messages  |
| it is a Flight Recorder's      | findings among Flight Recorders: with gloo, one calls a reduce_scatter all_reduce |

So `agree` compares the ranks twice: `certain_findings` from the calls and ranks that no damage touches, and
`doubtful_findings` from all calls. `Damage.weakened` makes a doubtful finding undecidable where damage may explain it.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import attrs

from collective_rules.agreement.agree import agree
from collective_rules.agreement.wait_cycle import WAIT_CYCLE
from collective_rules.backends import Backend
from collective_rules.call import Call
from collective_rules.comparison.names import GroupNames
from collective_rules.finding import UNDECIDABLE, Finding
from collective_rules.messages import ranks_text
from collective_rules.recordings import Recording

_NAMED_BY_BACKEND = "flight recorder"


class Damage:
    """The damage of the recordings, by rank: `ends_early`, `gaps` (names of groups), `begins_late`.

    - `incomplete`: further ranks whose recordings end early, because their programs did.
    - `namings`: the ranks whose recordings name ops in the same way.
    - `indexed`: by a group's unique name, the ranks that begin late and have a call with an index in the group.
    """

    def __init__(self, recordings: Mapping[int, Recording], groups: GroupNames, incomplete: Collection[int]) -> None:
        self.recordings, self.groups = recordings, groups
        self.ends_early = {rank for rank, each in recordings.items() if each.is_cut or rank in incomplete}
        self.gaps = {rank: frozenset(each.lost) for rank, each in recordings.items() if each.lost}
        self.begins_late = frozenset(rank for rank, each in recordings.items() if each.begins_late)
        self.namings: dict[bool, list[int]] = {}
        for rank, each in recordings.items():
            self.namings.setdefault(each.format == _NAMED_BY_BACKEND, []).append(rank)
        self.indexed: dict[str, set[int]] = {}
        for rank in self.begins_late:
            for call in recordings[rank].calls:
                if call.index is not None:
                    self.indexed.setdefault(groups.group(call.group).name, set()).add(rank)

    def calls(self, ranks: Iterable[int]) -> Iterator[tuple[int, Call]]:
        """Yield each call with its rank, in a group with a unique name."""
        for rank in ranks:
            for call in self.recordings[rank].calls:
                yield rank, self.groups.call(call)

    def certain_calls(self, ranks: Iterable[int]) -> Iterator[Call]:
        """Yield the calls that have a certain place among those of their group."""
        for rank, call in self.calls(ranks):
            gaps = self.gaps.get(rank, ())
            in_gap = call.index is None and (None in gaps or self.groups.recorded[call.group.name] in gaps)
            if call.row.rule.point_to_point:
                after_gap = self._has_late_ranks(call.group.name)
            else:
                after_gap = call.index is None and rank in self.begins_late
            if not in_gap and not after_gap:
                yield call

    def by_unseen_ranks(self, calls: Iterable[Call]) -> Iterator[tuple[Collection[int], Iterable[Call]]]:
        """Yield calls with the ranks that begin late and have no indexed call in the calls' groups."""
        if not self.begins_late:
            yield (), calls
            return
        shares: dict[frozenset[int], list[Call]] = {}
        share_of: dict[str, list[Call]] = {}
        for call in calls:
            name = call.group.name
            if name not in share_of:
                late = self.begins_late.intersection(self.groups.members(name))
                share_of[name] = shares.setdefault(late - self.indexed.get(name, set()), [])
            share_of[name].append(call)
        yield from shares.items()

    def weakened(self, finding: Finding) -> Finding:
        """Return a doubtful finding as undecidable, with the reasons, where damage may explain it."""
        gaps = frozenset().union(*self.gaps.values())
        everywhere = bool(self.ends_early) or len(self.namings) > 1 or None in gaps
        across_groups = finding.id == WAIT_CYCLE
        name = self.groups.recorded.get(finding.group, finding.group)
        if everywhere or across_groups or name in gaps or self._has_late_ranks(finding.group):
            message = "\n".join([finding.message, *self.reasons])
            return attrs.evolve(finding, severity=UNDECIDABLE, message=message)
        return finding

    @functools.cached_property
    def reasons(self) -> list[str]:
        """A sentence on each kind of damage."""
        damage = {"ends early": self.ends_early, "could not be read whole": self.gaps, "begins late": self.begins_late}
        damaged = {what: ranks_text(ranks) for what, ranks in damage.items() if ranks}
        reasons = [f"The recording of {ranks} {what}: it may lack a call." for what, ranks in damaged.items()]
        if len(self.namings) > 1:
            reasons.append(f"The Flight Recorder of {ranks_text(self.namings[True])} names ops as the backend does.")
        return reasons

    def _has_late_ranks(self, name: str) -> bool:
        if not self.begins_late:
            return False
        return name in self.indexed or not self.begins_late.isdisjoint(self.groups.members(name))


def certain_findings(damage: Damage, backend: str | Backend | None) -> Iterator[Finding]:
    """Yield the findings that hold whatever the recordings lack; ranks are global."""
    for ranks in damage.namings.values():
        complete = set(ranks) - damage.ends_early - damage.gaps.keys()
        for unseen, share in damage.by_unseen_ranks(damage.certain_calls(ranks)):
            yield from agree(share, backend, ranks=complete.difference(unseen))


def doubtful_findings(damage: Damage, backend: str | Backend | None, certain: Iterable[Finding]) -> Iterator[Finding]:
    """Yield the findings in all calls that are not among the `certain` ones, with the severities of `agree`."""
    if damage.reasons:
        keys = set(map(_key, certain))
        calls = (call for _, call in damage.calls(damage.recordings))
        for finding in agree(calls, backend, ranks=damage.recordings):
            if _key(finding) not in keys:
                yield finding


def _key(finding: Finding) -> tuple[Any, ...]:
    return finding.id, finding.group, finding.index, finding.ranks
