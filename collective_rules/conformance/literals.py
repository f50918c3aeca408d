"""Writes tensors as expressions of plain PyTorch: values, strides, views, and shared memory. It knows no call."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch

_INFERRED = {torch.float32, torch.int64, torch.bool}
_ARANGES = {torch.float32, torch.float64, torch.int64, torch.int32}
_LONG = 8


def literal(tensor: torch.Tensor) -> str:
    """Return an expression for a fresh contiguous tensor of these values.

    >>> literal(torch.tensor([[1.0, 2.5]])), literal(torch.full((2, 3), 5, dtype=torch.int32))
    ('torch.tensor([[1.0, 2.5]])', 'torch.full((2, 3), 5, dtype=torch.int32)')
    >>> literal(torch.arange(3.0, 15.0).reshape(3, 4))
    'torch.arange(3.0, 15.0).reshape((3, 4))'
    """
    dtype = "" if tensor.dtype in _INFERRED else f", dtype={tensor.dtype}"
    shape = _tuple(tensor.shape)
    values = _values(tensor)
    flat = values.reshape(-1)
    if not tensor.numel():
        return f"torch.empty({shape}, dtype={tensor.dtype})"
    if tensor.numel() > 1 and bool((flat == flat[0]).all()):
        return f"torch.full({shape}, {_text(flat[0].tolist())}{dtype})"
    start = _start(flat)
    if start is not None:
        return _arange(start, tensor)
    if flat.is_complex() and not bool(torch.isfinite(torch.view_as_real(flat)).all()):
        return f"torch.view_as_complex({literal(torch.view_as_real(values.contiguous()))})"
    return f"torch.tensor({_text(values.tolist())}{dtype})"


def alike(tensors: Sequence[torch.Tensor]) -> str | None:
    """Return one expression for the tensors of all ranks, which may speak of `rank`; None where there is none.

    >>> alike([torch.arange(1.0, 13.0) + 10_000 * rank for rank in range(3)])
    'torch.arange(1.0, 13.0) + 10000 * rank'
    """
    first = tensors[0]
    if any(each.shape != first.shape or each.dtype != first.dtype for each in tensors) or not first.numel():
        return None
    values = [_values(each).reshape(-1) for each in tensors]
    starts: list[Any] = [_start(each) if len(each) > 1 else None for each in values]
    if first.dtype not in _ARANGES or len(tensors) < 2 or any(start is None for start in starts):
        return None
    step = starts[1] - starts[0]
    if any(after - before != step for before, after in itertools.pairwise(starts)):
        return None
    return f"{_arange(starts[0], first)} + {_text(int(step))} * rank"


def _start(flat: torch.Tensor) -> Any:
    """Return the first of values that count up by 1; None for other values, or too few to tell."""
    if len(flat) <= _LONG or flat.dtype is torch.bool or flat.is_complex():
        return None
    wide = flat.to(torch.float64)
    if not bool(torch.isfinite(wide).all()) or not torch.equal(wide, wide[0] + torch.arange(len(wide)).to(wide.dtype)):
        return None
    start: Any = flat[0].tolist()
    return start


def _arange(start: float, tensor: torch.Tensor) -> str:
    end = start + tensor.numel()
    plain = tensor.dtype in _INFERRED
    given = f", dtype={tensor.dtype}" if tensor.dtype in _ARANGES and not plain else ""
    cast = "" if tensor.dtype in _ARANGES else f".to({tensor.dtype})"
    shape = "" if tensor.dim() == 1 else f".reshape({_tuple(tensor.shape)})"
    return f"torch.arange({_text(start)}, {_text(end)}{given}){cast}{shape}"


def _values(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values in a dtype that Python can list."""
    narrow = tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1
    return tensor.to(torch.float32) if narrow else tensor


def _tuple(sizes: Sequence[int]) -> str:
    return repr(tuple(sizes)) if len(sizes) != 1 else f"({sizes[0]},)"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "torch.nan", "inf": "torch.inf", "-inf": "-torch.inf"}[str(value)]
    return repr(value)


@attrs.define
class _Region:
    """The part of one allocation in which tensors lie."""

    name: str
    values: torch.Tensor
    start: int


class Writer:
    """Writes one rank's tensors. Tensors that share memory become slices of a tensor that is named `memory`.

    With `everything`, each allocation becomes such a tensor, so that a write beside a tensor shows.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], *, everything: bool = False) -> None:
        self._regions: dict[int, _Region] = {}
        groups: dict[int, list[torch.Tensor]] = {}
        for tensor in tensors:
            if tensor.layout is torch.strided and (tensor.numel() or everything):
                groups.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)
        for key, members in groups.items():
            if everything or len(members) > 1:
                base = whole(members[0])
                low = 0 if everything else min(int(each.storage_offset()) for each in members)
                high = len(base) if everything else max(_end(each) for each in members)
                name = "memory" if not self._regions else f"memory{len(self._regions) + 1}"
                self._regions[key] = _Region(name, base[low:high].clone(), low)

    def memory(self) -> Iterator[tuple[str, str, int]]:
        """Yield each piece of shared memory: its name, an expression for it, and the allocation that it is of."""
        for key, region in self._regions.items():
            yield region.name, literal(region.values), key

    def __call__(self, tensor: torch.Tensor) -> str:
        """Return an expression for `tensor`."""
        if tensor.layout is not torch.strided:
            return f"{literal(tensor.to_dense())}.to_sparse()"
        raw = plain(tensor)
        if tensor.is_neg():
            return f"torch._neg_view({self._raw(raw)})"
        return f"{self._raw(raw)}.conj()" if tensor.is_conj() else self._raw(raw)

    def is_shared(self, tensor: torch.Tensor) -> bool:
        """Return whether the tensor is written as a part of `memory`."""
        return tensor.layout is torch.strided and tensor.untyped_storage()._cdata in self._regions

    def _raw(self, tensor: torch.Tensor) -> str:
        region = self._regions.get(tensor.untyped_storage()._cdata)
        if region is not None:
            return _slice(region, tensor)
        if tensor.is_contiguous():
            return literal(tensor)
        shape = tuple(tensor.shape)
        if 0 not in tensor.stride():
            dtype = "" if tensor.dtype is torch.float32 else f", dtype={tensor.dtype}"
            values = literal(tensor.contiguous())
            return f"torch.empty_strided({_tuple(shape)}, {_tuple(tensor.stride())}{dtype}).copy_({values})"
        narrow = tensor
        for dim, step in enumerate(tensor.stride()):
            narrow = narrow.narrow(dim, 0, 1) if step == 0 else narrow
        if narrow.contiguous().expand(shape).stride() == tensor.stride():
            return f"{literal(narrow.contiguous())}.expand({_tuple(shape)})"
        base = whole(tensor)[tensor.storage_offset() : _end(tensor)]
        return f"{literal(base)}.as_strided({_tuple(shape)}, {_tuple(tensor.stride())})"


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the allocation of a tensor, as one dim."""
    storage = tensor.untyped_storage()
    count = storage.nbytes() // tensor.itemsize
    return torch.empty(0, dtype=tensor.dtype).set_(storage, 0, (count,), (1,))


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor as it lies in memory, without the views that conjugate or negate it."""
    if not (tensor.is_neg() or tensor.is_conj()):
        return tensor
    return whole(tensor).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _end(tensor: torch.Tensor) -> int:
    if not tensor.numel():
        return int(tensor.storage_offset())
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + reach + 1)


def _slice(region: _Region, tensor: torch.Tensor) -> str:
    start = tensor.storage_offset() - region.start
    if not tensor.is_contiguous():
        return f"{region.name}.as_strided({_tuple(tensor.shape)}, {_tuple(tensor.stride())}, {start})"
    shape = "" if tensor.dim() == 1 else f".view({_tuple(tensor.shape)})"
    return f"{region.name}[{start}:{start + tensor.numel()}]{shape}"
