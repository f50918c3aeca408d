"""Hypothesis strategies: legal groups of calls of any op, and groups in which exactly one thing is broken.

A group of calls is data: nothing is allocated or sent. `check`, `agree` and `infer` take it as it is; `make` gives it
real tensors, and a `World` carries it out.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from collective_rules.backends import BACKENDS
from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.ops import Row, lookup
from collective_rules.testing.drawing import Wish, draw_calls, drawable

__all__ = ["calls"]

_NOTHING = Wish()


def calls(op: Any, *, backend: str | None = "gloo", most_ranks: int = 8) -> st.SearchStrategy[tuple[Call, ...]]:
    """Return a strategy for legal groups of calls of `op`: a `Call` for every rank that takes part, by rank.

    `op` is what `lookup` takes. The rule's names are drawn, and every rank's arguments follow from them. Free are: the
    group's size (1 to `most_ranks`; 2 at least for point-to-point ops, whose partners are drawn too), 0 to 5 dims, sizes
    of 0, each dtype and reduce op that `backend` takes, uneven split sizes, the root, the layout of each tensor as far
    as the op admits it, inputs that lie in the output's memory where that is legal, and what may be left out. Written
    arguments are always given. With `backend=None` the rules alone decide what is legal.

    They shrink to one rank and the smallest sizes. Raises `CallError` where nothing says how to draw an argument (some
    of symm_mem's).

    >>> from hypothesis import find
    >>> find(calls("c10d::_allgather_base_"), lambda group: len(group) > 1)
    (<c10d::_allgather_base_ on rank 0 of 2, ...>, <c10d::_allgather_base_ on rank 1 of 2, ...>)
    """
    row = _drawable(op, backend, most_ranks)
    return _calls(row, backend, most_ranks)


@st.composite
def _calls(draw: st.DrawFn, row: Row, backend: str | None, most_ranks: int) -> tuple[Call, ...]:
    return draw_calls(draw, row, backend, most_ranks, _NOTHING)


def _drawable(op: Any, backend: str | None, most_ranks: int) -> Row:
    row = lookup(op)
    if backend is not None and backend not in BACKENDS:
        raise CallError(f"backend={backend!r}, but should be one of {', '.join(map(repr, BACKENDS))}, or None")
    least = 2 if row.rule.point_to_point else 1
    if isinstance(most_ranks, bool) or not isinstance(most_ranks, int) or most_ranks < least:
        raise CallError(f"most_ranks={most_ranks!r}, but {row.op} needs at least {least}")
    why = drawable(row)
    if why:
        raise CallError(f"no strategy draws calls of {row.op}: {why}")
    return row
