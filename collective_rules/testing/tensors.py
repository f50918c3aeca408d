"""Gives a call real tensors: memory with canaries around it, and values that encode (rank, tensor, position).

So a wrong order, chunk or stride shows, and so does a write beside a tensor. Tensors of a call that share memory
(`Spec.memory`, or one `Spec` object given twice) share it here.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator
from typing import Any

import attrs
import torch

from collective_rules.call import Call
from collective_rules.errors import CallError
from collective_rules.spec import Spec

__all__ = ["Allocation", "Made", "flat", "make", "mapped"]

_PAD, _CANARY, _UNWRITTEN = 8, 77, 5

_FEW_VALUES = {  # how many integers, from 0, a dtype holds apart
    torch.int8: 127,
    torch.uint8: 251,
    torch.bfloat16: 251,
    torch.float16: 2039,
    torch.float8_e4m3fn: 13,
    torch.float8_e5m2: 7,
}


@attrs.frozen(eq=False)
class Allocation:
    """Memory that one or more tensors of a call lie in: `base` now, `before` the call, and where it may change."""

    base: torch.Tensor
    before: torch.Tensor
    writable: torch.Tensor

    def strays(self) -> int:
        """Return how many elements changed that no written tensor holds."""
        return int((_bytes(self.base) != _bytes(self.before)).any(-1)[~self.writable].sum())


@attrs.frozen(eq=False)
class Made:
    """One rank's call with real tensors: its `arguments` as `World.run` takes them, and what they held before."""

    call: Call
    arguments: dict[str, Any]
    contents: dict[str, Any]
    allocations: tuple[Allocation, ...]

    def strays(self) -> int:
        """Return how many elements changed, around the call's tensors or in them, that the op does not write."""
        return sum(allocation.strays() for allocation in self.allocations)


def make(call: Call) -> Made:
    """Return `call` with real CPU tensors in place of its `Spec`s. Two calls that are equal get equal values.

    What is only written holds one value throughout. Raises `CallError` for a tensor that the call does not describe
    fully (no shape or dtype), or a layout that cannot be made.

    >>> import collective_rules as cr
    >>> made = make(cr.call("c10d::allreduce_", group=cr.Group(2, 1), tensors=[(2,)]))
    >>> made.arguments["tensors"]
    [tensor([10001., 10002.])]
    """
    return _Maker(call).made()


def flat(value: Any) -> Iterator[Any]:
    """Yield what (nested) lists and tuples hold, in order."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from flat(item)
    else:
        yield value


def mapped(function: Any, value: Any) -> Any:
    """Return `value`, (nested) lists, with `function` applied to what they hold."""
    return [mapped(function, item) for item in value] if isinstance(value, (list, tuple)) else function(value)


class _Maker:
    def __init__(self, call: Call) -> None:
        self.call = call
        batch = call.row.entry.batch
        sent = [kind == "isend" for kind in call.arguments[batch.kinds]] if batch else []
        self.specs: list[tuple[str, int, Spec, bool, bool]] = []  # argument, place, spec, whether read, written
        for name, argument in call.row.by_name.items():
            if argument.kind != "Tensor" or call.arguments.get(name) is None:
                continue
            for place, spec in enumerate(flat(call.arguments[name])):
                reads, writes = name in call.row.reads, name in call.row.writes
                if batch:
                    reads, writes = sent[place], not sent[place]
                if isinstance(spec, Spec):
                    self.specs.append((name, place, spec, reads, writes))
        self.bases: dict[Hashable, torch.Tensor] = {}
        self.tensors: dict[tuple[str, int], torch.Tensor] = {}

    def made(self) -> Made:
        for key, length, dtype in self.allocations():
            self.bases[key] = torch.full((length + 2 * _PAD,), _CANARY).to(dtype)
        raw = [self.raw(spec) for _, _, spec, _, _ in self.specs]
        for (name, place, spec, reads, _), memory in zip(self.specs, raw, strict=True):
            if not reads:
                _fill(memory, spec, torch.full(memory.shape, _UNWRITTEN).to(memory.dtype))
            self.tensors[name, place] = self.viewed(spec, memory)
        for count, ((_, _, spec, reads, _), memory) in enumerate(zip(self.specs, raw, strict=True)):
            if reads:
                _fill(memory, spec, self.values(spec, count))
        for (name, place, spec, _, _), memory in zip(self.specs, raw, strict=True):
            if spec.layout != "strided":
                self.tensors[name, place] = _unstrided(spec, memory)
        arguments = self.nested(lambda tensor: tensor)
        contents = self.nested(_plain)
        return Made(self.call, arguments, contents, self.kept())

    def kept(self) -> tuple[Allocation, ...]:
        writable = {key: torch.zeros(base.shape, dtype=torch.bool) for key, base in self.bases.items()}
        for _, _, spec, _, writes in self.specs:
            if writes:
                mask = writable[self.key(spec)]
                mask.as_strided(spec.shape, spec.stride, _PAD + self.offset(spec)).fill_(True)
        return tuple(Allocation(base, base.clone(), writable[key]) for key, base in self.bases.items())

    def nested(self, function: Any) -> dict[str, Any]:
        result: dict[str, Any] = dict(self.call.arguments)
        for name, argument in self.call.row.by_name.items():
            if argument.kind == "Tensor" and self.call.arguments.get(name) is not None:
                places = itertools.count()
                result[name] = mapped(
                    lambda each, name=name, places=places: (
                        function(self.tensors[name, next(places)]) if isinstance(each, Spec) else each
                    ),
                    self.call.arguments[name],
                )
        return result

    def key(self, spec: Spec) -> Hashable:
        return ("storage", spec.memory.storage) if spec.memory is not None else id(spec)

    def offset(self, spec: Spec) -> int:
        return 0 if spec.memory is None else int(spec.memory.offset)

    def allocations(self) -> Iterator[tuple[Hashable, int, torch.dtype]]:
        """Yield each allocation's key, the elements that it must hold, and their dtype."""
        lengths: dict[Hashable, int] = {}
        dtypes: dict[Hashable, torch.dtype] = {}
        for name, _, spec, _, _ in self.specs:
            key = self.key(spec)
            if spec.shape is None or spec.dtype is None:
                raise CallError(f"{self.call.op}: {name} is {spec!r}, of which no tensor can be made")
            if dtypes.setdefault(key, spec.dtype) is not spec.dtype:
                raise CallError(f"{self.call.op}: {name} shares memory with a tensor of another dtype")
            reach = sum(step * (n - 1) for n, step in zip(spec.shape, spec.stride, strict=True))
            end = 0 if 0 in spec.shape else self.offset(spec) + reach + 1
            lengths[key] = max(lengths.get(key, 0), end)
        for key, length in lengths.items():
            yield key, length, dtypes[key]

    def raw(self, spec: Spec) -> torch.Tensor:
        return self.bases[self.key(spec)].as_strided(spec.shape, spec.stride, _PAD + self.offset(spec))

    def viewed(self, spec: Spec, memory: torch.Tensor) -> torch.Tensor:
        if "conj" in spec.view:
            memory = memory.conj()
        return torch._neg_view(memory) if "neg" in spec.view else memory

    def values(self, spec: Spec, place: int) -> torch.Tensor:
        reduce_op = self.call.attribute("reduce_op")
        return _encoded(spec, self.call.group.rank, place, reduce_op)


def _encoded(spec: Spec, rank: int, place: int, reduce_op: str | None) -> torch.Tensor:
    """Return values that encode rank, tensor and position, as well as the dtype can.

    What is reduced stays exact: sums of a few small numbers, products of 1, 2 and -1.
    """
    assert spec.dtype is not None
    position = torch.arange(spec.numel)
    code = rank * 61 + place * 17 + position
    if spec.dtype is torch.bool:
        values = (rank * 73 + place * 31 + position * 11) % 7 < 4
    elif reduce_op == "product":
        values = torch.tensor([1, 2, -1])[(rank * 5 + place * 3 + position) % 3]
    elif reduce_op is not None and spec.dtype.itemsize <= 2:
        values = (rank * 3 + place * 2 + position) % 5 + 1
    elif spec.dtype in _FEW_VALUES:
        values = code % _FEW_VALUES[spec.dtype] + 1
    else:
        values = rank * 10_000 + place * 1_000 + position + 1
    values = torch.complex(values.double(), -2 * code.double()) if spec.dtype.is_complex else values
    return values.to(spec.dtype).reshape(spec.shape)


def _fill(memory: torch.Tensor, spec: Spec, values: torch.Tensor) -> None:
    """Copy the values; where memory holds an element twice, the first value counts."""
    if spec.overlaps_itself:
        repeated = [dim for dim, step in enumerate(spec.stride) if step == 0]
        for dim in repeated:
            memory, values = memory.narrow(dim, 0, 1), values.narrow(dim, 0, 1)
    memory.copy_(values)


def _unstrided(spec: Spec, memory: torch.Tensor) -> torch.Tensor:
    if spec.layout == "sparse_coo":
        return memory.to_sparse()
    raise CallError(f"layout={spec.layout!r}, but a tensor can be made only of 'strided' or 'sparse_coo'")


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return dense.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8).reshape(tensor.numel(), -1)
