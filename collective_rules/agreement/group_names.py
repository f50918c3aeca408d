"""Groups whose names mean one thing on some ranks, and another thing on others.

torch numbers the groups that a process makes. Where ranks do not make the same groups, one number has other ranks here
than there (`SAME_NAME`), or one group has two numbers (`TWO_NAMES`). Where a program destroys all groups and begins
again, the numbers start anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from collective_rules.agreement.sequences import GroupCalls
from collective_rules.agreement.unify import odd_ones
from collective_rules.call import Call
from collective_rules.finding import ERROR, Finding
from collective_rules.messages import ranks_text
from collective_rules.ops import lookup
from collective_rules.rules import KINDS

SAME_NAME = "GROUP1"
"""The id of the finding that one name stands for groups of different ranks."""
TWO_NAMES = "GROUP2"
"""The id of the finding that some ranks know a group by another name than the others."""

_MOST_SHOWN, _LONGEST = 8, 200
_ADVICE = KINDS["groups"].between or KINDS["groups"].advice


def is_about_groups(finding: Finding) -> bool:
    """Return whether ranks disagree on which groups there are."""
    return finding.id in (SAME_NAME, TWO_NAMES) or (bool(finding.op) and lookup(finding.op).rule.makes_groups)


class NamedGroups:
    """The names that ranks use for groups, collected by `see`."""

    def __init__(self) -> None:
        self._uses: dict[tuple[int, str], dict[tuple[int, ...], dict[int, str]]] = {}
        self._restarts: dict[int, int] = {}

    def see(self, call: Call) -> None:
        """Take in a call: of those in one group, the first is enough; of those that make groups, all are needed."""
        group = call.group
        if not group.ranks:
            return
        rank = group.ranks[group.rank]
        if call.row.rule.numbers_anew:
            self._restarts[rank] = self._restarts.get(rank, 0) + 1
            return
        name, ranks = group.name, group.ranks
        if call.row.rule.makes_groups:
            name, ranks = call.attribute("name"), call.attribute("members")
        # Another name may be a description: "tp" may be one group in each node.
        if isinstance(name, str) and name.isdecimal() and isinstance(ranks, tuple):
            uses = self._uses.setdefault((self._restarts.get(rank, 0), name), {})
            uses.setdefault(ranks, {}).setdefault(rank, call.source)

    def findings(self) -> Iterator[Finding]:
        """Yield a finding for each name that stands for groups of different ranks; its ranks are global.

        Where one rank itself uses a name for two groups, the numbers have started anew unseen.
        """
        for (_, name), uses in self._uses.items():
            users = [rank for by_rank in uses.values() for rank in by_rank]
            if len(uses) > 1 and len({*users}) == len(users):
                yield same_name(name, {ranks_of_group(ranks): lines for ranks, lines in uses.items()})


def same_name(name: str, uses: Mapping[str, Mapping[int, str]]) -> Finding:
    """Return the finding that a name stands for groups of different ranks; `uses`: the lines, by ranks and by user."""
    which = ", and ".join(f"{members} on {ranks_text(lines)}" for members, lines in [*uses.items()][:2])
    rows = [(f"group {name} of {members}", lines, lines.values()) for members, lines in uses.items()]
    names = {"ranks": {rank: members for members, lines in uses.items() for rank in lines}}
    odd = odd_ones([[*lines] for lines in uses.values()])
    verdict = f"group {name} is {which}   [{SAME_NAME}]"
    return Finding(SAME_NAME, ERROR, _message(verdict, rows), odd, names, group=name)


def renamed(groups: Iterable[GroupCalls], global_ranks: frozenset[int] | None) -> Iterator[tuple[Finding, GroupCalls]]:
    """Yield the findings that ranks know a group by two names, each with a group that it explains.

    A collective needs all ranks of its group, so ranks that have the same ranks in a group and no name in common do not
    mean two groups.
    """
    alike: dict[tuple[int, ...], list[GroupCalls]] = {}
    for group in groups:
        if group.ranks and group.collectives and not group.members(global_ranks) <= group.collectives.keys():
            alike.setdefault(group.ranks, []).append(group)
    for ranks, several in alike.items():
        users = [rank for group in several for rank in group.collectives]
        if len(several) > 1 and len({*users}) == len(users) and {*several[0].members(global_ranks)} <= {*users}:
            sides = [(group, [group.global_rank(rank) for rank in sorted(group.collectives)]) for group in several]
            which = " and ".join(f"group {group.name} on {ranks_text(own)}" for group, own in sides[:2])
            rows = [
                (
                    f"group {group.name} of {ranks_of_group(ranks)}",
                    own,
                    [each.sources[0] for each in group.collectives.values()],
                )
                for group, own in sides
            ]
            names = {"name": {rank: group.name for group, own in sides for rank in own}}
            message = _message(f"one group is {which}   [{TWO_NAMES}]", rows)
            finding = Finding(TWO_NAMES, ERROR, message, odd_ones([own for _, own in sides]), names)
            yield from ((finding, group) for group in several)


def ranks_of_group(ranks: tuple[int, ...]) -> str:
    """Write ranks, in their order where that is not the usual one."""
    text = ranks_text(ranks) if [*ranks] == sorted(ranks) else f"ranks {', '.join(map(str, ranks))}"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(ranks):,} ranks)"


def _message(verdict: str, rows: Iterable[tuple[str, Iterable[int], Iterable[str]]]) -> str:
    lines = [verdict]
    for what, ranks, sources in [*rows][:_MOST_SHOWN]:
        where = ", ".join([*dict.fromkeys(filter(None, sources))][:3])
        lines.append(f"  {what}   {ranks_text(ranks)}{'   ' if where else ''}{where}")
    return "\n".join([*lines, _ADVICE])
