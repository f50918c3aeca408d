"""A running number for each group of what all its ranks must pass alike, and how many collectives went into it.

Two ranks that have the same number made the same collectives, with the same reduce ops, roots and sizes. What is a
rank's own (split sizes, the messages of a pair) is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from collective_rules.live.protocol import EncodedCall
from collective_rules.spec import Group

__all__ = ["RunningHash"]

_FACTOR, _MASK = 0x5851F42D4C957F2D, (1 << 63) - 1


@attrs.define(eq=False)
class RunningHash:
    """One group's: `count` collectives, `messages` sends and receives, and `number` of all collectives so far.

    `varies`: whether a call had sizes that are a rank's own. `key` names the group in the store.
    """

    key: str
    group: Group
    count: int = 0
    number: int = 0
    varies: bool = False
    messages: int = 0

    @property
    def ranks(self) -> tuple[int, ...]:
        """The global ranks of the group."""
        return self.group.ranks or tuple(range(self.group.size))

    def enter(self, encoded: EncodedCall) -> None:
        """Add a collective."""
        self.count += 1
        self.number = (self.number * _FACTOR + encoded.code) & _MASK
        self.varies = self.varies or encoded.varies

    def told(self) -> list[Any]:
        """Return it as plain data."""
        return [self.key, self.ranks, self.count, self.number, self.varies or self.messages > 0]


def differing(told: dict[int, list[list[Any]]]) -> Iterator[str]:
    """Yield the keys of groups on which ranks do not tell the same, or that not all of the group's ranks tell of."""
    groups: dict[str, dict[int, list[Any]]] = {}
    for rank, hashes in told.items():
        for key, *rest in hashes:
            groups.setdefault(key, {})[rank] = rest
    for key, known in groups.items():
        members, count, number, _ = next(iter(known.values()))
        if {*members} & told.keys() != known.keys() or any(rest[1:3] != [count, number] for rest in known.values()):
            yield key
