"""Replace attributes of torch for a while, by the rows of `patch_table`.

Each replacement belongs to rows of the table, and each row to a replacement; either alone is an error. A function is
also replaced where another module has imported it by name, but not in a closure, a default or a list.
"""

from __future__ import annotations

import functools
import pkgutil
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from collective_rules.dryrun.patch_table import PATCHES, Patch
from collective_rules.errors import CollectiveRulesError

_ABSENT = object()


class Patches:
    """The attributes that were replaced, and their values before.

    >>> patches = Patches([Patch("torch", "compile", "training._compile", "an example")])
    >>> patches.finish()
    >>> torch.compile(3)
    3
    >>> patches.undo()
    """

    def __init__(self, rows: Iterable[Patch] = PATCHES) -> None:
        self._left: dict[str, list[Patch]] = {}
        for row in filter(is_in_force, rows):
            self._left.setdefault(row.by, []).append(row)
        self._done: list[tuple[Any, str, Any]] = []
        self._imported: dict[int, tuple[Any, Any]] = {}

    def replace(self, *replacements: Any) -> None:
        """Replace the attributes of the rows that name these functions and classes.

        A class stands for the attribute; a function is called with the original before the arguments of the call.
        """
        for each in replacements:
            by = f"{each.__module__.rpartition('.')[2]}.{each.__name__}"
            if by not in self._left:
                raise CollectiveRulesError(f"{by} replaces something, but patch_table has no row for it")
            self._apply(by, each)

    def finish(self) -> None:
        """Apply the other rows, whose replacements are global names, and replace functions that were imported."""
        for by in list(self._left):
            try:
                replacement = pkgutil.resolve_name(f"{__package__}.{by}")
            except (ImportError, AttributeError) as error:
                raise CollectiveRulesError(f"patch_table names {by}, but there is no such replacement") from error
            self._apply(by, replacement)
        _exchange(self._imported)

    def undo(self) -> None:
        """Put everything back, also in modules that were imported meanwhile."""
        while self._done:
            owner, name, old = self._done.pop()
            if old is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, old)
        _exchange({id(new): (new, old) for old, new in self._imported.values()})
        self._imported.clear()

    def _apply(self, by: str, replacement: Any) -> None:
        for row in self._left.pop(by):
            missing = absent(row)
            if missing and not row.may_be_absent:
                raise CollectiveRulesError(
                    f"torch {torch.__version__} has no {', '.join(missing)}, but a dry run replaces it, since "
                    f"{row.why}: use a torch that this version of collective_rules supports"
                )
            for owner, name in _targets(row):
                own = vars(owner).get(name, _ABSENT)
                kind = type(own) if isinstance(own, (staticmethod, classmethod)) else None
                old = getattr(own, "__func__", own) if kind else getattr(owner, name)
                new = _made_for(old, replacement)
                self._done.append((owner, name, own))
                setattr(owner, name, kind(new) if kind else new)
                if isinstance(owner, types.ModuleType) and callable(old) and not row.here_only:
                    self._imported[id(old)] = (old, new)


def is_in_force(row: Patch) -> bool:
    """Return whether the running torch is one of the versions of the row."""
    version = torch.__version__
    return bool((not row.since or version >= row.since) and (not row.until or version < row.until))


def absent(row: Patch) -> list[str]:
    """Return the attributes of a row that none of its owners has in the running torch."""
    present = {"*", *(name for _, name in _targets(row))}
    return [f"{row.owners.replace(' ', '|')}.{name}" for name in row.attributes.split() if name not in present]


def calling_module() -> str:
    """Return the module that calls a replaced function; for replacements to ask."""
    frame: Any = sys._getframe(1)
    while frame.f_code.co_filename != __file__:
        frame = frame.f_back
    return str(frame.f_back.f_globals.get("__name__", ""))


def _made_for(old: Any, replacement: Any) -> Any:
    """Return a new object for one original: `undo` knows the original of an object by its identity."""
    if isinstance(replacement, type):
        return type(replacement.__name__, (replacement,), {})
    if not callable(replacement):
        return replacement

    @functools.wraps(old, updated=() if isinstance(old, type) else functools.WRAPPER_UPDATES)
    def call(*args: Any, **named: Any) -> Any:
        return replacement(old, *args, **named)

    return call


def _targets(row: Patch) -> Iterator[tuple[Any, str]]:
    """Yield each owner of a row with each name that it has."""
    for path in row.owners.split():
        try:
            owner = pkgutil.resolve_name(path)
        except (ImportError, AttributeError):
            continue
        for name in row.attributes.split():
            if name != "*" and hasattr(owner, name):
                yield owner, name
            for method, value in list(vars(owner).items()) if name == "*" else ():
                if not method.startswith("__") and (callable(value) or isinstance(value, (staticmethod, classmethod))):
                    yield owner, method


def _exchange(pairs: Mapping[int, tuple[Any, Any]]) -> None:
    for module in list(sys.modules.values()):
        if not isinstance(module, types.ModuleType):
            continue
        names = vars(module)
        for name, value in list(names.items()):
            if id(value) in pairs:
                names[name] = pairs[id(value)][1]
