"""From events to calls: what the op's arguments were.

An argument that a file does not tell is unknown in the call, and noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from collective_rules.call import UNKNOWN, Call, call
from collective_rules.errors import CallError
from collective_rules.nested import leaves
from collective_rules.ops import Row, lookup
from collective_rules.recordings.backend_quirks import listed_arguments, op_behind, split_sizes
from collective_rules.recordings.events import Event
from collective_rules.recordings.groups import RecordedGroups
from collective_rules.recordings.recording import Notes, short
from collective_rules.spec import Group, Spec

_AS_IT_IS = frozenset(
    f"c10d::{name}"
    for name in ("allreduce_", "broadcast_", "_allgather_base_", "_reduce_scatter_base_", "alltoall_base_")
)
"""Ops whose tensors a backend's record shows as the op has them."""
_MOST_KNOWN = 100_000
"""Calls that are alike share their arguments, up to so many kinds of them."""


def built(events: list[Event], groups: RecordedGroups, rank: int | None, notes: Notes) -> Iterator[Call]:
    """Yield the calls of `events`, which are in the order of their making."""
    groups.settle(events)
    known: dict[Any, Call] = {}
    for place, event in enumerate(events):
        events[place] = Event("")  # what it held is not needed any more
        op = op_behind(event)
        group = groups.of(event, rank)
        if group is None:
            notes.add_lost("READ4", op, event.where, event.group)
            continue
        try:
            yield _call(event, op, group, notes, known)
        except CallError as error:
            why = str(error).splitlines()[0][:200]
            notes.add_lost("READ2", f"a call of {op}: {why}", event.where, event.group)


def _call(event: Event, op: str, group: Group, notes: Notes, known: dict[Any, Call]) -> Call:
    row = lookup(op)
    own = {name: value for name, value in event.arguments.items() if value is not None}
    given: dict[str, Any] = listed_arguments(event, row, group) | own
    _contradict(event, row, notes)
    _attributes(event, row, group, given, notes)
    _splits(event, row, given, notes)
    for name in row.reads:
        on_root = given.get(row.root) == group.rank
        if name not in given and (name not in row.root_only or name in row.in_place or on_root):
            given[name] = _unknown(event, row, name, group)
    key = (op, group, *given.items())
    placed = any(spec.memory is not None for spec in leaves(given.values(), Spec))  # equal specs may differ in that
    made = None if placed else known.get(key)
    if made is None:
        made = call(op, group=group, **given)
        if len(known) < _MOST_KNOWN:
            known[key] = made
    blocking = event.blocking
    if blocking is None and row.rule.point_to_point:
        blocking = False  # a recording does not tell a send from an isend: that a rank waits in it is never claimed
    elif blocking is None and type(own.get("async_op")) is bool:
        blocking = not own["async_op"]
    return Call(made.row, made.group, made.arguments, event.source, event.index, blocking)


def _attributes(event: Event, row: Row, group: Group, given: dict[str, Any], notes: Notes) -> None:
    """Set the root, the peer, the tag and the reduce op, to unknown where the file does not tell them."""
    for attribute, name in row.entry.attributes.items():
        if name in given or attribute not in ("root", "reduce_op", "peer", "tag"):
            continue
        value = {"peer": event.peer, "root": event.root}.get(attribute)
        if attribute == "root" and value is None:
            lists = (given.get(listed) for listed in row.root_only if listed not in row.in_place)
            value = group.rank if any(lists) else None  # only the root has the list
        given[name] = UNKNOWN if value is None else value
        if value is None:
            notes.add("READ5", f"{name} of {row.op}", event.where)


def _splits(event: Event, row: Row, given: dict[str, Any], notes: Notes) -> None:
    """Set the split sizes of an all_to_all_single, to unknown where the file does not tell them."""
    told = split_sizes(event)
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


def _contradict(event: Event, row: Row, notes: Notes) -> None:
    """Note where the op's own arguments differ from the backend's record."""
    told = {"input": event.read_splits, "output": event.write_splits}
    for behind, column in row.entry.splits.items():
        own, its = event.arguments.get(column.argument or ""), told.get(behind)
        if own is not None and its is not None and own != its:
            differ = f"{column.argument} of {row.op} is {short(list(own))}, and {short(list(its))}"
            notes.add("READ12", differ, event.where)
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
    """Note where an op that works in place is recorded with other tensors behind it than before it."""
    before, behind = ([(spec.shape, spec.dtype) for spec in side or ()] for side in (event.reads, event.writes))
    told = all(None not in tensor for tensor in (*before, *behind))
    if told and before != behind:
        notes.add("READ12", f"{row.op} has {_listed(before)} before it, and {_listed(behind)} behind", event.where)


def _listed(tensors: list[tuple[Any, Any]]) -> str:
    return short([f"{dtype}{list(shape)}".removeprefix("torch.") for shape, dtype in tensors])


def _rows(spec: Spec, rows: int) -> Spec:
    """Return a flat tensor as `rows` rows; of unknown shape where it is no multiple of them."""
    elements = spec.numel
    if rows == 0 or elements % rows:
        return spec if rows == elements else Spec(None, spec.dtype)
    return Spec((rows,) if rows == elements else (rows, elements // rows), spec.dtype)


def _unknown(event: Event, row: Row, name: str, group: Group) -> Any:
    """Return unknown tensors for an argument that is read and not recorded.

    A list of any length is taken to have one tensor where the file has no tensors at all, or where the list stands for
    one. Else the list could not be read, and would be compared with longer ones: that raises `CallError`.
    """
    part = next(part for part in row.spellings[0].statement.parts if part.path.name == name)
    if "i" in part.path.index and not row.entry.one_tensor and not event.bare:
        raise CallError(f"{name} cannot be read, nor how many tensors it has")
    value: Any = Spec(None, None)
    for index in reversed(part.path.index):
        value = tuple(Spec(None, None) for _ in range(group.size)) if index == "p" else (value,)
    return value
