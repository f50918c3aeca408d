"""Reads the arguments of a dispatched op, and returns the facts of the call.

Calls that are alike (op, group, sizes, dtypes, strides, scalars, and which tensors share memory) are read once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import attrs
import torch

from collective_rules.call import call
from collective_rules.errors import UnknownOpError
from collective_rules.ledger import CallFacts
from collective_rules.mode.call_sites import is_waited_for
from collective_rules.mode.group_arguments import GroupResolver, ResolvedGroup
from collective_rules.nested import leaves
from collective_rules.ops import OPS, Row, lookup

_NAMESPACES = frozenset(op.partition("::")[0] for op in OPS)
_MOST_FACTS = 100_000
_ASYNC = ("async_op", "asyncOp")
_STRIDED = torch.strided
_SCALARS = frozenset({"bool", "int", "float", "str"})

Sign = Callable[[Any, list[torch.Tensor]], Any]
"""Returns a hashable object for a value, equal for values that are equal to the rules; adds its tensors to the list."""

DeviceTypes = Callable[[list[torch.Tensor]], tuple[str, ...]]
"""Returns the device types that the tensors of a call would have in a real run; "meta" for a device not known."""

Signature = tuple[Callable[[Any], Any], tuple[tuple[Any, Sign], ...]]
"""A function that picks the scalars, which are their own signature; and the key and `Sign` of every other argument."""


@attrs.define(eq=False)
class ArgumentReader:
    """Reads the arguments of one op.

    `functional`: the op returns tensors on which the program has to wait. `waits`: the op is that wait.
    """

    row: Row
    names: tuple[str, ...]
    functional: bool
    waits: bool
    _find_at: Callable[[Any], ResolvedGroup]
    _find_named: Callable[[Any], ResolvedGroup]
    _async_at: int
    _device_types: DeviceTypes | None
    _signatures: dict[Any, Signature] = attrs.field(factory=dict)
    _facts: dict[Any, CallFacts] = attrs.field(factory=dict)

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by their schema names."""
        named = dict(zip(self.names, args, strict=False))
        if kwargs:
            named.update(kwargs)
        return named

    def asynchronous(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Return whether the caller has to wait for the result.

        A message's arguments do not say so, only the function of torch.distributed that the caller called.
        """
        if self.functional:
            return True
        if self.row.entry.done:
            return False
        if self.row.rule.point_to_point:
            return not is_waited_for()
        if 0 <= self._async_at < len(args):
            return bool(args[self._async_at])
        if kwargs:
            for name in _ASYNC:
                if name in kwargs:
                    return bool(kwargs[name])
        return bool(self.row.returns)

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CallFacts:
        """Return the facts of the call with these arguments."""
        if kwargs:
            # Keyed by name, in any order; else by position, without the defaults at the end.
            values: Any = self.named(args, kwargs)
            shape: Any = tuple(values)
            resolved = self._find_named(values)
        else:
            values, shape, resolved = args, len(args), self._find_at(args)
        plan = self._signatures.get(shape)
        if plan is None:
            plan = self._signatures[shape] = self._plan(shape)
        scalars, others = plan
        tensors: list[torch.Tensor] = []
        try:
            signature: Any = (resolved, shape, scalars(values), *[sign(values[key], tensors) for key, sign in others])
            if len(tensors) > 1:
                signature = (*signature, _shared(tensors))
            if self._device_types is not None:
                signature = (*signature, self._device_types(tensors))
            facts = self._facts.get(signature)
        except (TypeError, AttributeError, RuntimeError):
            # A SymInt has no hash; sparse and nested tensors, and other objects, are not read.
            return self._describe(resolved, self.named(args, kwargs))
        if facts is None:
            facts = self._describe(resolved, self.named(args, kwargs))
            if len(self._facts) < _MOST_FACTS:
                self._facts[signature] = facts
        return facts

    def _plan(self, shape: Any) -> Signature:
        """Return how to sign the arguments of these names, or the first `shape` arguments."""
        by_place = isinstance(shape, int)
        arguments = self.row.arguments[:shape] if by_place else [self.row.by_name[name] for name in shape]
        scalars: list[Any] = []
        others: list[tuple[Any, Sign]] = []
        for key, argument in zip(range(shape) if by_place else shape, arguments, strict=True):
            if argument.is_group:
                continue  # the resolved group is part of the signature already
            if argument.kind in _SCALARS and not argument.depth:
                scalars.append(key)
            else:
                others.append((key, _SIGNS.get((argument.kind, argument.depth, argument.optional), _sign)))
        return itemgetter(*scalars) if scalars else _nothing, tuple(others)

    def _describe(self, resolved: ResolvedGroup, named: Mapping[str, Any]) -> CallFacts:
        arguments = {name: value for name, value in named.items() if not self.row.by_name[name].is_group}
        return CallFacts.of(call(self.row.op, group=resolved.group, **arguments), self._backend(resolved, arguments))

    def _backend(self, resolved: ResolvedGroup, arguments: Mapping[str, Any]) -> str | None:
        """Return the backend that carries the call out: by the devices of its tensors, and of a barrier's `device_ids`.

        Its `device_ids` are those of an accelerator, also where a dry run has put its tensor on the cpu.
        """
        if arguments.get("device_ids") and resolved.accelerators:
            return resolved.backend_of(resolved.accelerators)
        tensors = list(leaves(arguments.values(), torch.Tensor))
        if self._device_types is not None:
            return resolved.backend_of(self._device_types(tensors))
        return resolved.backend_of(dict.fromkeys(tensor.device.type for tensor in tensors))


class ArgumentReaders:
    """Holds the reader of each op that was asked for; None for an op that is no collective.

    `device_types` says on which devices tensors are, where the tensors do not say so themselves.
    """

    def __init__(self, device_types: DeviceTypes | None = None) -> None:
        self._device_types = device_types
        self._groups = GroupResolver()
        self._made: dict[int, ArgumentReader | None] = {}
        self._ops: list[Any] = []

    def of(self, op: Any) -> ArgumentReader | None:
        """Return the reader of `op`."""
        try:
            return self._made[id(op)]  # quicker than its hash, and unique: the list keeps the op alive
        except KeyError:
            self._ops.append(op)
            reader = self._made[id(op)] = self._make(op)
            return reader

    def _make(self, op: Any) -> ArgumentReader | None:
        if getattr(op, "namespace", None) not in _NAMESPACES:
            return None
        try:
            row = lookup(op)
        except UnknownOpError:  # excluded, with a reason: no collective
            return None
        names = tuple(argument.name for argument in row.arguments)
        returns_work = any(output.kind == "work" for output in row.returns)
        functional = bool(row.returns) and not returns_work and not row.entry.done
        return ArgumentReader(
            row,
            names,
            functional,
            row.rule.waits,
            self._groups.reader(row, {name: place for place, name in enumerate(names)}),
            self._groups.reader(row, {name: name for name in names}),
            next((names.index(name) for name in _ASYNC if name in names), -1),
            self._device_types,
        )


def _nothing(values: Any) -> None:
    """Sign an op without scalars."""


def _sign(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Sign a value of any kind."""
    kind = type(value)
    if kind is list or kind is tuple:
        return tuple([_sign(item, tensors) for item in value])
    if isinstance(value, torch.Tensor):
        return _sign_tensor(value, tensors)
    if kind is torch.ScriptObject:
        return _sign_reduce_op(value, tensors)
    return (kind, value)


def _sign_reduce_op(value: Any, tensors: list[torch.Tensor]) -> Any:
    return value._get_method("op")()  # what value.op() does, in half the steps


def _sign_tensors(value: Any, tensors: list[torch.Tensor]) -> Any:
    if len(value) == 1:
        return _sign_tensor(value[0], tensors)
    return tuple([_sign_tensor(item, tensors) for item in value])


def _sign_tensor(value: Any, tensors: list[torch.Tensor]) -> Any:
    if value.layout is not _STRIDED:
        raise TypeError  # told apart by more than is cheap to ask
    tensors.append(value)
    device = value.is_cpu or value.device.type
    return (value.shape, value.stride(), value.dtype, device, value.is_conj(), value.is_neg())


# By an argument's kind, the depth of its lists, and whether it may be None.
_SIGNS: dict[tuple[str, int, bool], Sign] = {
    ("Tensor", 0, False): _sign_tensor,
    ("Tensor", 1, False): _sign_tensors,
    ("__torch__.torch.classes.c10d.ReduceOp", 0, False): _sign_reduce_op,
}


def _shared(tensors: list[torch.Tensor]) -> Any:
    """Return which of several tensors share memory, and their offsets in that memory; None where none share any."""
    if len(tensors) == 2 and tensors[0].untyped_storage()._cdata != tensors[1].untyped_storage()._cdata:
        return None
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
