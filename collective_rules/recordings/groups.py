"""The groups of a recording: their names, sizes and ranks, and this process's rank in each.

A group's size is what the file says of that group, else what its own calls show beyond doubt: a list with one tensor
for each rank, the number of split sizes, how many times larger a gathered tensor is. It is never taken from the world.
"""

from __future__ import annotations

import abc
import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import attrs

from collective_rules.notation import Part, Shares
from collective_rules.ops import Row
from collective_rules.recordings.backend_quirks import is_stacked, op_behind, recorded_parts
from collective_rules.recordings.events import Event, FieldReader, row_of
from collective_rules.recordings.recording import Notes, short
from collective_rules.spec import Group, Spec

_LARGEST_GROUP = 1 << 24


@attrs.define
class _RecordedGroup:
    """One group; `shown` counts the sizes that its calls show."""

    size: int | None = None
    ranks: tuple[int, ...] = ()
    rank: int | None = None
    shown: Counter[int] = attrs.field(factory=Counter)


class RecordedGroups:
    """The groups of one file, by name.

    - `world`: the number of ranks, by the file or by the caller; `said`: by the caller alone.
    - `default`: the name of the group of all ranks.
    """

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.by_name: dict[str, _RecordedGroup] = {}
        self.world: int | None = None
        self.said: int | None = None
        self.default = "0"

    def tell(self, name: str, size: int | None, ranks: tuple[int, ...] | None, rank: int | None = None) -> None:
        """Take in what the file says of the group `name`; the first of two contradictions is believed."""
        group = self.by_name.setdefault(name, _RecordedGroup())
        if size is not None and not 0 < size <= _LARGEST_GROUP:
            self.notes.add("READ2", f"the group {name!r} of {size} ranks")
            size = None
        if ranks and (len(set(ranks)) != len(ranks) or size not in (None, len(ranks))):
            self.notes.add("READ10", f"the group {name!r} of {size} ranks is {short(ranks)}")
            ranks = None
        if ranks:
            group.ranks = group.ranks or ranks
            size = len(ranks)
        if size is not None:
            if group.size not in (None, size):
                self.notes.add("READ10", f"the group {name!r} has {group.size} ranks, and {size}")
            else:
                group.size = size
        if rank is not None:
            if group.rank not in (None, rank):
                self.notes.add("READ10", f"this is rank {group.rank} of the group {name!r}, and rank {rank}")
            else:
                group.rank = rank

    def settle(self, events: list[Event]) -> None:
        """Set the sizes that the file does not tell, from what the calls show."""
        for event in events:
            group = self.by_name.setdefault(event.group, _RecordedGroup())
            if group.size is None:
                group.shown.update(set(_shown(event)))
        for name, group in self.by_name.items():
            if name and group.size is None:
                group.size = self._settled(name, group.shown)
        self._settle_untold()

    def _settled(self, name: str, shown: Counter[int]) -> int | None:
        """Return the size that a group's calls show; of several, the one that most of them show."""
        if len(shown) < 2:
            return next(iter(shown), self.world if name == self.default else None)
        self.notes.add("READ10", f"the calls of the group {name!r} show sizes {sorted(shown)[:8]}")
        size, count = shown.most_common(1)[0]
        return size if 2 * count > shown.total() else None

    def _settle_untold(self) -> None:
        """Set the size of the group of calls that name none."""
        untold = self.by_name.get("")
        if untold is None or untold.size is not None:
            return
        told = {(group.size, group.ranks) for name, group in self.by_name.items() if name}
        if len(told) == 1 and None not in next(iter(told)):
            ((untold.size, untold.ranks),) = told
            if len(self.by_name) > 2:
                self.notes.add("READ11", "there are several of the same ranks, taken as one")
        elif not told and len(untold.shown) == 1 and self.world in (None, *untold.shown):
            (untold.size,) = untold.shown
            detail = f"some calls show that they are of {untold.size} ranks, and so all are taken to be"
            self.notes.add("READ11", detail)
        elif not told and not untold.shown and self.said is not None:
            untold.size = self.said
            self.notes.add("READ11", f"all calls are taken to be of all {self.said} ranks")

    def of(self, event: Event, rank: int | None) -> Group | None:
        """Return the group of `event` as global rank `rank` sees it; None where the file does not tell its size."""
        group = self.by_name[event.group]
        size, name = group.size, event.group
        if size is None and not name:
            shown = set(_shown(event))
            size = shown.pop() if len(shown) == 1 else None
            name = f"of {size}"  # calls of several sizes are not of one group
        if size is None or not 0 < size <= _LARGEST_GROUP:
            return None
        ranks = group.ranks
        if not ranks and size == self.world and event.group in ("", self.default):
            ranks = tuple(range(size))
        place = group.rank
        if place is None and rank is not None:
            place = ranks.index(rank) if rank in ranks else None if ranks else rank if rank < size else None
        if place is None or not 0 <= place < size:
            self.notes.add("READ6", f"its rank in a group of {size} is taken to be 0", event.where)
            place = 0
        if not name and len(self.by_name) == 2:
            name = next(other for other in self.by_name if other)
        return Group(size, place, name, ranks)


class Collector(abc.ABC):
    """Collects a file of another tool: a format's reader. This part collects the groups, the rank and the world's size.

    `name` is the format's, as people read it. `arrays` are the lists of the file's top level whose items are records.
    The reader takes each record by `item`, every other value of the top level by `value`; `events` comes last.
    `same_names`: whether the file names groups as torch does, with one number for a group on all ranks.
    """

    name: ClassVar[str]
    arrays: ClassVar[tuple[str, ...]]

    @classmethod
    @abc.abstractmethod
    def has_keys(cls, keys: set[str]) -> bool:
        """Return whether a file without records is of this format, by the other keys of its top level."""

    @abc.abstractmethod
    def value(self, key: str, value: Any) -> None:
        """Take in a value of the top level."""

    @abc.abstractmethod
    def item(self, item: Any, /) -> None:
        """Take in one record, whatever it is: what cannot be read is noted."""

    @abc.abstractmethod
    def events(self) -> Iterator[Event]:
        """Yield the collectives that were read, in the order of their making."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.fields = FieldReader(notes)
        self.groups = RecordedGroups(notes)
        self.rank: int | None = None
        self.world_size: int | None = None
        self.same_names = False

    def configure(self, groups: Any, size_key: str, where: str) -> None:
        """Take in a list of groups: their names, sizes and ranks."""
        for group in groups if isinstance(groups, list) else ():
            if isinstance(group, dict) and isinstance(group.get("pg_name"), str):
                size = self.fields.number(group.get(size_key), size_key, where, least=1)
                self.groups.tell(group["pg_name"], size, self.fields.numbers(group.get("ranks"), "ranks", where))


def _shown(event: Event) -> Iterator[int]:
    """Yield the group sizes that `event` shows by itself."""
    row = row_of(op_behind(event))
    if row is None:
        return
    for value in (event.read_splits, event.write_splits, *(event.arguments.get(name) for name in row.splits)):
        if value:
            yield len(value)
    size = event.arguments.get(row.group_size) if row.group_size else None
    if size:
        yield size
    statement = row.spellings[0].statement
    for part in statement.parts:
        value = event.arguments.get(part.path.name)
        for index in part.path.index:
            if not isinstance(value, tuple) or not value:
                break
            if index == "p":
                yield len(value)
            value = value[0]
    yield from _times_larger(event, row)


def _times_larger(event: Event, row: Row) -> Iterator[int]:
    """Yield how many times larger the whole is than a rank's share, of what is gathered or scattered."""
    parts, statement = recorded_parts(row), row.spellings[0].statement
    gathers = any(map(_holds_every_rank, statement.writes))
    scatters = any(_holds_every_rank(part) and not part.root_only for part in statement.reads)
    if parts is None or gathers == scatters or is_stacked(event, row):
        return
    sides = (event.reads, event.writes)
    read, written = (_first(event, part, flat) for part, flat in zip(parts, sides, strict=True))
    if read is None or written is None:
        return
    share, whole = (read, written) if gathers else (written, read)
    if any("p" in part.path.index for part in statement.parts) and not event.counted:
        # A flat list has one tensor for each rank, or is one tensor with a row for each.
        count = len((event.writes if gathers else event.reads) or ())
        if count > 1:
            yield count
        elif count and whole.shape and whole.shape[1:] == share.shape and whole.shape[0] > 1:
            yield whole.shape[0]
    elif share.shape is not None and whole.shape is not None:
        few, many = math.prod(share.shape), math.prod(whole.shape)
        if few and many and many % few == 0:
            yield many // few


def _holds_every_rank(part: Part) -> bool:
    return "p" in part.path.index or any(isinstance(size, Shares) for size in part.sizes)


def _first(event: Event, part: Part | None, flat: tuple[Spec, ...] | None) -> Spec | None:
    argument = event.arguments.get(part.path.name) if part else None
    return argument if isinstance(argument, Spec) else flat[0] if flat else None
