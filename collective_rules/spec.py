"""A tensor and a group as data, without contents and processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard

import attrs
import torch

from collective_rules.errors import CallError
from collective_rules.symbols import hint


def is_size(value: object) -> TypeGuard[int]:
    """Return whether `value` can be a size: an int or a SymInt, not a bool."""
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a fresh tensor of `shape`; as in torch, a size of 0 counts as 1.

    >>> contiguous_stride((4, 0, 3))
    (3, 3, 1)
    """
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step = step * (max(size, 1) if isinstance(size, int) else torch.sym_max(size, 1))
    return tuple(reversed(strides))


def _sizes(value: object, what: str) -> tuple[int, ...]:
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, torch.Tensor)):
        sizes = tuple(value)
        if all(is_size(size) for size in sizes):
            if any(isinstance(size, int) and size < 0 for size in sizes):
                raise CallError(f"{what}={sizes!r}, but none of its numbers may be negative")
            return sizes
    raise CallError(f"{what}={value!r}, but should be a tuple of sizes such as (16, 4)")


@attrs.frozen
class Memory:
    """The place of a tensor: `storage` identifies the allocation, `offset` counts elements from its start."""

    storage: int
    offset: Any


@attrs.frozen(slots=False, eq=False, init=False, repr=False)
class Spec:
    """A tensor without its contents.

    - `shape`: sizes, ints or SymInts; None if unknown.
    - `dtype`: a `torch.dtype`; None if unknown.
    - `stride`: in elements; by default that of a contiguous tensor.
    - `device`: the device type, "cpu".
    - `layout`: "strided", or torch's name of another layout ("sparse_coo").
    - `view`: "conj" or "neg" (or "conj neg") for torch's lazy views, which raw memory does not show.
    - `memory`: its place, if known. The same `Spec` object passed twice is the same memory.
    - `alias`: in results of `infer`, the argument whose memory this is; None for fresh memory.
    - `plain`: whether all is known and usual: sizes are ints, contiguous, no view.

    Two specs are equal if shape, dtype, strides, device, layout and view are; memory and alias do not count.
    Malformed arguments raise `CallError`.

    >>> Spec((16, 4), torch.bfloat16)
    Spec((16, 4), bfloat16)
    >>> Spec((2, 3)).stride
    (3, 1)
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str = "cpu"
    layout: str = "strided"
    view: str = ""
    memory: Memory | None = None
    alias: str | None = None
    plain: bool = False
    _stride: tuple[int, ...] | None = None

    def __init__(
        self,
        shape: Iterable[int] | None,
        dtype: torch.dtype | None = torch.float32,
        stride: Iterable[int] | None = None,
        device: str = "cpu",
        *,
        layout: str = "strided",
        view: str = "",
        memory: Memory | None = None,
        alias: str | None = None,
    ) -> None:
        ints = type(shape) is tuple
        for size in shape if ints else ():  # type: ignore[union-attr]  # a tuple here
            if type(size) is not int or size < 0:
                ints = False
                break
        if not ints and shape is not None:
            shape = _sizes(shape, "shape")
            ints = all(type(size) is int for size in shape)
        if type(dtype) is not torch.dtype and dtype is not None:
            raise CallError(f"dtype={dtype!r}, but should be a torch.dtype such as torch.float32")
        if stride is not None:
            stride = _sizes(stride, "stride")
            if shape is None or len(stride) != len(shape):  # type: ignore[arg-type]  # a tuple by now
                raise CallError(f"stride={stride!r}, but should have one number for each size of shape={shape!r}")
            if ints and stride == contiguous_stride(shape):  # type: ignore[arg-type]  # a tuple by now
                stride = None
        if type(device) is not str:
            device = device.type if isinstance(device, torch.device) else _no_device(device)
        fields = self.__dict__
        fields["shape"], fields["dtype"], fields["device"], fields["layout"] = shape, dtype, device, layout
        fields["view"], fields["memory"], fields["alias"] = view, memory, alias
        fields["plain"] = ints and stride is None and layout == "strided" and not view and dtype is not None
        fields["_stride"] = stride

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Spec:
        """Describe `tensor` (of any device, meta and fake too) without touching its data."""
        if tensor.is_nested:  # it has no sizes that are numbers
            return cls(None, tensor.dtype, None, tensor.device.type, layout="nested")
        strided = tensor.layout is torch.strided
        view = ("conj" if tensor.is_conj() else "") + (" neg" if tensor.is_neg() else "")
        return cls(
            tuple(tensor.shape),
            tensor.dtype,
            tensor.stride() if strided else None,
            tensor.device.type,
            layout="strided" if strided else str(tensor.layout).removeprefix("torch."),
            view=view.strip(),
            memory=_memory(tensor),
        )

    def with_alias(self, name: str | None) -> Spec:
        """Return the same tensor, as the memory of the argument `name` (None: fresh)."""
        copy = object.__new__(Spec)
        copy.__dict__.update(self.__dict__, alias=name)
        return copy

    @property
    def stride(self) -> tuple[int, ...]:
        """The strides in elements, computed if they were left out; `()` if the shape is unknown."""
        return contiguous_stride(self.shape or ()) if self._stride is None else self._stride

    @property
    def numel(self) -> int:
        """The number of elements; the shape must be known."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The payload in bytes: logical elements times the size of one, never the storage behind a view."""
        return self.numel * self.dtype.itemsize

    def _numbers(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return sizes and strides as ints, SymInts by their hints; None if strides were left out or are unknown."""
        if self._stride is None:
            return None
        shape, stride = tuple(map(hint, self.shape)), tuple(map(hint, self._stride))
        return None if None in shape + stride else (shape, stride)  # type: ignore[return-value]  # no None left

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements lie in memory in row-major order without gaps; sizes of 1 do not count."""
        numbers = self._numbers()
        if numbers is None or 0 in numbers[0]:
            return True
        shape, stride = numbers
        return all(n == 1 or a == b for n, a, b in zip(shape, stride, contiguous_stride(shape), strict=True))

    @property
    def has_odd_strides(self) -> bool:
        """Whether it is contiguous, but has other strides than a fresh tensor along sizes of 1.

        >>> Spec((1, 2), stride=(1, 1)).has_odd_strides, Spec((1, 2)).has_odd_strides
        (True, False)
        """
        return self._stride is not None and self.is_contiguous and 0 not in map(hint, self.shape)

    @property
    def order(self) -> tuple[int, ...] | None:
        """The dims of a dense tensor from the slowest to the fastest in memory; None if it is not dense.

        Sizes of 1 do not count, and a contiguous tensor's order is `()`.

        >>> Spec((2, 3), stride=(1, 2)).order
        (1, 0)
        >>> Spec((2, 3), stride=(6, 2)).order is None
        True
        """
        numbers = self._numbers()
        if numbers is None or self.is_contiguous:
            return ()
        shape, stride = numbers
        dims = sorted((d for d, n in enumerate(shape) if n != 1), key=lambda d: stride[d], reverse=True)
        step = 1
        for d in reversed(dims):
            if stride[d] != step:
                return None
            step *= shape[d]
        return tuple(dims)

    @property
    def has_one_order(self) -> bool:
        """Whether every order of its dims is the same memory: it is empty, or has at most one size other than 1."""
        sizes = tuple(map(hint, self.shape))
        return 0 in sizes or sum(n != 1 for n in sizes) < 2

    @property
    def overlaps_itself(self) -> bool:
        """Whether two of its elements may share memory, as in an expanded tensor."""
        numbers = self._numbers()
        if numbers is None or 0 in numbers[0]:
            return False
        reach = 0
        for stride, n in sorted((stride, n) for n, stride in zip(*numbers, strict=True) if n > 1):
            if stride <= reach:
                return True
            reach += stride * (n - 1)
        return False

    def extent(self) -> tuple[int, int, int] | None:
        """Return (storage, first byte, one past the last byte) that it may touch; None if unknown."""
        shape, stride = tuple(map(hint, self.shape or ())), tuple(map(hint, self.stride))
        offset = hint(self.memory.offset) if self.memory is not None else None
        if self.memory is None or self.dtype is None or offset is None or 0 in shape or None in shape + stride:
            return None
        reach = sum(step * (n - 1) for n, step in zip(shape, stride, strict=True))  # type: ignore[operator,misc]  # no None
        start = offset * self.dtype.itemsize
        return self.memory.storage, start, start + (reach + 1) * self.dtype.itemsize

    def _key(self) -> tuple[object, ...]:
        return self.shape, self.dtype, self.stride, self.device, self.layout, self.view

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Spec):
            return NotImplemented
        return self is other or self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.shape, self.dtype))

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        extra = "" if self.is_contiguous_or_unknown else f", stride={self.stride}"
        for name, default in (("device", "cpu"), ("layout", "strided"), ("view", ""), ("alias", None)):
            value = getattr(self, name)
            extra += "" if value == default else f", {name}={value!r}"
        return f"Spec({self.shape}, {dtype}{extra})"

    @property
    def is_contiguous_or_unknown(self) -> bool:
        """Whether its strides need no mention."""
        return self.shape is None or self.is_contiguous


def _no_device(device: object) -> str:
    raise CallError(f"device={device!r}, but should be a device type such as 'cpu' or 'cuda'")


def _memory(tensor: torch.Tensor) -> Memory | None:
    try:
        return Memory(tensor.untyped_storage()._cdata, tensor.storage_offset())
    except (RuntimeError, NotImplementedError, TypeError):  # sparse tensors and wrapper subclasses have no storage
        return None


@attrs.frozen
class Group:
    """A process group as one of its ranks sees it: `size` ranks, this one being `rank` (0-based, in the group).

    `name` and `ranks` (the global rank of each group rank) serve reports; rules do not need them.

    >>> Group(size=8, rank=3)
    Group(size=8, rank=3, name='', ranks=())
    >>> Group(size=8, rank=8)
    Traceback (most recent call last):
    collective_rules.errors.CallError: rank=8, but should be 0 to 7 in a group of 8
    """

    size: int = attrs.field()
    rank: int = attrs.field(default=0)
    name: str = ""
    ranks: tuple[int, ...] = ()

    def __attrs_post_init__(self) -> None:
        for what in ("size", "rank"):
            value: Any = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int):
                raise CallError(f"{what}={value!r}, but should be an int")
        if self.size < 1:
            raise CallError(f"size={self.size}, but a group has at least one rank")
        if not 0 <= self.rank < self.size:
            raise CallError(f"rank={self.rank}, but should be 0 to {self.size - 1} in a group of {self.size}")
        if not isinstance(self.name, str):
            raise CallError(f"name={self.name!r}, but should be a string")
        ranks = tuple(self.ranks) if isinstance(self.ranks, (list, tuple, range)) else None
        if ranks is None or not all(is_size(rank) and rank >= 0 for rank in ranks):
            raise CallError(f"ranks={self.ranks!r}, but should be a tuple of global ranks")
        if ranks and not len(ranks) == len(set(ranks)) == self.size:
            raise CallError(f"ranks={self.ranks!r}, but should name {self.size} global ranks, one for each group rank")
        object.__setattr__(self, "ranks", ranks)

    @property
    def global_rank(self) -> int:
        """This rank as the job counts it; the group rank where the group does not list its ranks."""
        return self.to_global(self.rank)

    def to_global(self, rank: int) -> int:
        """Return the global rank of a group rank; the same number where the group does not list its ranks.

        >>> Group(size=2, rank=0, ranks=(4, 6)).to_global(1)
        6
        """
        return self.ranks[rank] if self.ranks and 0 <= rank < self.size else rank
