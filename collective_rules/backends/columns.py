"""The columns of `Limit`, each stated once: `check`, the strategies, the reference page and the tests read limits here.

`SCOPES` name the ops that a limit holds for, `CONDITIONS` say when it matters, and `DEMANDS` say what it demands of a
call. Nothing here knows a particular backend. A column that stands in no table is an error wherever a limit sets it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import attrs
import torch

from collective_rules.backends.backend import Backend
from collective_rules.backends.limit import Limit
from collective_rules.binding.batch import members
from collective_rules.binding.binder import bind_as
from collective_rules.binding.bound import Bound, Slot
from collective_rules.binding.memory import (
    has_whole_pieces,
    layout_fault,
    memory_order,
    mixed_orders,
    overlaps,
    own_layout,
    travels,
)
from collective_rules.binding.splits import split_sizes
from collective_rules.finding import ERROR, WARNING
from collective_rules.ops import Row
from collective_rules.ops.op import ANY, EVEN, FREE
from collective_rules.rules import Unsolvable
from collective_rules.spec import Spec
from collective_rules.symbols import hint

Breaches = Iterator[tuple[str, Mapping[str, object]]]
"""What goes beyond a limit: a verdict that follows the backend's name, and the values that it speaks of."""


@attrs.frozen
class Scope:
    """A column that names ops: `of` is the name that a row is found by, `words` writes one for the reference page."""

    of: Callable[[Row], str]
    words: Callable[[str], str]


@attrs.frozen
class Condition:
    """A column that says when a limit matters.

    - `holds`: whether the limit matters to a call; None where neither the call nor what is known of the backend tells.
    - `counts`: whether the limit matters to one of the call's tensors.
    - `words`: how the reference page writes it; "" where `says` does.
    """

    holds: Callable[[Limit, Bound, Backend], bool | None] = lambda limit, bound, backend: True
    counts: Callable[[Limit, Bound, Slot], bool] = lambda limit, bound, slot: True
    words: Callable[[Limit], str] = lambda limit: ""


class Plain(NamedTuple):
    """A call that is legal by the usual form of its rule, in short: the fast path has found nothing else in it."""

    dtypes: Set[torch.dtype | None]
    reduce_op: str
    form: str
    devices: Set[str] = frozenset()
    tensors: int = 1


@attrs.frozen
class Demand:
    """A column that demands something of a call.

    - `breaches`: yield what goes beyond the limit.
    - `admits`: whether a plain call is certainly within the limit; left out, it never is: `breaches` is asked.
    - `refuses`: whether the limit refuses a dtype, or to reduce it so ("" without a reduce op).
    - `items`: what a set in the column holds, where it holds something: "dtype", "reduce op" or "form".
    """

    breaches: Callable[[Limit, Bound], Breaches]
    admits: Callable[[Limit, Plain], bool] = lambda limit, plain: False
    refuses: Callable[[Limit, str, torch.dtype], bool] = lambda limit, reduce_op, dtype: False
    items: str = ""


def sets(limit: Limit, column: str) -> bool:
    """Return whether `limit` demands something by `column`, one of `DEMANDS`."""
    value = getattr(limit, column)
    return value is not None and value is not False


def demands_of(limit: Limit) -> Mapping[str, Demand]:
    """Return what the columns of `limit` demand."""
    return {column: demand for column, demand in DEMANDS.items() if sets(limit, column)}


def must_be_stated(limit: Limit) -> None:
    """Raise `NotImplementedError` where `limit` sets a column of which no table here says anything."""
    for field in attrs.fields(type(limit)):
        stated = field.name in PROSE or any(field.name in table for table in (SCOPES, CONDITIONS, DEMANDS))
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        if not stated and getattr(limit, field.name) != default:
            raise NotImplementedError(
                f"{limit.id} sets the column {field.name!r}, of which backends/columns.py says nothing: "
                "state there what the column names (SCOPES), when the limit matters (CONDITIONS) or what it demands "
                "(DEMANDS)"
            )


def holds_for(limit: Limit, row: Row) -> bool:
    """Return whether `limit` is one of the op of `row`."""
    named = [column for column, scope in SCOPES.items() if scope.of(row) in getattr(limit, column)]
    return bool(named) and "but" not in named


def matters(limit: Limit, bound: Bound, backend: Backend) -> bool | None:
    """Return whether `limit` of `backend` matters to a call; None where the call and the backend do not tell."""
    answers = {condition.holds(limit, bound, backend) for condition in CONDITIONS.values()}
    return False if False in answers else None if None in answers else True


def matters_in(limit: Limit, group_size: int) -> bool:
    """Return whether `limit` may matter in groups of so many ranks."""
    return limit.from_size <= group_size and (limit.to_size is None or group_size <= limit.to_size)


def ordered_by(limits: Sequence[Limit], bound: Bound, backend: Backend) -> Callable[[Slot], bool]:
    """Return what tells whether one of `limits` wants the tensor in a slot to lie in the order of the others."""
    wanting = [limit for limit in limits if limit.ordered and matters(limit, bound, backend)]
    return lambda slot: any(_is_ordered(limit, bound, slot) for limit in wanting)


def _is_ordered(limit: Limit, bound: Bound, slot: Slot) -> bool:
    return bound.spelling.behind_of(slot.part) in (limit.ordered or ()) and _counts(limit, bound, slot)


def _counts(limit: Limit, bound: Bound, slot: Slot) -> bool:
    return all(condition.counts(limit, bound, slot) for condition in CONDITIONS.values())


def refuses(limit: Limit, reduce_op: str, dtype: torch.dtype) -> bool:
    """Return whether `limit` refuses a dtype, or to reduce it so."""
    return any(demand.refuses(limit, reduce_op, dtype) for demand in demands_of(limit).values())


def promoted(dtypes: tuple[torch.dtype, ...]) -> torch.dtype | None:
    """Return the dtype that torch.cat makes of `dtypes`; None where it refuses."""
    try:
        return functools.reduce(torch.promote_types, dtypes)
    except RuntimeError:  # unsigned integers beyond uint8 have no promotion
        return None


# -- demands of each tensor


def _of_each(fault: Callable[[Limit, Spec, str], str]) -> Callable[[Limit, Bound], Breaches]:
    """Return what yields the first tensor that has a fault; `fault` says which one, or ""."""

    def of_slot(limit: Limit, bound: Bound, slot: Slot) -> str:
        return fault(limit, slot.spec, bound.call.attribute("reduce_op") or "")

    return _of_each_slot(of_slot)


def _of_each_slot(fault: Callable[[Limit, Bound, Slot], str]) -> Callable[[Limit, Bound], Breaches]:
    def breaches(limit: Limit, bound: Bound) -> Breaches:
        for slot in bound.slots:
            verdict = fault(limit, bound, slot) if _counts(limit, bound, slot) else ""
            if verdict:
                yield verdict, {slot.label: slot.spec}
                return

    return breaches


def _elsewhere(limit: Limit, spec: Spec, reduce_op: str) -> str:
    return f"does not take a tensor on {spec.device}" if spec.device not in (*(limit.devices or ()), "meta") else ""


def _wrong_layout(limit: Limit, bound: Bound, slot: Slot) -> str:
    """What the op's own row refuses is no limit of the backend."""
    wanted = (limit.layouts or {}).get(bound.spelling.behind_of(slot.part), ANY)
    spec = slot.spec
    if spec.layout != "strided" or spec.shape is None:
        return ""
    own = layout_fault(bound, slot, own_layout(bound, slot))
    fault = "" if own else layout_fault(bound, slot, wanted)
    return f"needs another layout: {slot.label} {fault}" if fault else ""


def _wrong_dtype(limit: Limit, spec: Spec, reduce_op: str) -> str:
    refused = spec.dtype is not None and _refuses_dtype(limit, reduce_op, spec.dtype)
    return f"does not take {_name(spec.dtype)} here" if refused else ""


def _refuses_dtype(limit: Limit, reduce_op: str, dtype: torch.dtype) -> bool:
    return limit.dtypes is not None and dtype not in limit.dtypes


def _wrong_reduction(limit: Limit, spec: Spec, reduce_op: str) -> str:
    if spec.dtype is None or not _refuses_reduction(limit, reduce_op, spec.dtype):
        return ""
    verb = "does not" if limit.severity == ERROR else "does not faithfully"
    return f"{verb} reduce {_name(spec.dtype)} with {reduce_op}"


def _refuses_reduction(limit: Limit, reduce_op: str, dtype: torch.dtype) -> bool:
    return limit.reduces is not None and dtype not in limit.reduces.get(reduce_op, {dtype})


def _sparse(limit: Limit, spec: Spec, reduce_op: str) -> str:
    refused = spec.layout != "strided" and reduce_op not in (limit.sparse_reduces or ())
    return f"does not reduce {spec.layout} tensors with {reduce_op}" if refused else ""


def _empty(limit: Limit, spec: Spec, reduce_op: str) -> str:
    return "refuses an empty tensor here" if _has_no_elements(spec) else ""


def _has_no_elements(spec: Spec) -> bool:
    return spec.shape is not None and 0 in map(hint, spec.shape)


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


# -- demands of a call


def _no_kernel(limit: Limit, bound: Bound) -> Breaches:
    yield "has no kernel for it", {}


def _several(limit: Limit, bound: Bound) -> Breaches:
    reduce_op = bound.call.attribute("reduce_op")
    if reduce_op in (limit.single or ()) and len(bound.slots) > 1:
        yield f"takes {reduce_op} of one tensor alone", {"tensors": len(bound.slots)}


def _too_many(limit: Limit, bound: Bound) -> Breaches:
    if limit.most_tensors is not None and len(bound.slots) > limit.most_tensors:
        count = "one tensor" if limit.most_tensors == 1 else f"{limit.most_tensors} tensors"
        yield f"takes {count} in a call", {"tensors": len(bound.slots)}


def _other_orders(limit: Limit, bound: Bound) -> Breaches:
    chosen = [slot for slot in bound.slots if _is_ordered(limit, bound, slot) and slot.spec.shape is not None]
    dense = [slot for slot in chosen if slot.spec.layout == "strided" and slot.spec.order]
    for slot in dense if bound.spelling.form.flat else ():
        if not slot.spec.has_one_order:
            yield f"reads memory in its own order, and {slot.label} is not contiguous", {slot.label: slot.spec}
            return
    for slot in dense if bound.call.group.size > 1 else ():
        if not has_whole_pieces(slot):
            yield f"sends pieces of memory, and those of {slot.label} do not lie together", {slot.label: slot.spec}
            return
    for one, two in () if any(mixed_orders(memory_order(bound))) else mixed_orders(_orders(limit, bound)):
        values = {slot.label: slot.spec for slot in bound.slots if slot.label in (one.label, two.label)}
        yield f"sends memory as it is, and {two.label} and {one.label} differ in the order of dims", values


def _orders(limit: Limit, bound: Bound) -> Iterator[Any]:
    """Yield what `memory_order` does, of the tensors of which the limit speaks."""
    also = functools.partial(_is_ordered, limit, bound)
    return (each for each in memory_order(bound, also) if also(each[1]))


def _sharing(limit: Limit, bound: Bound) -> Breaches:
    own = bound.call.row.entry.overlap
    if not any(overlaps(bound, own)):
        for verdict, one, two in overlaps(bound, limit.overlap or FREE, raw=True):
            yield f"does not copy first: {verdict}", {one.label: one.spec, two.label: two.spec}


def _undivided(limit: Limit, bound: Bound) -> Breaches:
    size = bound.call.group.size
    for slot in bound.slots:
        behind, shape = bound.spelling.behind_of(slot.part), slot.spec.shape
        if behind not in (limit.divides or ()) or behind not in bound.call.row.entry.splits or shape is None:
            continue
        rows = hint(shape[0]) if shape else 0
        if split_sizes(bound.call, behind) == EVEN and rows is not None and (rows % size or not shape):
            yield f"divides the first dim by W={size}, and {slot.label} has {rows} rows", {slot.label: slot.spec}
            return


def _one_sided_splits(limit: Limit, bound: Bound) -> Breaches:
    splits, given = bound.call.row.entry.splits, bound.call.arguments
    for part, other in (limit.splits_with or {}).items():
        names = [splits[each].argument or "" for each in (part, other) if each in splits]
        if len(names) == 2 and given.get(names[0]) and not given.get(names[1]):
            yield f"wants {names[1]} wherever {names[0]} is given", {names[0]: given[names[0]]}


def _to_itself(limit: Limit, bound: Bound) -> Breaches:
    call = bound.call
    try:
        peers = [member.attribute("peer") for member in members(call)]
    except Unsolvable:
        return
    if call.group.rank in peers:
        place = peers.index(call.group.rank)
        name = call.row.peer
        yield f"does not carry a rank's messages to itself, and {name}[{place}] is this rank", {name: tuple(peers)}


def _odd_strides(limit: Limit, bound: Bound) -> Breaches:
    if len(bound.slots) == 1 and bound.slots[0].spec.has_odd_strides:
        slot = bound.slots[0]
        yield f"compares strides, and {slot.label} has {slot.spec.stride}", {slot.label: slot.spec}


def _other_form(limit: Limit, bound: Bound) -> Breaches:
    row, taken = bound.call.row, limit.forms or ()
    narrow = bind_as(bound.call, taken)
    if narrow is None:
        names = " and ".join(spelling.form.name for spelling in row.spellings)
        yield f"takes only the {' or '.join(taken)} form, and the op has only {names}", {}
    elif bound.spelling.form.name not in taken and all(problem.severity != ERROR for problem in bound.problems):
        for problem in narrow.problems[:1]:
            yield f"takes only the {' or '.join(taken)} form, and {problem.verdict}", problem.values


def _other_shape(limit: Limit, bound: Bound) -> Breaches:
    for problem in bound.problems:
        if problem.severity == WARNING:
            yield f"needs equal shapes: {problem.verdict}", problem.values


def _several_dtypes(limit: Limit, bound: Bound) -> Breaches:
    dtypes = {slot.spec.dtype: slot for slot in reversed(bound.slots) if slot.spec.dtype is not None}
    specs = {slot.label: slot.spec for slot in dtypes.values()}
    if limit.one_dtype and len(dtypes) > 1:
        yield "needs one dtype for the whole list", specs
    elif limit.promotes and dtypes and promoted(tuple(dtypes)) is not bound.slots[0].spec.dtype:
        yield "sends the whole list in the first tensor's dtype", specs


# -- the tables

PROSE = ("id", "says", "advice", "severity", "follows")
"""Columns that say how a limit is written, how bad it is to go beyond it, and what follows."""

SCOPES: Mapping[str, Scope] = {
    "rules": Scope(lambda row: row.rule.name, "[{0}](rules.md#{0})".format),
    "ops": Scope(lambda row: row.op, "`{}`".format),
    "namespaces": Scope(lambda row: row.namespace, "every op of `{}`".format),
    "but": Scope(lambda row: row.op, "not `{}`".format),
}

CONDITIONS: Mapping[str, Condition] = {
    "from_size": Condition(
        lambda limit, bound, backend: bound.call.group.size >= limit.from_size,
        words=lambda limit: f"groups of {limit.from_size} or more" if limit.from_size > 1 else "",
    ),
    "to_size": Condition(
        lambda limit, bound, backend: limit.to_size is None or bound.call.group.size <= limit.to_size,
        words=lambda limit: f"groups of {limit.to_size} or fewer" if limit.to_size is not None else "",
    ),
    "in_forms": Condition(
        lambda limit, bound, backend: not limit.in_forms or bound.spelling.form.name in limit.in_forms,
        words=lambda limit: f"in the {' or '.join(limit.in_forms)} form" if limit.in_forms else "",
    ),
    "on": Condition(
        lambda limit, bound, backend: _is_on(limit, bound),
        words=lambda limit: f"on {' or '.join(limit.on)}" if limit.on else "",
    ),
    "before": Condition(
        lambda limit, bound, backend: _is_before(limit, backend),
        words=lambda limit: " or ".join(
            f"{fact.replace('_', ' ')} below {'.'.join(map(str, least))}" for fact, least in limit.before.items()
        ),
    ),
    "alone": Condition(lambda limit, bound, backend: not limit.alone or len(bound.slots) == 1),
    "spares_empty": Condition(
        counts=lambda limit, bound, slot: not (limit.spares_empty and _has_no_elements(slot.spec))
    ),
    "spares_own": Condition(counts=lambda limit, bound, slot: not limit.spares_own or travels(bound, slot)),
}


def _is_on(limit: Limit, bound: Bound) -> bool | None:
    """Whether a tensor is on one of the devices that the limit names; None where none is on a known one."""
    devices = {slot.spec.device for slot in bound.slots}
    if not limit.on or devices.intersection(limit.on):
        return True
    return None if devices <= {"meta"} else False


def _is_before(limit: Limit, backend: Backend) -> bool | None:
    """Whether one of the facts is less than the limit says; None where none is, and some are not known."""
    known = {fact: getattr(backend, fact) for fact in limit.before}
    if not known or any(value is not None and value < limit.before[fact] for fact, value in known.items()):
        return True
    return None if None in known.values() else False


DEMANDS: Mapping[str, Demand] = {
    "missing": Demand(_no_kernel),
    "dtypes": Demand(
        _of_each(_wrong_dtype), lambda limit, plain: plain.dtypes <= (limit.dtypes or set()), _refuses_dtype, "dtype"
    ),
    "reduces": Demand(
        _of_each(_wrong_reduction),
        lambda limit, plain: plain.dtypes <= (limit.reduces or {}).get(plain.reduce_op, plain.dtypes),
        _refuses_reduction,
        "dtype",
    ),
    "sparse_reduces": Demand(_of_each(_sparse), lambda limit, plain: True, items="reduce op"),
    "nonempty": Demand(_of_each(_empty)),
    "single": Demand(_several, lambda limit, plain: plain.reduce_op not in (limit.single or ()), items="reduce op"),
    "fresh_strides": Demand(_odd_strides, lambda limit, plain: True),
    "forms": Demand(_other_form, lambda limit, plain: plain.form in (limit.forms or ()), items="form"),
    "exact": Demand(_other_shape, lambda limit, plain: True),
    "one_dtype": Demand(_several_dtypes, lambda limit, plain: len(plain.dtypes) <= 1),
    "promotes": Demand(_several_dtypes, lambda limit, plain: len(plain.dtypes) <= 1),
    "most_tensors": Demand(_too_many, lambda limit, plain: plain.tensors <= (limit.most_tensors or 0)),
    "layouts": Demand(_of_each_slot(_wrong_layout), lambda limit, plain: True),
    "ordered": Demand(_other_orders, lambda limit, plain: True),
    "overlap": Demand(_sharing, lambda limit, plain: True, items="overlap"),
    "devices": Demand(_of_each(_elsewhere), lambda limit, plain: plain.devices <= {*(limit.devices or ()), "meta"}),
    "divides": Demand(_undivided, lambda limit, plain: True),
    "splits_with": Demand(_one_sided_splits),
    "to_others": Demand(_to_itself),
}
"""In the order in which messages about one limit stand."""
