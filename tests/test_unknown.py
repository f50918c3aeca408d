"""What a record does not tell is unknown: it makes nothing wrong, and fails nothing but in words."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.testing.drawing import drawable
from collective_rules.testing.strategies import calls

DRAWABLE = [op for op in cr.ops() if not drawable(cr.lookup(op)) and cr.lookup(op).rule.name != "barrier"]


def outcome(act: Callable[[], Any]) -> Any:
    """What it returns, or the text of its refusal."""
    try:
        return act()
    except cr.CallError as error:
        return str(error)


@settings(max_examples=settings.default.max_examples // 4)
@given(data=st.data())
@pytest.mark.parametrize("op", DRAWABLE)
def test_an_argument_that_is_unknown_is_no_error(op: str, data: st.DataObject) -> None:
    """Of one rank; `call` refuses those without which nothing can be said, and bytes may be unknown, too."""
    group = list(data.draw(calls(op, backend=None, most_ranks=4)))
    place = data.draw(st.integers(0, len(group) - 1))
    one = group[place]
    names = [each.name for each in one.row.arguments if not each.is_group]
    name = data.draw(st.sampled_from(names))
    made = outcome(lambda: cr.call(one.op, group=one.group, **{**one.arguments, name: cr.UNKNOWN}))
    if isinstance(made, str):
        assert f"{one.op}: {name}=unknown, but should be" in made
        return
    group[place] = made
    assert "error" not in [found.severity for found in cr.check(made)]
    assert "error" not in [found.severity for found in cr.agree(group)]
    cr.infer(made)
    moved = outcome(lambda: cr.traffic(made))
    assert isinstance(moved, cr.Traffic) or "must be known to count bytes" in moved


def test_split_sizes_that_are_unknown_are_not_taken_for_even_ones() -> None:
    given = {"input": (4, 2), "input_split_sizes": [1, 3]}
    call = cr.call("c10d::alltoall_base_", group=cr.Group(2), output_split_sizes=cr.UNKNOWN, **given)
    assert cr.infer(call)["output"].shape is None


@pytest.mark.parametrize("size", [1, 3])
def test_without_a_known_root_no_rank_is_one(size: int) -> None:
    """Where nothing but the root's number tells; a list tells, too."""
    made = [cr.call("c10d::reduce_", group=cr.Group(size), tensors=[(2,)], root_rank=cr.UNKNOWN)]
    for lists in ([], [[(2,)] * size]):
        arguments = {"input_tensors": [(2,)], "output_tensors": lists, "root_rank": cr.UNKNOWN}
        made.append(cr.call("c10d::gather_", group=cr.Group(size), **arguments))
    assert [False, False, True] == [call.is_root for call in made]
