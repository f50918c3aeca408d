"""Finds an object by the place that defines it, "package.module:name" or "/path/to/file.py:name"; runs a program."""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collective_rules.errors import CallError, text_of


def found_at(place: str, argument: str, fits: Callable[[Any], bool]) -> Any:
    """Return the object at `place`. `argument` names the parameter for errors, `fits` marks names for the hint.

    Raises `CallError` for a module, file or attribute that is not there, and for a module that cannot be imported.

    >>> import math
    >>> found_at("math:tau", "limits", callable)
    6.28...
    >>> found_at("math:cosine", "limits", lambda value: value is math.cos)
    Traceback (most recent call last):
    collective_rules.errors.CallError: limits='math:cosine', but math has no cosine; it has cos
    """
    source, _, name = place.rpartition(":")
    if source.endswith(".py") and not Path(source).is_file():
        raise CallError(f"{argument}={place!r}, but there is no file {source}")
    try:
        module = import_place(source)
    except (Exception, SystemExit) as error:  # a script without a guard ends the program that imports it
        raise CallError(f"{argument}={place!r}, but {source} cannot be imported: {described(error)}") from None
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise CallError(f"{argument}={place!r}, but {source} has no {name}{_near(module, fits)}")
        value = getattr(value, part)
    return value


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


def _near(module: types.ModuleType, fits: Callable[[Any], bool]) -> str:
    """Return the names of the module that fit, as a hint."""
    names = [name for name, value in vars(module).items() if not name.startswith("_") and fits(value)]
    return f"; it has {', '.join(names)}" if names else ""


def described(error: BaseException) -> str:
    """Return an exception's class and text.

    >>> described(ValueError("no"))
    'ValueError: no'
    """
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def run_as_main(name: str, *, is_file: bool) -> None:
    """Run a file, or the module `name`, as `__main__`."""
    if is_file:
        runpy.run_path(name, run_name="__main__")
    else:
        runpy.run_module(name, run_name="__main__", alter_sys=True)


def status_of(ending: SystemExit) -> int:
    """Return the exit status of a process that ends so.

    >>> status_of(SystemExit()), status_of(SystemExit(7)), status_of(SystemExit("no data"))
    (0, 7, 1)
    """
    return ending.code if isinstance(ending.code, int) else int(ending.code is not None)
