"""An op that is a list of other ops, taken apart: batched point-to-point."""

from __future__ import annotations

from collections.abc import Iterator

from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.ops import lookup
from collective_rules.rules import Unsolvable


def members(call: Call) -> Iterator[Call]:
    """Yield the single calls of a batched op, in order; of another op, the call itself.

    Raises `Unsolvable` where the lists are empty, differ in length or name an unknown kind.
    """
    batch = call.row.entry.batch
    if batch is None:
        yield call
        return
    lists = {name: call.arguments[name] for name in (batch.kinds, batch.peers, batch.tags, batch.tensors)}
    if len({len(values) for values in lists.values()}) != 1:
        lengths = ", ".join(f"{name} has {len(values)}" for name, values in lists.items())
        raise Unsolvable("lists", f"its lists must have one length, but {lengths}")
    if not lists[batch.kinds]:
        raise Unsolvable("lists", "its lists are empty: there is nothing to send or to receive")
    for kind, peer, tag, tensor in zip(*lists.values(), strict=True):
        if kind not in batch.ops:
            kinds = ", ".join(map(repr, batch.ops))
            raise Unsolvable("argument", f"{batch.kinds} holds {kind!r}, but should hold only {kinds}")
        row = lookup(batch.ops[kind])
        part = row.spellings[0].statement.parts[0].path.name
        arguments = {part: tensor, row.peer: peer, row.tag: tag}
        yield Call(row, call.group, arguments, call.source, call.index)


def well_formed_members(call: Call) -> list[Call]:
    """Return the single calls of a batched op; raise `CallError` for a malformed one."""
    try:
        return list(members(call))
    except Unsolvable as error:
        raise CallError(f"{call.op}: {error}") from None
