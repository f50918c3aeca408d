"""What the strategies draw: everything that is legal, from the smallest up; and breaches of exactly one thing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import find, settings

import collective_rules as cr
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.testing.drawing import DTYPES, drawable
from collective_rules.testing.strategies import broken_calls, calls, sample
from collective_rules.testing.tensors import flat
from collective_rules.testing.world import has_cpu_kernel

DRAWABLE = [op for op in cr.ops() if not drawable(cr.lookup(op))]
ON_GLOO = [op for op in DRAWABLE if has_cpu_kernel(cr.lookup(op))]
QUIET = settings(database=None, max_examples=200)
Group = tuple[cr.Call, ...]


def specs(group: Group) -> Iterator[cr.Spec]:
    for call in group:
        for value in call.arguments.values():
            yield from (leaf for leaf in flat(value) if isinstance(leaf, cr.Spec))


ONE_OF_EACH_RULE = list({cr.lookup(op).rule.name: op for op in reversed(ON_GLOO)}.values())


@pytest.mark.parametrize("op", ONE_OF_EACH_RULE)
def test_a_group_shrinks_to_the_smallest(op: str) -> None:
    """As few ranks as the op can have, one tensor in a list, no dim beyond those that are named, nothing in them."""
    row = cr.lookup(op)
    group = find(calls(op), lambda group: True, settings=QUIET)
    assert group[0].group.size == (2 if row.rule.point_to_point else 1)
    named = max((len(part.sizes) for part in row.spellings[0].statement.parts), default=0)
    for spec in specs(group):
        assert len(spec.shape) <= named
        assert spec.numel <= 1
        assert spec.dtype is torch.float32


def test_a_failing_group_shrinks_to_what_makes_it_fail() -> None:
    """Three ranks and one dim of 2, where those are asked for."""
    asked = find(
        calls("c10d::allreduce_"),
        lambda group: len(group) > 2 and any(spec.numel > 1 for spec in specs(group)),
        settings=QUIET,
    )
    assert [(call.group.size, [spec.shape for spec in call.arguments["tensors"]]) for call in asked] == [
        (3, [(2,)])
    ] * 3


@pytest.fixture(scope="module")
def legal() -> list[Group]:
    """Many groups of every op that gloo has."""
    return [group for op in ON_GLOO for group in sample(calls(op), 60)]


def layout(spec: cr.Spec) -> str:
    if spec.is_contiguous:
        return "contiguous"
    if 0 in spec.stride:
        return "expanded"
    if spec.order is None:
        return "sliced"
    return "channels_last" if spec.order in ((0, 2, 3, 1), (0, 2, 3, 4, 1)) else "permuted"


@pytest.mark.parametrize(
    ("of_call", "expected"),
    [
        pytest.param(lambda call: [call.group.size], set(range(1, 9)), id="group sizes, primes included"),
        pytest.param(lambda call: [len(spec.shape) for spec in specs((call,))], set(range(6)), id="counts of dims"),
        pytest.param(lambda call: [spec.dtype for spec in specs((call,))], set(DTYPES), id="dtypes"),
        pytest.param(
            lambda call: [call.attribute("reduce_op")], {None, *REDUCE_OPS} - {"premul_sum"}, id="reduce ops of gloo"
        ),
        pytest.param(lambda call: [call.attribute("root")], {None, *range(8)}, id="roots"),
        pytest.param(
            lambda call: [layout(spec) for spec in specs((call,))],
            {"contiguous", "expanded", "sliced", "channels_last", "permuted"},
            id="layouts that torch users meet",
        ),
    ],
)
def test_every_value_is_drawn(legal: list[Group], of_call: Any, expected: set[Any]) -> None:
    """Each of them, and no other."""
    assert expected == {value for group in legal for call in group for value in of_call(call)}


def test_small_sizes_are_drawn(legal: list[Group]) -> None:
    """Those of 0 and of 1 among them."""
    assert {0, 1, 2, 3} <= {size for group in legal for spec in specs(group) for size in spec.shape}


def test_uneven_splits_with_empty_rows_are_drawn(legal: list[Group]) -> None:
    """Given and left out, even and uneven, some ranks getting nothing."""
    given = [
        tuple(call.arguments[name])
        for group in legal
        if len(group) > 1
        for call in group
        for name in call.row.splits
        if call.arguments[name] is not None
    ]
    assert any(len(set(numbers)) == 1 for numbers in given)
    assert any(len(set(numbers)) > 1 and 0 in numbers for numbers in given)
    assert () in given


def test_inputs_that_lie_in_outputs_are_drawn(legal: list[Group]) -> None:
    """Where that is legal."""
    ops = {call.op for group in legal for call in group if any(spec.memory for spec in specs((call,)))}
    assert {"c10d::_allgather_base_", "c10d::scatter_", "c10d::reduce_scatter_", "c10d::alltoall_"} <= ops


def test_a_sample_is_the_same_for_one_seed() -> None:
    """And another for another."""
    strategy = calls("c10d::alltoall_")
    assert sample(strategy, 20, seed=3) == sample(strategy, 20, seed=3) != sample(strategy, 20, seed=4)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: calls("c10d::allreduce"), "no rule for 'c10d::allreduce'"),
        (lambda: calls("c10d::allreduce_", backend="glue"), "backend='glue', but should be one of 'gloo'"),
        (lambda: calls("c10d::allreduce_", most_ranks=0), "most_ranks=0, but c10d::allreduce_ needs at least 1"),
        (lambda: calls("c10d::send", most_ranks=1), "most_ranks=1, but c10d::send needs at least 2"),
        (lambda: calls("c10d::send", most_ranks=True), "most_ranks=True"),
        (
            lambda: calls("symm_mem::tile_reduce"),
            "no strategy draws calls of symm_mem::tile_reduce: nothing says how to",
        ),
        (lambda: broken_calls("c10d::send", way="gently"), "way='gently', but c10d::send can be broken by "),
    ],
)
def test_a_wrong_argument_is_refused_in_words(make: Any, said: str) -> None:
    """When the strategy is made, not when it is drawn."""
    with pytest.raises((cr.CallError, cr.UnknownOpError), match=said):
        make()
