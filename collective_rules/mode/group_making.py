"""Tells of the functions of torch.distributed that make process groups, as `kernels` tells of the ops.

The functions are replaced where torch itself looks them up, so that names that a program imported reach them too:
`new_group`, `new_subgroups` and DeviceMesh all end in `_new_group_with_tag`. `split_group` is replaced in the modules
of torch that hold it; a program that imported it by name before calls it unseen.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import attrs
import torch.distributed as dist
from torch.distributed import device_mesh, distributed_c10d

from collective_rules.call import Call, call
from collective_rules.errors import CallError
from collective_rules.spec import Group

Make = Callable[[float | None], Any]
"""Makes the groups; a backend may take at most so many seconds, None for as long as the program says."""
Tell = Callable[["GroupMaking", Make], Any]
"""Tells who listens that groups are about to be made, and returns what the program gets."""


_described: weakref.WeakKeyDictionary[dist.ProcessGroup, Group] = weakref.WeakKeyDictionary()
"""A parent's group of calls that make its subgroups: to describe a large group takes long."""


@attrs.frozen(eq=False)
class GroupMaking:
    """A rank is about to make groups: the `call`, and whether the rank waits in it for others."""

    call: Call
    waits: bool


class GroupFunctions:
    """The functions that are replaced, from `replace` to `restore`."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._replaced: list[tuple[Any, str, Any, Any]] = []

    def replace(self) -> None:
        """Replace the functions; an interrupt in between leaves what `restore` knows of."""
        rows = (
            (distributed_c10d, "_new_group_with_tag", _new_group, _make_within),
            (distributed_c10d, "split_group", _split_group, _make_as_told),
            (dist, "split_group", _split_group, _make_as_told),
            (device_mesh, "split_group", _split_group, _make_as_told),
            (distributed_c10d, "_update_default_pg", _default_group, _make_as_told),
        )
        for owner, name, describe, make in rows:
            before = getattr(owner, name, None)
            if before is not None:
                after = _telling(before, describe, make, self._tell)
                self._replaced.append((owner, name, before, after))
                setattr(owner, name, after)

    def restore(self) -> None:
        """Put the functions back; a replacement that another tool made meanwhile stays, and still finds its own."""
        while self._replaced:
            owner, name, before, after = self._replaced[-1]
            if getattr(owner, name) is after:
                setattr(owner, name, before)
            self._replaced.pop()


_Arguments = Mapping[str, Any]


def _telling(
    function: Any,
    describe: Callable[[_Arguments], GroupMaking | None],
    make: Callable[[Any, _Arguments, float | None], Any],
    tell: Tell,
) -> Any:
    """Return `function`, telling of its calls before they are carried out."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            making = describe(bound.arguments)
        except (TypeError, ValueError, AttributeError, KeyError, CallError):  # torch says what is wrong
            making = None
        if making is None:
            return function(*args, **kwargs)
        return tell(making, lambda limit: make(function, bound.arguments, limit))

    return told


def _new_group(arguments: _Arguments) -> GroupMaking | None:
    """Return what `_new_group_with_tag` is about to make; None where this rank takes no part."""
    world, rank = distributed_c10d._get_default_group(), dist.get_rank()
    everyone = range(world.size())
    ranks, is_local = arguments["ranks"], arguments.get("use_local_synchronization", False)
    members = [*everyone] if ranks is None else [int(each) for each in ranks]
    if arguments.get("sort_ranks", True):
        members.sort()
    outside = bool(members) and (min(members) < 0 or max(members) >= len(everyone))
    if outside or len({*members}) < len(members) or (is_local and rank not in members):
        return None
    if is_local:  # compared by the members alone
        group = Group(len(members), members.index(rank), f"subgroups of {tuple(members)}", tuple(members))
        name = distributed_c10d._hash_ranks_to_str(members)
    else:
        group = _subgroups_of(world)
        name = str(distributed_c10d._world.group_count)
    waits = rank in members and _meets_at_once(world, arguments.get("backend"))
    return GroupMaking(call("dist::new_group", group=group, members=members, name=name), waits)


def _split_group(arguments: _Arguments) -> GroupMaking:
    """Return what `split_group` is about to make: all ranks of the parent take part, and wait for each other."""
    parent = arguments["parent_pg"] or distributed_c10d._get_default_group()
    parts = [[int(rank) for rank in part] for part in arguments["split_ranks"]]
    return GroupMaking(call("dist::split_group", group=_subgroups_of(parent), split_ranks=parts), waits=True)


def _default_group(arguments: _Arguments) -> GroupMaking | None:
    """Return that the group of all ranks is made; None where it is destroyed."""
    world = arguments["pg"]
    if world is None:
        return None
    group = Group(world.size(), world.rank(), "init_process_group", tuple(range(world.size())))
    return GroupMaking(call("dist::init_process_group", group=group), waits=False)


def _subgroups_of(parent: dist.ProcessGroup) -> Group:
    """Return the group whose calls make subgroups of `parent`: they have an order of their own.

    A collective that does not wait may stand before them on one rank, and behind them on another.
    """
    group = _described.get(parent)
    if group is None:
        of_rank = distributed_c10d._world.pg_group_ranks.get(parent, {})
        ranks = tuple(sorted(of_rank, key=of_rank.__getitem__))
        group = _described[parent] = Group(parent.size(), parent.rank(), f"subgroups of {parent.group_name}", ranks)
    return group


def _meets_at_once(world: dist.ProcessGroup, backend: Any) -> bool:
    """Return whether the members of a group wait for each other as it is made: gloo connects them; others do later."""
    config = backend or distributed_c10d._world.pg_backend_config.get(world, "")
    return "gloo" in str(config).lower()


def _make_as_told(function: Any, arguments: _Arguments, limit: float | None) -> Any:
    return function(**arguments)


def _make_within(function: Any, arguments: _Arguments, limit: float | None) -> Any:
    """Make a group; gloo waits for its ranks no longer than `limit` seconds, and has its own time-out afterwards."""
    wanted = arguments["timeout"]
    if wanted is None:
        backend = arguments.get("backend") or distributed_c10d._world.pg_map[distributed_c10d._get_default_group()][0]
        wanted = distributed_c10d._get_default_timeout(dist.Backend(backend))
    shorter = timedelta.max if limit is None else timedelta(seconds=limit)
    if (
        not isinstance(wanted, timedelta)
        or wanted <= shorter
        or distributed_c10d.get_debug_level() == distributed_c10d.DebugLevel.DETAIL
    ):
        return function(**arguments)  # with DETAIL each group has a second one inside, whose time-out nobody can reset
    made = function(**{**arguments, "timeout": shorter})
    if isinstance(made, dist.ProcessGroup):
        for device in made._device_types:
            made._get_backend(device)._set_default_timeout(wanted)
    return made
