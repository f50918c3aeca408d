"""The dry run: any size, no GPU, no memory, no network; what it cannot know it says, and it leaves nothing behind."""

from __future__ import annotations

import copy
import json
import os
import pkgutil
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from collective_rules.cli import main
from collective_rules.cli.dry_run import dry_run_script
from collective_rules.cli.output import CommandError
from collective_rules.dryrun import UnknownValueError, dry_run, run_script
from collective_rules.dryrun.patch_table import PATCHES
from collective_rules.errors import CallError, CollectiveRulesError
from tests.example_runs import write_script

pytestmark = pytest.mark.filterwarnings("ignore")

_MODEL = """
import os, sys, torch, torch.nn as nn, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}")
torch.cuda.set_device(device)
dist.init_process_group("nccl", device_id=device)
mesh = init_device_mesh("cuda", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))
with torch.device("meta"):
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
fully_shard(model, mesh=mesh["dp"])
model.to_empty(device="cuda")
for parameter in model.parameters():
    nn.init.trunc_normal_(parameter)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(3):
    model(torch.randn(4, 64, device="cuda")).sum().backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    torch.cuda.synchronize()
dist.barrier()
dist.destroy_process_group()
"""

_DDP = """
import torch, torch.nn as nn, torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
def main():
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    local = torch.cuda.current_device()
    model = nn.parallel.DistributedDataParallel(nn.Linear(8, 4).cuda(local), device_ids=[local])
    data = TensorDataset(torch.randn(64, 8), torch.randint(0, 4, (64,)))
    loader = DataLoader(data, batch_size=8, sampler=DistributedSampler(data), num_workers=2, pin_memory=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in loader:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x.to(local)), y.cuda())
        loss.backward()
        optimizer.step()
    names = [None] * dist.get_world_size()
    dist.all_gather_object(names, {"rank": dist.get_rank()})
    assert names[dist.get_rank()] == {"rank": dist.get_rank()}
if __name__ == "__main__":
    main()
"""


def _state() -> dict[str, Any]:
    """Return everything that a dry run changes, as it is now."""
    paths = {path for row in PATCHES for path in row.owners.split()} | {"torch.distributed", __name__}
    owners = [pkgutil.resolve_name(path) for path in sorted(paths)]
    names = {
        f"{owner.__name__}.{name}": id(value)
        for owner in owners
        for name, value in list(vars(owner).items())
        if callable(value) or isinstance(value, (staticmethod, classmethod))
    }
    return names | {
        "environment": dict(os.environ),
        "arguments": list(sys.argv),
        "path": list(sys.path),
        "main": sys.modules["__main__"],
        "random": random.getstate(),
        "generator": torch.get_rng_state().tolist(),
        "excepthook": sys.excepthook,
        "coalescing": dict(distributed_c10d._world.pg_coalesce_state),
        "initialised": dist.is_initialized(),
        "folder": os.getcwd(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "function modes": torch._C._len_torch_function_stack(),
        "hooks": len(sys.modules["torch.optim.optimizer"]._global_optimizer_post_hooks),
        "settings": (
            torch.backends.cudnn.benchmark,
            torch.get_num_threads(),
            torch.is_anomaly_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.multiprocessing.get_sharing_strategy(),
            signal.getsignal(signal.SIGTERM),
        ),
    }


def _interrupt() -> None:
    raise KeyboardInterrupt


def _fail() -> None:
    raise RuntimeError("no such luck")


@pytest.mark.parametrize(
    "end", [lambda: None, _fail, _interrupt, lambda: sys.exit(3)], ids=["end", "exception", "ctrl-c", "exit"]
)
def test_whatever_ends_the_block_everything_is_put_back(end: Callable[[], None]) -> None:
    """Torch's names, the environment, generators, hooks and the process groups are as before."""
    with dry_run(2):
        pass  # what torch imports lazily is there from now on
    before = _state()
    try:
        with dry_run(16, rank=5):
            dist.init_process_group("nccl")
            os.environ["LEFT"] = "behind"
            sys.path.insert(0, "nowhere")
            sys.argv.append("--more")
            os.chdir("/")
            torch.manual_seed(3)
            random.random()
            torch.set_default_dtype(torch.float64)
            torch.set_default_device("cuda")
            distributed_c10d._world.pg_coalesce_state[dist.group.WORLD] = []
            sys.excepthook = print
            torch.backends.cudnn.benchmark = not torch.backends.cudnn.benchmark
            torch.set_num_threads(torch.get_num_threads() + 1)
            torch.autograd.set_detect_anomaly(not torch.is_anomaly_enabled())
            torch.backends.cuda.enable_flash_sdp(not torch.backends.cuda.flash_sdp_enabled())
            torch.multiprocessing.set_sharing_strategy("file_system")
            signal.signal(signal.SIGTERM, print)
            now = _state()
            assert not [one for one, other in zip(now["settings"], before["settings"], strict=True) if one == other]
            assert now != before
            end()
    except (RuntimeError, KeyboardInterrupt, SystemExit):
        pass
    assert before == _state()


@pytest.mark.parametrize("world_size", [4, 64, 1024])
def test_an_fsdp_and_tp_script_runs_at_any_size(tmp_path: Path, world_size: int) -> None:
    """A script for `cuda` and `nccl` finishes, makes as many calls at any size, and its device is recorded."""
    result = run_script(write_script(tmp_path, _MODEL), world_size=world_size, rank=world_size - 1)
    assert ("finished", None) == (result.reason, result.error)
    assert (3, {"cpu": "cuda"}) == (result.ledger.steps, result.ledger.devices)
    assert {"MODE3"} >= {finding.id for finding in result.ledger.findings}  # NCCL's limits may be unknown
    calls = {op: total.calls for (op,), total in result.ledger.by("op").items()}
    assert calls["c10d::_reduce_scatter_base_"] == 3
    assert calls["c10d::barrier"] == 1
    assert {world_size, world_size // 2, 2} == {group.size for group in result.ledger.groups.values()}


def test_ddp_with_a_loader_and_object_collectives_runs(tmp_path: Path) -> None:
    """DDP's constructor, which reads values in C++, and its reducer work without values."""
    result = run_script(write_script(tmp_path, _DDP), world_size=4, rank=1)
    assert ("finished", None) == (result.reason, result.error)
    sent = [entry.call.op for entry in result.ledger.entries if entry.phase == "backward"]
    assert ["c10d::allreduce_"] * 2 == sent
    assert result.ledger.steps == 2
    stopped = run_script(write_script(tmp_path, _DDP), world_size=4, steps=1)
    assert ("stopped", 1) == (stopped.reason, stopped.ledger.steps)


@pytest.mark.parametrize(
    "read",
    [
        *("x.item()", "x.tolist()", "x.numpy()", "bool(x)", "float(x)", "f'{x:.2f}'", "x.nonzero()"),
        "torch.testing.assert_close(x, x.clone())",  # torch makes another error of it
        "dist.init_process_group('gloo'); dist.all_gather_object([None] * 2, {'loss': x})",
    ],
)
def test_reading_an_unknown_value_names_the_line(tmp_path: Path, read: str) -> None:
    """The error is this library's, and says where and what to do."""
    text = f"import torch, torch.distributed as dist\nx = torch.ones(())\n{read}\n"
    result = run_script(write_script(tmp_path, text), world_size=2)
    assert isinstance(result.error, UnknownValueError)
    assert result.where == result.error.where
    assert result.where.endswith("train.py:3")
    assert "leave the line out" in str(result.error)


def test_unknown_numbers_read_as_asked_for() -> None:
    """With `item`, a program that logs its loss goes on."""
    with dry_run(2, item=2.5):
        x = torch.ones(())
        assert (2.5, 2, True, "2.50") == (x.item(), int(x), bool(x), f"{x:.2f}")


@pytest.mark.parametrize("item", [0.0, 1.0, -3.0])
def test_what_is_true_of_unknown_numbers_is_what_is_true_of_the_one_asked_for(item: float) -> None:
    """Checks of a loss pass, whatever it reads as: it is finite, no nan, and as large as it says."""
    with dry_run(2, item=item):
        loss, bound = torch.randn(4).mean(), torch.randn(3, 4)
        assert torch.isfinite(loss)
        assert not torch.isnan(bound).any()
        assert 0 == torch.isinf(bound).sum()
        assert (item > 0.5) == bool(loss > 0.5)
        assert torch.logical_or(loss > 0.5, loss <= 0.5).view(1).all()
        assert torch.equal(bound, bound + 1)
        assert torch.allclose(bound, bound.clone())
        assert [[item] * 4] * 3 == bound.numpy().tolist()


def test_lists_of_ranks_are_real_at_any_world_size() -> None:
    """Groups and meshes are made from them, and FSDP reshards by them."""
    with dry_run(65536, rank=9):
        dist.init_process_group("nccl")
        ranks = torch.arange(dist.get_world_size(), device="cuda").view(-1, 8)
        assert [[1, 1]] == (ranks == 9).nonzero().tolist()
        mesh = dist.device_mesh.DeviceMesh("cuda", ranks, mesh_dim_names=("dp", "tp"))
        layer = torch.nn.Linear(4, 4)
        dist.fsdp.fully_shard(layer, mesh=mesh["dp"], reshard_after_forward=64)
        assert mesh.get_group("dp").size() == 8192


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.long(),
        lambda x: torch.nn.functional.one_hot(x.long(), 3),
        lambda x: torch.empty(3, dtype=torch.long).copy_(x),
        lambda x: torch.zeros(3, dtype=torch.long).masked_fill_(x > 0, 1),
        lambda x: torch.zeros(3, dtype=torch.long).masked_fill_(x > 0, 1)[1:] + 1,
        lambda x: _gathered(x.long()),
    ],
    ids=["converted", "one_hot", "copied", "filled", "used", "gathered"],
)
@pytest.mark.parametrize(
    "read", [lambda x: x.tolist(), lambda x: x.numpy(), lambda x: x.flatten()[0].item()], ids=["list", "array", "item"]
)
def test_integers_made_of_unknown_values_are_unknown(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    """Also where they are written into a small tensor that was real."""
    with dry_run(3):
        dist.init_process_group("gloo")
        made = make(torch.randn(3))
        with pytest.raises(UnknownValueError):
            read(made)


def _gathered(x: torch.Tensor) -> torch.Tensor:
    gathered = torch.empty(9, dtype=torch.long)
    dist.all_gather_into_tensor(gathered, x)
    return gathered


def test_a_copied_tensor_is_of_the_same_mode() -> None:
    """Else each op would make another fake tensor of it."""
    with dry_run(2):
        layer = torch.nn.Linear(2, 2)
        assert copy.deepcopy(layer).weight.fake_mode is layer.weight.fake_mode


def test_small_integers_keep_their_values() -> None:
    """Counts go through a collective and are read, each rank taken to hold the same."""
    with dry_run(4) as ledger:
        dist.init_process_group("gloo")
        counts = torch.tensor([1, 2, 3, 4], device="cuda")
        received = torch.empty_like(counts)
        dist.all_to_all_single(received, counts)
        assert [1, 2, 3, 4] == counts.tolist()
        assert sum(received.tolist()) == 4
        functional = dist._functional_collectives.all_to_all_single(counts, None, None, dist.group.WORLD)
        assert [1, 1, 1, 1] == functional.tolist()
    assert ledger.count == 2


def test_torch_cuda_answers_the_program() -> None:
    """A GPU is there for the program: its number, streams, events, generators and memory."""
    with dry_run(16, rank=11, local_world_size=4) as ledger:
        assert (True, 4, 3) == (torch.cuda.is_available(), torch.cuda.device_count(), torch.cuda.current_device())
        assert "3" == os.environ["LOCAL_RANK"]
        assert ("cuda", 1) == (torch.device("cuda:1").type, torch.device("cuda", 1).index)
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.Event(enable_timing=True).record()
        generator = torch.Generator(device="cuda").manual_seed(1)
        x = torch.randn(3, generator=generator, device=torch.device("cuda", 1)).to("cuda:2").cuda().pin_memory()
        assert x.device == torch.nn.Linear(2, 2).to(0).cuda().half().weight.device == torch.device("cpu")
        assert torch.cuda.max_memory_allocated() == 0
        assert torch.cuda.memory_snapshot() == []
        torch.cuda.memory._record_memory_history(max_entries=10)
        with torch.cuda.profiler.profile():
            torch.cuda.cudart().cudaProfilerStart()
        assert int(torch.version.cuda.split(".")[0]) >= 12
        assert not torch.cuda.is_current_stream_capturing()
    assert {"cpu": "cuda"} == ledger.devices


def test_a_number_is_a_device_wherever_the_program_runs() -> None:
    """In a backward pass too, and in what a backward pass within it recomputes."""

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(3, device=torch.cuda.current_device())

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            return gradients[0] + torch.ones(3, device=torch.cuda.current_device())

    with dry_run(16, rank=11):
        x = torch.ones(3, device="cuda", requires_grad=True)
        torch.utils.checkpoint.checkpoint(Double.apply, x, use_reentrant=True).sum().backward()
        assert x.grad is not None
        torch.autograd.grad(Double.apply(x).sum(), x)


def test_a_program_that_names_no_accelerator_has_none_recorded() -> None:
    """`devices` is empty for a program on the cpu."""
    with dry_run(2) as ledger:
        dist.init_process_group("gloo")
        dist.all_reduce(torch.ones(3))
    assert {} == ledger.devices


def test_the_backend_asked_for_is_the_one_told() -> None:
    """`get_backend` says what the program asked for."""
    with dry_run(4):
        dist.init_process_group("cpu:gloo,cuda:nccl")
        assert ("nccl", "gloo") == (dist.get_backend(), dist.get_backend(dist.new_group([0, 1], backend="gloo")))
        assert dist.new_group([2, 3]) == dist.GroupMember.NON_GROUP_MEMBER


@pytest.mark.parametrize("then", ["raise", "raise RuntimeError('step 3 failed') from error"], ids=["same", "other"])
def test_an_illegal_call_ends_the_run_at_its_line(tmp_path: Path, then: str) -> None:
    """All calls are kept, and another error of the script does not hide this one."""
    text = f"""
    import torch, torch.distributed as dist
    dist.init_process_group("nccl")
    dist.all_reduce(torch.ones(3))
    try:
        dist.all_gather_into_tensor(torch.ones(7), torch.ones(3))
    except Exception as error:
        {then}
    """
    path = write_script(tmp_path, text)
    result = run_script(path, world_size=4)
    assert ("illegal", True, 2) == (result.reason, isinstance(result.error, CallError), result.ledger.count)
    assert result.where.endswith("train.py:6")
    assert 1 == dry_run_script(path, world_size=4).status


def test_a_script_ends_as_it_says(tmp_path: Path) -> None:
    """Its arguments and its exit status are its own; its neighbours are imported afresh each time."""
    text = "import sys, neighbour\nsys.exit(int(sys.argv[1]) + neighbour.number)\n"
    (tmp_path / "neighbour.py").write_text("number = 0\n")
    path = write_script(tmp_path, text)
    assert "finished" == run_script(path, ["0"], world_size=2).reason
    result = run_script(path, ["3", "--x"], world_size=2)
    assert ("exited", 3) == (result.reason, result.status)
    assert "neighbour" not in sys.modules


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"world_size": 0}, "world_size=0"),
        ({"world_size": 4, "rank": 4}, "rank=4"),
        ({"world_size": 4, "local_world_size": 5}, "local_world_size=5"),
        ({"world_size": 4, "steps": 0}, "steps=0"),
        ({"world_size": "4"}, "world_size='4'"),
        ({"world_size": True}, "world_size=True"),
        ({"world_size": 2**31}, "world_size=2147483648"),
        ({"world_size": 4, "rank": None}, "rank=None"),
        ({"world_size": 4, "item": "4"}, "item='4'"),
        ({"world_size": 4, "fake": 1}, "fake=1"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_named(options: dict[str, Any], words: str) -> None:
    """The error says the value."""
    with pytest.raises(CollectiveRulesError, match=words), dry_run(**options):
        pass


def test_a_size_of_the_programs_own_is_refused() -> None:
    """A program that asks for another world size than the dry run's is told both."""
    with pytest.raises(CollectiveRulesError, match=r"world_size=8\), but .* WORLD_SIZE=4"), dry_run(4):
        dist.init_process_group("gloo", world_size=8, rank=0)


def test_a_process_group_that_exists_already_is_refused() -> None:
    """A dry run within a dry run, or within a real run, would mix the two."""
    with dry_run(2):
        dist.init_process_group("gloo")
        with pytest.raises(CollectiveRulesError, match="initialised already"), dry_run(4):
            pass


def test_the_command_writes_reports_and_passes_arguments_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Own options may follow the script; the script gets the rest as it was."""
    text = """
    import sys, torch, torch.distributed as dist
    print("to the terminal")
    assert sys.argv[1:] == ["--lr", "3", "-x", "--steps", "9"], sys.argv
    dist.init_process_group("nccl")
    dist.all_reduce(torch.ones(4, device="cuda"))
    """
    path, out = write_script(tmp_path, text), [tmp_path / f"out.{suffix}" for suffix in ("html", "md", "json")]
    behind = ["--lr", "3", "-x", "--world-size", "8", "--rank=2", *(f"--report={each}" for each in out), "--json"]
    assert 0 == main(["dry-run", path, *behind, "--", "--steps", "9"])
    data = json.loads(capsys.readouterr().out)
    assert (8, 2, "finished") == (data["world_size"], data["rank"], data["ended"])
    assert all(file.stat().st_size > 0 for file in out)
    assert 0 == main(["dry-run", "--world-size=8", path, "--lr", "3", "-x", "--steps", "9"])


@pytest.mark.parametrize(
    ("text", "words"),
    [("raise OSError('full')", "train.py:1: OSError: full"), ("import torch\ntorch.ones(()).item()", "train.py:2")],
)
def test_what_a_script_raises_is_told_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    """The script's own line is named."""
    with pytest.raises(CommandError, match=words):
        dry_run_script(write_script(tmp_path, text), world_size=2)


def test_no_traceback_is_logged_of_what_a_script_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Torch's own log would have one for sizes that do not fit."""
    result = run_script(write_script(tmp_path, "import torch\ntorch.ones(3) + torch.ones(4)\n"), world_size=2)
    assert result.where.endswith("train.py:2")
    assert "" == caplog.text


def test_a_module_is_found_where_the_command_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after `python -m`; and it is forgotten after the run."""
    package = tmp_path / "trainer_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sizes.py").write_text("width = 3")
    (package / "main.py").write_text("from .sizes import width\nraise SystemExit(width)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    result = run_script("trainer_of_mine.main", world_size=2)
    assert ("exited", 3) == (result.reason, result.status)
    assert not any(name.startswith("trainer_of_mine") for name in sys.modules)


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("nowhere.py", (), r"nowhere\.py: no such script"),
        (None, (), "path_or_module=None, but should be"),
        (b"x.py", (), r"path_or_module=b'x\.py', but should be"),
        (__file__, "--lr 1", "arguments='--lr 1', but should be a list of strings"),
        (__file__, [1], r"arguments=\[1\], but should be a list of strings"),
    ],
)
def test_a_script_that_is_none_is_refused(script: Any, arguments: Any, words: str) -> None:
    with pytest.raises(CollectiveRulesError, match=words):
        run_script(script, arguments, world_size=2)


def test_a_script_may_raise_what_is_no_exception(tmp_path: Path) -> None:
    """As a library may that ends a program in its own way."""
    (tmp_path / "script.py").write_text("class Enough(BaseException): ...\nraise Enough('of that')")
    result = run_script(tmp_path / "script.py", world_size=2)
    assert ("raised", "of that", "2") == (result.reason, str(result.error), result.where.rpartition(":")[2])
