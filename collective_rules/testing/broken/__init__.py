"""Breaks exactly one thing in a legal group of calls, and names the constraint that this violates. The ways are tables.

A constraint between ranks is broken by one rank's call from another group, in which one name has another value: each
call is legal by itself. Another constraint is broken in one argument of one rank's call. A backend's limit is broken
on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from collective_rules.backends import limits_of, matching_of, spellings_of
from collective_rules.ops import Row
from collective_rules.ops.op import CONTIGUOUS
from collective_rules.testing.broken.attributes import ATTRIBUTES
from collective_rules.testing.broken.limits import beyond
from collective_rules.testing.broken.memory import MEMORY
from collective_rules.testing.broken.ranks import RANKS
from collective_rules.testing.broken.scene import Broken, Scene
from collective_rules.testing.broken.sizes import SIZES

__all__ = ["BREACHES", "Broken", "Scene", "ways_of"]

BREACHES = SIZES + ATTRIBUTES + MEMORY + RANKS
"""The ways to break a rule's constraints. Each applies to the ops whose rule lists its kind."""


def ways_of(row: Row, backend: str | None) -> Mapping[str, Callable[[Scene], Broken]]:
    """Return the ways to break a legal group of calls of `row`: name → what draws one."""
    kinds = set(row.rule.constraints.values())
    forms = {"", *(spelling.form.name for spelling in spellings_of(backend, row))}
    straight = any(CONTIGUOUS in (limit.layouts or {}).values() for limit in limits_of(backend, row))
    in_order = not matching_of(backend).tags
    taken = [way for way in BREACHES if way.kind in kinds and way.form in forms and way.applies(row)]
    found = [way for way in taken if not (way.strides and straight) and not (way.tags and in_order)]
    beyond_limits = beyond(row, backend) if row.available else ()
    ways = {way.name: way.broken for way in found}
    return ways | {f"beyond {limit.id}, {column}": broken for limit, column, broken in beyond_limits}
