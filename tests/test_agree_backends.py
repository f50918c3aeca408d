"""What ranks must agree on by the backend: which calls meet, what tags mean, who connects, and what is one stream."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import torch
from hypothesis import settings

import collective_rules as cr
from collective_rules.backends import BACKENDS, Backend, Matching
from collective_rules.errors import CallError
from collective_rules.testing import World, WorldTimeout
from tests.programs import found

GPU = "cuda"
EAGER, LAZY = Backend("nccl", eager=True), Backend("nccl", eager=False)


def call(op: str, rank: int, size: int = 2, **arguments: Any) -> cr.Call:
    return cr.call(op, group=cr.Group(size, rank), **arguments)


def tensor(*shape: int) -> cr.Spec:
    return cr.Spec(shape, torch.float32, device=GPU)


def send(rank: int, peer: int, tag: Any = 0, size: int = 3, waits: bool = False) -> cr.Call:
    return attrs.evolve(call("c10d::send", rank, 4, tensors=[tensor(size)], dst=peer, tag=tag), blocking=waits)


def receive(rank: int, peer: int, tag: Any = 0, size: int = 3, waits: bool = False) -> cr.Call:
    return attrs.evolve(call("c10d::recv_", rank, 4, tensors=[tensor(size)], src=peer, tag=tag), blocking=waits)


def batch(rank: int, kind: str, peer: int) -> cr.Call:
    lists = {"op_list": [kind], "peer_list": [peer], "tag_list": [0], "tensors": [tensor(3)]}
    return call("_c10d_functional::batch_p2p_ops", rank, 4, **lists)


def reduced(rank: int, size: int = 4, waits: bool = True) -> cr.Call:
    return attrs.evolve(call("c10d::allreduce_", rank, size, tensors=[tensor(3)], reduce_op="sum"), blocking=waits)


class TestTags:
    """Backends that do not look at tags match the messages of two ranks in order."""

    def test_swapped_tags_swap_the_data(self) -> None:
        calls = [send(0, 1, 7), send(0, 1, 8), receive(1, 0, 8), receive(1, 0, 7)]
        assert [] == found(calls)
        (each,) = cr.agree(calls, "nccl")
        assert ("RE4", "error", (0, 1), 2) == (each.id, each.severity, each.ranks, each.count)
        assert "rank 1 receives with tag 8 what rank 0 sends with tag 7" in each.message
        assert {"tag": {0: 7, 1: 8}} == each.names

    def test_a_tag_that_nobody_awaits_is_a_warning(self) -> None:
        """The data arrive; another backend would wait for ever."""
        calls = [send(0, 1, 7), receive(1, 0, 8)]
        assert ["error"] == [each.severity for each in cr.agree(calls)]
        assert ["warning"] == [each.severity for each in cr.agree(calls, "nccl")]

    def test_the_order_counts_whatever_the_tags(self) -> None:
        """Sizes that fit by tag do not fit in order."""
        calls = [send(0, 1, 7, 3), send(0, 1, 8, 4), receive(1, 0, 8, 4), receive(1, 0, 7, 3)]
        assert {"pairs", "tag"} == {kind for kind, *_ in found(calls, backend="nccl")}

    def test_an_unknown_tag_is_no_doubt(self) -> None:
        calls = [send(0, 1, cr.UNKNOWN, 1), send(0, 1, cr.UNKNOWN, 2), receive(1, 0, 4, 2), receive(1, 0, 3, 1)]
        assert {"undecidable"} == {each.severity for each in cr.agree(calls)}
        assert {"error"} == {each.severity for each in cr.agree(calls, "nccl")}

    def test_many_messages(self) -> None:
        sends = [send(0, 1, tag) for tag in range(2000)]
        receives = [receive(1, 0, tag) for tag in range(2000)]
        assert () == cr.agree([*sends, *receives], "nccl")
        assert [("tag", (0, 1), None, 2000)] == found([*sends, *reversed(receives)], backend="nccl")


class TestConnections:
    """The first batch of a group connects all its ranks, unless the group was made so."""

    def test_a_rank_that_never_comes(self) -> None:
        calls = [batch(0, "isend", 1), batch(1, "irecv", 0), batch(2, "isend", 0), batch(0, "irecv", 2)]
        assert () == cr.agree(calls) == cr.agree(calls, EAGER)
        (each,) = cr.agree(calls, LAZY)
        assert ("WAIT2", "error", (3,)) == (each.id, each.severity, each.ranks)
        assert "rank 3 does not take part in the group's first batch" in each.message
        assert ["undecidable"] == [each.severity for each in cr.agree(calls, "nccl")]

    def test_what_is_not_given_may_come(self) -> None:
        calls = [batch(0, "isend", 1), batch(1, "irecv", 0)]
        assert () == cr.agree(calls, LAZY, ranks=(0, 1))

    def test_single_messages_connect_two_ranks(self) -> None:
        assert () == cr.agree([send(0, 1), receive(1, 0)], LAZY)

    def test_ranks_that_come_by_a_collective(self) -> None:
        """All take part in that, and so all are connected."""
        calls = [batch(0, "isend", 1), batch(1, "irecv", 0), *map(reduced, range(4))]
        assert () == cr.agree(calls, LAZY)


class TestStreams:
    """A group that was made with its connections runs messages and collectives in the order of the rank's program."""

    @pytest.mark.parametrize("waits", [False, True])
    def test_a_message_on_both_sides_of_a_collective(self, waits: bool) -> None:
        ranks = {0: [send(0, 1), reduced(0, 2, waits)], 1: [reduced(1, 2, waits), receive(1, 0)]}
        calls = [attrs.evolve(each, group=cr.Group(2, rank)) for rank, own in ranks.items() for each in own]
        assert () == cr.agree(calls, LAZY) == cr.agree(calls, "nccl")
        (each,) = cr.agree(calls, EAGER)
        assert ("WAIT1", "error", (0, 1)) == (each.id, each.severity, each.ranks)
        assert "rank 0 waits in c10d::send" in each.message
        assert "rank 1 waits in c10d::allreduce_" in each.message

    def test_one_order_is_none_of_anybodys_business(self) -> None:
        calls = [*map(reduced, range(4)), send(0, 1), send(1, 0), receive(0, 1), receive(1, 0), *map(reduced, range(4))]
        assert () == cr.agree(calls, EAGER)

    def test_messages_overtake_each_other(self) -> None:
        """They may be one batch."""
        calls = [send(0, 1), receive(0, 1), send(1, 0), receive(1, 0), send(2, 3), receive(3, 2)]
        assert () == cr.agree(calls, EAGER)

    def test_other_groups_are_other_streams(self) -> None:
        def of(name: str, rank: int, waits: bool) -> cr.Call:
            return attrs.evolve(reduced(rank, 2, waits), group=cr.Group(2, rank, name, (0, 1)))

        calls = [of("a", 0, False), of("b", 0, False), of("b", 1, False), of("a", 1, False)]
        assert () == cr.agree(calls, EAGER)
        calls = [of("a", 0, True), of("b", 0, True), of("b", 1, True), of("a", 1, True)]
        assert ["WAIT1"] == [each.id for each in cr.agree(calls, EAGER)]


def even(rank: int, *shapes: tuple[int, ...]) -> cr.Call:
    outputs = [tensor(*each) for each in shapes]
    return call("c10d::allgather_", rank, output_tensors=[outputs], input_tensors=[tensor(6)])


class TestForms:
    """On NCCL, lists of one shape are one collective, and lists of several shapes are several."""

    def test_even_beside_uneven(self) -> None:
        calls = [even(0, (6,), (6,)), even(1, (2, 3), (6,))]
        assert "error" not in {each.severity for each in cr.agree(calls)}
        (each,) = cr.agree(calls, "nccl")
        assert ("error", (0, 1)) == (each.severity, each.ranks)
        assert "even" in each.message
        assert {"even": [0], "uneven": [1]} == each.names

    def test_outputs_that_are_left_out_tell_no_form(self) -> None:
        left_out = call("c10d::allgather_", 1, input_tensors=[tensor(6)])
        assert "error" not in {each.severity for each in cr.agree([even(0, (6,), (6,)), left_out], "nccl")}

    def test_gloo_takes_either(self) -> None:
        assert "error" not in {each.severity for each in cr.agree([even(0, (6,), (6,)), even(1, (2, 3), (6,))], "gloo")}


def arguments(op: str, rank: int) -> Mapping[str, Any]:
    """Four elements on each of two ranks, in real tensors."""
    one = torch.arange(4.0) + 10 * rank
    both = one.chunk(2)
    return {
        "c10d::allreduce_": {"tensors": [one], "reduce_op": "sum"},
        "c10d::allreduce_coalesced_": {"tensors": [one], "reduce_op": "sum"},
        "c10d::_reduce_scatter_base_": {"output_tensor": torch.zeros(2), "input_tensor": one, "reduce_op": "sum"},
        "c10d::reduce_scatter_": {"output_tensors": [torch.zeros(2)], "input_tensors": [[*both]], "reduce_op": "sum"},
        "c10d::allgather_": {"output_tensors": [[torch.zeros(4), torch.zeros(4)]], "input_tensors": [one]},
        "c10d::_allgather_base_": {"output_tensor": torch.zeros(8), "input_tensor": one},
        "c10d::allgather_into_tensor_coalesced_": {"outputs": [torch.zeros(8)], "inputs": [one]},
        "c10d::alltoall_": {"output_tensors": [torch.zeros(2), torch.zeros(2)], "input_tensors": [*both]},
        "c10d::alltoall_base_": {"output": torch.zeros(4), "input": one},
        "c10d::broadcast_": {"tensors": [one], "root_rank": 0},
        "c10d::reduce_": {"tensors": [one], "root_rank": 0, "reduce_op": "sum"},
    }[op]


OPS = (
    "c10d::allreduce_",
    "c10d::_reduce_scatter_base_",
    "c10d::reduce_scatter_",
    "c10d::allgather_",
    "c10d::_allgather_base_",
    "c10d::allgather_into_tensor_coalesced_",
    "c10d::alltoall_",
    "c10d::alltoall_base_",
    "c10d::broadcast_",
    "c10d::reduce_",
)
PAIRS = [pair for pair in itertools.combinations(OPS, 2) if len({cr.lookup(op).rule.name for op in pair}) == 2]


def severities(pair: tuple[str, str], backend: str | None) -> set[str]:
    specs = [cr.call(op, group=cr.Group(2, rank), **arguments(op, rank)) for rank, op in enumerate(pair)]
    return {each.severity for each in cr.agree(specs, backend)}


MEET = [pair for pair in PAIRS if severities(pair, "gloo") == {"warning"}]
DIFFER = [pair for pair in PAIRS if pair not in MEET]
THOROUGH = settings.default.max_examples >= 1_000


class TestAlike:
    """What a backend does not tell apart is a warning there, and an error by torch's documentation."""

    @pytest.mark.parametrize("pair", MEET, ids=" ".join)
    def test_gloo_carries_out_what_it_does_not_tell_apart(self, pair: tuple[str, str]) -> None:
        """Within its own deadline; and both get what they would get of their own kind."""
        assert {"error"} == severities(pair, None)
        with World(2, timeout=10) as both:
            mixed = both.run(pair, [arguments(op, rank) for rank, op in enumerate(pair)])
            alone = [both.run(op, [arguments(op, rank) for rank in range(2)])[place] for place, op in enumerate(pair)]
        assert [None, None] == [each.error for each in mixed]
        for one, other in zip(mixed, alone, strict=True):
            torch.testing.assert_close(one.values, other.values)

    @pytest.mark.parametrize("pair", DIFFER if THOROUGH else DIFFER[::15], ids=" ".join)
    def test_gloo_hangs_at_the_others(self, pair: tuple[str, str]) -> None:
        """Or raises an error on some rank; each takes a deadline."""
        assert {"error"} == severities(pair, "gloo")
        with World(2, timeout=2) as both, contextlib.suppress(WorldTimeout):
            mixed = both.run(pair, [arguments(op, rank) for rank, op in enumerate(pair)])
            assert any(each.error is not None for each in mixed)

    def test_sizes_still_count(self) -> None:
        """By elements, whatever the shapes are called."""
        one = call("c10d::_allgather_base_", 1, output_tensor=tensor(10), input_tensor=tensor(5))
        assert {"call", "sizes"} == {kind for kind, *_ in found([even(0, (6,), (6,)), one], backend="nccl")}

    def test_and_so_do_dtypes_and_reduce_ops(self) -> None:
        other = cr.call(
            "c10d::_reduce_scatter_base_",
            group=cr.Group(2, 1),
            output_tensor=cr.Spec((2,), torch.float64),
            input_tensor=cr.Spec((4,), torch.float64),
            reduce_op="max",
        )
        one = cr.call("c10d::allreduce_", group=cr.Group(2, 0), tensors=[(4,)], reduce_op="sum")
        assert {"call", "dtype", "reduce_op"} == {kind for kind, *_ in found([one, other], backend="gloo")}

    def test_a_sequence_goes_on_after_it(self) -> None:
        """Calls that meet are no sign that the ranks have lost each other."""
        base = call("c10d::_allgather_base_", 1, output_tensor=tensor(12), input_tensor=tensor(6))
        other = call("c10d::allreduce_", 1, tensors=[tensor(4)], reduce_op="sum")
        calls = [*[even(0, (6,), (6,)), base] * 5, reduced(0, 2), other]
        assert [("call", (0, 1), 0, 5), ("sizes", (0, 1), 5, 1)] == sorted(found(calls, backend="nccl"))

    def test_a_barrier_beside_an_all_reduce_of_one_number(self) -> None:
        """NCCL's barrier is one, and would meet it."""
        calls = [call("c10d::barrier", 0), call("c10d::allreduce_", 1, tensors=[tensor(1)], reduce_op="sum")]
        assert [("call", (0, 1), None, 1)] == found(calls, backend="nccl")


@pytest.mark.parametrize("backend", BACKENDS)
def test_names_are_ops_or_rules(backend: str) -> None:
    """Nothing that is misspelt waits for calls that never come."""
    matching = BACKENDS[backend].matching
    known = {*cr.ops(), *cr.rules()}
    assert known >= {*matching.one_form, *itertools.chain.from_iterable(matching.alike)}
    names = list(itertools.chain.from_iterable(matching.alike))
    assert len(names) == len(set(names))


def test_a_backend_is_eager_or_not() -> None:
    """Nothing between."""
    with pytest.raises(CallError, match="eager=1, but should be True, False or None"):
        Backend("nccl", eager=1)  # type: ignore[arg-type]


def test_a_matching_that_says_nothing_is_torchs() -> None:
    """By tags and by rule."""
    assert Matching().tags
    assert "all_gather" == Matching().name_of("c10d::allgather_", "all_gather")
