"""Tools for tests of collectives: real ranks in one process, drawn calls, broken calls, and a sandbox for those.

`docs/testing.md` shows how they are used together. Only the names that draw import hypothesis.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from collective_rules.testing.world import Returned, World, WorldTimeout, close_worlds, world

if TYPE_CHECKING:
    from collective_rules.sandbox import Result, Sandbox
    from collective_rules.testing.run_calls import TRY_CALLS, carry_out, payload_of
    from collective_rules.testing.strategies import Broken, broken_calls, calls, sample, ways_to_break

__all__ = [
    "TRY_CALLS",
    "Broken",
    "Result",
    "Returned",
    "Sandbox",
    "World",
    "WorldTimeout",
    "broken_calls",
    "calls",
    "carry_out",
    "close_worlds",
    "payload_of",
    "sample",
    "ways_to_break",
    "world",
]

_HOMES = {
    "collective_rules.sandbox": ("Result", "Sandbox"),
    "collective_rules.testing.strategies": ("Broken", "broken_calls", "calls", "sample", "ways_to_break"),
    "collective_rules.testing.run_calls": ("TRY_CALLS", "carry_out", "payload_of"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
