"""Recordings of several ranks side by side: what is found, on which ranks, and where they part."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
import torch

import collective_rules as cr
from collective_rules.comparison import compare, read_all
from collective_rules.recordings import LedgerWriter, Recording, read
from tests.compare_programs import compared, compared_calls, program, recording, severities, write_ledgers
from tests.test_recordings import dump, entry

# what is found


def test_ranks_whose_calls_belong_together_have_no_finding():
    found = compared()
    assert ((), (), (0, 1, 2, 3), 4) == (found.findings, found.divergences, found.ranks, found.world_size)
    assert sum(len(program(rank)) for rank in range(4)) == found.calls


@pytest.mark.parametrize(
    ("fault", "ids", "ranks", "group", "index", "line"),
    [
        ("skip", ["AR11"], (2,), "0", 5, "train.py:11"),
        ("size", ["AR1"], (2,), "0", 5, "train.py:11"),
        ("swap", ["BA1"], (2,), "0", 6, "train.py:14"),
        ("root", ["BC3"], (2,), "0", 4, "train.py:10"),
        ("extra", ["BA2"], (2,), "0", 12, "train.py:18"),
        ("half", ["AR1"], (2, 3), "high", 1, "train.py:15"),
    ],
)
def test_a_fault_of_one_rank_is_one_error_that_names_the_global_rank_the_call_and_the_line(
    fault, ids, ranks, group, index, line
):
    found = compared(fault)
    errors = [each for each in found.findings if each.severity == "error"]
    assert ids == [each.id for each in errors]
    assert (ranks, group, index) == (errors[0].ranks, errors[0].group, errors[0].index)
    assert line in errors[0].message
    assert [(group, index)] == [(each.group, each.index) for each in found.divergences]


def test_a_finding_names_its_group_with_the_ranks_where_it_is_not_the_world():
    assert "At collective 1 of group high (ranks 2, 3), counted from 0." in compared("half").findings[0].message
    assert "At collective 5 of group 0, counted from 0." in compared("size").findings[0].message


def test_a_circle_of_waiting_ranks_names_global_ranks():
    def made(rank):
        groups = [cr.Group(2, rank - 4, name, (4, 5)) for name in ("", "b")]
        calls = [attrs.evolve(cr.call("c10d::barrier", group=group), blocking=True) for group in groups]
        return tuple(calls if rank == 4 else calls[::-1])

    found = compare([Recording(f"{rank}.jsonl", "ledger", rank, None, made(rank)) for rank in (4, 5)], expected=())
    assert [("WAIT1", (4, 5))] == [(each.id, each.ranks) for each in found.findings]


def test_groups_of_one_name_and_other_ranks_are_told_apart():
    def made(rank, numel):
        ranks = (0, 1) if rank < 2 else (2, 3)
        return (cr.call("c10d::allreduce_", group=cr.Group(2, rank % 2, "tp", ranks), tensors=[(numel,)]),)

    numels = {0: 4, 1: 4, 2: 5, 3: 6}
    found = compared_calls(lambda rank: made(rank, numels[rank]), 4)
    assert [("error", (2, 3), "tp of ranks 2, 3")] == [
        (each.severity, each.ranks, each.group) for each in found.findings
    ]


def test_what_many_calls_have_wrong_alike_is_said_once_with_how_many():
    call = cr.call("c10d::_allgather_base_", group=cr.Group(2), input_tensor=(4,), output_tensor=(9,))

    def made(rank):
        group = cr.Group(2, rank, "0", (0, 1))
        return tuple(attrs.evolve(call, group=group, index=i, source="a.py:3") for i in range(50))

    found = compared_calls(made, 2)
    alone = cr.check(call)[0]
    assert [(alone.id, (0, 1), 0, 100)] == [(each.id, each.ranks, each.index, each.count) for each in found.findings]
    assert "ranks 0, 1, 100 calls   a.py:3" in found.findings[0].message


def test_a_call_that_is_illegal_on_one_rank_is_that_ranks():
    errors = [each for each in compared("illegal").findings if each.severity == "error"]
    assert ("AGT1", (2,), 6) == (errors[0].id, errors[0].ranks, errors[0].index)


def test_what_is_legal_on_one_rank_may_be_illegal_on_another():
    """Nobody passes outputs of a gather: its root must."""

    def made(rank):
        group = cr.Group(2, rank, "0", (0, 1))
        return (cr.call("c10d::gather_", group=group, output_tensors=[], input_tensors=[(3,)], root_rank=1),)

    found = compared_calls(made, 2)
    assert ["error"] == [each.severity for call in made(1) for each in cr.check(call)]
    assert [("error", (1,))] == [(each.severity, each.ranks) for each in found.findings]


def test_a_backends_own_limits_are_checked_where_it_is_named():
    call = cr.call("c10d::allreduce_", group=cr.Group(1, 0, "0", (0,)), tensors=[cr.Spec((2,), torch.complex128)])
    recording = Recording("0", "ledger", 0, 1, (call,))
    assert [] == severities(compare([recording]))
    assert [each.id for each in cr.check(call, "gloo")] == [each.id for each in compare([recording], "gloo").findings]


# what is not there


def test_ranks_without_a_record_are_said_once_and_are_no_error():
    found = compare([recording(rank, 8) for rank in (0, 2, 3)])
    assert [("COMPARE1", "undecidable", (1, 4, 5, 6, 7))] == [(e.id, e.severity, e.ranks) for e in found.findings]


def test_of_two_records_of_one_rank_the_first_is_compared_and_the_other_is_named():
    found = compare([recording(0), recording(1), recording(2), recording(3), recording(2, fault="size", path="x")])
    assert [("READ8", "warning")] == [(each.id, each.severity) for each in found.findings]
    assert [True] * 4 + [False] == [file.compared for file in found.files]
    assert "x" in found.findings[0].message


def test_a_record_that_ends_early_makes_what_follows_undecidable(tmp_path):
    paths = write_ledgers(tmp_path)
    text = Path(paths[3]).read_text()
    Path(paths[3]).write_text(text[: text.rindex('{"op"') + 20])
    found = compare([read(path) for path in paths])
    assert {"undecidable"} == set(severities(found))
    assert "READ1" in [each.id for each in found.findings]
    whole = text.splitlines(keepends=True)
    Path(paths[3]).write_text("".join(whole[:-1]))
    found = compare([read(path) for path in paths])
    assert [("error", (2, 3))] == [(each.severity, each.ranks) for each in found.findings]


def test_recordings_of_runs_of_different_sizes_are_warned_of():
    found = compare([recording(0), recording(1), recording(2), recording(3, world_size=8)], expected=())
    assert [("COMPARE2", "warning", (0, 1, 2, 3))] == [(e.id, e.severity, e.ranks) for e in found.findings]


@pytest.mark.parametrize("name", ["all_reduce", "broadcast"])
def test_formats_may_be_mixed_and_one_that_tells_less_brings_about_no_error(tmp_path, name):
    (tmp_path / "rank1.json").write_text(json.dumps(dump([entry(f"gloo:{name}", [[8]], [[8]])])))
    with LedgerWriter(tmp_path / "rank0.jsonl", rank=0, world_size=2) as write:
        call = cr.call("c10d::allreduce_", group=cr.Group(2, 0, "0", (0, 1)), tensors=[(8,)])
        write(attrs.evolve(call, index=0))
    recordings, findings, _ = read_all([tmp_path], world_size=2)
    found = compare(recordings, findings=findings)
    assert ["ledger", "flight recorder"] == [file.format for file in found.files]
    assert {"undecidable"} == set(severities(found))
    told = [each for each in found.findings if "different collectives" in each.message]
    assert (name != "all_reduce") == bool(told)


# where ranks part


def test_columns_and_contexts_share_out_the_ranks_and_the_odd_one_is_marked():
    (parted,) = compared("skip").divergences
    assert [(0, 1, 3), (2,)] == [column.ranks for column in parted.columns]
    assert [False, True] == [column.odd for column in parted.columns]
    assert (2,) == parted.contexts[0].ranks
    assert [0, 1, 2, 3] == sorted(rank for context in parted.contexts for rank in context.ranks)
    here = [column.calls[parted.rows.index(5)] for column in parted.columns]
    assert ["allreduce_ float32[8] sum", "_allgather_base_ float32[4]"] == [line.call for line in here]
    assert ["train.py:11", "train.py:12"] == [line.source for line in here]


def test_where_there_is_no_majority_all_that_differ_are_marked():
    (parted,) = compared("half").divergences
    assert [((2,), True), ((3,), True)] == [(column.ranks, column.odd) for column in parted.columns]


def test_the_context_is_as_wide_as_asked_for():
    for width in (0, 1, 4):
        (parted,) = compared("skip", context=width).divergences
        assert tuple(range(5 - width, 5 + width + 1)) == parted.rows
        assert 2 * width + 1 == len(parted.contexts[0].lines)
        assert [width] == [place for place, line in enumerate(parted.contexts[0].lines) if line.here]


def test_a_rank_that_calls_nothing_more_is_shown_at_its_end():
    (parted,) = compared("extra").divergences
    columns = {column.ranks: column for column in parted.columns}
    assert columns[0, 1, 3].calls[-1] is None
    lines = next(context.lines for context in parted.contexts if 3 in context.ranks)
    assert [("(nothing more in this group)", None)] == [(line.call, line.place) for line in lines if line.here]


@pytest.mark.parametrize(("fault", "ranks"), [("send", [(0,)]), ("message", [(0,), (1,)])])
def test_a_message_that_is_amiss_is_shown_where_it_stands_in_the_program(fault, ranks):
    (parted,) = compared(fault).divergences
    assert (None, ()) == (parted.index, parted.columns)
    assert ranks == sorted(context.ranks for context in parted.contexts)
    marked = [line for context in parted.contexts for line in context.lines if line.here]
    expected = {"train.py:16", "train.py:17"} if fault == "message" else {"train.py:16"}
    assert expected == {line.source for line in marked}
    sends = [place for place, call in enumerate(program(0)) if call.op == "c10d::send"]
    assert {sends[1] if fault == "message" else sends[2]} == {each.place for each in marked if each.source[-2:] == "16"}


def test_findings_and_groups_that_part_come_in_the_order_of_the_programs():
    """The group that is seen first parts last."""
    calls = program(2)
    for place, line in ((4, 15), (len(calls) - 4, 11)):
        assert f"train.py:{line}" == calls[place].source
        calls[place] = attrs.evolve(calls[place], arguments={**calls[place].arguments, "tensors": (cr.Spec((77,)),)})
    recordings = [recording(rank) for rank in range(4)]
    recordings[2] = attrs.evolve(recordings[2], calls=tuple(calls))
    found = compare(recordings)
    assert [("high", 0), ("0", 9)] == [(each.group, each.index) for each in found.findings]
    assert [("high", 0), ("0", 9)] == [(each.group, each.index) for each in found.divergences]


def test_indices_that_begin_later_are_put_side_by_side():
    recordings = [recording(rank, fault="size") for rank in range(4)]
    recordings[1] = attrs.evolve(recordings[1], calls=recordings[1].calls[2:])
    found = compare(recordings)
    assert [5] == [each.index for each in found.divergences if each.group == "0"]
    parted = next(each for each in found.divergences if each.group == "0")
    column = next(column for column in parted.columns if 1 in column.ranks)
    assert "allreduce_ float32[8] sum" == column.calls[parted.rows.index(5)].call
