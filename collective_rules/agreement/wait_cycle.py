"""Ranks that wait for each other in a cycle, found by simulating the job.

Each rank goes through its calls of all groups in the program's order. A collective is done when all its ranks have come
to it, a message when both its ends have. A rank goes on after a call that does not block; in a call that does, it stays
until the call is done. Where ranks are left blocked at the end, some of them wait for each other in a cycle.

Where the calls of a group are one stream, a rank comes to a collective when all its earlier calls of the group are
done, and to a message when its earlier collectives are. Messages may overtake each other: they may be one batch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import attrs

from collective_rules.agreement.point_to_point import MatchedMessages
from collective_rules.agreement.sequences import CallSequence, GroupCalls, JobCalls, blocks
from collective_rules.call import Call
from collective_rules.finding import ERROR, UNDECIDABLE, Finding
from collective_rules.messages import call_text, group_text, ranks_text

WAIT_CYCLE = "WAIT1"
"""The id of the finding that ranks wait for each other in a cycle."""

IN_ONE_ORDER = "Make these calls in one order on all ranks"
WITHOUT_WAITING = "start them without waiting (async_op, isend, irecv)"

_MOST_SHOWN = 8
_Rendezvous = tuple[int, ...]
"""The id of the group with the number of a collective, or with the two ends of a message."""


def find_wait_cycle(
    job: JobCalls, matched: Mapping[int, MatchedMessages], *, one_stream: bool = False
) -> Finding | None:
    """Return the finding that some ranks wait for each other, or None; its ranks are global.

    `matched`: each group's messages, by the id of the group. Every collective must have all its ranks, and every
    message both its ends. A rank of which no call is given keeps nobody waiting. `one_stream`: whether a rank's
    calls of one group are carried out one after another.
    """
    return _Simulation(job, matched, one_stream=one_stream).finding()


@attrs.frozen
class Wait:
    """A rank waits in a call, with its `text` and its `source`, for the global ranks `awaited`."""

    op: str
    text: str
    source: str
    awaited: frozenset[int]


def cycle_of(waits: Mapping[int, Wait]) -> list[int] | None:
    """Return ranks that wait for each other in a cycle, each for the next; None where some rank may go on.

    Every rank in `waits` is blocked, whatever the others do.

    >>> at = {
    ...     rank: Wait("", "", "", frozenset(awaited)) for rank, awaited in {0: [5], 1: [0, 2], 2: [3], 3: [1]}.items()
    ... }
    >>> cycle_of(at)
    [1, 2, 3]
    """
    done: set[int] = set()
    for start in sorted(waits):
        path: list[int] = []
        todo = [(start, False)]
        while todo:
            rank, over = todo.pop()
            if over:
                path.pop()
                done.add(rank)
            elif rank in path:
                return path[path.index(rank) :]
            elif rank not in done:
                path.append(rank)
                todo.append((rank, True))
                todo += [(each, False) for each in sorted(waits[rank].awaited & waits.keys(), reverse=True)]
    return None


def cycle_finding(path: list[int], waits: Mapping[int, Wait], advice: str, severity: str = ERROR) -> Finding:
    """Return the finding that the ranks in `path` wait, each for the next."""
    ranks = tuple(sorted(path))
    lines = [f"{ranks_text(ranks)} wait for each other, and none goes on   [{WAIT_CYCLE}]"]
    for rank in path[:_MOST_SHOWN]:
        wait = waits[rank]
        source = f"   {wait.source}" if wait.source else ""
        lines.append(f"  rank {rank} waits in {wait.text}, for {ranks_text(wait.awaited)}{source}")
    if len(path) > _MOST_SHOWN:
        lines.append(f"  … and {len(path) - _MOST_SHOWN} more")
    names = {"call": {rank: waits[rank].op for rank in ranks}}
    return Finding(WAIT_CYCLE, severity, "\n".join([*lines, advice]), ranks, names)


class _Pending(NamedTuple):
    """A call that a rank has made, and that is not done."""

    rendezvous: _Rendezvous
    sequence: CallSequence
    place: int

    @property
    def is_message(self) -> bool:
        return len(self.rendezvous) > 2


class _Simulation:
    def __init__(self, job: JobCalls, matched: Mapping[int, MatchedMessages], *, one_stream: bool) -> None:
        self.one_stream = one_stream
        self.signatures, self.timelines, self.matched = job.signatures, job.timelines, matched
        self.groups = {id(group): group for group in job.groups}
        self.owner: dict[int, tuple[GroupCalls, int, bool]] = {}
        for group in job.groups:
            for is_message, sequences in ((False, group.collectives), (True, group.messages)):
                for rank, sequence in sequences.items():
                    self.owner[id(sequence)] = (group, rank, is_message)
        self.blocks = [blocks(call) for call in self.signatures.calls]
        self.collective_numbers: dict[int, list[int]] = {}
        self.participants: dict[int, list[set[int]]] = {}
        for group in job.groups:
            self.number_collectives(group)
        self.made: Counter[int] = Counter()
        self.awaited: dict[_Rendezvous, set[int]] = {}
        self.waiting: dict[_Rendezvous, list[int]] = {}
        self.blocked: dict[int, tuple[_Rendezvous, Call]] = {}
        self.streams: dict[tuple[int, int], list[_Pending]] = {}
        self.members: dict[_Rendezvous, set[int]] = {}
        self.run()

    def number_collectives(self, group: GroupCalls) -> None:
        """Set the number of each call's collective in its group, and the ranks that take part in each collective."""
        alike: dict[tuple[int, bytes], tuple[list[int], set[int]]] = {}
        for rank, sequence in group.collectives.items():
            key = (len(sequence.numbers), sequence.key[1])
            if key not in alike:
                alike[key] = ([number for number, place in enumerate(group.places(rank)) if place is not None], set())
            numbers, ranks = alike[key]
            self.collective_numbers[id(sequence)] = numbers
            ranks.add(group.global_rank(rank))
        count = max((numbers[-1] + 1 for numbers, _ in alike.values()), default=0)
        participants: list[set[int]] = [set() for _ in range(count)]
        for numbers, ranks in alike.values():
            for number in numbers:
                participants[number] |= ranks
        self.participants[id(group)] = participants

    def run(self) -> None:
        """Let every rank go on until it blocks; those that cannot go on stay in `blocked`."""
        at = dict.fromkeys(self.timelines, 0)
        ready = list(self.timelines)
        while ready:
            rank = ready.pop()
            self.blocked.pop(rank, None)
            timeline = self.timelines[rank]
            while at[rank] < len(timeline):
                pending = self.next_call(timeline[at[rank]])
                at[rank] += 1
                if not self.takes_part(pending):
                    continue
                ready += self.launch(rank, pending)
                if pending.rendezvous in self.awaited and self.blocks[pending.sequence.numbers[pending.place]]:
                    self.waiting.setdefault(pending.rendezvous, []).append(rank)
                    self.blocked[rank] = (pending.rendezvous, self.call(pending))
                    break
        for (rank, _), stream in self.streams.items():
            if stream and (rank not in self.blocked or rank in self.awaited[self.blocked[rank][0]]):
                self.blocked[rank] = (stream[0].rendezvous, self.call(stream[0]))

    def takes_part(self, pending: _Pending) -> bool:
        """Return whether the rank keeps anybody waiting: one that makes a group of others does not."""
        number = pending.sequence.numbers[pending.place]
        return self.blocks[number] or not self.signatures.calls[number].row.rule.waits_for

    def call(self, pending: _Pending) -> Call:
        return pending.sequence.call(pending.place, self.signatures)

    def launch(self, rank: int, pending: _Pending) -> list[int]:
        """Let the rank come to its call, now or behind its stream; return the ranks that may go on."""
        if not self.one_stream:
            return self.come(rank, pending.rendezvous)
        self.members.setdefault(pending.rendezvous, set(self.awaited[pending.rendezvous]))
        self.streams.setdefault((rank, pending.rendezvous[0]), []).append(pending)
        ready: list[int] = []
        moved = {(rank, pending.rendezvous[0])}
        while moved:
            for each in self.coming(*(key := moved.pop())):
                if key[0] in self.awaited[each]:
                    ready += self.come(key[0], each)
                if each not in self.awaited:
                    for member in self.members.pop(each):
                        stream = self.streams[member, each[0]]
                        stream[:] = [one for one in stream if one.rendezvous != each]
                        moved.add((member, each[0]))
        return ready

    def coming(self, rank: int, group: int) -> list[_Rendezvous]:
        """Return what the stream lets the rank come to: its first collective, or the messages before that."""
        stream = self.streams[rank, group]
        messages = list(itertools.takewhile(lambda pending: pending.is_message, stream))
        return [pending.rendezvous for pending in messages or stream[:1]]

    def come(self, rank: int, rendezvous: _Rendezvous) -> list[int]:
        """Let the rank come to a rendezvous; return the ranks that may go on where it was the last."""
        self.awaited[rendezvous].discard(rank)
        if self.awaited[rendezvous]:
            return []
        del self.awaited[rendezvous]
        return self.waiting.pop(rendezvous, [])

    def next_call(self, sequence: CallSequence) -> _Pending:
        """Make the next call of the sequence."""
        group, rank, is_message = self.owner[id(sequence)]
        place = self.made[id(sequence)]
        self.made[id(sequence)] += 1
        if is_message:
            own = (rank, place)
            partner = self.matched[id(group)].partner_of.get(own, own)
            rendezvous: _Rendezvous = (id(group), *min(partner, own), *max(partner, own))
            awaited = {group.global_rank(rank), group.global_rank(partner[0])}
        else:
            number = self.collective_numbers[id(sequence)][place]
            rendezvous = (id(group), number)
            awaited = set() if rendezvous in self.awaited else set(self.participants[id(group)][number])
            one = self.signatures.calls[sequence.numbers[place]]
            if one.row.rule.waits_for:
                awaited.intersection_update(one.attribute(one.row.rule.waits_for))
        self.awaited.setdefault(rendezvous, awaited)
        return _Pending(rendezvous, sequence, place)

    def finding(self) -> Finding | None:
        """Follow who waits for whom until a rank comes up twice."""
        if not self.blocked:
            return None
        path = [min(self.blocked)]
        while True:
            rendezvous, _ = self.blocked[path[-1]]
            following = min(self.awaited[rendezvous] & self.blocked.keys())
            if following in path:
                return self.cycle(path[path.index(following) :])
            path.append(following)

    def is_sure(self, path: list[int]) -> bool:
        """Return whether the data say that these ranks wait for each other, and for nobody else.

        Only the run tells which message a receive from any source takes. Groups that do not list their ranks may have
        different ranks.
        """
        rendezvous = [self.blocked[rank][0] for rank in path]
        groups = {self.groups[each[0]] for each in rendezvous}
        if len(groups) > 1 and not all(group.ranks for group in groups):
            return False
        messages = [(each[0], end) for each in rendezvous if len(each) > 2 for end in (each[1:3], each[3:])]
        return not any(self.matched[group].is_from_any((rank, place)) for group, (rank, place) in messages)

    def cycle(self, path: list[int]) -> Finding:
        start = "" if self.one_stream else f", or {WITHOUT_WAITING}"
        severity = ERROR if self.is_sure(path) else UNDECIDABLE
        return cycle_finding(path, {rank: self.wait(rank) for rank in path}, f"{IN_ONE_ORDER}{start}.", severity)

    def wait(self, rank: int) -> Wait:
        rendezvous, call = self.blocked[rank]
        where = group_text(call.group.name, call.group.ranks)
        text = f"{call_text(call)}{f' of {where}' if where else ''}"
        return Wait(call.op, text, call.source, frozenset(self.awaited[rendezvous]))
