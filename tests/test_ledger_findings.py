"""Findings stand in the ledger's file, for whoever looks at it after the job has ended."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

import collective_rules as cr
from collective_rules.comparison import compare
from collective_rules.finding import Finding
from collective_rules.recordings import LedgerWriter, read, write_ledger

FOUND = Finding(
    "AR2", "error", "ranks disagree on dtype   [AR2]\n  more", (2, 3), {"dtype": {2: "a", 3: (1, None)}}, "tp", 4
)


@pytest.fixture
def fake_group() -> Any:
    dist.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("fake_group")
@pytest.mark.parametrize("at_once", [True, False])
def test_findings_of_a_block_are_read_back(at_once: bool, tmp_path: Path) -> None:
    """Written as they are found, or at the end; the calls are read as before."""
    path = tmp_path / "rank1.jsonl"
    writer = LedgerWriter(path) if at_once else None
    with cr.RuleMode(check="record") as ledger:
        if writer is not None:
            writer.follow(ledger)
        dist.all_reduce(torch.ones(3, 4)[:, ::2])
        if writer is not None:
            assert len(ledger.findings) == len(read(path).told)
    if writer is None:
        write_ledger(ledger, path)
    else:
        writer.close()
    recording = read(path)
    assert ledger.findings
    assert [(each.id, each.message, each.ranks) for each in ledger.findings] == [
        (each.id, each.message, each.ranks) for each in recording.told
    ]
    assert (1, ()) == (len(recording.calls), recording.findings)


def test_a_finding_is_read_as_it_was_written(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path / "rank2.jsonl", rank=2, world_size=4) as write:
        write.find(FOUND)
    assert (FOUND,) == read(write.path).told


@pytest.mark.parametrize(
    "record",
    [None, {}, {"id": 1, "severity": "error", "message": ""}, {"id": "A", "severity": "bad", "message": ""},
     {"id": "A", "severity": "error", "message": "", "names": {"pairs": [[{"pairs": []}, 1]]}}],
)  # fmt: skip
def test_what_is_no_finding_is_noted(record: Any, tmp_path: Path) -> None:
    path = tmp_path / "rank0.jsonl"
    LedgerWriter(path, rank=0, world_size=1).close()
    path.write_text(path.read_text() + json.dumps({"finding": record}) + "\n")
    assert ((), ["READ2"]) == (read(path).told, [each.id for each in read(path).findings])


def test_a_comparison_says_what_was_found_while_the_ranks_ran(tmp_path: Path) -> None:
    recordings = []
    for rank in range(2):
        with LedgerWriter(tmp_path / f"rank{rank}.jsonl", rank=rank, world_size=2) as write:
            write.find(FOUND)
        recordings.append(read(write.path))
    assert "While it ran, ranks 0, 1 found error: ranks disagree on dtype   [AR2]" in compare(recordings).notes
