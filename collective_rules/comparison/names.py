"""Unique names for process groups: no two groups of different ranks share one."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from collective_rules.call import Call
from collective_rules.messages import ranks_text
from collective_rules.spec import Group

_MOST_CACHED = 100_000


class GroupNames:
    """The groups of all recordings by a unique name: the recorded name, with the ranks if several groups have the name.

    - `by_name`: unique name → group. `recorded`: unique name → the name in the recordings.
    """

    def __init__(self, calls: Iterable[Call]) -> None:
        seen: dict[int, Group] = {}
        by_name: dict[str, dict[tuple[int, tuple[int, ...]], None]] = {}
        for call in calls:
            group = call.group
            if id(group) not in seen:
                if len(seen) < _MOST_CACHED:
                    seen[id(group)] = group  # kept, so that its id stays its own
                by_name.setdefault(group.name, {})[group.size, group.ranks] = None
        self._shared = {name for name, groups in by_name.items() if _differ(list(groups))}
        self._cache: dict[int, tuple[Group, Group]] = {}
        self.by_name: dict[str, Group] = {}
        self.recorded: dict[str, str] = {}

    def group(self, group: Group) -> Group:
        """Return the group with its unique name."""
        cached = self._cache.get(id(group))
        if cached is None:
            name = self._unique(group)
            self.recorded[name] = group.name
            named = group if name == group.name else attrs.evolve(group, name=name)
            if len(self._cache) == _MOST_CACHED:
                self._cache.clear()
            cached = self._cache[id(group)] = (group, named)
            if group.ranks or name not in self.by_name:
                self.by_name[name] = named
        return cached[1]

    def call(self, call: Call) -> Call:
        """Return the call in the group with its unique name."""
        group = self.group(call.group)
        return call if group is call.group else attrs.evolve(call, group=group)

    def members(self, name: str) -> tuple[int, ...]:
        """Return the global ranks of a group, or its group ranks if the recordings do not have the global ranks."""
        group = self.by_name.get(name)
        return () if group is None else group.ranks or tuple(range(group.size))

    def _unique(self, group: Group) -> str:
        if group.name not in self._shared:
            return group.name
        which = ranks_text(group.ranks) if group.ranks else f"{group.size} ranks"
        return f"{group.name} of {which}".lstrip()


def _differ(groups: list[tuple[int, tuple[int, ...]]]) -> bool:
    """Return whether groups of one name, as sizes and ranks, must be several groups; ranks may be missing."""
    return len({size for size, _ in groups}) > 1 or len({ranks for _, ranks in groups if ranks}) > 1


def group_text(name: str) -> str:
    """Return the name of a group as part of a sentence.

    >>> group_text("0"), group_text("")
    ('group 0', 'the group without a name')
    """
    return f"group {name}" if name else "the group without a name"
