"""Finds ranks that wait for each other in a circle where they do not meet, by their last calls.

A rank that is inside its last call waits for the ranks of the group that have not made as many collectives, or for the
partner of a message that has none yet. Nothing is said of calls that the rank may have gone on from, and of ranks whose
earlier calls are not known.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from collective_rules.agreement.point_to_point import MatchedMessages
from collective_rules.agreement.sequences import GroupCalls, JobCalls, arrange
from collective_rules.agreement.wait_cycle import Wait
from collective_rules.call import Call
from collective_rules.messages import call_text, group_text

Tails = Mapping[int, Sequence[Call]]
"""The last calls of ranks, by global rank."""


def waits_by_last_calls(tails: Tails, inside: Collection[int], whole: Collection[int]) -> dict[int, Wait]:
    """Return the waits of the ranks that are `inside` their last call, by global rank.

    `whole`: the ranks of which `tails` has all calls.
    """
    job = arrange(call for calls in tails.values() for call in calls)
    waits = {}
    for rank in inside:
        last = tails[rank][-1] if tails.get(rank) else None
        if last is None or not last.blocking or last.row.rule.one_sided or last.row.entry.batch:
            continue
        group = _group_of(last, job)
        if group is None:
            continue
        of = (
            _message(last, group, job, whole)
            if last.row.rule.point_to_point
            else _collective(last, group, tails, whole)
        )
        where = group_text(group.name, group.ranks)
        text = f"{call_text(last)}{f' (number {last.index} of {where})' if where else ''}"
        waits[rank] = Wait(last.op, text, last.source, frozenset(of) - {rank})
    return waits


def _group_of(call: Call, job: JobCalls) -> GroupCalls | None:
    return next((each for each in job.groups if (each.name, each.ranks) == (call.group.name, call.group.ranks)), None)


def _collective(call: Call, group: GroupCalls, tails: Tails, whole: Collection[int]) -> Iterator[int]:
    """Yield the ranks that are known not to have made this collective."""
    for rank in group.ranks or range(group.size):
        made = [
            other.index
            for other in tails.get(rank, ())
            if not other.row.rule.point_to_point
            and (other.group.name, other.group.ranks) == (group.name, group.ranks)
            and other.index is not None
        ]
        if (made or rank in whole) and max(made, default=-1) < (call.index or 0):
            yield rank


def _message(call: Call, group: GroupCalls, job: JobCalls, whole: Collection[int]) -> Iterator[int]:
    """Yield the partner, if it is known that it has not made its call."""
    peer = call.attribute("peer")
    own = (call.group.rank, len(group.messages[call.group.rank].numbers) - 1)
    if peer is None or not {group.global_rank(peer), call.group.global_rank} <= {*whole}:
        return
    matched = MatchedMessages(group, job.signatures, frozenset(range(group.size)))
    if own not in matched.partner_of and not matched.is_from_any(own):
        yield group.global_rank(peer)
