"""`execute=False`: nothing is sent, and what comes back is what gloo gives where all ranks hold the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import collective_rules as cr
from collective_rules.testing import calls, sample, world
from collective_rules.testing.dispatch import has_cpu_kernel
from collective_rules.testing.tensors import make


def train(model: torch.nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step()


def test_a_sparse_tensor_is_summed_up(silent: dist.ProcessGroup) -> None:
    tensor = torch.eye(3).to_sparse()
    with cr.RuleMode(check=True, execute=False):
        dist.all_reduce(tensor)
    assert torch.equal(dist.get_world_size() * torch.eye(3), tensor.to_dense())


@pytest.mark.parametrize("wrap", ["DDP", "FSDP2"])
def test_training_runs_without_sending(silent: dist.ProcessGroup, wrap: str) -> None:
    """The Works have the futures that DDP reads."""
    layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    with cr.RuleMode(check=True, execute=False) as ledger:
        if wrap == "DDP":
            train(DistributedDataParallel(layers))
        else:
            for layer in layers:
                fully_shard(layer)
            train(fully_shard(layers))
            norm = torch.nn.utils.clip_grad_norm_(layers.parameters(), 1.0)
            assert norm.full_tensor().shape == ()
    wanted = {"DDP": {"allreduce_", "broadcast_", "allgather_"}, "FSDP2": {"_allgather_base_", "_reduce_scatter_base_"}}
    assert wanted[wrap] <= {entry.call.op.partition("::")[2] for entry in ledger.entries}
    assert 2 == ledger.steps


def test_works_are_done_and_have_futures(silent: dist.ProcessGroup) -> None:
    tensor = torch.ones(2)
    with cr.RuleMode(execute=False):
        work = dist.all_reduce(tensor, async_op=True)
        assert work.is_completed()
        assert work.wait()
        assert [tensor] == work.get_future().value()
        assert work.get_future().value()[0] is tensor
    with pytest.raises(RuntimeError):
        dist.all_reduce(tensor)


def test_gathered_objects_are_this_ranks_own(silent: dist.ProcessGroup) -> None:
    objects: list[Any] = [None] * silent.size()
    with cr.RuleMode(execute=False):
        dist.all_gather_object(objects, {"rank": 1})
        own = ["mine"]
        dist.broadcast_object_list(own, src=1)
    assert [{"rank": 1}] * silent.size() == objects
    assert ["mine"] == own


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: dist.recv(torch.ones(2)), "the rank that it receives from is unknown"),
        (lambda: dist.recv_object_list([None], src=0), "needs an object that another rank sends"),
        (lambda: dist.broadcast_object_list([None], src=0), "needs the object of the source rank"),
        (lambda: dist.scatter_object_list([None], None, src=0), "needs the object that the source rank scatters"),
    ],
    ids=["any source", "recv_object_list", "broadcast_object_list", "scatter_object_list"],
)
def test_what_only_another_rank_knows_is_a_clear_error(
    silent: dist.ProcessGroup, act: Callable[[], Any], message: str
) -> None:
    with cr.RuleMode(execute=False), pytest.raises(cr.SimulationError, match=rf"test_simulated.py:\d+: .*{message}"):
        act()


def test_a_ring_passes_its_own_blocks_on(silent: dist.ProcessGroup) -> None:
    """What was sent comes back from the other side; zeros where nothing was."""
    block, received, early = torch.arange(3.0), torch.empty(3), torch.full((2,), 7.0)
    with cr.RuleMode(execute=False):
        dist.recv(early, src=0)
        ops = [dist.P2POp(dist.isend, block, 2), dist.P2POp(dist.irecv, received, 0)]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
    assert [0.0, 1.0, 2.0] == received.tolist()
    assert [0.0, 0.0] == early.tolist()


SIMULATED = [
    op
    for op in cr.ops()
    if has_cpu_kernel(cr.lookup(op))
    and not cr.lookup(op).rule.point_to_point
    and cr.lookup(op).rule.name not in {"barrier", "batch_p2p", "wait"}
]


def same_everywhere(op: str) -> list[tuple[cr.Call, ...]]:
    """Drawn groups of calls in which all ranks pass the same."""
    drawn = sample(calls(op), 30)
    return [
        ranks for ranks in drawn if all(ranks[0].arguments == call.arguments and not shares(call) for call in ranks)
    ][:8]


def shares(call: cr.Call) -> bool:
    """Whether two of its tensors share memory, which ranks may do differently."""
    storages = [tensor.untyped_storage()._cdata for tensor in tensors_of(make(call).arguments)]
    return len({*storages}) < len(storages)


@pytest.mark.parametrize("op", SIMULATED)
def test_the_simulated_result_is_what_gloo_gives_where_all_ranks_hold_the_same(op: str) -> None:
    """Contents, sizes and strides of all that is written and returned."""
    compared = 0
    for ranks in same_everywhere(op):
        real, simulated = (results(ranks, execute=execute) for execute in (True, False))
        for mine, theirs in zip(simulated, real, strict=True):
            assert mine.shape == theirs.shape
            assert mine.stride() == theirs.stride() or mine.numel() == 0
            assert torch.allclose(mine, theirs, equal_nan=True), (ranks[0], mine, theirs)
            compared += mine.numel() > 0
    assert compared or cr.lookup(op).root


def results(ranks: tuple[cr.Call, ...], *, execute: bool) -> list[torch.Tensor]:
    """Every rank's tensors after the call, all with the contents of rank 0's before it."""
    made = [make(call).arguments for call in ranks]
    for arguments in made[1:]:
        for mine, first in zip(tensors_of(arguments), tensors_of(made[0]), strict=True):
            lie = [size for size, stride in zip(first.size(), first.stride(), strict=True) if stride]
            steps = [stride for stride in first.stride() if stride]
            mine.as_strided(lie, steps).copy_(first.as_strided(lie, steps))  # an expanded one has each element once
    ops = [call.op for call in ranks]
    where = world(ranks[0].group.size)
    if execute:
        outcomes = where.run(ops, made)
    else:
        with cr.RuleMode(execute=False):
            outcomes = where.run(ops, made)
    assert {None} == {outcome.error for outcome in outcomes}
    # Off the root, reduce_ leaves partial sums of its own.
    kept = [rank for rank, call in enumerate(ranks) if call.is_root or not call.row.entry.scratch]
    return tensors_of([[made[rank], outcomes[rank].values] for rank in kept])


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors_of(item)]
