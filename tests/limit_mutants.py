"""The tables of the backends with one thing changed in a limit: an entry of a column, or the limit left out.

The changes follow from the columns' values, whichever they are; prose is not changed. Of some columns it is known what
makes a change say the same as before (`_ADDS`); of any other column a change must be noticed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch

import collective_rules as cr
from collective_rules.backends import BackendTable, Limit
from collective_rules.backends.columns import CONDITIONS, DEMANDS, PROSE, SCOPES, holds_for, refuses, sets
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.finding import ERROR, UNDECIDABLE, WARNING
from collective_rules.ops import OPS
from collective_rules.ops import op as op_columns
from collective_rules.rules import RULES
from collective_rules.testing.dispatch import has_cpu_kernel
from collective_rules.testing.drawing import DTYPES, drawable
from tests.mutants import Mutant, compares_whole

__all__ = ["limit_mutants", "limited_otherwise"]

Values = Iterator[tuple[str, Any]]
"""What is changed in a column, and the column's other value."""


def limit_mutants(
    backend: BackendTable, id_: str, wanted: Callable[[str], bool] = lambda name: True
) -> Iterator[Mutant]:
    """Change each column of one of a backend's limits, one entry at a time, and leave the limit out.

    `wanted` chooses mutants by their names: it takes long to find out whether one says the same.
    """
    place = next(place for place, limit in enumerate(backend.limits) if limit.id == id_)
    limit, seen = backend.limits[place], set()

    def with_limits(*instead: Limit) -> BackendTable:
        return attrs.evolve(backend, limits=(*backend.limits[:place], *instead, *backend.limits[place + 1 :]))

    yield Mutant(f"{id_}: left out", backend=with_limits())
    for field in attrs.fields(type(limit)):
        for what, value in _other_values(limit, field):
            changed = attrs.evolve(limit, **{field.name: value})
            if wanted(f"{id_}: {field.name}, {what}") and changed != limit and repr(changed) not in seen:
                seen.add(repr(changed))
                same = _same_limit(backend, limit, changed)
                yield Mutant(f"{id_}: {field.name}, {what}", backend=with_limits(changed), same=same)


def limited_otherwise(backend: BackendTable, mutant: Mutant) -> tuple[str, ...]:
    """Return the ops of this torch that the mutant's limits treat in another way than the backend's, by any name."""
    assert mutant.backend is not None
    before, after = backend.limits, mutant.backend.limits
    rows = [cr.lookup(op) for op in OPS if cr.lookup(op).available]
    return tuple(row.op for row in rows if _effective(after, row) != _effective(before, row))


def _effective(limits: Sequence[Limit], row: cr.Row) -> list[Limit]:
    nameless: Any = dict.fromkeys(SCOPES, ())
    return [attrs.evolve(limit, **nameless) for limit in limits if holds_for(limit, row)]


# -- other values of a column


def _other_values(limit: Limit, field: attrs.Attribute[Any]) -> Values:
    """Yield the neighbours of a column's value, by what the column holds."""
    column, value = field.name, getattr(limit, field.name)
    if column == "id":
        yield "another", value + "0"
    elif column == "severity":
        other = WARNING if value == ERROR else ERROR
        yield other, other
    elif column in PROSE:
        return
    elif isinstance(value, bool):
        yield "turned", not value
    elif isinstance(value, int):
        yield from ((f"{value} → {size}", size) for size in (1, 2, 3))
    elif column in _OF_COLUMNS:
        yield from _OF_COLUMNS[column](limit, value) if value else ()  # no condition that the limit does not have
    elif isinstance(value, Mapping):
        yield from _other_mappings(limit, column, value)
    elif isinstance(value, (tuple, frozenset)):
        yield from _other_sets(limit, column, value)
    elif value is not None:
        raise NotImplementedError(
            f"no mutant changes a {type(value).__name__}, as {limit.id} holds in the column {column!r}: "
            "say in `_other_values` which values are its neighbours"
        )
    if field.default is None and value is not None:
        yield "left out", None


def _other_sets(limit: Limit, column: str, known: tuple[Any, ...] | frozenset[Any]) -> Values:
    """Yield a set with one item left out, and with another added; names of ops only where they change which ops."""
    for item in known:
        yield f"without {item}", type(known)(other for other in known if other != item)
    for item in _items(limit, column):
        added = type(known)([*known, item])
        if item not in known and (column not in SCOPES or _names_others(limit, column, added)):
            yield f"also {item}", added


def _names_others(limit: Limit, column: str, added: Any) -> bool:
    changed = attrs.evolve(limit, **{column: added})
    return any(holds_for(changed, row) != holds_for(limit, row) for row in _ON_CPU)


def _other_mappings(limit: Limit, column: str, known: Mapping[str, Any]) -> Values:
    for key, items in known.items():
        yield f"without {key}", {other: each for other, each in known.items() if other != key}
        for item in _items(limit, column):
            yield f"{key} {'without' if item in items else 'also'} {item}", {**known, key: items ^ {item}}


_LAYOUTS = (
    op_columns.DENSE,
    op_columns.FLAT,
    op_columns.REAL_FLAT,
    op_columns.FORMAT,
    op_columns.REAL_FORMAT,
    op_columns.CONTIGUOUS,
)
_OVERLAPS = (op_columns.FREE, op_columns.UP_TO_OWN, op_columns.OWN, op_columns.NEVER)


def _other_words(known: Mapping[str, str], words: Sequence[str]) -> Values:
    for key, word in known.items():
        yield f"without {key}", {other: each for other, each in known.items() if other != key}
        yield from ((f"{key} {other}", {**known, key: other}) for other in words if other != word)


def _other_versions(known: Mapping[str, tuple[int, ...]]) -> Values:
    for fact, (major, *minor) in known.items():
        yield f"without {fact}", {other: each for other, each in known.items() if other != fact}
        yield f"{fact}, an earlier major", {**known, fact: (major - 1, *minor)}
        yield f"{fact}, a later minor", {**known, fact: (major, *(number + 1 for number in minor))}


_OF_COLUMNS: Mapping[str, Callable[[Limit, Any], Values]] = {
    "in_forms": lambda limit, value: _other_sets(limit, "in_forms", value),
    "overlap": lambda limit, value: ((other, other) for other in _OVERLAPS if other != value),
    "layouts": lambda limit, value: _other_words(value, _LAYOUTS),
    "before": lambda limit, value: _other_versions(value),
}
"""Columns whose values are changed in a way of their own."""

_ON_CPU = [cr.lookup(op) for op in OPS if has_cpu_kernel(cr.lookup(op))]


def _items(limit: Limit, column: str) -> list[Any]:
    """Return what a set in the column may hold."""
    if column in SCOPES:
        return list(dict.fromkeys(SCOPES[column].of(row) for row in _ON_CPU))
    limited = [row for row in _ON_CPU if holds_for(limit, row)]
    forms = dict.fromkeys(form.name for row in limited for form in RULES[row.entry.rule].forms)
    items = DEMANDS[column].items if column in DEMANDS else {"in_forms": "form"}.get(column, "")
    return list({"dtype": DTYPES, "reduce op": REDUCE_OPS, "form": forms}.get(items, ()))


# -- limits that say the same


def _same_limit(backend: BackendTable, known: Limit, other: Limit) -> str:
    """Return why `other` refuses the same calls, "" where it does not.

    Nothing is known of ops that torch lacks, nor of those whose calls nothing draws: gloo's table alone has them.
    """
    if (known.id, known.severity) != (other.id, other.severity):
        return ""
    for op in OPS:
        row = cr.lookup(op)
        if backend.name != "gloo" and drawable(row):
            continue
        was, is_ = holds_for(known, row), holds_for(other, row)
        others = [limit for limit in backend.limits if limit is not known and holds_for(limit, row)]
        more = is_ and _adds(other, row, [*others, *[known] * was])
        if row.available and (more or (was and _loses(known, row, [other] * is_, others))):
            return ""
    return "what it refuses is refused by the rules, or by another limit"


def default_of(limit: Limit, column: str) -> Any:
    """Return the value of a column that is left out."""
    default: Any = attrs.fields_dict(type(limit))[column].default
    return default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]


_OF_KINDS = {column for column, demand in DEMANDS.items() if demand.items == "dtype"}


def _loses(limit: Limit, row: cr.Row, instead: list[Limit], others: list[Limit]) -> bool:
    """Whether calls are no longer refused by this limit's id: of dtypes, those that no other limit refuses, if any."""
    no_kinds: Any = dict.fromkeys(_OF_KINDS)
    only_kinds: Any = {
        column: default_of(limit, column)
        for column in (*SCOPES, *CONDITIONS, *DEMANDS)
        if column not in _OF_KINDS | {"from_size"}
    }
    if _adds(
        attrs.evolve(limit, **no_kinds), row, [*instead, *(attrs.evolve(other, **only_kinds) for other in others)]
    ):
        return True
    kinds = _kinds(limit, row)
    proper = kinds.difference(*(_kinds(other, row) for other in others)) or kinds
    still: frozenset[tuple[str, torch.dtype]] = frozenset().union(
        *(_kinds(other, row) for other in instead if _matters_as_often(other, limit, row))
    )
    return bool(proper - still) and not row.entry.batch and not any(other.missing for other in others)


def _adds(limit: Limit, row: cr.Row, others: list[Limit]) -> bool:
    """Whether a limit refuses calls of an op that neither the op's rule nor the other limits refuse."""
    least, most = _tensors_given(row)
    wider = [other for other in others if _matters_as_often(other, limit, row)]
    if row.entry.batch:  # its messages are judged by their own rows
        to_others = limit.to_others and not any(other.to_others for other in wider)
        return to_others or limit.missing or (limit.forms is not None and _adds_forms(limit, row, wider))
    if any(other.missing for other in wider):
        return False
    if limit.missing:
        return True
    if limit.alone and not least <= 1 <= most:
        return False
    asked = [column for column in DEMANDS if sets(limit, column) and (most or column == "forms")]
    return any(column not in _ADDS or _ADDS[column](limit, row, wider) for column in asked)


def _adds_kinds(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    return bool(_kinds(limit, row) - _kinds_of(wider, row))


def _adds_exact(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    """Whether tensors of equally many elements in another shape are refused."""
    taken = [other.forms for other in wider if other.forms is not None]
    undocumented = {spelling.form.name for spelling in row.spellings if not spelling.documented}
    names = {spelling.form.name for spelling in row.spellings}
    uneven = "uneven" in names and not {"uneven"}.intersection(*taken)
    as_uneven = uneven and limit.from_size > 1  # in a group of one, all is even
    loose = (compares_whole(row) and not row.entry.exact and not as_uneven) or undocumented.intersection(*taken)
    return bool(loose) and not any(other.exact for other in wider)


def _adds_one_dtype(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    one_dtype = all(spelling.one_dtype for spelling in row.spellings) and "dtype" in row.rule.agreed
    known = any(other.one_dtype or (other.promotes and not limit.one_dtype) for other in wider)
    return not (_tensors_given(row)[1] == 1 or one_dtype or known)


def _adds_nonempty(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    return not limit.spares_empty and not any(other.nonempty for other in wider)


def _adds_forms(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    """Whether some form of the op is refused that no other limit refuses."""
    names = {spelling.form.name for spelling in row.spellings}
    return bool(
        (names - {*(limit.forms or ())}).difference(*(names - {*o.forms} for o in wider if o.forms is not None))
    )


def _adds_single(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    single = {*(limit.single or ())} & _reduced_somehow(row, wider)
    return _tensors_given(row)[1] > 1 and bool(single.difference(*(other.single or () for other in wider)))


def _adds_strides(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    return _tensors_given(row)[0] == 1 and not any(other.fresh_strides for other in wider)


def _adds_sparse(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    if "strided" in row.rule.constraints.values() and not row.entry.sparse:
        return False
    return bool((_refused_sparse(limit) & _reduced_somehow(row, wider)).difference(*map(_refused_sparse, wider)))


def _part_names(row: cr.Row, parts: Iterable[str]) -> set[str]:
    """Return the arguments that play the parts."""
    bound = {path: part for part, path in reversed(row.entry.parts.items())}  # in place, the part that is read
    return {path.partition("[")[0] for path, part in bound.items() if part in parts} & row.by_name.keys()


_COMPLEX = ("channels_last of complex", "sliced of complex")
_REFUSED_LAYOUTS = {
    **dict.fromkeys((op_columns.ANY, op_columns.ORDER), frozenset[str]()),
    **dict.fromkeys((op_columns.SENT, op_columns.DENSE), frozenset({"sliced", _COMPLEX[1]})),
    op_columns.FLAT: frozenset({"transposed", "channels_last", _COMPLEX[0]}),
    op_columns.REAL_FLAT: frozenset({"transposed", "channels_last", *_COMPLEX}),
    op_columns.FORMAT: frozenset({"sliced", "transposed", _COMPLEX[1]}),
    op_columns.REAL_FORMAT: frozenset({"sliced", "transposed", *_COMPLEX}),
    op_columns.CONTIGUOUS: frozenset({"sliced", "transposed", "channels_last", *_COMPLEX}),
}


def _refused_layouts(limit: Limit, row: cr.Row) -> set[tuple[str, str, bool]]:
    """Return the layouts that a limit refuses, by argument, of what stays on the rank and of what is sent."""
    return {
        (name, refused, stays)
        for part, layout in (limit.layouts or {}).items()
        for name in _part_names(row, [part])
        for refused in _REFUSED_LAYOUTS[layout]
        for stays in (False, True)
        if not (stays and limit.spares_own) and (not stays or _may_stay(row, part))
    }


def _may_stay(row: cr.Row, part: str) -> bool:
    return bool(row.root_only) or "[p]" in row.entry.parts[part]


def _adds_layouts(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    own = {
        (name, refused, stays)
        for name, layout in row.entry.layouts.items()
        for refused in _REFUSED_LAYOUTS[layout]
        for stays in ((False,) if layout == op_columns.SENT else (False, True))
        if limit.from_size >= row.entry.layouts_from
    }
    added = _refused_layouts(limit, row).difference(own, *(_refused_layouts(other, row) for other in wider))
    takes_complex = any(dtype.is_complex for _, dtype in _kinds_given(row) - _kinds_of(wider, row))
    return any(takes_complex or layout not in _COMPLEX for _, layout, _ in added)


def _adds_ordered(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    """Whether tensors of one call are ordered; what the ranks must agree on, `agree` compares."""
    names = _part_names(row, limit.ordered or ())
    raw = {name for name in names if row.layout_of(name) not in (op_columns.ANY, op_columns.SENT)}
    return len(names) > 1 and raw != names and not any(names <= _part_names(row, o.ordered or ()) for o in wider)


def _adds_overlap(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    refused = _refused_overlaps(limit.overlap or op_columns.FREE, row)
    own = _refused_overlaps(row.entry.overlap, row) - {"twice"}
    return bool(refused.difference(own, *(_refused_overlaps(o.overlap or op_columns.FREE, row) for o in wider)))


def _refused_overlaps(overlap: str, row: cr.Row) -> set[str]:
    """Return what may not share memory: what is read of the ranks before, of this one, and behind; what is written."""
    parts = [part for part in row.spellings[0].statement.parts if part.path.name in row.by_name]
    read, written = ({part.path.name for part in parts if part.path.name in side} for side in (row.reads, row.writes))
    several = row.in_place and row.reduce_op and _tensors_given(row)[1] > 1 and not row.entry.one_tensor
    refused = {"twice"} if several else set()
    if not (read - written and written - read):
        return refused
    listed = any("p" in part.path.index for part in parts)
    ranks = {"before", "own", "behind"}
    spared = {op_columns.OWN: {"own"}, op_columns.UP_TO_OWN: {"before", "own"} if listed else set(), "free": ranks}
    return refused | (ranks - spared.get(overlap, set()))


def _adds_devices(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    return not any({*(other.devices or ())} <= {*(limit.devices or ())} for other in wider if other.devices is not None)


def _adds_most(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    most = min([other.most_tensors for other in wider if other.most_tensors is not None], default=float("inf"))
    return _tensors_given(row)[1] > (limit.most_tensors or 0) and most > (limit.most_tensors or 0)


def _adds_divides(limit: Limit, row: cr.Row, wider: list[Limit]) -> bool:
    names = _part_names(row, limit.divides or ())
    flat = any(spelling.form.flat and not spelling.form.kept for spelling in row.spellings)
    return (
        flat and bool(names and row.entry.splits) and not any(_part_names(row, other.divides or ()) for other in wider)
    )


def _split_parts(limit: Limit, row: cr.Row) -> set[str]:
    return {part for part in limit.splits_with or () if part in row.entry.splits and row.entry.splits[part].argument}


_ADDS: Mapping[str, Callable[[Limit, cr.Row, list[Limit]], bool]] = {
    "dtypes": _adds_kinds,
    "reduces": _adds_kinds,
    "exact": _adds_exact,
    "one_dtype": _adds_one_dtype,
    "promotes": _adds_one_dtype,
    "nonempty": _adds_nonempty,
    "forms": _adds_forms,
    "single": _adds_single,
    "fresh_strides": _adds_strides,
    "sparse_reduces": _adds_sparse,
    "layouts": _adds_layouts,
    "ordered": _adds_ordered,
    "overlap": _adds_overlap,
    "devices": _adds_devices,
    "most_tensors": _adds_most,
    "divides": _adds_divides,
    "splits_with": lambda limit, row, wider: (
        _split_parts(limit, row) > set().union(*(_split_parts(o, row) for o in wider))
    ),
    "to_others": lambda limit, row, wider: False,  # of a batch, above
}
"""Whether a limit refuses calls by a column beyond the op's rule, and beyond other limits that matter as often."""


_SEVERITIES = (UNDECIDABLE, WARNING, ERROR)


def _matters_as_often(other: Limit, limit: Limit, row: cr.Row) -> bool:
    """Whether one limit matters wherever another does, and is as severe."""
    _, most = _tensors_given(row)
    smallest = 2 if row.rule.point_to_point else 1
    most_ranks = (other.to_size or float("inf"), limit.to_size or float("inf"))
    sizes_ = max(other.from_size, smallest) <= max(limit.from_size, smallest) and most_ranks[0] >= most_ranks[1]
    of_contents = any(sets(limit, column) for column in (*_OF_KINDS, "sparse_reduces", "nonempty"))
    forms = not other.in_forms or (bool(limit.in_forms) and {*limit.in_forms} <= {*other.in_forms})
    on = not other.on or (bool(limit.on) and {*limit.on} <= {*other.on})
    told = not other.before or other.before == limit.before
    own = (
        not other.spares_own
        or limit.spares_own
        or not any(_may_stay(row, part) for part in row.entry.parts)
        or not (limit.layouts or limit.ordered or (of_contents and limit.from_size < 2))
    )
    alone = not other.alone or limit.alone or most == 1 or limit.fresh_strides
    empty = not of_contents or not other.spares_empty or limit.spares_empty
    return (
        sizes_
        and alone
        and empty
        and forms
        and on
        and told
        and own
        and _SEVERITIES.index(other.severity) >= _SEVERITIES.index(limit.severity)
    )


Kinds = frozenset[tuple[str, torch.dtype]]
_REFUSED: dict[tuple[int, tuple[str, ...]], tuple[Limit, Kinds]] = {}
"""What limits refuse, by their identity: they are kept, so that no other takes their place."""


def _kinds(limit: Limit, row: cr.Row) -> Kinds:
    """Return the (reduce op, dtype) that it refuses, of those that the op can be called with."""
    reduce_ops = (row.entry.reduce_ops or REDUCE_OPS) if row.reduce_op else ("",)
    if not any(sets(limit, column) for column in _OF_KINDS):
        return frozenset()
    key = (id(limit), reduce_ops)
    if key not in _REFUSED:
        found = frozenset((op, dtype) for op in reduce_ops for dtype in DTYPES if refuses(limit, op, dtype))
        _REFUSED[key] = (limit, found)
    return _REFUSED[key][1]


def _kinds_of(limits: list[Limit], row: cr.Row) -> Kinds:
    return frozenset[tuple[str, torch.dtype]]().union(*(_kinds(limit, row) for limit in limits))


def _reduced_somehow(row: cr.Row, wider: list[Limit]) -> set[str]:
    """Return the reduce ops with which some dtype is reduced."""
    return {op for op, _ in _kinds_given(row) - _kinds_of(wider, row)}


def _kinds_given(row: cr.Row) -> Kinds:
    reduce_ops = (row.entry.reduce_ops or REDUCE_OPS) if row.reduce_op else ("",)
    return frozenset((op, dtype) for op in reduce_ops for dtype in DTYPES)


def _refused_sparse(limit: Limit) -> set[str]:
    return set() if limit.sparse_reduces is None else {"", *REDUCE_OPS} - {*limit.sparse_reduces}


@functools.cache
def _tensors_given(row: cr.Row) -> tuple[int, float]:
    """The least and the most tensors that are passed to the op: one at least, where it is off the root."""
    given = {str(part.path): part for part in row.spellings[0].statement.parts if part.path.name in row.by_name}
    listed = any({"i", "p"} & {*part.path.index} for part in given.values())
    least = sum(not part.root_only for part in given.values())
    return max(least, min(len(given), 1)), float("inf") if listed else len(given)
