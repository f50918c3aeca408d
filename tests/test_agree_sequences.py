"""Whole programs: the order of their calls, their groups, their messages, and who waits for whom."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.records import from_record, to_record
from tests.programs import barrier, broadcast, flat, found, programs, reduced


class TestOrder:
    """One fault is one finding, and what follows is compared as if it had not been."""

    def test_programs_that_are_alike_agree(self) -> None:
        assert [] == found(flat(programs()))

    @pytest.mark.parametrize("culprit", range(4))
    def test_a_size_is_wrong_once(self, culprit: int) -> None:
        ranks = programs()
        ranks[culprit][2] = reduced(culprit, 99)
        assert [("sizes", (culprit,), 2, 1)] == found(flat(ranks))

    def test_one_fault_in_every_step_is_counted(self) -> None:
        ranks = programs([4, 5] * 50)
        ranks[2] = [reduced(2, size) for size in [4, 6] * 50]
        assert [("sizes", (2,), 1, 50)] == found(flat(ranks))

    def test_two_tensors_of_one_call_are_named_both(self) -> None:
        calls = [
            cr.call("c10d::allreduce_coalesced_", group=cr.Group(3, rank), tensors=[(4 + rank // 2,), (7 + rank // 2,)])
            for rank in range(3)
        ]
        assert ["s[i=0]", "s[i=1]"] == [name for each in cr.agree(calls) for name in each.names]

    def test_what_many_tensors_of_one_call_have_in_common_is_one_finding(self) -> None:
        def typed(rank: int) -> list[cr.Spec]:
            return [cr.Spec((4,), torch.float64 if rank == 1 else torch.float32) for _ in range(9)]

        calls = [
            cr.call("c10d::allreduce_coalesced_", group=cr.Group(3, rank), tensors=typed(rank)) for rank in range(3)
        ]
        (each,) = cr.agree(calls)
        assert ("AR2", (1,), 9) == (each.id, each.ranks, len(each.names))
        assert "ranks disagree on dtype[i=0], dtype[i=1], dtype[i=2] and 6 more" in each.message
        three = [
            attrs.evolve(call, arguments={**call.arguments, "tensors": typed(call.group.rank)[:3]}) for call in calls
        ]
        assert "disagree on dtype[i=0], dtype[i=1], dtype[i=2]   [AR2]" in cr.agree(three)[0].message

    def test_one_fault_with_another_size_in_every_step_is_one_finding(self) -> None:
        """As of data that differ: of the same constraint, ranks and lines; another line is another finding."""
        ranks = programs(range(4, 54))
        ranks[2] = [reduced(2, 100 + size) for size in range(50)]
        (each,) = cr.agree(flat(ranks))
        assert ({"s": {0: (4,), 1: (4,), 2: (100,), 3: (4,)}}, 0, 50) == (each.names, each.index, each.count)
        ranks[2][30:] = [attrs.evolve(call, source="eval.py:7") for call in ranks[2][30:]]
        assert [("sizes", (2,), 0, 30), ("sizes", (2,), 30, 20)] == found(flat(ranks))

    @pytest.mark.parametrize("culprit", range(4))
    @pytest.mark.parametrize("span", [2, 3, 5])
    def test_another_order_is_told_from_other_sizes(self, culprit: int, span: int) -> None:
        ranks = programs()
        ranks[culprit][1 : 1 + span] = reversed(ranks[culprit][1 : 1 + span])
        (each,) = cr.agree(flat(ranks))
        assert ("AR10", (culprit,), 1, 1) == (each.id, each.ranks, each.index, each.count)
        assert f"rank {culprit} makes these {span} calls in another order than ranks" in each.message

    @pytest.mark.parametrize("culprit", range(4))
    @pytest.mark.parametrize("span", [1, 2, 3])
    def test_calls_that_are_left_out_are_named(self, culprit: int, span: int) -> None:
        ranks = programs()
        del ranks[culprit][1 : 1 + span]
        (each,) = cr.agree(flat(ranks))
        assert ("AR11", (culprit,), 1) == (each.id, each.ranks, each.index)
        assert f"rank {culprit} does not make" in each.message

    @pytest.mark.parametrize("culprit", range(4))
    def test_calls_that_nobody_else_makes_are_named(self, culprit: int) -> None:
        ranks = programs()
        ranks[culprit][3:3] = [reduced(culprit, 99), reduced(culprit, 98)]
        (each,) = cr.agree(flat(ranks))
        assert ("AR11", (culprit,), 3) == (each.id, each.ranks, each.index)
        assert f"rank {culprit} makes these 2 calls, which ranks" in each.message

    def test_where_all_calls_are_alike_their_number_tells_what_happened(self) -> None:
        """One wrong size among equal ones, or one call more: what makes the programs equally long."""
        ranks = programs([5] * 30)
        ranks[1][10] = reduced(1, 99)
        assert [("sizes", (1,), 10, 1)] == found(flat(ranks))
        ranks[1].append(reduced(1, 5))
        assert [("ranks", (1,), 10, 1)] == found(flat(ranks))

    def test_calls_in_another_order_are_still_compared_each_with_its_own(self) -> None:
        def gathered(rank: int, size: int) -> cr.Call:
            lists = [[(4,)] * 4] if rank == 0 else []
            group = cr.Group(4, rank, "dp")
            made = cr.call("c10d::gather_", group=group, input_tensors=[(size,)], output_tensors=lists, root_rank=0)
            return attrs.evolve(made, source=f"gather.py:{rank}")

        ranks = [[reduced(rank), gathered(rank, 4), *programs()[rank]] for rank in range(4)]
        ranks[2][:2] = [gathered(2, 5), reduced(2)]
        order, sizes = cr.agree(flat(ranks))
        assert ("AR10", (2,), 0) == (order.id.replace("GA8", "AR10"), order.ranks, order.index)
        assert ("GA2", (2,), 1) == (sizes.id, sizes.ranks, sizes.index)
        assert ["s", "=", "(5,)", "rank", "2", "gather.py:2"] in [line.split() for line in sizes.message.splitlines()]

    def test_two_faults_are_two_findings(self) -> None:
        ranks = programs(range(4, 60))
        del ranks[1][2]
        ranks[3][30] = reduced(3, 99)
        assert [("ranks", (1,), 2, 1), ("sizes", (3,), 30, 1)] == found(flat(ranks))

    def test_a_rank_that_stops_is_named_with_the_call_that_misses_it(self) -> None:
        ranks = programs()
        del ranks[3][4:]
        assert [("ranks", (3,), 4, 1)] == found(flat(ranks))

    def test_a_rank_that_is_ahead_is_the_odd_one(self) -> None:
        ranks = programs()
        ranks[1].append(reduced(1))
        assert [("ranks", (1,), 6, 1)] == found(flat(ranks))

    @pytest.mark.parametrize("steps", [2, 3, 30])
    def test_a_call_that_one_rank_adds_to_every_step_is_one_fault(self, steps: int) -> None:
        """Such as a barrier of rank 0, when it logs: steps are shorter than what has to match after a single fault."""
        ranks = programs([4, 5, 6] * steps)
        ranks[0] = [call for place in range(0, 3 * steps, 3) for call in (*ranks[0][place : place + 3], barrier(0))]
        inside, last = cr.agree(flat(ranks))
        assert ("BA2", (0,), 3, steps - 1) == (inside.id, inside.ranks, inside.index, inside.count)
        assert "rank 0 makes this call, which ranks 1-3 do not" in inside.message
        assert ("BA2", (0,), 3 * steps, 1) == (last.id, last.ranks, last.index, last.count)

    @pytest.mark.parametrize("steps", [2, 3, 30])
    def test_a_call_that_one_rank_leaves_out_of_every_step_is_one_fault(self, steps: int) -> None:
        ranks = programs([4, 5, 6] * steps)
        del ranks[2][1::3]
        (each,) = cr.agree(flat(ranks))
        assert ("AR11", (2,), 1, steps) == (each.id, each.ranks, each.index, each.count)

    def test_a_rank_that_makes_every_call_twice_makes_more(self) -> None:
        ranks = programs([4] * 30)
        ranks[1] = [call for first in ranks[1] for call in (first, barrier(1))]
        first = cr.agree(flat(ranks))[0]
        assert ("BA2", (1,), 1) == (first.id, first.ranks, first.index)
        assert first.count > 20

    def test_programs_that_have_nothing_in_common_are_not_told_to_their_end(self) -> None:
        ranks = programs(range(4, 404), world=2)
        ranks[1] = [reduced(1, 1000 + place, 2) for place in range(400)]
        for program in ranks:
            program[:] = [attrs.evolve(call, source=f"train.py:{place}") for place, call in enumerate(program)]
        assert 100 == len(cr.agree(flat(ranks)))

    def test_warnings_keep_no_error_from_being_told(self) -> None:
        shapes = [[(2, 3 + place), (3 + place, 2)] for place in range(200)]
        calls = [
            attrs.evolve(cr.call("c10d::allreduce_", group=cr.Group(2, rank), tensors=[each[rank]]), source=str(place))
            for rank in range(2)
            for place, each in enumerate(shapes)
        ]
        calls += [reduced(rank, 1 + rank, 2, "") for rank in range(2)]
        assert "error" == cr.agree(calls)[0].severity

    def test_where_one_rank_alone_takes_part_it_is_the_odd_one(self) -> None:
        """As of a barrier that only rank 0 makes; of two ranks, either may be."""
        (each,) = cr.agree([barrier(0)])
        assert ((0,), {"missing": [1, 2, 3]}) == (each.ranks, each.names)
        assert [(1,)] == [each.ranks for each in cr.agree([barrier(0, 2)])]

    def test_a_rank_that_does_nothing_misses_all(self) -> None:
        assert [("ranks", (3,), 0, 6)] == found(flat(programs()[:3]))

    def test_another_collective_once_leaves_the_rest_comparable(self) -> None:
        ranks = programs()
        ranks[1][2] = broadcast(1)
        ranks[1][4] = reduced(1, 99)
        assert [("call", (1,), 2, 1), ("sizes", (1,), 4, 1)] == found(flat(ranks))

    def test_of_two_programs_only_where_they_part_is_told(self) -> None:
        ranks = [[reduced(0), *[barrier(0, 2)] * 3], [reduced(1), *[broadcast(1, 2)] * 3]]
        ranks = [[attrs.evolve(call, group=cr.Group(2, call.group.rank, "dp")) for call in each] for each in ranks]
        assert [("call", (0, 1), 1, 2)] == found(flat(ranks))

    def test_the_lines_of_both_sides_are_shown(self) -> None:
        ranks = programs()
        del ranks[0][2]
        (each,) = cr.agree(flat(ranks))
        assert "train.py:0" in each.message
        assert "train.py:1, train.py:2, train.py:3" in each.message
        (each,) = cr.agree(flat(programs(world=5)[:4]))
        assert "ranks 0-3   train.py:0, train.py:1, train.py:2\n" in each.message

    @given(st.data())
    def test_the_ranks_may_come_in_any_order_and_interleaved(self, data: st.DataObject) -> None:
        ranks = programs()
        ranks[2][3] = reduced(2, 99)
        order = data.draw(st.permutations([call.group.rank for call in flat(ranks)]))
        queues = [list(program) for program in ranks]
        assert [("sizes", (2,), 3, 1)] == found(queues[rank].pop(0) for rank in order)

    @given(st.data())
    def test_any_one_change_of_a_program_is_found_and_nothing_of_an_unchanged_one(self, data: st.DataObject) -> None:
        sizes = data.draw(st.lists(st.integers(1, 3), min_size=3, max_size=12))
        ranks = programs(sizes, world=3)
        culprit, place = data.draw(st.integers(0, 2)), data.draw(st.integers(0, len(sizes) - 1))
        assert [] == found(flat(ranks))
        change = data.draw(st.sampled_from(["size", "drop", "insert", "rule"]))
        if change == "size":
            ranks[culprit][place] = reduced(culprit, 99, 3)
        elif change == "drop":
            del ranks[culprit][place]
        elif change == "insert":
            ranks[culprit].insert(place, reduced(culprit, 2, 3))
        else:
            ranks[culprit][place] = broadcast(culprit, 3)
        errors = found(flat(ranks))
        assert [(culprit,)] == list(dict.fromkeys(ranks for _, ranks, _, _ in errors))


@given(st.lists(st.text("abgs", max_size=6), min_size=2, max_size=4))
def test_any_programs_can_be_compared(sequences: list[str]) -> None:
    """Programs that have little in common too; equal ones agree."""
    world = len(sequences)
    makers = {"a": lambda r: reduced(r, 4, world), "b": lambda r: broadcast(r, world), "g": lambda r: barrier(r, world)}
    makers["s"] = lambda r: reduced(r, 5, world)
    calls = [makers[each](rank) for rank, sequence in enumerate(sequences) for each in sequence]
    assert (len(set(sequences)) == 1) == (cr.agree(calls) == ())


def test_programs_in_another_order_of_which_one_ends_can_be_compared() -> None:
    kinds = {"g": barrier, "b": broadcast}
    calls = [kinds[each](rank) for rank, sequence in enumerate(["gb", "bg", "gb", "g"]) for each in sequence]
    assert [("call", (1,), 0, 1), ("ranks", (3,), 1, 1)] == found(calls)


class TestWhatRanksNeedNotAgreeOn:
    """Calls that differ in it belong together, whatever their order."""

    def alternate(self, one: Callable[[int], cr.Call], other: Callable[[int], cr.Call], times: int) -> list[cr.Call]:
        return flat([[make(rank) for make in [(one, other), (other, one)][rank] * times] for rank in range(2)])

    @pytest.mark.parametrize("times", [1, 30])
    def test_waiting_or_not_is_each_ranks_own_business(self, times: int) -> None:
        calls = self.alternate(lambda r: reduced(r, 4, 2), lambda r: reduced(r, 4, 2, waits=False), times)
        assert [] == found(calls)

    @pytest.mark.parametrize("times", [1, 30])
    def test_one_collective_may_be_spelled_by_several_ops(self, times: int) -> None:
        op = "_c10d_functional::all_reduce"
        calls = self.alternate(
            lambda r: reduced(r, 4, 2),
            lambda r: cr.call(op, group=cr.Group(2, r, "dp"), input=(4,), reduce_op="sum"),
            times,
        )
        assert [] == found(calls)

    def test_strides_that_are_copied_in_are_no_order(self) -> None:
        op = "_c10d_functional::all_reduce"
        specs = cr.Spec((4, 2)), cr.Spec((4, 2), stride=(1, 4))
        one, other = (lambda r, s=spec: cr.call(op, group=cr.Group(2, r), input=s, reduce_op="sum") for spec in specs)
        assert [] == found(self.alternate(one, other, 1))

    def test_what_only_warns_alone_only_warns_in_a_row(self) -> None:
        def shaped(rank: int, shape: tuple[int, ...]) -> cr.Call:
            return cr.call("c10d::allreduce_", group=cr.Group(2, rank), tensors=[shape])

        calls = self.alternate(lambda r: shaped(r, (2, 3)), lambda r: shaped(r, (6,)), 1)
        assert {"warning"} == {each.severity for each in cr.agree(calls)}

    def test_what_is_unknown_is_no_order(self) -> None:
        def reduced_by(rank: int, op: Any) -> cr.Call:
            return cr.call("c10d::allreduce_", group=cr.Group(2, rank), tensors=[(4,)], reduce_op=op)

        calls = self.alternate(lambda r: reduced_by(r, "sum"), lambda r: reduced_by(r, cr.UNKNOWN), 1)
        assert [] == found(calls)

    def test_a_list_that_is_reduced_on_the_rank_is_one_tensor(self) -> None:
        """Beside one tensor it is a warning, beside two that travel an error."""
        one, two = [(4,)], [(4,), (4,)]
        several = cr.call("c10d::allreduce_", group=cr.Group(2, 0), tensors=two)
        single, coalesced, coalesced_two = (
            cr.call(op, group=cr.Group(2, 1), tensors=tensors)
            for op, tensors in (
                ("c10d::allreduce_", one), ("c10d::allreduce_coalesced_", one), ("c10d::allreduce_coalesced_", two)
            )
        )  # fmt: skip
        assert ["warning"] == [each.severity for each in cr.agree([several, single])]
        assert ["warning"] == [each.severity for each in cr.agree([several, coalesced])]
        assert ["error"] == [each.severity for each in cr.agree([several, coalesced_two])]

    def test_lists_of_other_lengths_are_one_finding(self) -> None:
        lists = [[(4,)] * (3 if rank == 1 else 2) for rank in range(3)]
        op = "_c10d_functional::all_reduce_coalesced"
        calls = [
            cr.call(op, group=cr.Group(3, rank), inputs=inputs, reduce_op="sum") for rank, inputs in enumerate(lists)
        ]
        assert [("lists", (1,), None, 1)] == found(calls)

    def test_a_monitored_barrier_meets_no_other_barrier(self) -> None:
        """It is made of messages: gloo hangs in both."""
        ops = {0: "c10d::barrier", 1: "c10d::monitored_barrier_"}
        calls = [cr.call(op, group=cr.Group(2, rank), tensor=(1,)) for rank, op in ops.items()]
        assert [("call", (0, 1), None, 1)] == found(calls)
        assert [] == found([attrs.evolve(calls[1], group=cr.Group(2, rank)) for rank in range(2)])

    @pytest.mark.parametrize(("name", "values"), [("root_rank", (0, 1)), ("reduce_op", ("sum", "max"))])
    def test_what_is_swapped_is_shown(self, name: str, values: tuple[Any, Any]) -> None:
        op = "c10d::broadcast_" if name == "root_rank" else "c10d::allreduce_"
        one, other = (
            lambda r, v=value: cr.call(op, group=cr.Group(2, r), tensors=[(4,)], **{name: v}) for value in values
        )
        (each,) = cr.agree(self.alternate(one, other, 1))
        assert "in another order" in each.message
        shown = [line.split("   ")[0].partition(" = ")[2].strip() for line in each.message.splitlines()[2:6]]
        assert [True, True] == [any(line.endswith(str(value)) for line in shown) for value in values]

    def test_two_swaps_side_by_side_are_two_swaps(self) -> None:
        ranks = programs([1, 2, 3, 4], world=3)
        ranks[2] = [reduced(2, size, 3) for size in (2, 1, 4, 3)]
        assert [("call", (2,), 0, 2)] == found(flat(ranks))


class TestIndices:
    """Where calls say which of the group's collectives they are, that counts, not where the record begins."""

    def numbered(self, first: Iterable[int], count: int = 6) -> list[cr.Call]:
        return [
            attrs.evolve(reduced(rank, 10 + index, 2), index=index)
            for rank, start in enumerate(first)
            for index in range(start, count)
        ]

    def test_a_record_that_begins_later_agrees(self) -> None:
        assert [] == found(self.numbered((0, 3)))

    def test_what_both_tell_of_is_compared(self) -> None:
        calls = self.numbered((0, 3))
        calls[-1] = attrs.evolve(reduced(1, 99, 2), index=5)
        assert [("sizes", (0, 1), 5, 1)] == found(calls)

    def test_an_index_that_one_rank_leaves_out_is_the_call_that_it_misses(self) -> None:
        calls = [
            attrs.evolve(reduced(rank, 4, 3), index=index)
            for rank in range(3)
            for index in range(6)
            if (rank, index) != (1, 2)
        ]
        assert [("ranks", (1,), 2, 1)] == found(calls)
        assert [] == found(calls, ranks=(0, 2))

    @given(st.permutations(range(5)))
    def test_calls_that_say_which_they_are_may_come_in_any_order(self, order: list[int]) -> None:
        sizes = {0: order, 1: range(5)}
        calls = [attrs.evolve(reduced(rank, 4 + i, 2), index=i) for rank, indices in sizes.items() for i in indices]
        assert [] == found(calls)

    def test_a_call_beyond_the_last_index_has_the_next_one(self) -> None:
        """Rank 2 skips a call, and makes its last one after the others' last."""
        sizes = [[4, 5, 6, 7], [4, 5, 6, 7], [4, 6, 7, 8]]
        calls = [
            attrs.evolve(reduced(rank, size, 3), index=10 + place)
            for rank, own in enumerate(sizes)
            for place, size in enumerate(own)
        ]
        assert [("ranks", (2,), 11, 1), ("ranks", (2,), 14, 1)] == found(calls)

    @given(st.lists(st.dictionaries(st.integers(0, 5), st.integers(1, 3), min_size=1), min_size=3, max_size=4))
    def test_any_parts_of_programs_can_be_compared(self, sizes: list[dict[int, int]]) -> None:
        """Whatever each rank records; nothing is found where all record the same."""
        calls = [
            attrs.evolve(reduced(rank, size, len(sizes)), index=index)
            for rank, own in enumerate(sizes)
            for index, size in sorted(own.items())
        ]
        alike = all(own == sizes[0] for own in sizes)
        assert not alike or cr.agree(calls) == ()

    def test_calls_are_reordered_across_one_that_is_not_recorded(self) -> None:
        """Index 1 is rank 3's alone."""
        sizes = [{0: 4, 2: 5, 3: 6}, {0: 4, 2: 5, 3: 6}, {0: 5, 2: 4, 3: 6}, {0: 4, 1: 9, 2: 5, 3: 6}]
        calls = [
            attrs.evolve(reduced(rank, size), index=index)
            for rank, own in enumerate(sizes)
            for index, size in own.items()
        ]
        assert [("call", (2,), 0, 1), ("ranks", (3,), 1, 1)] == found(calls)

    def test_an_index_may_be_any_number(self) -> None:
        calls = [attrs.evolve(reduced(rank, 4, 2), index=2**70) for rank in range(2)]
        assert [] == found([*calls, *calls])

    def test_of_one_call_each_the_index_does_not_count(self) -> None:
        calls = [attrs.evolve(reduced(rank, 4, 2), index=rank) for rank in range(2)]
        assert [] == found(calls)

    def test_indices_may_repeat_as_in_a_coalesced_launch(self) -> None:
        """The record that begins later begins at the launch."""
        indices = [[0, 1, 1, 2, 2, 3], [2, 2, 3]]
        sizes = [[9, 4, 5, 6, 7, 8], [6, 7, 8]]
        calls = [
            attrs.evolve(reduced(rank, size, 2), index=index)
            for rank in range(2)
            for index, size in zip(indices[rank], sizes[rank], strict=True)
        ]
        assert [] == found(calls)
        calls[-1] = attrs.evolve(reduced(1, 99, 2), index=3)
        assert [("sizes", (0, 1), 3, 1)] == found(calls)


class TestUnknown:
    """What a record does not tell is no disagreement."""

    def exchanged(self, rows: tuple[tuple[int, int], ...], **splits: Any) -> list[cr.Call]:
        return [
            cr.call("c10d::alltoall_base_", group=cr.Group(2, rank), input=(sent, 3), output=(expected, 3), **splits)
            for rank, (sent, expected) in enumerate(rows)
        ]

    def test_of_unknown_split_sizes_the_sums_are_compared(self) -> None:
        splits = {"input_split_sizes": cr.UNKNOWN, "output_split_sizes": cr.UNKNOWN}
        assert () == cr.check(self.exchanged(((5, 3), (2, 4)), **splits)[0])
        assert [] == found(self.exchanged(((5, 3), (2, 4)), **splits))
        (each,) = cr.agree(self.exchanged(((5, 3), (2, 5)), **splits))
        assert ("AAS3", "error", {"sent": 21, "expected": 24}) == (each.id, each.severity, each.names)
        assert [] == found(self.exchanged(((5, 3), (2, 5)), **splits)[:1], ranks=(0,))

    def test_unknown_splits_are_not_even_ones(self) -> None:
        """Left out, they are: five rows cannot be shared by two."""
        assert [] != found(self.exchanged(((5, 3), (2, 4))))

    @pytest.mark.parametrize("known", [(), (0,), (0, 2)])
    def test_an_unknown_attribute_agrees_with_any(self, known: tuple[int, ...]) -> None:
        calls = [
            cr.call(
                "c10d::reduce_",
                group=cr.Group(3, rank),
                tensors=[(4,)],
                reduce_op="max" if rank in known else cr.UNKNOWN,
                root_rank=1 if rank in known else cr.UNKNOWN,
            )
            for rank in range(3)
        ]
        assert [] == found(calls)
        assert [()] * 3 == [cr.check(call, backend="gloo") for call in calls]

    def test_those_who_tell_are_compared(self) -> None:
        ops = ["max", cr.UNKNOWN, "sum"]
        calls = [
            cr.call("c10d::allreduce_", group=cr.Group(3, rank), tensors=[(4,)], reduce_op=op)
            for rank, op in enumerate(ops)
        ]
        assert [("reduce_op", (0, 2), None, 1)] == found(calls)

    def test_of_an_unknown_root_who_has_the_list_is_it(self) -> None:
        calls = [
            cr.call(
                "c10d::gather_",
                group=cr.Group(2, rank),
                input_tensors=[(4,)],
                output_tensors=[[(4,), (4,)]] if rank else [],
                root_rank=cr.UNKNOWN,
            )
            for rank in range(2)
        ]
        assert [] == found(calls)
        assert [()] * 2 == [cr.check(call) for call in calls]

    def test_a_tensor_is_never_unknown(self) -> None:
        """A `Spec` says what is known of it."""
        with pytest.raises(cr.CallError, match="input_tensor=unknown"):
            cr.call("c10d::_allgather_base_", group=cr.Group(2), input_tensor=cr.UNKNOWN)

    def test_a_record_keeps_it(self) -> None:
        made = self.exchanged(((5, 3), (2, 4)), input_split_sizes=cr.UNKNOWN)[0]
        assert made == from_record(json.loads(json.dumps(to_record(made))))


class TestGroups:
    """Groups are compared apart."""

    def test_one_name_with_other_ranks_is_another_group(self) -> None:
        """As the columns of a mesh."""
        columns = [(0, 2), (1, 3)]
        calls = [
            cr.call("c10d::allreduce_", group=cr.Group(2, place, "tp", column), tensors=[(4 + column[0],)])
            for column in columns
            for place in range(2)
        ]
        assert [] == found(calls)
        assert ["tp"] == [each.group for each in cr.agree(calls[:3])]

    def test_ranks_of_which_nothing_is_known_are_not_missing(self) -> None:
        calls = flat(programs()[:3])
        assert [] == found(calls, ranks=(0, 1, 2))
        assert [] == found(calls, ranks=range(3))
        assert [("ranks", (3,), 0, 6)] == found(calls, ranks=(0, 1, 2, 3))
        partly = flat([*programs()[:3], programs()[3][:2]])
        assert [] == found(partly, ranks=(0, 1, 2))
        assert [("ranks", (3,), 2, 1)] == found(partly)

    def test_known_ranks_are_global(self) -> None:
        """A group's own ranks are others."""
        group = [cr.Group(2, rank, "tp", (4, 7)) for rank in range(2)]
        calls = [cr.call("c10d::allreduce_", group=group[0], tensors=[(4,)])]
        assert [] == found(calls, ranks=(0, 1, 4))
        assert [("ranks", (7,), None, 1)] == found(calls, ranks=(4, 7))


class TestPairs:
    """What ranks exchange, pair by pair."""

    def exchanged(self, change: Iterable[tuple[int, int]] = (), world: int = 4) -> list[cr.Call]:
        """Rank i sends i + 2 j + 1 rows to rank j; at the pairs in `change`, j expects one more."""
        calls = []
        for rank in range(world):
            sent = [rank + 2 * peer + 1 for peer in range(world)]
            expected = [peer + 2 * rank + 1 + ((peer, rank) in change) for peer in range(world)]
            calls.append(
                cr.call(
                    "c10d::alltoall_base_",
                    group=cr.Group(world, rank),
                    input=(sum(sent), 3),
                    output=(sum(expected), 3),
                    input_split_sizes=sent,
                    output_split_sizes=expected,
                )
            )
        return calls

    def test_pairs_that_fit_agree(self) -> None:
        assert [] == found(self.exchanged())

    def test_one_bad_pair_names_both_ends(self) -> None:
        (each,) = cr.agree(self.exchanged([(1, 3)]))
        assert ("AAS3", (1, 3)) == (each.id, each.ranks)
        assert {"S[1,3]": {1: 8, 3: 9}} == each.names

    def test_several_bad_pairs_are_one_matrix(self) -> None:
        (each,) = cr.agree(self.exchanged([(0, 2), (1, 2), (3, 2)]))
        assert ("AAS3", (2,)) == (each.id, each.ranks)
        assert ["S[0,2]", "S[1,2]", "S[3,2]"] == list(each.names)
        lines = [line.split() for line in each.message.splitlines()[3:7]]
        assert [["S[i,j]", "j=2"], ["i=0", "5≠6"], ["i=1", "6≠7"], ["i=3", "8≠9"]] == lines

    def test_where_no_rank_is_in_all_bad_pairs_all_are_named(self) -> None:
        (each,) = cr.agree(self.exchanged([(0, 1), (2, 3)]))
        assert (0, 1, 2, 3) == each.ranks

    def test_a_large_matrix_is_cut(self) -> None:
        world = 12
        (each,) = cr.agree(self.exchanged([(i, j) for i in range(world) for j in range(world) if i != j], world))
        assert "… and 4 more senders, 4 more receivers" in each.message

    @given(st.data())
    def test_the_quick_answer_for_pairs_is_the_thorough_one(self, data: st.DataObject) -> None:
        """The thorough one unifies every name; a list of splits that is left out makes it needed."""
        world = 3
        pairs = [(i, j) for i in range(world) for j in range(world) if i != j]  # a rank with itself is check's
        change = data.draw(st.lists(st.sampled_from(pairs), max_size=3, unique=True))
        calls = self.exchanged(change, world)
        width = data.draw(st.sampled_from([3, 4]))
        calls[0] = attrs.evolve(
            calls[0],
            arguments=calls[0].arguments
            | {name: cr.Spec((calls[0].arguments[name].shape[0], width)) for name in ("input", "output")},
        )
        assert bool(change or width != 3) == bool(cr.agree(calls))
