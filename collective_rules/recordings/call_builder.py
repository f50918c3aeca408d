"""From events to calls: which group each belongs to, how large that is, and what the op's arguments were.

A group's size is what the file says of that group, else what its own calls show beyond doubt: a list with one tensor
for each rank, the number of split sizes, how many times larger a gathered tensor is. It is never taken from the world.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from collective_rules.call import UNKNOWN, Call, call
from collective_rules.errors import CallError
from collective_rules.notation import Part, Shares
from collective_rules.ops import Row, lookup
from collective_rules.recordings.events import Event, FieldReader, row_of
from collective_rules.recordings.recording import Notes, short
from collective_rules.recordings.spellings import SPELLINGS
from collective_rules.spec import Group, Spec

__all__ = ["Collector", "RecordedGroups", "built"]

_LARGEST_GROUP = 1 << 24
_AS_IT_IS = frozenset(
    f"c10d::{name}"
    for name in ("allreduce_", "broadcast_", "_allgather_base_", "_reduce_scatter_base_", "alltoall_base_")
)
"""Ops whose tensors a backend's record shows as the op has them."""
_MOST_KNOWN = 100_000
"""Calls that are alike share their arguments, up to so many kinds of them."""


@attrs.define
class _RecordedGroup:
    """What is known of one group."""

    size: int | None = None
    ranks: tuple[int, ...] = ()
    rank: int | None = None
    shown: Counter[int] = attrs.field(factory=Counter)


class RecordedGroups:
    """The groups of one file, by name.

    - `world`: how many ranks there are, by the file or by the caller; `said`: by the caller alone.
    - `default`: the name of the group of all of them.
    """

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.by_name: dict[str, _RecordedGroup] = {}
        self.world: int | None = None
        self.said: int | None = None
        self.default = "0"

    def tell(self, name: str, size: int | None, ranks: tuple[int, ...] | None, rank: int | None = None) -> None:
        """Take in what the file says of the group `name`; of two that contradict, the first is believed."""
        known = self.by_name.setdefault(name, _RecordedGroup())
        if size is not None and not 0 < size <= _LARGEST_GROUP:
            self.notes.add("READ2", f"the group {name!r} of {size} ranks")
            size = None
        if ranks and (len(set(ranks)) != len(ranks) or size not in (None, len(ranks))):
            self.notes.add("READ10", f"the group {name!r} of {size} ranks is {short(ranks)}")
            ranks = None
        if ranks:
            known.ranks = known.ranks or ranks
            size = len(ranks)
        if size is not None:
            if known.size not in (None, size):
                self.notes.add("READ10", f"the group {name!r} has {known.size} ranks, and {size}")
            else:
                known.size = size
        if rank is not None:
            if known.rank not in (None, rank):
                self.notes.add("READ10", f"this is rank {known.rank} of the group {name!r}, and rank {rank}")
            else:
                known.rank = rank

    def settle(self, events: list[Event]) -> None:
        """Find the sizes that are not told from what the calls show."""
        for event in events:
            known = self.by_name.setdefault(event.group, _RecordedGroup())
            if known.size is None:
                known.shown.update(set(_shown(event)))
        for name, known in self.by_name.items():
            if name and known.size is None:
                known.size = self._settled(name, known.shown)
        self._settle_untold()

    def _settled(self, name: str, shown: Counter[int]) -> int | None:
        """The size that a group's calls show; of several, the one that most of them show."""
        if len(shown) < 2:
            return next(iter(shown), self.world if name == self.default else None)
        self.notes.add("READ10", f"the calls of the group {name!r} show sizes {sorted(shown)[:8]}")
        size, count = shown.most_common(1)[0]
        return size if 2 * count > shown.total() else None

    def _settle_untold(self) -> None:
        """Find the group of the calls that name none."""
        untold = self.by_name.get("")
        if untold is None or untold.size is not None:
            return
        alike = {(known.size, known.ranks) for name, known in self.by_name.items() if name}
        if len(alike) == 1 and None not in alike.copy().pop():
            untold.size, untold.ranks = alike.pop()
            several = len(self.by_name) > 2
            detail = "there are several of the same ranks, taken as one" if several else "there is only one"
            if several:
                self.notes.add("READ11", detail)
        elif not alike and len(untold.shown) == 1 and self.world in (None, *untold.shown):
            (untold.size,) = untold.shown
            self.notes.add(
                "READ11", f"some calls show that they are of {untold.size} ranks, and so all are taken to be"
            )
        elif not alike and not untold.shown and self.said is not None:
            untold.size = self.said
            self.notes.add("READ11", f"all calls are taken to be of all {self.said} ranks")

    def of(self, event: Event, rank: int | None) -> Group | None:
        """Return the group of `event` as global rank `rank` sees it; None where its size is not known."""
        known = self.by_name[event.group]
        size, name = known.size, event.group
        if size is None and not name:
            shown = set(_shown(event))
            size = shown.pop() if len(shown) == 1 else None
            name = f"of {size}"  # calls of several sizes are not of one group
        if size is None or not 0 < size <= _LARGEST_GROUP:
            return None
        ranks = known.ranks
        if not ranks and size == self.world and event.group in ("", self.default):
            ranks = tuple(range(size))
        place = known.rank
        if place is None and rank is not None:
            place = ranks.index(rank) if rank in ranks else None if ranks else rank if rank < size else None
        if place is None or not 0 <= place < size:
            self.notes.add("READ6", f"its rank in a group of {size} is taken to be 0", event.where)
            place = 0
        if not name and len(self.by_name) == 2:
            name = next(other for other in self.by_name if other)
        return Group(size, place, name, ranks)


class Collector:
    """The part that all formats of other tools share: it takes in a file's groups, its rank and the world's size."""

    def __init__(self, notes: Notes) -> None:
        self.notes = notes
        self.fields = FieldReader(notes)
        self.groups = RecordedGroups(notes)
        self.rank: int | None = None
        self.world_size: int | None = None

    def configure(self, groups: Any, size_key: str, where: str) -> None:
        """Take in a list of groups: their names, sizes and ranks."""
        for group in groups if isinstance(groups, list) else ():
            if isinstance(group, dict) and isinstance(group.get("pg_name"), str):
                size = self.fields.number(group.get(size_key), size_key, where, least=1)
                self.groups.tell(group["pg_name"], size, self.fields.numbers(group.get("ranks"), "ranks", where))


def built(events: list[Event], groups: RecordedGroups, rank: int | None, notes: Notes) -> Iterator[Call]:
    """Yield the calls of `events`, which are in the order of their making."""
    groups.settle(events)
    known: dict[Any, Call] = {}
    for place, event in enumerate(events):
        events[place] = Event("")  # what it held is not needed any more
        op = _op_of(event)
        group = groups.of(event, rank)
        if group is None:
            notes.add("READ4", op, event.where)
            notes.lose(event.group)
            continue
        try:
            yield _call(event, op, group, notes, known)
        except CallError as error:
            notes.add("READ2", f"a call of {op}: {str(error).splitlines()[0][:200]}", event.where)
            notes.lose(event.group)


def _op_of(event: Event) -> str:
    """The op behind a backend's name, which may stand for a list of tensors or for one."""
    if event.name not in SPELLINGS:
        return event.name
    op, reads, writes = SPELLINGS[event.name], event.reads, event.writes
    if op == "c10d::allreduce_" and len(reads or writes or ()) > 1:
        return "c10d::allreduce_coalesced_"
    if op == "c10d::allgather_" and len(reads or ()) > 1 == len(writes or ()):
        return "c10d::allgather_into_tensor_coalesced_"  # of which gloo writes one list, with the sizes of an input
    alone = event.counted or {len(side) for side in (reads, writes) if side is not None} == {1}
    if op == "c10d::alltoall_" and (alone or event.read_splits or event.write_splits):
        return "c10d::alltoall_base_"
    return op


@functools.cache
def _paths(row: Row) -> tuple[str, str] | None:
    """Return the paths of the arguments that are read and written, "" for none; None where no backend names the op."""
    if row.op not in SPELLINGS.values():
        return None
    statement = row.spellings[0].statement
    reads, writes = (next((str(part.path) for part in side), "") for side in (statement.reads, statement.writes))
    return reads, writes


def _call(event: Event, op: str, group: Group, notes: Notes, known: dict[Any, Call]) -> Call:
    row = lookup(op)
    given = {name: value for name, value in event.arguments.items() if value is not None}
    paths = _paths(row)
    if paths is not None:
        given = _flat(event, op, paths, group) | given
    _contradict(event, row, notes)
    _attributes(event, row, group, given, notes)
    _splits(event, row, given, notes)
    for name in row.reads:
        on_root = given.get(row.root) == group.rank
        if name not in given and (name not in row.root_only or name in row.in_place or on_root):
            given[name] = _unknown(event, row, name, group)
    key = (op, group, *given.items())
    made = None if _has_memory(given.values()) else known.get(key)
    if made is None:
        made = call(op, group=group, **given)
        if len(known) < _MOST_KNOWN:
            known[key] = made
    # A recording does not tell a send from an isend: that a rank waits in it is never claimed.
    blocking = False if event.blocking is None and row.rule.point_to_point else event.blocking
    return Call(made.row, made.group, made.arguments, event.source, event.index, blocking)


def _has_memory(values: Iterable[Any]) -> bool:
    """Whether a tensor among `values` says where it lies, by which specs are not told apart."""
    return any(
        value.memory is not None if isinstance(value, Spec) else isinstance(value, tuple) and _has_memory(value)
        for value in values
    )


def _flat(event: Event, op: str, paths: tuple[str, str], group: Group) -> dict[str, Any]:
    """The arguments that take a flat list of what is read, and of what is written."""
    reads, writes = event.reads, event.writes
    if op == "c10d::gather_" and not event.counted:
        writes = _list_or_none(writes, reads, group)
    if op == "c10d::scatter_" and not event.counted:
        listed = _list_or_none(reads, writes, group)
        if listed == reads and len(reads or ()) == 1:
            writes = _list_or_none(writes, reads, group)
        reads = listed
        if writes is not None and len(writes) != 1 and len(reads or ()) == 1:
            reads, writes = writes, reads  # NCCL hands them to its recorder the other way round
    if _is_stacked(event, paths):
        writes = None
    if event.counted and op == "c10d::gather_":
        writes = None  # the counts are the same on every rank, and do not tell who has the list
    if event.counted and op == "c10d::scatter_":
        reads = None
    return _side(paths[1], writes, group, reads) | _side(paths[0], reads, group, writes)


def _is_stacked(event: Event, paths: tuple[str, str]) -> bool:
    """Whether a list that goes with another one was written down as one tensor of as many, as gloo does."""
    return paths[0] == "inputs[i]" and len(event.reads or ()) != len(event.writes or ())


def _list_or_none(
    specs: tuple[Spec, ...] | None, others: tuple[Spec, ...] | None, group: Group
) -> tuple[Spec, ...] | None:
    """The list of a gather or scatter; empty where one tensor without sizes, or without elements, stands for none.

    None where that cannot be told, because the rank's own share has no elements either.
    """
    if specs is None or len(specs) != 1 or group.size == 1:
        return specs
    shape, shares = specs[0].shape, [spec.shape for spec in others or ()]
    if shape == (0,) and shares == [(0,)]:
        return None
    return () if shape in ((), (0,)) and shares else specs


def _side(
    path: str, specs: tuple[Spec, ...] | None, group: Group, others: tuple[Spec, ...] | None = None
) -> dict[str, Any]:
    name, _, index = path.partition("[")
    if not name or specs is None:
        return {}
    if index == "1][p]":
        if not specs:
            return {name: ()}
        listed = _apart(specs, group.size, others)
        return {} if listed is None else {name: (listed,)}
    if index in ("i]", "p]"):
        return {name: specs} if specs else {}
    if index == "1]":
        return {name: specs[:1]} if specs else {}
    return {name: specs[0]} if specs else {}


def _apart(specs: tuple[Spec, ...], size: int, others: tuple[Spec, ...] | None) -> tuple[Spec, ...] | None:
    """One tensor for each rank, of a list that a backend wrote down as one tensor; None where that cannot be told."""
    if len(specs) != 1 or size == 1:
        return specs
    if specs[0].shape is None:
        return None
    whole, one = specs[0], others[0] if others and len(others) == 1 else None
    if whole.shape and whole.shape[0] == size:
        return tuple(Spec(whole.shape[1:], whole.dtype) for _ in range(size))
    if one is not None and whole.shape and whole.shape[1:] == one.shape:
        return None  # gloo writes a coalesced gather down as a list of one
    if whole.numel % size == 0:
        return tuple(Spec((whole.numel // size,), whole.dtype) for _ in range(size))
    return specs


def _attributes(event: Event, row: Row, group: Group, given: dict[str, Any], notes: Notes) -> None:
    """Fill in the root, the peer, the tag and the reduce op, as unknown where the file does not tell them."""
    for attribute, name in row.entry.attributes.items():
        if name in given or attribute not in ("root", "reduce_op", "peer", "tag"):
            continue
        if attribute == "peer" and event.peer is not None:
            given[name] = event.peer
            continue
        if attribute == "root" and event.root is not None:
            given[name] = event.root
            continue
        if attribute == "root" and any(given.get(listed) for listed in row.root_only if listed not in row.in_place):
            given[name] = group.rank  # only the root has the list
            continue
        given[name] = UNKNOWN
        notes.add("READ5", f"{name} of {row.op}", event.where)


def _splits(event: Event, row: Row, given: dict[str, Any], notes: Notes) -> None:
    """Give a single all_to_all its split sizes, as unknown where they are not told."""
    told = {"input": event.read_splits, "output": event.write_splits}
    if event.name in ("all_to_all", "alltoall") and event.counted and not event.read_splits and not _alike(event):
        told = {}  # counts alone do not tell a list of uneven tensors from one tensor in equal shares
    for behind, column in row.entry.splits.items():
        name, part = column.argument, row.entry.parts[behind]
        if not name or part not in row.by_name:
            continue
        splits = given.get(name, told.get(behind))
        if splits is None:
            continue
        given[name] = splits
        spec = given.get(part)
        if event.counted and splits and isinstance(spec, Spec) and spec.shape is not None:
            given[part] = _rows(spec, sum(splits))
    missing = [name for name in row.splits if name in row.by_name and name not in given]
    if missing:
        notes.add("READ5", f"the split sizes of {row.op}", event.where)
        given.update(dict.fromkeys(missing, UNKNOWN))


def _alike(event: Event) -> bool:
    counts = [spec.shape for specs in (event.reads, event.writes) for spec in specs or ()]
    return len(counts) == 2 and counts[0] == counts[1]


def _contradict(event: Event, row: Row, notes: Notes) -> None:
    """Note where the op's own arguments are not what the backend wrote down of it."""
    told = {"input": event.read_splits, "output": event.write_splits}
    for behind, column in row.entry.splits.items():
        own, its = event.arguments.get(column.argument or ""), told.get(behind)
        if own is not None and its is not None and own != its:
            notes.add(
                "READ12", f"{column.argument} of {row.op} is {short(list(own))}, and {short(list(its))}", event.where
            )
    if row.in_place and not event.counted and event.reads and event.writes:
        _contradict_in_place(event, row, notes)
    if row.op not in _AS_IT_IS:
        return
    for part, flat in zip((*row.reads[:1], *row.writes[:1]), (event.reads, event.writes), strict=False):
        given = event.arguments.get(part)
        one = given[0] if isinstance(given, tuple) and len(given) == 1 else given
        if not isinstance(one, Spec) or not flat or len(flat) != 1:
            continue
        other = flat[0]
        if one.dtype in (None, other.dtype) and None not in (one.shape, other.shape) and one.numel != other.numel:
            notes.add("READ12", f"{part} of {row.op} has {one.numel} elements, and {other.numel}", event.where)
        elif one.dtype and other.dtype and one.dtype != other.dtype and not one.dtype.is_complex:
            notes.add("READ12", f"{part} of {row.op} is {one.dtype}, and {other.dtype}", event.where)


def _contradict_in_place(event: Event, row: Row, notes: Notes) -> None:
    """Note where an op that works in place was written down with other tensors behind it than before it."""
    before, behind = ([(spec.shape, spec.dtype) for spec in side or ()] for side in (event.reads, event.writes))
    told = all(None not in tensor for tensor in (*before, *behind))
    if told and before != behind:
        notes.add("READ12", f"{row.op} has {_listed(before)} before it, and {_listed(behind)} behind", event.where)


def _listed(tensors: list[tuple[Any, Any]]) -> str:
    return short([f"{dtype}{list(shape)}".removeprefix("torch.") for shape, dtype in tensors])


def _rows(spec: Spec, rows: int) -> Spec:
    """A flat tensor as `rows` rows; of unknown shape where it is no multiple of them."""
    elements = spec.numel
    if rows == 0 or elements % rows:
        return spec if rows == elements else Spec(None, spec.dtype)
    return Spec((rows,) if rows == elements else (rows, elements // rows), spec.dtype)


def _unknown(event: Event, row: Row, name: str, group: Group) -> Any:
    """What stands for an argument that is read, and of which nothing is told.

    A list of any length is taken to have one tensor where a file tells of no tensors at all. Where it tells of others,
    this one could not be read, and would be compared with longer ones: a `CallError` says so. Of one whose tensors are
    alike, one travels, whatever its length.
    """
    part = next(part for part in row.spellings[0].statement.parts if part.path.name == name)
    if "i" in part.path.index and not row.entry.one_tensor and not event.bare:
        raise CallError(f"{name} cannot be read, nor how many tensors it has")
    value: Any = Spec(None, None)
    for index in reversed(part.path.index):
        value = tuple(Spec(None, None) for _ in range(group.size)) if index == "p" else (value,)
    return value


def _shown(event: Event) -> Iterator[int]:
    """Yield the group sizes that `event` shows by itself."""
    row = row_of(_op_of(event))
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
    paths, statement = _paths(row), row.spellings[0].statement
    gathers = any(map(_holds_every_rank, statement.writes))
    scatters = any(_holds_every_rank(part) and not part.root_only for part in statement.reads)
    if paths is None or gathers == scatters or _is_stacked(event, paths):
        return
    read, written = (
        _first(event.arguments.get(path.partition("[")[0]), flat)
        for path, flat in zip(paths, (event.reads, event.writes), strict=True)
    )
    if read is None or written is None:
        return
    share, whole = (read, written) if gathers else (written, read)
    if "[p]" in "".join(paths) and not event.counted:
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


def _first(given: Any, flat: tuple[Spec, ...] | None) -> Spec | None:
    if isinstance(given, Spec):
        return given
    return flat[0] if flat else None
