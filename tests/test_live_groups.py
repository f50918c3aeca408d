"""Groups on real gloo under the comparison: who makes which, under one name, and where ranks are meanwhile."""

import pytest

from tests.live_ranks import Ended, Ranks

SETTINGS = ["always", "exit", 10]


def first_of_all(ended: list[Ended]) -> tuple[str, tuple[int, ...]]:
    """The id and the ranks of the first finding, which all ranks raise alike."""
    assert {"DisagreementError"} == {each.outcome for each in ended}, ended
    (only,) = {(each.findings[0][0], each.findings[0][2], each.message) for each in ended}
    return only[:2]


@pytest.mark.parametrize("agree", SETTINGS)
def test_ranks_that_make_groups_of_other_ranks_are_told_before_any_is_made(agree: str | int, ranks: Ranks) -> None:
    ended = ranks.run("live_group_programs:own_groups", 4, agree, deadline=30)
    assert ("NG1", (0, 1, 2, 3)) == first_of_all(ended)
    assert "members = (0, 3)   ranks 0, 3   " in ended[0].message
    assert "members = (1, 2)   ranks 1, 2   " in ended[0].message
    assert 2 == ended[0].message.count("live_group_programs.py:")
    assert "call new_group on every rank, with the same ranks, in one order" in ended[0].message
    assert max(each.seconds for each in ended) < 15


@pytest.mark.parametrize("agree", SETTINGS)
def test_a_group_that_only_some_ranks_make_is_told_with_both_lines(agree: str | int, ranks: Ranks) -> None:
    ended = ranks.run("live_group_programs:group_of_some", 4, agree, deadline=30)
    assert ("NG1", (0, 1, 2, 3)) == first_of_all(ended)
    assert 2 == ended[3].message.count("live_group_programs.py:")
    assert max(each.seconds for each in ended) < 15


@pytest.mark.parametrize("agree", SETTINGS)
def test_a_rank_that_waits_in_new_group_alone_is_said_to_be_there(agree: str | int, ranks: Ranks) -> None:
    ended = ranks.run("live_group_programs:group_of_one_rank_alone", 2, agree, deadline=3.0, outlives=True)
    assert ("WAIT1", (0, 1)) == first_of_all(ended)
    assert "rank 0 waits in dist::new_group, members (0, 1)" in ended[0].message
    assert 2 == ended[0].message.count("live_group_programs.py:")


@pytest.mark.parametrize("agree", SETTINGS)
def test_one_number_of_two_groups_is_told_at_the_first_use(agree: str | int, ranks: Ranks) -> None:
    ended = ranks.run("live_group_programs:groups_of_before", 4, agree, deadline=30)
    assert "GROUP1" == first_of_all(ended)[0]
    assert "group 1 of ranks 0, 1   rank" in ended[0].message
    assert "group 1 of ranks 2, 3   rank" in ended[0].message
    assert 2 == ended[0].message.count("live_group_programs.py:")


@pytest.mark.parametrize("agree", [*SETTINGS, "guard"])
@pytest.mark.parametrize("program", ["makes_groups", "begins_again"])
def test_groups_that_all_ranks_make_alike_are_left_alone(program: str, agree: str | int, ranks: Ranks) -> None:
    ended = ranks.run(f"live_group_programs:{program}", 3, agree, deadline=30)
    assert [("passed", "", [])] * 3 == [(each.outcome, each.message, each.noted) for each in ended]


def test_a_rank_in_a_function_that_is_no_collective_is_said_to_be_there(ranks: Ranks) -> None:
    ended = ranks.run("live_group_programs:waits_at_the_store", 3, "always", deadline=3.0, outlives=True)
    survivors = [each for rank, each in enumerate(ended) if rank != 1]
    assert ("LIVE1", (1,)) == first_of_all(survivors)
    assert "rank 1 is in torch.distributed.elastic.utils.store.barrier, " in ended[0].message
    assert "its last call: c10d::allreduce_" in ended[0].message
