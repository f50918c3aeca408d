"""Flight Recorder dumps that begin in the middle of the run, and what their numbers tell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import collective_rules as cr
from collective_rules.comparison import compare
from collective_rules.recordings import Recording
from tests.test_recordings import dump, entry, ids, recorded

Entries = list[dict[str, Any]]
CONFIG = {name: {"name": name, "desc": name, "ranks": "[0, 1]"} for name in ("0", "1")}


def made(*calls: tuple[str, str, int] | tuple[str, str, int, str]) -> Entries:
    """The entries of (name, group, size) calls, numbered as NCCL does; "member" and "sum" make a coalesced launch."""
    numbers: dict[str, int] = {}
    entries: Entries = []
    for record, (name, group, size, *launch) in enumerate(calls):
        is_message = name.startswith(("send", "recv"))
        if not is_message and launch in ([], ["first"]):
            numbers[group] = numbers.get(group, 0) + 1
        sizes = [] if name == "coalesced" else [[size]]
        entries.append(
            entry(
                f"nccl:{name}",
                sizes,
                sizes,
                numbers.get(group, 0),
                record_id=record,
                process_group=[group, group],
                is_p2p=is_message,
            )
        )
    return entries


def reduces(count: int, group: str = "0", size: int = 3) -> list[tuple[str, str, int]]:
    return [("all_reduce", group, size)] * count


LAUNCH = [("broadcast", "0", 4, "first"), ("broadcast", "0", 5, "next"), ("coalesced", "0", 0, "next")]
SENDS = [("send 0->1", "0", size) for size in range(1, 6)]
RECEIVES = [("recv 1<-0", "0", size) for size in range(1, 6)]


def of_ranks(
    directory: Path, *entries: Entries, change: Callable[[dict[str, Any]], None] = lambda one: None
) -> list[Recording]:
    for each in entries:
        for one in each:
            change(one)
    return [
        recorded(directory, dump(each) | {"pg_config": CONFIG}, f"rank{rank}.json") for rank, each in enumerate(entries)
    ]


def told(recordings: list[Recording]) -> list[tuple[str, str, tuple[int, ...], str, int | None]]:
    """What is between the ranks."""
    found = compare(recordings, expected=()).findings
    return [
        (each.id, each.severity, each.ranks, each.group, each.index) for each in found if not each.id.startswith("READ")
    ]


def missing(recording: Recording) -> dict[str, int]:
    return {each.names["what"]: each.count for each in recording.findings if each.id == "READ13"}


def test_what_was_overwritten_is_counted_and_the_rest_keeps_its_numbers(tmp_path: Path) -> None:
    (recording,) = of_ranks(tmp_path, made(*reduces(10))[3:])
    assert {"later ones overwrote the first ones": 3} == missing(recording)
    assert (True, False, ()) == (recording.begins_late, recording.is_whole, recording.lost)
    assert [3, 4, 5, 6, 7, 8, 9] == [call.index for call in recording.calls]
    message = next(each.message for each in recording.findings if each.id == "READ13")
    assert message.startswith(
        "rank0.json: records are missing: later ones overwrote the first ones (3 records)   [READ13]"
    )
    (whole,) = of_ranks(tmp_path, made(*reduces(10)))
    assert (False, True) == (whole.begins_late, whole.is_whole)


@pytest.mark.parametrize("starts", [(0, 3), (3, 5), (9, 2), (8, 8)], ids=str)
def test_ranks_that_begin_at_different_places_are_compared_from_there_on(
    tmp_path: Path, starts: tuple[int, int]
) -> None:
    """A wrong size has its place; and the end is there, so that who stops early is found."""
    right = reduces(12)

    def compared(other: list[tuple[str, str, int]]) -> Any:
        return told(of_ranks(tmp_path, made(*right)[starts[0] :], made(*other)[starts[1] :]))

    assert [] == compared(right)
    assert [("AR1", "error", (0, 1), "0", 10)] == compared([*reduces(10), *reduces(1, size=4), *reduces(1)])
    assert [("AR11", "error", (0, 1), "0", 11)] == compared(reduces(11))


def test_messages_of_a_rank_that_begins_late_are_undecidable(tmp_path: Path) -> None:
    """Unmatched, or matched with the wrong one: which are missing cannot be told. All there, they are errors."""
    wrong = [("recv 1<-0", "0", 9), *RECEIVES[1:]]
    for starts in ((2, 3), (0, 2), (2, 0)):
        for receives in (RECEIVES, wrong):
            sent, received = made(*SENDS, *reduces(5)), made(*receives, *reduces(5))
            found = told(of_ranks(tmp_path, sent[starts[0] :], received[starts[1] :]))
            assert {"undecidable"} == {severity for _, severity, *_ in found}
    whole = of_ranks(tmp_path, made(*SENDS, *reduces(5)), made(*wrong, *reduces(5)))
    assert [("RE1", "error", (0, 1), "0", None)] == told(whole)


def test_a_doubt_says_which_record_begins_late(tmp_path: Path) -> None:
    recordings = of_ranks(tmp_path, made(*SENDS, *reduces(5)), made(*RECEIVES, *reduces(5))[2:])
    found = [each for each in compare(recordings, expected=()).findings if not each.id.startswith("READ")]
    assert all("The recording of rank 1 begins late" in each.message for each in found)


def test_a_group_that_is_overwritten_as_a_whole_is_undecidable_and_one_that_is_left_out_an_error(
    tmp_path: Path,
) -> None:
    program = [*reduces(2, "1"), *reduces(10)]
    late = of_ranks(tmp_path, made(*program), made(*program)[3:])
    assert [("AR11", "undecidable", (1,), "1", None)] == [(*each[:4], None) for each in told(late)]
    left_out = of_ranks(tmp_path, made(*reduces(2), *program)[1:], made(*reduces(12)))
    assert [("AR11", "error", (1,), "1")] == [each[:4] for each in told(left_out)]


@pytest.mark.parametrize("starts", [(a, b) for a in range(7) for b in range(7)], ids=str)
def test_a_launch_that_lost_its_first_members_is_not_compared(tmp_path: Path, starts: tuple[int, int]) -> None:
    """Its members share a number: which ones are left cannot be told by it. Its sum is no collective of its own."""
    program = made(*reduces(2), *LAUNCH, *reduces(2))
    recordings = of_ranks(tmp_path, program[starts[0] :], program[starts[1] :])
    assert [] == told(recordings)
    assert "READ9" not in {found for each in recordings for found in ids(each)}


def test_members_of_a_launch_that_are_all_there_are_compared_one_by_one(tmp_path: Path) -> None:
    wrong = [LAUNCH[0], ("broadcast", "0", 6, "next"), LAUNCH[2]]
    recordings = of_ranks(tmp_path, made(*reduces(2), *LAUNCH, *reduces(2)), made(*reduces(2), *wrong, *reduces(2))[1:])
    assert [("BC1", "error", (0, 1), "0", 2)] == told(recordings)


def retire(one: dict[str, Any]) -> None:
    """Number as torch did before it told messages from collectives."""
    del one["collective_seq_id"], one["p2p_seq_id"]
    one["seq_id"] = one["record_id"] + 1


def test_numbers_that_messages_advance_are_no_index(tmp_path: Path) -> None:
    """Then the order counts, as long as all is there."""
    right = made(SENDS[0], *reduces(5)), made(*reduces(2), RECEIVES[0], *reduces(3))
    recordings = of_ranks(tmp_path, *right, change=retire)
    assert {None} == {call.index for each in recordings for call in each.calls}
    assert [] == told(recordings)
    short = made(SENDS[0], *reduces(5)), made(*reduces(2), RECEIVES[0], *reduces(2))
    assert [("AR11", "error", (0, 1), "0", 4)] == told(of_ranks(tmp_path, *short, change=retire))
    late = made(SENDS[0], *reduces(5))[1:], made(*reduces(2), RECEIVES[0], *reduces(3))
    assert "error" not in {severity for _, severity, *_ in told(of_ranks(tmp_path, *late, change=retire))}
    gone = made(*SENDS[:2], *reduces(5))[2:], made(*reduces(5))[1:]
    assert "error" not in {severity for _, severity, *_ in told(of_ranks(tmp_path, *gone, change=retire))}
    (alone,) = of_ranks(tmp_path, made(*reduces(3)), change=retire)
    assert [0, 1, 2] == [call.index for call in alone.calls]


def test_a_batch_that_advances_the_number_of_collectives_makes_it_no_index(tmp_path: Path) -> None:
    """As in torch before its pull request 135132; where it does not, the number is one."""
    numbers = {False: [1, 1, 2], True: [1, 2, 3]}
    for advances, those in numbers.items():
        entries = made(*reduces(1), SENDS[0], *reduces(1))
        for one, number in zip(entries, those, strict=True):
            one["collective_seq_id"] = number
        (recording,) = of_ranks(tmp_path, entries)
        assert ([None, None, None] if advances else [0, None, 1]) == [call.index for call in recording.calls]


def test_records_that_are_missing_in_the_middle_are_lost(tmp_path: Path) -> None:
    """As in a dump of active collectives only."""
    entries = made(*reduces(10))
    recordings = of_ranks(tmp_path, [entries[2], *entries[7:]], made(*reduces(10))[8:])
    assert {"later ones overwrote the first ones": 2, "some in the middle are not there": 4} == missing(recordings[0])
    assert ((None,), ()) == tuple(each.lost for each in recordings)
    assert [] == told(recordings)


def test_a_recorder_that_was_reset_begins_late_too(tmp_path: Path) -> None:
    """Its records are counted anew, and the groups' collectives are not."""
    entries = made(*reduces(10))[4:]
    for record, one in enumerate(entries):
        one["record_id"] = record
    (recording,) = of_ranks(tmp_path, entries)
    assert {"the first ones of the group '0' are not there": 4} == missing(recording)


@pytest.mark.parametrize(("enqueued", "is_late"), [("7", True), (7, True), ("0", False), (-1, False), (None, False)])
def test_a_dump_without_entries_of_a_rank_that_made_calls(tmp_path: Path, enqueued: Any, is_late: bool) -> None:
    """The status of its groups tells."""
    document = dump([]) | {"pg_status": {"0": {"last_enqueued_collective": enqueued}}}
    recording = recorded(tmp_path, document)
    assert (is_late, not is_late) == (recording.begins_late, recording.is_whole)


def test_an_unreadable_first_entry_was_not_overwritten(tmp_path: Path) -> None:
    for hole in ({}, 3, {"record_id": 0, "process_group": ["0", "0"]}):
        entries: list[Any] = made(*reduces(3))
        entries[0] = hole
        assert not recorded(tmp_path, dump(entries)).begins_late


def test_a_receive_from_anyone_names_no_peer(tmp_path: Path) -> None:
    entries = [entry("nccl:recv 1<-?", [[4]], [[4]], 0, is_p2p=True)], [entry("nccl:send 1->0", [[4]], [[4]], 0)]
    recordings = of_ranks(tmp_path, *entries)
    assert "c10d::recv_any_source_" == recordings[0].calls[0].op
    assert [] == told(recordings)


@pytest.mark.parametrize(
    ("name", "rank"),
    [("nccl_trace_rank_3", 3), ("rank_3", 3), ("rank3_dump", 3), ("rank3_dump.json", 3), ("trace_3", 3),
     ("comm_lib_trace_rank_13.pickle", 13), ("dump_file_rank_3", 3)],
)  # fmt: skip
def test_the_names_of_torchs_own_dumps_tell_the_rank(tmp_path: Path, name: str, rank: int) -> None:
    assert rank == recorded(tmp_path, dump(made(*reduces(1)), 16), name).rank


def test_an_op_in_place_is_written_down_alike_before_and_behind(tmp_path: Path) -> None:
    for side, key, value in (("input", "sizes", [[5]]), ("output", "sizes", [[5]]), ("output", "dtypes", ["Half"])):
        entries = made(*reduces(1))
        entries[0][f"{side}_{key}"] = value
        assert "READ12" in ids(recorded(tmp_path, dump(entries)))


def test_gloos_coalesced_gather_is_no_list_of_ranks(tmp_path: Path) -> None:
    """It writes down as many outputs as there are inputs, with the sizes of the first input."""
    entries = [entry("gloo:all_gather", [[6, 3], [6, 3]], [[2, 6, 3]])]
    entries += [entry("gloo:all_gather", [[6, 3]], [[4, 6, 3]], 2)]
    recording = recorded(tmp_path, dump(entries) | {"pg_config": {}})
    coalesced, single = recording.calls
    assert ("c10d::allgather_into_tensor_coalesced_", 4) == (coalesced.op, coalesced.group.size)
    assert ("c10d::allgather_", 4) == (single.op, single.group.size)
    assert [] == [found for call in recording.calls for found in cr.check(call)]


def test_of_several_sizes_of_a_group_the_one_that_most_calls_show_is_taken(tmp_path: Path) -> None:
    """A number that is damaged makes its call's list unknown; where they are as many, nothing is said of them."""
    gathers = [entry("gloo:all_gather", [[3]], [[rows, 3]], place) for place, rows in enumerate((2, 3, 2), 1)]
    recording = recorded(tmp_path, dump(gathers) | {"pg_config": {}})
    assert [2, 2, 2] == [call.group.size for call in recording.calls]
    assert "READ10" in ids(recording)
    assert [2, None, 2] == [
        len(call.arguments["output_tensors"][0]) if "output_tensors" in call.arguments else None
        for call in recording.calls
    ]
    tied = recorded(tmp_path, dump(gathers[:2]) | {"pg_config": {}})
    assert ((), ("0",)) == (tied.calls, tied.lost)
