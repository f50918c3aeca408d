"""Answers questions about an op, by which a way to break its calls applies or not."""

from __future__ import annotations

from typing import Any

from collective_rules.ops import Row


def is_collective(row: Row) -> bool:
    """Return whether all ranks take part."""
    return not (row.rule.point_to_point or row.rule.one_sided)


def given_parts(row: Row) -> list[Any]:
    """Return the parts that are arguments, each path once."""
    parts: dict[str, Any] = {}
    for part in row.spellings[0].statement.parts:
        if part.path.name not in row.fresh:
            parts.setdefault(str(part.path), part)
    return list(parts.values())


def list_parts(row: Row, index: str) -> list[Any]:
    """Return the arguments that are lists indexed by `index`."""
    return [part for part in given_parts(row) if index in part.path.index]


def has_size(row: Row, kind: type) -> bool:
    """Return whether an argument has a size of this kind."""
    return any(isinstance(size, kind) for part in given_parts(row) for size in part.sizes)


def has_layout(row: Row, *layouts: str) -> bool:
    """Return whether an argument needs one of the layouts."""
    return any(row.layout_of(part.path.name) in layouts for part in given_parts(row))


def holds_two_alike(row: Row) -> bool:
    """Return whether a call holds two tensors that must agree."""
    return is_collective(row) and (row.entry.one_tensor or len(given_parts(row)) > 1 or bool(list_parts(row, "p")))


def may_be_uneven(row: Row) -> bool:
    """Return whether the op takes lists of uneven tensors."""
    return len(row.spellings) > 1 and "pairs" in row.rule.constraints.values() and not row.entry.splits
