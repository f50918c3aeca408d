"""Who and why, while ranks run: circles, slow ranks and ranks that left by an error of their own are told as such."""

import pytest

from tests.live_ranks import Ended, Ranks

DEADLINE = 3.0


def raised(ended: list[Ended], *, but: tuple[int, ...] = ()) -> Ended:
    """What all ranks but those raised alike."""
    survivors = [each for rank, each in enumerate(ended) if rank not in but]
    assert ["DisagreementError"] * len(survivors) == [each.outcome for each in survivors], ended
    assert 1 == len({(each.message, each.findings) for each in survivors})
    return survivors[0]


CIRCLES = {"ring_of_sends": (0, 1, 2), "send_meets_collective": (0, 1)}


@pytest.mark.parametrize("agree", ["always", "exit"])
@pytest.mark.parametrize("program", CIRCLES)
def test_ranks_that_wait_for_each_other_are_told_as_a_circle(program: str, agree: str, ranks: Ranks) -> None:
    """Not as sends without a receive: the receive stands in the next line."""
    found = raised(ranks.run(program, 3, agree, deadline=DEADLINE, outlives=True))
    assert [("WAIT1", "error", CIRCLES[program])] == [*found.findings]
    for rank in CIRCLES[program]:
        assert f"rank {rank} waits in c10d::" in found.message
    assert len(CIRCLES[program]) <= found.message.count("live_programs.py:")
    assert "Post the matching call" not in found.message


def test_a_slow_rank_is_told_as_slow_with_its_line(ranks: Ranks) -> None:
    """It will make the call: that it leaves the call out would be wrong."""
    found = raised(ranks.run("dawdles", 3, "exit", deadline=DEADLINE, outlives=True))
    assert [("LIVE1", "error", (1,))] == [*found.findings]
    assert "c10d::allreduce_: rank 1 has not come, within 3 s" in found.message
    assert "  rank 1 is at " in found.message
    assert "live_programs.py:" in found.message.partition("rank 1 is at ")[2].partition(";")[0]


@pytest.mark.parametrize("agree", ["always", "exit"])
@pytest.mark.parametrize(
    ("program", "error", "text"),
    [
        ("raises_with_gloo", "RuntimeError", "the gloo of the lamp timed out"),
        ("raises_of_a_store", "DistStoreError", "Wait timeout"),
    ],
)
def test_an_error_of_the_program_s_own_is_told_whatever_it_is(
    program: str, error: str, text: str, agree: str, ranks: Ranks
) -> None:
    """The rank raises its own error; the others read its type, its text and its line, before any deadline."""
    ended = ranks.run(program, 3, agree, deadline=20)
    assert error == ended[1].outcome
    found = raised(ended, but=(1,))
    assert [("LIVE1", "error", (1,))] == [*found.findings]
    told = found.message.partition(f"rank 1 left the block by {error}: ")[2].partition("; its last call")[0]
    assert text in told
    assert "live_programs.py:" in told.rpartition(", at ")[2]
    assert max(each.seconds for each in ended) < 15


def test_a_failure_that_the_program_wrapped_is_explained(ranks: Ranks) -> None:
    ended = ranks.run("wraps_a_failure", 3, "exit", deadline=DEADLINE, outlives=True)
    assert [("AR11", "error", (1,))] == [*raised(ended).findings]


def test_the_ledger_s_file_of_each_rank_has_the_findings(ranks: Ranks) -> None:
    ended = ranks.run("guarded_with_a_ledger", 2, None)
    assert [[["AR3"], ["c10d::allreduce_"]]] * 2 == [each.extra for each in ended]


@pytest.mark.parametrize("agree", ["exit", 10])
def test_ranks_that_are_ended_say_first_why(agree: str | int, ranks: Ranks) -> None:
    """The launcher torchrun ends all ranks as soon as one is aborted, long before a deadline."""
    ended = ranks.run("aborted_and_ended", 3, agree, deadline=20, outlives=True)
    assert ["died"] * 3 == [each.outcome for each in ended]
    for rank in (0, 2):
        told = ended[0].output.partition(f"collective_rules: rank {rank} is ended by SIGTERM; ")[2]
        assert "c10d::broadcast_: ranks disagree on s   [BC1]" in told
        assert "s = (4,)   rank 1" in told


def test_other_settings_of_a_rank_are_told_as_such(ranks: Ranks) -> None:
    ended = ranks.run("other_settings", 3, None, outlives=True)
    found = raised(ended)
    assert [("LIVE4", "error", (0,))] == [*found.findings]
    assert "rank 0 entered with agree='exit'" in found.message
    assert "ranks 1, 2 entered with agree='always'" in found.message
