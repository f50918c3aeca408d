"""What is wrong with one rank's call, whatever the other ranks do."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import attrs
import torch

from collective_rules.backends import Limit, limits_of
from collective_rules.binding.attributes import attribute_problems
from collective_rules.binding.batch import members
from collective_rules.binding.binder import bind, bind_as
from collective_rules.binding.bound import Bound, Problem
from collective_rules.binding.compiled import plan_of
from collective_rules.binding.memory import memory_problems
from collective_rules.binding.overlaps import sharing
from collective_rules.call import Call, must_be_call
from collective_rules.finding import ERROR, UNDECIDABLE, WARNING, Finding
from collective_rules.messages import compose, finding_of, value_text, worst_first
from collective_rules.rules import Unsolvable
from collective_rules.spec import Spec
from collective_rules.symbols import hint, known

__all__ = ["check"]


def check(call: Call, backend: str | None = None) -> tuple[Finding, ...]:
    """Return everything that is wrong with `call`, errors first; empty for a legal call.

    Without a backend: what every backend needs. With one ("gloo"): its own limits too. What the data cannot decide
    (an unknown shape, an unbacked size) is a finding of severity "undecidable".

    Raises `CallError` for an unknown backend.

    >>> import collective_rules as cr
    >>> call = cr.call("c10d::broadcast_", group=cr.Group(size=2), tensors=[(3,)], root_rank=2)
    >>> print(*cr.check(call))
    c10d::broadcast_: root_rank=2 is no rank of a group of 2   [BC3]
        tensors[i]: *s -> tensors[i]: *s
      root_rank = 2
      W = 2
    Pass the root's rank in the group; torch.distributed's src and dst are global ranks.
    """
    if type(call) is not Call:
        must_be_call(call)
    limits = limits_of(backend, call.row)
    specs = plan_of(call.row).legal(call)
    if specs is not None and (not limits or _within(call, specs, limits)):
        return ()
    return _check(call, backend, limits)


def _within(call: Call, specs: list[Spec], limits: tuple[Limit, ...]) -> bool:
    """Whether a call that is legal in the usual form is certainly within `limits`."""
    dtypes = {spec.dtype for spec in specs}
    reduce_op, form = call.attribute("reduce_op"), call.row.spellings[0].form.name
    for limit in limits:
        if limit.missing or limit.nonempty or limit.single or ((limit.one_dtype or limit.promotes) and len(dtypes) > 1):
            return False
        if limit.forms is not None and form not in limit.forms:
            return False
        if limit.dtypes is not None and not dtypes <= limit.dtypes:
            return False
        if limit.reduces is not None and not dtypes <= limit.reduces.get(reduce_op, dtypes):
            return False
    return True


def _check(call: Call, backend: str | None, limits: tuple[Limit, ...]) -> tuple[Finding, ...]:
    """`check`, for every call."""
    if call.row.entry.batch is not None:
        return _check_batch(call, backend)
    bound = bind(call)
    root = call.attribute("root")
    problems = list(attribute_problems(call))
    if root is None or 0 <= root < call.group.size:
        problems += bound.problems
    problems += [_undecided(demand.problem) for demand in bound.demands if known(demand.condition) is None]
    problems += memory_problems(bound)
    problems += _unknown(bound)
    found = [finding_of(call.row, bound.spelling, problem, call.group.rank) for problem in problems]
    found += (finding for limit in limits for finding in _beyond(bound, limit, backend or ""))
    return worst_first(found)


def _unknown(bound: Bound) -> Iterator[Problem]:
    """Yield what a trace that records less than a live call leaves open."""
    kinds = bound.call.row.rule.constraints.values()
    for slot in bound.slots:
        for what, kind in (("shape", "sizes"), ("shape", "pairs"), ("dtype", "dtype")):
            if getattr(slot.spec, what) is None and kind in kinds and slot.spec.layout == "strided":
                verdict = f"the {what} of {slot.label} is not known"
                advice = f"Record the {what} too, if it is to be checked."
                yield Problem(kind, verdict, slot.part, severity=UNDECIDABLE, advice=advice)
                break


def _undecided(problem: Problem) -> Problem:
    advice = "The run will tell; `infer` has torch check it there."
    return attrs.evolve(problem, severity=UNDECIDABLE, verdict=f"cannot tell whether {problem.verdict}", advice=advice)


def _check_batch(call: Call, backend: str | None) -> tuple[Finding, ...]:
    """Judge each of the batch's ops, and what their tensors share."""
    spelling = call.row.spellings[0]
    try:
        each = list(members(call))
    except Unsolvable as error:
        problem = Problem(error.kind, str(error))
        return (finding_of(call.row, spelling, problem, call.group.rank),)
    name = call.row.writes[0]
    found = [
        attrs.evolve(one, message=f"{call.op}, {name}[{place}]: {one.message}")
        for place, member in enumerate(each)
        for one in check(member, backend)
    ]
    received = {place for place, member in enumerate(each) if member.row.writes}
    for a, b in sharing(call.arguments[name]):
        if {a, b} & received:
            verdict = f"{name}[{a}] and {name}[{b}] share memory, and are not both only sent"
            problem = Problem("overlap", verdict, values={f"{name}[{k}]": call.arguments[name][k] for k in (a, b)})
            found.append(finding_of(call.row, spelling, problem, call.group.rank))
            break
    return worst_first(found)


def _beyond(bound: Bound, limit: Limit, backend: str) -> Iterator[Finding]:
    """Yield what `limit` finds beyond the rule."""
    call = bound.call
    if call.group.size < limit.from_size or (limit.alone and len(bound.slots) != 1):
        return
    for verdict, slot_specs in _violations(bound, limit, backend):
        values = [(name, value_text(value), "") for name, value in slot_specs.items()]
        part = next((slot.part for slot in bound.slots if slot.label in slot_specs), None)
        message = compose(call.row, bound.spelling, (part, None), verdict, limit.id, values, limit.advice)
        yield Finding(limit.id, limit.severity, message, (call.group.rank,), dict(slot_specs))


def _violations(bound: Bound, limit: Limit, backend: str) -> Iterator[tuple[str, dict[str, object]]]:
    reduce_op = bound.call.attribute("reduce_op")
    if limit.missing:
        yield f"{backend} has no kernel for it", {}
    for slot in bound.slots:
        fault = _tensor_fault(slot.spec, limit, reduce_op)
        if fault:
            yield f"{backend} {fault}", {slot.label: slot.spec}
            break
    if reduce_op in limit.single and len(bound.slots) > 1:
        yield f"{backend} takes {reduce_op} of one tensor alone", {"tensors": len(bound.slots)}
    if limit.fresh_strides and len(bound.slots) == 1 and bound.slots[0].spec.has_odd_strides:
        slot = bound.slots[0]
        yield f"{backend} compares strides, and {slot.label} has {slot.spec.stride}", {slot.label: slot.spec}
    if limit.forms is not None:
        yield from _wrong_form(bound, limit, backend)
    if limit.exact:
        for problem in bound.problems:
            if problem.severity == WARNING:
                yield f"{backend} needs equal shapes: {problem.verdict}", dict(problem.values)
    if limit.one_dtype or limit.promotes:
        yield from _mixed_dtypes(bound, limit, backend)


def _tensor_fault(spec: Spec, limit: Limit, reduce_op: str | None) -> str:
    """What `limit` has against one tensor, after the backend's name; "" for nothing."""
    dtype = str(spec.dtype).removeprefix("torch.")
    if limit.spares_empty and spec.shape is not None and 0 in map(hint, spec.shape):
        return ""
    if spec.dtype is not None:
        if limit.dtypes is not None and spec.dtype not in limit.dtypes:
            return f"does not take {dtype} here"
        if limit.reduces is not None and spec.dtype not in limit.reduces.get(reduce_op or "", {spec.dtype}):
            verb = "does not" if limit.severity == ERROR else "does not faithfully"
            return f"{verb} reduce {dtype} with {reduce_op}"
    if limit.sparse_reduces is not None and spec.layout != "strided" and reduce_op not in limit.sparse_reduces:
        return f"does not reduce {spec.layout} tensors with {reduce_op}"
    if limit.nonempty and spec.shape is not None and 0 in map(hint, spec.shape):
        return "refuses an empty tensor here"
    return ""


def _mixed_dtypes(bound: Bound, limit: Limit, backend: str) -> Iterator[tuple[str, dict[str, object]]]:
    dtypes = {slot.spec.dtype: slot for slot in reversed(bound.slots) if slot.spec.dtype is not None}
    specs: dict[str, object] = {slot.label: slot.spec for slot in dtypes.values()}
    if limit.one_dtype and len(dtypes) > 1:
        yield f"{backend} needs one dtype for the whole list", specs
    elif limit.promotes and dtypes and _promoted(tuple(dtypes)) is not bound.slots[0].spec.dtype:
        yield f"{backend} sends the whole list in the first tensor's dtype", specs


def _promoted(dtypes: tuple[torch.dtype, ...]) -> torch.dtype | None:
    """What torch.cat makes of them; None where it refuses."""
    try:
        return functools.reduce(torch.promote_types, dtypes)
    except RuntimeError:  # unsigned integers beyond uint8 have no promotion
        return None


def _wrong_form(bound: Bound, limit: Limit, backend: str) -> Iterator[tuple[str, dict[str, object]]]:
    if any(problem.severity == ERROR for problem in bound.problems) or limit.forms is None:
        return
    if bound.spelling.form.name in limit.forms:
        return
    narrow = bind_as(bound.call, limit.forms)
    if narrow is None:
        yield f"{backend} takes only the {' or '.join(limit.forms)} form, which this op does not have", {}
    for why in narrow.problems[:1] if narrow else ():
        yield f"{backend} takes only the {' or '.join(limit.forms)} form, and {why.verdict}", dict(why.values)
