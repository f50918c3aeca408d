"""Hypothesis strategies: legal groups of calls of any op, and groups in which exactly one thing is broken.

A group of calls is data: nothing is allocated or sent. `check`, `agree` and `infer` take the calls as they are; `make`
gives them real tensors, and a `World` carries them out.
"""

from __future__ import annotations

from typing import Any, TypeVar

import hypothesis
from hypothesis import strategies as st

from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.ops import Row, lookup
from collective_rules.testing.broken import Broken, Scene, ways_of
from collective_rules.testing.drawing import Wish, draw_calls, drawable, untaken

__all__ = ["Broken", "broken_calls", "calls", "sample", "ways_to_break"]

_T = TypeVar("_T")


def calls(op: Any, *, backend: str | None = "gloo", most_ranks: int = 8) -> st.SearchStrategy[tuple[Call, ...]]:
    """Return a strategy for legal groups of calls of `op`: a `Call` for every rank that takes part, by rank.

    `op` is anything that `lookup` takes. The names of the rule are drawn, and every rank's arguments follow from them:
    groups of 1 to `most_ranks` ranks (point-to-point ops need 2, and their partners are drawn too), 0 to 5 dims, sizes
    of 0, each dtype and reduce op that `backend` takes, uneven split sizes, each root, each layout that the op admits,
    and inputs that lie in the output's memory where that is legal. Optional arguments are sometimes left out; written
    arguments are always given. With `backend=None` the rules alone decide what is legal.

    The groups shrink to one rank and the smallest sizes. Raises `CallError` where nothing says how to draw an argument
    (of some symm_mem ops).

    >>> from hypothesis import find
    >>> find(calls("c10d::_allgather_base_"), lambda group: len(group) > 1)
    (<c10d::_allgather_base_ on rank 0 of 2, ...>, <c10d::_allgather_base_ on rank 1 of 2, ...>)
    """
    return st.composite(draw_calls)(_drawable(op, backend, most_ranks), backend, most_ranks, Wish())


def broken_calls(
    op: Any, *, way: str | None = None, backend: str | None = "gloo", most_ranks: int = 8
) -> st.SearchStrategy[Broken]:
    """Return a strategy for groups of calls of `op` in which exactly one thing is broken, with the id to be found.

    A legal group is drawn as by `calls`, and one thing is changed on one rank; a limit of `backend` is broken on all
    ranks. `way` is one of `ways_to_break`; without it, a way is drawn.

    Raises `CallError` for an unknown way, or an op whose calls cannot be drawn.

    >>> from hypothesis import find
    >>> broken = find(broken_calls("c10d::gather_", way="no such root"), lambda broken: True)
    >>> broken.id, broken.change
    ('GA4', 'root_rank is 2')
    """
    row = _drawable(op, backend, most_ranks)
    ways = ways_of(row, backend)
    if way is not None and way not in ways:
        raise CallError(f"way={way!r}, but {row.op} can be broken by {', '.join(map(repr, ways))}")
    return _broken_calls(row, backend, most_ranks, tuple(ways) if way is None else (way,))


@st.composite
def _broken_calls(draw: st.DrawFn, row: Row, backend: str | None, most_ranks: int, ways: tuple[str, ...]) -> Broken:
    way = draw(st.sampled_from(ways))
    return ways_of(row, backend)[way](Scene(draw, row, backend, max(2, most_ranks)))


def ways_to_break(op: Any, *, backend: str | None = "gloo") -> tuple[str, ...]:
    """Return the names of the ways in which `broken_calls` breaks calls of `op`.

    >>> ways_to_break("_c10d_functional::wait_tensor"), ways_to_break("c10d::barrier")
    (('sparse',), ('another collective', 'a missing rank'))
    """
    return tuple(ways_of(_drawable(op, backend, 8), backend))


def sample(strategy: st.SearchStrategy[_T], count: int, *, seed: int = 0) -> list[_T]:
    """Return `count` examples that `strategy` draws, the same for one seed; fewer where there are no more.

    This serves programs that run many examples and shrink none. Hypothesis's database keeps nothing of them.

    >>> len(sample(calls("c10d::allreduce_"), 5))
    5
    """
    examples: list[_T] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        phases=[hypothesis.Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(value: _T) -> None:
        examples.append(value)

    collect()
    return examples[:count]


def _drawable(op: Any, backend: str | None, most_ranks: int) -> Row:
    row = lookup(op)
    why = drawable(row) or untaken(row, backend)
    least = 2 if row.rule.point_to_point else 1
    if isinstance(most_ranks, bool) or not isinstance(most_ranks, int) or most_ranks < least:
        raise CallError(f"most_ranks={most_ranks!r}, but {row.op} needs at least {least}")
    if why:
        raise CallError(f"no strategy draws calls of {row.op}: {why}")
    return row
