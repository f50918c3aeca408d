"""Which rank sends how much to which: this rank's own row, and what the same calls make of the other ranks.

A rule says how many bytes a rank sends, not to whom: that is the algorithm's choice. Here, as in `traffic`, it is a
bandwidth-optimal one: rings in the order of the group's ranks (all_reduce, all_gather, reduce_scatter), a chain from
or to the root (broadcast, reduce), and straight to the receiver (gather, scatter, all_to_all, send).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from itertools import permutations
from typing import TYPE_CHECKING

import attrs

from collective_rules.binding.batch import well_formed_members
from collective_rules.binding.binder import bind
from collective_rules.call import UNKNOWN, Call
from collective_rules.errors import CollectiveRulesError
from collective_rules.spec import Group
from collective_rules.symbols import number
from collective_rules.traffic import Traffic, traffic

if TYPE_CHECKING:
    from collective_rules.ledger import Ledger

__all__ = ["ASSUMPTION", "Cell", "Flows", "flows", "own_rank"]

ASSUMPTION = (
    "Rules say how much a rank sends, not to whom. Assumed here: all_reduce, all_gather and reduce_scatter go around "
    "a ring in the order of the group's ranks, broadcast and reduce along that ring from or to the root, and "
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
    - `sent`: what this rank sends, by receiver. `unplaced`: what it sends to nobody knows whom.
    - `pairs`: for the other ranks, what the calls of this one imply; empty where there are more than 64 ranks.
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


@attrs.define
class _Sums:
    """What calls add up to before it is laid out over ranks: one number per group and shape of the way."""

    groups: dict[str, Group] = attrs.field(factory=dict)
    ring: defaultdict[str, float] = attrs.field(factory=lambda: defaultdict(float))
    spread: defaultdict[str, float] = attrs.field(factory=lambda: defaultdict(float))
    chain: defaultdict[tuple[str, int], float] = attrs.field(factory=lambda: defaultdict(float))
    inward: defaultdict[tuple[str, int], float] = attrs.field(factory=lambda: defaultdict(float))
    outward: defaultdict[tuple[str, int], float] = attrs.field(factory=lambda: defaultdict(float))
    own: defaultdict[int, float] = attrs.field(factory=lambda: defaultdict(float))
    others: defaultdict[tuple[int, int], float] = attrs.field(factory=lambda: defaultdict(float))
    unplaced: float = 0

    def add(self, call: Call, moved: Traffic) -> None:
        """Add one call; what it sends is in `own`, `ring`, `spread` or `unplaced`."""
        if call.group.size == 1:
            self.unplaced += number(moved.sent)
            return
        route, group, sent = call.row.rule.route, call.group, number(moved.sent)
        name, size, rank = group.name, group.size, group.rank
        self.groups.setdefault(name, group)
        root, peer = call.attribute("root") or 0, call.attribute("peer")
        if route == "ring":
            self.ring[name] += sent
        elif route in {"chain from root", "chain to root"}:
            last = (root - 1) % size if route == "chain from root" else root
            self.chain[name, last] += number(moved.buffer)
            self._mine(group, (rank + 1) % size, sent)
        elif route == "to root":
            self.inward[name, root] += number(moved.buffer) / size
            self._mine(group, root, sent)
        elif route == "from root":
            self.outward[name, root] += number(moved.written)
            for other in range(size) if sent else ():
                if other != rank:
                    self._mine(group, other, sent / (size - 1))
        elif route == "to each" and _is_even(call):
            self.spread[name] += sent
        elif route == "to each":
            self._shares(call, sent)
        elif route == "from peer" and peer is not None:
            self.others[_place(group, peer), _place(group, rank)] += number(moved.written)
        elif route == "to peer" and peer is not None:
            self._mine(group, peer, sent)
        else:
            self.unplaced += sent

    def _mine(self, group: Group, peer: int, sent: float) -> None:
        if sent:
            self.own[_place(group, peer)] += sent

    def _shares(self, call: Call, sent: float) -> None:
        """Divide what an uneven all_to_all sends as its lists or split sizes say."""
        bound, rank = bind(call), call.group.rank
        if not call.row.entry.splits:
            reads = bound.spelling.statement.reads
            shares = {slot.rank: number(slot.spec.nbytes) for slot in bound.slots if slot.part in reads}
        else:
            rows = {key[3]: size for key, size in bound.names.items() if key[0] == "S" and key[2] == rank}
            shares = {peer: number(size) for peer, size in rows.items()}
        shares.pop(rank, None)
        whole = sum(shares.values())
        if not whole:
            self.unplaced += sent
        for peer, share in shares.items() if whole else ():
            self._mine(call.group, peer or 0, sent * share / whole)


def flows(ledger: Ledger) -> Flows:
    """Return who sends what to whom in the calls that the ledger kept.

    The values of `sent` and `unplaced` sum up to what the kept calls send.
    """
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
            # Only a call that is itself a finding comes here; its bytes are counted, its ways are not known.
            sums.unplaced += number(moved.sent)
    ranks = sorted({rank for group in sums.groups.values() for rank in _ranks(group)})
    me = own_rank(sums.groups.values())
    sent = sums.own
    for name, amount in sums.ring.items():
        group = sums.groups[name]
        if amount:
            sent[_place(group, (group.rank + 1) % group.size)] += amount
    for name, amount in sums.spread.items():
        group = sums.groups[name]
        for peer in _ranks(group) if amount else ():
            if peer != me:
                sent[peer] += amount / (group.size - 1)
    pairs = _implied(sums, me) if len(ranks) <= _LARGEST else {}
    return Flows(me, tuple(ranks), dict(sent), sums.unplaced, pairs)


def own_rank(groups: Iterable[Group]) -> int:
    """Return this process's global rank, as the largest group tells it."""
    largest = max(groups, key=lambda group: group.size, default=None)
    return 0 if largest is None else _place(largest, largest.rank)


def _implied(sums: _Sums, me: int) -> dict[tuple[int, int], float]:
    pairs = defaultdict(float, sums.others)
    for name, amount in sums.ring.items():
        for sender, receiver in _around(sums.groups[name]):
            pairs[sender, receiver] += amount
    for (name, last), amount in sums.chain.items():
        for sender, receiver in _around(sums.groups[name]):
            if sender != _place(sums.groups[name], last):
                pairs[sender, receiver] += amount
    for name, amount in sums.spread.items():
        for sender, receiver in permutations(_ranks(sums.groups[name]), 2):
            pairs[sender, receiver] += amount / (sums.groups[name].size - 1)
    for way, inward in ((sums.inward, True), (sums.outward, False)):
        for (name, root), amount in way.items():
            at = _place(sums.groups[name], root)
            for other in _ranks(sums.groups[name]):
                if other != at:
                    pairs[(other, at) if inward else (at, other)] += amount
    return {pair: amount for pair, amount in pairs.items() if amount and pair[0] != me}


def _is_even(call: Call) -> bool:
    """Whether a call sends every rank the same number of bytes: it has neither split sizes nor a tensor for each."""
    if any("p" in part.path.index for part in call.row.spellings[0].statement.reads):
        return False
    splits = [call.arguments.get(split.argument or "") for split in call.row.entry.splits.values()]
    return not any(given or given is UNKNOWN for given in splits)


def _around(group: Group) -> list[tuple[int, int]]:
    ranks = _ranks(group)
    return [(rank, ranks[(place + 1) % len(ranks)]) for place, rank in enumerate(ranks)]


def _ranks(group: Group) -> tuple[int, ...]:
    return group.ranks or tuple(range(group.size))


def _place(group: Group, rank: int) -> int:
    return group.ranks[rank] if group.ranks else rank
