"""The hash of the values that all ranks pass alike: equal in a legal group, different where `agree` finds an error."""

import pytest
import torch

import collective_rules as cr
from collective_rules import Spec
from collective_rules.live.protocol import encode
from collective_rules.testing.drawing import drawable
from collective_rules.testing.strategies import broken_calls, sample, ways_to_break
from collective_rules.testing.strategies import calls as calls_of

ROWS = [cr.lookup(op) for op in cr.ops()]
COLLECTIVES = [row.op for row in ROWS if not (drawable(row) or row.rule.point_to_point or row.rule.one_sided)]
SMALL = {"backend": None, "most_ranks": 3}
OF_PAIRS = {"c10d::alltoall_": {"s"}, "c10d::alltoall_base_": {"order"}}
"""Names that the hash leaves out besides `S[i,j]`: `s` is `s[i,j]` of a pair, and an empty share has any order."""


def pair(op: str, ours: object, theirs: object, **more: object) -> list[cr.Call]:
    """The calls of two ranks that read one argument each."""
    name = cr.lookup(op).reads[0]
    return [cr.call(op, group=cr.Group(2, rank), **{name: each}, **more) for rank, each in enumerate((ours, theirs))]


@pytest.mark.parametrize("op", COLLECTIVES)
def test_ranks_of_a_legal_group_have_one_hash(op: str) -> None:
    for group in sample(calls_of(op, **SMALL), 8):
        assert 1 == len({encode(call).code for call in group}), group


@pytest.mark.parametrize("op", COLLECTIVES)
def test_ranks_that_disagree_on_a_common_value_have_different_hashes(op: str) -> None:
    """Ranks of one hash disagree at most on values of a rank or of a pair, which are compared at the end."""
    broken = [each for way in ways_to_break(op, backend=None) for each in sample(broken_calls(op, way=way, **SMALL), 2)]
    for fault in broken:
        calls = fault.calls
        whole = not fault.local and fault.rank is not None and len(calls) == calls[0].group.size
        errors = [found for found in cr.agree(calls) if found.severity == "error"] if whole else []
        encoded = [encode(call) for call in calls]
        if errors and len({each.code for each in encoded}) == 1:
            assert any(each.varies for each in encoded), fault
            names = {name for found in errors for name in found.names if "," not in name}
            assert names <= OF_PAIRS.get(op, set()), fault


@pytest.mark.parametrize(
    "calls",
    [
        pair("c10d::allreduce_coalesced_", [(3,), (4,)], [(3,), (5,)], reduce_op="sum"),
        pair("c10d::allreduce_coalesced_", [(3,), (3,)], [(3,), Spec((3,), torch.int32)], reduce_op="sum"),
        pair("c10d::allreduce_coalesced_", [(0,), (0,)], [(0,)], reduce_op="sum"),
        pair("c10d::allreduce_", [Spec((2, 3))], [Spec((2, 3), stride=(1, 2))], reduce_op="sum"),
        pair("c10d::_reduce_scatter_base_", (2, 3), Spec((2, 3), stride=(1, 2)), output_tensor=(1, 3), reduce_op="sum"),
    ],
    ids=["sizes", "dtypes", "lengths", "order", "order of one row"],
)
def test_each_tensor_of_a_list_is_in_the_hash(calls: list[cr.Call]) -> None:
    assert ["error"] == [found.severity for found in cr.agree(calls)]
    assert 2 == len({encode(call).code for call in calls})
    assert not any(encode(call).varies for call in calls)


def test_ranks_may_take_different_forms() -> None:
    """An all_to_all of which one rank's tensors happen to be alike, and a gather whose root stacks."""
    sizes = [[(1,), (1,)], [(1,), (2,)]]
    lists = [
        cr.call("c10d::alltoall_", group=cr.Group(2, rank), input_tensors=each, output_tensors=each)
        for rank, each in enumerate(sizes)
    ]
    gathers = [
        cr.call("c10d::_allgather_base_", group=cr.Group(2, rank), input_tensor=(2, 3), output_tensor=output)
        for rank, output in enumerate([(4, 3), (2, 2, 3)])
    ]
    for calls in (lists, gathers):
        assert () == cr.agree(calls)
        assert 1 == len({encode(call).code for call in calls})
