"""gloo's own Flight Recorder is a second witness: what the ledger says was sent is what gloo was given."""

import json
from pathlib import Path

import pytest

from collective_rules.records import from_record
from tests.example_runs import EXAMPLES, run_example
from tests.flight_recorded import expected_dump, read_dump, recorded

pytestmark = pytest.mark.xdist_group("examples")

POINT_TO_POINT = {"c10d::send", "c10d::recv_"}
SILENT = "pipeline"
"""The example that has nothing but point-to-point calls, of which the recorder says nothing."""


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_the_recorder_holds_what_the_ledger_says(script: Path) -> None:
    """On every rank, by group and in order: the same collectives, sizes and dtypes, and all else counted."""
    for rank in run_example(script):
        calls = [from_record(record) for record in rank["records"]]
        dump = read_dump(rank["recorder"])
        assert expected_dump(calls) == dump
        assert (script.stem == SILENT) == (not dump)
        assert {call.op for call in calls if not list(recorded(call))} <= POINT_TO_POINT


@pytest.mark.parametrize("name", ["ddp", "fsdp2_tp"])
def test_another_ledger_is_told_apart(name: str) -> None:
    """One with a call less, or in which a call is of another dtype, or of another group."""
    rank = run_example(next(path for path in EXAMPLES if path.stem == name))[1]
    records, dump = rank["records"], read_dump(rank["recorder"])
    for place in (0, len(records) // 2, len(records) - 1):
        first, record, last = records[:place], json.dumps(records[place]), records[place + 1 :]
        others = [first + last]
        for was, becomes in (
            ('"int32"', '"int8"'),
            ('"float32"', '"float64"'),
            ('"int64"', '"int32"'),
            ('"name": "', '"name": "1'),
        ):
            others += [[*first, json.loads(record.replace(was, becomes)), *last]] if was in record else []
        assert len(others) > 2
        for other in others:
            assert expected_dump(map(from_record, other)) != dump
