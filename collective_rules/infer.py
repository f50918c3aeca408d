"""What a call writes and returns: sizes, dtypes, strides and aliases."""

from __future__ import annotations

from typing import Any

import torch

from collective_rules.binding.attributes import attribute_problems
from collective_rules.binding.batch import well_formed_members
from collective_rules.binding.binder import bind
from collective_rules.binding.bound import Bound, Demand, Key, aliased
from collective_rules.binding.compiled import plan_of
from collective_rules.binding.splits import split_sizes, total
from collective_rules.call import Call, must_be_call
from collective_rules.errors import CallError
from collective_rules.finding import ERROR
from collective_rules.messages import finding_of
from collective_rules.notation import Name, Part, Rest, Shares, Splits
from collective_rules.notation.sizes import evaluate
from collective_rules.ops.row import Output
from collective_rules.spec import Spec
from collective_rules.symbols import same


def infer(call: Call) -> dict[str, Any]:
    """Return what `call` writes and returns: name → `Spec`, or a (nested) tuple of them for a list.

    Shapes, dtypes, strides and aliases are those of eager torch. A written argument that was given keeps its own
    strides; one that was left out is what it must be. `Spec.alias` names the argument whose memory it is; a fresh
    return is called `output`, or `outputs` if it is a list, and has none. A list that this rank does not write (a
    gather's, off the root) is empty. What the data cannot decide has the shape None.

    Raises `CallError` where the tensors that are read fit no form of the rule. A size that only the run can tell (an
    unbacked SymInt) is checked there, with `torch._check`.

    >>> import collective_rules as cr
    >>> cr.infer(cr.call("_c10d_functional::all_gather_into_tensor", group=cr.Group(size=8), input=(16, 4)))
    {'output': Spec((128, 4), float32)}
    """
    if type(call) is not Call:
        must_be_call(call)
    result = plan_of(call.row).infer(call)
    return _infer(call) if result is None else result


def _infer(call: Call) -> dict[str, Any]:
    """`infer`, for every call."""
    if call.row.entry.batch is not None:
        return _infer_batch(call)
    bound = bind(call)
    written = {part.path.name for part in bound.spelling.statement.writes} - call.row.in_place
    wrong = [p for p in bound.problems if p.severity == ERROR and (p.part is None or p.part.path.name not in written)]
    wrong += [p for p in attribute_problems(call) if p.kind == "group_size" and p.severity == ERROR]
    if wrong:
        found = tuple(finding_of(call, bound.spelling, problem) for problem in wrong)
        raise CallError(found[0].message, found)
    for demand in bound.demands:
        _check_in_the_run(call, bound, demand)
    result: dict[str, Any] = {}
    for part in bound.spelling.statement.writes:
        if call.arguments.get(call.row.entry.omits.get(part.path.name, ""), True) is False:
            continue
        result[part.path.name] = _written(bound, part)
    for name in call.row.entry.scratch:
        result.setdefault(name, aliased(call.arguments[name], name))
    for output in call.row.returns:
        _add_return(result, call, bound, output)
    return result


def _infer_batch(call: Call) -> dict[str, Any]:
    """Every tensor keeps its place: the sent ones are unchanged, and an `empty(0)` is returned for each."""
    each = [infer(member) for member in well_formed_members(call)]
    name = call.row.writes[0]
    tensors = tuple(aliased(spec, name) for spec in call.arguments[name])
    outputs = tuple(result.get("output", own) for result, own in zip(each, tensors, strict=True))
    return {name: tensors, "outputs": outputs}


def _check_in_the_run(call: Call, bound: Bound, demand: Demand) -> None:
    torch._check(demand.condition, lambda: finding_of(call, bound.spelling, demand.problem).message)


def _add_return(result: dict[str, Any], call: Call, bound: Bound, output: Output) -> None:
    if output.kind == "argument" and output.name not in result:
        given = call.arguments.get(output.name)
        result[output.name] = Spec(None, None) if given is None else aliased(given, output.name)
    elif output.kind == "empty":
        result[output.name] = Spec((0,), bound.slots[0].spec.dtype, device=bound.slots[0].spec.device)


def _written(bound: Bound, part: Part) -> Any:
    call = bound.call
    name = part.path.name
    given = call.arguments.get(name)
    if part.root_only and not call.is_root:
        if part.path.index and name not in call.row.in_place:
            return ()
        if given is not None:  # off the root the argument is scratch, or left alone
            return aliased(given, name)
    return _nested(bound, part, part.path.index, given, None, None)


def _nested(bound: Bound, part: Part, index: tuple[str, ...], given: Any, element: int | None, rank: int | None) -> Any:
    if not index:
        return _one(bound, part, given if isinstance(given, Spec) else None, element, rank)
    lengths = {"1": 1, "p": bound.call.group.size, "i": bound.count or 0}
    inner = []
    for place in range(lengths[index[0]]):
        item = given[place] if isinstance(given, tuple) and place < len(given) else None
        at = {"i": (place, rank), "p": (element, place)}.get(index[0], (element, rank))
        inner.append(_nested(bound, part, index[1:], item, *at))
    return tuple(inner)


def _one(bound: Bound, part: Part, given: Spec | None, element: int | None, rank: int | None) -> Spec:
    call, entry, name = bound.call, bound.call.row.entry, part.path.name
    shape = _shape(bound, part, element, rank, given)
    dtype = _dtype(bound, part, element, given)
    fresh = name in call.row.fresh
    alias = None if fresh else name
    if fresh and name in entry.own and rank == call.group.rank:
        alias = entry.own[name]
    if given is not None and (shape is None or (given.shape is not None and same(given.shape, shape) is not False)):
        kept: Spec = aliased(given, alias)
        return kept if given.dtype is not None else Spec(given.shape, dtype, given._stride, alias=alias)
    behind = bound.spelling.behind_of(part)
    stride = entry.strides[behind](shape, call.arguments) if behind in entry.strides and shape is not None else None
    device = bound.slots[0].spec.device if bound.slots else "cpu"
    return Spec(shape, dtype, stride, device, alias=alias)


def _dtype(bound: Bound, part: Part, element: int | None, given: Spec | None) -> torch.dtype | None:
    call, behind = bound.call, bound.spelling.behind_of(part)
    fixed = call.row.rule.fixed_dtypes.get(behind)
    if fixed is not None:
        return fixed
    if behind in call.row.entry.dtypes:
        chosen = call.arguments.get(call.row.entry.dtypes[behind])
        chosen = chosen[element] if isinstance(chosen, tuple) and element is not None else chosen
        if isinstance(chosen, torch.dtype):
            return chosen
    promoted = call.row.entry.promotes.get(behind)
    for key in (Key("dtype", element), Key("dtype")):
        if key in bound.names:
            bound_dtype: torch.dtype = bound.names[key]
            return bound_dtype if promoted is None else promoted(bound_dtype)
    return given.dtype if given is not None else None


def _shape(
    bound: Bound, part: Part, element: int | None, rank: int | None, given: Spec | None
) -> tuple[int, ...] | None:
    if bound.spelling.form.flat and given is not None:
        return given.shape
    group = bound.call.group

    def value_of(size: Name | Shares | Splits | Rest) -> Any:
        if not isinstance(size, Splits):
            return bound.names.get(bound.key(size, element, rank))
        own = bound.names.get(Key(size.name, None, (group.rank, group.rank)))
        return total(split_sizes(bound.call, bound.spelling.behind_of(part)), own, group.size)

    return evaluate(part.sizes, group.size, value_of)
