"""What the backends take. Another backend fills in a table of the same shape and is added to `BACKENDS`."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from collective_rules.backends.gloo import GLOO
from collective_rules.backends.limit import Backend, Limit
from collective_rules.errors import CallError
from collective_rules.ops import Row

__all__ = ["BACKENDS", "Backend", "Limit", "limits_of"]

BACKENDS: Mapping[str, Backend] = {backend.name: backend for backend in (GLOO,)}


def limits_of(backend: str | None, row: Row) -> tuple[Limit, ...]:
    """Return the limits that `backend` sets to the op of `row`; none where `backend` is None.

    Raises `CallError` for a backend that is not known, naming those that are.
    """
    if backend is None:
        return ()
    if not isinstance(backend, str) or backend not in BACKENDS:
        known = ", ".join(map(repr, BACKENDS))
        raise CallError(f"backend={backend!r}, but should be one of {known}, or None for what every backend needs")
    return _limits(backend, row)


@functools.cache
def _limits(backend: str, row: Row) -> tuple[Limit, ...]:
    limits = tuple(
        limit
        for limit in BACKENDS[backend].limits
        if (row.op in limit.ops or row.rule.name in limit.rules or row.namespace in limit.namespaces)
        and row.op not in limit.but
    )
    missing = tuple(limit for limit in limits if limit.missing)
    return missing or limits
