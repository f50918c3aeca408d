"""Scripts as people write them, dry-run: checkpoints, normalisation across ranks, FSDP1, hooks, saved files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor.placement_types import _StridedShard, _StridedShardOffsetMode

from collective_rules.dryrun import Result, dry_run, run_script
from collective_rules.errors import SimulationError
from tests.example_runs import with_ledgers, write_script
from tests.ledger_of import described

pytestmark = pytest.mark.filterwarnings("ignore")

_CHECKPOINTS = """
import sys, torch, torch.nn as nn, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_model_state_dict, get_state_dict, set_model_state_dict, set_state_dict
)
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.fsdp import fully_shard

class State(Stateful):
    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer
    def state_dict(self):
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}
    def load_state_dict(self, state):
        set_state_dict(
            self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )

dist.init_process_group("gloo")
model = nn.Sequential(nn.Linear(8, 2400), nn.ReLU(), nn.Linear(2400, 8))
whole = model.state_dict() if dist.get_rank() == 0 else {}
whole = {name: value.clone() for name, value in whole.items()}
fully_shard(model[0])
fully_shard(model)
options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
set_model_state_dict(model, whole, options=options)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(2, 8)).sum().backward()
optimizer.step()
optimizer.zero_grad()
state = {"all": State(model, optimizer), "step": 3}
dcp.save(state, checkpoint_id=sys.argv[1])
dcp.load(state, checkpoint_id=sys.argv[1])
assert state["step"] == 3
get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
dist.barrier()
dist.destroy_process_group()
"""


def _finished(folder: Path, text: str, *arguments: str, **options: Any) -> Result:
    result = run_script(write_script(folder, text), arguments, **{"world_size": 8, **options})
    assert ("finished", None) == (result.reason, result.error)
    return result


def _ops(result: Result) -> list[str]:
    return [entry.call.op.partition("::")[2] for entry in result.ledger.entries]


def _without_lengths(value: Any) -> Any:
    """Return a ledger without the lengths of pickled objects, which depend on the objects of other ranks."""
    if isinstance(value, dict):
        known = {name: _without_lengths(item) for name, item in value.items()}
        return {**known, "shape": ["n"]} if value.get("dtype") == "uint8" else known
    return [_without_lengths(item) for item in value] if isinstance(value, list) else value


def _compare_with_real(folder: Path, text: str, *arguments: str) -> None:
    """Run the script on two ranks of gloo, and dry, and compare what each rank sends."""
    script = write_script(folder, text)
    for rank, real in enumerate(with_ledgers(Path(script), 2, arguments)[0]):
        result = run_script(script, arguments, world_size=2, rank=rank)
        assert ("finished", None) == (result.reason, result.error)
        calls = json.loads(json.dumps(described(result.ledger)))
        assert _without_lengths(real["calls"]) == _without_lengths(calls)
        assert [] == real["findings"] == result.ledger.findings


def test_a_checkpoint_exchanges_what_it_does_in_real_processes(tmp_path: Path) -> None:
    """Saved, loaded, gathered whole and sent from rank 0; and a dry run leaves no file."""
    real = tmp_path / "real"
    _compare_with_real(tmp_path, _CHECKPOINTS, str(real))
    assert real.exists()
    dry = tmp_path / "dry"
    _finished(tmp_path, _CHECKPOINTS, str(dry), world_size=2)
    assert not dry.exists()


def test_an_asynchronous_save_is_done_when_it_returns(tmp_path: Path) -> None:
    """Its exchanges are those of a save, before the next line."""
    text = """
    import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
    dist.init_process_group("cpu:gloo,cuda:nccl")
    save = dcp.async_save if sys.argv[1] == "async" else dcp.save
    done = save({"x": torch.ones(5, device="cuda")}, checkpoint_id="nowhere")
    dist.barrier()
    assert sys.argv[1] != "async" or done.done()
    """
    expected = _ops(_finished(tmp_path, text, "sync", rank=3))
    assert expected == _ops(_finished(tmp_path, text, "async", rank=3))
    assert ["allgather_", "gather_", "broadcast_", "scatter_", "scatter_"] == expected[:5]


@pytest.mark.parametrize("size", [0, 1, 13, 2000])
def test_strided_shards_are_counted_as_torch_counts_them(size: int) -> None:
    """Size and offsets, for every rank of groups of up to 5."""
    for factor, world, mode in itertools.product((1, 2, 3), (1, 2, 5), _StridedShardOffsetMode):
        shard = _StridedShard(0, split_factor=factor)
        expected = [shard.local_shard_size_and_offset(size, world, rank, mode) for rank in range(world)]
        with dry_run(2):
            counted = [shard.local_shard_size_and_offset(size, world, rank, mode) for rank in range(world)]
        assert expected == counted


_NORM = """
import sys, torch, torch.nn as nn, torch.distributed as dist
device = sys.argv[1]
dist.init_process_group(sys.argv[2])
model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).to(device)
model = nn.parallel.DistributedDataParallel(nn.SyncBatchNorm.convert_sync_batchnorm(model))
y = model(torch.randn(2, 3, 5, 5, device=device))
assert y.shape == (2, 6, 3, 3)
y.sum().backward()
assert [p.grad.shape for p in model.parameters()] == [p.shape for p in model.parameters()]
"""


@pytest.mark.parametrize(("backend", "op"), [("nccl", "_allgather_base_"), ("gloo", "allgather_")])
def test_batch_normalisation_across_ranks_sends_its_statistics(tmp_path: Path, backend: str, op: str) -> None:
    """Mean, deviation and count of 6 channels forward, two sums of 6 backward, before DDP's gradients."""
    result = _finished(tmp_path, _NORM, "cuda", backend)
    assert {"MODE3"} >= {finding.id for finding in result.ledger.findings}  # NCCL's limits may be unknown
    first, second = (entry for entry in result.ledger.entries if entry.module.endswith("1"))
    assert (f"c10d::{op}", 13 * 4, "forward") == (first.call.op, first.traffic.read, first.phase)
    if backend == "nccl":  # into a row, which concatenates: torch/nn/modules/_functions.py
        assert (1, 13 * 8) == first.call.arguments["output_tensor"].shape
    assert ("c10d::allreduce_", 12 * 4, "backward") == (second.call.op, second.traffic.read, second.phase)


def test_batch_normalisation_on_the_cpu_is_refused_as_torch_refuses_it(tmp_path: Path) -> None:
    """Only a program that means an accelerator gets it."""
    result = run_script(write_script(tmp_path, _NORM), ["cpu", "gloo"], world_size=8)
    assert "SyncBatchNorm layers only work with GPU modules" in str(result.error)


def test_fsdp1_on_an_accelerator_runs(tmp_path: Path) -> None:
    """Its device may be a number, and its gradients may be accumulated."""
    text = """
    import torch, torch.nn as nn, torch.distributed as dist
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
    dist.init_process_group("nccl")
    precision = MixedPrecision(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
    model = FullyShardedDataParallel(
        nn.Linear(16, 16), device_id=torch.cuda.current_device(), mixed_precision=precision
    )
    with model.no_sync():
        model(torch.ones(2, 16, device="cuda")).sum().backward()
    model(torch.ones(2, 16, device="cuda")).sum().backward()
    model.clip_grad_norm_(1.0)
    """
    ops = _ops(_finished(tmp_path, text))
    assert ["_allgather_base_", "_allgather_base_", "_reduce_scatter_base_", "allreduce_"] == ops


def test_fsdp1_sends_its_first_weights_and_gathers_the_last(tmp_path: Path) -> None:
    """With the parameters of the module, which are sharded in part only, and kept between forward and backward."""
    text = """
    import torch, torch.nn as nn, torch.distributed as dist
    from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, StateDictType, FullStateDictConfig
    dist.init_process_group("nccl")
    model = FullyShardedDataParallel(
        nn.Linear(16, 16), device_id=0, use_orig_params=True, sync_module_states=True,
        sharding_strategy=ShardingStrategy.SHARD_GRAD_OP
    )
    model(torch.ones(2, 16, device="cuda")).sum().backward()
    config = FullStateDictConfig(offload_to_cpu=True, rank0_only=True)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, config):
        assert model.state_dict()["weight"].shape == (16, 16)
    """
    ops = _ops(_finished(tmp_path, text))
    assert {"broadcast_", "_allgather_base_", "_reduce_scatter_base_"} == set(ops)
    assert 2 == ops.count("_allgather_base_")


_CONSOLIDATE = """
import torch, torch.nn as nn, torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
dist.init_process_group("gloo")
model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2)))
optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.Adam)
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
optimizer.consolidate_state_dict(1)
if dist.get_rank() == 1:
    held = optimizer.state_dict()["state"]
    assert [held[i]["exp_avg"].shape for i in range(4)] == [p.shape for p in model.parameters()]
name = ["run", 7]
dist.broadcast_object_list(name, src=0)
assert name == ["run", 7]
"""


def test_a_state_in_parts_and_an_object_are_sent_as_in_real_processes(tmp_path: Path) -> None:
    """ZeroRedundancyOptimizer's parts, and an object that every rank has."""
    _compare_with_real(tmp_path, _CONSOLIDATE)


def test_context_parallel_attention_is_a_ring(tmp_path: Path) -> None:
    """Torch makes it one by the kernels of accelerators, and by them it shards the output as the heads are."""
    text = """
    import sys, torch, torch.nn.functional as F, torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.experimental import context_parallel
    mesh = init_device_mesh("cuda", (4,))
    dtype = getattr(torch, sys.argv[1])
    x = torch.randn(2, 8, 256, 16, device="cuda", dtype=dtype)
    project = torch.nn.Linear(16, 16, device="cuda", dtype=dtype)
    with context_parallel(mesh, buffers=[x], buffer_seq_dims=[2]):
        y = F.scaled_dot_product_attention(project(x), project(x), project(x), is_causal=True)
        assert y.shape == (2, 8, 64, 16)
        y.sum().backward()
    dist.barrier()
    q, k, v = (DTensor.from_local(torch.ones(2, h, 64, 16, dtype=dtype), mesh, [Shard(1)]) for h in (4, 2, 2))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert (y.shape, y.placements) == ((2, 16, 64, 16), (Shard(1),))
    for mask in (torch.ones(64, 64, dtype=torch.bool), torch.ones(2, 1, 64, 64, dtype=dtype)):
        mask = distribute_tensor(mask, mesh, [Replicate()], src_data_rank=None)
        y = F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
        assert (y.shape, y.placements) == ((2, 16, 64, 16), (Shard(1),))
    """
    for dtype in ("bfloat16", "float32"):
        result = _finished(tmp_path, text, dtype, world_size=4, rank=3)
        calls = [(entry.call.op.partition("::")[2], entry.phase) for entry in result.ledger.entries]
        gathered, turned = "all_gather_into_tensor", "all_to_all_single"  # keys and values, and their gradients
        backward = [(gathered, "backward"), *[(turned, "backward")] * 4]
        assert [(gathered, ""), *backward, ("barrier", "")] == calls


def test_flexible_attention_has_a_backward(tmp_path: Path) -> None:
    """Compiled or not; torch has none on the cpu."""
    text = """
    import torch
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention
    attend = torch.compile(flex_attention)
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 256, 256, device="cuda")
    q = torch.randn(2, 4, 256, 16, device="cuda", requires_grad=True)
    k, v = (torch.randn(2, 2, 256, width, device="cuda", requires_grad=True) for width in (16, 8))
    y, more = attend(q, k, v, block_mask=mask, enable_gqa=True, return_aux=AuxRequest(lse=True))
    assert (y.shape, more.lse.shape, more.max_scores) == ((2, 4, 256, 8), (2, 4, 256), None)
    y.sum().backward()
    assert v.grad.shape == v.shape
    """
    _finished(tmp_path, text)


@pytest.mark.parametrize(("device", "op"), [("cuda", "shard_dim_alltoall"), ("cpu", "all_gather_into_tensor")])
def test_a_moved_shard_is_sent_as_its_device_does(tmp_path: Path, device: str, op: str) -> None:
    """Torch gathers and cuts on the cpu only."""
    text = """
    import sys, torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    mesh = init_device_mesh(sys.argv[1], (8,))
    x = DTensor.from_local(torch.ones(2, 16, device=sys.argv[1]), mesh, [Shard(0)])
    assert x.redistribute(placements=[Shard(1)]).to_local().shape == (16, 2)
    """
    assert [op] == _ops(_finished(tmp_path, text, device))


def test_a_compressing_hook_halves_what_ddp_reduces(tmp_path: Path) -> None:
    """Torch registers it only where it was built for CUDA; a dry run of a program for CUDA does."""
    text = """
    import torch, torch.nn as nn, torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
    dist.init_process_group("nccl")
    model = nn.parallel.DistributedDataParallel(nn.Linear(16, 16, bias=False).cuda())
    model.register_comm_hook(None, default_hooks.bf16_compress_hook)
    model(torch.ones(2, 16, device="cuda")).sum().backward()
    """
    result = _finished(tmp_path, text)
    assert 16 * 16 * 2 == result.ledger.entries[-1].traffic.read


def test_what_was_saved_is_loaded_again(tmp_path: Path) -> None:
    """The program's own files are remembered, and not written; others are read, or are not there."""
    text = """
    import io, torch, torch.nn as nn
    model = nn.Linear(4, 4)
    torch.save({"model": model.state_dict(), "step": 7}, "own.pt")
    saved = torch.load("own.pt", map_location="cuda:0", weights_only=True)
    model.load_state_dict(saved["model"])
    assert saved["step"] == 7
    buffer = io.BytesIO()
    torch.save(3, buffer)
    buffer.seek(0)
    assert torch.load(buffer) == 3
    torch.load("other.pt")
    """
    result = run_script(write_script(tmp_path, text), world_size=2)
    assert isinstance(result.error, FileNotFoundError)
    assert result.where.endswith("train.py:12")
    assert not Path("own.pt").exists()


def test_a_premultiplied_sum_is_not_guessed() -> None:
    """Its factor is not in the call: with values it is an error, without them there is nothing to know."""
    with dry_run(4, fake=False):
        dist.init_process_group("nccl")
        with pytest.raises(SimulationError, match="premul_sum"):
            dist.all_reduce(torch.ones(3), op=dist._make_nccl_premul_sum(2.0))
    with dry_run(4) as ledger:
        dist.init_process_group("nccl")
        dist.all_reduce(torch.ones(3), op=dist._make_nccl_premul_sum(2.0))
    assert 1 == ledger.count
