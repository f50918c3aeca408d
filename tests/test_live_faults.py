"""What may go wrong around a legal program: slow ranks, a store with a past, strange values, evil objects."""

import pytest
from hypothesis import settings

from tests.live_faults import WRITTEN
from tests.live_ranks import Ended, Ranks


def extras(ended: list[Ended]) -> list[object]:
    """What each rank's program returned."""
    assert ["passed"] * len(ended) == [each.outcome for each in ended], ended
    return [each.extra for each in ended]


@pytest.mark.parametrize(
    ("program", "agree"), [("first_is_slow", "always"), ("first_is_slow", 1), ("second_is_slow", "exit")]
)
def test_a_rank_may_be_descheduled_between_any_two_messages(program: str, agree: str | int, ranks: Ranks) -> None:
    if program == "first_is_slow" and settings.get_current_profile_name() != "thorough":
        pytest.skip("runs with --hypothesis-profile=thorough: it takes half a minute")
    ended = ranks.run(f"live_faults:{program}", 3, agree, deadline=30)
    assert [("passed", [])] * 3 == [(each.outcome, each.noted) for each in ended], ended


def test_what_a_killed_job_left_in_the_store_is_not_read(ranks: Ranks) -> None:
    assert [[0] * 5] * 3 == extras(ranks.run("live_faults:restarts", 3, None, outlives=True))


def test_guards_in_a_row_do_not_meet_each_other(ranks: Ranks) -> None:
    first, *others = extras(ranks.run("live_faults:in_a_row", 3, None, outlives=True))
    assert [0] * 7 == first[:7]  # type: ignore[index]  # a list
    assert [first] * 2 == others


def test_a_value_that_no_rank_wrote_ends_no_program(ranks: Ranks) -> None:
    noted = extras(ranks.run("live_faults:garbage", 3, None, outlives=True, deadline=20))
    for kind in WRITTEN:
        assert {"warning LIVE3"} >= {text for each in noted for text in each[kind]}, kind  # type: ignore[index]
    for kind in ("posts", "error", "exit"):
        assert any(each[kind] for each in noted), kind  # type: ignore[index]


def test_last_calls_that_cannot_be_read_end_no_program(ranks: Ranks) -> None:
    noted = extras(ranks.run("live_faults:a_tail_is_garbage", 2, None))
    assert ["warning LIVE3"] in noted
    assert {"warning LIVE3"} >= {text for each in noted for text in each}  # type: ignore[attr-defined]


def test_a_fault_in_the_guards_own_thread_is_said(ranks: Ranks) -> None:
    ended = ranks.run("live_faults:the_watchdog_fails", 3, None)
    _, failed, _ = extras(ended)
    assert ["warning LIVE3 the comparison of ranks failed: ZeroDivisionError: division by zero"] == failed
    assert 1 == ended[0].output.count("collective_rules: the comparison of ranks failed")


@pytest.mark.parametrize("agree", ["always", "exit", 1])
def test_the_path_of_a_program_need_not_be_utf8(agree: str | int, ranks: Ranks) -> None:
    ended = ranks.run("live_faults:no_utf8", 2, agree, deadline=4, outlives=True)
    assert ["DisagreementError"] * 2 == [each.outcome for each in ended], ended
    assert {"AR1"} == {each.findings[0][0] for each in ended}
    assert "LIVE3" not in ended[0].output


def test_the_text_of_an_error_is_told_without_its_own_code(ranks: Ranks) -> None:
    ended = ranks.run("live_faults:raises_evil", 3, None)
    assert ("passed", 0) == (ended[1].outcome, ended[1].extra)
    for rank in (0, 2):
        assert "rank 1 left the block by EvilError: no such batch, at " in ended[rank].message


@pytest.mark.parametrize("agree", ["always", "exit"])
def test_a_group_that_is_destroyed_in_the_block_is_closed(agree: str, ranks: Ranks) -> None:
    for counts in extras(ranks.run("live_faults:destroyed_groups", 2, agree, deadline=30)):
        assert counts[-1] <= counts[1] + 2, counts  # type: ignore[index]  # each kept group has 4 files or more


def test_nobody_waits_for_the_answer_of_a_rank_that_has_left(ranks: Ranks) -> None:
    """It is not even looked for."""
    ended = ranks.run("live_faults:leaves_by_an_error", 3, None)
    assert ["DisagreementError", "KeyError", "DisagreementError"] == [each.outcome for each in ended]
    assert "rank 1 left the block by KeyError" in ended[0].message


def test_a_first_rank_that_does_not_enter_is_named(ranks: Ranks) -> None:
    _, *others = ranks.run("live_faults:the_first_never_enters", 3, None, outlives=True)
    assert {("DisagreementError", (("LIVE1", "error", (0,)),))} == {(each.outcome, each.findings) for each in others}
