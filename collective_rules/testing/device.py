"""A call's tensors on another device than the CPU, and back."""

from __future__ import annotations

from typing import Any

import torch

from collective_rules.errors import CallError
from collective_rules.testing.tensors import Made, mapped


def checked_device(name: str) -> torch.device:
    """Return the device called `name`: "cpu", or the type of this machine's accelerator, of which each rank gets one.

    Raises `CallError` for any other.

    >>> checked_device("cpu")
    device(type='cpu')
    >>> checked_device("nonsense")
    Traceback (most recent call last):
    collective_rules.errors.CallError: device='nonsense', but should be 'cpu' or a type of accelerator such as 'cuda'
    """
    wanted = "should be 'cpu' or a type of accelerator such as 'cuda'"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise CallError(f"device={name!r}, but {wanted}") from None
    if device.index is not None:
        raise CallError(f"device={name!r}, but {wanted}: each rank takes one by its number")
    if device.type == "cpu":
        return device
    here = torch.accelerator.current_accelerator(check_available=True)
    if here is None or here.type != device.type or not torch.accelerator.device_count():
        raise CallError(
            f"device={name!r}, but torch {torch.__version__} finds no such device here ({_missing(device.type, here)})"
        )
    return device


def _missing(device: str, here: torch.device | None) -> str:
    """Return what this machine, or this torch, lacks."""
    present = "none" if here is None else repr(here.type)
    if device != "cuda" or here is not None:
        return f"found: {present}"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"found: {present}; this torch is built without CUDA: install one with it, on a machine with a GPU"
    return f"found: {present}; no GPU or no driver: see nvidia-smi, and CUDA_VISIBLE_DEVICES"


def device_count(name: str) -> int | None:
    """Return how many devices of that type are here; None for the CPU, which all ranks share.

    Raises what `checked_device` raises.

    >>> device_count("cpu") is None
    True
    """
    return None if checked_device(name).type == "cpu" else torch.accelerator.device_count()


class DeviceTensors:
    """A call's tensors on another device: a copy of each allocation, and the same views of the copies.

    `carried_back` copies them back to the call's own memory, where they are judged.

    >>> import collective_rules as cr
    >>> from collective_rules.testing.tensors import make
    >>> made = make(cr.call("c10d::allreduce_", group=cr.Group(2, 1), tensors=[cr.Spec((2, 2), stride=(1, 2))]))
    >>> there = DeviceTensors(made, torch.device("cpu"))
    >>> there.arguments["tensors"][0].zero_().stride(), made.arguments["tensors"][0].sum() == 0
    ((1, 2), tensor(False))
    >>> (back,) = there.carried_back((there.arguments["tensors"][0],))
    >>> made.arguments["tensors"][0].tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    >>> back.untyped_storage().data_ptr() == made.allocations[0].base.untyped_storage().data_ptr()
    True
    """

    def __init__(self, made: Made, device: torch.device) -> None:
        self._bases = [(each.base, each.base.to(device, copy=True)) for each in made.allocations]
        self._there = {_memory(here)._cdata: _memory(there) for here, there in self._bases}
        self._here = {_memory(there)._cdata: _memory(here) for here, there in self._bases}
        self._sparse: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._device = device
        self.arguments = {name: mapped(self._sent, value) for name, value in made.arguments.items()}
        row = made.call.row
        if not row.spellings[0].statement.parts:  # a barrier's tensor only says on which device the barrier is
            unsaid = [each.name for each in row.arguments if each.kind == "Tensor" and not each.depth]
            self.arguments |= {name: torch.empty(0, device=device) for name in unsaid if name not in made.arguments}

    def carried_back(self, returned: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the op's values on the CPU; those that lie in memory of the call lie in the call's own."""
        for here, there in (*self._bases, *self._sparse):
            here.copy_(there)
        return tuple(mapped(self._back, value) for value in returned)

    def _sent(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.layout is torch.strided:
            return _viewed(value, self._there[_memory(value)._cdata])
        there = value.to(self._device, copy=True)
        self._sparse.append((value, there))
        return there

    def _back(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if value.layout is not torch.strided:
            return next((here for here, there in self._sparse if there is value), value.cpu())
        memory = _memory(value)
        return _viewed(value, self._here[memory._cdata] if memory._cdata in self._here else memory.cpu())


def _memory(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _viewed(like: torch.Tensor, memory: torch.UntypedStorage) -> torch.Tensor:
    """Return a tensor in `memory` with the offset, shape, strides and view of `like`."""
    plain = torch.empty(0, dtype=like.dtype, device=memory.device)
    plain.set_(memory, like.storage_offset(), like.shape, like.stride())
    view = plain.conj() if like.is_conj() else plain
    return torch._neg_view(view) if like.is_neg() else view
