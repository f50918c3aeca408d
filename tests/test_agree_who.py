"""Who and where: findings between ranks count ranks as the job does, and name the lines of both sides."""

import re
from collections.abc import Iterable

import attrs
import pytest

import collective_rules as cr
from collective_rules.finding import Finding
from tests.test_messages import CASES

GLOBAL = (20, 31, 42, 53)


def elsewhere(calls: Iterable[cr.Call], ranks: tuple[int, ...] = GLOBAL, name: str = "tp") -> list[cr.Call]:
    """The same calls in a group of other global ranks."""
    return [
        attrs.evolve(call, group=attrs.evolve(call.group, name=name, ranks=ranks[: call.group.size])) for call in calls
    ]


def reduced(rank: int, source: str = "", op: str = "c10d::allreduce_", **arguments: object) -> cr.Call:
    """One rank's collective, in a group of four, at a line."""
    call = cr.call(op, group=cr.Group(4, rank), **({"tensors": [(4,)]} | arguments))
    return attrs.evolve(call, source=source)


def message(op: str, rank: int, peer: int, source: str = "", size: int = 4, tag: int = 0) -> cr.Call:
    """A send to a peer, or a receive from it."""
    side = "dst" if op == "send" else "src"
    name = "c10d::send" if op == "send" else "c10d::recv_"
    call = cr.call(name, group=cr.Group(4, rank), tensors=[(size,)], tag=tag, **{side: peer})
    return attrs.evolve(call, source=source, blocking=True)


def exchanged(rank: int, expected: dict[int, int]) -> cr.Call:
    """An all_to_all of one row for each rank; `expected` says how many rows a rank expects of others, where not one."""
    return cr.call(
        "c10d::alltoall_base_",
        group=cr.Group(4, rank),
        input=(4,),
        output=(4 + sum(expected.values()) - len(expected),),
        input_split_sizes=[1] * 4,
        output_split_sizes=[expected.get(peer, 1) for peer in range(4)],
    )


BROKEN = {
    **{name: made for name, (made, _) in CASES.items() if isinstance(made, list)},
    "pairs": [exchanged(rank, {2: 3} if rank == 1 else {1: 2} if rank == 3 else {}) for rank in range(4)],
    "one left out": [reduced(rank) for rank in range(4) for step in range(4) if (rank, step) != (2, 3)],
    "another order": [
        reduced(rank, op="c10d::broadcast_", root_rank=0) if which else reduced(rank)
        for rank in range(4)
        for which in ((1, 0, 0) if rank == 3 else (0, 1, 0))
    ],
    "forms": [
        cr.call(
            "c10d::allgather_",
            group=cr.Group(4, rank),
            input_tensors=[(4,)],
            output_tensors=[[(4,), (4,), (5 if rank == 1 else 4,), (4,)]],
        )
        for rank in range(4)
    ],
    "sizes of a message": [message("send", 0, 1), message("recv", 1, 0, size=5)],
    "tag of a message": [message("send", 0, 1, tag=3), message("recv", 1, 0, tag=4)],
    "order of messages": [
        *[message("send", 0, 1), message("recv", 0, 1)],
        *[message("send", 1, 0), message("recv", 1, 0)],
    ],
}
"""The fault → calls of several ranks."""


def ranks_in(text: str) -> set[int]:
    """Return the ranks that a message names."""
    said = re.findall(r"\b(?:ranks?) ((?:\d+(?:-\d+)?(?:, | and )?)+)", text)
    return {int(number) for each in said for number in re.findall(r"\d+", each)}


def backend_of(name: str) -> str | None:
    """Return the backend on which a case is a fault."""
    return {"forms": "nccl", "tag of a message": "nccl"}.get(name)


@pytest.mark.parametrize("name", BROKEN)
def test_a_finding_counts_ranks_as_the_job_does(name: str) -> None:
    """Of the same calls in a group of other ranks, the findings are the same but for the ranks."""
    here = cr.agree(BROKEN[name], backend_of(name))
    there = cr.agree(elsewhere(BROKEN[name]), backend_of(name))
    assert here
    for found, moved in zip(here, there, strict=True):
        assert [GLOBAL[rank] for rank in found.ranks] == [*moved.ranks]
        assert {GLOBAL[rank] for rank in ranks_in(found.message)} <= ranks_in(moved.message) <= {*GLOBAL}
        assert "tp (ranks 20, 31, 42" in moved.message or "group tp (ranks 20, 31" in moved.message
        for values, others in zip(found.names.values(), moved.names.values(), strict=True):
            if isinstance(values, dict):
                assert [GLOBAL[rank] for rank in values] == [*others]


def test_sides_of_a_pair_are_global_ranks() -> None:
    (found,) = cr.agree(elsewhere(BROKEN["AAS3_pair_disagrees"]))
    assert ["S[20,31]"] == [*found.names]
    assert "ranks 20 and 31 disagree on S[20,31]" in found.message
    (several,) = cr.agree(elsewhere(BROKEN["pairs"]))
    assert {"S[42,31]", "S[31,53]"} == {*several.names}
    assert "j=53" in several.message


def test_a_root_is_told_with_its_global_rank() -> None:
    """An op counts its root in the group."""
    calls = [reduced(rank, op="c10d::broadcast_", root_rank=int(rank == 3)) for rank in range(4)]
    (found,) = cr.agree(elsewhere(calls))
    assert "root = 0, which is rank 20   ranks 20, 31, 42" in found.message
    assert {"root": {20: 0, 31: 0, 42: 0, 53: 1}} == found.names
    assert "which is" not in cr.agree(calls)[0].message


def test_ranks_that_leave_out_the_ranks_of_their_group_are_told_like_the_others() -> None:
    """A recording may name the group and not list its ranks: the other ranks' recordings do."""
    calls = elsewhere([reduced(rank, tensors=[(5 if rank == 1 else 4,)]) for rank in range(4)])
    calls[1] = attrs.evolve(calls[1], group=cr.Group(4, 1, "tp"))
    (found,) = cr.agree(calls)
    assert (31,) == found.ranks
    sends = elsewhere([message("send", 0, 1), message("recv", 2, 1)])
    sends[1] = attrs.evolve(sends[1], group=cr.Group(4, 2, "tp"))
    assert {(20,), (42,)} == {each.ranks for each in cr.agree(sends)}


def test_a_group_that_lists_no_ranks_keeps_its_own() -> None:
    (found,) = cr.agree([reduced(rank, tensors=[(5 if rank == 1 else 4,)]) for rank in range(4)])
    assert (1,) == found.ranks
    assert "In " not in found.message


def test_a_check_tells_the_global_rank_and_how_its_values_count() -> None:
    """A root and a peer are ranks of the group: the message says so where the job counts otherwise."""
    (call,) = elsewhere([cr.call("c10d::broadcast_", group=cr.Group(4, 2), tensors=[(3,)], root_rank=9)])
    (found,) = cr.check(call)
    assert (42,) == found.ranks
    assert "ranks are counted here in group tp (ranks 20, 31, 42, 53)" in found.message
    (world,) = cr.check(attrs.evolve(call, group=cr.Group(4, 2, "0", (0, 1, 2, 3))))
    assert "counted here" not in world.message


# -- lines


def lined(made: list[cr.Call]) -> list[cr.Call]:
    """The same calls, each with a line of its own rank."""
    return [attrs.evolve(call, source=f"train.py:{100 + call.group.rank}") for call in made]


NO_TWO_SIDES = {"SE8_no_partner": "the other rank makes no call at all", "AR11_rank_missing": "as before"}


@pytest.mark.parametrize("name", [name for name in BROKEN if name not in NO_TWO_SIDES])
def test_a_finding_has_the_lines_of_both_sides(name: str) -> None:
    """Of the ranks at fault, and of some rank that they disagree with."""
    for found in cr.agree(lined(BROKEN[name]), backend_of(name)):
        lines = {int(line) - 100 for line in re.findall(r"train\.py:(\d+)", found.message)}
        assert len(lines) > 1
        assert lines & {*found.ranks}


def test_a_message_without_a_partner_has_its_line() -> None:
    (found,) = cr.agree(lined(BROKEN["SE8_no_partner"]))
    assert "train.py:100" in found.message


def test_a_rank_that_ends_early_is_told_with_its_last_call() -> None:
    calls = [reduced(rank, f"train.py:{10 + step}") for rank in range(4) for step in range(3) if (rank, step) != (2, 2)]
    (found,) = cr.agree(calls)
    assert "taking part = ranks 0, 1, 3   train.py:12" in found.message
    assert re.search(
        r"its last call = c10d::allreduce_ of 4 float32, reduce_op sum +rank 2   train.py:11", found.message
    )


# -- advice


def advice(found: Finding) -> str:
    """Return the message after its values."""
    return found.message.partition("rank 3   b.py:1\n")[2]


def test_advice_says_first_that_ranks_are_out_of_step_where_they_stand_at_different_lines() -> None:
    """To pad what belongs to different calls would hide the fault."""

    def at(lines: list[str]) -> Finding:
        (found,) = cr.agree([reduced(rank, lines[rank], tensors=[(4 + rank // 3,)]) for rank in range(4)])
        return found

    assert advice(at(["a.py:1"] * 3 + ["b.py:1"])).startswith("The ranks stand at different lines of the program")
    assert (
        "if these lines are meant to be one collective: every rank must pass"
        in at(["a.py:1"] * 3 + ["b.py:1"]).message.lower()
    )
    for lines in (["b.py:1"] * 4, ["a.py:1", "a.py:1", "b.py:1", "b.py:1"], [""] * 3 + ["b.py:1"]):
        assert "out of step" not in at(lines).message


def test_the_two_ends_of_a_message_stand_at_different_lines_by_nature() -> None:
    (found,) = cr.agree(lined(BROKEN["sizes of a message"]))
    assert "out of step" not in found.message


def test_a_message_whose_second_end_is_in_another_group_is_told_so() -> None:
    """Two groups of the same ranks: what one rank sends in the first, the other expects in the second."""
    calls = lined([message("send", 0, 1), message("recv", 1, 0)])
    found = cr.agree([*elsewhere(calls[:1], name="a"), *elsewhere(calls[1:], name="b")])
    assert [(20,), (31,)] == [each.ranks for each in found]
    for each, name in zip(found, "ba", strict=True):
        assert f" in group {name} (ranks 20, 31, 42, 53)" in each.message
        assert "train.py:100" in each.message
        assert "train.py:101" in each.message
        assert "Both sides must be in one group" in each.message
    assert "one group" not in cr.agree(calls[:1])[0].message
