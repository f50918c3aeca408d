"""What the ranks of a group disagree on: every name that they bind, unified."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import attrs
import torch

from collective_rules.backends import limits_of
from collective_rules.batch import members
from collective_rules.bind import bind
from collective_rules.bound import Bound, Key, Slot, key_text
from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.finding import ERROR, UNDECIDABLE, WARNING, Finding
from collective_rules.memory import memory_order
from collective_rules.messages import compose, ranks_text, value_text, worst_first
from collective_rules.notation import Part, Rest, Size
from collective_rules.ops import Row
from collective_rules.rules import KINDS
from collective_rules.symbols import hint

__all__ = ["agree"]


@attrs.frozen
class _Binding:
    """One rank binds `key` to `value`; `slot` is the tensor that did, if one did."""

    key: Key
    value: Any
    rank: int
    bound: Bound
    slot: Slot | None


def agree(calls: Iterable[Call], backend: str | None = None) -> tuple[Finding, ...]:
    """Return what the ranks of one group disagree on; empty where the calls belong together.

    `calls` are the calls of one collective, one for each rank of its group, in any order (of point-to-point ops, one
    for each rank that takes part). One-sided ones have no partner to agree with, and are passed over.

    A finding names the constraint, the name, and each value with its ranks; `ranks` are the odd ones out where there is
    a majority. Calls that are wrong by themselves are `check`'s business.

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
    known_calls = [call for call in calls if not call.row.rule.one_sided]
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
    if any(call.row.rule.point_to_point for call in known_calls):
        return worst_first(_point_to_point(known_calls))
    twice = [rank for rank, count in Counter(call.group.rank for call in known_calls).items() if count > 1]
    if twice:
        raise CallError(f"{ranks_text(twice)} made two calls; agree compares the calls of one collective")
    return worst_first(_collective(known_calls))


def _collective(calls: list[Call]) -> Iterator[Finding]:
    first = calls[0]
    rules: dict[str, list[int]] = {}
    for call in calls:
        rules.setdefault(call.row.rule.name, []).append(call.group.rank)
    if len(rules) > 1:
        bound = bind(first)
        rows = [(f"{name}", ranks_text(ranks), "") for name, ranks in rules.items()]
        yield _finding(bound, "call", "ranks make different collectives", rows, rules, None)
        return
    missing = sorted(set(range(first.group.size)) - {call.group.rank for call in calls})
    if missing:
        verdict = f"{ranks_text(missing)} {'does' if len(missing) == 1 else 'do'} not take part"
        rows = [("taking part", ranks_text(call.group.rank for call in calls), "")]
        yield _finding(bind(first), "ranks", verdict, rows, {"missing": missing}, None, tuple(missing))
    bounds = _same_form(calls)
    if len({bound.spelling.form.name for bound in bounds}) > 1:
        yield from _flat(bounds)
        bounds = []
    yield from _unify(_bindings(bounds), len(calls))


def _same_form(calls: list[Call]) -> list[Bound]:
    """Bind all calls under one form that fits them all, if there is one."""
    bounds = [bind(call) for call in calls]
    forms = dict.fromkeys(bound.spelling.form.name for bound in bounds)
    if len(forms) > 1:
        for form in forms:
            again = [bind(call, (form,)) for call in calls]
            if not any(problem.severity == ERROR for bound in again for problem in bound.problems):
                return again
    return bounds


def _flat(bounds: list[Bound]) -> Iterator[Finding]:
    """Ranks that use different forms of one rule still move equally many elements."""
    counts: dict[Any, list[int]] = {}
    for bound in bounds:
        if all(slot.spec.shape is not None for slot in bound.slots):
            counts.setdefault(sum(slot.spec.numel for slot in bound.slots), []).append(bound.call.group.rank)
    if len(counts) > 1:
        rows = [("elements", str(count), ranks_text(ranks)) for count, ranks in counts.items()]
        yield _finding(bounds[0], "sizes", "ranks disagree on the number of elements", rows, counts, None)


def _bindings(bounds: list[Bound]) -> Iterator[_Binding]:
    for bound in bounds:
        rank, call = bound.call.group.rank, bound.call
        for key, value in bound.names.items():
            if key[0] not in call.row.rule.derived:
                yield _Binding(key, value, rank, bound, bound.origins.get(key))
        for attribute in call.row.rule.agreed:
            if attribute != "dtype" and attribute in call.row.entry.attributes:
                yield _Binding((attribute,), call.attribute(attribute), rank, bound, None)
        orders = {key: (slot, order) for key, slot, order in memory_order(bound)}
        for key, (slot, order) in orders.items():
            if not slot.spec.has_one_order:
                yield _Binding(key, order, rank, bound, slot)


def _unify(bindings: Iterable[_Binding], count: int) -> Iterator[Finding]:
    by_key: dict[Key, list[_Binding]] = {}
    for binding in bindings:
        by_key.setdefault(binding.key, []).append(binding)
    reported: set[tuple[str, Any]] = set()
    for key, bound_by in by_key.items():
        values: dict[Any, list[_Binding]] = {}
        for binding in bound_by:
            values.setdefault(_comparable(binding.value), []).append(binding)
        if len(values) > 1 and (key[0], key[1] if len(key) > 1 else None) not in reported:
            finding = _disagreement(key, values)
            if finding is not None:
                if len(key) <= 2:  # a disagreement on a whole tensor is reported once, one on a pair for each pair
                    reported.add((key[0], key[1] if len(key) > 1 else None))
                yield finding


def _comparable(value: Any) -> Any:
    """Return `value` as something to compare and hash: a SymInt's hint, or its name where it has none."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_comparable, value))
    if isinstance(value, torch.SymInt):
        number = hint(value)
        return str(value) if number is None else number
    return value if isinstance(value, Hashable) else str(value)


def _is_open(value: Any) -> bool:
    """Whether only the run will tell what `value` is."""
    if isinstance(value, tuple):
        return any(map(_is_open, value))
    return value is None or (isinstance(value, torch.SymInt) and hint(value) is None)


def _disagreement(key: Key, values: dict[Any, list[_Binding]]) -> Finding | None:
    groups = list(values.values())
    groups.sort(key=lambda group: (-len(group), group[0].rank))
    speaker = groups[-1][0]
    kind = _kind(speaker.bound.call.row, key)
    indexed = len(key) > 2
    name = key_text(key) if len(key) > 1 else str(key[0])
    rows = [(name, value_text(_shown(group[0].value)), _where(group)) for group in groups]
    majority = len(groups[0]) > len(groups[1])
    odd = tuple(sorted(binding.rank for group in groups[1 if majority else 0 :] for binding in group))
    ranks_by_value = {b.rank: b.value for b in sorted((b for group in groups for b in group), key=lambda b: b.rank)}
    severity = WARNING if _same_elements(speaker, groups) else ERROR
    if any(_is_open(group[0].value) for group in groups):
        severity = UNDECIDABLE
    who = (
        f"ranks {key[-2]} and {key[-1]} disagree on {name}"
        if indexed and len(key) == 4
        else f"ranks disagree on {name}"
    )
    return _finding(speaker.bound, kind, who, rows, {name: ranks_by_value}, speaker, odd, severity)


def _shown(value: Any) -> Any:
    return str(value).removeprefix("torch.") if not isinstance(value, tuple) else value


def _where(group: list[_Binding]) -> str:
    sources = dict.fromkeys(binding.bound.call.source for binding in group if binding.bound.call.source)
    where = ranks_text(binding.rank for binding in group)
    return f"{where}   {', '.join(list(sources)[:3])}" if sources else where


def _kind(row: Row, key: Key) -> str:
    kinds = row.rule.constraints.values()
    name = key[0]
    if name in ("dtype", "order", "reduce_op", "root", "tag"):
        return str(name)
    if name == "length":
        return "lists"
    if name == "roots":
        return "root"
    if name in row.rule.agreed:
        return "argument"
    return "pairs" if len(key) > 2 and "pairs" in kinds else "sizes"


def _same_elements(speaker: _Binding, groups: list[list[_Binding]]) -> bool:
    """Whether only the shape differs, of a part that is one `*s`."""
    slot = speaker.slot
    if slot is None or len(slot.part.sizes) != 1:
        return False
    size = slot.part.sizes[0]
    if not isinstance(size, Rest) or speaker.key[0] != size.name:
        return False
    shapes = [_comparable(group[0].value) for group in groups]
    return all(isinstance(n, int) for shape in shapes for n in shape) and len(set(map(math.prod, shapes))) == 1


def _finding(
    bound: Bound,
    kind: str,
    verdict: str,
    rows: list[tuple[str, str, str]],
    names: dict[Any, Any],
    speaker: _Binding | None,
    ranks: tuple[int, ...] = (),
    severity: str = ERROR,
) -> Finding:
    row = bound.call.row
    id_ = row.rule.id_of(kind)
    advice = KINDS[kind].advice
    message = compose(row, bound.spelling, _place(speaker), verdict, id_, rows, advice)
    return Finding(id_, severity, message, ranks, names)


def _place(speaker: _Binding | None) -> tuple[Part | None, Size | None]:
    """Where in the rule's text the speaker's name stands."""
    slot = speaker.slot if speaker is not None else None
    parts = speaker.bound.spelling.statement.parts if speaker is not None else ()
    if speaker is None or slot is None or not any(slot.part is part for part in parts):
        return None, None
    return slot.part, next((size for size in slot.part.sizes if getattr(size, "name", "") == speaker.key[0]), None)


def _point_to_point(calls: list[Call]) -> Iterator[Finding]:
    """Match sends with receives, in the order in which each rank lists them, then compare the pairs."""
    singles = [member for call in calls for member in _members(call)]
    sends = [call for call in singles if call.row.rule.name == "send"]
    receives = [call for call in singles if call.row.rule.name == "recv"]
    others = [call for call in singles if not call.row.rule.point_to_point]
    if others:
        bound = bind(others[0])
        rows = [(call.op, ranks_text([call.group.rank]), "") for call in singles]
        yield _finding(bound, "call", "ranks make different collectives", rows, {}, None)
        return
    for receive in sorted(receives, key=lambda call: call.attribute("peer") is None):
        send = _partner(receive, sends)
        if send is None:
            yield _alone(receive)
            continue
        sends.remove(send)
        yield from _unify(_pair(send, receive), 2)
    for send in sends:
        yield _alone(send)


def _members(call: Call) -> list[Call]:
    """The single calls of a batch; none of a malformed one, which `check` reports."""
    try:
        return list(members(call))
    except CallError:
        return []


def _partner(receive: Call, sends: list[Call]) -> Call | None:
    source = receive.attribute("peer")
    meant = [
        send for send in sends if send.attribute("peer") == receive.group.rank and source in (None, send.group.rank)
    ]
    tagged = [send for send in meant if send.attribute("tag") == receive.attribute("tag")]
    return next(iter(tagged or meant), None)


def _pair(send: Call, receive: Call) -> Iterator[_Binding]:
    """What both ends bind: the receiver's unknown source is the sender."""
    for call in (send, receive):
        bound, rank = bind(call), call.group.rank
        for key, value in bound.names.items():
            pair = (key[0], key[1], send.group.rank, receive.group.rank) if key[0] == "s" else key
            yield _Binding(pair, value, rank, bound, bound.origins.get(key))
        yield _Binding(("tag",), call.attribute("tag"), rank, bound, None)


def _alone(call: Call) -> Finding:
    bound, peer = bind(call), call.attribute("peer")
    whom = "any rank" if peer is None else f"rank {peer}"
    what = (
        f"waits for {whom}, which sends nothing"
        if call.row.rule.name == "recv"
        else f"sends to {whom}, which waits for nothing"
    )
    rows = [("tag", str(call.attribute("tag")), ranks_text([call.group.rank]))]
    return _finding(bound, "partner", f"rank {call.group.rank} {what}", rows, {}, None, (call.group.rank,))
