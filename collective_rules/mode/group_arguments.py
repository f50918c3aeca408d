"""Finds the `Group` of an op's group argument: a ProcessGroup, a name, ranks, or a SymmetricMemory."""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch
import torch.distributed as dist

from collective_rules.errors import CollectiveRulesError
from collective_rules.ops import Row
from collective_rules.spec import Group


class UnknownGroupError(CollectiveRulesError):
    """This process has no group of this name: the op runs on meta tensors, or torch refuses it."""


@attrs.frozen(eq=False)
class ResolvedGroup:
    """A group and its backends, by device type: {"cpu": "gloo", "cuda": "nccl"}.

    `default` is the backend of a call without a tensor on any device: the backend of the device to which the group is
    bound, else the only backend, else the cpu's.
    Equal only to itself: to compare the ranks of a large group takes long.
    """

    group: Group
    backends: Mapping[str, str] = attrs.field(factory=dict)
    default: str | None = None

    def backend_of(self, device_types: Iterable[str]) -> str | None:
        """Return the backend of a call with tensors on these devices; None where the group has no backend for them.

        As in torch's dispatcher an accelerator goes before the cpu. A meta tensor is on no device.
        """
        kinds = list(device_types)
        for kind in sorted(kinds, key="cpu".__eq__):
            if kind in self.backends:
                return self.backends[kind]
        return self.default if not kinds or "meta" in kinds else None

    @property
    def accelerators(self) -> list[str]:
        """The device types other than the cpu for which the group has a backend."""
        return [kind for kind in self.backends if kind != "cpu"]


class GroupResolver:
    """Resolves groups, each once: by its identity as long as the ProcessGroup lives, else by its ranks."""

    def __init__(self) -> None:
        self._known: dict[Any, ResolvedGroup] = {}
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
        backends = _backends(group)
        default = _default_backend(group, backends)
        resolved = ResolvedGroup(described, backends, default)
        return self._known.setdefault((described, default, *backends.items()), resolved)

    def _legacy(self, ranks: list[int], size: int) -> ResolvedGroup:
        mine = dist.get_rank() if dist.is_initialized() else 0
        start = ranks.index(mine) // size * size if mine in ranks else 0
        own = tuple(ranks[start : start + size])
        name = f"ranks {own}" if len(own) <= 8 else f"ranks {own[0]}…{own[-1]}"
        described = Group(size, own.index(mine) if mine in own else 0, name, own if len(own) == size else ())
        return self._known.setdefault(described, ResolvedGroup(described))


_ALONE = ResolvedGroup(Group(1))


def _resolve(group: Any) -> dist.ProcessGroup:
    """Since torch 2.13 the argument `group_name` is a name or a ProcessGroup, boxed or not."""
    if isinstance(group, str):
        try:
            return torch._C._distributed_c10d._resolve_process_group(group)  # type: ignore[arg-type]  # a name is a str
        except RuntimeError as error:
            raise UnknownGroupError(f"this process knows no group {group!r}") from error
    return group if isinstance(group, dist.ProcessGroup) else dist.ProcessGroup.unbox(group)


def _backends(group: dist.ProcessGroup) -> dict[str, str]:
    """Return the names of the group's backends by device type, also of devices that this machine does not have.

    A backend object says its own name, so that a wrapper (TORCH_DISTRIBUTED_DEBUG=DETAIL) does not hide it. A fake one,
    or one without a name, has the name by which the group was made: a dry run puts fake backends in place of others.
    """
    config = dist.distributed_c10d._world.pg_backend_config.get(group, "")
    backends = dict(part.split(":", 1) for part in config.lower().split(",") if ":" in part)
    for device in group._device_types:
        with contextlib.suppress(RuntimeError, NotImplementedError):
            name = group._get_backend(device).name().lower()
            if name != "fake" or not config:
                backends[device.type] = name
    return backends


def _default_backend(group: dist.ProcessGroup, backends: Mapping[str, str]) -> str | None:
    bound = group.bound_device_id
    if bound is not None and bound.type in backends:
        return backends[bound.type]
    names = set(backends.values())
    return names.pop() if len(names) == 1 else backends.get("cpu")


def _symmetric(handle: Any) -> ResolvedGroup:
    name = getattr(handle, "group_name", "")
    return ResolvedGroup(Group(handle.world_size, handle.rank, name if isinstance(name, str) else ""))
