"""A running hash for each group, of all that its ranks must pass alike.

Two ranks that have the same hash made the same collectives, with the same reduce ops, roots and sizes. A rank's own
values (split sizes, the messages of a pair) are not in the hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from collective_rules.live.protocol import EncodedCall
from collective_rules.spec import Group

_FACTOR, _MASK = 0x5851F42D4C957F2D, (1 << 63) - 1


@attrs.define(eq=False)
class RunningHash:
    """The hash of one group: `number` is made of `count` collectives; `messages` counts sends and receives.

    `varies`: whether a call had sizes that are a rank's own. `key` names the group in the store.
    """

    key: str
    group: Group
    count: int = 0
    number: int = 0
    varies: bool = False
    messages: int = 0

    def enter(self, encoded: EncodedCall) -> None:
        """Add a collective."""
        self.count += 1
        self.number = (self.number * _FACTOR + encoded.code) & _MASK
        self.varies = self.varies or encoded.varies

    def data(self) -> list[Any]:
        """Return the key, the group's global ranks, the count, the number, and whether ranks may differ."""
        ranks = self.group.ranks or tuple(range(self.group.size))
        return [self.key, ranks, self.count, self.number, self.varies or self.messages > 0]


def differing(totals: dict[int, list[list[Any]]]) -> Iterator[str]:
    """Yield the keys of groups whose ranks have different hashes, or that some of the group's ranks do not have.

    `totals`: the `data` of each rank's hashes.
    """
    groups: dict[str, dict[int, list[Any]]] = {}
    for rank, hashes in totals.items():
        for key, *rest in hashes:
            groups.setdefault(key, {})[rank] = rest
    for key, by_rank in groups.items():
        members, count, number, _ = next(iter(by_rank.values()))
        alike = all(rest[1:3] == [count, number] for rest in by_rank.values())
        if not alike or {*members} & totals.keys() != by_rank.keys():
            yield key
