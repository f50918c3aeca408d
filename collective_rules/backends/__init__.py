"""What the backends take. Another backend fills in a table of the same shape and is added to `BACKENDS`."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping

import torch

from collective_rules.backends.backend import Backend
from collective_rules.backends.columns import DEMANDS, Plain, holds_for, must_be_stated, ordered_by, sets
from collective_rules.backends.limit import BackendTable, Limit
from collective_rules.backends.matching import AS_DOCUMENTED, Matching
from collective_rules.binding.bound import Bound, Slot
from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.ops import Row, Spelling
from collective_rules.spec import Spec

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendTable",
    "Limit",
    "Matching",
    "admits",
    "as_backend",
    "limits_of",
    "matching_of",
    "orders_of",
    "spellings_of",
    "table_of",
]


class _Tables(MutableMapping[str, BackendTable]):
    """The tables by name. Each stands in a module of its name, which is imported when the table is first asked for."""

    def __init__(self, *names: str) -> None:
        self._tables: dict[str, BackendTable | None] = dict.fromkeys(names)

    def __getitem__(self, name: str) -> BackendTable:
        table = self._tables[name]
        if table is None:
            module = importlib.import_module(f"collective_rules.backends.{name}")
            table = self._tables[name] = getattr(module, name.upper())
        return table

    def __setitem__(self, name: str, table: BackendTable) -> None:
        self._tables[name] = table

    def __delitem__(self, name: str) -> None:
        del self._tables[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tables

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)


BACKENDS: Mapping[str, BackendTable] = _Tables("gloo", "nccl", "xccl", "hccl", "ucc", "mpi", "fake", "threaded")


def table_of(backend: str, argument: str = "backend") -> BackendTable:
    """Return the table called `backend`, or the one at "my_package:TABLE" or "/path/to/file.py:TABLE".

    Raises `CallError` for a name that no table has, naming those that are there, and for a table that is no good;
    `argument` is how the error calls it.
    """
    if isinstance(backend, str) and backend in BACKENDS:
        return BACKENDS[backend]
    if isinstance(backend, str) and ":" in backend:
        from collective_rules.backends.declared import declared  # few name a table by its place

        return declared(backend)
    names = ", ".join(map(repr, BACKENDS))
    others = "'my_package:TABLE', or None for what every backend needs"
    raise CallError(f"{argument}={backend!r}, but should be one of {names}, {others}")


def limits_of(backend: str | Backend | None, row: Row) -> tuple[Limit, ...]:
    """Return the limits that `backend` sets to the op of `row`; none where `backend` is None.

    Raises `CallError` for a backend that is not known, naming those that are.
    """
    if backend is None:
        return ()
    name = backend.name if isinstance(backend, Backend) else backend
    table_of(name)
    return _limits(name, row)


def matching_of(backend: str | Backend | None) -> Matching:
    """Return how `backend` brings the ranks' calls together; as torch documents it where `backend` is None.

    Raises `CallError` for a backend that is not known.
    """
    return AS_DOCUMENTED if backend is None else table_of(as_backend(backend).name).matching


def as_backend(backend: str | Backend) -> Backend:
    """Return `backend`; of one that is named by a string, nothing more is known."""
    return backend if isinstance(backend, Backend) else Backend(backend)


def orders_of(backend: str | Backend | None, bound: Bound) -> Callable[[Slot], bool]:
    """Return what tells whether `backend` wants the tensor in a slot to lie in memory in the order of the others."""
    limits = limits_of(backend, bound.call.row)
    if backend is None or not any(limit.ordered for limit in limits):
        return _never
    return ordered_by(limits, bound, as_backend(backend))


def _never(slot: Slot) -> bool:
    return False


def spellings_of(backend: str | Backend | None, row: Row) -> list[Spelling]:
    """Return the spellings that both the op and the backend take."""
    taken = [limit.forms for limit in limits_of(backend, row) if limit.forms is not None]
    return [spelling for spelling in row.spellings if all(spelling.form.name in forms for forms in taken)]


def admits(backend: str | Backend | None, call: Call, specs: list[Spec]) -> bool:
    """Return whether `backend` certainly takes a call that is legal in the usual form; `specs` are its tensors.

    Raises `CallError` for a backend that is not known.
    """
    if backend is None:
        return True
    if not isinstance(backend, str):
        limits_of(backend, call.row)  # raises
        backend = as_backend(backend).name
    dtypes, devices = frozenset([spec.dtype for spec in specs]), frozenset([spec.device for spec in specs])
    return _admits(backend, call.row, dtypes, call.attribute("reduce_op") or "", devices, len(specs))


@functools.cache
def _limits(backend: str, row: Row) -> tuple[Limit, ...]:
    limits = tuple(limit for limit in table_of(backend).limits if holds_for(limit, row))
    for limit in limits:
        must_be_stated(limit)
    return tuple(limit for limit in limits if limit.missing) or limits


@functools.cache
def _admits(
    backend: str, row: Row, dtypes: frozenset[torch.dtype | None], reduce_op: str, devices: frozenset[str], tensors: int
) -> bool:
    plain = Plain(dtypes, reduce_op, row.spellings[0].form.name, devices, tensors)
    return all(
        demand.admits(limit, plain)
        for limit in limits_of(backend, row)
        for column, demand in DEMANDS.items()
        if sets(limit, column)
    )


def forget() -> None:
    """Look the limits up anew, where a test puts another table in `BACKENDS`."""
    _limits.cache_clear()
    _admits.cache_clear()
