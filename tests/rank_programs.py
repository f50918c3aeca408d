"""Programs for `torch_own.Launcher`, which runs them on every rank: some go wrong, one makes a call of each kind."""

from __future__ import annotations

import contextlib
import os

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import collective_rules as cr


def send_illegal() -> None:
    """Gather three tensors of two elements into one of seven."""
    dist.all_gather_into_tensor(torch.empty(7), torch.ones(2))


def catch_illegal() -> None:
    """Catch the error of an illegal call."""
    with contextlib.suppress(cr.CallError):
        send_illegal()


def fail_on_one_rank() -> None:
    """Raise, while the others wait."""
    if dist.get_rank() == 1:
        raise RuntimeError("enough")
    dist.barrier()


def die_on_one_rank() -> None:
    """End the process, while the others wait."""
    if dist.get_rank() == 1:
        os._exit(7)
    dist.barrier()


def hang() -> None:
    """Wait for a rank that does not come."""
    if dist.get_rank() != 1:
        dist.barrier()


def pass_by_the_mode() -> None:
    """Make one call that modes see, and one on the backend object, which they do not."""
    dist.all_reduce(torch.ones(2))
    dist.group.WORLD._get_backend(torch.device("cpu")).allreduce([torch.ones(5)]).wait()


def call_each_kind() -> None:
    """Make a call of each kind that gloo has, of sizes that tell them apart; each rank sends to the next."""
    rank, size, world = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    following, before = (rank + 1) % size, (rank - 1) % size
    rows = [torch.ones(n + 1, 2) for n in range(size)]
    dist.all_reduce(torch.ones(2, 3, dtype=torch.float64), async_op=True).wait()
    dist.all_reduce(torch.ones(2, dtype=torch.complex64))
    dist.all_reduce(torch.sparse_coo_tensor([[0]], [1.0], (3,), check_invariants=True))
    dist.all_reduce(torch.ones(()))
    dist.all_reduce(torch.ones(0, 3, dtype=torch.int32))
    dist.all_reduce_coalesced([torch.ones(4, 2), torch.ones(3)])
    dist.broadcast(torch.ones(5, dtype=torch.bfloat16), src=1)
    dist.reduce(torch.ones(4, dtype=torch.int8), dst=1)
    dist.all_gather([torch.empty(6, 2) for _ in range(size)], torch.ones(6, 2))
    dist.all_gather_into_tensor(torch.empty(7 * size, dtype=torch.uint8), torch.ones(7, dtype=torch.uint8))
    dist.all_gather_coalesced(
        [[torch.empty(8, 2), torch.empty(1)] for _ in range(size)], [torch.ones(8, 2), torch.ones(1)]
    )
    dist.reduce_scatter(torch.empty(rank + 1, 2), rows)
    dist.reduce_scatter_tensor(torch.empty(9, 2), torch.ones(9 * size, 2))
    dist.gather(torch.ones(5, 2), [torch.empty(5, 2) for _ in range(size)] if rank == 1 else None, dst=1)
    dist.scatter(torch.empty(6), [torch.ones(6) for _ in range(size)] if rank == 2 else None, src=2)
    dist.all_to_all([torch.empty(3, 1) for _ in range(size)], [torch.ones(3, 1) for _ in range(size)])
    dist.all_to_all_single(torch.empty(2 * size, 2), torch.ones(2 * size, 2))
    sent, received = [1 + (rank + p) % size for p in range(size)], [1 + (p + rank) % size for p in range(size)]
    dist.all_to_all_single(torch.empty(sum(received)), torch.ones(sum(sent)), received, sent)
    dist.barrier()
    dist.monitored_barrier()
    work = dist.isend(torch.ones(3), following)
    dist.recv(torch.empty(3), before)
    work.wait()
    work = dist.isend(torch.ones(4), following)
    dist.recv(torch.empty(4))
    work.wait()
    for work in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, torch.ones(2), following), dist.P2POp(dist.irecv, torch.empty(2), before)]
    ):
        work.wait()
    with dist._coalescing_manager():
        for length in (3, 4):
            dist.all_gather_into_tensor(torch.empty(length * size), torch.ones(length))
    with dist._coalescing_manager():
        for length in (3, 4):
            dist.reduce_scatter_tensor(torch.empty(length), torch.ones(length * size))
    results = [
        functional.all_reduce(torch.ones(3, 2), "sum", world),
        functional.broadcast(torch.ones(4, 2), 0, world),
        functional.all_gather_tensor(torch.ones(5, 2), 0, world),
        functional.reduce_scatter_tensor(torch.ones(6 * size, 2), "sum", 0, world),
        functional.all_to_all_single(torch.ones(7 * size, 2), None, None, world),
        functional.permute_tensor(torch.ones(3), [*range(1, size), 0], world),
        *functional.all_reduce_coalesced([torch.ones(2), torch.ones(3)], "sum", world),
        *functional.all_gather_into_tensor_coalesced([torch.ones(4), torch.ones(5, 2)], world),
        *functional.reduce_scatter_tensor_coalesced([torch.ones(2 * size, 2), torch.ones(size)], "sum", [0, 0], world),
    ]
    for result in results:
        functional.wait_tensor(result)
    pair = dist.new_group([0, 2])
    if rank != 1:
        dist.all_reduce(torch.ones(11), group=pair)
    dist.all_reduce(torch.ones(12))
