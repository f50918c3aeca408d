"""Compares the values that a backend returned with those that the rules infer and the oracle computes.

The two witnesses do not know each other: `infer` reads the rule's text, the oracle is plain torch. Values are compared
exactly, but for averages. Tensors that the op should not write are compared too.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch

from collective_rules.binding.batch import members
from collective_rules.binding.binder import bind
from collective_rules.binding.bound import Bound, Key
from collective_rules.call import Call
from collective_rules.errors import CallError, UnknownFormError
from collective_rules.infer import infer
from collective_rules.nested import leaves
from collective_rules.rules import RULES
from collective_rules.spec import Spec
from collective_rules.testing.tensors import Made, flat

Place = tuple[str, int]
"""The place of a tensor: its argument or return, and its number among all tensors of the (nested) lists there."""


@attrs.frozen
class Difference:
    """One difference: `what` is "result", "values", "memory", or "undefined" for values that have no right answer."""

    what: str
    rank: int
    text: str

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.text}"


def differences(made: Mapping[int, Made], returned: Mapping[int, tuple[Any, ...]]) -> tuple[Difference, ...]:
    """Return the differences between the values of each rank and those that the rules say.

    `made` holds every rank's call with its tensors, by rank; `returned` the op's values there, without its Work. Ranks
    that did not return are left out.
    """
    found: list[Difference] = []
    expected: Mapping[int, Mapping[Place, torch.Tensor]] = {rank: {} for rank in made}
    try:
        expected = expected_values(made)
    except UnknownFormError:
        raise
    except Exception as error:  # of illegal calls: an oracle may fail in any way, as torch does at the least of complex
        there = [rank for rank in returned if _elements(_results(made[rank], returned[rank]))]
        found += (Difference("undefined", rank, f"there is no such value: {error}") for rank in there)
    for rank, values in returned.items():
        one = made[rank]
        results = _results(one, values)
        say = functools.partial(Difference, rank=rank)
        found += (say("result", text=text) for text in _unlike(_inferred(one.call), results, one))
        found += (say("values", text=text) for text in _wrong(one.call, expected[rank], results))
        strays = one.strays()
        if strays:
            found.append(say("memory", text=f"{strays} elements changed that the op does not write"))
    return tuple(found)


# -- results


def _inferred(call: Call) -> Mapping[str, Any]:
    """Return what the rules infer: nothing for an illegal call, so that every value of it is a difference."""
    try:
        return infer(call)
    except CallError:
        return {}


def _results(one: Made, returned: tuple[Any, ...]) -> dict[str, Any]:
    """Return what was written and returned, in infer's terms."""
    row = one.call.row
    results = {name: one.arguments[name] for name in row.writes if one.arguments.get(name) is not None}
    outputs = [output for output in row.returns if output.kind != "work"]
    for output, value in zip(outputs, returned, strict=False):
        results[output.name] = value
    return results


def _elements(results: Mapping[str, Any]) -> int:
    return sum(tensor.numel() for tensor in leaves(results.values(), torch.Tensor))


def _unlike(inferred: Mapping[str, Any], results: Mapping[str, Any], one: Made) -> Iterator[str]:
    """Yield where shapes, dtypes, strides, aliases or lengths differ."""
    for name in dict.fromkeys([*inferred, *results]):
        if name not in results:
            yield f"{name} did not come back, but should be {inferred[name]}"
        elif name not in inferred:
            yield f"{name} came back, of which the rule says nothing"
        else:
            yield from _unlike_value(name, inferred[name], results[name], one)


def _unlike_value(label: str, wanted: Any, got: Any, one: Made) -> Iterator[str]:
    if isinstance(wanted, tuple):
        if not isinstance(got, (list, tuple)) or len(got) != len(wanted):
            count = len(got) if isinstance(got, (list, tuple)) else "no list"
            yield f"{label} has length {count}, but should have {len(wanted)}"
            return
        for place, (inner, item) in enumerate(zip(wanted, got, strict=True)):
            yield from _unlike_value(f"{label}[{place}]", inner, item, one)
        return
    if not isinstance(got, torch.Tensor):
        yield f"{label} is {got!r}, but should be {wanted}"
        return
    actual = Spec.of(got)
    same_size = wanted.shape is None or (actual.shape == wanted.shape and _steps(actual) == _steps(wanted))
    if not same_size or (wanted.dtype is not None and actual.dtype is not wanted.dtype):
        yield f"{label} is {actual}, but should be {wanted}"
        return
    owners = [name for name, value in one.arguments.items() if any(_share(got, leaf) for leaf in flat(value))]
    if wanted.alias not in owners and (wanted.alias or owners):
        yield f"{label} is {_memory_of(owners)}, but should be {_memory_of([wanted.alias] if wanted.alias else [])}"


def _share(got: torch.Tensor, other: Any) -> bool:
    """Return whether both lie in one allocation; a sparse tensor has none of its own."""
    if got is other or not isinstance(other, torch.Tensor) or torch.sparse_coo in (got.layout, other.layout):
        return got is other
    return bool(got.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _memory_of(owners: list[str]) -> str:
    return f"the memory of {' and '.join(owners)}" if owners else "fresh memory"


def _steps(spec: Spec) -> list[int]:
    """Return the strides of the dims with more than one element, which alone say where elements lie."""
    return [step for n, step in zip(spec.shape, spec.stride, strict=True) if n != 1]


# -- values


def expected_values(made: Mapping[int, Made]) -> dict[int, dict[Place, torch.Tensor]]:
    """Return the values of the rule's oracle: rank → place → tensor.

    Tensors that the rule does not write on a rank are left out, and so is every tensor of a rule without an oracle.

    >>> import collective_rules as cr
    >>> from collective_rules.testing.tensors import make
    >>> made = {rank: make(cr.call("c10d::allreduce_", group=cr.Group(2, rank), tensors=[(2,)])) for rank in (0, 1)}
    >>> expected_values(made)[1]
    {('tensors', 0): tensor([10002., 10004.])}
    """
    result: dict[int, dict[Place, torch.Tensor]] = {rank: {} for rank in made}
    ranks = sorted(made)
    calls = [made[rank].call for rank in ranks]
    if len({call.row.rule.name for call in calls if not call.row.rule.point_to_point}) > 1:
        return result
    if calls and calls[0].row.rule.point_to_point:
        return result | _messages(made)
    if not calls or calls[0].row.rule.oracle is None:
        return result
    bounds = {rank: bind(made[rank].call) for rank in ranks}
    elements = [_element(made, bounds, element) for element in range(max(bounds[rank].count or 1 for rank in ranks))]
    for place, rank in enumerate(ranks):
        name, index = _goes_to(bounds[rank])
        lengths = {"1": 1, "p": len(ranks), "i": bounds[rank].count or 1}
        if elements[0][place] is None:
            continue
        for count, (element, peer) in enumerate(_places(index, lengths)):
            value = elements[element][place]
            result[rank][name, count] = value[peer] if isinstance(value, list) else value
    return result


def _goes_to(bound: Bound) -> tuple[str, tuple[str, ...]]:
    """Return the name and index of the oracle's outputs: the first part that is written, or the return of a wait."""
    statement = bound.spelling.statement
    if statement.writes:
        return statement.writes[0].path.name, statement.writes[0].path.index
    return bound.call.row.returns[0].name, statement.reads[0].path.index


def _places(index: tuple[str, ...], lengths: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Yield (element of the list, peer) of each tensor of nested lists, in order."""
    for at in itertools.product(*(range(lengths[each]) for each in index)):
        named = dict(zip(index, at, strict=True))
        yield named.get("i", 0), named.get("p", 0)


def _element(made: Mapping[int, Made], bounds: Mapping[int, Bound], element: int) -> list[Any]:
    """Return the oracle's values for one element of all ranks' lists, for each rank."""
    ranks = sorted(made)
    call, statement = bounds[ranks[0]].call, bounds[ranks[0]].spelling.statement
    row, read = call.row, statement.reads[0]
    contents = [made[rank].contents.get(read.path.name) for rank in ranks]
    attributes = {name: call.attribute(name) for name in row.entry.attributes if name != "group_size"}
    attributes["form"] = bounds[ranks[0]].spelling.form.name
    if row.entry.splits:
        names = [bounds[rank].names for rank in ranks]
        attributes["splits"] = [[names[i][Key("S", None, (i, j))] for j in ranks] for i in ranks]
    oracle: Any = row.rule.oracle
    if row.entry.one_tensor and row.reduce_op:  # the tensors of the list are reduced with each other, too
        total = oracle([tensor for value in contents for tensor in flat(value)], **attributes)[0]
        return [total] * len(ranks)
    if row.entry.one_tensor and "root" in attributes:  # it is the root's own affair which tensor of its list it sends
        element = made[attributes["root"]].call.attribute("root_tensor")
    return list(oracle([_pick(read.path.index, value, element) for value in contents], **attributes))


def _pick(index: tuple[str, ...], value: Any, element: int) -> Any:
    """Take one element out of an argument's lists: a tensor, or a list of W where the index has `p`."""
    if value is None or (index and not value):
        return None
    for place, each in enumerate(index):
        if each == "p":
            return [_pick(index[place + 1 :], item, element) for item in value]
        value = value[element if each == "i" else 0]
    return value


def _messages(made: Mapping[int, Made]) -> dict[int, dict[Place, torch.Tensor]]:
    """Return the value of each receive: the next message from its source with its tag."""
    sent: dict[tuple[int, int, int], list[torch.Tensor]] = {}
    waiting: list[tuple[int, Place, Call]] = []
    for rank, one in made.items():
        name = one.call.row.reads[0] if one.call.row.reads else one.call.row.writes[0]
        contents = list(flat(one.contents[name]))
        for place, member in enumerate(members(one.call)):
            if member.row.rule.direction == "send":
                sent.setdefault((rank, member.attribute("peer"), member.attribute("tag")), []).append(contents[place])
            else:
                waiting.append((rank, (name, place), member))
    result: dict[int, dict[Place, torch.Tensor]] = {}
    for rank, at, receive in waiting:
        source, tag = receive.attribute("peer"), receive.attribute("tag")
        for channel, tensors in sent.items():
            if tensors and channel[1:] == (rank, tag) and source in (None, channel[0]):
                oracle: Any = RULES["send"].oracle
                result.setdefault(rank, {})[at] = oracle([tensors.pop(0), None], peer=[1, None])[1]
                break
    return result


def _wrong(call: Call, expected: Mapping[Place, torch.Tensor], results: Mapping[str, Any]) -> Iterator[str]:
    """Yield which values are not the oracle's."""
    approximate = call.attribute("reduce_op") == "avg"
    for (name, place), wanted in expected.items():
        tensors = list(flat(results.get(name)))
        got = tensors[place] if place < len(tensors) else None
        if isinstance(got, torch.Tensor) and not _equal(wanted, got, approximate):
            label = f"{name}, tensor {place}" if len(tensors) > 1 else name
            yield f"{label} holds {_shown(got)}, but should hold {_shown(wanted)}"


def _equal(wanted: torch.Tensor, got: torch.Tensor, approximate: bool) -> bool:
    got = got.to_dense() if got.layout is not torch.strided else got
    if wanted.dtype != got.dtype or wanted.shape != got.shape:
        return False
    if approximate:
        return torch.allclose(wanted, got, rtol=1e-2)
    return torch.equal(_bytes(wanted), _bytes(got.resolve_conj().resolve_neg()))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.view(torch.uint8) if tensor.dtype is torch.bool else tensor  # a copy makes every True a 1
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def _shown(tensor: torch.Tensor) -> str:
    values = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    values = values.resolve_conj().resolve_neg().reshape(-1)
    shown = values.to(torch.float32) if values.dtype.itemsize == 1 and values.dtype.is_floating_point else values
    text = str(shown[:8].tolist())
    return text if len(shown) <= 8 else f"{text[:-1]}, …]"
