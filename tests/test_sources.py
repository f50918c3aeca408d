"""What each format tells, and what a damaged or hostile file does: findings, or one clear error."""

import gzip
import json
import pickle
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore

import collective_rules as cr
from collective_rules.sources import NOTES, LedgerWriter, Recording, SourceError, json_stream, read, same_ranks
from collective_rules.sources.names import SPELLINGS, dtype_of
from collective_rules.sources.plain_pickle import load_plain

DOCS = Path(__file__).parent.parent / "docs"


def entry(name: str, inputs: Any, outputs: Any, number: int = 1, **more: Any) -> dict[str, Any]:
    """A Flight Recorder entry."""
    return {
        "record_id": number - 1,
        "process_group": ["0", "default_pg"],
        "collective_seq_id": number,
        "p2p_seq_id": 0,
        "profiling_name": name,
        "input_sizes": inputs,
        "input_dtypes": ["Float"] * len(inputs),
        "output_sizes": outputs,
        "output_dtypes": ["Float"] * len(outputs),
        "state": "completed",
    } | more


def dump(entries: list[dict[str, Any]], size: int = 2) -> dict[str, Any]:
    """A Flight Recorder dump."""
    ranks = str(list(range(size)))
    config = {"0": {"name": "0", "desc": "default_pg", "ranks": ranks}}
    return {"version": "2.10", "pg_config": config, "entries": entries}


def recorded(directory: Path, document: Any, name: str = "rank0.json") -> Recording:
    path = directory / name
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return read(path)


def ids(recording: Recording) -> list[str]:
    return [finding.id for finding in recording.findings if finding.id != "READ5"]


def of_ranks(directory: Path, entries: list[dict[str, Any]]) -> list[cr.Finding]:
    """What is found, of errors, where each rank's dump holds one entry."""
    recordings = [
        recorded(directory, dump([one], len(entries)), f"rank{rank}.json") for rank, one in enumerate(entries)
    ]
    calls = [call for recording in recordings for call in recording.calls]
    assert len(entries) == len(calls)
    found = [*(finding for call in calls for finding in cr.check(call)), *cr.agree(calls)]
    return [finding for finding in found if finding.severity == "error"]


VALID = {
    "an uneven all_to_all": [
        entry("nccl:all_to_all", [[4, 3]], [[3, 3]]),
        entry("nccl:all_to_all", [[4, 3]], [[5, 3]]),
    ],
    "an all_to_all of lists": [
        entry("nccl:all_to_all", [[1], [2]], [[1], [3]]),
        entry("nccl:all_to_all", [[3], [4]], [[2], [4]]),
    ],
    "all_gather_v": [
        entry("nccl:all_gather_v", [[2]], [[2], [3]]),
        entry("nccl:all_gather_v", [[3]], [[2], [3]]),
    ],
    "reduce_scatter_v": [
        entry("nccl:reduce_scatter_v", [[2], [3]], [[2]]),
        entry("nccl:reduce_scatter_v", [[2], [3]], [[3]]),
    ],
    "gather, empty off the root": [entry("nccl:gather", [[4]], [[4], [4]]), entry("nccl:gather", [[4]], [])],
    "scatter, empty off the root": [entry("gloo:scatter", [[4], [4]], [[4]]), entry("gloo:scatter", [], [[4]])],
    "scatter, in and out swapped": [entry("nccl:scatter", [[4]], [[4], [4]]), entry("nccl:scatter", [[4]], [])],
    "scatter, swapped off the root": [entry("nccl:scatter", [[4], [4]], [[4]]), entry("nccl:scatter", [[4]], [])],
    "_all_gather_base": [entry("nccl:_all_gather_base", [[4, 2]], [[8, 2]])] * 2,
    "_reduce_scatter_base of no rows": [entry("nccl:_reduce_scatter_base", [[0, 2]], [[0, 2]])] * 2,
    "a 0-d all_reduce": [entry("gloo:all_reduce", [[]], [[]])] * 2,
    "an empty all_to_all": [entry("nccl:all_to_all", [[0]], [[0]])] * 2,
    "coalesced": [entry("nccl:allreduce_coalesced", [[4], [2, 2]], [[4], [2, 2]])] * 2,
    "a pair": [
        entry("nccl:send 0->1", [[4]], [[4]], is_p2p=True),
        entry("nccl:recv 1<-0", [[4]], [[4]], is_p2p=True),
    ],
}
WRONG = {
    "_all_gather_base, too short": [entry("nccl:_all_gather_base", [[4, 2]], [[7, 2]])] * 2,
    "_all_gather_base, other inputs": [
        entry("nccl:_all_gather_base", [[4, 2]], [[8, 2]]),
        entry("nccl:_all_gather_base", [[5, 2]], [[10, 2]]),
    ],
    "all_gather_single": [entry("nccl:all_gather_single", [[4]], [[9]])] * 2,
    "reduce_scatter_single": [entry("nccl:reduce_scatter_single", [[9]], [[4]])] * 2,
    "all_to_all_single": [
        entry("nccl:all_to_all_single", [[4]], [[4]]),
        entry("nccl:all_to_all_single", [[6]], [[6]]),
    ],
    "an all_to_all of lists": [
        entry("nccl:all_to_all", [[1], [2]], [[1], [3]]),
        entry("nccl:all_to_all", [[4], [4]], [[2], [4]]),
    ],
    "an uneven all_to_all whose sums differ": [
        entry("nccl:all_to_all", [[4, 3]], [[3, 3]]),
        entry("nccl:all_to_all", [[4, 3]], [[6, 3]]),
    ],
    "the second of a coalesced list": [
        entry("nccl:allreduce_coalesced", [[4], [2]], [[4], [2]]),
        entry("nccl:allreduce_coalesced", [[4], [3]], [[4], [3]]),
    ],
    "the second of a coalesced all_gather": [
        entry("nccl:all_gather_into_tensor_coalesced", [[4], [2]], [[8], [4]]),
        entry("nccl:all_gather_into_tensor_coalesced", [[4], [2]], [[8], [5]]),
    ],
    "a root's list": [entry("nccl:gather", [[4]], [[4], [5]]), entry("nccl:gather", [[4]], [])],
    "a root's list of other tensors": [entry("nccl:gather", [[4]], [[4], [4]]), entry("nccl:gather", [[6]], [])],
    "the dtype of a pair": [
        entry("nccl:send 0->1", [[4]], [[4]]),
        entry("nccl:recv 1<-0", [[4]], [[4]], input_dtypes=["Half"], output_dtypes=["Half"]),
    ],
    "the size of a pair": [entry("nccl:send 0->1", [[4]], [[4]]), entry("nccl:recv 1<-0", [[5]], [[5]])],
    "a pair's partner": [entry("nccl:send 0->1", [[4]], [[4]]), entry("nccl:send 1->0", [[4]], [[4]])],
    "the collective": [entry("nccl:all_reduce", [[4]], [[4]]), entry("nccl:broadcast", [[4]], [[4]])],
    "the dtype": [
        entry("nccl:all_reduce", [[4]], [[4]]),
        entry("nccl:all_reduce", [[4]], [[4]], input_dtypes=["Double"], output_dtypes=["Double"]),
    ],
}


@pytest.mark.parametrize("entries", VALID.values(), ids=VALID.keys())
def test_flight_recorder_valid_entries_are_accepted(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    assert [] == of_ranks(tmp_path, entries)


@pytest.mark.parametrize("entries", WRONG.values(), ids=WRONG.keys())
def test_flight_recorder_wrong_entries_are_found(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    assert of_ranks(tmp_path, entries)


def test_what_flight_recorder_does_not_tell_is_unknown(tmp_path: Path) -> None:
    """Not guessed: the reduce op, the root, the tag, the splits."""
    names = ["nccl:all_reduce", "nccl:broadcast", "nccl:send 0->1", "nccl:all_to_all"]
    entries = [entry(name, [[4]], [[4]], place) for place, name in enumerate(names, 1)]
    reduce, broadcast, send, exchange = recorded(tmp_path, dump(entries)).calls
    assert (cr.UNKNOWN, cr.UNKNOWN) == (reduce.arguments["reduce_op"], broadcast.arguments["root_rank"])
    assert (1, cr.UNKNOWN) == (send.arguments["dst"], send.arguments["tag"])
    assert ((4,), cr.UNKNOWN) == (exchange.arguments["input"].shape, exchange.arguments["input_split_sizes"])
    assert [0, 1, None, 3] == [call.index for call in (reduce, broadcast, send, exchange)]
    assert {(2, (0, 1), "0")} == {(call.group.size, call.group.ranks, call.group.name) for call in (reduce, send)}


def test_rows_that_are_no_collectives_are_counted_once(tmp_path: Path) -> None:
    """A summary, a name without a row, a wait, a record given twice."""
    names = ["nccl:coalesced", "nccl:coalesced", "nccl:warp_drive", "nccl:wait", "nccl:all_reduce", "nccl:all_reduce"]
    entries = [entry(name, [[4]], [[4]], place) for place, name in enumerate(names, 1)]
    recording = recorded(tmp_path, dump([*entries, entries[-1]]))
    assert ["READ8", "READ3", "READ9"] == ids(recording)
    assert {"READ3": 1, "READ8": 1, "READ9": 2} == {
        finding.id: finding.count for finding in recording.findings if finding.id != "READ5"
    }
    assert "'warp_drive' is no collective" in str(recording.findings[1])
    assert (7, 2) == (recording.read["records"], len(recording.calls))


def test_every_spelling_makes_a_call(tmp_path: Path) -> None:
    """No name of the table leads nowhere."""
    entries = [
        entry(f"nccl:{name}{' 0->1' if name in ('send', 'isend') else ''}", [[4], [4]], [[4], [4]], place)
        for place, name in enumerate(SPELLINGS, 1)
    ]
    recording = recorded(tmp_path, dump(entries))
    assert len(SPELLINGS) == len(recording.calls)
    assert [] == ids(recording)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        *[(text, torch.float32) for text in ("Float", "float32", "torch.float32", "float", "c10::Float")],
        *[(text, torch.float16) for text in ("Half", "c10::Half", "half", "fp16")],
        *[(text, torch.int64) for text in ("Long", "long int", "long", "long long", "int64")],
        *[(text, torch.uint8) for text in ("Byte", "unsigned char", "uint8")],
        *[(text, torch.int8) for text in ("Char", "signed char", "char")],
        *[(text, torch.complex64) for text in ("ComplexFloat", "c10::complex<float>")],
        *[(text, torch.bfloat16) for text in ("BFloat16", "c10::BFloat16")],
        *[(text, torch.float8_e4m3fn) for text in ("Float8_e4m3fn", "c10::Float8_e4m3fn")],
        *[(text, None) for text in ("Scalar", "TensorList", "", "nn", "Tensor", 3, None, float("nan"))],
    ],
    ids=str,
)
def test_dtypes_have_many_spellings(text: Any, dtype: torch.dtype | None) -> None:
    assert dtype is dtype_of(text)


def param(name: str, start: int, **more: Any) -> dict[str, Any]:
    """A `record_param_comms` event, as NCCL writes it."""
    args = {"Collective name": name, "dtype": "Float", "Process Group Name": "0", "Group size": 2}
    return {
        "ph": "X", "cat": "cpu_op", "name": "record_param_comms", "pid": 1, "tid": 1, "ts": start, "dur": 5,
        "args": args | {"Process Group Ranks": "[0, 1]", "In split size": "[]", "Out split size": "[]"} | more,
    }  # fmt: skip


def counts(read_: Any, written: Any) -> dict[str, Any]:
    return {"In msg nelems": read_, "Out msg nelems": written}


INFO = {"backend": "nccl", "rank": 1, "world_size": 4}


def test_counts_become_shapes_that_fit(tmp_path: Path) -> None:
    """Split sizes count rows: the rest of a row is what is left of the elements."""
    events = [
        param("all_to_allv", 10, **counts(12, 15)) | {"tid": 2},
        param("all_to_all", 20, **counts(8, 8)),
        param("all_gather", 30, **counts(4, 8)),
        param("_reduce_scatter_base", 40, **counts(8, 4)),
        param("all_to_all", 50, **counts(8, 10)),
        param("gather", 60, Rank=0, **counts(4, 8)),
        param("wait", 70, **counts(0, 0)),
        param("barrier", 80, **counts(0, 0)),
    ]
    events[0]["args"] |= {"In split size": "[1, 3]", "Out split size": "[2, 3]"}
    recording = recorded(tmp_path, {"traceEvents": events, "distributedInfo": INFO})
    exchange, even, gathered, scattered, uneven, gather, barrier = recording.calls
    assert ((4, 3), (5, 3)) == (exchange.arguments["input"].shape, exchange.arguments["output"].shape)
    assert ((8,), ()) == (even.arguments["input"].shape, even.arguments["input_split_sizes"])
    assert [((4,), (4,))] == [tuple(one.shape for one in each) for each in gathered.arguments["output_tensors"]]
    assert ((8,), (4,)) == (scattered.arguments["input_tensor"].shape, scattered.arguments["output_tensor"].shape)
    assert ((8,), cr.UNKNOWN) == (uneven.arguments["input"].shape, uneven.arguments["input_split_sizes"])
    assert (0, 1) == (gather.arguments["root_rank"], gather.group.rank)
    assert "c10d::barrier" == barrier.op
    assert {(2, 1)} == {(call.group.size, call.group.rank) for call in recording.calls}
    found = [finding for call in recording.calls for finding in cr.check(call)]
    assert [] == found


def test_an_event_and_its_kernel_are_one_call(tmp_path: Path) -> None:
    """Kernels are read only where there is nothing else."""
    event = param("allreduce", 10, **counts(4, 4))
    kernel = event | {"cat": "kernel", "name": "ncclDevKernel_AllReduce_Sum_f32", "tid": 7, "ts": 12}
    note = event | {"cat": "user_annotation", "name": "nccl:all_reduce", "args": {}, "ts": 11, "dur": 2}
    both = recorded(tmp_path, {"distributedInfo": INFO, "traceEvents": [kernel, event, note]})
    alone = recorded(tmp_path, {"traceEvents": [kernel], "distributedInfo": INFO})
    assert 1 == len(both.calls) == len(alone.calls)
    assert both.calls[0].arguments == alone.calls[0].arguments


def test_calls_stand_in_the_order_of_their_making(tmp_path: Path) -> None:
    """A trace lists one thread after the other."""
    events = [param("allreduce", 30, **counts(3, 3)), param("allreduce", 10, **counts(1, 1)) | {"tid": 2}]
    recording = recorded(tmp_path, {"traceEvents": events, "distributedInfo": INFO})
    assert [(1,), (3,)] == [call.arguments["tensors"][0].shape for call in recording.calls]


@pytest.mark.parametrize("value", [float("nan"), -1, "12", 2**70, float("inf"), [1], {}, True], ids=repr)
def test_what_is_no_number_makes_a_part_unknown_not_a_call_missing(tmp_path: Path, value: Any) -> None:
    """A missing call would shift those behind it."""
    events = [param("allreduce", 10 * k, **counts(*[value if k == 2 else 4] * 2)) for k in range(1, 4)]
    recording = recorded(tmp_path, {"traceEvents": events, "distributedInfo": INFO})
    assert [(4,), None, (4,)] == [
        call.arguments["tensors"][0].shape if "tensors" in call.arguments else None for call in recording.calls
    ]
    assert ["READ2", "READ2"] == ids(recording)
    assert "In msg nelems=" in str(recording.findings[0])


def test_the_rank_is_what_the_file_says_else_its_name(tmp_path: Path) -> None:
    """And what the caller knows counts most."""
    one = dump([entry("nccl:all_reduce", [[4]], [[4]])], 8)
    for name, rank in {"nccl_trace_rank_3": 3, "rank5.json": 5, "fr2": 2, "6.json": 6, "resnet_w2.json": None}.items():
        recording = recorded(tmp_path, one, name)
        assert rank == recording.rank, name
        assert ("READ6" in ids(recording)) == (rank is None), name
    assert 7 == read(tmp_path / "fr2", rank=7).calls[0].group.rank
    assert 1 == recorded(tmp_path, {"traceEvents": [], "distributedInfo": INFO}, "rank9.json").rank


def test_the_callers_world_is_the_default_groups_where_nothing_shows_another(tmp_path: Path) -> None:
    """As gloo's dumps need it, which name no group's ranks."""
    entries = [entry("gloo:all_reduce", [[4]], [[4]], 1), entry("gloo:all_reduce", [[4]], [[4]], 1, record_id=7)]
    entries[1]["process_group"] = ["1", "a part"]
    document = dump(entries) | {"pg_config": {"": {"name": "", "desc": "", "ranks": "[]"}}}
    assert [2] == [finding.count for finding in recorded(tmp_path, document).findings if finding.id == "READ4"]
    recording = read(tmp_path / "rank0.json", world_size=4)
    assert [(4, (0, 1, 2, 3))] == [(call.group.size, call.group.ranks) for call in recording.calls]
    assert [1] == [finding.count for finding in recording.findings if finding.id == "READ4"]


def test_a_call_that_shows_no_group_is_not_of_the_world(tmp_path: Path) -> None:
    """Unless the caller says so."""
    types = {"Input Dims": [[[4]], [], [], []], "Input type": ["TensorList", "", "", "Scalar"]}
    event = {"ph": "X", "cat": "cpu_op", "name": "c10d::allreduce_", "ts": 1, "dur": 1, "args": types}
    recording = recorded(tmp_path, {"distributedInfo": INFO, "traceEvents": [event]})
    assert (["READ4"], 0) == (ids(recording), len(recording.calls))
    assert [4] == [call.group.size for call in read(tmp_path / "rank0.json", world_size=4).calls]


def test_two_files_of_one_rank_are_a_finding(tmp_path: Path) -> None:
    recordings = [recorded(tmp_path, dump([]), f"{name}_rank0.json") for name in ("a", "b")]
    assert [] == list(same_ranks(recordings[:1]))
    (found,) = same_ranks(recordings)
    assert ("READ8", "warning") == (found.id, found.severity)


CALL = cr.call("c10d::allreduce_", group=cr.Group(2, 1, "0", (0, 1)), tensors=[(4,)])


def ledger(directory: Path, count: int = 3) -> Path:
    path = directory / "ledger"
    with LedgerWriter(path, rank=1, world_size=2) as write:
        for index in range(count):
            write(cr.Call(CALL.row, CALL.group, CALL.arguments, f"train.py:{index}", index, blocking=True))
    return path


def test_a_ledger_survives_a_crash_in_the_middle_of_a_line(tmp_path: Path) -> None:
    """Cut anywhere, it is readable up to the last whole line."""
    path = ledger(tmp_path)
    data = path.read_bytes()
    first, second = data.index(b"\n") + 1, data.index(b"\n", data.index(b"\n") + 1) + 1
    for cut in (second + 1, second + 40, len(data) - 2):
        path.write_bytes(data[:cut])
        recording = read(path)
        assert data[first:cut].count(b"\n") == len(recording.calls)
        assert ["READ1"] == ids(recording)
    path.write_bytes(data[:second])
    assert ([], 1) == (ids(read(path)), len(read(path).calls))


def test_a_ledger_is_readable_while_it_is_written(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path / "rank{rank}.jsonl", rank=1, world_size=2) as write:
        for count in range(3):
            assert count == len(read(write.path).calls)
            write(CALL)
    assert "rank1.jsonl" == Path(write.path).name
    with pytest.raises(cr.CallError, match="is closed"):
        write(CALL)


def test_what_a_mode_sees_is_written_before_it_is_carried_out(tmp_path: Path) -> None:
    """With the line and the index, and no more once the writer is closed."""
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
    try:
        with cr.RuleMode() as ledger:
            with LedgerWriter(tmp_path / "rank{rank}.jsonl") as write:
                write.follow(ledger)
                for count in range(1, 4):
                    dist.all_reduce(torch.ones(count))
                    recording = read(write.path)
                    assert (3, 8, count) == (recording.rank, recording.world_size, len(recording.calls))
            dist.barrier()
        written, live = recording.calls[-1], ledger.calls[2]
        assert (live.op, live.group, live.arguments) == (written.op, written.group, written.arguments)
        assert (live.source, live.index, live.blocking) == (written.source, written.index, written.blocking)
        assert (3, 4) == (len(read(write.path).calls), len(ledger))
    finally:
        dist.destroy_process_group()


def test_bad_lines_of_a_ledger_are_passed_over(tmp_path: Path) -> None:
    """A line of noise, an unknown op, another version, a second header."""
    lines = ledger(tmp_path).read_text().splitlines()
    header = lines[0].replace('"version": 1', '"version": 9')
    text = "\n".join([header, "{", lines[1], lines[2].replace("allreduce_", "allreduced_"), lines[0], "[]", lines[3]])
    recording = recorded(tmp_path, text)
    assert [0, 2] == [call.index for call in recording.calls]
    assert {"READ2": 3, "READ7": 1, "READ8": 1} == Counter(
        {finding.id: sum(f.count for f in recording.findings if f.id == finding.id) for finding in recording.findings}
    )
    assert CALL.arguments == recording.calls[0].arguments


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
        assert {"n": -1.5e300, "items": None, "behind": 10} == {key: one for key, item, one in walked if not item}


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
    return [
        json.dumps(dump(entries)).encode(),
        pickle.dumps(dump(entries), protocol=2),
        kineto(2).encode(),
        json.dumps({"schema": "1.1.0", "nodes": [node]}).encode(),
        (header + line * 2).encode(),
        gzip.compress(kineto(2).encode()),
    ]


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
    try:
        recording = read(path)
    except cr.CollectiveRulesError:
        return
    for call in recording.calls:
        cr.check(call)
    assert recording.read["calls"] == len(recording.calls)


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
    try:
        recording = read(path)
    except SourceError:
        return
    for call in recording.calls:
        cr.check(call)
    cr.agree(recording.calls, ranks=[0])


def test_every_note_is_in_the_documentation() -> None:
    """With its id and its severity."""
    text = (DOCS / "recordings.md").read_text()
    for id_, note in NOTES.items():
        assert f"| {id_} | {note.severity} |" in text
