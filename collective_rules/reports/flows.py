"""The bytes that ranks send to each other: this rank's own row, and the rows that its calls imply for other ranks.

A rule says how many bytes a rank sends, not to whom: that is the algorithm's choice. Here, as in `traffic`, it is a
bandwidth-optimal one: rings in the order of the group's ranks (all_reduce, all_gather, reduce_scatter), a chain from
or to the root (broadcast, reduce), and straight to the receiver (gather, scatter, all_to_all, send).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import attrs

from collective_rules.binding.batch import well_formed_members
from collective_rules.binding.binder import bind
from collective_rules.call import UNKNOWN, Call
from collective_rules.errors import CollectiveRulesError
from collective_rules.ledger import Ledger
from collective_rules.spec import Group
from collective_rules.symbols import number
from collective_rules.traffic import Traffic, traffic

ASSUMPTION = (
    "A rule says how many bytes a rank sends, not to whom. Assumed here: all_reduce, all_gather and reduce_scatter go "
    "around a ring in the order of the group's ranks, broadcast and reduce along that ring from or to the root, and "
    "everything else straight to its receiver."
)

_LARGEST, _STRIP = 64, 256


@attrs.frozen
class Cell:
    """One cell of a row over all ranks: its place, and the bytes sent to the ranks from `first` to `last`."""

    place: int
    sent: float
    first: int
    last: int


@attrs.frozen
class Flows:
    """Bytes by sender and receiver, as global ranks.

    - `rank`: this rank; `ranks`: those of all its groups.
    - `sent`: the bytes that this rank sends, by receiver. `unplaced`: those of which the receiver is unknown.
    - `pairs`: the bytes between other ranks that this rank's calls imply; empty if there are more than 64 ranks.
    """

    rank: int
    ranks: tuple[int, ...]
    sent: dict[int, float]
    unplaced: float
    pairs: dict[tuple[int, int], float]

    @property
    def small(self) -> bool:
        """Whether there are few enough ranks to show each pair."""
        return len(self.ranks) <= _LARGEST

    @property
    def cells(self) -> dict[tuple[int, int], float]:
        """Bytes by sender and receiver, this rank's own row included."""
        return self.pairs | {(self.rank, peer): amount for peer, amount in self.sent.items()}

    def place(self, rank: int) -> int:
        """Return the place of a rank among all ranks."""
        return bisect_left(self.ranks, rank)

    @property
    def strip_length(self) -> int:
        """The number of cells, of equally many ranks each, in which all ranks fit."""
        return math.ceil(len(self.ranks) / math.ceil(len(self.ranks) / _STRIP))

    @property
    def strip(self) -> tuple[Cell, ...]:
        """This rank's row over all ranks: the cells that have traffic."""
        per = math.ceil(len(self.ranks) / _STRIP)
        sums: dict[int, float] = {}
        for rank in sorted(self.sent):
            place = self.place(rank) // per
            sums[place] = sums.get(place, 0) + self.sent[rank]
        blocks = {place: self.ranks[place * per : (place + 1) * per] for place in sums}
        return tuple(Cell(place, sent, blocks[place][0], blocks[place][-1]) for place, sent in sums.items())


def _next(size: int, root: int, rank: int) -> Sequence[int]:
    return [(rank + 1) % size]


def _others(size: int, root: int, rank: int) -> Sequence[int]:
    return [*range(rank), *range(rank + 1, size)]


_RECEIVERS: Mapping[str, Callable[[int, int, int], Sequence[int]]] = {
    "ring": _next,
    "chain from root": lambda size, root, rank: () if (rank + 1) % size == root else _next(size, root, rank),
    "chain to root": lambda size, root, rank: () if rank == root else _next(size, root, rank),
    "to root": lambda size, root, rank: () if rank == root else [root],
    "from root": lambda size, root, rank: _others(size, root, rank) if rank == root else (),
    "to each": _others,
}
"""By route, the group ranks to which a rank sends equally many bytes, from the group's size, the root and the rank."""


@attrs.define
class _Way:
    """Calls of one route, group and root: the bytes that this rank sends, and those from any sender to a receiver."""

    sent: float = 0
    each: float = 0


@attrs.define
class _Sums:
    """The bytes of calls, summed by route, group and root before they are laid out over ranks."""

    groups: dict[str, Group] = attrs.field(factory=dict)
    ways: defaultdict[tuple[str, str, int], _Way] = attrs.field(factory=lambda: defaultdict(_Way))
    own: defaultdict[int, float] = attrs.field(factory=lambda: defaultdict(float))
    others: defaultdict[tuple[int, int], float] = attrs.field(factory=lambda: defaultdict(float))
    unplaced: float = 0

    def add(self, call: Call, moved: Traffic) -> None:
        """Add one call; its sent bytes are in `own`, `ways` or `unplaced`."""
        route, group, sent = call.row.rule.route, call.group, number(moved.sent)
        if group.size == 1:
            self.unplaced += sent
            return
        self.groups.setdefault(group.name, group)
        peer = call.attribute("peer")
        if route == "to each" and not _is_even(call):
            self._shares(call, sent)
        elif route in _RECEIVERS:
            way = self.ways[route, group.name, call.attribute("root") or 0]
            way.sent += sent
            way.each += _bytes_to_each(route, group.size, moved)
        elif route == "from peer" and peer is not None:
            self.others[_place(group, peer), _place(group, group.rank)] += number(moved.written)
        elif route == "to peer" and peer is not None:
            self._mine(group, peer, sent)
        else:
            self.unplaced += sent

    def _mine(self, group: Group, peer: int, sent: float) -> None:
        if sent:
            self.own[_place(group, peer)] += sent

    def _shares(self, call: Call, sent: float) -> None:
        """Divide the bytes that an uneven all_to_all sends by its lists or split sizes."""
        bound, rank = bind(call), call.group.rank
        if not call.row.entry.splits:
            reads = bound.spelling.statement.reads
            shares = {slot.rank: number(slot.spec.nbytes) for slot in bound.slots if slot.part in reads}
        else:
            rows = {key.ranks[1]: size for key, size in bound.names.items() if key.name == "S" and key.ranks[0] == rank}
            shares = {peer: number(size) for peer, size in rows.items()}
        shares.pop(rank, None)
        whole = sum(shares.values())
        if not whole:
            self.unplaced += sent
        for peer, share in shares.items() if whole else ():
            self._mine(call.group, peer or 0, sent * share / whole)


def flows(ledger: Ledger) -> Flows:
    """Return the bytes by sender and receiver of the kept calls; `sent` and `unplaced` sum up to all bytes sent."""
    sums = _Sums()
    for entry in ledger.entries:
        call, moved = entry.call, entry.traffic
        if moved is None:
            continue
        try:
            if call.row.entry.batch is None:
                sums.add(call, moved)
            else:
                for member in well_formed_members(call):
                    sums.add(member, traffic(member))
        except CollectiveRulesError:
            # Only a call with a finding comes here: its bytes are counted, and its receivers are unknown.
            sums.unplaced += number(moved.sent)
    for (route, name, root), way in sums.ways.items():
        group = sums.groups[name]
        receivers = _RECEIVERS[route](group.size, root, group.rank)
        for receiver in receivers if way.sent else ():
            sums.own[_place(group, receiver)] += way.sent / len(receivers)
    ranks = sorted({rank for group in sums.groups.values() for rank in group.ranks or range(group.size)})
    me = own_rank(sums.groups.values())
    pairs = _implied(sums, me) if len(ranks) <= _LARGEST else {}
    return Flows(me, tuple(ranks), dict(sums.own), sums.unplaced, pairs)


def own_rank(groups: Iterable[Group]) -> int:
    """Return this process's global rank, from its rank in the largest group."""
    largest = max(groups, key=lambda group: group.size, default=None)
    return 0 if largest is None else _place(largest, largest.rank)


def _implied(sums: _Sums, me: int) -> dict[tuple[int, int], float]:
    """Return the bytes between other ranks, by sender and receiver, that the calls of this rank imply."""
    pairs = defaultdict(float, sums.others)
    for (route, name, root), way in sums.ways.items():
        group = sums.groups[name]
        for sender in range(group.size):
            for receiver in _RECEIVERS[route](group.size, root, sender):
                pairs[_place(group, sender), _place(group, receiver)] += way.each
    return {pair: amount for pair, amount in pairs.items() if amount and pair[0] != me}


def _bytes_to_each(route: str, size: int, moved: Traffic) -> float:
    """Return the bytes that a sender sends to each of its receivers."""
    if route == "ring":
        return number(moved.sent)
    if route == "to each":
        return number(moved.sent) / (size - 1)
    if route == "from root":
        return number(moved.written)
    return number(moved.buffer) / size if route == "to root" else number(moved.buffer)


def _is_even(call: Call) -> bool:
    """Return whether a call sends each rank the same number of bytes: it has no split sizes, and no tensor for each."""
    if any("p" in part.path.index for part in call.row.spellings[0].statement.reads):
        return False
    splits = [call.arguments.get(split.argument or "") for split in call.row.entry.splits.values()]
    return not any(given or given is UNKNOWN for given in splits)


def _place(group: Group, rank: int) -> int:
    return group.ranks[rank] if group.ranks else rank
