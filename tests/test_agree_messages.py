"""Messages find their partners, and ranks that wait for each other in a circle are found."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

import collective_rules as cr
from tests.programs import found, reduced


def send(rank: int, peer: Any, size: int = 3, tag: Any = 0, waits: bool | None = None) -> cr.Call:
    made = cr.call("c10d::send", group=cr.Group(3, rank), tensors=[(size,)], dst=peer, tag=tag)
    return attrs.evolve(made, blocking=waits)


def receive(rank: int, peer: int | None, size: int = 3, tag: Any = 0, waits: bool | None = None) -> cr.Call:
    group = cr.Group(3, rank)
    if peer is None:
        return cr.call("c10d::recv_any_source_", group=group, tensors=[(size,)], tag=tag)
    return attrs.evolve(cr.call("c10d::recv_", group=group, tensors=[(size,)], src=peer, tag=tag), blocking=waits)


class TestMessages:
    """Sends find their receives in the order of the program."""

    def test_messages_of_one_pair_keep_their_order(self) -> None:
        calls = [send(0, 1, 3), send(0, 1, 4), receive(1, 0, 3), receive(1, 0, 4)]
        assert [] == found(calls)
        assert [("pairs", (0, 1), None, 2)] == found([calls[0], calls[1], calls[3], calls[2]])

    def test_tags_keep_messages_apart(self) -> None:
        calls = [send(0, 1, 3, 7, False), send(0, 1, 4, 8, False), receive(1, 0, 4, 8), receive(1, 0, 3, 7)]
        assert [] == found(calls)

    def test_alike_messages_that_nobody_receives_are_counted(self) -> None:
        assert [("partner", (0,), None, 5)] == found([send(0, 1)] * 5)

    def test_a_partner_of_which_nothing_is_known_is_not_missing(self) -> None:
        assert [] == found([send(0, 1), send(0, 2)], ranks=(0,))
        assert [("partner", (0,), None, 1)] == found([send(0, 1), send(0, 2)], ranks=(0, 2))
        assert [] == found([receive(0, None)], ranks=(0, 1))

    def test_an_unknown_tag_matches_any(self) -> None:
        calls = [send(0, 1), receive(1, 0, tag=cr.UNKNOWN)]
        assert [] == found(calls)
        assert () == cr.check(calls[1])

    def test_of_unknown_tags_nothing_is_sure(self) -> None:
        """Paired by order, sizes differ; by the tags that are not told, they may not."""
        sends = [send(0, 1, size, cr.UNKNOWN, False) for size in (1, 2)]
        receives = [receive(1, 0, size, tag, False) for size, tag in ((2, 4), (1, 3))]
        assert {"undecidable"} == {each.severity for each in cr.agree([*sends, *receives])}

    @pytest.mark.parametrize(("source", "severity"), [(2, "error"), (None, "undecidable")])
    def test_a_receive_from_any_source_may_be_the_partner_of_an_unknown_tag(
        self, source: int | None, severity: str
    ) -> None:
        """One from another source is not."""
        calls = [send(0, 1, 1, cr.UNKNOWN), receive(1, 0, 9, 4), send(2, 1, 5, 7), receive(1, source, 5, 7)]
        assert [severity] == [each.severity for each in cr.agree(calls)]

    def test_messages_of_another_tag_fit_no_receive_from_any_source(self) -> None:
        """Nor do those of a rank of which not all calls are known."""
        calls = [receive(0, None, 4), send(1, 0, 5), send(2, 0, 4, 1), receive(0, None, 4, 1)]
        assert [("error", (0, 1))] == [(each.severity, each.ranks) for each in cr.agree(calls)]
        assert ["undecidable"] == [each.severity for each in cr.agree(calls, ranks=(0, 1))]

    def test_an_unknown_peer_leaves_nobody_alone(self) -> None:
        """Any message may be its other end."""
        assert [] == found([send(0, cr.UNKNOWN), receive(1, 0)])
        assert [] != found([send(0, 2), receive(1, 0)])

    def test_a_receive_from_any_source_leaves_the_named_ones_their_messages(self) -> None:
        """A header from anyone, then the payload from its sender."""
        header, payload = (1,), (5,)
        calls = [receive(0, None, 1), receive(0, 1, 5), send(1, 0, *header), send(1, 0, *payload)]
        assert [] == found(calls)
        assert [] == found([receive(0, None), receive(0, 1), send(1, 0), send(1, 0)])

    def test_a_receive_from_any_source_takes_its_own_dtype(self) -> None:
        def typed(call: cr.Call) -> cr.Call:
            return attrs.evolve(call, arguments=call.arguments | {"tensors": (cr.Spec((3,), torch.int32),)})

        calls = [typed(receive(0, None)), receive(0, None), send(1, 0), typed(send(2, 0))]
        assert [] == found(calls)

    def test_receives_from_any_source_take_from_all_in_turn(self) -> None:
        """Two steps, each of which ends with a message to those who were heard: no order of these is a circle."""
        step = [receive(0, None), receive(0, None), send(0, 1), send(0, 2)]
        steps = [*step, *step, *[call for rank in (1, 2) for call in (send(rank, 0), receive(rank, 0)) * 2]]
        assert () == cr.agree(steps)

    def test_whose_message_is_received_is_sure_only_where_none_would_fit(self) -> None:
        """In the first order of arrival that comes to mind, sizes differ; in another, they do not."""
        sends = [send(1, 0, 4), send(1, 0, 5), send(2, 0, 4), send(2, 0, 6)]
        assert {"undecidable"} == {
            each.severity for each in cr.agree([*[receive(0, None, size) for size in (4, 6, 4, 5)], *sends])
        }
        wrong = cr.agree([*[receive(0, None, size) for size in (4, 6, 4, 9)], *sends])
        assert {"error"} == {each.severity for each in wrong}

    def test_a_tag_that_is_sent_to_any_source_by_nobody_is_wrong(self) -> None:
        (each,) = cr.agree([receive(0, None, tag=3), send(1, 0, tag=4)])
        assert ("SE4", "error", (0, 1)) == (each.id, each.severity, each.ranks)

    @pytest.mark.parametrize("place", range(4))
    def test_a_message_too_many_is_told_from_the_others(self, place: int) -> None:
        """By its size: those after it still find theirs."""
        sends = [send(0, 1, size, waits=False) for size in range(1, 5)]
        receives = [receive(1, 0, size) for size in range(1, 5)]
        (each,) = cr.agree([*sends, *receives[:place], *receives[place + 1 :]])
        assert ("SE8", (0,)) == (each.id, each.ranks)
        assert f"It is message {place} that rank 0 sends" in each.message
        (each,) = cr.agree([*sends[:place], *sends[place + 1 :], *receives])
        assert ("RE10", (1,)) == (each.id, each.ranks)
        assert f"It is message {place} that rank 1 sends" in each.message

    def test_one_fault_in_each_of_many_messages_is_counted(self) -> None:
        """Whatever their tags."""
        sends = [send(0, 1, tag=tag, waits=False) for tag in range(3000)]
        assert [("tag", (0, 1), None, 3000)] == found([*sends, *[receive(1, 0, tag=5000 + tag) for tag in range(3000)]])
        assert [("pairs", (0, 1), None, 3000)] == found([*sends, *[receive(1, 0, 9, tag) for tag in range(3000)]])
        assert [("partner", (0,), None, 3000)] == found(sends)

    def test_a_message_that_nobody_receives_says_so(self) -> None:
        (each,) = cr.agree([receive(1, None)])
        assert "rank 1 waits for any rank, and none sends it anything" in each.message

    def test_the_message_among_many_is_told(self) -> None:
        calls = [
            call
            for number in range(4)
            for call in (send(0, 1, number + 5, 0, False), receive(1, 0, 9 if number == 2 else number + 5))
        ]
        (each,) = cr.agree(calls)
        assert "It is message 2 that rank 0 sends or receives" in each.message

    @pytest.mark.parametrize("tag", [0, 1])
    def test_messages_that_nobody_fits_take_linear_time(self, tag: int) -> None:
        """Neither wrong tags nor receives from any source are searched for again and again."""
        count = 5_000
        calls = [send(0, 1, 2, 0, False)] * count + [send(2, 1, 1, 0, False)] * count
        calls += [receive(1, None, 1, tag)] * count + [receive(1, None, 2, tag)] * count
        assert (tag == 0) == (found(calls) == [])

    def test_many_messages_take_linear_time(self) -> None:
        """Ten thousand in both directions: a quadratic search would take minutes."""
        calls = [send(0, 1, waits=False), receive(1, 0), send(1, 2, waits=False), receive(2, 1)] * 10_000
        assert [] == found(calls)


class TestWaiting:
    """Ranks that wait for each other in a circle are found; those that only might, are not."""

    def test_a_circle_of_blocking_sends_is_found(self) -> None:
        calls = [call for rank in range(3) for call in (send(rank, (rank + 1) % 3), receive(rank, (rank - 1) % 3))]
        (each,) = cr.agree(calls)
        assert ("WAIT1", "error", (0, 1, 2)) == (each.id, each.severity, each.ranks)
        assert "rank 2 waits in c10d::send of 3 float32, for rank 0" in each.message

    def test_one_rank_that_receives_first_opens_the_circle(self) -> None:
        calls = [call for rank in range(3) for call in (send(rank, (rank + 1) % 3), receive(rank, (rank - 1) % 3))]
        calls[0], calls[1] = calls[1], calls[0]
        assert [] == found(calls)

    @pytest.mark.parametrize("waits", [True, False])
    def test_sends_that_do_not_wait_are_no_circle(self, waits: bool) -> None:
        calls = [
            call
            for rank in range(3)
            for call in (send(rank, (rank + 1) % 3, waits=waits), receive(rank, (rank - 1) % 3))
        ]
        assert waits == bool(found(calls))

    @pytest.mark.parametrize("waits", [True, False])
    def test_groups_in_crossed_order_are_a_circle_where_calls_wait(self, waits: bool) -> None:
        order = [("a", "b"), ("b", "a")]
        calls = [reduced(rank, 3, 2, name, waits) for rank in range(2) for name in order[rank]]
        assert (["undecidable"] if waits else []) == [each.severity for each in cr.agree(calls)]
        groups = [attrs.evolve(call, group=attrs.evolve(call.group, ranks=(0, 1))) for call in calls]
        assert (["error"] if waits else []) == [each.severity for each in cr.agree(groups)]
        assert ([("WAIT1", (0, 1), None, 1)] if waits else []) == found([*calls[:1], *groups[1:]])

    def test_a_collective_and_a_message_may_be_a_circle(self) -> None:
        group = [cr.Group(3, rank) for rank in range(3)]
        barriers = [cr.call("c10d::barrier", group=each, device_ids=[], async_op=False) for each in group]
        calls = [send(0, 1), barriers[0], barriers[1], receive(1, 0), barriers[2]]
        assert [("WAIT1", (0, 1), None, 1)] == found(calls)
        calls[2], calls[3] = calls[3], calls[2]
        assert [] == found(calls)

    def test_a_circle_that_hangs_on_who_is_received_is_undecidable(self) -> None:
        calls = [receive(0, None), send(0, 1), receive(0, None), receive(1, 0), send(1, 0), send(2, 0)]
        assert [] == [each for each in cr.agree(calls) if each.severity == "error"]

    def test_groups_that_tell_no_ranks_may_be_of_others(self) -> None:
        """The rows and columns of a mesh, by name alone."""
        order = [("tp0", 0), ("pp0", 0), ("pp1", 1), ("tp1", 1), ("pp0", 1), ("tp1", 0), ("pp1", 0), ("tp0", 1)]
        calls = [reduced(rank, 3, 2, name) for name, rank in order]
        assert [] == [each for each in cr.agree(calls) if each.severity == "error"]

    def test_a_rank_that_does_not_tell_the_ranks_of_a_group_is_still_itself(self) -> None:
        told = [cr.Group(2, rank, name, (4, 5)) for name in ("g", "h") for rank in range(2)]
        calls = [
            cr.call("c10d::allreduce_", group=group, tensors=[(3,)], async_op=False)
            for group in (told[0], told[2], told[3], cr.Group(2, 1, "g"))
        ]
        assert [("WAIT1", (4, 5), None, 1)] == found(calls)

    def test_an_op_without_a_work_waits_inside(self) -> None:
        groups = [cr.Group(2, rank, name, (0, 1)) for rank, name in ((0, "a"), (0, "b"), (1, "b"), (1, "a"))]
        calls = [cr.call("c10d::monitored_barrier_", group=group, tensor=(1,)) for group in groups]
        assert [("WAIT1", (0, 1), None, 1)] == found(calls)

    def test_what_is_missing_is_told_instead(self) -> None:
        """A rank that never comes is no circle."""
        calls = [send(0, 1), receive(0, 1), send(1, 0)]
        assert ["partner"] == [kind for kind, *_ in found(calls)]
