"""What each format tells, and what a damaged or hostile file does: findings, or one clear error."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import collective_rules as cr
from collective_rules.recordings import NOTES, LedgerWriter, Recording, read, same_ranks
from collective_rules.recordings.spellings import SPELLINGS, dtype_of

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


def of_each(name: str, *sizes: tuple[Any, Any]) -> list[dict[str, Any]]:
    """One entry for each rank, with its sizes before and behind."""
    return [entry(name, inputs, outputs) for inputs, outputs in sizes]


VALID = {
    "an uneven all_to_all": of_each("nccl:all_to_all", ([[4, 3]], [[3, 3]]), ([[4, 3]], [[5, 3]])),
    "an all_to_all of lists": of_each("nccl:all_to_all", ([[1], [2]], [[1], [3]]), ([[3], [4]], [[2], [4]])),
    "all_gather_v": of_each("nccl:all_gather_v", ([[2]], [[2], [3]]), ([[3]], [[2], [3]])),
    "reduce_scatter_v": of_each("nccl:reduce_scatter_v", ([[2], [3]], [[2]]), ([[2], [3]], [[3]])),
    "gather, empty off the root": of_each("nccl:gather", ([[4]], [[4], [4]]), ([[4]], [])),
    "scatter, empty off the root": of_each("gloo:scatter", ([[4], [4]], [[4]]), ([], [[4]])),
    "scatter, in and out swapped": of_each("nccl:scatter", ([[4]], [[4], [4]]), ([[4]], [])),
    "scatter, swapped off the root": of_each("nccl:scatter", ([[4], [4]], [[4]]), ([[4]], [])),
    "_all_gather_base": of_each("nccl:_all_gather_base", ([[4, 2]], [[8, 2]])) * 2,
    "_reduce_scatter_base of no rows": of_each("nccl:_reduce_scatter_base", ([[0, 2]], [[0, 2]])) * 2,
    "a 0-d all_reduce": of_each("gloo:all_reduce", ([[]], [[]])) * 2,
    "an empty all_to_all": of_each("nccl:all_to_all", ([[0]], [[0]])) * 2,
    "coalesced": of_each("nccl:allreduce_coalesced", ([[4], [2, 2]], [[4], [2, 2]])) * 2,
    "a pair": [entry("nccl:send 0->1", [[4]], [[4]], is_p2p=True), entry("nccl:recv 1<-0", [[4]], [[4]], is_p2p=True)],
}
AS_DOUBLES = {"input_dtypes": ["Double"], "output_dtypes": ["Double"]}
WRONG = {
    "_all_gather_base, too short": of_each("nccl:_all_gather_base", ([[4, 2]], [[7, 2]])) * 2,
    "_all_gather_base, other inputs": of_each("nccl:_all_gather_base", ([[4, 2]], [[8, 2]]), ([[5, 2]], [[10, 2]])),
    "all_gather_single": of_each("nccl:all_gather_single", ([[4]], [[9]])) * 2,
    "reduce_scatter_single": of_each("nccl:reduce_scatter_single", ([[9]], [[4]])) * 2,
    "all_to_all_single": of_each("nccl:all_to_all_single", ([[4]], [[4]]), ([[6]], [[6]])),
    "an all_to_all of lists": of_each("nccl:all_to_all", ([[1], [2]], [[1], [3]]), ([[4], [4]], [[2], [4]])),
    "an uneven all_to_all whose sums differ": of_each("nccl:all_to_all", ([[4, 3]], [[3, 3]]), ([[4, 3]], [[6, 3]])),
    "the second of a coalesced list": of_each(
        "nccl:allreduce_coalesced", ([[4], [2]], [[4], [2]]), ([[4], [3]], [[4], [3]])
    ),
    "the second of a coalesced all_gather": of_each(
        "nccl:all_gather_into_tensor_coalesced", ([[4], [2]], [[8], [4]]), ([[4], [2]], [[8], [5]])
    ),
    "a root's list": of_each("nccl:gather", ([[4]], [[4], [5]]), ([[4]], [])),
    "a root's list of other tensors": of_each("nccl:gather", ([[4]], [[4], [4]]), ([[6]], [])),
    "the dtype of a pair": [entry("nccl:send 0->1", [[4]], [[4]]), entry("nccl:recv 1<-0", [[4]], [[4]], **AS_DOUBLES)],
    "the size of a pair": [entry("nccl:send 0->1", [[4]], [[4]]), entry("nccl:recv 1<-0", [[5]], [[5]])],
    "a pair's partner": [entry("nccl:send 0->1", [[4]], [[4]]), entry("nccl:send 1->0", [[4]], [[4]])],
    "the collective": [entry("nccl:all_reduce", [[4]], [[4]]), entry("nccl:broadcast", [[4]], [[4]])],
    "the dtype": [entry("nccl:all_reduce", [[4]], [[4]]), entry("nccl:all_reduce", [[4]], [[4]], **AS_DOUBLES)],
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
    entries = [entry(name, [[4]], [[4]], number) for name, number in zip(names, (1, 2, 2, 3), strict=True)]
    entries[2]["record_id"], entries[3]["record_id"] = 2, 3
    reduce, broadcast, send, exchange = recorded(tmp_path, dump(entries)).calls
    assert (cr.UNKNOWN, cr.UNKNOWN) == (reduce.arguments["reduce_op"], broadcast.arguments["root_rank"])
    assert (1, cr.UNKNOWN) == (send.arguments["dst"], send.arguments["tag"])
    assert ((4,), cr.UNKNOWN) == (exchange.arguments["input"].shape, exchange.arguments["input_split_sizes"])
    assert [0, 1, None, 2] == [call.index for call in (reduce, broadcast, send, exchange)]
    assert {(2, (0, 1), "0")} == {(call.group.size, call.group.ranks, call.group.name) for call in (reduce, send)}


def swap_sides(entries: list[dict[str, Any]]) -> None:
    """Let a gather's entries be those of a scatter."""
    for each in entries:
        for way in ("sizes", "dtypes"):
            each[f"input_{way}"], each[f"output_{way}"] = each[f"output_{way}"], each[f"input_{way}"]


NO_LIST: list[tuple[list[list[int]], list[str]]] = [
    ([[]], []), ([[]], ["Float"]), ([[0]], ["Undefined"]), ([[0]], ["Float"]), ([], []),
]  # fmt: skip
"""How a backend writes down that a rank has no list."""


@pytest.mark.parametrize(("sizes", "dtypes"), NO_LIST, ids=repr)
@pytest.mark.parametrize("name", ["gather", "scatter", "scatter, in and out swapped"])
def test_a_rank_without_a_list_is_not_the_root(
    tmp_path: Path, name: str, sizes: list[list[int]], dtypes: list[str]
) -> None:
    """Whatever stands for it: an empty list, a tensor without sizes, one without elements."""
    entries = [
        entry(f"nccl:{name.split(',', maxsplit=1)[0]}", [[4]], [[4]] * 3 if rank == 1 else sizes) for rank in range(3)
    ]
    for rank in (0, 2):
        entries[rank]["output_dtypes"] = dtypes
    if name == "scatter":
        swap_sides(entries)
    assert [] == of_ranks(tmp_path, entries)
    call = recorded(tmp_path, dump([entries[2]], 3), "rank2.json").calls[0]
    part = "output_tensors" if name == "gather" else "input_tensors"
    assert ((), cr.UNKNOWN) == (call.arguments[part], call.arguments["root_rank"])


@pytest.mark.parametrize("name", ["gather", "scatter"])
def test_scalars_and_empty_tensors_are_gathered_and_scattered(tmp_path: Path, name: str) -> None:
    """A tensor without sizes is a rank's share, too; whether one without elements is a list cannot be told."""
    for shape, none in (([], [[]]), ([], []), ([0], [])):
        entries = [entry(f"nccl:{name}", [shape], [shape] * 3 if rank == 1 else none) for rank in range(3)]
        if name == "scatter":
            swap_sides(entries)
        assert [] == of_ranks(tmp_path, entries)
        root = recorded(tmp_path, dump([entries[1]], 3), "rank1.json").calls[0].arguments
        shares, listed = ("input_tensors", "output_tensors")[:: 1 if name == "gather" else -1]
        share = cr.Spec(tuple(shape), torch.float32)
        assert ((share,), ((share,) * 3,), 1) == (root[shares], root[listed], root["root_rank"])
    entries = [entry(f"nccl:{name}", [[0]], [[0]]) for _ in range(3)]
    assert [] == of_ranks(tmp_path, entries)
    assert cr.UNKNOWN is recorded(tmp_path, dump(entries[:1], 3)).calls[0].arguments["root_rank"]


def test_a_list_of_one_is_a_list_where_the_group_is_one_rank(tmp_path: Path) -> None:
    """Of a scalar, too."""
    (call,) = recorded(tmp_path, dump([entry("nccl:gather", [[]], [[]])], 1)).calls
    assert (((cr.Spec(()),),), 0) == (call.arguments["output_tensors"], call.arguments["root_rank"])


def test_a_peer_that_is_not_told_is_unknown_and_makes_no_error(tmp_path: Path) -> None:
    entries = [entry(f"nccl:{name}", [[4]], [[4]], is_p2p=True) for name in ("send", "recv")]
    assert [] == of_ranks(tmp_path, entries)
    send, receive = (recorded(tmp_path, dump([one]), f"rank{rank}.json").calls[0] for rank, one in enumerate(entries))
    assert (cr.UNKNOWN, cr.UNKNOWN) == (send.arguments["dst"], receive.arguments["src"])


def test_a_monitored_barrier_is_no_barrier(tmp_path: Path) -> None:
    """The one is sends and receives, and the other an all_reduce."""
    names = ("gloo:monitored_barrier", "gloo:barrier")
    calls = [recorded(tmp_path, dump([entry(name, [], [])])).calls[0] for name in names]
    assert ["c10d::monitored_barrier_", "c10d::barrier"] == [call.op for call in calls]


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


def test_what_a_mode_sees_is_written_before_it_is_carried_out(tmp_path: Path, group: dist.ProcessGroup) -> None:
    """With the line and the index, and no more once the writer is closed."""
    with cr.RuleMode() as ledger:
        with LedgerWriter(tmp_path / "rank{rank}.jsonl") as write:
            write.follow(ledger)
            for count in range(1, 4):
                dist.all_reduce(torch.ones(count))
                recording = read(write.path)
                assert (1, 4, count) == (recording.rank, recording.world_size, len(recording.calls))
        dist.barrier()
    written, live = recording.calls[-1], ledger.calls[2]
    assert (live.op, live.group, live.arguments) == (written.op, written.group, written.arguments)
    assert (live.source, live.index, live.blocking) == (written.source, written.index, written.blocking)
    assert (3, 4) == (len(read(write.path).calls), len(ledger))


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


def test_the_example_of_the_documentation_compares_the_ranks_that_were_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of four dumps one has a hole, and one rank of the world has none: that is no finding, and a wrong size is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dumps").mkdir()
    example = (DOCS / "recordings.md").read_text().split("```python\n")[1].split("```")[0]
    for wrong in (False, True):
        for rank in range(4):
            entries = [entry("nccl:all_reduce", [[4]], [[4]], place) for place in (1, 2)]
            if rank == 2:
                entries[0]["profiling_name"] = None
            if rank == 3 and wrong:
                entries[1] |= {"input_sizes": [[5]], "output_sizes": [[5]]}
            recorded(tmp_path / "dumps", dump(entries, 5), f"rank{rank}.json")
        exec(compile(example, "recordings.md", "exec"), {})
        shown = capsys.readouterr().out
        assert (wrong, int(wrong)) == ("ranks disagree on s" in shown, shown.count("[AR"))


def test_every_note_is_in_the_documentation() -> None:
    """With its id and its severity."""
    text = (DOCS / "recordings.md").read_text()
    for id_, note in NOTES.items():
        assert f"| {id_} | {note.severity} |" in text


def test_the_ranks_of_a_shortened_list_are_told_by_start_and_stride(tmp_path: Path) -> None:
    """Where they are evenly spread; else torch writes a stride of 0."""
    for start, stride, ranks in ((1, 2, tuple(range(1, 81, 2))), (0, 0, ()), (None, 1, ()), (-1, 1, ())):
        event = param("allreduce", 1, **counts(4, 4))
        event["args"] |= {
            "Process Group Ranks": "[1, 3, ..., 79]", "Group size": 40,
            "Global rank start": start, "Global rank stride": stride,
        }  # fmt: skip
        (call,) = recorded(tmp_path, {"traceEvents": [event], "distributedInfo": INFO}).calls
        assert (40, ranks) == (call.group.size, call.group.ranks)
