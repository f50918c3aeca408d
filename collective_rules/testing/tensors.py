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


@attrs.frozen(eq=False)
class _Entry:
    """One tensor of a call: its argument, its place among all tensors there, and whether the op reads or writes it."""

    name: str
    place: int
    spec: Spec
    reads: bool
    writes: bool

    @property
    def key(self) -> Hashable:
        """The memory: tensors with equal keys share it."""
        return id(self.spec) if self.spec.memory is None else ("storage", self.spec.memory.storage)

    @property
    def offset(self) -> int:
        return 0 if self.spec.memory is None else int(self.spec.memory.offset)

    def within(self, base: torch.Tensor) -> torch.Tensor:
        """Return the elements of `base` that the tensor holds."""
        return base.as_strided(self.spec.shape, self.spec.stride, _PAD + self.offset)


class _Maker:
    def __init__(self, call: Call) -> None:
        self.call = call
        tensors = [name for name, argument in call.row.by_name.items() if argument.kind == "Tensor"]
        self.names = [name for name in tensors if call.arguments.get(name) is not None]
        self.entries = [entry for name in self.names for entry in self.entries_of(name)]
        self.tensors: dict[tuple[str, int], torch.Tensor] = {}

    def entries_of(self, name: str) -> Iterator[_Entry]:
        row, batch = self.call.row, self.call.row.entry.batch
        for place, spec in enumerate(flat(self.call.arguments[name])):
            reads, writes = name in row.reads, name in row.writes
            if batch:
                reads = self.call.arguments[batch.kinds][place] == "isend"
                writes = not reads
            if isinstance(spec, Spec):
                yield _Entry(name, place, spec, reads, writes)

    def made(self) -> Made:
        bases = {key: torch.full((length + 2 * _PAD,), _CANARY).to(dtype) for key, length, dtype in self.allocations()}
        raw = [entry.within(bases[entry.key]) for entry in self.entries]
        for entry, memory in zip(self.entries, raw, strict=True):
            if not entry.reads:
                _fill(memory, entry.spec, torch.full(memory.shape, _UNWRITTEN).to(memory.dtype))
        for count, (entry, memory) in enumerate(zip(self.entries, raw, strict=True)):
            if entry.reads:
                reduce_op = self.call.attribute("reduce_op")
                _fill(memory, entry.spec, _encoded(entry.spec, self.call.group.rank, count, reduce_op))
        for entry, memory in zip(self.entries, raw, strict=True):
            self.tensors[entry.name, entry.place] = _viewed(entry.spec, memory)
        writable = {key: torch.zeros(base.shape, dtype=torch.bool) for key, base in bases.items()}
        for entry in self.entries:
            if entry.writes:
                entry.within(writable[entry.key]).fill_(True)
        kept = tuple(Allocation(base, base.clone(), writable[key]) for key, base in bases.items())
        return Made(self.call, self.nested(lambda tensor: tensor), self.nested(_plain), kept)

    def nested(self, function: Any) -> dict[str, Any]:
        """Return the call's arguments with `function` of each tensor in place of its `Spec`."""
        result: dict[str, Any] = dict(self.call.arguments)
        for name in self.names:
            places = itertools.count()
            result[name] = mapped(
                lambda each, name=name, places=places: (
                    function(self.tensors[name, next(places)]) if isinstance(each, Spec) else each
                ),
                result[name],
            )
        return result

    def allocations(self) -> Iterator[tuple[Hashable, int, torch.dtype]]:
        """Yield each allocation's key, the elements that it must hold, and their dtype."""
        lengths: dict[Hashable, int] = {}
        dtypes: dict[Hashable, torch.dtype] = {}
        for entry in self.entries:
            key, spec = entry.key, entry.spec
            if spec.shape is None or spec.dtype is None:
                raise CallError(f"{self.call.op}: {entry.name} is {spec!r}, of which no tensor can be made")
            if dtypes.setdefault(key, spec.dtype) is not spec.dtype:
                raise CallError(f"{self.call.op}: {entry.name} shares memory with a tensor of another dtype")
            reach = sum(step * (n - 1) for n, step in zip(spec.shape, spec.stride, strict=True))
            end = 0 if 0 in spec.shape else entry.offset + reach + 1
            lengths[key] = max(lengths.get(key, 0), end)
        for key, length in lengths.items():
            yield key, length, dtypes[key]


def _viewed(spec: Spec, memory: torch.Tensor) -> torch.Tensor:
    """Return the tensor of `spec` that lies in `memory`; a sparse tensor is a copy."""
    if spec.layout not in ("strided", "sparse_coo"):
        raise CallError(f"layout={spec.layout!r}, but a tensor can be made only of 'strided' or 'sparse_coo'")
    if spec.layout == "sparse_coo":
        return memory.to_sparse()
    if "conj" in spec.view:
        memory = memory.conj()
    return torch._neg_view(memory) if "neg" in spec.view else memory


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


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return dense.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8).reshape(tensor.numel(), -1)
