"""What several ranks disagree on: each name, whatever the forms; what is not known; and who sends to whom."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules import Spec
from tests.drawn import calls as drawn_calls

F = "_c10d_functional::"


def call(op: str, rank: int, size: int = 2, **arguments: Any) -> cr.Call:
    """One rank's call."""
    return cr.call(op, group=cr.Group(size=size, rank=rank), **arguments)


def found(*calls: cr.Call, backend: str | None = None) -> list[tuple[str, str, tuple[int, ...]]]:
    """The kind, severity and ranks of each finding."""
    kinds = {id_: kind for rule in cr.rules().values() for id_, kind in rule.constraints.items()}
    return [(kinds[each.id], each.severity, each.ranks) for each in cr.agree(calls, backend)]


def gather(rank: int, shape: tuple[int, ...], form: str, **more: Any) -> cr.Call:
    """An all_gather into a concatenated or a stacked output."""
    whole = (2 * shape[0], *shape[1:]) if form == "concatenated" else (2, *shape)
    dtype = more.get("dtype", torch.float32)
    return call("c10d::_allgather_base_", rank, input_tensor=Spec(shape, dtype), output_tensor=Spec(whole, dtype))


def scatter(rank: int, form: str, reduce_op: str) -> cr.Call:
    """A reduce_scatter from a concatenated or a stacked input."""
    whole = (6, 2) if form == "concatenated" else (2, 3, 2)
    return call("c10d::_reduce_scatter_base_", rank, input_tensor=whole, output_tensor=(3, 2), reduce_op=reduce_op)


class TestForms:
    """Ranks may spell one collective in different forms."""

    def test_two_forms_of_the_same_sizes_agree(self) -> None:
        """The same bytes travel."""
        assert [] == found(gather(0, (2, 3), "concatenated"), gather(1, (2, 3), "stacked"))

    def test_a_dtype_is_compared_whatever_the_form(self) -> None:
        """Not only the sizes that the forms name."""
        calls = gather(0, (2, 3), "concatenated"), gather(1, (2, 3), "stacked", dtype=torch.int32)
        assert [("dtype", "error", (0, 1))] == found(*calls)

    def test_a_reduce_op_is_compared_whatever_the_form(self) -> None:
        """Attributes have no form."""
        assert [("reduce_op", "error", (0, 1))] == found(
            scatter(0, "concatenated", "sum"), scatter(1, "stacked", "max")
        )

    def test_other_numbers_of_elements_disagree_whatever_the_form(self) -> None:
        """Counted where they are read."""
        assert [("sizes", "error", (0, 1))] == found(gather(0, (2, 3), "concatenated"), gather(1, (2, 4), "stacked"))

    def test_memory_that_travels_as_it_is_has_one_order(self) -> None:
        """Whatever the order is."""
        orders = [Spec((2, 3)), Spec((2, 3), stride=(1, 2))]
        calls = [[call("c10d::allreduce_", rank, tensors=[spec]) for spec in orders] for rank in range(2)]
        assert [("order", "error", (0, 1))] == found(calls[0][0], calls[1][1])
        assert [] == found(calls[0][1], calls[1][1])

    def test_even_and_equal_split_sizes_agree(self) -> None:
        """An empty list of split sizes is equal shares."""
        even = call("c10d::alltoall_base_", 0, input=(4,), output=(4,))
        split = call(
            "c10d::alltoall_base_", 1, input=(4,), output=(4,), input_split_sizes=[2, 2], output_split_sizes=[2, 2]
        )
        assert [] == found(even, split)

    def test_uneven_lists_that_match_agree(self) -> None:
        """Without a backend; gloo takes even lists alone."""
        calls = [
            call("c10d::allgather_", rank, input_tensors=[(2 + rank,)], output_tensors=[[(2,), (3,)]])
            for rank in (0, 1)
        ]
        assert [] == found(*calls)
        assert cr.check(calls[0], backend="gloo")

    def test_uneven_inputs_without_outputs_are_undecided(self) -> None:
        """The outputs that were left out would tell; for gloo the call is wrong either way."""
        calls = [call("c10d::allgather_", rank, input_tensors=[(2 + rank,)]) for rank in (0, 1)]
        assert [("sizes", "undecidable", (0, 1))] == found(*calls)
        assert [("sizes", "error", (0, 1))] == found(*calls, backend="gloo")


class TestUnknown:
    """A trace may record less than a live call."""

    def test_a_size_that_one_rank_does_not_tell_is_undecidable(self) -> None:
        """The others' is shown."""
        calls = [
            call(F + "all_reduce", rank, input=Spec(None) if rank == 0 else (3,), reduce_op="sum") for rank in (0, 1)
        ]
        assert [("sizes", "undecidable", (0,))] == found(*calls)

    def test_a_dtype_that_one_rank_does_not_tell_is_undecidable(self) -> None:
        """Not taken for the others'."""
        calls = [
            call(F + "all_reduce", rank, input=Spec((3,), None if rank else torch.int64), reduce_op="sum")
            for rank in (0, 1)
        ]
        assert [("dtype", "undecidable", (1,))] == found(*calls)

    def test_nothing_known_anywhere_is_nothing_found(self) -> None:
        """There is nothing to compare."""
        assert [] == found(*(call(F + "all_reduce", r, input=Spec(None, None), reduce_op="sum") for r in (0, 1)))

    def test_a_receive_without_its_tensor_is_undecidable(self) -> None:
        """Its dtype is missing; its size is the sender's to say."""
        calls = call("c10d::send", 0, tensors=[(3,)], dst=1), call("c10d::recv_", 1, src=0)
        assert [("dtype", "undecidable", (1,))] == found(*calls)


def batch(rank: int, size: int, *each: tuple[str, int, int, tuple[int, ...]]) -> cr.Call:
    """A batch of (kind, peer, tag, shape)."""
    kinds, peers, tags, tensors = (list(column) for column in zip(*each, strict=True))
    return call(F + "batch_p2p_ops", rank, size, op_list=kinds, peer_list=peers, tag_list=tags, tensors=list(tensors))


def ring(size: int, broken: int | None = None) -> list[cr.Call]:
    """Every rank sends to the next and receives from the one before; one receives another size."""
    return [
        batch(
            rank,
            size,
            ("isend", (rank + 1) % size, 0, (3,)),
            ("irecv", (rank - 1) % size, 0, (4 if rank == broken else 3,)),
        )
        for rank in range(size)
    ]


class TestPartners:
    """Sends find their receives."""

    @pytest.mark.parametrize("size", [2, 3, 8])
    def test_a_ring_agrees(self, size: int) -> None:
        """Each pair is compared with itself alone."""
        assert [] == found(*ring(size))

    def test_one_wrong_link_of_a_ring_is_named(self) -> None:
        """Both of its ends."""
        assert [("pairs", "error", (1, 2))] == found(*ring(4, broken=2))

    def test_tags_are_matched_before_what_is_left_over(self) -> None:
        """One of two messages has another tag: one finding, not four."""
        sends = batch(0, 2, ("isend", 1, 0, (3,)), ("isend", 1, 1, (4,)))
        receives = batch(1, 2, ("irecv", 0, 2, (4,)), ("irecv", 0, 0, (3,)))
        assert [("tag", "error", (0, 1))] == found(sends, receives)

    def test_receives_from_any_source_take_whoever_fits(self) -> None:
        """In which order they arrive only the run tells."""
        receives = [call("c10d::recv_any_source_", 0, 3, tensors=[shape]) for shape in ((3,), (4,))]
        sends = [call("c10d::send", rank, 3, tensors=[(5 - rank,)], dst=0) for rank in (1, 2)]
        assert [] == found(*receives, *sends)

    def test_a_malformed_batch_blames_nobody_else(self) -> None:
        """Its partners cannot be told."""
        broken = call(F + "batch_p2p_ops", 0, op_list=["isend"], peer_list=[], tag_list=[0], tensors=[(3,)])
        receive = call(F + "irecv", 1, tensor=(3,), src=0)
        assert [("lists", "undecidable", (0,))] == found(broken, receive)

    @pytest.mark.parametrize("alone", ["send", "recv"])
    def test_a_message_without_its_other_end_is_found(self, alone: str) -> None:
        """A send without a receive, a receive without a send."""
        only = {
            "send": call("c10d::send", 0, 3, tensors=[(3,)], dst=1),
            "recv": call("c10d::recv_", 0, 3, tensors=[(3,)], src=1),
        }
        assert [("partner", "error", (0,))] == found(only[alone])


class TestWho:
    """The odd ones out are named."""

    def test_the_minority_made_another_collective(self) -> None:
        """One rank of four broadcasts."""
        calls = [call("c10d::allreduce_", rank, 4, tensors=[(2,)]) for rank in (0, 1, 3)]
        other = call("c10d::broadcast_", 2, 4, tensors=[(2,)], root_rank=0)
        assert [("call", "error", (2,))] == found(*calls, other)

    def test_a_collective_and_a_send_are_two_things(self) -> None:
        """They never meet: each waits for the other's part."""
        calls = call("c10d::send", 0, tensors=[(2,)], dst=1), call("c10d::broadcast_", 1, tensors=[(2,)], root_rank=0)
        assert [("ranks", "error", (0,)), ("partner", "error", (0,))] == found(*calls)

    def test_one_rule_spelled_in_two_ops_is_one_collective(self) -> None:
        """The wire does not see the op."""
        calls = call("c10d::allreduce_", 0, tensors=[(2,)]), call(F + "all_reduce", 1, input=(2,), reduce_op="sum")
        coalesced = call("c10d::allreduce_coalesced_", 0, tensors=[(2,)])
        assert [] == found(*calls)
        assert [] == found(coalesced, calls[1])
        longer = call("c10d::allreduce_coalesced_", 0, tensors=[(2,), (2,)])
        assert ("lists", "error", (0, 1)) in found(longer, calls[1])

    @pytest.mark.parametrize(("op", "more"), [("allreduce_", {}), ("broadcast_", {"root_rank": 0})])
    def test_a_longer_list_of_alike_tensors_is_a_warning(self, op: str, more: dict[str, Any]) -> None:
        """One tensor of it travels: gloo carries it out, but hardly anyone means it."""
        lists = [(2,)], [(2,), (2,)], [(2,)]
        calls = [call(f"c10d::{op}", rank, 3, tensors=tensors, **more) for rank, tensors in enumerate(lists)]
        assert [("lists", "warning", (1,))] == found(*calls)

    def test_the_lines_that_made_the_calls_are_shown(self) -> None:
        """Where a call says where it came from."""
        made = [call("c10d::allreduce_", rank, tensors=[(2 + rank,)]) for rank in (0, 1)]
        lined = [
            cr.Call(each.row, each.group, each.arguments, f"train.py:{88 + place}") for place, each in enumerate(made)
        ]
        (finding,) = cr.agree(lined)
        assert "  s = (2,)   rank 0   train.py:88\n  s = (3,)   rank 1   train.py:89\n" in finding.message

    @pytest.mark.parametrize("wrong", [None, 5, "ab", ["c10d::allreduce_"]])
    def test_what_is_no_list_of_calls_is_refused(self, wrong: Any) -> None:
        """With what to do instead."""
        with pytest.raises(cr.CallError, match=r"no list|no Call"):
            cr.agree(wrong)


SIZES = st.sampled_from([(2,), (3,), (2, 3), (3, 2), (0,)])


@given(st.lists(st.tuples(SIZES, st.sampled_from(["sum", "max"])), min_size=3, max_size=3))
def test_the_order_in_which_calls_are_given_changes_nothing(drawn: list[tuple[tuple[int, ...], str]]) -> None:
    """`agree` takes them in any order."""
    calls = [
        call(F + "all_reduce", rank, 3, input=shape, reduce_op=reduce_op)
        for rank, (shape, reduce_op) in enumerate(drawn)
    ]
    answers = {tuple(sorted(found(*order))) for order in itertools.permutations(calls)}
    assert 1 == len(answers)


@given(st.sampled_from([op for op in cr.ops() if op.startswith("c10d::all")]), st.data())
def test_what_no_rank_did_differently_is_agreed(op: str, data: st.DataObject) -> None:
    """The same legal call on every rank has no finding but of `check`'s."""
    made = data.draw(drawn_calls(cr.lookup(op), broken=False))
    if made.row.entry.splits or "uneven" in made.row.entry.forms:  # these vary with the rank by their nature
        return
    everyone = [
        cr.Call(made.row, cr.Group(size=made.group.size, rank=rank), made.arguments) for rank in range(made.group.size)
    ]
    assert () == cr.agree(everyone)
