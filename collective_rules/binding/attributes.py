"""What a call's other arguments must be: the root, the peer, the tag, the reduce op, the repeated group size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from collective_rules.binding.bound import Problem
from collective_rules.call import Call
from collective_rules.finding import ERROR, WARNING
from collective_rules.ops import Row

REDUCE_OPS = ("sum", "avg", "product", "min", "max", "band", "bor", "bxor", "premul_sum")
"""The reduce ops that torch has (torch/csrc/distributed/c10d/Types.hpp), by their lower-case names."""

TAGS = 2**31
"""Backends keep a tag in 32 bits, with a sign (gloo drops the others without a word)."""

CONDITIONS: Mapping[str, str] = {
    "root": "0 <= value < W",
    "root_tensor": "0 <= value < len(a[written])",
    "peer": "0 <= value < W and (value != r or not point_to_point)",
    "tag": "0 <= value < TAGS",
    "reduce_op": "value in reduce_ops",
    "group_size": "value == W",
}
"""Attribute → what its `value` must be, as Python text that `binding.compiled` writes into its functions.

`a` are the call's arguments, `W` its group's size, `r` its rank; `fixed_values` are the other names.
"""


def fixed_values(row: Row) -> dict[str, Any]:
    """Return the names of `CONDITIONS` that are the same for every call of `row`."""
    return {
        "written": next(iter(row.writes), ""),
        "point_to_point": row.rule.point_to_point,
        "reduce_ops": row.entry.reduce_ops or REDUCE_OPS,
        "TAGS": TAGS,
    }


@functools.cache
def _condition(row: Row, attribute: str) -> Callable[..., bool]:
    condition: Callable[..., bool] = eval(f"lambda value, a, W, r: {CONDITIONS[attribute]}", fixed_values(row))
    return condition


def attribute_problems(call: Call, *, batched: bool = False) -> Iterator[Problem]:
    """Yield what is wrong with the call's arguments that are no tensors. A message in a batch may go to this rank."""
    given = call.row.entry.attributes
    for attribute, problem in _PROBLEMS.items():
        value = call.attribute(attribute) if attribute in given else None
        if batched and attribute == "peer" and value == call.group.rank:
            continue
        if value is not None and not _condition(call.row, attribute)(
            value, call.arguments, call.group.size, call.group.rank
        ):
            yield problem(call, given[attribute], value)


def _root(call: Call, name: str, value: int) -> Problem:
    verdict = f"{name}={value} is no rank of a group of {call.group.size}"
    return Problem("root", verdict, values={name: value, "W": call.group.size})


def _root_tensor(call: Call, name: str, value: int) -> Problem:
    count = len(call.arguments[call.row.writes[0]])
    verdict = f"{name}={value}, but there {'is 1 tensor' if count == 1 else f'are {count} tensors'}"
    return Problem("root", verdict, values={name: value}, advice=f"Pass {name}=0.")


def _peer(call: Call, name: str, value: int) -> Problem:
    fault = "is this very rank" if value == call.group.rank else f"is no rank of a group of {call.group.size}"
    values = {name: value, "W": call.group.size, "rank": call.group.rank}
    return Problem("peer", f"{name}={value} {fault}", values=values)


def _tag(call: Call, name: str, value: int) -> Problem:
    fault = "is negative" if value < 0 else "does not fit into 31 bits"
    return Problem("tag", f"{name}={value} {fault}", values={name: value})


def _reduce_op(call: Call, name: str, value: str) -> Problem:
    taken = call.row.entry.reduce_ops or REDUCE_OPS
    verdict = f"{name}={value!r} is no reduce op that it takes"
    advice = f"Use {'one of ' if len(taken) > 1 else ''}{', '.join(taken)}."
    return Problem("reduce_op", verdict, values={name: value}, advice=advice)


def _group_size(call: Call, name: str, value: int) -> Problem:
    severity = WARNING if call.row.entry.group_size_ignored else ERROR
    ignored = "; torch ignores it here" if severity == WARNING else ""
    verdict = f"{name}={value}, but the group has {call.group.size} ranks{ignored}"
    return Problem("group_size", verdict, values={name: value, "W": call.group.size}, severity=severity)


_PROBLEMS: Mapping[str, Callable[[Call, str, Any], Problem]] = {
    "root": _root,
    "root_tensor": _root_tensor,
    "peer": _peer,
    "tag": _tag,
    "reduce_op": _reduce_op,
    "group_size": _group_size,
}
