"""What a damaged, cut or hostile file gives: findings and what was readable, or one clear error."""

import gzip
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.comparison import compare
from collective_rules.recordings import Recording, SourceError, json_stream, plain_pickle, read
from collective_rules.recordings.plain_pickle import load_plain
from tests.test_recordings import INFO, counts, dump, entry, ids, ledger, param, recorded


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('executed')",))


def memo_bomb() -> bytes:
    """Lists that hold one list ten times, twelve deep."""
    laughs: Any = ["ha"]
    for _ in range(12):
        laughs = [laughs] * 10
    return pickle.dumps({"entries": laughs})


def recursive() -> bytes:
    inside: list[Any] = []
    inside.append(inside)
    return pickle.dumps({"entries": inside})


def deep() -> bytes:
    return b"\x80\x04}X\x07\x00\x00\x00entries" + b"(" * 5000 + b"l" * 5000 + b"s."


ATTACKS = {
    "a call": pickle.dumps({"entries": Evil()}),
    "a call, protocol 0": pickle.dumps({"entries": Evil()}, protocol=0),
    "a class": pickle.dumps({"entries": print}),
    "an object": pickle.dumps({"entries": Path("x")}),
    "INST": b"\x80\x02(S'ls'\nios\nsystem\n.",
    "OBJ": b"\x80\x02(cos\nsystem\nS'ls'\no.",
    "a persistent id": b"\x80\x02Pname\n.",
    "a persistent id from the stack": b"\x80\x02K\x01Q.",
    "an extension code": b"\x80\x02\x82\x01.",
    "an extension code of 4 bytes": b"\x80\x02\x84\x01\x00\x00\x00.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "a set": pickle.dumps({1, 2}),
    "itself": recursive(),
    "a billion laughs": memo_bomb(),
    "great depth": deep(),
    "a huge length": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
    "a huge length of text": b"\x80\x04X" + struct.pack("<I", 2**32 - 1) + b"x.",
    "a huge number": b"\x80\x02\x8b" + struct.pack("<i", 1 << 20) + b"\x01" * (1 << 20) + b".",
    "a negative length": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    "a number of many digits": b"\x80\x02L" + b"9" * 5000 + b"L\n.",
    "an empty stack": b"\x80\x02u.",
    "a memo that is not there": b"\x80\x02h\x05.",
    "a mark alone": b"\x80\x02(.",
    "a list as a key": b"\x80\x02}]K\x01s.",
    "a tuple as a key": pickle.dumps({(1,): 2}),
    "no end": b"\x80\x02}",
    "a stop alone": b"\x80\x02.",
    "an unknown opcode": b"\x80\x02\xff.",
    "two values": b"\x80\x02K\x01K\x02.",
}


@pytest.mark.parametrize("data", ATTACKS.values(), ids=ATTACKS.keys())
def test_a_hostile_pickle_is_refused(tmp_path: Path, data: bytes) -> None:
    """By one clear error, and nothing of it is run."""
    with pytest.raises(SourceError, match=r"is refused|cannot be read"):
        load_plain(data)
    (tmp_path / "rank0").write_bytes(data)
    with pytest.raises(SourceError, match="rank0"):
        read(tmp_path / "rank0")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_are_read_of_every_protocol(protocol: int) -> None:
    """As pickle itself would, shared parts and all."""
    shared = {"a": [1, 2**40, -(2**70), 2.5, None, True, False, "é\n", (1,), (1, 2), (1, 2, 3), (), [], {}]}
    value = {"x": shared, "y": shared, "z": [shared, tuple(range(10))]}
    assert value == load_plain(pickle.dumps(value, protocol=protocol))


def kineto(count: int) -> str:
    events = [param("allreduce", 10 * k, **counts(4, 4)) for k in range(1, count + 1)]
    return json.dumps({"distributedInfo": INFO, "traceEvents": events})


def test_a_file_that_stops_in_the_middle_is_read_so_far(tmp_path: Path) -> None:
    """Plain, and gzip that is cut."""
    text = kineto(200)
    recording = recorded(tmp_path, text[: len(text) // 2])
    assert ["READ1"] == ids(recording)
    assert 90 <= len(recording.calls) <= 100
    packed = gzip.compress(text.encode())
    path = tmp_path / "rank1.json.gz"
    path.write_bytes(packed[: len(packed) * 2 // 3])
    recording = read(path)
    assert "READ1" in ids(recording)
    assert 0 < len(recording.calls) < 200
    path.write_bytes(packed)
    assert ([], 200) == (ids(read(path)), len(read(path).calls))


def test_a_malformed_element_is_passed_over(tmp_path: Path) -> None:
    """Those behind it are read."""
    text = kineto(5).replace('"ts": 20,', '"ts": 2 0,').replace('"ts": 40,', '"ts": NaN,')
    recording = recorded(tmp_path, text)
    assert 4 == len(recording.calls)
    assert ["READ2", "READ2"] == ids(recording)


def test_what_stands_before_and_behind_the_events_is_skipped_or_read(tmp_path: Path) -> None:
    """Large values of the top level are not kept; the ranks may come last; a bare list of events is a trace too."""
    events = json.loads(kineto(3))["traceEvents"]
    frames = json.dumps({str(place): 'a "[{\\' * 100 for place in range(25_000)})
    ranks = json.dumps(INFO)
    text = f'{{"stackFrames": {frames}, "traceEvents": {json.dumps(events)}, "distributedInfo": {ranks}}}'
    recording = recorded(tmp_path, text)
    assert (3, 1, 4, []) == (len(recording.calls), recording.rank, recording.world_size, ids(recording))
    assert 3 == len(recorded(tmp_path, events).calls)


class Pieces:
    """A text that comes in pieces of one size."""

    def __init__(self, text: str, size: int) -> None:
        self.pieces = [text[at : at + size] for at in range(0, len(text), size)]
        self.bytes = self
        self.cut = ""

    def read(self) -> str:
        return self.pieces.pop(0) if self.pieces else ""


@pytest.mark.parametrize("largest", [24, 1000])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 64, 1000])
def test_where_a_document_is_cut_into_pieces_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, size: int, largest: int
) -> None:
    """In strings, in escapes, in numbers; and of what is larger than may be kept, nothing is."""
    monkeypatch.setattr(json_stream, "_LARGEST", largest)
    skipped = {'a "[{\\': ['x]"}', {"y": [[], "[\\"]}]}
    value = {"before": skipped, "n": -1.5e300, "items": [1234567, "é[", {"a": "]}"}, [], None], "behind": 10}
    walked = list(json_stream.JsonStream(Pieces(json.dumps(value), size), {"items"}, pytest.fail))  # type: ignore[arg-type]
    if largest > 24:
        assert value == {key: one for key, item, one in walked if not item} | {
            "items": [one for _, item, one in walked if item]
        }
    else:
        assert "before" not in {key for key, *_ in walked}
        assert {"n": -1.5e300, "items": json_stream.BEGINS, "behind": 10} == {
            key: one for key, item, one in walked if not item
        }


REFUSED = {
    "nothing": b"",
    "an empty gzip": gzip.compress(b""),
    "noise": bytes(range(256)) * 40,
    "text": b"hello",
    "a number": b"3",
    "an object": b'{"a": 1}',
    "a deep list": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a gzip of noise": gzip.compress(bytes(range(256))),
    "a gzip header": b"\x1f\x8b",
    "an open string": b'{"a',
    "a plain pickle": pickle.dumps({"a": 1}),
    "NULs": b"\0" * 1000,
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_recording_is_one_clear_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "rank0.json"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"rank0\.json"):
        read(path)


@pytest.mark.parametrize("path", ["missing.json", ".", "a\0b", 3, None], ids=repr)
def test_what_is_no_file_is_one_clear_error(tmp_path: Path, path: Any) -> None:
    with pytest.raises(SourceError):
        read(tmp_path / path if isinstance(path, str) else path)


def test_other_versions_are_read_with_a_warning(tmp_path: Path) -> None:
    one = dump([entry("nccl:all_reduce", [[4]], [[4]])]) | {"version": "3.0"}
    recording = recorded(tmp_path, one)
    assert (["READ7"], 1) == (ids(recording), len(recording.calls))
    trace = recorded(tmp_path, {"schema": "7.0", "nodes": []})
    assert (["READ7"], "execution trace") == (ids(trace), trace.format)


def samples() -> list[bytes]:
    """One small file of each format."""
    entries = [entry("nccl:all_reduce", [[4]], [[4]], 1), entry("nccl:send 0->1", [[4]], [[4]], 2)]
    node = {
        "id": 3, "name": "c10d::alltoall_base_", "parent": 2, "seq_id": 0,
        "inputs": [[1, 2, 0, 4, 4, "cpu"], [3, 4, 0, 4, 4, "cpu"], "<Object>", [2, 2], [2, 2], -1],
        "input_shapes": [[4], [4], [], [[], []], [[], []], []],
        "input_types": ["Tensor(float)"] * 2 + ["Object"] + ["GenericList[Int,Int]"] * 2 + ["Int"],
        "outputs": [], "output_shapes": [], "output_types": [],
    }  # fmt: skip
    line = '{"op": "c10d::barrier", "group": {"size": 2, "rank": 1}, "arguments": {}, "index": 0}\n'
    header = '{"format": "collective_rules ledger", "version": 1, "rank": 1, "world_size": 2}\n'
    names = '{"pairs": [["d", 1]]}'
    found = f'{{"finding": {{"id": "AR2", "severity": "error", "message": "no", "ranks": [1], "names": {names}}}}}\n'
    return [
        json.dumps(dump(entries)).encode(),
        pickle.dumps(dump(entries), protocol=2),
        kineto(2).encode(),
        json.dumps({"schema": "1.1.0", "nodes": [node]}).encode(),
        (header + line * 2 + found).encode(),
        gzip.compress(kineto(2).encode()),
    ]


def read_or_refuse(path: Path) -> None:
    """Read a file and judge its calls, unless it is refused by one clear error."""
    try:
        recording = read(path)
    except SourceError:
        return
    for call in recording.calls:
        cr.check(call)
    cr.agree(recording.calls, ranks=[0])
    assert recording.read["calls"] == len(recording.calls)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_gives_findings_or_one_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, cut out or put in, anywhere in a file of any format."""
    raw = bytearray(data.draw(st.sampled_from(samples())))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(raw) - 1)) if raw else 0
        length = data.draw(st.sampled_from([0, 1, 1, 4, 60]))
        new = data.draw(st.sampled_from([b"", b"0", b"-1", b"NaN", b'"', b"}", b"[", b"1e999", b"\xff", b"9" * 30]))
        raw[place : place + length] = new
    path = tmp_path / "rank0"
    path.write_bytes(bytes(raw))
    read_or_refuse(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_field_is_read_or_noted(tmp_path: Path, data: st.DataObject) -> None:
    """JSON of the right form, with one value replaced."""
    document = json.loads(
        data.draw(st.sampled_from([each for each in samples() if each[:1] == b"{" and b"format" not in each]))
    )
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(document)
    holder, key = data.draw(st.sampled_from(places))
    holder[key] = data.draw(
        st.sampled_from([None, -1, 2**70, float("nan"), "x", "[0, 1]", [], {}, [[]], [None], True, 0, 1.5, {"a": 1}])
    )
    path = tmp_path / "rank0"
    path.write_text(json.dumps(document))
    read_or_refuse(path)


def of_ranks(directory: Path, entries: list[list[Any]], **changes: Any) -> list[Recording]:
    """Flight Recorder dumps of several ranks."""
    return [
        recorded(directory, dump(each, len(entries)) | changes, f"rank{rank}.json") for rank, each in enumerate(entries)
    ]


def reduces(*sizes: int) -> list[dict[str, Any]]:
    return [entry("nccl:all_reduce", [[size]], [[size]], place) for place, size in enumerate(sizes, 1)]


def severities(recordings: list[Recording]) -> set[tuple[str, str]]:
    """The id and the severity of all that is between the ranks."""
    found = compare(recordings, expected=()).findings
    return {(each.id, each.severity) for each in found if not each.id.startswith("READ")}


def test_an_entry_that_cannot_be_read_makes_its_absence_undecidable(tmp_path: Path) -> None:
    """It is known by its group, and what stands behind it by its number: there, errors are errors."""
    whole, holed = reduces(3, 3, 3, 3), reduces(3, 3, 3, 3)
    holed[1]["profiling_name"] = None
    recordings = of_ranks(tmp_path, [whole, holed])
    assert [((), True), (("0",), False)] == [(each.lost, each.is_whole) for each in recordings]
    assert {("AR11", "undecidable")} == severities(recordings)
    holed[3] = reduces(3, 3, 3, 4)[3]
    assert {("AR11", "undecidable"), ("AR1", "error")} == severities(of_ranks(tmp_path, [whole, holed]))


def test_what_a_group_that_was_read_whole_lacks_is_an_error(tmp_path: Path) -> None:
    """Whatever another group lost; where the group is not known either, nothing is sure."""
    config = {name: {"name": name, "desc": name, "ranks": "[0, 1]"} for name in ("0", "other")}
    other = entry("nccl:broadcast", [[4]], [[4]], 1, record_id=2, process_group=["other", "other"])
    whole, holed = [*reduces(3, 3), other], [*reduces(3), {"process_group": ["other", "other"]}]
    found = severities(of_ranks(tmp_path, [whole, holed], pg_config=config))
    assert {("AR11", "error"), ("BC11", "undecidable")} == found
    holed[-1] = {}
    found = severities(of_ranks(tmp_path, [whole, holed], pg_config=config))
    assert {("AR11", "undecidable"), ("BC11", "undecidable")} == found


def test_calls_whose_groups_size_is_not_told_are_lost_and_not_missing(tmp_path: Path) -> None:
    """Off the root, a gather does not show how large its group is."""
    entries = [[entry("nccl:gather", [[4]], [[4]] * 3 if rank == 1 else [])] for rank in range(3)]
    recordings = of_ranks(tmp_path, entries, pg_config=None)
    assert [("0",), (), ("0",)] == [each.lost for each in recordings]
    assert {("GA9", "undecidable")} == severities(recordings)
    whole = [each for each in recordings if each.is_whole]
    assert () == cr.agree([call for each in whole for call in each.calls], ranks=[each.rank for each in whole])


def test_messages_behind_a_hole_are_matched_by_guess(tmp_path: Path) -> None:
    """A send or receive has no number: which one is lost cannot be told."""
    sends = [entry("nccl:send 0->1", [[size]], [[size]], size) for size in (3, 4)]
    receives = [entry("nccl:recv 1<-0", [[size]], [[size]], size) for size in (3, 4)]
    assert set() == severities(of_ranks(tmp_path, [sends, receives]))
    found = severities(of_ranks(tmp_path, [[{}, sends[1]], receives]))
    assert {"undecidable"} == {severity for _, severity in found}


def test_calls_without_numbers_behind_a_hole_are_no_errors(tmp_path: Path) -> None:
    """In a trace only their order tells calls apart."""

    def trace(rank: int, broken: bool) -> Recording:
        events: list[Any] = [param("allreduce", 10 * size, **counts(size, size)) for size in (3, 4, 5)]
        events[1] = 3 if broken else events[1]
        info = {"rank": rank, "world_size": 2}
        return recorded(tmp_path, {"distributedInfo": info, "traceEvents": events}, f"trace{rank}.json")

    whole = [trace(0, broken=False), trace(1, broken=False)]
    assert set() == severities(whole)
    holed = trace(1, broken=True)
    assert (None,) == holed.lost
    assert {"undecidable"} == {severity for _, severity in severities([whole[0], holed])}


@pytest.mark.parametrize("value", [None, {"a": 1}, 3, "x"], ids=repr)
def test_records_that_are_no_list_are_a_finding(tmp_path: Path, value: Any) -> None:
    recording = recorded(tmp_path, dump([]) | {"entries": value})
    assert (["READ2"], "flight recorder", (None,), ()) == (
        ids(recording),
        recording.format,
        recording.lost,
        recording.calls,
    )
    assert "entries=" in recording.findings[0].message


@pytest.mark.parametrize("behind", ["x", "{}", "]", ', "a": 1}', "\0"])
def test_text_behind_the_document_is_a_finding(tmp_path: Path, behind: str) -> None:
    """A bracket that was damaged may have ended it too early."""
    whole = kineto(2) + " \n\n"
    assert [] == ids(recorded(tmp_path, whole))
    recording = recorded(tmp_path, whole + behind)
    assert (["READ1"], 2, True) == (ids(recording), len(recording.calls), recording.is_cut)


def test_an_index_that_is_none_makes_it_unknown_not_a_call_missing(tmp_path: Path) -> None:
    path = ledger(tmp_path)
    text = path.read_text()
    for index in ("-1", '"1"', "1.5", "99999999999999999999", "true", "[]"):
        path.write_text(text.replace('"index":1', f'"index":{index}'))
        recording = read(path)
        assert (["READ2"], [0, None, 2], ()) == (
            ids(recording),
            [call.index for call in recording.calls],
            recording.lost,
        )


def test_the_lines_of_a_ledger_that_is_doubled_are_read_once(tmp_path: Path) -> None:
    """As a whole, or line by line; a call that is made twice has another index, or another time."""
    path = ledger(tmp_path)
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    for doubled in (text + text, "".join(line * 2 for line in lines)):
        path.write_text(doubled)
        recording = read(path)
        assert [0, 1, 2] == [call.index for call in recording.calls]
        assert {"a header": 1, "a line": 3} == {each.names["what"]: each.count for each in recording.findings}
    send = '{"op":"c10d::send","group":{"size":2,"rank":1},"arguments":{"tensors":[],"dst":0},"at":%s}\n'
    path.write_text(lines[0] + send % "0.5" + send % "0.75" + send % "0.5")
    assert 2 == len(read(path).calls)


def test_lines_of_a_ledger_that_cannot_be_read_are_lost_calls(tmp_path: Path) -> None:
    path = ledger(tmp_path)
    assert read(path).is_whole
    text = path.read_text()
    path.write_text(text.replace('"index":1', '"index";1'))
    assert ((None,), ["READ2"]) == (read(path).lost, ids(read(path)))


def test_records_of_one_number_that_differ_are_two(tmp_path: Path) -> None:
    """One that is doubled is read once."""
    first, second = reduces(3, 4)
    recording = recorded(tmp_path, dump([first, first]))
    assert (["READ8"], 1) == (ids(recording), len(recording.calls))
    second["record_id"] = first["record_id"]
    recording = recorded(tmp_path, dump([first, second]))
    assert (["READ2"], [0, 1]) == (ids(recording), [call.index for call in recording.calls])


def test_a_pickle_of_too_many_opcodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are carried out."""
    monkeypatch.setattr(plain_pickle, "_MOST_OPCODES", 1000)
    assert [()] * 900 == load_plain(b"\x80\x02](" + b")" * 900 + b"e.")
    with pytest.raises(SourceError, match="more than 1,000 opcodes"):
        load_plain(b"\x80\x02]" + b"N0" * 1000 + b".")
