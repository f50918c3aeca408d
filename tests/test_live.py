"""Ranks on real gloo under `RuleMode(agree=…)`: what they disagree on is raised on all of them, and nothing hangs."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import collective_rules as cr
from tests.live_ranks import Ended, Ranks

AT_ONCE = {
    "more_bytes": ("BC1", (0,)),
    "fewer_bytes": ("BC1", (0,)),
    "other_dtype": ("AR2", (1,)),
    "other_reduce_op": ("AR3", (1,)),
    "other_root": ("BC3", (1,)),
    "other_collective": ("AR10", (1,)),
    "swapped": ("AR10", (1,)),
    "other_splits": ("AAS3", (0, 1)),
    "one_less": ("LIVE1", (1,)),
    "root_leaves": ("LIVE1", (0,)),
    "async_size": ("AR1", (0,)),
    "functional_size": ("AR1", (0,)),
    "custom_op_size": ("AR1", (0,)),
    "library_impl_size": ("AR1", (0,)),
    "message_size": ("RE1", (0, 1)),
    "async_message_size": ("RE1", (0, 1)),
    "message_to_nobody": ("SE8", (0,)),
}
"""What is found before it is sent: the program, the finding's id, and the ranks at fault of three."""

IN_TIME = {
    "stops": ("LIVE1", (1,)),
    "ends": ("LIVE1", (1,)),
    "dawdles": ("LIVE1", (1,)),
    "crossed": ("WAIT1", (0, 1)),
    "message_tag": ("RE4", (0, 1)),
    "async_message_tag": ("RE4", (0, 1)),
    "root_ends": ("LIVE1", (0,)),
    "root_stops": ("LIVE1", (0,)),
}
"""What only the deadline tells, of three ranks whose store outlives them."""

AT_THE_END = {
    "other_dtype": ("AR2", (1,)),
    "other_reduce_op": ("AR3", (1,)),
    "fewer_bytes": ("BC1", (0,)),
    "message_size": ("RE1", (0, 1)),
}
"""What gloo carries out without a word."""

HANGS = {"one_less": ("AR11", (1,)), "other_root": ("BC3", (1,)), "message_tag": ("RE4", (0, 1))}
"""What hangs in gloo until its time-out, which is the deadline."""

DEADLINE = 3.0


def first_findings(ended: list[Ended], *, but: tuple[int, ...] = ()) -> set[tuple[str, tuple[int, ...]]]:
    """The id and the ranks of each rank's first finding: one element, if all ranks raised the same."""
    survivors = [each for rank, each in enumerate(ended) if rank not in but]
    assert ["DisagreementError"] * len(survivors) == [each.outcome for each in survivors], ended
    assert len({(each.message, each.findings) for each in survivors}) == 1
    return {(each.findings[0][0], each.findings[0][2]) for each in survivors}


@pytest.mark.parametrize("program", AT_ONCE)
def test_a_disagreement_is_raised_on_every_rank_before_it_is_sent(program: str, ranks: Ranks) -> None:
    ended = ranks.run(program, 3, deadline=30)
    assert {AT_ONCE[program]} == first_findings(ended)
    assert not all(each.through for each in ended)
    assert max(each.seconds for each in ended) < 15


@pytest.mark.parametrize("program", IN_TIME)
def test_a_rank_that_never_comes_is_named_by_the_deadline(program: str, ranks: Ranks) -> None:
    ended = ranks.run(program, 3, deadline=DEADLINE, outlives=True)
    died = [rank for rank, each in enumerate(ended) if each.outcome == "died"]
    assert {"ends": [1], "root_ends": [0]}.get(program, []) == died
    assert {IN_TIME[program]} == first_findings(ended, but=tuple(died))
    assert "its last call: c10d::" in ended[2].message or IN_TIME[program][0] == "RE4" or program == "crossed"


@pytest.mark.parametrize("agree", ["always", "exit", 5, "guard"])
@pytest.mark.parametrize(("program", "size"), [("clean", 2), ("clean", 4), ("drifts_legally", 3)])
def test_ranks_that_agree_are_left_alone(program: str, agree: str | int, size: int, ranks: Ranks) -> None:
    ended = ranks.run(program, size, agree, deadline=30)
    assert [("passed", [])] * size == [(each.outcome, each.noted) for each in ended]


@pytest.mark.parametrize("agree", ["always", "exit", 10])
def test_training_agrees_with_itself(agree: str | int, ranks: Ranks) -> None:
    ended = ranks.run("trains", 2, agree, deadline=30)
    assert [("passed", [], 2)] * 2 == [(each.outcome, each.noted, each.extra) for each in ended]


@pytest.mark.parametrize("agree", ["guard", "exit", 10])
def test_hooks_of_ddp_agree_with_themselves(agree: str | int, ranks: Ranks) -> None:
    """Their callbacks run in threads of their own, in an order that may differ from rank to rank."""
    ended = ranks.run("compresses", 3, agree, deadline=30)
    assert [("passed", [], 3)] * 3 == [(each.outcome, each.noted, each.extra) for each in ended]


@pytest.mark.parametrize("program", ["crossed_async", "any_source"])
def test_what_is_legal_between_ranks_does_not_deadlock(program: str, ranks: Ranks) -> None:
    ended = ranks.run(program, 3, deadline=30)
    assert ["passed"] * 3 == [each.outcome for each in ended]
    assert max(each.seconds for each in ended) < 15


@pytest.mark.parametrize("agree", ["always", "guard"])
def test_a_message_for_which_nobody_waits_is_a_warning(agree: str, ranks: Ranks) -> None:
    """Also where a Work with a deadline stands for that of gloo."""
    ended = ranks.run("drops_a_receive", 2, agree, deadline=30)
    assert [("passed", [], [0, 0]), ("passed", ["warning"], [0, 1])] == [
        (each.outcome, each.noted, each.extra) for each in ended
    ]


@pytest.mark.parametrize("agree", ["always", "exit"])
def test_another_shape_of_as_many_elements_is_a_warning(agree: str, ranks: Ranks) -> None:
    ended = ranks.run("other_shape", 2, agree, deadline=30)
    assert [("passed", ["warning"])] * 2 == [(each.outcome, each.noted) for each in ended]


@pytest.mark.parametrize("program", AT_THE_END)
def test_what_went_unnoticed_is_found_at_the_end(program: str, ranks: Ranks) -> None:
    ended = ranks.run(program, 3, "exit", deadline=30)
    assert {AT_THE_END[program]} == first_findings(ended)


@pytest.mark.parametrize("program", HANGS)
def test_a_hang_inside_a_collective_ends_at_the_deadline(program: str, ranks: Ranks) -> None:
    ended = ranks.run(program, 3, "exit", deadline=DEADLINE, outlives=True)
    assert {HANGS[program]} == first_findings(ended)


def test_a_hang_is_reported_with_the_last_calls_of_all_ranks(ranks: Ranks) -> None:
    ended = ranks.run("stops", 3, "exit", deadline=DEADLINE, outlives=True)
    assert {("LIVE1", (1,))} == first_findings(ended)
    shown = ended[0].output
    assert 1 == shown.count("collective_rules: rank")
    assert "rank 1 does not answer" in shown
    # The first to fail asks the other, whose own time may not be up by then.
    for rank in (0, 2):
        assert any(f"rank {rank} {does} in c10d::allreduce_" in shown for does in ("failed", "is")), shown
    assert 2 == shown.count("its last calls:\n")


def test_a_running_total_tells_of_a_difference_inside_the_window(ranks: Ranks) -> None:
    ended = ranks.run("drifts", 3, 10, deadline=30)
    assert {("AR3", (1,))} == first_findings(ended)
    assert "At collective 17 of group 0" in ended[0].message


@pytest.mark.parametrize("agree", ["always", "exit"])
def test_a_rank_that_leaves_by_an_error_is_named_with_it(agree: str, ranks: Ranks) -> None:
    ended = ranks.run("raises", 3, agree, deadline=20)
    assert {("LIVE1", (1,))} == first_findings(ended, but=(1,))
    assert "KeyError" == ended[1].outcome
    assert "rank 1 left the block by KeyError: 'no such batch'" in ended[0].message
    assert max(each.seconds for each in ended) < 15


def test_a_store_that_dies_with_its_rank_is_said_to(ranks: Ranks) -> None:
    ended = ranks.run("root_ends", 3, deadline=20)
    assert ["died", "DisagreementError", "DisagreementError"] == [each.outcome for each in ended]
    assert ["LIVE2", "LIVE2"] == [each.findings[0][0] for each in ended[1:]]
    assert max(each.seconds for each in ended) < 15


def test_the_store_does_not_grow_with_the_calls(ranks: Ranks) -> None:
    """Of some 370 meetings each, with 125 tags: at most what lies in the store until it is cleaned."""
    ended = ranks.run("steps", 2, deadline=30)
    assert ["passed", "passed"] == [each.outcome for each in ended]
    early, late = ended[0].extra
    assert late < early + 100


def test_a_block_leaves_nothing_behind(ranks: Ranks) -> None:
    for each in ranks.run("leaves_nothing", 2, None):
        before, *after = each.extra
        assert [before[:3]] * 4 == [counts[:3] for counts in after]
        assert (1800.0, [30.0] * 4) == (before[3], [counts[3] for counts in after])


def test_a_block_that_ended_in_an_error_leaves_nothing_behind(ranks: Ranks) -> None:
    for each in ranks.run("leaves_nothing_after_an_error", 3, None):
        before, *after = each.extra
        assert [before] * 4 == after


def test_what_another_rank_has_read_and_deleted_is_not_waited_for(ranks: Ranks) -> None:
    ended = ranks.run("windows", 3, None, outlives=True)
    assert ["passed"] * 3 == [each.outcome for each in ended]
    assert max(each.extra for each in ended) < 4


def test_a_rank_that_enters_too_late_learns_what_the_others_found(ranks: Ranks) -> None:
    ended = ranks.run("enters_late", 3, None, outlives=True)
    assert {("LIVE1", (1,))} == first_findings(ended)


def test_a_rank_that_enters_after_the_store_is_gone_says_so(ranks: Ranks) -> None:
    ended = ranks.run("enters_late", 3, None)
    assert [("LIVE1", (1,)), ("LIVE2", ())] == [ended[rank].findings[0][::2] for rank in (0, 1)]


def test_a_rank_that_is_about_to_connect_is_not_late(ranks: Ranks) -> None:
    assert ["passed"] * 3 == [each.outcome for each in ranks.run("connects_slowly", 3, None)]


def test_what_keeps_ranks_from_the_rest_is_told_first(ranks: Ranks) -> None:
    ended = ranks.run("stops_another_group", 3, "exit", deadline=DEADLINE, outlives=True)
    assert {("AR1", (0, 1))} == first_findings(ended)


def test_a_rank_that_is_aborted_is_named_before_those_that_wait_for_it(ranks: Ranks) -> None:
    """By its last call, where that was told, else as a rank that does not answer."""
    ended = ranks.run("aborts", 3, "exit", deadline=DEADLINE, outlives=True)
    ((found, culprits),) = first_findings(ended, but=(1,))
    assert found in ("LIVE1", "BC1")
    assert (1,) == culprits


@pytest.mark.parametrize("agree", ["always", "exit"])
def test_a_receive_from_any_source_ends_at_the_deadline(agree: str, ranks: Ranks) -> None:
    ended = ranks.run("any_source_too_often", 3, agree, deadline=DEADLINE, outlives=True)
    assert {("RE10", (0,))} == first_findings(ended)


def test_ranks_of_a_large_group_count_who_has_come(ranks: Ranks) -> None:
    assert ["passed"] * 3 == [each.outcome for each in ranks.run("in_a_large_group", 3, deadline=30)]
    ended = ranks.run("differing_in_a_large_group", 3, deadline=30)
    assert "AR1" == next(iter(first_findings(ended)))[0]


def test_a_program_may_make_its_groups_inside_the_block(ranks: Ranks) -> None:
    ended = ranks.run("whole_script", 2, None)
    assert ["passed"] * 2 == [each.outcome for each in ended]
    assert all(each.extra > 30 for each in ended)


def test_a_guard_raises_all_findings_on_every_rank(ranks: Ranks) -> None:
    ended = ranks.run("quarrels", 3, "guard", deadline=30)
    assert {("AGT2", (0, 1, 2))} == first_findings(ended)


def test_a_guard_of_a_group_leaves_the_others_out(ranks: Ranks) -> None:
    ended = ranks.run("some_of_them", 3, None)
    assert [[1, 0], [1, 0], None] == [each.extra for each in ended]


def test_the_root_may_be_the_culprit_under_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, torch, torch._dynamo, torch.distributed as dist\n"
        "from collective_rules import DisagreementError, RuleMode\n"
        "dist.init_process_group('gloo')\n"
        "dist.barrier()\n"
        "try:\n"
        "    with RuleMode(agree='always', deadline=4):\n"
        "        dist.all_reduce(torch.ones(3))\n"
        "        if dist.get_rank() == 0:\n"
        "            os._exit(0)\n"
        "        dist.all_reduce(torch.ones(3))\n"
        "except DisagreementError as error:\n"
        "    print('found', error.findings[0].id, error.findings[0].ranks, flush=True)\n"
        "os._exit(0)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "found LIVE1 (0,)" in output


@pytest.mark.parametrize("agree", [True, "sometimes", 0, -3, 1.5])
def test_an_agreement_of_an_unknown_kind_is_refused(agree: object) -> None:
    with pytest.raises(cr.CallError, match="but should be False, 'always', 'exit' or a number of collectives"):
        cr.RuleMode(agree=agree)


@pytest.mark.parametrize("deadline", [0, -1, "soon", float("inf"), True])
def test_a_deadline_that_is_no_time_is_refused(deadline: object) -> None:
    with pytest.raises(cr.CallError, match="but should be a positive number of seconds"):
        cr.RuleMode(agree="always", deadline=deadline)


def test_nothing_is_compared_where_nothing_is_sent() -> None:
    with pytest.raises(cr.CallError, match="there are no ranks to agree"):
        cr.RuleMode(agree="always", execute=False)


@pytest.mark.usefixtures("group")
def test_a_store_that_cannot_append_is_refused() -> None:
    with pytest.raises(cr.CollectiveRulesError, match="cannot append"), cr.RuleMode(agree="always"):
        pass


def test_a_guard_of_no_group_is_refused() -> None:
    with pytest.raises(cr.CallError, match="but should be a process group"):
        cr.guard(3)
