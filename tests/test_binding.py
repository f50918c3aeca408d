"""The reader of sizes, and what binds them: each branch by itself, where the tables reach it in few ways or in none."""

from typing import Any

import attrs
import pytest
import torch

import collective_rules as cr
from collective_rules import backends
from collective_rules.backends import BACKENDS, Limit
from collective_rules.binding.binder import bind, bind_as
from collective_rules.binding.splits import meaning, split_sizes, total
from collective_rules.call import UNKNOWN
from collective_rules.notation import GroupSize, Name, Number, Part, Path, Rest, Shares, Size, Splits
from collective_rules.notation.sizes import evaluate, pairs, solve
from collective_rules.ops.op import EVEN, NONE, SplitSizes

A, B, C, S = Name("a"), Shares("b"), Name("c"), Rest("s")


# -- one size


@pytest.mark.parametrize(
    ("sizes", "wanted"), [((), (0, False)), ((A, B), (2, False)), ((S,), (0, True)), ((A, S, C), (2, True))]
)
def test_a_part_needs_a_dim_for_each_size_and_a_rest_takes_more(sizes: tuple[Size, ...], wanted: Any) -> None:
    """The rest may be empty."""
    assert wanted == Part(Path("x"), sizes).dims


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ((), []),
        ((A, B), [(A, 2), (B, 3)]),
        ((S,), [(S, (2, 3, 4, 5))]),
        ((A, S), [(A, 2), (S, (3, 4, 5))]),
        ((S, A), [(A, 5), (S, (2, 3, 4))]),
        ((A, S, B, C), [(A, 2), (B, 4), (C, 5), (S, (3,))]),
        ((A, B, S, C), [(A, 2), (B, 3), (C, 5), (S, (4,))]),
    ],
)
def test_each_size_has_its_place(sizes: tuple[Size, ...], wanted: list[Any]) -> None:
    """Before a rest from the front, after it from the end; what is between is the rest's."""
    shape = (2, 3, 4, 5)
    assert wanted == [(size, shape[place]) for size, place in Part(Path("x"), sizes).places]


@pytest.mark.parametrize(
    ("size", "value", "wanted"),
    [
        (A, 7, (True, 7)),
        (S, (7, 8), (True, (7, 8))),
        (Splits("S", "r", ":"), 7, (True, 7)),
        (Number(3), 3, (True, None)),
        (Number(3), 4, (False, None)),
        (GroupSize(), 4, (True, None)),
        (GroupSize(), 3, (False, None)),
        (B, 12, (True, 3)),
        (B, 13, (False, 3)),
    ],
)
def test_a_size_is_solved_against_a_value(size: Size, value: Any, wanted: Any) -> None:
    """In a group of 4."""
    assert wanted == solve(size, value, 4)


def test_a_part_is_evaluated_from_its_names() -> None:
    """Solving and evaluating are each other's inverse; without one of the names there is no shape."""
    sizes = (Number(2), A, S, B, GroupSize())
    values: dict[str, Any] = {"a": 5, "s": (6, 7), "b": 3}
    shape = evaluate(sizes, 4, lambda size: values[size.name])
    assert (2, 5, 6, 7, 12, 4) == shape
    solved = [(size, solve(size, shape[place], 4)) for size, place in Part(Path("x"), sizes).places]
    assert all(holds for _, (holds, _) in solved)
    assert values == {getattr(size, "name", ""): number for size, (_, number) in solved if number is not None}
    for name in values:
        assert evaluate(sizes, 4, lambda size, name=name: None if size.name == name else values[size.name]) is None


def test_a_row_of_split_sizes_is_sent_and_a_column_received() -> None:
    """`S[r,:]` and `S[:,r]` meet in `S[r,r]`."""
    row, column = (pairs(Splits("S", *index), 1, 3) for index in (("r", ":"), (":", "r")))
    assert ((1, 0), (1, 1), (1, 2)) == row
    assert ((0, 1), (1, 1), (2, 1)) == column


# -- split sizes


@pytest.mark.parametrize(
    ("given", "empty", "wanted"),
    [
        (None, EVEN, EVEN),
        (None, NONE, EVEN),
        ((), EVEN, EVEN),
        ((), NONE, (0, 0, 0)),
        ((1, 2, 3), NONE, (1, 2, 3)),
        ((1, 2, 3), EVEN, (1, 2, 3)),
        (UNKNOWN, EVEN, UNKNOWN),
        (UNKNOWN, NONE, UNKNOWN),
    ],
)
def test_an_empty_list_of_split_sizes_means_what_its_column_says(given: Any, empty: str, wanted: Any) -> None:
    """None always means equal shares, and what is not known stays so."""
    assert wanted == meaning(given, SplitSizes("splits", empty), 3)


def test_split_sizes_are_those_of_the_part() -> None:
    """An op without arguments for them splits evenly."""
    group = cr.Group(size=2)
    single = cr.call("_c10d_functional::all_to_all_single", group=group, input=(4,), input_split_sizes=[1, 3])
    assert ((1, 3), EVEN) == tuple(split_sizes(single, part) for part in ("input", "output"))
    assert EVEN == split_sizes(cr.call("symm_mem::nvshmem_all_to_all", group=group, input=(4,), out=(4,)), "input")


def test_split_sizes_add_up() -> None:
    """Even ones to the group's size times one share, if that is known."""
    assert (6, 8, None, None) == (total((1, 5), 1, 2), total(EVEN, 4, 2), total(EVEN, None, 2), total(UNKNOWN, 4, 2))


# -- a call


def test_a_message_counts_the_dims_after_a_rest_from_the_front() -> None:
    """`*s (W d)` of a tensor of three dims speaks of the last, dim 2."""
    call = cr.call("symm_mem::reduce_scatter_out", group=cr.Group(size=2), input=(4, 3, 5), split_last_dim=True)
    assert "dim 2 of input has 5 elements, which is no multiple of W=2" in cr.check(call)[0].message


def test_binding_as_a_form_that_the_op_lacks_is_none() -> None:
    """Nothing is bound in its place."""
    call = cr.call("_c10d_functional::all_gather_into_tensor", group=cr.Group(size=2), input=(4,))
    assert bind_as(call, ("stacked",)) is None
    bound = bind_as(call, ("stacked", "concatenated"))
    assert bound is not None
    assert bind(call).spelling is bound.spelling


def test_of_forms_that_do_not_fit_the_nearest_is_bound() -> None:
    """The first of several equally near ones."""
    longs = cr.Spec((2, 4, 3), torch.int64)  # stacked, and of another dtype
    call = cr.call("c10d::_allgather_base_", group=cr.Group(size=2), input_tensor=(4, 3), output_tensor=longs)
    assert "stacked" == bind(call).spelling.form.name
    neither = cr.call("c10d::_allgather_base_", group=cr.Group(size=2), input_tensor=(4, 3), output_tensor=(7,))
    assert call.row.spellings[0] is bind(neither).spelling


def test_a_backend_that_takes_only_forms_which_the_op_lacks_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not reported as fine because the op has another form."""
    op = "_c10d_functional::all_gather_into_tensor"
    limit = Limit(id="GLOO99", says="", advice="Use another op.", ops=(op,), forms=("stacked",))
    gloo = attrs.evolve(BACKENDS["gloo"], limits=(*BACKENDS["gloo"].limits, limit))
    monkeypatch.setitem(backends.BACKENDS, "gloo", gloo)
    backends.forget()
    try:
        found = cr.check(cr.call(op, group=cr.Group(size=2), input=(4,)), backend="gloo")
        assert [("GLOO99", "error")] == [(each.id, each.severity) for each in found]
        assert "gloo takes only the stacked form, and the op has only concatenated" in found[0].message
    finally:
        backends.forget()
