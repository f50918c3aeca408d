"""Draws the examples of a conformance run, as data: the same examples for the same seed.

It knows how hypothesis draws a list, the simplest example, and the smallest that fails. Of a backend it knows the table
of limits, and the (reduce op, dtype) that were measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException

from collective_rules.backends import spellings_of, table_of
from collective_rules.call import Call, call
from collective_rules.ops import Row
from collective_rules.records import to_record
from collective_rules.spec import Spec
from collective_rules.testing.broken import Broken, Scene, ways_of
from collective_rules.testing.drawing import Wish, draw_calls, legal_dtypes, untaken
from collective_rules.testing.strategies import sample

Calls = tuple[Call, ...]
Kind = tuple[str, torch.dtype]
"""A reduce op ("" where there is none) and a dtype."""

_ENOUGH_RANKS = 3
"""A sum of bools takes three ranks to be told from others: in `tensors`, no two neighbours are True at one place."""


@attrs.frozen
class Example:
    """A group of calls to try; where it is broken: in which `way`, the `id` of the constraint, and the `change`."""

    op: str
    calls: Calls
    way: str = ""
    id: str = ""
    change: str = ""


@attrs.frozen
class ExamplePlan:
    """Draws the examples of each op.

    - `sizes`: those of groups. `examples`: the number of legal examples; `per_way`: that of broken ones for each way.
    - `table`: the backend whose limits say which calls are legal; None where the rules alone do.
    - `seed`: another number draws other examples.
    - `ids`: the constraints and limits to break, all where it is empty; `spared`: those not to break.
    """

    sizes: tuple[int, ...]
    examples: int
    seed: int
    table: str | None = None
    ids: frozenset[str] = frozenset()
    spared: frozenset[str] = frozenset()

    @property
    def per_way(self) -> int:
        """The number of broken examples for each way: a tenth of that of legal ones, and at least 1."""
        return max(1, (self.examples + 5) // 10) if self.examples else 0

    def sizes_for(self, row: Row) -> tuple[int, ...]:
        """Return the sizes of groups in which the op can be called: a sender needs a receiver."""
        return tuple(size for size in self.sizes if size > 1 or not row.rule.point_to_point)

    def untaken(self, row: Row) -> str:
        """Return why no call of the op is legal by the table, "" where some is."""
        return untaken(row, self.table)

    def takes_lists(self, row: Row) -> bool:
        """Return whether a list of several tensors is legal, where torch.distributed passes one.

        >>> from collective_rules.ops import lookup
        >>> [ExamplePlan((2,), 1, 0, table).takes_lists(lookup("c10d::allreduce_")) for table in ("gloo", None)]
        [True, False]
        """
        return not row.entry.one_tensor or (self.table is not None and table_of(self.table).lists)

    def _most(self, row: Row) -> int:
        """Return how many tensors a list holds at most."""
        return Wish().max_tensors if self.takes_lists(row) else 1

    def kinds(self, row: Row) -> Iterator[tuple[Kind, bool | None, Calls]]:
        """Yield every (reduce op, dtype), whether the table admits it (None without a table), and a small call of it.

        >>> from collective_rules.ops import lookup
        >>> plan = ExamplePlan((1, 2), 10, 0, "gloo")
        >>> next(plan.kinds(lookup("c10d::allreduce_")))
        (('sum', torch.float32), True, (<c10d::allreduce_ on rank 0 of 2, ...>, <c10d::allreduce_ on rank 1 of 2, ...>))
        """
        sizes = self.sizes_for(row)
        size = max([each for each in sizes if each <= _ENOUGH_RANKS], default=min(sizes))
        kinds = legal_dtypes(row, None, size)
        admitted = None
        if self.table is not None:
            admitted = () if self.untaken(row) else legal_dtypes(row, self.table, size)
        table = self.table if admitted else None
        usual, form = (admitted or kinds)[:1], spellings_of(table, row)[0].form.name
        wish = Wish(
            min_ranks=size, min_dims=1, min_size=3, straight=True, dtypes=usual, form=form, max_tensors=self._most(row)
        )
        small = simplest(_legal(row, table, (size,), wish))
        if not any(isinstance(leaf, Spec) for one in small for leaf in _leaves(tuple(one.arguments.values()))):
            return
        for kind in kinds:
            calls = tuple(_of_kind(one, usual[0][1], kind) for one in small)
            yield kind, None if admitted is None else kind in admitted, calls

    def legal(self, row: Row, kinds: tuple[Kind, ...] | None) -> list[Example]:
        """Draw the legal examples, of the (reduce op, dtype) in `kinds`; None: those that the table admits.

        >>> from collective_rules.ops import lookup
        >>> plan = ExamplePlan((1, 2), 10, 0, "gloo")
        >>> plan.legal(lookup("c10d::gather_"), None) == plan.legal(lookup("c10d::gather_"), None)
        True
        """
        if self.untaken(row) or kinds == ():
            return []
        drawn = collected(self.strategy(row, kinds), self.examples, f"{self.seed} {row.op}")
        return [Example(row.op, calls) for calls in drawn]

    def optional(self, row: Row, kinds: tuple[Kind, ...] | None) -> list[Example]:
        """Draw examples that a backend may take or not: lists of several tensors, and ops that the table lacks.

        >>> from collective_rules.ops import lookup
        >>> (example,) = ExamplePlan((1,), 1, 0).optional(lookup("c10d::broadcast_"), None)
        >>> len(example.calls[0].arguments["tensors"]) > 1
        True
        """
        strategy: st.SearchStrategy[Calls] | None = None
        if self.untaken(row):
            strategy = _legal(row, None, self.sizes_for(row), Wish(max_tensors=self._most(row)))
        elif not self.takes_lists(row) and kinds != ():
            strategy = _legal(row, self.table, self.sizes_for(row), Wish(dtypes=kinds, min_tensors=2))
        drawn = [] if strategy is None else collected(strategy, self.per_way, f"{self.seed} {row.op} optional")
        return [Example(row.op, calls) for calls in drawn]

    def strategy(self, row: Row, kinds: tuple[Kind, ...] | None) -> st.SearchStrategy[Calls]:
        """Return the strategy from which `legal` draws."""
        return _legal(row, self.table, self.sizes_for(row), Wish(dtypes=kinds, max_tensors=self._most(row)))

    def broken(self, row: Row, kinds: tuple[Kind, ...] | None) -> list[Example]:
        """Draw some broken examples for each way to break a call of the op, with two ranks or more."""
        found: list[Example] = []
        if self.untaken(row) or kinds == ():
            return found
        sizes = tuple(size for size in self.sizes if size > 1) or (2,)
        for way, broken in ways_of(row, self.table).items():
            strategy = _broken(row, self.table, sizes, kinds, self._most(row), broken)
            drawn = collected(strategy, self.per_way, f"{self.seed} {row.op} {way}")
            found += [Example(row.op, each.calls, way, each.id, each.change) for each in drawn if self.breaks(each.id)]
        return found

    def breaks(self, id: str) -> bool:
        """Return whether calls that violate a constraint or limit are to be tried."""
        return id not in self.spared and (not self.ids or id in self.ids)


# -- strategies


@st.composite
def _legal(draw: st.DrawFn, row: Row, table: str | None, sizes: tuple[int, ...], wish: Wish) -> Calls:
    size = draw(st.sampled_from(sizes))
    return draw_calls(draw, row, table, size, attrs.evolve(wish, min_ranks=size))


@attrs.frozen(slots=False)
class _MeasuredScene(Scene):
    """A scene in which all ranks take part, with a (reduce op, dtype) that was measured."""

    kinds: tuple[Kind, ...] | None = None
    most: int = Wish().max_tensors

    def _wish(self, wish: Mapping[str, Any]) -> Wish:
        ranks = {} if wish.get("single_rank") else {"min_ranks": max(wish.get("min_ranks", 1), self.most_ranks)}
        dtypes = {} if self.kinds is None else {"dtypes": self.kinds}
        return super()._wish({**dtypes, "max_tensors": self.most, **wish, **ranks})


@st.composite
def _broken(
    draw: st.DrawFn,
    row: Row,
    table: str | None,
    sizes: tuple[int, ...],
    kinds: tuple[Kind, ...] | None,
    most: int,
    broken: Callable[[Scene], Broken],
) -> Broken:
    return broken(_MeasuredScene(draw, row, table, draw(st.sampled_from(sizes)), kinds, most))


# -- asking hypothesis


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def collected(strategy: st.SearchStrategy[Any], count: int, seeded: str) -> list[Any]:
    """Return up to `count` examples, the same for the same text; fewer where there are no more.

    >>> collected(st.integers(0, 1), 10, "some text")
    [0, 1]
    """
    found: list[Any] = []
    if count:
        _asked(lambda: found.extend(sample(strategy, count, seed=_number(seeded))))
    return found


def simplest(strategy: st.SearchStrategy[Any]) -> Any:
    """Return the example to which `strategy` shrinks.

    >>> simplest(st.integers(3, 9))
    3
    """
    return collected(strategy, 1, "")[0]


class _FoundError(Exception):
    """An example fails."""


def smallest(
    strategy: st.SearchStrategy[Calls], fails: Callable[[Calls], bool], count: int, seeded: str
) -> Calls | None:
    """Return the smallest failing example, shrunk from the first among `count` that fails; None where none does.

    `fails` must answer the same for the same example.
    """
    best: list[Calls] = []

    @seed(_number(seeded))
    @settings(
        max_examples=count,
        phases=[Phase.generate, Phase.shrink],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
        report_multiple_bugs=False,
    )
    @given(strategy)
    def look(example: Calls) -> None:
        if fails(example):
            best[:] = [example]
            raise _FoundError

    _asked(look)
    return best[0] if best else None


def _asked(question: Callable[[], None]) -> None:
    """Run hypothesis; ignore its own errors: it finds nothing where the value to be changed has no other."""
    try:
        question()
    except BaseException as error:
        # Hypothesis 6.170 turns a Ctrl-C that comes before it has started into an AssertionError (core.py:2290).
        chain: BaseException | None = error
        while chain is not None:
            if isinstance(chain, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            chain = chain.__context__
        if not isinstance(error, (_FoundError, HypothesisException)):
            raise


def key_of(calls: Calls) -> str:
    """Return a text that is equal for equal calls."""
    return json.dumps([to_record(one) for one in calls])


# -- one call in another kind


def _of_kind(one: Call, old: torch.dtype, kind: Kind) -> Call:
    reduce_op, dtype = kind
    changed = {name: _cast(value, old, dtype) for name, value in one.arguments.items()}
    if one.row.reduce_op:
        changed[one.row.reduce_op] = reduce_op
    return call(one.op, group=one.group, **changed)


def _cast(value: Any, old: torch.dtype, new: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(item, old, new) for item in value)
    return Spec(value.shape, new, value.stride) if isinstance(value, Spec) and value.dtype is old else value


def _leaves(value: Sequence[Any]) -> Iterator[Any]:
    for item in value:
        if isinstance(item, tuple):
            yield from _leaves(item)
        else:
            yield item
