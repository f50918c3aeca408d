"""Reads a backend's table that stands outside of this library, and refuses one that would not mean what it says.

The table is of the built-in ones' type, at "my_package:TABLE" or "/path/to/file.py:TABLE". This module does not know
whether the backend is as the table says: a conformance run finds that out.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch

from collective_rules.backends.backend import Backend
from collective_rules.backends.columns import DEMANDS, SCOPES, must_be_stated, sets
from collective_rules.backends.limit import CORRUPTS, HANGS, OVERWRITES, RAISES, BackendTable, Limit
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.errors import CallError, UnknownOpError
from collective_rules.finding import ERROR, UNDECIDABLE, WARNING
from collective_rules.ops import OPS, Row, lookup
from collective_rules.ops.op import CONTIGUOUS, DENSE, FLAT, FORMAT, FREE, NEVER, OWN, UP_TO_OWN
from collective_rules.places import found_at


@functools.cache
def declared(place: str) -> BackendTable:
    """Return the table at `place`.

    Raises `CallError` where there is none, and for the first limit that cannot be meant: of no op, with a name that
    does not exist, without a demand, or with a column of which `columns` says nothing.
    """
    table = found_at(place, "limits", lambda value: isinstance(value, BackendTable))
    if not isinstance(table, BackendTable):
        wanted = f"a {BackendTable.__name__} of collective_rules.backends"
        raise CallError(f"limits={place!r}, but that is of type {type(table).__name__}, and should be {wanted}")
    for fault in _faults(table):
        raise CallError(f"limits={place!r}: {fault}")
    return table


@functools.cache
def constraint_ids() -> frozenset[str]:
    """Return the ids of all rules' constraints."""
    return frozenset(id for row in _rows() for id in row.rule.constraints)


def _rows() -> Iterator[Row]:
    for op in OPS:
        with contextlib.suppress(UnknownOpError):  # it is not in this torch
            yield lookup(op)


def _faults(table: BackendTable) -> Iterator[str]:
    if not isinstance(table.name, str) or not table.name:
        yield f"name={table.name!r}, but should be the backend's name"
    if not isinstance(table.limits, (tuple, list)):
        yield f"limits={table.limits!r}, but should be a tuple of Limit"
        return
    ids = set[str]()
    for place, limit in enumerate(table.limits):
        if not isinstance(limit, Limit):
            yield f"limits[{place}] is {limit!r}, but should be a Limit"
        elif not isinstance(limit.id, str) or not limit.id:
            yield f"limits[{place}] has id={limit.id!r}, but should have a text of its own"
        elif limit.id in ids or limit.id in constraint_ids():
            other = "another limit" if limit.id in ids else "a constraint of a rule"
            yield f"limits[{place}] has id={limit.id!r}, which {other} has, too"
        else:
            ids.add(limit.id)
            yield from (f"{limit.id}: {fault}" for fault in _limit_faults(limit))


def _limit_faults(limit: Limit) -> Iterator[str]:
    for column, fault_of in _COLUMNS.items():
        value = getattr(limit, column)
        if value is not None and (fault := fault_of(value)):
            yield f"{column}={value!r}, {fault}"
            return
    try:
        must_be_stated(limit)
    except NotImplementedError as error:
        yield str(error)
    if not any(getattr(limit, column) for column in SCOPES if column != "but"):
        yield f"it holds for no op: say which by {', '.join(column for column in SCOPES if column != 'but')}"
    if not any(sets(limit, column) for column in DEMANDS):
        yield f"it demands nothing: set one of {', '.join(DEMANDS)}"


# -- columns


def _names(names_of: Callable[[], Iterable[str]]) -> Callable[[Any], str]:
    """Return what finds the first name of a tuple that does not exist."""

    def fault(value: Any) -> str:
        if not isinstance(value, (tuple, list, frozenset, set)):
            return "but should be a tuple of names"
        names = [*dict.fromkeys(names_of())]
        for name in value:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, n=1)
                return f"but there is no {name!r}{f'; did you mean {near[0]!r}?' if near else ''}"
        return ""

    return fault


def _dtypes(value: Any) -> str:
    whole = isinstance(value, (frozenset, set)) and all(isinstance(each, torch.dtype) for each in value)
    return "" if whole else "but should be a set of torch dtypes"


def _reduces(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "but should map reduce ops to sets of torch dtypes"
    return _REDUCE_OPS(tuple(value)) or next(filter(None, map(_dtypes, value.values())), "")


def _severity(value: Any) -> str:
    severities = (ERROR, WARNING, UNDECIDABLE)
    return "" if value in severities else f"but should be {ERROR!r}, {WARNING!r} or {UNDECIDABLE!r}"


def _size(value: Any) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return "" if whole else "but should be a number of ranks"


def _word(*words: str) -> Callable[[Any], str]:
    return lambda value: "" if value in words else f"but should be one of {', '.join(map(repr, words))}"


def _parts() -> Iterator[str]:
    return (part for row in _rows() for part in row.entry.parts)


def _layouts(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "but should map parts of the rule to layouts"
    word = _word(DENSE, FLAT, FORMAT, CONTIGUOUS)
    return _names(_parts)(tuple(value)) or next(filter(None, map(word, value.values())), "")


def _before(value: Any) -> str:
    facts = {field.name for field in attrs.fields(Backend)} - {"name"}
    whole = isinstance(value, Mapping) and {*value} <= facts and all(isinstance(each, tuple) for each in value.values())
    return "" if whole else f"but should map some of {', '.join(sorted(facts))} to tuples of numbers"


_OPS = _names(lambda: OPS)
_REDUCE_OPS = _names(lambda: REDUCE_OPS)

_COLUMNS: Mapping[str, Callable[[Any], str]] = {
    "ops": _OPS,
    "but": _OPS,
    "rules": _names(lambda: (row.rule.name for row in _rows())),
    "namespaces": _names(lambda: (op.partition("::")[0] for op in OPS)),
    "forms": _names(lambda: (form.name for row in _rows() for form in row.rule.forms)),
    "dtypes": _dtypes,
    "reduces": _reduces,
    "single": _REDUCE_OPS,
    "sparse_reduces": _REDUCE_OPS,
    "from_size": _size,
    "to_size": _size,
    "most_tensors": _size,
    "in_forms": _names(lambda: (form.name for row in _rows() for form in row.rule.forms)),
    "ordered": _names(_parts),
    "divides": _names(_parts),
    "layouts": _layouts,
    "overlap": _word(FREE, UP_TO_OWN, OWN, NEVER),
    "before": _before,
    "follows": _word("", RAISES, HANGS, CORRUPTS, OVERWRITES),
    "severity": _severity,
}
"""Column → what returns why its value cannot be meant, or ""."""
