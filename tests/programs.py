"""Programs of several ranks, made up for the tests of `agree`, and what is found of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

import collective_rules as cr

__all__ = ["Program", "barrier", "broadcast", "flat", "found", "programs", "reduced"]

Program = list[cr.Call]


def reduced(rank: int, size: int = 4, world: int = 4, name: str = "dp", waits: bool = True) -> cr.Call:
    group = cr.Group(world, rank, name)
    made = cr.call("c10d::allreduce_", group=group, tensors=[(size,)], async_op=not waits)
    return attrs.evolve(made, source=f"train.py:{rank}")


def broadcast(rank: int, world: int = 4) -> cr.Call:
    return cr.call("c10d::broadcast_", group=cr.Group(world, rank, "dp"), tensors=[(4,)], root_rank=0)


def barrier(rank: int, world: int = 4) -> cr.Call:
    return cr.call("c10d::barrier", group=cr.Group(world, rank, "dp"), device_ids=[])


def programs(sizes: Iterable[int] = (4, 5, 6, 7, 8, 9), world: int = 4) -> list[Program]:
    """Every rank reduces tensors of these sizes."""
    return [[reduced(rank, size, world) for size in sizes] for rank in range(world)]


def flat(programs: Iterable[Program]) -> list[cr.Call]:
    return [call for program in programs for call in program]


def found(calls: Iterable[cr.Call], **settings: Any) -> list[tuple[str, tuple[int, ...], int | None, int]]:
    """The errors: the kind of constraint, the ranks, where the first one is, and how many have it."""
    kinds = {id_: kind for rule in cr.rules().values() for id_, kind in rule.constraints.items()}
    return [(kinds.get(each.id, each.id), each.ranks, each.index, each.count) for each in cr.agree(calls, **settings)]
