"""Names for process groups, such that no two groups of different ranks share one."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from collective_rules.call import Call
from collective_rules.messages import ranks_text
from collective_rules.spec import Group

__all__ = ["Labels", "label_text"]

_MOST_KNOWN = 100_000


class Labels:
    """The groups of all recordings, by a label: the name, and where several groups have it, what tells them apart.

    `groups` and `names`: each label's group, and its name in the recordings.
    """

    def __init__(self, calls: Iterable[Call]) -> None:
        seen: dict[int, Group] = {}
        by_name: dict[str, dict[tuple[int, tuple[int, ...]], None]] = {}
        for call in calls:
            group = call.group
            if id(group) not in seen:
                if len(seen) < _MOST_KNOWN:
                    seen[id(group)] = group  # kept, so that its id stays its own
                by_name.setdefault(group.name, {})[group.size, group.ranks] = None
        self._several = {name for name, kinds in by_name.items() if _differ(list(kinds))}
        self._known: dict[int, tuple[Group, Group]] = {}
        self.groups: dict[str, Group] = {}
        self.names: dict[str, str] = {}

    def group(self, group: Group) -> Group:
        """Return the group with its label as its name."""
        known = self._known.get(id(group))
        if known is None:
            label = self._label(group)
            self.names[label] = group.name
            named = group if label == group.name else attrs.evolve(group, name=label)
            if len(self._known) == _MOST_KNOWN:
                self._known.clear()
            known = self._known[id(group)] = (group, named)
            if group.ranks or label not in self.groups:
                self.groups[label] = named
        return known[1]

    def call(self, call: Call) -> Call:
        """Return the call, in the group with its label."""
        group = self.group(call.group)
        return call if group is call.group else attrs.evolve(call, group=group)

    def members(self, label: str) -> tuple[int, ...]:
        """Return the global ranks of a group; its group ranks where they are not told."""
        group = self.groups.get(label)
        return () if group is None else group.ranks or tuple(range(group.size))

    def _label(self, group: Group) -> str:
        if group.name not in self._several:
            return group.name
        which = ranks_text(group.ranks) if group.ranks else f"{group.size} ranks"
        return f"{group.name} of {which}".lstrip()


def _differ(kinds: list[tuple[int, tuple[int, ...]]]) -> bool:
    """Whether groups of one name cannot be one group, of which some ranks tell less."""
    return len({size for size, _ in kinds}) > 1 or len({ranks for _, ranks in kinds if ranks}) > 1


def label_text(label: str) -> str:
    """Return a label as it stands in a sentence.

    >>> label_text("0"), label_text("")
    ('group 0', 'the group without a name')
    """
    return f"group {label}" if label else "the group without a name"
