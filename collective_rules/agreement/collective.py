"""One collective: the names that its calls bind, one call of each rank, are unified."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter
from typing import Any

import attrs

from collective_rules.agreement.unify import Binding, disagreement, odd_ones, unify
from collective_rules.backends import Backend, as_backend, matching_of, orders_of, spellings_of
from collective_rules.binding.binder import bind, bind_as
from collective_rules.binding.bound import LENGTH, Bound, Key, Slot
from collective_rules.binding.compiled import plan_of
from collective_rules.binding.memory import Order, memory_order, same_order
from collective_rules.binding.splits import split_sizes
from collective_rules.call import UNKNOWN, Call
from collective_rules.finding import ERROR, UNDECIDABLE, WARNING, Finding
from collective_rules.messages import call_text, where_text
from collective_rules.ops import Row
from collective_rules.ops.op import EVEN
from collective_rules.spec import Spec
from collective_rules.symbols import hint


def compare(calls: list[Call], backend: str | Backend | None) -> Iterator[Finding]:
    """Yield the disagreements between the calls of one collective: one or more calls, at most one of each rank."""
    rules: dict[str, list[Call]] = {}
    for call in calls:
        rules.setdefault(call.row.meets, []).append(call)
    matching = matching_of(backend)
    if len(rules) > 1:
        meet = len({matching.name_of(call.op, call.row.meets) for call in calls}) == 1
        yield _different(calls, rules, "make different collectives", severity=WARNING if meet else ERROR)
        yield from unify(_in_all(calls), frozenset(call.group.global_rank for call in calls)) if meet else ()
        return
    forms = _own_forms(calls) if calls[0].row.rule.name in matching.one_form else {}
    if len(forms) > 1:
        name = "" if backend is None else as_backend(backend).name
        yield _different(calls, forms, f"take different forms, which are different transfers on {name}", severity=ERROR)
        return
    if _exchange_alike(calls):
        return
    yield from _totals(calls)
    bounds = _same_form(calls, backend)
    one_form = len({bound.spelling.form.name for bound in bounds}) == 1
    ranks = frozenset(call.group.global_rank for call in calls)
    findings = list(unify(_bindings(bounds, backend, sizes=one_form), ranks))
    if any(LENGTH.name in each.names for each in findings):  # the shorter list lacks names of the longer one
        findings = [each for each in findings if each.severity != UNDECIDABLE]
    else:
        lengths = (Binding(LENGTH, bound.count or 1, bound.call.group.global_rank, bound, None) for bound in bounds)
        findings += [attrs.evolve(each, severity=WARNING) for each in unify(lengths, ranks)]
    yield from map(_undecided, findings) if _may_be_uneven(calls, backend) else findings


def _different(calls: list[Call], what: Mapping[str, list[Call]], verdict: str, *, severity: str) -> Finding:
    """Return the finding that ranks do not carry out one collective; `what` they do, with the calls that do it."""
    by_size = sorted(what.items(), key=lambda item: -len(item[1]))
    ranks = {name: [call.group.global_rank for call in alike] for name, alike in by_size}
    return disagreement(
        bind(next(call for call in calls if "call" in call.row.rule.constraints.values())),
        "call",
        f"ranks {verdict}",
        rows=[(name, call_text(alike[0]), where_text(alike)) for name, alike in by_size],
        names=ranks,
        ranks=odd_ones([*ranks.values()]),
        sides=[alike for _, alike in by_size],
        severity=severity,
    )


def _in_all(calls: list[Call]) -> Iterator[Binding]:
    """Yield what calls of several rules have in common: the elements that a rank reads in all, dtypes and arguments."""
    for bound in map(bind, calls):
        rank, read = bound.call.group.global_rank, bound.spelling.statement.reads
        slots = [slot for slot in bound.slots if any(slot.part is part for part in read)]
        if all(slot.spec.shape is not None for slot in slots):
            yield Binding(Key("elements"), sum(slot.spec.numel for slot in slots), rank, bound, slots[0])
        yield from (Binding(Key("dtype"), slot.spec.dtype, rank, bound, slot) for slot in slots[:1])
        yield from (Binding(Key(name), value, rank, bound, None) for name, value in _agreed(bound.call))


def _agreed(call: Call) -> Iterator[tuple[str, Any]]:
    for attribute in call.row.rule.agreed:
        if attribute != "dtype" and attribute in call.row.entry.attributes:
            yield attribute, call.arguments.get(call.row.entry.attributes[attribute])


def _own_forms(calls: list[Call]) -> Mapping[str, list[Call]]:
    """Return the calls by the form that each rank's own tensors have; without those whose tensors do not tell it."""
    forms: dict[str, list[Call]] = {}
    for call in calls:
        bound = bind(call)
        given = (call.arguments.get(name) is not None for name in call.row.reads + call.row.writes)
        if not bound.problems and all(given):
            forms.setdefault(bound.spelling.form.name, []).append(call)
    return forms


def _exchange_alike(calls: list[Call]) -> bool:
    """Return whether all calls are legal by themselves and their split sizes fit pair by pair.

    This is a fast path: for W² pairs it only transposes the split sizes. False means that `unify` has to decide.
    """
    row = calls[0].row
    if len(row.splits) != 2 or len(calls) != calls[0].group.size:
        return False
    legal, seen = plan_of(row).legal, set()
    for call in calls:
        tensors = legal(call) if call.row is row else None
        if not tensors or any(split_sizes(call, part) == EVEN for part in row.entry.splits):
            return False
        seen.add((tensors[0].dtype, tensors[0].shape[1:], call.attribute("group_size")))
    ordered = sorted(calls, key=attrgetter("group.rank"))
    sent, expected = ([split_sizes(call, part) for call in ordered] for part in row.entry.splits)
    return len(seen) == 1 and list(zip(*sent, strict=True)) == list(map(tuple, expected))


def _totals(calls: list[Call]) -> Iterator[Finding]:
    """Yield a finding if split sizes are unknown, and not as many elements are sent as are received."""
    unknown = [call for call in calls if any(call.arguments.get(name) is UNKNOWN for name in call.row.splits)]
    if not unknown or len(calls) != calls[0].group.size:
        return
    sides = [[_elements_of(call, names) for names in (call.row.reads, call.row.writes)] for call in calls]
    counts = [[each for each in side if each is not None] for side in zip(*sides, strict=True)]
    sent, expected = map(sum, counts)
    if len(counts[0]) == len(counts[1]) == len(calls) and sent != expected:
        rows = [
            (f"rank {call.group.global_rank}", f"{a} sent, {b} expected", call.source)
            for call, (a, b) in zip(calls, sides, strict=True)
        ]
        yield disagreement(
            bind(unknown[0]),
            "pairs",
            f"the ranks send {sent} elements in all, but expect {expected}",
            rows=rows,
            names={"sent": sent, "expected": expected},
            ranks=tuple(sorted(call.group.global_rank for call in calls)),
        )


def _elements_of(call: Call, names: tuple[str, ...]) -> int | None:
    specs = [call.arguments.get(name) for name in names]
    if all(isinstance(spec, Spec) and spec.shape is not None for spec in specs):
        count = sum(spec.numel for spec in specs if isinstance(spec, Spec))
        return count if isinstance(count, int) else None
    return None


def _may_be_uneven(calls: list[Call], backend: str | Backend | None) -> bool:
    """Return whether sizes may differ: outputs are left out that would tell the uneven form from the even one."""
    row = calls[0].row
    left_out = any(name not in row.fresh and name not in call.arguments for call in calls for name in row.writes)
    return left_out and "uneven" in _forms(row, backend)


def _undecided(finding: Finding) -> Finding:
    return attrs.evolve(finding, severity=UNDECIDABLE) if finding.names.keys() == {"s"} else finding


def _forms(row: Row, backend: str | Backend | None) -> list[str]:
    """Return the forms of the rule that both the op and the backend take."""
    return [spelling.form.name for spelling in spellings_of(backend, row)]


def _same_form(calls: list[Call], backend: str | Backend | None) -> list[Bound]:
    """Return the calls bound under one form that fits all of them; if there is none, each under its own form."""
    forms = _forms(calls[0].row, backend)
    bounds = [bind(call) for call in calls]
    chosen = dict.fromkeys(bound.spelling.form.name for bound in bounds)
    if len(chosen) > 1:
        for form in dict.fromkeys([*chosen, *forms]):
            again = [bound for call in calls if (bound := bind_as(call, (form,))) is not None]
            fits = not any(problem.severity == ERROR for bound in again for problem in bound.problems)
            if fits and len(again) == len(calls):
                return again
    return bounds


def _bindings(bounds: list[Bound], backend: str | Backend | None, *, sizes: bool) -> Iterator[Binding]:
    """Yield the names that every rank binds; for ranks with different forms, numbers of elements instead of sizes.

    A list of one tensor counts as that tensor.
    """
    single = all(_count(bound) == 1 for bound in bounds)
    orders = [list(_orders(bound, backend)) for bound in bounds]
    mixed = set(_mixed_orders(orders))
    for bound, own_orders in zip(bounds, orders, strict=True):
        rank, to_global = bound.call.group.global_rank, bound.call.group.to_global
        yield Binding(LENGTH, _count(bound), rank, bound, None)
        for key, value, slot in _bound_by(bound, own_orders, sizes=sizes):
            if key.name == "order" and key not in mixed:
                continue
            place = None if single else key.element
            who = tuple([None if each is None else to_global(each) for each in key.ranks])
            yield Binding(Key(key.name, place, who), value, rank, bound, slot)


def _count(bound: Bound) -> int:
    """Return how many tensors travel: one of a list that is reduced, or copied, on the rank itself."""
    return 1 if bound.call.row.entry.one_tensor else bound.count or 1


def _bound_by(bound: Bound, orders: list[Order], *, sizes: bool) -> Iterator[tuple[Key, Any, Slot | None]]:
    call = bound.call
    for key, value in bound.names.items():
        if key.name == "dtype" or (sizes and key != LENGTH and key.name not in call.row.rule.derived):
            yield key, value, bound.origins.get(key)
    if not sizes:
        yield from _elements(bound)
    yield from ((Key(name), value, None) for name, value in _agreed(call))
    for key, slots in _ordered(orders).items():
        slot = max(slots, key=lambda slot: len(_counting(slot.spec)))
        yield key, slot.spec.order or (), slot


def _ordered(orders: Iterable[Order]) -> Mapping[Key, list[Slot]]:
    """Return the tensors whose memory order the ranks must agree on, those whose memory can have several orders."""
    slots: dict[Key, list[Slot]] = {}
    for key, slot, _ in orders:
        if not slot.spec.has_one_order:
            slots.setdefault(key, []).append(slot)
    return slots


def _counting(spec: Spec) -> list[Any]:
    return [size for size in spec.shape if hint(size) != 1]


def common_values(call: Call) -> tuple[list[Any], bool]:
    """Return the values of a call that every rank has to pass alike, and whether the call has other values, too.

    The values are equal for all calls of a legal group. Calls that have equal values, and no others, agree.
    """
    bound = bind_as(call, ("uneven",))  # ranks may take the even form beside ranks that take this one
    if bound is None or bound.problems:
        bound = bind(call)
    row, count = call.row, _count(bound)
    sizes: dict[Any, list[Any]] = {}
    dtypes: dict[Any, str] = {}
    indexed: dict[Any, dict[int, Any]] = {}
    for key, value in bound.names.items():
        place = None if count == 1 else key.element
        if key.name == "dtype":
            dtypes[place] = str(value)
        elif key.ranks:
            indexed.setdefault((key.name, place, key.is_pair), {})[key.ranks[0]] = value
        elif value != () and key != LENGTH and key.name not in row.rule.derived:
            # One list: `d *s` in one form is `*s` in another, and ranks may take different forms.
            sizes.setdefault(place, []).extend(value if isinstance(value, tuple) else [value])
    everyone = range(call.group.size)
    common = {
        (name, place): [values[rank] for rank in everyone]
        for (name, place, is_pair), values in indexed.items()
        if not is_pair and {*everyone} == values.keys()
    }
    has_own = len(common) < len(indexed)
    orders = {} if has_own else {key: sorted({*orders}) for key, orders in _read_orders(bound)}
    attributes = [str(call.attribute(name)) for name in row.rule.agreed]
    return [row.meets, count, sizes, dtypes, common, orders, attributes], has_own


def _read_orders(bound: Bound) -> Iterator[tuple[Key, list[tuple[int, ...]]]]:
    """Yield the memory orders of the tensors that are read; of those that are written where the rank reads none."""
    reads = bound.spelling.statement.reads
    for key, slots in _ordered(memory_order(bound)).items():
        read = [slot for slot in slots if any(slot.part is part for part in reads)]
        yield key, [slot.spec.order or () for slot in read or slots]


def _orders(bound: Bound, backend: str | Backend | None) -> Iterator[Order]:
    """Yield the memory orders that the ranks must agree on; none for a rule that does not speak of them."""
    if "order" in bound.call.row.rule.constraints.values():
        yield from memory_order(bound, orders_of(backend, bound))


def _mixed_orders(orders: list[list[Order]]) -> Iterator[Key]:
    """Yield the keys of the memory orders that differ between ranks."""
    seen: dict[Key, dict[Any, Spec]] = {}
    for own in orders:
        for key, slot, order in own:
            seen.setdefault(key, {}).setdefault((order, tuple(map(hint, slot.spec.shape))), slot.spec)
    for key, specs in seen.items():
        if not all(same_order(a, b) for a, b in itertools.combinations(specs.values(), 2)):
            yield key


def _elements(bound: Bound) -> Iterator[tuple[Key, Any, Slot | None]]:
    """Yield the number of elements of each tensor that is read."""
    read = bound.spelling.statement.reads
    for slot in bound.slots:
        if any(slot.part is part for part in read) and slot.rank is None and slot.spec.shape is not None:
            yield Key("elements", slot.element), slot.spec.numel, slot
