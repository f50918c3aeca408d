"""A backend of four ops, which declares what it takes; and liars: the same backend, with tables that claim too much.

The ranks meet in their store. Nothing but `Toy` and `TABLE` is needed to declare a backend.
"""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _create_work_from_future

from collective_rules.backends import BackendTable, Limit


def finished(tensors: list[Tensor]) -> Any:
    future: Any = torch.futures.Future()
    future.set_result(tensors)
    return _create_work_from_future(future)


class Toy(dist.ProcessGroup):
    """All-reduce, broadcast and all-gather of one float32 or int64 tensor, and a barrier."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self.store, self.me, self.count, self.round, self.own_name = store, rank, size, 0, ""

    def _set_group_name(self, name: str) -> None:
        self.own_name = name

    @property
    def group_name(self) -> str:
        return self.own_name

    def exchange(self, tensor: Tensor) -> list[Tensor]:
        """Return what every rank gives, by rank."""
        if tensor.dtype not in (torch.float32, torch.int64):
            raise TypeError(f"toy does not move {tensor.dtype}")
        self.round, written = self.round + 1, io.BytesIO()
        torch.save(tensor.detach().clone(), written)
        self.store.set(f"{self.round}/{self.me}", written.getvalue())
        return [torch.load(io.BytesIO(self.store.get(f"{self.round}/{rank}"))) for rank in range(self.count)]

    def allreduce(self, tensors: list[Tensor], options: Any) -> Any:
        if options.reduceOp.op.name not in ("SUM", "MAX"):
            raise ValueError("toy reduces with sum and max")
        pieces = torch.stack(self.exchange(tensors[0]))
        tensors[0].detach().copy_(pieces.sum(0) if options.reduceOp.op.name == "SUM" else pieces.amax(0))
        return finished(tensors)

    def broadcast(self, tensors: list[Tensor], options: Any) -> Any:
        tensors[0].detach().copy_(self.exchange(tensors[0])[options.rootRank])
        return finished(tensors)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], options: Any) -> Any:
        if any(output.shape != inputs[0].shape for output in outputs[0]):
            raise ValueError("toy gathers pieces of one shape")
        for output, piece in zip(outputs[0], self.exchange(inputs[0]), strict=True):
            output.detach().copy_(piece)
        return finished(outputs[0])

    def barrier(self, options: Any) -> Any:
        self.exchange(torch.zeros(1))
        return finished([])


OPS = ("c10d::allreduce_", "c10d::broadcast_", "c10d::allgather_", "c10d::barrier")
DTYPES = frozenset({torch.float32, torch.int64})
OTHERS = ("avg", "product", "min", "band", "bor", "bxor", "premul_sum")

TABLE = BackendTable(
    "toy",
    "its source",
    (
        Limit("TOY1", "no other op", "Use one of the four.", namespaces=("c10d",), but=OPS, missing=True),
        Limit("TOY2", "float32 and int64", "Convert to float32.", ops=OPS, dtypes=DTYPES),
        Limit("TOY3", "sum and max", "Use sum.", ops=OPS[:1], reduces=dict.fromkeys(OTHERS, frozenset[torch.dtype]())),
        Limit("TOY4", "pieces of one shape", "Pad them.", ops=("c10d::allgather_",), forms=("even",), exact=True),
    ),
)


def without(id: str, *more: Limit) -> BackendTable:
    return attrs.evolve(TABLE, limits=(*(limit for limit in TABLE.limits if limit.id != id), *more))


CLAIMS_AN_OP = without("TOY1", attrs.evolve(TABLE.limits[0], but=(*OPS, "c10d::scatter_")))
CLAIMS_A_BARRIER = without("TOY1", attrs.evolve(TABLE.limits[0], but=(*OPS, "c10d::monitored_barrier_")))
CLAIMS_A_DTYPE = without("TOY2", attrs.evolve(TABLE.limits[1], dtypes=DTYPES | {torch.int8}))
CLAIMS_A_REDUCE_OP = without("TOY3", attrs.evolve(TABLE.limits[2], reduces={op: frozenset() for op in OTHERS[1:]}))
CLAIMS_A_FORM = without("TOY4")
CLAIMS_LISTS = attrs.evolve(TABLE, lists=True)
CLAIMS_LESS = without("TOY2", attrs.evolve(TABLE.limits[1], dtypes=frozenset({torch.float32})))
LACKS_A_BARRIER = without("TOY1", attrs.evolve(TABLE.limits[0], but=OPS[:3]))
