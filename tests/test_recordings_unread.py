"""What cannot be read is not guessed: packed data, names, times, lists, splits and groups that are damaged."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

import collective_rules as cr
from collective_rules.comparison import blocks, compare
from collective_rules.recordings import Recording, SourceError, read
from tests.test_recordings import INFO, counts, dump, entry, ids, ledger, param, recorded
from tests.test_recordings_damaged import kineto, of_ranks, reduces, samples, severities


def test_packed_data_are_read_up_to_the_byte_that_is_damaged(tmp_path: Path) -> None:
    """A wrong check sum at the end costs nothing, and a changed byte only what stands behind it."""
    packed = gzip.compress(kineto(400).encode())
    path = tmp_path / "rank1.json.gz"
    path.write_bytes(packed[:-8] + bytes(8))
    recording = read(path)
    assert (400, True) == (len(recording.calls), recording.is_cut)
    whole = len(recording.calls)
    damaged = bytearray(packed)
    damaged[len(packed) * 3 // 4 : len(packed) * 3 // 4 + 8] = b"\xff" * 8
    path.write_bytes(damaged)
    recording = read(path)
    assert 0.4 * whole < len(recording.calls) < whole
    assert recording.is_cut


def test_a_ledger_in_utf_16_is_no_recording(tmp_path: Path) -> None:
    path = ledger(tmp_path)
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(SourceError, match="is no recording that is known"):
        read(path)


def test_a_name_cannot_steer_the_terminal_or_break_a_line(tmp_path: Path) -> None:
    """Neither a file's, nor one in it."""
    path = tmp_path / "a\nb\x1b[31m_rank0.json"
    path.write_bytes(b"")
    with pytest.raises(SourceError) as error:
        read(path)
    assert str(error.value).isprintable()
    one = reduces(3)[0] | {"process_group": ["\x1b[31m", ""], "profiling_name": "nccl:\x1b[2J"}
    recordings = [recorded(tmp_path, dump([one, one | reduces(4)[0]]), path.name)]
    for block in blocks(compare(recordings)):
        assert "\x1b" not in str(block)


TIMES = [("ts", float("nan")), ("ts", "soon"), ("ts", True), ("dur", [1]), ("tid", {}), ("pid", 1.5), ("tid", -1)]


@pytest.mark.parametrize(("key", "value"), TIMES, ids=str)
def test_an_event_whose_place_cannot_be_read_is_of_no_thread(tmp_path: Path, key: str, value: Any) -> None:
    """It is a call or part of one: how many there are, and in which order, is undecidable then."""
    op = {"ph": "X", "cat": "cpu_op", "name": "c10d::allreduce_", "pid": 1, "tid": 1, "ts": 9, "dur": 30, "args": {}}
    events = [op, param("allreduce", 10, **counts(4, 4)), param("allreduce", 50, **counts(4, 4))]

    def trace(rank: int, changed: dict[str, Any]) -> Recording:
        info = {"rank": rank, "world_size": 2}
        document = {"distributedInfo": info, "traceEvents": [events[0], events[1] | changed, events[2]]}
        return recorded(tmp_path, document, f"trace{rank}.json")

    whole = trace(0, {})
    assert (2, ()) == (len(whole.calls), whole.lost)
    damaged = trace(1, {key: value})
    assert ((None,), True) == (damaged.lost, "READ2" in ids(damaged))
    assert "error" not in {severity for _, severity in severities([whole, damaged])}


def test_rows_of_one_call_that_differ_are_an_error_and_unreadable_ones_are_not(tmp_path: Path) -> None:
    """The op as the program calls it, and as the backend carries it out."""
    for sizes, differ in (([[[4]], [], []], False), ([[[5]], [], []], True), ([[[float("nan")]], [], []], False)):
        rows = [
            {"ph": "X", "cat": "cpu_op", "name": "c10d::allreduce_", "pid": 1, "tid": 1, "ts": start, "dur": length,
             "args": {"Input Dims": dims, "Input type": ["TensorList", "", ""]}}
            for start, length, dims in ((1, 9, [[[4]], [], []]), (2, 5, sizes))
        ]  # fmt: skip
        recording = recorded(tmp_path, {"distributedInfo": INFO, "traceEvents": rows})
        assert differ == ("READ12" in ids(recording))


def test_a_list_of_tensors_that_cannot_be_read_is_not_a_list_of_one(tmp_path: Path) -> None:
    """Its call is lost: of another length, it would be an error."""
    listed = [entry("nccl:allreduce_coalesced", [[4], [5]], [[4], [5]])]
    for sizes in (None, 3, [[4], None], [4, 5]):
        broken = [listed[0] | {"input_sizes": sizes, "output_sizes": sizes}]
        assert "error" not in {severity for _, severity in severities(of_ranks(tmp_path, [listed, broken]))}
    gathers = [entry("gloo:all_gather", [[6, 3]], [[2, 6, 3]])]
    for sizes in (3, [[2, None, 3]], [None]):
        broken = [gathers[0] | {"output_sizes": sizes}]
        assert "error" not in {severity for _, severity in severities(of_ranks(tmp_path, [gathers, broken]))}


def test_one_side_of_split_sizes_that_cannot_be_read_is_not_even(tmp_path: Path) -> None:
    node = json.loads(samples()[3])["nodes"][0]
    node["inputs"][3] = [2, True]
    node["input_shapes"][0] = [5]
    recording = recorded(tmp_path, {"schema": "1.1.0", "nodes": [node]})
    assert "error" not in {found.severity for call in recording.calls for found in cr.check(call)}


def test_an_entry_of_a_group_that_cannot_be_read_is_in_no_group(tmp_path: Path) -> None:
    whole, broken = reduces(3, 3), reduces(3, 3)
    broken[1]["process_group"] = [None]
    assert {("AR11", "undecidable")} == severities(of_ranks(tmp_path, [whole, broken]))
