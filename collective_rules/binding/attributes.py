"""What a call's other arguments must be: the root, the peer, the tag, the reduce op, the repeated group size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from collective_rules.binding.bound import Problem
from collective_rules.call import Call
from collective_rules.finding import ERROR, WARNING

__all__ = ["REDUCE_OPS", "TAGS", "attribute_problems", "wrong_group_size"]

REDUCE_OPS = ("sum", "avg", "product", "min", "max", "band", "bor", "bxor", "premul_sum")
"""The reduce ops that torch has (torch/csrc/distributed/c10d/Types.hpp), by their lower-case names."""

TAGS = 2**31
"""Backends keep a tag in 32 bits, with a sign (gloo drops the others without a word)."""


def attribute_problems(call: Call) -> Iterator[Problem]:
    """Yield what is wrong with the call's arguments that are no tensors."""
    yield from _root(call)
    yield from _peer(call)
    yield from _reduce_op(call)
    yield from wrong_group_size(call)


def _root(call: Call) -> Iterator[Problem]:
    root = call.attribute("root")
    if root is not None and not 0 <= root < call.group.size:
        verdict = f"{call.row.root}={root} is no rank of a group of {call.group.size}"
        yield Problem("root", verdict, values={call.row.root: root, "W": call.group.size})
    tensor = call.attribute("root_tensor")
    if tensor is not None:
        name = call.row.entry.attributes["root_tensor"]
        count = len(call.arguments[call.row.writes[0]])
        if not 0 <= tensor < count:
            verdict = f"{name}={tensor}, but there {'is 1 tensor' if count == 1 else f'are {count} tensors'}"
            yield Problem("root", verdict, values={name: tensor}, advice=f"Pass {name}=0.")


def _peer(call: Call) -> Iterator[Problem]:
    peer, rule = call.attribute("peer"), call.row.rule
    if peer is not None:
        values: dict[str, Any] = {call.row.peer: peer, "W": call.group.size, "rank": call.group.rank}
        if not 0 <= peer < call.group.size:
            yield Problem("peer", f"{call.row.peer}={peer} is no rank of a group of {call.group.size}", values=values)
        elif peer == call.group.rank and rule.point_to_point:
            yield Problem("peer", f"{call.row.peer}={peer} is this very rank", values=values)
    tag = call.attribute("tag")
    if tag is not None and not 0 <= tag < TAGS:
        fault = "is negative" if tag < 0 else "does not fit into 31 bits"
        yield Problem("tag", f"{call.row.tag}={tag} {fault}", values={call.row.tag: tag})


def _reduce_op(call: Call) -> Iterator[Problem]:
    reduce_op = call.attribute("reduce_op")
    if reduce_op is None:
        return
    taken = call.row.entry.reduce_ops or REDUCE_OPS
    if reduce_op not in taken:
        verdict = f"{call.row.reduce_op}={reduce_op!r} is no reduce op that it takes"
        advice = f"Use {'one of ' if len(taken) > 1 else ''}{', '.join(taken)}."
        yield Problem("reduce_op", verdict, values={call.row.reduce_op: reduce_op}, advice=advice)


def wrong_group_size(call: Call, severities: tuple[str, ...] = (ERROR, WARNING)) -> list[Problem]:
    """Return the problem of an argument group_size that is not the group's: a warning where torch ignores it."""
    size = call.attribute("group_size")
    severity = WARNING if call.row.entry.group_size_ignored else ERROR
    if size is None or size == call.group.size or severity not in severities:
        return []
    name = call.row.group_size
    ignored = "; torch ignores it here" if severity == WARNING else ""
    verdict = f"{name}={size}, but the group has {call.group.size} ranks{ignored}"
    return [Problem("group_size", verdict, values={name: size, "W": call.group.size}, severity=severity)]
