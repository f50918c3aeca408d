"""Traces that others recorded: every collective in them is read, none is called wrong, a damaged number is found."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.recordings import Recording, SourceError, read
from collective_rules.recordings.call_builder import built
from collective_rules.recordings.events import Event, FieldReader
from collective_rules.recordings.groups import RecordedGroups
from collective_rules.recordings.recording import Notes
from collective_rules.recordings.spellings import dtype_of, spelled
from tests.test_recordings_damaged import read_or_refuse

TRACES = Path(__file__).parent.parent.parent / "shared" / "traces"
pytestmark = pytest.mark.skipif(not TRACES.is_dir(), reason="../shared/traces is not here")

DLRM = [f"param_dlrm_w8_rank{rank}.json" for rank in range(4)]
WHOLE = {
    "chakra_102_w2.json": ("execution trace", {"c10d::allgather_": 10}, {2}),
    "hta_nccl_data_w2.json": ("kineto", {"c10d::allreduce_": 15, "c10d::broadcast_": 6}, {2}),
    "param_resnet_w2.json": ("execution trace", {"c10d::allreduce_": 15, "c10d::broadcast_": 6}, {2}),
    "tracelens_b200_w8.json": ("kineto", {"c10d::_allgather_base_": 1}, {8}),
    **{name: ("execution trace", {"c10d::alltoall_base_": 5, "c10d::allreduce_": 3}, {8}) for name in DLRM},
}
"""By file: the format, how many calls of each op, the groups' sizes."""


def ops_in(name: str) -> Counter[str]:
    """The ops in a file, counted without the code under test: by the names of its events."""
    document = json.loads((TRACES / name).read_text())
    return Counter(
        event["name"] for event in document.get("traceEvents", document.get("nodes")) if event["name"][:6] == "c10d::"
    )


@pytest.mark.parametrize("name", WHOLE)
def test_every_collective_is_read_once(name: str) -> None:
    """What is inside of an op, and waits, are no calls of their own."""
    form, ops, sizes = WHOLE[name]
    recording = read(TRACES / name)
    assert form == recording.format
    assert ops == ops_in(name) == Counter(call.op for call in recording.calls)
    assert sizes == {call.group.size for call in recording.calls}
    assert {"READ5"} >= {finding.id for finding in recording.findings}


@pytest.mark.parametrize("name", WHOLE)
def test_no_call_of_a_real_trace_is_called_wrong(name: str) -> None:
    """They all ran."""
    assert [] == [finding for call in read(TRACES / name).calls for finding in cr.check(call)]


def test_the_world_is_not_the_group() -> None:
    """Of 16 ranks, groups of 8: what shows its size is read, the rest is undecidable, and nothing is an error."""
    recording = read(TRACES / "hta_negq_w16_rank0.json")
    assert (16, 0) == (recording.world_size, recording.rank)
    assert {(8, "of 8")} == {(call.group.size, call.group.name) for call in recording.calls}
    assert {"c10d::_reduce_scatter_base_": 10, "c10d::_allgather_base_": 10} == Counter(
        call.op for call in recording.calls
    )
    missing = {finding.names["what"]: finding.names["count"] for finding in recording.findings if finding.id == "READ4"}
    assert {"c10d::alltoall_base_": 55, "c10d::allreduce_": 10} == missing
    assert ops_in("hta_negq_w16_rank0.json").total() == recording.read["collectives"] == 85
    assert () == tuple(finding for call in recording.calls for finding in cr.check(call))


def test_shapes_come_from_wherever_a_trace_has_them() -> None:
    """From the op, or from how many elements `record_param_comms` counts."""
    broadcast = next(call for call in read(TRACES / "hta_nccl_data_w2.json").calls if call.op == "c10d::broadcast_")
    assert (cr.Spec((53120,)),) == broadcast.arguments["tensors"]
    assert cr.UNKNOWN is broadcast.arguments["root_rank"]
    (gather,) = read(TRACES / "tracelens_b200_w8.json").calls
    assert ((1, 25136), (8, 25136)) == (gather.arguments["input_tensor"].shape, gather.arguments["output_tensor"].shape)
    assert tuple(range(8)) == gather.group.ranks


def test_a_root_is_told_apart_from_a_rank() -> None:
    """NCCL writes a broadcast's root where other collectives have the rank."""
    recording = read(TRACES / "param_resnet_w2.json")
    assert {1} == {call.group.rank for call in recording.calls}
    assert {0} == {call.arguments["root_rank"] for call in recording.calls if call.op == "c10d::broadcast_"}


def dlrm(*changed: Recording) -> list[Recording]:
    other = {recording.rank: recording for recording in changed}
    return [other.get(rank) or read(TRACES / name) for rank, name in enumerate(DLRM)]


def agreed(recordings: list[Recording]) -> tuple[cr.Finding, ...]:
    return cr.agree([call for recording in recordings for call in recording.calls], ranks=range(4))


def test_the_four_ranks_of_a_real_run_agree() -> None:
    """Four of eight: of the others nothing is said."""
    recordings = dlrm()
    assert [0, 1, 2, 3] == [recording.rank for recording in recordings]
    assert () == agreed(recordings)


def change(text: str, place: str) -> str:
    """Change one number of rank 2's file, wherever its event writes it down."""
    document = json.loads(text)
    nodes = [node for node in document["nodes"] if node["name"] == "c10d::alltoall_base_"]
    if place == "a split size":
        nodes[3]["inputs"][4][1] += 1
    elif place == "what it sends to rank 1, to rank 3's cost":
        nodes[3]["inputs"][4][1] += 5
        nodes[3]["inputs"][4][3] -= 5
    elif place == "a size of an all_reduce":
        next(node for node in document["nodes"] if node["name"] == "c10d::allreduce_")["input_shapes"][0][0][0] += 1
    else:
        nodes[2]["input_types"][1] = "Tensor(double)"
    return json.dumps(document)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("a split size", "S"),
        ("what it sends to rank 1, to rank 3's cost", "S"),
        ("a size of an all_reduce", "s"),
        ("a dtype", "dtype"),
    ],
)
def test_one_changed_number_is_found_and_named(tmp_path: Path, place: str, name: str) -> None:
    """With its rank: by that rank's own call, or between it and the others."""
    path = tmp_path / DLRM[2]
    path.write_text(change((TRACES / DLRM[2]).read_text(), place))
    changed = read(path)
    own = [finding for call in changed.calls for finding in cr.check(call) if finding.severity == "error"]
    between = [finding for finding in agreed(dlrm(changed)) if finding.severity == "error"]
    assert own or between
    for finding in own + between:
        assert 2 in finding.ranks
    assert any(name in str(list(finding.names)) + finding.message for finding in own + between)


@pytest.mark.parametrize("place", ["the splits", "the shape", "the dtype", "the number of elements"])
def test_a_number_changed_in_the_backends_record_alone_is_found(tmp_path: Path, place: str) -> None:
    """The two are of one call, and must agree."""
    document = json.loads((TRACES / DLRM[2]).read_text())
    nodes = [node for node in document["nodes"] if "all_to_allv" in node["inputs"]]
    if place == "the splits":
        nodes[1]["inputs"][5][0] += 1
    elif place == "the shape":
        nodes[1]["input_shapes"][0][0] += 1
        nodes[1]["inputs"][0][3] += 1
    elif place == "the dtype":
        nodes[1]["input_types"][0] = "Tensor(double)"
    else:
        nodes[1]["inputs"][0][3] += 1
    path = tmp_path / DLRM[2]
    path.write_text(json.dumps(document))
    found = [finding for finding in read(path).findings if finding.severity == "error"]
    assert {"READ12"} == {finding.id for finding in found}
    assert {2} == {finding.names["rank"] for finding in found}


ROWS = [
    ("c10d::allreduce_", "output_shapes", (0, 0, 0)),
    ("c10d::allreduce_", "outputs", (0, 0, 3)),
    ("c10d::allreduce_", "inputs", (0, 0, 4)),
    ("nccl:all_reduce", "input_shapes", (0, 0)),
    ("nccl:all_reduce", "inputs", (0, 3)),
    ("nccl:all_to_all", "input_shapes", (0, 0)),
    ("nccl:all_to_all", "inputs", (0, 3)),
    ("nccl:all_to_all", "inputs", (0, 4)),
    ("record_param_comms", "output_shapes", (0, 0)),
    ("record_param_comms", "outputs", (0, 3)),
]
"""Where a trace says again what a tensor is."""


def reread(directory: Path, document: Any) -> Recording:
    """Read rank 2's trace after a change."""
    changed = directory / DLRM[2]
    changed.write_text(json.dumps(document))
    return read(changed)


@pytest.mark.parametrize(("name", "field", "path"), ROWS, ids=str)
def test_a_tensor_is_the_same_in_every_row_of_a_call(
    tmp_path: Path, name: str, field: str, path: tuple[int, ...]
) -> None:
    """Its shape, its number of elements and their size are written down up to four times."""
    document = json.loads((TRACES / DLRM[2]).read_text())
    holder = next(node for node in document["nodes"] if node["name"] == name and node[field])[field]
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] += 1
    assert ["READ12"] == [found.id for found in reread(tmp_path, document).findings if found.severity == "error"][:1]


def test_a_dtype_is_the_same_in_every_row_of_a_call(tmp_path: Path) -> None:
    document = json.loads((TRACES / DLRM[2]).read_text())
    next(node for node in document["nodes"] if node["name"] == "nccl:all_reduce")["input_types"] = ["Tensor(int)"]
    assert "one tensor is torch.float32, and torch.int32" in reread(tmp_path, document).findings[0].message


def test_each_row_of_a_summary_is_legal() -> None:
    """A Llama-70B run of 8 ranks, as counts: each is read as the collective that it is."""
    notes = Notes("rows")
    reader, events, groups = FieldReader(notes), [], RecordedGroups(notes)
    with (TRACES / "tracelens_llama70b_fsdp_w8.csv").open() as file:
        for place, row in enumerate(csv.DictReader(file)):
            dtype = dtype_of(row["dtype"])
            read_, written = (reader.count(int(row[f"{way} msg nelems"]), dtype, way, "") for way in ("In", "Out"))
            assert read_ is not None
            assert written is not None
            event = Event(spelled(row["Collective name"])[1], f"row {place}", place)
            event.reads, event.writes, event.counted = (read_,), (written,), True
            event.group, event.size = row["Process Group Name"], int(row["Group size"])
            groups.tell(event.group, event.size, ())
            events.append(event)
    assert events
    count = len(events)
    calls = list(built(events, groups, 0, notes))
    assert count == len(calls)
    assert {"c10d::_reduce_scatter_base_", "c10d::_allgather_base_", "c10d::allreduce_"} == {call.op for call in calls}
    assert [] == [finding for call in calls for finding in cr.check(call)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_trace_gives_findings_or_one_clear_error(tmp_path: Path, data: st.DataObject) -> None:
    """Bytes changed, or the file cut, anywhere; whatever is read can be judged."""
    name = data.draw(st.sampled_from([*WHOLE, "hta_negq_w16_rank0.json"]))
    raw = bytearray((TRACES / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + 1] = data.draw(st.sampled_from([b"", b"0", b"-", b"NaN", b'"', b"}", b"[", b"\xff"]))
    path = tmp_path / name
    path.write_bytes(raw[: data.draw(st.integers(1, len(raw)))] if data.draw(st.booleans()) else raw)
    read_or_refuse(path)


def test_what_is_no_recording_is_refused_in_words() -> None:
    """A table of sums is none."""
    with pytest.raises(SourceError, match=r"is no recording that is known .*Flight Recorder dumps"):
        read(TRACES / "tracelens_llama70b_fsdp_w8.csv")
