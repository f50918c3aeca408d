"""Calls that make process groups: as data, between ranks, in the dry run, and in place of torch's own functions."""

import functools
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d, new_group
from torch.distributed.device_mesh import init_device_mesh

import collective_rules as cr
from collective_rules.comparison import compare
from collective_rules.mode import group_making
from collective_rules.recordings import Recording, read, write_ledger
from collective_rules.records import from_record, to_record

WORLD = (0, 1, 2, 3)


def made(rank: int, members: tuple[int, ...], name: str, line: str = "a.py:1") -> cr.Call:
    """A rank of four says which ranks a group has; it waits for them, as with gloo."""
    parent = cr.Group(4, rank, "subgroups of 0", WORLD)
    call = cr.call("dist::new_group", group=parent, members=members, name=name)
    return attrs.evolve(call, source=line, blocking=rank in members)


def reduced(rank: int, ranks: tuple[int, ...], name: str, *, waits: bool = True) -> cr.Call:
    group = cr.Group(len(ranks), ranks.index(rank), name, ranks)
    return cr.call("c10d::allreduce_", group=group, tensors=[(4,)], async_op=not waits)


def restarted(rank: int) -> cr.Call:
    return cr.call("dist::init_process_group", group=cr.Group(4, rank, "init_process_group", WORLD))


PAIRS = {0: (0, 3), 3: (0, 3), 1: (1, 2), 2: (1, 2)}

WRONG = {
    "other ranks": ([made(rank, PAIRS[rank], "1") for rank in WORLD], ["NG1"]),
    "a group of some": (
        [
            call
            for rank in WORLD
            for call in (
                *([made(rank, (0, 1), "1")] if rank < 2 else []),
                made(rank, WORLD, "2" if rank < 2 else "1"),
                reduced(rank, WORLD, "0"),
                reduced(rank, WORLD, "2" if rank < 2 else "1"),
            )
        ],
        ["NG3"],
    ),
    "another order": (
        [
            made(rank, pair, str(number))
            for rank in WORLD
            for number, pair in enumerate(((0, 1), (2, 3)) if rank else ((2, 3), (0, 1)), 1)
        ],
        ["NG2"],
    ),
    "other numbers": ([made(rank, WORLD, "1" if rank else "2") for rank in WORLD], ["NG1"]),
    "one rank alone": ([made(0, (0, 1), "1")], ["NG3"]),
    "one number": ([reduced(rank, PAIRS[rank], "1") for rank in WORLD], ["GROUP1"]),
    "one number in another order": ([reduced(rank, (0, 1) if rank else (1, 0), "1") for rank in (0, 1)], ["GROUP1"]),
    "two numbers": ([reduced(rank, WORLD, "12"[rank // 2]) for rank in WORLD], ["GROUP2"]),
    "a circle": (
        [
            call
            for rank in WORLD
            for call in (
                (made(rank, (0, 1), "1"), reduced(rank, WORLD, "0"))
                if rank == 0
                else (reduced(rank, WORLD, "0"), made(rank, (0, 1), "1"))
            )
        ],
        ["WAIT1"],
    ),
}

LEGAL = {
    "behind a call that does not wait": [
        call
        for rank in WORLD
        for call in (
            (made(rank, WORLD, "1"), reduced(rank, WORLD, "0", waits=False))
            if rank == 0
            else (reduced(rank, WORLD, "0", waits=False), made(rank, WORLD, "1"))
        )
    ],
    "a group of others behind a call": [
        call
        for rank in WORLD
        for call in (
            (made(rank, (0, 1), "1"), reduced(rank, WORLD, "0"))
            if rank < 2
            else (reduced(rank, WORLD, "0"), made(rank, (0, 1), "1"))
        )
    ],
    "numbers that start anew": [
        call
        for rank in WORLD
        for call in (
            made(rank, (0, 1), "1"),
            *([reduced(rank, (0, 1), "1")] if rank < 2 else []),
            restarted(rank),
            made(rank, (2, 3), "1"),
            *([reduced(rank, (2, 3), "1")] if rank > 1 else []),
        )
    ],
    "numbers that start anew unseen": [
        *(reduced(rank, (0, 1), "1") for rank in (0, 1)),
        *(reduced(rank, (0, 1, 2), "1") for rank in (0, 1, 2)),
    ],
    "a description": [reduced(rank, PAIRS[rank], "tp") for rank in WORLD],
    "two groups of the same ranks": [reduced(rank, WORLD, name) for rank in WORLD for name in ("1", "2")],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_disagreement_about_groups_is_one_finding_with_its_cause(wrong: str) -> None:
    calls, ids = WRONG[wrong]
    assert ids == [finding.id for finding in cr.agree(calls)]


@pytest.mark.parametrize("legal", LEGAL)
@pytest.mark.parametrize("backend", [None, "gloo", "nccl"])
def test_groups_that_are_made_alike_are_no_finding(legal: str, backend: str | None) -> None:
    assert () == cr.agree(LEGAL[legal], backend)


def test_recordings_tell_of_one_number_with_two_lists_of_ranks() -> None:
    def compared(*, same_names: bool) -> list[str]:
        recordings = [
            Recording(f"{rank}", "ledger", rank, 4, (reduced(rank, PAIRS[rank], "1"),), same_names=same_names)
            for rank in WORLD
        ]
        return [finding.id for finding in compare(recordings).findings]

    assert ["GROUP1"] == compared(same_names=True)
    assert [] == compared(same_names=False)


def test_a_call_that_makes_a_group_is_a_record_like_any_other() -> None:
    call = made(1, (0, 1), "1")
    assert call == from_record(to_record(call))
    assert (0, 0) == (cr.traffic(call).sent, cr.traffic(call).read)
    assert () == cr.check(call, "nccl")


@pytest.fixture
def world() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=timedelta(minutes=20))
    yield
    dist.destroy_process_group()


def make_another() -> None:
    dist.new_group()


FUNCTIONS = tuple((owner, name, getattr(owner, name)) for owner, name in (
    (distributed_c10d, "_new_group_with_tag"),
    (distributed_c10d, "split_group"),
    (dist, "split_group"),
    (distributed_c10d, "_update_default_pg"),
))  # fmt: skip


def in_place() -> list[bool]:
    return [getattr(owner, name) is function for owner, name, function in FUNCTIONS]


@pytest.mark.usefixtures("world")
def test_every_way_to_make_a_group_is_seen_and_torch_is_as_before() -> None:
    with cr.RuleMode() as ledger, cr.guard(agree=False) as guarded:
        assert not any(in_place())
        new_group([0])
        dist.new_group()
        dist.new_subgroups(1)
        init_device_mesh("cpu", (1,), mesh_dim_names=("dp",))
        other = threading.Thread(target=make_another)
        other.start()
        other.join()
        dist.new_group([0], use_local_synchronization=True)
    assert all(in_place())
    seen = [(each.call.arguments["members"], each.call.group.name, each.source != "") for each in ledger.entries]
    assert len(seen) == 5  # a mesh of all ranks makes no group
    assert {((0,), "subgroups of 0", True), ((0,), "subgroups of (0,)", True)} == set(seen)
    assert len(guarded.ledger.entries) == len(ledger.entries)


@pytest.mark.usefixtures("world")
def test_a_replacement_that_another_tool_made_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    own = distributed_c10d._new_group_with_tag
    with cr.RuleMode() as ledger:
        told = distributed_c10d._new_group_with_tag
        monkeypatch.setattr(distributed_c10d, "_new_group_with_tag", functools.partial(told))
        dist.new_group()
    dist.new_group()
    assert 1 == ledger.count
    monkeypatch.undo()
    distributed_c10d._new_group_with_tag = own


@pytest.mark.usefixtures("world")
def test_a_call_that_torch_refuses_is_refused_by_torch() -> None:
    with cr.RuleMode() as ledger:
        for arguments in ({"ranks": [0, 0]}, {"ranks": [7]}, {"ranks": 3}):
            with pytest.raises((ValueError, TypeError)):
                dist.new_group(**arguments)
    assert 0 == ledger.count


@pytest.mark.usefixtures("world")
def test_a_group_made_within_a_limit_has_its_own_time_out_afterwards() -> None:
    limits: list[Any] = []

    def make(**arguments: Any) -> Any:
        limits.append(arguments["timeout"])
        return distributed_c10d._new_group_with_tag(**arguments)

    group = group_making._make_within(make, {"ranks": [0], "timeout": timedelta(minutes=7)}, 5.0)
    assert [timedelta(seconds=5)] == limits
    assert timedelta(minutes=7) == group._get_backend(torch.device("cpu")).options._timeout


def test_a_dry_run_tells_which_groups_each_rank_makes(tmp_path: Path) -> None:
    with cr.dry_run(4, rank=3) as ledger:
        dist.init_process_group("gloo")
        for pair in ([0, 1], [2, 3]):
            dist.new_group(pair)
        dist.destroy_process_group()
        dist.init_process_group("gloo")
        dist.new_group([0, 3])
    told = [(each.call.op, each.call.attribute("members"), each.call.attribute("name")) for each in ledger.entries]
    assert told == [
        ("dist::new_group", (0, 1), "1"),
        ("dist::new_group", (2, 3), "2"),
        ("dist::init_process_group", None, None),
        ("dist::new_group", (0, 3), "1"),
    ]
    assert [True, False, True, False] == [each.asynchronous for each in ledger.entries]
    write_ledger(ledger, tmp_path / "rank3.jsonl", rank=3, world_size=4)
    recording = read(tmp_path / "rank3.jsonl")
    assert ledger.calls == recording.calls
    assert recording.same_names
