"""One real gloo run, recorded in every format at once: what each gives is what the ledger has, as far as it tells."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import collective_rules as cr
from collective_rules.recordings import Recording, read
from tests.commands import run_python

LEFT_OUT = {"async_op", "timeout", "sparse_indices", "root_tensor", "device_ids", "tensor", "tag"}
"""What is torch's own default where a recording says nothing."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("recorded")
    for _ in range(2):  # torch aborts a process now and then, as it ends
        done = run_python("-m", "tests.recorded", str(directory))
        if done.returncode == 0:
            return directory
        (directory / "store").unlink(missing_ok=True)
    raise AssertionError(f"it ended with {done.returncode}:\n{done.stderr[-2000:]}")


def ledger_of(run: Path, rank: int) -> Recording:
    return read(run / f"ledger{rank}.jsonl")


def compared(told: Any, live: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield ("untold" or "differs", where) for what a recording does not tell, or tells otherwise."""
    if isinstance(live, tuple) and isinstance(told, tuple):
        if len(told) != len(live):
            yield "differs", path
        for one, other in zip(told, live, strict=False):
            yield from compared(one, other, path)
    elif isinstance(live, cr.Spec) and isinstance(told, cr.Spec):
        for name in ("shape", "dtype", "stride", "device"):
            known = getattr(told, name)
            if known is None or (name == "stride" and told.shape is None):
                yield "untold", f"{path}.{name}"
            elif known != getattr(live, name):
                yield "differs", f"{path}.{name}: {known} for {getattr(live, name)}"
    elif told is cr.UNKNOWN or (told is None and live is not None):
        yield "untold", path
    elif told != live:
        yield "differs", f"{path}: {told} for {live}"


def compared_calls(told: cr.Call, live: cr.Call) -> Iterator[tuple[str, str]]:
    yield from compared((told.op, told.group.size, told.group.rank), (live.op, live.group.size, live.group.rank), "op")
    for name in live.arguments.keys() - LEFT_OUT:
        yield from compared(told.arguments.get(name), live.arguments[name], f"{live.op.split(':')[-1]}.{name}")
    for name in ("source", "index", *([] if live.row.rule.point_to_point else ["blocking"])):
        if getattr(told, name) not in (None, "", getattr(live, name)):
            yield "differs", f"{live.op} {name}: {getattr(told, name)} for {getattr(live, name)}"


def told_and_live(told: Recording, live: Recording) -> tuple[Counter[str], set[str]]:
    found = [each for pair in zip(told.calls, live.calls, strict=True) for each in compared_calls(*pair)]
    assert [] == [where for kind, where in found if kind == "differs"]
    return Counter(where for _, where in found), {where for _, where in found}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_ledger_is_the_calls_themselves(run: Path, rank: int) -> None:
    """Nothing is lost: the group's name and ranks, sources, indices, all arguments."""
    ledger = ledger_of(run, rank)
    assert ("ledger", rank, 2, ()) == (ledger.format, ledger.rank, ledger.world_size, ledger.findings)
    assert 23 == len(ledger.calls) == ledger.read["records"]
    assert {("0", (0, 1)), ("1", (0, 1))} == {(call.group.name, call.group.ranks) for call in ledger.calls}
    assert "tests/recorded.py" == Counter(call.source.partition(":")[0] for call in ledger.calls).most_common(1)[0][0]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_execution_trace_tells_all_but_reduce_ops_and_groups(run: Path, rank: int) -> None:
    """Of a functional op, it tells the reduce op too."""
    trace = read(run / f"et{rank}.json")
    assert ("execution trace", rank) == (trace.format, trace.rank)
    _, untold = told_and_live(trace, ledger_of(run, rank))
    reduces = ("allreduce_", "reduce_", "_reduce_scatter_base_", "reduce_scatter_", "allreduce_coalesced_")
    assert {f"{name}.reduce_op" for name in reduces} == untold
    assert {"", "0"} == {call.group.name for call in trace.calls}  # functional ones say it themselves


@pytest.mark.parametrize("rank", [0, 1])
def test_a_kineto_trace_tells_no_dtypes_of_lists_and_nothing_of_lists_of_lists(run: Path, rank: int) -> None:
    """Of gloo, which writes no `record_param_comms`."""
    trace = read(run / f"kineto{rank}.json")
    assert ("kineto", rank, 2) == (trace.format, trace.rank, trace.world_size)
    _, untold = told_and_live(trace, ledger_of(run, rank))
    assert {"dtype", "shape", "stride"} == {
        where.split(".")[-1] for where in untold if "tensor" in where and where.count(".") == 2
    }
    single = {"_allgather_base_", "_reduce_scatter_base_", "alltoall_base_", "all_gather_into_tensor"}
    assert set() == {where for where in untold if where.split(".")[0] in single and "reduce_op" not in where}
    whole = {where.split(".")[0] for where in untold if where.endswith("shape")}
    assert {"reduce_scatter_", *(["scatter_"] if rank == 0 else [])} == whole
    assert any(finding.id == "READ11" for finding in trace.findings)


GLOO_WRITES = {
    "c10d::_allgather_base_": "c10d::allgather_",
    "_c10d_functional::all_gather_into_tensor": "c10d::allgather_",
    "c10d::_reduce_scatter_base_": "c10d::allreduce_",
    "c10d::reduce_scatter_": "c10d::allreduce_",
    "_c10d_functional::reduce_scatter_tensor": "c10d::allreduce_",
    "_c10d_functional::all_reduce": "c10d::allreduce_",
}
"""What gloo's Flight Recorder calls an op, where that is another."""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_flight_recorder_dump_tells_shapes_dtypes_and_order(run: Path, rank: int) -> None:
    """Of gloo: no sends and receives, an all_reduce for each rank of a reduce_scatter, and no groups' sizes."""
    dump = read(run / f"fr{rank}.json")
    live = [call for call in ledger_of(run, rank).calls if call.group.name == "0" and not call.row.rule.point_to_point]
    live = [one for call in live for one in [call] * (2 if call.op == "c10d::reduce_scatter_" else 1)]
    assert [GLOO_WRITES.get(call.op, call.op) for call in live] == [call.op for call in dump.calls]
    assert [1] == [finding.names["count"] for finding in dump.findings if finding.id == "READ4"]
    for told, known in zip(dump.calls, live, strict=True):
        if told.op == known.op:
            found = list(compared_calls(cr.Call(told.row, told.group, told.arguments, told.source), known))
            untold = {where.split(".", 1)[1] for kind, where in found if kind == "untold"}
            differs = [where for kind, where in found if kind == "differs" and ".stride" not in where]
            assert [] == differs, known
            assert untold <= {"reduce_op", "root_rank", "input_split_sizes", "output_split_sizes"}
    numbered = [call.index for call in dump.calls]
    assert list(range(len(numbered))) == numbered


@pytest.mark.parametrize("rank", [0, 1])
def test_the_pickle_and_the_json_are_one_dump(run: Path, rank: int) -> None:
    """Save the source lines, which the JSON has not."""
    dumps = [read(run / f"fr{rank}"), read(run / f"fr{rank}.json")]
    assert dumps[0].read == dumps[1].read
    for one, other in zip(*(dump.calls for dump in dumps), strict=True):
        assert (one.op, one.group, one.arguments, one.index) == (other.op, other.group, other.arguments, other.index)
    assert {True} == {call.source.startswith("tests/recorded.py:") for call in dumps[0].calls}
    assert {""} == {call.source for call in dumps[1].calls}


@pytest.mark.parametrize("name", ["ledger{}.jsonl", "et{}.json", "kineto{}.json", "fr{}", "fr{}.json"])
def test_no_recording_of_a_correct_run_shows_an_error(run: Path, name: str) -> None:
    """Neither a rank's own calls nor those of both."""
    recordings = [read(run / name.format(rank)) for rank in range(2)]
    calls = [call for recording in recordings for call in recording.calls]
    assert {0, 1} == {recording.rank for recording in recordings}
    found = [*cr.agree(calls), *(finding for call in calls for finding in cr.check(call))]
    assert set() == {finding.message for finding in found if finding.severity != "undecidable"}
