"""Programs of `tests.live_ranks` that make process groups, rightly and wrongly."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.utils.store import barrier

ones = torch.ones


def own_groups(rank: int, size: int) -> None:
    """Each rank makes the group that it is in, and no other."""
    group = dist.new_group([0, 3] if rank in (0, 3) else [1, 2])
    dist.all_reduce(ones(1), group=group)


def group_of_some(rank: int, size: int) -> None:
    """After a group that only its members make, the next one has another number on the other ranks."""
    dist.all_reduce(ones(2))
    if rank < 2:
        dist.new_group([0, 1])
    dist.all_reduce(ones(2), group=dist.new_group())


def group_of_one_rank_alone(rank: int, size: int) -> None:
    """One rank waits where a group is made, and the others in what they do next."""
    dist.all_reduce(ones(2))
    if rank == 0:
        dist.new_group([0, 1], timeout=timedelta(minutes=10))
    dist.all_reduce(ones(3))


def make_pair() -> list[Any]:
    """Make group 1 of two ranks, and leave out that of the other two; each pair has its part of the store."""
    world, rank = dist.group.WORLD, dist.get_rank()
    groups = dist.distributed_c10d._world.pg_map
    backend, store = groups[world]
    groups[world] = (backend, dist.PrefixStore(f"pair {rank // 2}", store))
    try:
        return [dist.new_group([0, 1] if rank < 2 else [2, 3])]
    finally:
        groups[world] = (backend, store)


def groups_of_before(rank: int, size: int, pair: Any) -> None:
    """The groups were made before the block, each by its members."""
    dist.all_reduce(ones(2), group=pair)


groups_of_before.prepare = make_pair


def makes_groups(rank: int, size: int) -> None:
    """All ways to make groups; calls that do not wait stand before them on one rank, and behind them on others."""
    if rank == 0:
        work = dist.all_reduce(ones(3), async_op=True)
        pair = dist.new_group([0, 1])
    else:
        pair = dist.new_group([1, 0])
        work = dist.all_reduce(ones(3), async_op=True)
    work.wait()
    if rank == size - 1:  # it is in no pair, and nobody waits for it
        dist.all_reduce(ones(1))
        dist.new_group([0, 1])
    else:
        dist.new_group([0, 1])
        dist.all_reduce(ones(1))
    everyone = dist.new_group()
    mesh = init_device_mesh("cpu", (size, 1))
    single, _ = dist.new_subgroups(1)
    if rank < 2:
        local = dist.new_group([0, 1], use_local_synchronization=True)
        for group in (pair, local):
            dist.all_reduce(ones(2 + rank - rank), group=group)
        dist.destroy_process_group(local)
    for group in (everyone, mesh.get_group(0), single):
        dist.all_reduce(ones(4), group=group)


def begins_again(rank: int, size: int) -> None:
    """All groups are destroyed; the numbers start anew, and mean other ranks."""
    store = dist.distributed_c10d._get_default_store()
    for round_, ranks in enumerate(([0, 1], [1, 2])):
        group = dist.new_group(ranks)
        if rank in ranks:
            dist.all_reduce(ones(2), group=group)
        dist.barrier()
        dist.destroy_process_group()
        again = dist.PrefixStore(f"again {round_}", store)
        dist.init_process_group("gloo", store=again, rank=rank, world_size=size)


def waits_at_the_store(rank: int, size: int) -> None:
    """A rank is in a function of torch.distributed that is no collective."""
    dist.all_reduce(ones(2))
    if rank == 1:
        barrier(dist.distributed_c10d._get_default_store(), size, "nobody else", barrier_timeout=60)
    dist.all_reduce(ones(3))
