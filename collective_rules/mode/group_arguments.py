"""Finds the `Group` of an op's group argument: a ProcessGroup, a name, ranks, or a SymmetricMemory."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
import torch.distributed as dist

from collective_rules.backends import BACKENDS
from collective_rules.ops import Row
from collective_rules.spec import Group

__all__ = ["GroupResolver", "ResolvedGroup"]


@attrs.frozen(eq=False)
class ResolvedGroup:
    """A group, and its backend if the tables have that backend's limits ("gloo"), else None.

    Equal only to itself: to compare the ranks of a large group takes long.
    """

    group: Group
    backend: str | None


class GroupResolver:
    """Resolves groups, each once: by its identity as long as the ProcessGroup lives, else by its ranks."""

    def __init__(self) -> None:
        self._known: dict[Group, ResolvedGroup] = {}
        self._living: dict[int, ResolvedGroup] = {}
        self._ends: dict[int, weakref.ref[dist.ProcessGroup]] = {}

    def reader(self, row: Row, keys: Mapping[str, Any]) -> Callable[[Any], ResolvedGroup]:
        """Return a function from the arguments of an op to its group; `keys`: argument name → key of its value."""
        key = keys.get(row.group)
        if row.group == "process_group":
            unbox, living = dist.ProcessGroup.unbox, self._living

            def find(arguments: Any) -> ResolvedGroup:
                group = unbox(arguments[key])
                return living.get(id(group)) or self._of(group)

            return find
        if row.group == "group_name":
            return lambda arguments: self._of(_resolve(arguments[key]))
        if row.group == "ranks":
            size = keys["group_size"]
            return lambda arguments: self._legacy(arguments[key], arguments[size])
        if row.group in {"hdl", "symm"}:
            return lambda arguments: _symmetric(arguments[key])
        return lambda arguments: _ALONE  # an op without a group: wait_tensor, put and get

    def _of(self, group: dist.ProcessGroup) -> ResolvedGroup:
        living = self._living.get(id(group))
        if living is not None:
            return living
        resolved = self._describe(group)
        self._ends[id(group)] = weakref.ref(group, functools.partial(self._forget, id(group)))
        self._living[id(group)] = resolved
        return resolved

    def _forget(self, identity: int, _: Any) -> None:
        """Another object may get this identity."""
        self._living.pop(identity, None)
        self._ends.pop(identity, None)

    def _describe(self, group: dist.ProcessGroup) -> ResolvedGroup:
        ranks = dist.distributed_c10d._world.pg_group_ranks.get(group, {})
        described = Group(group.size(), group.rank(), group.group_name, tuple(sorted(ranks, key=ranks.__getitem__)))
        return self._known.setdefault(described, ResolvedGroup(described, _backend(group)))

    def _legacy(self, ranks: list[int], size: int) -> ResolvedGroup:
        mine = dist.get_rank() if dist.is_initialized() else 0
        start = ranks.index(mine) // size * size if mine in ranks else 0
        own = tuple(ranks[start : start + size])
        name = f"ranks {own}" if len(own) <= 8 else f"ranks {own[0]}…{own[-1]}"
        described = Group(size, own.index(mine) if mine in own else 0, name, own if len(own) == size else ())
        return self._known.setdefault(described, ResolvedGroup(described, None))


_ALONE = ResolvedGroup(Group(1), None)


def _resolve(group: Any) -> dist.ProcessGroup:
    """Since torch 2.13 the argument `group_name` is a name or a ProcessGroup, boxed or not."""
    if isinstance(group, str):
        return torch._C._distributed_c10d._resolve_process_group(group)  # type: ignore[arg-type]  # a name is a str
    return group if isinstance(group, dist.ProcessGroup) else dist.ProcessGroup.unbox(group)


def _backend(group: dist.ProcessGroup) -> str | None:
    try:
        name = group._get_backend(torch.device("cpu")).name().lower()
    except (RuntimeError, NotImplementedError):  # it has no backend for the CPU
        return None
    return name if name in BACKENDS else None


def _symmetric(handle: Any) -> ResolvedGroup:
    name = getattr(handle, "group_name", "")
    return ResolvedGroup(Group(handle.world_size, handle.rank, name if isinstance(name, str) else ""), None)
