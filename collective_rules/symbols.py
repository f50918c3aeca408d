"""Questions about sizes that may be SymInts; none adds a guard."""

from __future__ import annotations

from typing import Any


def hint(size: Any) -> int | None:
    """Return the number behind `size`: itself, the hint of a backed SymInt, or None for an unbacked SymInt."""
    if isinstance(size, int):
        return size
    return int(size.node.hint) if size.node.has_hint() else None


def number(count: Any) -> float:
    """Return a count, as of bytes, as a plain number: the hint of a symbolic one, 0 if only the run knows it.

    >>> number(3), number(2.5)
    (3, 2.5)
    """
    return count if isinstance(count, (int, float)) else hint(count) or 0


def known(condition: Any) -> bool | None:
    """Return whether `condition` (a bool or SymBool) holds, None if only the run will tell.

    The answer to a backed SymBool is its hint, which does not specialise the program.
    """
    if isinstance(condition, bool):
        return condition
    if condition.node.has_hint():
        return bool(condition.node.hint)
    from torch import sym_not  # noqa: PLC0415 - only symbolic programs need these, and the next is slow to import
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # noqa: PLC0415

    if statically_known_true(condition):
        return True
    return False if statically_known_true(sym_not(condition)) else None


def same(a: Any, b: Any) -> bool | None:
    """Return whether two sizes, or two shapes, are equal; None if only the run will tell."""
    if isinstance(a, tuple):
        if len(a) != len(b):
            return False
        answers = [same(x, y) for x, y in zip(a, b, strict=True)]
        return False if False in answers else None if None in answers else True
    return a is b or known(a == b)
