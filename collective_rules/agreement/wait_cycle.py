"""Ranks that wait for each other in a circle: the calls of all groups, run through in each rank's own order.

A collective is done when every rank has come to it, a message when both its ends have. A rank goes on after a call
that does not wait; in one that does, it stays until the call is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from collective_rules.agreement.point_to_point import Partners
from collective_rules.agreement.streams import GroupCalls, Kinds, Stream, Streams, waits
from collective_rules.call import Call
from collective_rules.finding import ERROR, UNDECIDABLE, Finding
from collective_rules.messages import ranks_text, told

__all__ = ["CIRCLE", "find_circle"]

CIRCLE = "WAIT1"
"""The id of the finding that ranks wait for each other in a circle."""

_MOST_SHOWN = 8
_Meeting = tuple[int, ...]


def find_circle(streams: Streams, partners: Mapping[int, Partners]) -> Finding | None:
    """Return the finding that some ranks wait for each other, if they do; its ranks are global.

    `partners`: the matched messages, by the id of their group. Every collective must have all its ranks, and every
    message both its ends; a rank of which nothing is known does not keep the others waiting.
    """
    return _Run(streams, partners).circle()


class _Run:
    def __init__(self, streams: Streams, partners: Mapping[int, Partners]) -> None:
        self.kinds: Kinds = streams.kinds
        self.timelines = streams.timelines
        self.partners = partners
        self.groups = {id(group): group for group in streams.groups}
        self.home: dict[int, tuple[GroupCalls, int, bool]] = {}
        for group in streams.groups:
            for is_message, known in ((False, group.collectives), (True, group.messages)):
                for rank, stream in known.items():
                    self.home[id(stream)] = (group, rank, is_message)
        self.waiting = [waits(call) for call in self.kinds.calls]
        self.numbers: dict[int, list[int]] = {}
        self.comers: dict[int, list[set[int]]] = {}
        for group in streams.groups:
            self.number(group)
        self.at = dict.fromkeys(self.timelines, 0)
        self.made: Counter[int] = Counter()
        self.due: dict[_Meeting, set[int]] = {}
        self.asleep: dict[_Meeting, list[int]] = {}
        self.stuck: dict[int, tuple[_Meeting, Call]] = {}
        self.run()

    def number(self, group: GroupCalls) -> None:
        """Say which of the group's collectives each call is, and who comes to each."""
        alike: dict[tuple[int, bytes], tuple[list[int], set[int]]] = {}
        for rank, stream in group.collectives.items():
            key = (len(stream.kinds), b"" if stream.indices is None else stream.indices.tobytes())
            if key not in alike:
                numbers = [number for number, place in enumerate(group.places(rank)) if place is not None]
                alike[key] = (numbers, set())
            self.numbers[id(stream)] = alike[key][0]
            alike[key][1].add(group.place_of(rank))
        comers: list[set[int]] = [
            set() for _ in range(max((numbers[-1] + 1 for numbers, _ in alike.values()), default=0))
        ]
        for numbers, ranks in alike.values():
            for number in numbers:
                comers[number] |= ranks
        self.comers[id(group)] = comers

    def run(self) -> None:
        """Let every rank go on as far as it can; those that cannot stay in `stuck`."""
        ready = list(self.timelines)
        while ready:
            rank = ready.pop()
            self.stuck.pop(rank, None)
            timeline = self.timelines[rank]
            while self.at[rank] < len(timeline):
                stream = timeline[self.at[rank]]
                self.at[rank] += 1
                meeting, place = self.come(stream)
                if not self.due[meeting]:
                    del self.due[meeting]
                    ready += self.asleep.pop(meeting, [])
                elif self.waiting[stream.kinds[place]]:
                    self.asleep.setdefault(meeting, []).append(rank)
                    self.stuck[rank] = (meeting, stream.call(place, self.kinds))
                    break

    def come(self, stream: Stream) -> tuple[_Meeting, int]:
        """Take the stream's next call: what it meets the others in, and its place in the stream."""
        group, rank, is_message = self.home[id(stream)]
        place = self.made[id(stream)]
        self.made[id(stream)] += 1
        if is_message:
            partner = self.partners[id(group)].pairs.get((rank, place), (rank, place))
            meeting: _Meeting = (id(group), *min(partner, (rank, place)), *max(partner, (rank, place)))
            due = {group.place_of(rank), group.place_of(partner[0])}
        else:
            number = self.numbers[id(stream)][place]
            meeting = (id(group), number)
            due = set() if meeting in self.due else set(self.comers[id(group)][number])
        self.due.setdefault(meeting, due).discard(group.place_of(rank))
        return meeting, place

    def circle(self) -> Finding | None:
        """Follow who waits for whom until someone comes up twice."""
        if not self.stuck:
            return None
        path = [min(self.stuck)]
        while True:
            meeting, _ = self.stuck[path[-1]]
            following = min(self.due[meeting] & self.stuck.keys())
            if following in path:
                return self.finding(path[path.index(following) :])
            path.append(following)

    def is_sure(self, path: list[int]) -> bool:
        """Whether the data say that these ranks meet each other, and nobody else.

        Which message a receive from any source takes, only the run tells; and groups that do not tell their ranks
        may be of other ranks each.
        """
        groups = {self.groups[self.stuck[rank][0][0]] for rank in path}
        if len(groups) > 1 and not all(group.ranks for group in groups):
            return False
        messages = [self.stuck[rank][0] for rank in path if len(self.stuck[rank][0]) > 2]
        return not any(
            self.partners[group].is_open((a, b)) or self.partners[group].is_open((c, d))
            for group, a, b, c, d in messages
        )

    def finding(self, path: list[int]) -> Finding:
        ranks = tuple(sorted(path))
        lines = [f"{ranks_text(ranks)} wait for each other, and none goes on   [{CIRCLE}]"]
        for rank in path[:_MOST_SHOWN]:
            meeting, call = self.stuck[rank]
            group = f" of group {call.group.name}" if call.group.name else ""
            source = f"   {call.source}" if call.source else ""
            lines.append(f"  rank {rank} waits in {told(call)}{group}, for {ranks_text(self.due[meeting])}{source}")
        if len(path) > _MOST_SHOWN:
            lines.append(f"  … and {len(path) - _MOST_SHOWN} more")
        lines.append(
            "Make these calls in one order on all ranks, or start them without waiting (async_op, isend, irecv)."
        )
        severity = ERROR if self.is_sure(path) else UNDECIDABLE
        names = {"call": {rank: self.stuck[rank][1].op for rank in ranks}}
        return Finding(CIRCLE, severity, "\n".join(lines), ranks, names)
