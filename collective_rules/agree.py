"""What the ranks of a group disagree on: every name that they bind, unified."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from collective_rules.backends import limits_of
from collective_rules.bind import bind
from collective_rules.bound import Bound, Key, Slot
from collective_rules.call import Call, must_be_call
from collective_rules.errors import CallError
from collective_rules.finding import ERROR, UNDECIDABLE, Finding
from collective_rules.memory import memory_order, same_order
from collective_rules.messages import ranks_text, worst_first
from collective_rules.ops import Row
from collective_rules.partners import point_to_point
from collective_rules.spec import Spec
from collective_rules.symbols import hint
from collective_rules.unify import Binding, disagreement, odd_ones, unify

__all__ = ["agree"]


def agree(calls: Iterable[Call], backend: str | None = None) -> tuple[Finding, ...]:
    """Return what the ranks of one group disagree on; empty where the calls belong together.

    `calls` are the calls of one collective, one for each rank of its group, in any order (of point-to-point ops, one
    for each rank that takes part). One-sided ones have no partner to agree with, and are passed over.

    A finding names the constraint, the name, and each value with its ranks; `ranks` are the odd ones out where there is
    a majority. Calls that are wrong by themselves are `check`'s business.

    A backend's own limits are `check`'s business too; its name only decides which forms a call may have.

    Raises `CallError` for an unknown backend, and for calls of different groups or two calls of one rank.

    >>> import collective_rules as cr
    >>> calls = [
    ...     cr.call("c10d::_allgather_base_", group=cr.Group(size=4, rank=r), input_tensor=(6 if r == 1 else 5,))
    ...     for r in range(4)
    ... ]
    >>> print(*cr.agree(calls))
    c10d::_allgather_base_: ranks disagree on d   [AGT2]
        input_tensor: d *s -> output_tensor: (W d) *s
                      ^
      d = 5   ranks 0, 2, 3
      d = 6   rank 1
    Every rank must pass tensors of the same sizes; pad them where the data are uneven.
    """
    if not isinstance(calls, Iterable):
        raise CallError(f"{calls!r} is no list: agree takes the calls of several ranks")
    known_calls = [call for call in map(must_be_call, calls) if not call.row.rule.one_sided]
    if not known_calls:
        return ()
    for call in known_calls:
        limits_of(backend, call.row)
    sizes = {call.group.size for call in known_calls}
    if len(sizes) > 1:
        raise CallError(f"calls of groups of {' and '.join(map(str, sorted(sizes)))} ranks cannot be one collective")
    for what in ("name", "ranks"):
        known = dict.fromkeys(getattr(call.group, what) for call in known_calls if getattr(call.group, what))
        if len(known) > 1:
            raise CallError(f"calls of groups of {what} {' and '.join(map(repr, known))} cannot be one collective")
    if all(call.row.rule.point_to_point for call in known_calls):
        return worst_first(point_to_point(known_calls))
    twice = [rank for rank, count in Counter(call.group.rank for call in known_calls).items() if count > 1]
    if twice:
        raise CallError(f"{ranks_text(twice)} made two calls; agree compares the calls of one collective")
    return worst_first(_collective(known_calls, backend))


def _collective(calls: list[Call], backend: str | None) -> Iterator[Finding]:
    first = calls[0]
    rules: dict[str, list[int]] = {}
    for call in calls:
        rules.setdefault(call.row.rule.name, []).append(call.group.rank)
    if len(rules) > 1:
        by_size = sorted(rules.items(), key=lambda item: -len(item[1]))
        speaker = next(call for call in calls if "call" in call.row.rule.constraints.values())
        yield disagreement(
            bind(speaker),
            "call",
            "ranks make different collectives",
            rows=[(name, ranks_text(ranks), "") for name, ranks in by_size],
            names=rules,
            ranks=odd_ones([ranks for _, ranks in by_size]),
        )
        return
    missing = sorted(set(range(first.group.size)) - {call.group.rank for call in calls})
    if missing:
        yield disagreement(
            bind(first),
            "ranks",
            f"{ranks_text(missing)} {'does' if len(missing) == 1 else 'do'} not take part",
            rows=[("taking part", ranks_text(call.group.rank for call in calls), "")],
            names={"missing": missing},
            ranks=tuple(missing),
        )
    bounds = _same_form(calls, backend)
    one_form = len({bound.spelling.form.name for bound in bounds}) == 1
    ranks = frozenset(call.group.rank for call in calls)
    found = unify(_bindings(bounds, sizes=one_form), ranks)
    yield from map(_undecided, found) if _may_be_uneven(calls, backend) else found


def _may_be_uneven(calls: list[Call], backend: str | None) -> bool:
    """Whether the sizes may differ, in a form that only the outputs could tell from the even one."""
    row = calls[0].row
    left_out = any(name not in row.fresh and name not in call.arguments for call in calls for name in row.writes)
    return left_out and "uneven" in _forms(row, backend)


def _undecided(found: Finding) -> Finding:
    return attrs.evolve(found, severity=UNDECIDABLE) if found.names.keys() == {"s"} else found


def _forms(row: Row, backend: str | None) -> list[str]:
    """The forms of the rule that both the op and the backend take."""
    taken = [limit.forms for limit in limits_of(backend, row) if limit.forms is not None]
    return [s.form.name for s in row.spellings if all(s.form.name in forms for forms in taken)]


def _same_form(calls: list[Call], backend: str | None) -> list[Bound]:
    """Bind all calls under one form that fits them all, if there is one."""
    forms = _forms(calls[0].row, backend)
    bounds = [bind(call) for call in calls]
    chosen = dict.fromkeys(bound.spelling.form.name for bound in bounds)
    if len(chosen) > 1:
        for form in dict.fromkeys([*chosen, *forms]):
            again = [bind(call, (form,)) for call in calls]
            if not any(problem.severity == ERROR for bound in again for problem in bound.problems):
                return again
    return bounds


def _bindings(bounds: list[Bound], *, sizes: bool) -> Iterator[Binding]:
    """Yield what every rank binds; of ranks that use different forms, the elements read in place of sizes.

    A list of one is what an op without a list passes.
    """
    single = all(bound.count in (None, 1) for bound in bounds)
    mixed = set(_mixed_orders(bounds))
    for bound in bounds:
        rank = bound.call.group.rank
        yield Binding(("length", None), bound.count or 1, rank, bound, None)
        for key, value, slot in _bound_by(bound, sizes=sizes):
            if key[0] == "order" and key not in mixed:
                continue
            place = (key[0], None, *key[2:]) if single and len(key) > 1 else key
            yield Binding(place, value, rank, bound, slot)


def _bound_by(bound: Bound, *, sizes: bool) -> Iterator[tuple[Key, Any, Slot | None]]:
    call = bound.call
    for key, value in bound.names.items():
        if key[0] == "dtype" or (sizes and key[0] != "length" and key[0] not in call.row.rule.derived):
            yield key, value, bound.origins.get(key)
    if not sizes:
        yield from _elements(bound)
    for attribute in call.row.rule.agreed:
        if attribute != "dtype" and attribute in call.row.entry.attributes:
            yield (attribute,), call.attribute(attribute), None
    orders = {key: (slot, order) for key, slot, order in memory_order(bound)}
    for key, (slot, order) in orders.items():
        if not slot.spec.has_one_order:
            yield key, order, slot


def _mixed_orders(bounds: list[Bound]) -> Iterator[Key]:
    """Yield the keys of the memory orders in which two ranks differ."""
    seen: dict[Key, dict[Any, Spec]] = {}
    for bound in bounds:
        for key, slot, order in memory_order(bound):
            seen.setdefault(key, {}).setdefault((order, tuple(map(hint, slot.spec.shape))), slot.spec)
    for key, specs in seen.items():
        if not all(same_order(a, b) for a, b in itertools.combinations(specs.values(), 2)):
            yield key


def _elements(bound: Bound) -> Iterator[tuple[Key, Any, Slot | None]]:
    """Yield how many elements each tensor that is read has."""
    read = bound.spelling.statement.reads
    for slot in bound.slots:
        if any(slot.part is part for part in read) and slot.rank is None and slot.spec.shape is not None:
            yield ("elements", slot.element), slot.spec.numel, slot
