"""What is wrong with one rank's call, whatever the other ranks do."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from collective_rules.backends import Backend, Limit, admits, as_backend, limits_of
from collective_rules.backends.columns import demands_of, matters
from collective_rules.binding.attributes import attribute_problems
from collective_rules.binding.batch import members
from collective_rules.binding.binder import bind
from collective_rules.binding.bound import Bound, Problem
from collective_rules.binding.compiled import plan_of
from collective_rules.binding.memory import memory_problems
from collective_rules.binding.overlaps import sharing
from collective_rules.call import Call, must_be_call
from collective_rules.finding import UNDECIDABLE, Finding
from collective_rules.messages import compose, finding_of, value_text, worst_first
from collective_rules.rules import Unsolvable
from collective_rules.symbols import known


def check(call: Call, backend: str | Backend | None = None) -> tuple[Finding, ...]:
    """Return everything that is wrong with `call`, errors first; empty for a legal call.

    Without a backend: what every backend needs. With one ("gloo"): its own limits too. What the data cannot decide
    (an unknown shape, an unbacked size) is a finding of severity "undecidable"; so is a limit that depends on the
    backend's version or on the devices, unless a `Backend` tells them.

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
    specs = plan_of(call.row).legal(call)
    if specs is not None and admits(backend, call, specs):
        return ()
    return _check(call, backend, limits_of(backend, call.row))


def _check(
    call: Call, backend: str | Backend | None, limits: tuple[Limit, ...], *, batched: bool = False
) -> tuple[Finding, ...]:
    """`check`, for every call; `batched`: it is a message in a batch."""
    if call.row.entry.batch is not None:
        return _check_batch(call, backend, limits)
    bound = bind(call)
    root = call.attribute("root")
    problems = list(attribute_problems(call, batched=batched))
    if root is None or 0 <= root < call.group.size:
        problems += bound.problems
    problems += [_undecided(demand.problem) for demand in bound.demands if known(demand.condition) is None]
    problems += memory_problems(bound)
    problems += _unknown(bound)
    found = [finding_of(call, bound.spelling, problem) for problem in problems]
    return worst_first([*found, *_beyond(bound, limits, backend)])


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


def _check_batch(call: Call, backend: str | Backend | None, limits: tuple[Limit, ...]) -> tuple[Finding, ...]:
    """Judge each of the batch's ops, and what their tensors share."""
    spelling = call.row.spellings[0]
    try:
        each = list(members(call))
    except Unsolvable as error:
        problem = Problem(error.kind, str(error))
        return (finding_of(call, spelling, problem),)
    name = call.row.writes[0]
    found = [
        attrs.evolve(one, message=f"{call.op}, {name}[{place}]: {one.message}")
        for place, member in enumerate(each)
        for one in _check(member, backend, limits_of(backend, member.row), batched=True)
    ]
    found += _beyond(Bound(call, spelling), limits, backend)
    received = {place for place, member in enumerate(each) if member.row.writes}
    for a, b in sharing(call.arguments[name]):
        if {a, b} & received:
            verdict = f"{name}[{a}] and {name}[{b}] share memory, and are not both only sent"
            problem = Problem("overlap", verdict, values={f"{name}[{k}]": call.arguments[name][k] for k in (a, b)})
            found.append(finding_of(call, spelling, problem))
            break
    return worst_first(found)


def _beyond(bound: Bound, limits: tuple[Limit, ...], backend: str | Backend | None) -> Iterator[Finding]:
    """Yield what goes beyond `limits` of a backend."""
    refused: set[tuple[str, str]] = set()
    for limit in limits:
        for column, finding in _beyond_one(bound, limit, as_backend(backend or "")):
            labels = {(column, name) for name in finding.names} if column == "layouts" else set()
            if not labels & refused:  # of the limits on one tensor's layout, the first that refuses it speaks
                yield finding
            refused |= labels


def _beyond_one(bound: Bound, limit: Limit, backend: Backend) -> Iterator[tuple[str, Finding]]:
    """Yield what goes beyond `limit`, with the column; undecidable where it is not known whether the limit matters."""
    call, applies = bound.call, matters(limit, bound, backend)
    if applies is False:
        return
    severity = limit.severity if applies else UNDECIDABLE
    for column, breach, slot_specs in (
        (column, *each) for column, demand in demands_of(limit).items() for each in demand.breaches(limit, bound)
    ):
        values = [(name, value_text(value), "") for name, value in slot_specs.items()]
        part = next((slot.part for slot in bound.slots if slot.label in slot_specs), None)
        verdict = f"{backend.name} {breach}" + (f": it {limit.follows}" if limit.follows else "")
        message = compose(call.row, bound.spelling, (part, None), verdict, limit.id, values, limit.advice)
        yield column, Finding(limit.id, severity, message, (call.group.global_rank,), dict(slot_specs), op=call.op)
