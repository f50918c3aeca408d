"""A call is judged by the limits of the backend that carries it out: by the devices of its tensors, and its group's."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

import collective_rules as cr
from collective_rules import run_script
from collective_rules.mode.recorder import NO_TABLE

MIXED = "cpu:gloo,cuda:nccl"
FLOAT8 = torch.float8_e4m3fn


def _float8(device: str) -> None:
    own = torch.zeros(8, dtype=FLOAT8, device=device)
    dist.all_gather_into_tensor(torch.zeros(8 * dist.get_world_size(), dtype=FLOAT8, device=device), own)


def _average(device: str) -> None:
    dist.all_reduce(torch.zeros(4, dtype=torch.int32, device=device), op=dist.ReduceOp.AVG)


def _stacked(device: str) -> None:
    dist.all_gather_into_tensor(torch.zeros(dist.get_world_size(), 4, device=device), torch.zeros(4, device=device))


CALLS = pytest.mark.parametrize(
    ("send", "limit"), [(_float8, "GLOO2"), (_average, "GLOO3"), (_stacked, "GLOO5")], ids=["float8", "avg", "stacked"]
)


def _backends(ledger: cr.Ledger) -> list[str | None]:
    return [entry.facts.backend for entry in ledger.entries]


def _gloo_limits(ledger: cr.Ledger) -> list[str]:
    return [finding.id for finding in ledger.findings if finding.id.startswith("GLOO")]


def _name(group: dist.ProcessGroup, backends: str) -> None:
    """Have a fake group stand for one of other backends, as a dry run has it."""
    dist.distributed_c10d._world.pg_backend_config[group] = backends


# -- a dry run


@CALLS
@pytest.mark.parametrize("backend", [MIXED, None, "cpu:gloo,cuda:speedy"])
def test_the_devices_of_a_dry_run_decide_though_all_tensors_are_on_the_cpu(
    send: Callable[[str], None], limit: str, backend: str | None
) -> None:
    """The limits of gloo hold for the tensors that the program makes on the cpu, not for those on the accelerator."""
    with cr.dry_run(4, check="record") as ledger:
        dist.init_process_group(backend)
        send("cuda")
        assert [] == _gloo_limits(ledger)
        send("cpu")
    assert [limit] == _gloo_limits(ledger)
    assert [(backend or MIXED).rpartition(":")[2].partition(",")[0], "gloo"] == _backends(ledger)


@pytest.mark.parametrize(
    ("backend", "expected"), [(MIXED, "gloo"), ("gloo", "gloo"), ("nccl", "nccl"), ("cpu:gloo", "gloo"), (None, "gloo")]
)
def test_a_program_without_an_accelerator_goes_by_the_cpu(backend: str | None, expected: str) -> None:
    """To name a backend of an accelerator is not to use it; where it is the only one, it carries all."""
    with cr.dry_run(4, check="record") as ledger:
        dist.init_process_group(backend)
        dist.all_reduce(torch.ones(3))
        dist.barrier()
    assert [expected, expected] == _backends(ledger)


def test_a_barrier_with_device_ids_is_the_accelerators() -> None:
    """Its tensor is one that torch makes, on the device that `device_ids` names."""
    with cr.dry_run(4, check="record") as ledger:
        dist.init_process_group(MIXED)
        dist.barrier()
        dist.barrier(device_ids=[0])
    assert ["gloo", "nccl"] == _backends(ledger)


def test_groups_of_a_dry_run_have_the_backends_that_the_script_names() -> None:
    """A group without a backend of its own has those of the world, and torch's own record says so."""
    with cr.dry_run(4, check="record") as ledger:
        dist.init_process_group(MIXED)
        groups = [dist.new_group([0, 1]), dist.new_group([0, 1], backend="gloo"), dist.new_group(backend="nccl")]
        for group in groups:
            dist.all_reduce(torch.ones(3, device="cuda"), group=group)
        assert [MIXED, "cpu:gloo,cuda:gloo", "cuda:nccl"] == [dist.get_backend_config(group) for group in groups]
    assert [None] * 3 + ["nccl", "gloo", "nccl"] == _backends(ledger)  # making a group meets no backend


MOVES: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "made on the cpu": (lambda: torch.ones(4), "gloo"),
    "computed on the cpu": (lambda: (torch.ones(4) + 1)[1:], "gloo"),
    "integers on the cpu": (lambda: torch.arange(4) * 2, "gloo"),
    "like one on the cpu": (lambda: torch.zeros_like(torch.ones(4)), "gloo"),
    "moved to the cpu": (lambda: torch.ones(4, device="cuda").cpu(), "gloo"),
    "put on the cpu": (lambda: torch.ones(4, device="cuda").to("cpu", torch.float64), "gloo"),
    "put on the cpu where it is": (lambda: torch.ones(4).to("cpu"), "gloo"),
    "made on the accelerator": (lambda: torch.ones(4, device="cuda"), "nccl"),
    "still there": (lambda: [x := torch.ones(4, device="cuda"), x.cpu()][0], "nccl"),
    "moved to the accelerator": (lambda: torch.ones(4).cuda(), "nccl"),
    "put on the accelerator": (lambda: torch.ones(4).to("cuda"), "nccl"),
    "put on another's device": (lambda: torch.ones(4).to(torch.ones(1, device="cuda").device), "nccl"),
    "made on another's device": (lambda: torch.ones(4, device=torch.ones(1, device="cuda").device), "nccl"),
    "like one, on the accelerator": (lambda: torch.zeros_like(torch.ones(4), device="cuda"), "nccl"),
    "of both": (lambda: torch.ones(4) * torch.ones((), device="cuda"), "nccl"),
    "of a module": (lambda: torch.nn.Linear(2, 2).to("cuda").weight.data, "nccl"),
}


@pytest.mark.parametrize("made", MOVES)
def test_a_dry_run_follows_what_is_on_the_cpu(made: str) -> None:
    """What is not certainly on the cpu is taken to be on the accelerator that the program uses."""
    make, expected = MOVES[made]
    with cr.dry_run(4, check="record") as ledger:
        dist.init_process_group(MIXED)
        torch.ones(1, device="cuda")
        dist.all_reduce(make())
    assert [expected] == _backends(ledger)


def test_a_default_device_is_where_tensors_are() -> None:
    """A program that sets the accelerator as its default names no device afterwards."""
    with cr.dry_run(4, check="record") as ledger:
        dist.init_process_group(MIXED)
        torch.set_default_device("cuda")
        dist.all_reduce(torch.ones(3))
        torch.set_default_device("cpu")
        with torch.device("cuda"):
            dist.all_reduce(torch.ones(3))
        dist.all_reduce(torch.ones(3, device="cpu"))
    assert ["nccl", "nccl", "gloo"] == _backends(ledger)


# -- a live group


@CALLS
@pytest.mark.parametrize(("device", "expected"), [("cpu", "gloo"), ("cuda", "nccl")])
def test_the_device_of_the_tensors_decides(
    group: dist.ProcessGroup, send: Callable[[str], None], limit: str, device: str, expected: str
) -> None:
    """Also of fake tensors, for devices that this machine does not have."""
    _name(group, MIXED)
    with FakeTensorMode(), cr.RuleMode(check="record", execute=False) as ledger:
        send(device)
    assert ([expected], [limit] if device == "cpu" else []) == (_backends(ledger), _gloo_limits(ledger))


@pytest.mark.parametrize(
    ("backends", "cpu", "cuda", "meta"),
    [
        ("cpu:gloo", "gloo", None, "gloo"),
        ("cuda:nccl", None, "nccl", "nccl"),
        (MIXED, "gloo", "nccl", "gloo"),
        ("xpu:xccl,cuda:nccl", None, "nccl", None),
    ],
)
def test_a_device_without_a_backend_has_none(
    group: dist.ProcessGroup, backends: str, cpu: str | None, cuda: str | None, meta: str | None
) -> None:
    """A meta tensor is on no device: it goes by the only backend, else the cpu's."""
    _name(group, backends)
    with FakeTensorMode(), cr.RuleMode(check="record", execute=False) as ledger:
        for device in ("cpu", "cuda", "meta"):
            dist.all_reduce(torch.ones(3, device=device))
    assert [cpu, cuda, meta] == _backends(ledger)


@pytest.mark.parametrize(
    ("name", "debug"),
    [("gloo", "OFF"), ("gloo", "DETAIL"), (None, "OFF"), ("cpu:gloo", "OFF"), ("cpu:gloo,cuda:fake", "OFF")],
)
def test_a_real_group_says_its_backends(monkeypatch: pytest.MonkeyPatch, name: str | None, debug: str) -> None:
    """The wrapper of TORCH_DISTRIBUTED_DEBUG=DETAIL hides none."""
    monkeypatch.setenv("TORCH_DISTRIBUTED_DEBUG", debug)
    dist.set_debug_level_from_env()
    try:
        dist.init_process_group(name, store=dist.HashStore(), rank=0, world_size=1)
        with cr.RuleMode(check=True) as ledger:
            dist.all_reduce(torch.ones(3))
            dist.barrier()
    finally:
        dist.destroy_process_group()
        monkeypatch.undo()
        dist.set_debug_level_from_env()
    assert ["gloo", "gloo"] == _backends(ledger)


# -- a backend without a table


@pytest.mark.parametrize("check", [True, "warn", "record"])
def test_a_backend_without_a_table_is_said_once(group: dist.ProcessGroup, check: bool | str) -> None:
    """What every backend needs is still checked."""
    _name(group, "cpu:speedy")
    with warnings.catch_warnings(record=True) as caught, cr.RuleMode(check=check) as ledger:
        warnings.simplefilter("always")
        for numel in (3, 4):
            dist.all_reduce(torch.ones(numel))
    (finding,) = ledger.findings
    assert (NO_TABLE, "warning") == (finding.id, finding.severity)
    assert finding.message.startswith("the limits of 'speedy' are not known: only what every backend needs is checked")
    assert ([] if check == "record" else [finding.message]) == [str(each.message) for each in caught]
    with pytest.raises(cr.CallError), cr.RuleMode(check=True, execute=False, backend=None):
        dist.all_gather_into_tensor(torch.ones(7), torch.ones(2))


@pytest.mark.parametrize(
    "options", [{"check": False}, {"check": "record", "backend": "gloo"}, {"check": "record", "backend": None}]
)
def test_nothing_is_said_where_the_groups_own_limits_are_not_asked_for(group: dist.ProcessGroup, options) -> None:
    """Without a check, or with limits that the user names."""
    _name(group, "cpu:speedy")
    with cr.RuleMode(execute=False, **options) as ledger:
        dist.all_reduce(torch.ones(3))
    assert [] == ledger.findings


def test_the_fake_backend_takes_every_call(group: dist.ProcessGroup) -> None:
    """It sends nothing, so there is nothing to say of its limits."""
    with cr.RuleMode(check=True) as ledger:
        dist.all_reduce(torch.ones(3))
    assert (["fake"], []) == (_backends(ledger), ledger.findings)


_PIPELINE = """
import os, sys, torch, torch.nn as nn, torch.distributed as dist
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

backend, device = sys.argv[1:]
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
dist.init_process_group(backend)


class Turned(nn.Linear):
    def forward(self, x):
        return super().forward(x).t().contiguous().t()


activation = torch.empty(8, 2, device=device).t().requires_grad_()
first = torch.empty(2, 8, device=device)
stage = PipelineStage(
    Turned(8, 8).to(device), rank, size, device, input_args=activation if rank else first, output_args=activation
)
schedule = ScheduleGPipe(stage, n_microbatches=2, loss_fn=lambda y, target: ((y - target) ** 2).mean())
whole = torch.ones(4, 8, device=device)
schedule.step(target=whole) if rank else schedule.step(whole)
"""


@pytest.mark.parametrize(("backend", "device", "limit"), [("nccl", "cuda", ""), ("gloo", "cpu", "GLOO19")])
def test_a_transposed_activation_travels_between_two_stages(
    tmp_path: Path, backend: str, device: str, limit: str
) -> None:
    """As torch's pipelining sends and receives it, into memory of its own order of dims."""
    path = tmp_path / "train.py"
    path.write_text(_PIPELINE)
    for rank in range(2):
        ledger = run_script(path, [backend, device], world_size=2, rank=rank).ledger
        sent = [call for call in ledger.calls if call.op == "c10d::send"]
        assert {limit} - {""} == {found.id for found in ledger.findings if found.severity == "error"}
        assert limit or rank or (1, 2) in {spec.stride for call in sent for spec in call.arguments["tensors"]}
