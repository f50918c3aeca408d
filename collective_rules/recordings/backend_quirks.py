"""The habits of backends: how each writes an op down, as a name and two flat lists of tensors.

Each function undoes habits of one kind, and shows a record that has them. How the op's own arguments nest is known from
the paths of the op table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from collective_rules.notation import Part
from collective_rules.ops import Row
from collective_rules.recordings.events import Event
from collective_rules.recordings.spellings import SPELLINGS
from collective_rules.spec import Group, Spec

_Tensors = tuple[Spec, ...] | None
_Sides = tuple[_Tensors, _Tensors]


def op_behind(event: Event) -> str:
    """Return the op behind a backend's name; the number of tensors tells ops of one name apart.

    Of several tensors, gloo names the coalesced ops like the others, and gives the gather a single output, stacked from
    as many tensors of the first one's sizes:

        {"profiling_name": "gloo:all_reduce", "input_sizes": [[4, 3], [5]], "output_sizes": [[4, 3], [5]]}
        {"profiling_name": "gloo:all_gather", "input_sizes": [[4, 3], [5]], "output_sizes": [[2, 4, 3]]}

    An all_to_all of one tensor, or with split sizes, is the single one:

        {"profiling_name": "nccl:all_to_all", "input_sizes": [[8, 3]], "output_sizes": [[6, 3]]}
    """
    if event.name not in SPELLINGS:
        return event.name
    op, reads, writes = SPELLINGS[event.name], event.reads, event.writes
    if op == "c10d::allreduce_" and len(reads or writes or ()) > 1:
        return "c10d::allreduce_coalesced_"
    if op == "c10d::allgather_" and len(reads or ()) > 1 == len(writes or ()):
        return "c10d::allgather_into_tensor_coalesced_"
    single = event.counted or {len(side) for side in (reads, writes) if side is not None} == {1}
    if op == "c10d::alltoall_" and (single or event.read_splits or event.write_splits):
        return "c10d::alltoall_base_"
    return op


@functools.cache
def recorded_parts(row: Row) -> tuple[Part | None, Part | None] | None:
    """Return the parts that the lists of tensors before and behind an op stand for; None if no backend names the op."""
    if row.op not in SPELLINGS.values():
        return None
    statement = row.spellings[0].statement
    return next(iter(statement.reads), None), next(iter(statement.writes), None)


def listed_arguments(event: Event, row: Row, group: Group) -> dict[str, object]:
    """Return the op's arguments that the two flat lists tell, nested as the op has them."""
    parts = recorded_parts(row)
    if parts is None:
        return {}
    reads, writes = _SIDES[row.op](event, group) if row.op in _SIDES else (event.reads, event.writes)
    if is_stacked(event, row):
        writes = None
    return _argument(parts[1], writes, reads, group) | _argument(parts[0], reads, writes, group)


def is_stacked(event: Event, row: Row) -> bool:
    """Return whether gloo wrote the outputs of a coalesced op down as one tensor, from which they cannot be told."""
    part = (recorded_parts(row) or (None,))[0]
    return part is not None and str(part.path) == "inputs[i]" and len(event.reads or ()) != len(event.writes or ())


def _sides_of_gather(event: Event, group: Group) -> _Sides:
    """Return what a gather reads and writes.

    A rank that is not the root has no list, for which backends write many things:

        {"profiling_name": "gloo:gather", "input_sizes": [[4]], "output_sizes": []}
        {"profiling_name": "nccl:gather", "input_sizes": [[4]], "output_sizes": [[0]], "output_dtypes": ["Undefined"]}

    Counts are the same on every rank, and do not tell which one has the list:

        {"Collective name": "gather", "In msg nelems": 4, "Out msg nelems": 8}
    """
    return event.reads, None if event.counted else _list_or_none(event.writes, event.reads, group)


def _sides_of_scatter(event: Event, group: Group) -> _Sides:
    """Return what a scatter reads and writes: a gather backwards, which NCCL records the other way round.

    {"profiling_name": "nccl:scatter", "input_sizes": [[4]], "output_sizes": [[4], [4]]}
    """
    if event.counted:
        return None, event.writes
    reads, writes = _list_or_none(event.reads, event.writes, group), event.writes
    if reads == event.reads and len(reads or ()) == 1:
        writes = _list_or_none(writes, reads, group)
    is_swapped = writes is not None and len(writes) != 1 and len(reads or ()) == 1
    return (writes, reads) if is_swapped else (reads, writes)


_SIDES: Mapping[str, Callable[[Event, Group], _Sides]] = {
    "c10d::gather_": _sides_of_gather,
    "c10d::scatter_": _sides_of_scatter,
}


def _list_or_none(specs: _Tensors, others: _Tensors, group: Group) -> _Tensors:
    """Return the list of a gather or scatter; empty where one tensor without sizes or elements stands for none.

    None where the rank's own share has no elements either, so that nobody can tell.
    """
    if specs is None or len(specs) != 1 or group.size == 1:
        return specs
    shape, shares = specs[0].shape, [spec.shape for spec in others or ()]
    if shape == (0,) and shares == [(0,)]:
        return None
    return () if shape in ((), (0,)) and shares else specs


def _argument(part: Part | None, specs: _Tensors, others: _Tensors, group: Group) -> dict[str, object]:
    """Return the argument of `part`, nested as its path says; empty where the tensors do not tell it."""
    if part is None or specs is None:
        return {}
    name, index = part.path.name, part.path.index
    if index == ("1", "p"):
        listed = _one_of_each_rank(specs, group.size, others)
        return {name: ()} if not specs else {} if listed is None else {name: (listed,)}
    if not specs:
        return {}
    return {name: (specs[:1] if index == ("1",) else specs) if index else specs[0]}


def _one_of_each_rank(specs: tuple[Spec, ...], size: int, others: _Tensors) -> _Tensors:
    """Return one tensor for each rank, of a list that a backend wrote down as one; None where that cannot be told.

    gloo stacks the list; counts tell its elements alone; and a coalesced gather of gloo looks like a list of one:

        {"profiling_name": "gloo:all_gather", "input_sizes": [[6, 3]], "output_sizes": [[4, 6, 3]]}
    """
    if len(specs) != 1 or size == 1:
        return specs
    whole, one = specs[0], others[0] if others and len(others) == 1 else None
    if whole.shape is None:
        return None
    if whole.shape and whole.shape[0] == size:
        share = whole.shape[1:]
    elif one is not None and whole.shape and whole.shape[1:] == one.shape:
        return None
    elif whole.numel % size == 0:
        share = (whole.numel // size,)
    else:
        return specs
    return tuple(Spec(share, whole.dtype) for _ in range(size))


def split_sizes(event: Event) -> dict[str, tuple[int, ...] | None]:
    """Return the split sizes by part of the rule.

    Counts alone do not tell a list of uneven tensors from one tensor in equal shares; nothing is then said of them:

        {"Collective name": "all_to_all", "In msg nelems": 12, "Out msg nelems": 8, "In split size": "[]"}
    """
    counts = [spec.shape for specs in (event.reads, event.writes) for spec in specs or ()]
    is_even = len(counts) == 2 and counts[0] == counts[1]
    if event.name in ("all_to_all", "alltoall") and event.counted and not event.read_splits and not is_even:
        return {}
    return {"input": event.read_splits, "output": event.write_splits}
