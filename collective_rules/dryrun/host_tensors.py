"""The tensors of a dry run that a real run has on the cpu, too, though the program uses an accelerator.

A dry run puts all tensors on the cpu, so their device does not tell. Those that the program itself makes on the cpu
are known here, and what is made of them alone. Of the others, such as torch's own buffers, nothing is known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from collective_rules.nested import leaves

_NAMES = "arange empty eye full linspace ones rand randint randn randperm tensor zeros"
MAKERS = frozenset(getattr(torch, name) for name in _NAMES.split())
"""The functions that make a tensor on the cpu, where the program names no other device."""


class HostTensors:
    """A set of tensors, which keeps none of them alive."""

    def __init__(self) -> None:
        self._tensors: Any = WeakTensorKeyDictionary()

    def __bool__(self) -> bool:
        return bool(self._tensors.data)

    def add(self, value: Any) -> None:
        """Add what a function returned, if it is a tensor."""
        if isinstance(value, torch.Tensor):
            self._tensors[value] = True

    def discard(self, value: Any) -> None:
        """Remove what a function returned, if it is a tensor."""
        if isinstance(value, torch.Tensor):
            self._tensors.pop(value, None)

    def has_all(self, values: Any) -> bool:
        """Return whether there are tensors in `values` and their lists, and all of them belong to the set."""
        places = [tensor in self._tensors for tensor in leaves(values, torch.Tensor)]
        return bool(places) and all(places)

    def follow(self, values: Any, result: Any) -> None:
        """Add the results of an op with the arguments `values`, where all the tensors among those belong to the set."""
        if self.has_all(values):
            for tensor in leaves((result,), torch.Tensor):
                self.add(tensor)
