"""Imports a module by its name, or a file by its path."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path

__all__ = ["import_place"]


def import_place(place: str) -> types.ModuleType:
    """Return the module called `place`, or of the file ".../name.py", which is imported once under its whole path.

    Raises whatever the import raises.

    >>> import_place("math").factorial(3)
    6
    """
    if not place.endswith(".py"):
        return importlib.import_module(place)
    name = str(Path(place).resolve())  # what the file defines can be found again by its module
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, name)
    if spec is None or spec.loader is None:
        raise ImportError(f"no Python module in {place}")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
