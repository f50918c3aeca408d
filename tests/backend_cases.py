"""Calls that go beyond one limit of a backend each, by hand, and legal ones beside them.

They are judged by the tables alone. Tensors are on the backend's own device, where a case names no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch

import collective_rules as cr
from collective_rules.call import on_device
from collective_rules.spec import Memory
from collective_rules.testing.layouts import CHANNELS_LAST, SLICED, STRAIGHT, TRANSPOSED
from tests.test_nccl import MADE as MADE_FOR_NCCL
from tests.test_nccl import SHAPE, A, F, L, each, spec

__all__ = ["BEYOND", "DEVICES", "EDGES", "LEGAL", "Case"]

T, S, C = TRANSPOSED, SLICED, CHANNELS_LAST
F16, F64, BF16, FP8 = torch.float16, torch.float64, torch.bfloat16, torch.float8_e4m3fn
I16, I32, I64, U8, U16 = torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16
BOOL, C64 = torch.bool, torch.complex64

DEVICES = {"xccl": "xpu", "hccl": "npu", "nccl": "cuda"}
"""Where a backend's tensors are; on the cpu, where it is not named."""

MADE = {
    **MADE_FOR_NCCL,
    A + "reduce_scatter_tensor": MADE_FOR_NCCL[F + "reduce_scatter_tensor"],
    "c10d::recv_any_source_": lambda i, o, **d: {"tensors": [spec(SHAPE, i, **d)]},
    "c10d::monitored_barrier_": lambda i, o, **d: {},
    "c10d::allgather_coalesced_": lambda i, o, **d: {
        "input_list": [spec(SHAPE, i, **d)],
        "output_lists": [[spec(SHAPE, o, **d)] for _ in range(4)],
    },
    F + "all_gather_into_tensor": lambda i, o, **d: {"input": spec(SHAPE, i, **d)},
    L + "all_reduce": lambda i, o, **d: {"self": spec(SHAPE, i, **d), "reduceOp": "sum"},
}


def at(offset: int, shape: Any = (4,)) -> cr.Spec:
    """A tensor in a certain place of memory."""
    return spec(shape, memory=Memory(1, offset))


def uneven(*counts: int) -> list[cr.Spec]:
    """Tensors of several shapes."""
    return [spec((count,)) for count in counts]


@attrs.frozen
class Case:
    """A call of one rank of four, of which a limit is broken.

    - `i`, `o`: the layouts of what is read and written. `arguments`: in place of those that the op is called with.
    - `facts`: what is known of the backend. `also`: ids of errors that come with it.
    """

    op: str
    i: str = STRAIGHT
    o: str = STRAIGHT
    dtype: torch.dtype = torch.float32
    reduce_op: str = ""
    size: int = 4
    device: str = ""
    facts: Mapping[str, Any] = attrs.field(factory=dict)
    arguments: Mapping[str, Any] = attrs.field(factory=dict)

    def call(self, backend: str) -> cr.Call:
        """Return the call, on the backend's device."""
        row = cr.lookup(self.op)
        given = dict(self.arguments) or MADE[self.op](self.i, self.o, dtype=self.dtype)
        if self.reduce_op:
            given[row.reduce_op] = self.reduce_op
        made = cr.call(self.op, group=cr.Group(self.size), **given)
        return on_device(made, self.device or DEVICES.get(backend, "cpu"))

    def backend(self, name: str) -> cr.Backend:
        """Return the backend with what is known of it."""
        return cr.Backend(name, **self.facts)


AG, RS, A2A = "c10d::allgather_", "c10d::reduce_scatter_", "c10d::alltoall_base_"
BASE_AG, BASE_RS = "c10d::_allgather_base_", "c10d::_reduce_scatter_base_"
MANY_AG, MANY_RS = "c10d::allgather_into_tensor_coalesced_", "c10d::reduce_scatter_tensor_coalesced_"
MANY_AR = "c10d::allreduce_coalesced_"
OUT_AG, OUT_RS, FUN_RS = (
    F + "all_gather_into_tensor_out",
    F + "reduce_scatter_tensor_out",
    F + "reduce_scatter_tensor",
)  # fmt: skip
AR, BC, RD = "c10d::allreduce_", "c10d::broadcast_", "c10d::reduce_"
GA, SC, LISTS = "c10d::gather_", "c10d::scatter_", "c10d::alltoall_"

TWO = {"tensors": each((4,), count=2)}
MIXED = {"tensors": [spec((4,)), spec((4,), dtype=I32)]}
UNEVEN_AG = {"input_tensors": [spec((2,))], "output_tensors": [uneven(2, 3, 1, 2)]}
SLICED_UNEVEN = {**UNEVEN_AG, "output_tensors": [[spec((2,), S), *uneven(3, 1, 2)]]}
PERMUTED_UNEVEN = {
    "input_tensors": [spec(SHAPE, C)],
    "output_tensors": [[spec(SHAPE), spec((1, 2, 3, 2)), *each(count=2)]],
}
UNEVEN_RS = {"input_tensors": [uneven(2, 3, 1, 2)], "output_tensors": [spec((2,))]}
UNEVEN_S = {
    "input_tensors": [[spec((2, 2), S), spec((1, 2)), spec((2, 2)), spec((2, 2))]],
    "output_tensors": [spec((2, 2))],
}
ROWS = {"input": spec((2, 2)), "output": spec((4,))}
ROWS_OUT = {"input": spec((4,)), "output": spec((2, 2))}
SPARSE = {"tensors": [cr.Spec((4,), layout="sparse_coo")]}
STACKED = {"input_tensor": spec((4, 2, 3)), "output_tensor": spec((2, 3))}
ROW = {"input_tensor": spec((3,)), "output_tensor": spec((1, 12))}
RESHAPED = {"input_tensors": [each((2, 3))], "output_tensors": [spec((6,))], "root_rank": 0}
OVER = {"input_tensor": at(8), "output_tensor": at(0, (16,))}
OVER_RS = {"input_tensor": at(0, (16,)), "output_tensor": at(0)}

FNUZ = torch.float8_e4m3fnuz
OLD_GPU, OLD_NCCL = {"compute_capability": (8, 0)}, {"version": (2, 21)}


def alone(op: str = BASE_RS, layout: str = STRAIGHT, **more: Any) -> dict[str, Any]:
    """What a group of one reduces and scatters."""
    names = ("input", "out") if op.endswith("_out") else ("input_tensor", "output_tensor")
    return dict(zip(names, (spec((2, 3), **more), spec((2, 3), layout, **more)), strict=True))


OVERLAID = {"input_tensors": [at(8, (2,))], "output_tensors": [[at(0, (2,)), at(8, (3,)), *uneven(1, 2)]]}

BEYOND: Mapping[str, Case] = {
    "NCCL1": Case(AG, dtype=I16),
    "NCCL2": Case(BASE_RS, dtype=I16),
    "NCCL3": Case(AR, dtype=I16),
    "NCCL4": Case(FUN_RS, dtype=I16),
    "NCCL5": Case(AR, dtype=I32, reduce_op="bxor"),
    "NCCL6": Case(BASE_RS, dtype=I32, reduce_op="band"),
    "NCCL7": Case(FUN_RS, dtype=BOOL, reduce_op="avg"),
    "NCCL8": Case(RD, dtype=BOOL, reduce_op="avg"),
    "NCCL9": Case(AR, dtype=BF16, reduce_op="premul_sum"),
    "NCCL10": Case(BASE_RS, dtype=BF16, reduce_op="premul_sum"),
    "NCCL11": Case(FUN_RS, dtype=C64, reduce_op="max"),
    "NCCL12": Case(RD, dtype=FNUZ),
    "NCCL13": Case(AR, dtype=FP8, facts=OLD_GPU),
    "NCCL14": Case(BASE_RS, dtype=FP8, facts=OLD_NCCL),
    "NCCL15": Case(BASE_RS, reduce_op="premul_sum", size=1, arguments=alone()),
    "NCCL16": Case(AR, T, size=1),
    "NCCL17": Case(AG, T),
    "NCCL18": Case(LISTS, T),
    "NCCL19": Case(RS, o=T),
    "NCCL20": Case(MANY_AR, S),
    "NCCL21": Case(MANY_AG, S),
    "NCCL22": Case(BASE_RS, S),
    "NCCL23": Case(BASE_RS, size=1, arguments=alone(BASE_RS, T)),
    "NCCL24": Case(OUT_RS, o=C),
    "NCCL25": Case(OUT_AG, o=C),
    "NCCL26": Case(RS, o=C),
    "NCCL27": Case(GA, o=S),
    "NCCL28": Case(AG, arguments=SLICED_UNEVEN),
    "NCCL29": Case(RS, arguments=UNEVEN_S),
    "NCCL30": Case(BASE_AG, C),
    "NCCL31": Case(BASE_RS, C),
    "NCCL32": Case(AG, arguments=PERMUTED_UNEVEN),
    "NCCL33": Case(GA, o=C),
    "NCCL35": Case(AR, arguments=TWO),
    "NCCL36": Case("c10d::recv_any_source_"),
    "NCCL37": Case(AR, arguments=SPARSE),
    "NCCL38": Case(MANY_AR, arguments=MIXED),
    "NCCL39": Case(SC, arguments=RESHAPED),
    "NCCL40": Case(AR, device="cpu"),
    "NCCL41": Case(BASE_AG, arguments=OVER),
    "NCCL42": Case(BASE_RS, arguments={**OVER_RS, "output_tensor": at(4)}),
    "NCCL43": Case(AG, arguments=OVERLAID),
    "NCCL44": Case(MANY_AR, arguments={"tensors": [at(0), at(2)]}),
    "NCCL45": Case(SC, C),
    "NCCL46": Case(BASE_RS, size=1, arguments=alone(dtype=FNUZ)),
    "NCCL47": Case(OUT_RS, reduce_op="sum", size=1, arguments=alone(OUT_RS, S, dtype=C64)),
    "XCCL1": Case(AG, dtype=I16),
    "XCCL2": Case(AR, dtype=I16),
    "XCCL3": Case(AR, dtype=FP8),
    "XCCL4": Case(FUN_RS, dtype=FP8),
    "XCCL5": Case(FUN_RS, dtype=C64, reduce_op="max"),
    "XCCL6": Case(RD, dtype=I32, reduce_op="premul_sum"),
    "XCCL7": Case(RD, reduce_op="premul_sum", facts={"version": (2021, 15)}),
    "XCCL8": Case(BASE_RS, reduce_op="premul_sum"),
    "XCCL9": Case(AR, T, size=1),
    "XCCL10": Case(AG, T),
    "XCCL11": Case(BASE_AG, o=T),
    "XCCL12": Case(LISTS, S),
    "XCCL13": Case(RS, o=T),
    "XCCL14": Case(MANY_AR, S),
    "XCCL15": Case(OUT_RS, o=C),
    "XCCL16": Case(AG, C),
    "XCCL17": Case(RS, o=C),
    "XCCL18": Case(GA, o=S),
    "XCCL19": Case(AG, arguments=SLICED_UNEVEN),
    "XCCL20": Case(RS, arguments=UNEVEN_S),
    "XCCL21": Case(BASE_AG, C),
    "XCCL22": Case(AG, arguments=PERMUTED_UNEVEN),
    "XCCL23": Case(GA, o=C),
    "XCCL25": Case(AR, arguments=TWO),
    "XCCL26": Case("c10d::recv_any_source_"),
    "XCCL27": Case(AR, arguments=SPARSE),
    "XCCL28": Case(MANY_AR, arguments=MIXED),
    "XCCL29": Case(SC, arguments=RESHAPED),
    "XCCL30": Case(AR, device="cpu"),
    "XCCL31": Case(SC, C),
    "XCCL32": Case(A2A, arguments=ROWS_OUT),
    "XCCL33": Case(A2A, arguments=ROWS),
    "HCCL1": Case(AG, dtype=torch.float8_e5m2fnuz),
    "HCCL2": Case(F + "all_reduce", dtype=torch.float8_e5m2fnuz),
    "HCCL3": Case(AR, reduce_op="bxor", dtype=I32),
    "HCCL4": Case(BASE_RS, dtype=BOOL),
    "HCCL5": Case(RS, dtype=U8),
    "HCCL6": Case(FUN_RS, dtype=U8),
    "HCCL7": Case(FUN_RS, dtype=C64, reduce_op="min"),
    "HCCL8": Case(AR, dtype=F64, facts={"compute_capability": (910,)}),
    "HCCL9": Case(RS, dtype=F64, facts={"compute_capability": (910,)}),
    "HCCL10": Case(MANY_RS, reduce_op="premul_sum"),
    "HCCL11": Case(AR, T, size=1),
    "HCCL12": Case(LISTS, T),
    "HCCL13": Case(BASE_RS, T, T),
    "HCCL14": Case(SC, o=T, arguments={
        "input_tensors": [each(SHAPE, T)], "output_tensors": [spec(SHAPE, T)], "root_rank": 0
    }),
    "HCCL15": Case("c10d::send", T),
    "HCCL16": Case(MANY_AR, S),
    "HCCL17": Case(AG, o=S),
    "HCCL18": Case(RS, S),
    "HCCL19": Case(MANY_AG, S),
    "HCCL20": Case(BASE_RS, o=S),
    "HCCL21": Case(OUT_AG, o=C),
    "HCCL22": Case(RS, o=C),
    "HCCL23": Case(BASE_AG, C),
    "HCCL25": Case(BC, arguments={**TWO, "root_rank": 0}),
    "HCCL26": Case("c10d::allgather_coalesced_"),
    "HCCL27": Case(GA),
    "HCCL28": Case(AR, arguments=SPARSE),
    "HCCL29": Case(MANY_AR, arguments=MIXED),
    "HCCL30": Case(SC, arguments=RESHAPED),
    "HCCL31": Case(A2A, arguments=ROWS_OUT),
    "HCCL32": Case(AR, device="cpu"),
    "UCC1": Case(AR, dtype=I16),
    "UCC2": Case(F + "all_reduce", dtype=I16),
    "UCC3": Case(F + "all_to_all_single", dtype=C64),
    "UCC4": Case(AG, dtype=I16, device="cuda"),
    "UCC5": Case(AR, dtype=BOOL, reduce_op="avg"),
    "UCC6": Case(RD, reduce_op="premul_sum"),
    "UCC7": Case(RD, dtype=BOOL),
    "UCC8": Case(AR, T, size=1),
    "UCC9": Case(BASE_AG, o=C),
    "UCC10": Case(RS, o=C),
    "UCC11": Case("c10d::recv_", T),
    "UCC12": Case(AG, S, device="cuda"),
    "UCC13": Case(AG, o=S),
    "UCC14": Case(AG, C),
    "UCC15": Case(LISTS, S),
    "UCC16": Case(GA, C),
    "UCC17": Case(RS, arguments=UNEVEN_RS),
    "UCC18": Case(AG, arguments=UNEVEN_AG, device="cuda"),
    "UCC19": Case(AG, arguments=UNEVEN_AG),
    "UCC20": Case(A2A, arguments=ROWS),
    "UCC21": Case(F + "all_gather_into_tensor"),
    "UCC22": Case(AR, arguments=TWO),
    "UCC23": Case(AR, arguments=SPARSE),
    "UCC24": Case(AR, device="xpu"),
    "MPI1": Case(AG, dtype=BF16),
    "MPI2": Case(F + "all_reduce", dtype=F16),
    "MPI3": Case(AR, reduce_op="avg"),
    "MPI4": Case(AR, C, size=1),
    "MPI5": Case(AG, o=T),
    "MPI6": Case("c10d::send", C),
    "MPI7": Case(LISTS, T, T),
    "MPI8": Case(BASE_AG, S),
    "MPI9": Case(BASE_AG, C),
    "MPI10": Case(OUT_AG, o=C),
    "MPI11": Case(AG, arguments=UNEVEN_AG),
    "MPI12": Case(A2A, arguments=ROWS_OUT),
    "MPI13": Case(MANY_AR),
    "MPI14": Case(AR, arguments=TWO),
    "MPI15": Case(AR, arguments=SPARSE),
    "MPI16": Case(AR, device="xpu"),
    "FAKE1": Case("c10d::monitored_barrier_"),
    "FAKE2": Case(BASE_RS, arguments=STACKED),
    "FAKE3": Case(AG, arguments=UNEVEN_AG),
    "FAKE4": Case(BASE_AG, arguments=ROW),
    "FAKE5": Case(A2A, arguments=ROWS),
    "FAKE6": Case(F + "all_reduce", dtype=C64, reduce_op="max"),
    "FAKE7": Case(BASE_AG, arguments={"input_tensor": at(2), "output_tensor": at(0, (16,))}),
    "FAKE8": Case(A2A, arguments={"input": spec((4, 2)), "output": spec((4, 2)), "input_split_sizes": [1, 1, 1, 1]}),
    "THREADED1": Case("c10d::send"),
    "THREADED2": Case(AR, dtype=I32, reduce_op="avg"),
    "THREADED3": Case(AR, dtype=FP8),
    "THREADED4": Case(AR, reduce_op="band"),
    "THREADED5": Case(F + "all_reduce", dtype=C64, reduce_op="product"),
    "THREADED6": Case(RS, reduce_op="max"),
    "THREADED7": Case(RS, dtype=U16),
    "THREADED8": Case(RS, dtype=FP8, reduce_op="avg", size=1, arguments={
        "input_tensors": [each((4,), count=1, dtype=FP8)], "output_tensors": [spec((4,), dtype=FP8)]
    }),
    "THREADED9": Case(AR, arguments=TWO),
    "THREADED10": Case(BASE_RS, arguments=STACKED),
    "THREADED11": Case(BASE_AG, arguments=ROW),
    "THREADED12": Case(A2A, arguments=ROWS),
    "THREADED13": Case(BASE_AG, arguments=OVER),
    "THREADED14": Case(BASE_RS, arguments=OVER_RS),
}  # fmt: skip
"""The id of a limit → a call that goes beyond it. Those that are missing are found between ranks alone."""

SCALARS = {"input": spec(()), "output": spec(())}
EDGES: tuple[tuple[str, Case], ...] = (
    ("NCCL16", Case(AR, C, dtype=C64)),
    ("FAKE5", Case(A2A, arguments=SCALARS, size=1)),
    ("FAKE7", Case(BASE_AG, arguments={"input_tensor": at(2), "output_tensor": at(0)}, size=1)),
)
"""More calls beyond a limit, where its edge lies in a certain group or dtype."""

_USUAL = (AR, BC, BASE_AG, BASE_RS, RS, AG, SC, LISTS, A2A, F + "all_reduce", F + "all_to_all_single")

LEGAL: Mapping[str, tuple[Case, ...]] = {
    "xccl": (
        *map(Case, (*_USUAL, RD, GA, "c10d::send", MANY_AR, MANY_AG, MANY_RS, FUN_RS, OUT_RS, OUT_AG)),
        *(Case(op, dtype=FP8) for op in (AG, BASE_AG, BC, A2A, LISTS, SC, GA)),
        Case(AR, C),
        Case(AR, dtype=C64, reduce_op="avg"),
        Case(AR, reduce_op="premul_sum"),
        Case(RD, reduce_op="premul_sum", facts={"version": (2022, 0)}),
        Case("c10d::send", T),
        Case(LISTS, T, T),
        Case(AG, o=S),
        Case(AG, arguments=UNEVEN_AG),
        Case(RS, S),
        Case(RS, arguments=UNEVEN_RS),
        Case(BASE_RS, C, C),
        Case(FUN_RS, T),
    ),
    "hccl": (
        *map(Case, (*_USUAL, RD, "c10d::send", MANY_AR, MANY_AG, MANY_RS, FUN_RS, OUT_RS, OUT_AG)),
        *(Case(op, dtype=dtype) for op in (AG, BASE_AG, BC, A2A, LISTS, SC) for dtype in (FP8, I16, U16, BOOL)),
        *(Case(AR, dtype=dtype, reduce_op="sum") for dtype in (BOOL, U8, I16, BF16)),
        Case(AR, dtype=F64, facts={"compute_capability": (950,)}),
        Case(AR, C),
        Case(AG, o=T),
        Case(AG, arguments=UNEVEN_AG),
        Case(F + "all_reduce", dtype=C64),
        Case(MANY_AR, T),
        Case("c10d::send", T, device="hpu"),
        Case(AR, dtype=C64, device="hpu"),
    ),
    "ucc": (
        *map(Case, (*_USUAL, RD, GA, "c10d::send", OUT_AG)),
        *(Case(op, dtype=dtype) for op in (AG, A2A, LISTS, SC, GA) for dtype in (FP8, C64)),
        Case(F + "all_reduce", dtype=C64, reduce_op="avg"),
        Case(AR, reduce_op="bxor", dtype=I64),
        Case(AR, dtype=BOOL),
        Case(AG, o=T, device="cuda"),
        Case(GA, C, C),
        Case(LISTS, T, T),
        Case(AR, device="cuda"),
    ),
    "mpi": (
        *map(Case, (*_USUAL, RD, GA, "c10d::send", "c10d::recv_any_source_", OUT_AG)),
        *(Case(op, dtype=I16) for op in (AG, AR, A2A, LISTS, SC, GA)),
        Case(F + "all_reduce", dtype=C64),
        Case(AR, reduce_op="product", dtype=F64),
        Case(LISTS, SLICED),
        Case(BASE_RS, C, C),
        Case(F + "all_reduce", T),
    ),
    "fake": (
        *(Case(op) for op in MADE if op != "c10d::monitored_barrier_"),
        *(Case(AR, dtype=dtype, reduce_op=reduce_op) for dtype in (C64, FP8) for reduce_op in ("max", "premul_sum")),
        Case(AR, arguments=TWO),
        Case(AR, device="cuda"),
        Case(BASE_AG, arguments={"input_tensor": spec((2, 3)), "output_tensor": spec((4, 2, 3))}),
    ),
    "threaded": (
        *map(Case, (*_USUAL, GA, MANY_AR, MANY_AG, MANY_RS, FUN_RS, OUT_RS)),
        Case(AR, dtype=C64, reduce_op="product"),
        Case(AR, dtype=BOOL, reduce_op="max"),
        Case(AR, dtype=FP8, device="cuda"),
        Case(AR, reduce_op="band", size=1),
        Case(AR, reduce_op="max", arguments={"tensors": [spec((3, 0), dtype=U16)]}),
        Case(AG, arguments=UNEVEN_AG),
        Case(RS, arguments=UNEVEN_RS),
    ),
}
"""Calls that a backend takes."""


def cases() -> Iterator[tuple[str, str, Case]]:
    """Yield the backend, the id and the case of each call beyond a limit."""
    for id_, case in BEYOND.items():
        yield id_.rstrip("0123456789").lower(), id_, case
