"""ZeroRedundancyOptimizer's `consolidate_state_dict`, in which each rank sends its part of the state as an object.

The part of another rank is made like this rank's own, for the parameters of the other rank. So the ops and their order
are those of a real run; the lengths of the byte tensors are those of the tensors alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_leaves

from collective_rules.dryrun.patches import Patches


def patch_consolidation(patches: Patches) -> None:
    """Have `consolidate_state_dict` work without values."""
    consolidating: list[Any] = []

    def consolidate(original: Callable[..., None], optimizer: Any, to: int = 0) -> None:
        consolidating.append(optimizer)
        try:
            original(optimizer, to)
        finally:
            consolidating.pop()

    def exchange(original: object, _: object, src_rank: int, group: Any, device: Any) -> dict[str, Any]:
        state = _part_of(consolidating[-1], dist.get_group_rank(group, src_rank))
        length = sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))
        for tensor in (torch.tensor([length], device=device), torch.empty(length, dtype=torch.uint8)):
            dist.broadcast(tensor, src=src_rank, group=group)
        return state

    patches.replace(consolidate, exchange)


def _part_of(optimizer: Any, rank: int) -> dict[str, Any]:
    """Return the state dict of the local optimizer of `rank`."""
    own = optimizer.optim.state_dict()
    if rank == optimizer.rank:
        return dict(own)
    example: dict[str, Any] = next(iter(own["state"].values()), {})
    numbers = itertools.count()
    state: dict[int, Any] = {}
    groups: list[dict[str, Any]] = []
    for own_group, group in zip(own["param_groups"], optimizer._partition_parameters()[rank], strict=True):
        indices = [next(numbers) for _ in group["params"]]
        groups.append({**own_group, "params": indices})
        for index, parameter in zip(indices, group["params"], strict=True):
            state[index] = {name: _like(value, parameter) for name, value in example.items()}
    return {"state": state, "param_groups": groups}


def _like(value: Any, parameter: torch.Tensor) -> Any:
    return torch.empty_like(parameter) if isinstance(value, torch.Tensor) and value.dim() else value
