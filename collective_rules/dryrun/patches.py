"""Replacing attributes of torch for a while, also where another module has imported them by name.

Knows nothing of torch. It does not see a reference kept elsewhere than in a module: in a closure, a default, a list.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Mapping
from typing import Any

__all__ = ["Patches"]

_ABSENT = object()


class Patches:
    """Attributes that were replaced, and what they were.

    >>> import math
    >>> patches = Patches()
    >>> patches.replace(math, "tau", 6)
    >>> math.tau
    6
    >>> patches.undo()
    >>> round(math.tau, 2)
    6.28
    """

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any]] = []
        self._by_name: dict[int, tuple[Any, Any]] = {}

    def replace(self, owner: Any, name: str, new: Any) -> None:
        """Set `owner`'s attribute `name`; what it held itself (not by inheritance) comes back with `undo`."""
        self._done.append((owner, name, vars(owner).get(name, _ABSENT)))
        setattr(owner, name, new)

    def replace_function(self, owner: Any, name: str, new: Any) -> None:
        """Like `replace`, and `spread` replaces it where modules imported it by name."""
        old, new = getattr(owner, name), _distinct(new)
        self.replace(owner, name, new)
        self._by_name[id(old)] = (old, new)

    def spread(self) -> None:
        """Replace the functions in the modules that imported them by name."""
        _exchange(self._by_name)

    def undo(self) -> None:
        """Put everything back, also where a module was imported meanwhile."""
        while self._done:
            owner, name, old = self._done.pop()
            if old is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, old)
        _exchange({id(new): (new, old) for old, new in self._by_name.values()})
        self._by_name.clear()


def _distinct(new: Any) -> Any:
    """Return a copy of a function or class: it is found again by its identity, and must then mean one thing only."""
    if isinstance(new, type):
        return type(new.__name__, (new,), {})
    if not isinstance(new, types.FunctionType):
        return new
    copy = types.FunctionType(new.__code__, new.__globals__, new.__name__, new.__defaults__, new.__closure__)
    copy.__kwdefaults__ = new.__kwdefaults__
    return functools.update_wrapper(copy, new, updated=("__dict__",))


def _exchange(pairs: Mapping[int, tuple[Any, Any]]) -> None:
    for module in list(sys.modules.values()):
        if not isinstance(module, types.ModuleType):
            continue
        names = vars(module)
        for name, value in list(names.items()):
            if id(value) in pairs:
                names[name] = pairs[id(value)][1]
