"""What a backend's table says of generated calls: laws of a backend that cannot be run here.

Each call is judged by the table as it is, and must be judged alike afterwards. So these laws show that each entry of
each column matters to some call; whether the backend is so, they do not know. The calls are legal by the rules: as
drawn, of every dtype and reduce op, and beyond each limit of the backend, also of ops for which it does not hold.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument

import collective_rules as cr
from collective_rules.backends import BACKENDS
from collective_rules.backends.columns import sets
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.call import on_device
from collective_rules.testing.broken.limits import WAYS
from collective_rules.testing.broken.scene import Scene
from collective_rules.testing.drawing import DTYPES, Wish, draw_calls, drawable
from tests.backend_cases import BEYOND, EDGES, LEGAL, Case
from tests.laws import MOST_RANKS, Law, Post, drawn, of_kind, posted

__all__ = ["generated_laws_of", "laws_by_hand"]

Group = Sequence[cr.Call]


@functools.cache
def generated_laws_of(backend: str, op: str, *, by_id: bool = True) -> tuple[Law, ...]:
    """Return the laws of generated calls, those of every dtype and reduce op first.

    `by_id`: each finding counts; else how severe the worst one of a call is, whichever limit it comes from.
    """
    groups = enumerate(_legal_groups(backend, op))
    return tuple(_law(backend, f"{op}: {what}, {place}", group, by_id) for place, (what, group) in groups)


@functools.cache
def _legal_groups(backend: str, op: str) -> tuple[tuple[str, Group], ...]:
    row = cr.lookup(op)
    if drawable(row):
        return ()
    groups = [*_of_every_kind(row), *_beyond(backend, row)]
    groups += [("legal by the rule", group) for group in drawn(_legal(row, Wish()), 18)]
    return tuple(
        (what, group)
        for what, group in groups
        if not any(found.severity == "error" for call in group for found in cr.check(call))
    )


@functools.cache
def laws_by_hand(backend: str) -> tuple[Law, ...]:
    """Return the laws of the calls that are written by hand: some beyond each limit, and legal ones."""
    own = {limit.id for limit in BACKENDS[backend].limits}
    cases = [(id_, case) for id_, case in (*BEYOND.items(), *EDGES) if id_ in own]
    cases += [(f"legal, {place}", case) for place, case in enumerate(LEGAL.get(backend, ()))]
    return tuple(
        Law(name, functools.partial(_case_is_judged, backend, case, _judged_case(backend, case)), True)
        for name, case in cases
    )


def _case_is_judged(backend: str, case: Case, before: set[tuple[str, str]]) -> None:
    assert before == _judged_case(backend, case)


def _judged_case(backend: str, case: Case) -> set[tuple[str, str]]:
    return _ids(cr.check(case.call(backend), case.backend(backend)))


def _law(backend: str, name: str, group: Group, by_id: bool) -> Law:
    posts = tuple(map(posted, group))
    return Law(name, functools.partial(_is_judged, backend, posts, _judged(backend, group, by_id), by_id), True)


def _is_judged(backend: str, posts: Sequence[Post], before: list[Any], by_id: bool) -> None:
    """Check finds the same as before; one id may be found twice in a call."""
    assert before == _judged(backend, [post.call for post in posts], by_id)


def _judged(backend: str, group: Group, by_id: bool) -> list[Any]:
    judge = _ids if by_id else _worst
    return [
        judge(cr.check(placed, named))
        for call in group
        for placed in (call, *(on_device(call, device) for device in _devices(backend)))
        for named in _named(backend)
    ]


def _ids(findings: Sequence[cr.Finding]) -> set[tuple[str, str]]:
    return {(found.id, found.severity) for found in findings}


def _worst(findings: Sequence[cr.Finding]) -> str:
    return findings[0].severity if findings else ""


@functools.cache
def _devices(backend: str) -> tuple[str, ...]:
    """Return the types of device on which some of the backend's limits hold alone."""
    return tuple(dict.fromkeys(device for limit in BACKENDS[backend].limits for device in limit.on))


@functools.cache
def _named(backend: str) -> tuple[cr.Backend, ...]:
    """Return the backend with nothing told, and with each version at which one of its limits begins or ends."""
    facts = {(fact, least) for limit in BACKENDS[backend].limits for fact, least in limit.before.items()}
    told: Any = {}
    for fact, (major, *minor) in facts:
        told.setdefault(fact, set()).update({(major - 1, *minor), (major, *minor)})
    every = [dict(zip(told, values, strict=True)) for values in itertools.product(*told.values())] if told else []
    return (cr.Backend(backend), *(cr.Backend(backend, **values) for values in every))


@st.composite
def _legal(draw: st.DrawFn, row: cr.Row, wish: Wish, most_ranks: int = MOST_RANKS) -> Group:
    return draw_calls(draw, row, None, most_ranks, wish)


_GRID = ((2, 2, 1), (1, 2, 1), (3, 2, 1), (2, 0, 1), (1, 0, 1), (2, 2, 2))
"""The group's size, the rows of each tensor, and the tensors in a list."""


def _of_every_kind(row: cr.Row) -> Iterator[tuple[str, Group]]:
    """Yield calls of every dtype, reduced in every way, in groups of some sizes, some of them empty."""
    form = row.spellings[0].form.name
    reduce_ops = (row.entry.reduce_ops or REDUCE_OPS) if row.reduce_op else ("",)
    for size, rows, count in _GRID:
        if size == 1 and row.rule.point_to_point:
            continue
        exactly = {"min_ranks": size, "single_rank": size == 1, "min_tensors": count, "max_tensors": count}
        wish = Wish(**exactly, min_dims=1, min_size=rows or 1, straight=True, form=form)
        (group,) = drawn(_legal(row, wish, size), 1)
        calls = [call for call in (group if rows else _emptied(group)) if call.row is row][:1]
        for reduce_op in reduce_ops:
            each = [call for dtype in DTYPES for call in of_kind(calls, reduce_op, dtype)]
            yield f"{reduce_op or 'dtypes'}, {size} ranks, {rows} rows, {count} in a list", each


def _emptied(group: Group) -> list[cr.Call]:
    """Return the group with tensors of no elements, whose shapes fit each other as before."""

    def empty(value: Any) -> Any:
        if isinstance(value, cr.Spec):
            return cr.Spec((0,) * len(value.shape), value.dtype)
        return [empty(item) for item in value] if isinstance(value, (list, tuple)) else value

    found = []
    for call in group:
        arguments = posted(call).arguments
        tensors = {name: empty(value) for name, value in arguments.items() if name not in call.row.splits}
        splits = {name: [0] * call.group.size for name in call.row.splits if arguments.get(name)}
        found.append(cr.call(call.op, group=call.group, **{**arguments, **tensors, **splits}))
    return found


def _beyond(backend: str, row: cr.Row) -> Iterator[tuple[str, Group]]:
    """Yield groups beyond each limit, by each of its columns, and by each flag that no limit sets."""
    limits = BACKENDS[backend].limits
    for column, way in WAYS.items():
        setting = [limit for limit in limits if sets(limit, column)]
        if not setting and getattr(limits[0], column) is False:
            setting = [attrs.evolve(limits[0], **{column: True})]
        for limit in setting:
            if way.applies(row, limit):
                with contextlib.suppress(InvalidArgument, ValueError, IndexError):  # the op has nothing to change so
                    yield from (
                        (f"beyond {limit.id}, {column}", group) for group in drawn(_ways(row, limit, column), 6)
                    )


@st.composite
def _ways(draw: st.DrawFn, row: cr.Row, limit: Any, column: str) -> Group:
    return WAYS[column].calls(Scene(draw, row, None, MOST_RANKS), limit)[0]
