"""Which dtypes gloo moves, and which it reduces how: the table of limits against a real group of one.

A group of one is enough: gloo's verdict on a dtype depends neither on the group's size nor on the tensor's.
"""

from typing import Any

import pytest
import torch

import collective_rules as cr
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.notation import Part
from collective_rules.ops import Row
from collective_rules.testing import world
from collective_rules.testing.world import has_cpu_kernel

DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.bool, torch.complex64, torch.complex128),
)


def has_verdict(row: Row) -> bool:
    """Whether the op moves tensors that a group of one can pass; a rank sends nothing to itself."""
    return has_cpu_kernel(row) and not row.rule.point_to_point and row.rule.name not in ("barrier", "wait")


MOVING = [op for op in cr.ops() if has_verdict(cr.lookup(op)) and not cr.lookup(op).reduce_op]
REDUCING = [op for op in cr.ops() if has_verdict(cr.lookup(op)) and cr.lookup(op).reduce_op]


def nested(part: Part, index: tuple[str, ...], dtype: torch.dtype) -> Any:
    """One tensor, below as many lists of one as the path has."""
    return [nested(part, index[1:], dtype)] if index else torch.ones(2, 2).to(dtype)


def arguments(row: Row, dtype: torch.dtype, **attributes: Any) -> dict[str, Any]:
    """A call in a group of one: every tensor has one shape, whatever the rule."""
    known = {"root": 0, "gather_dim": 0, "shard_dim": 0, **attributes}
    made = {row.entry.attributes[name]: value for name, value in known.items() if name in row.entry.attributes}
    made |= {key: [2] for key in row.splits}
    for part in row.spellings[0].statement.parts:
        if part.path.name not in row.fresh:
            made.setdefault(part.path.name, nested(part, part.path.index, dtype))
    return made


def refused_by_the_table(row: Row, given: dict[str, Any]) -> bool:
    """Whether check finds an error for gloo."""
    call = cr.call(row.op, group=cr.Group(1), **given)
    return any(found.severity == "error" for found in cr.check(call, backend="gloo"))


def refused_by_gloo(row: Row, given: dict[str, Any]) -> bool:
    """Whether torch or gloo raises."""
    return world(1).run(row.op, [given])[0].error is not None


@pytest.mark.parametrize("op", MOVING)
def test_gloo_moves_the_dtypes_that_the_table_says(op: str) -> None:
    """Each dtype is taken by both, or refused by both."""
    row = cr.lookup(op)
    expected = {dtype for dtype in DTYPES if refused_by_gloo(row, arguments(row, dtype))}
    assert expected == {dtype for dtype in DTYPES if refused_by_the_table(row, arguments(row, dtype))}


@pytest.mark.parametrize("reduce_op", REDUCE_OPS)
@pytest.mark.parametrize("op", REDUCING)
def test_gloo_reduces_the_dtypes_that_the_table_says(op: str, reduce_op: str) -> None:
    """Each dtype is reduced by both, or refused by both."""
    row = cr.lookup(op)
    given = {dtype: arguments(row, dtype, reduce_op=reduce_op) for dtype in DTYPES}
    expected = {dtype for dtype in DTYPES if refused_by_gloo(row, given[dtype])}
    assert expected == {dtype for dtype in DTYPES if refused_by_the_table(row, given[dtype])}


def test_a_dtype_of_the_table_is_one_that_is_tried() -> None:
    """No column names a dtype that these tests leave out."""
    limits = list(cr.backends.BACKENDS["gloo"].limits)
    named = {dtype for limit in limits for dtypes in (limit.reduces or {}).values() for dtype in dtypes}
    assert named | {dtype for limit in limits for dtype in limit.dtypes or ()} <= set(DTYPES)
