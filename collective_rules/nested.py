"""What (nested) lists hold. Ops take and return tensors in lists, and in lists of lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

_T = TypeVar("_T")


def leaves(values: Iterable[Any], kind: type[_T]) -> Iterator[_T]:
    """Yield the objects of `kind` among `values`, and in their (nested) lists and tuples, in order.

    >>> list(leaves([1, "a", [2, (3, None)]], int))
    [1, 2, 3]
    """
    for value in values:
        if isinstance(value, kind):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from leaves(value, kind)
