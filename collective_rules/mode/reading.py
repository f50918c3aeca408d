"""From the arguments of a dispatched op to what is known of the call.

Calls that are alike (op, group, sizes, dtypes, strides, scalars, and which tensors share memory) are read once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from collective_rules.call import call
from collective_rules.errors import UnknownOpError
from collective_rules.mode.groups import Groups, Seen
from collective_rules.mode.ledger import Known
from collective_rules.ops import OPS, Row, lookup

__all__ = ["Reader", "Readers"]

_NAMESPACES = frozenset(op.partition("::")[0] for op in OPS)
_MOST_KINDS = 100_000
_ASYNC = ("async_op", "asyncOp")


@attrs.define(eq=False)
class Reader:
    """Reads the arguments of one op."""

    row: Row
    names: tuple[str, ...]
    find_group: Callable[[Mapping[str, Any]], Seen]
    functional: bool
    waits: bool
    _group: str
    _kinds: dict[Any, Known] = attrs.field(factory=dict)

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by their schema names."""
        named = dict(zip(self.names, args, strict=False))
        if kwargs:
            named.update(kwargs)
        return named

    def asynchronous(self, named: Mapping[str, Any]) -> bool:
        """Return whether the caller has to wait for the call."""
        if self.functional:
            return True
        for name in _ASYNC:
            if name in named:
                return bool(named[name])
        return bool(self.row.returns)

    def known(self, seen: Seen, named: Mapping[str, Any]) -> Known:
        """Return what is known of the call with these arguments."""
        tensors: list[torch.Tensor] = []
        try:
            signature = (seen, *[_signature(value, tensors) for name, value in named.items() if name != self._group])
            if len(named) < len(self.names):
                signature = (*named, *signature)
            if len(tensors) > 1:
                signature = (*signature, _shared(tensors))
            found = self._kinds.get(signature)
        except (TypeError, AttributeError):  # a SymInt has no hash; sparse tensors and other objects are not read
            return self._describe(seen, named)
        if found is None:
            found = self._describe(seen, named)
            if len(self._kinds) < _MOST_KINDS:
                self._kinds[signature] = found
        return found

    def _describe(self, seen: Seen, named: Mapping[str, Any]) -> Known:
        arguments = {name: value for name, value in named.items() if not self.row.by_name[name].is_group}
        return Known.of(call(self.row.op, group=seen.group, **arguments))


class Readers(dict[Any, Reader | None]):
    """The reader of each op, None for what is no collective; made when it is asked for the first time."""

    def __init__(self) -> None:
        super().__init__()
        self._groups = Groups()

    def __missing__(self, op: Any) -> Reader | None:
        reader = self[op] = self._make(op)
        return reader

    def _make(self, op: Any) -> Reader | None:
        if getattr(op, "namespace", None) not in _NAMESPACES:
            return None
        try:
            row = lookup(op)
        except UnknownOpError:  # excluded, with a reason: no collective
            return None
        names = tuple(argument.name for argument in row.arguments)
        return Reader(
            row,
            names,
            self._groups.reader(row),
            bool(row.returns) and not any(output.kind == "work" for output in row.returns),
            row.rule.name == "wait",
            row.group,
        )


def _signature(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Return something hashable that is equal for values which the rules cannot tell apart."""
    kind = type(value)
    if kind is list or kind is tuple:
        return tuple([_signature(item, tensors) for item in value])
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_nested:
            raise TypeError  # told apart by more than is cheap to ask
        tensors.append(value)
        return (value.shape, value.stride(), value.dtype, value.is_cpu, value.is_conj(), value.is_neg())
    if kind is torch.ScriptObject:  # a boxed ReduceOp
        return value.op()
    return (kind, value)


def _shared(tensors: list[torch.Tensor]) -> Any:
    """Return which of several tensors share memory, and where in it they lie; None where none do."""
    storages = [tensor.untyped_storage()._cdata for tensor in tensors]
    if len(set(storages)) == len(storages):
        return None
    first: dict[int, int] = {}
    return tuple(
        [
            (first.setdefault(where, len(first)), tensor.storage_offset())
            for where, tensor in zip(storages, tensors, strict=True)
        ]
    )
