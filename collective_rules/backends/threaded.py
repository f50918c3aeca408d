"""What torch's threaded backend takes, whose ranks are threads: measured on torch 2.13.0. Rows only.

Every op, dtype and reduce op was tried. Rank 0 does the work of all: what it cannot do raises there, and the others
wait for ever. The limits on what is reduced are those of torch's kernels for the cpu; of tensors elsewhere nothing is
said.
"""

from __future__ import annotations

import torch

from collective_rules.backends.fake import FAKE
from collective_rules.backends.limit import CORRUPTS, RAISES, BackendTable, Limit
from collective_rules.backends.op_names import (
    ALL_REDUCES,
    ANY_DTYPE,
    BOOL,
    BY_PARTS,
    COMPLEX,
    FLOATS,
    FNUZ,
    FP8,
    INTS,
    NO_DTYPE,
    REDUCE_SCATTERS,
    UNSIGNED,
    F,
)
from collective_rules.finding import UNDECIDABLE
from collective_rules.ops.op import NEVER, OWN

_FP8 = FP8 | FNUZ | {torch.float8_e8m0fnu}
_BITS = INTS | BOOL | UNSIGNED | {torch.int16}
_OTHER_OPS = dict.fromkeys(("product", "min", "max", "band", "bor", "bxor", "premul_sum"), NO_DTYPE)
_ALL_REDUCES_SCATTERS = (*REDUCE_SCATTERS, *BY_PARTS)
_ELSE = "Reduce in another dtype, or with another op (avg of integers: sum, then divide)."

THREADED = BackendTable(
    name="threaded",
    source="torch/testing/_internal/distributed/multi_threaded_pg.py",
    verified="measured on torch 2.13.0",
    limits=(
        Limit(
            "THREADED1",
            "no messages, and none of these ops",
            "Use all_reduce, all_gather of each tensor, broadcast, or barrier.",
            ops=(
                "c10d::reduce_",
                "c10d::allgather_coalesced_",
                "c10d::monitored_barrier_",
                F + "all_gather_into_tensor_out",
            ),
            rules=("send", "recv", "batch_p2p"),
            missing=True,
            follows=RAISES,
        ),
        Limit(
            "THREADED2",
            "avg of floating and complex tensors; premul_sum of none",
            _ELSE,
            ops=ALL_REDUCES,
            reduces={"avg": FLOATS | COMPLEX | _FP8, "premul_sum": NO_DTYPE},
            follows=RAISES,
        ),
        Limit(
            "THREADED3",
            "no float8; min and max of integers but uint16, uint32 and uint64, of bool and of floating ones",
            _ELSE,
            ops=ALL_REDUCES,
            reduces={
                **dict.fromkeys(("sum", "avg", "product"), ANY_DTYPE - _FP8),
                **dict.fromkeys(("min", "max"), ANY_DTYPE - _FP8 - UNSIGNED - COMPLEX),
            },
            spares_empty=True,
            on=("cpu",),
            follows=RAISES,
        ),
        Limit(
            "THREADED4",
            "band, bor and bxor of integers and bool",
            "Reduce in another dtype.",
            ops=ALL_REDUCES,
            reduces=dict.fromkeys(("band", "bor", "bxor"), _BITS),
            from_size=2,
            spares_empty=True,
            on=("cpu",),
            follows=RAISES,
        ),
        FAKE.taken("FAKE6", "THREADED5"),
        Limit(
            "THREADED6",
            "sum, and avg of floating and complex tensors; no other reduction",
            _ELSE,
            ops=_ALL_REDUCES_SCATTERS,
            reduces={"avg": FLOATS | COMPLEX | _FP8, **_OTHER_OPS},
            follows=RAISES,
        ),
        Limit(
            "THREADED7",
            "sum of any dtype but float8, uint16, uint32 and uint64",
            "Reduce in another dtype.",
            ops=_ALL_REDUCES_SCATTERS,
            reduces={"sum": ANY_DTYPE - _FP8 - UNSIGNED},
            from_size=2,
            spares_empty=True,
            on=("cpu",),
            follows=RAISES,
        ),
        Limit(
            "THREADED8",
            "avg of no float8",
            "Reduce in another dtype.",
            ops=_ALL_REDUCES_SCATTERS,
            reduces={"avg": ANY_DTYPE - _FP8},
            spares_empty=True,
            on=("cpu",),
            follows=RAISES,
        ),
        Limit(
            "THREADED9",
            "one tensor in a list: several are reduced each by itself, and a broadcast ignores the root tensor",
            "Call the op once for each tensor.",
            ops=("c10d::allreduce_", "c10d::broadcast_"),
            most_tensors=1,
            follows=CORRUPTS,
        ),
        FAKE.taken("FAKE2", "THREADED10"),
        Limit(
            "THREADED11",
            "an output of several rows: a row is not cut into the ranks' pieces",
            "Gather into an output of (W d), and reshape it afterwards.",
            ops=("c10d::_allgather_base_",),
            forms=("concatenated", "stacked", "reshaped"),
            from_size=2,
            follows=RAISES,
        ),
        Limit(
            "THREADED12",
            "without split sizes, tensors whose first dim the ranks divide: rows that are left over do not travel",
            "Reshape the tensors, or pad them.",
            ops=("c10d::alltoall_base_",),
            divides=("input", "output"),
            follows=CORRUPTS,
        ),
        Limit(
            "THREADED13",
            "in place, this rank's own piece alone: what was written is read for the ranks that follow",
            "Write to a fresh tensor, for instance torch.empty_like(...).",
            ops=(
                "c10d::allgather_",
                "c10d::_allgather_base_",
                "c10d::allgather_into_tensor_coalesced_",
                "c10d::gather_",
            ),
            overlap=OWN,
            from_size=2,
            severity=UNDECIDABLE,
            follows=CORRUPTS,
        ),
        Limit(
            "THREADED14",
            "tensors that share no memory, unless what is overwritten was read before: that depends on the ranks",
            "Write to a fresh tensor, for instance torch.empty_like(...).",
            ops=(
                "c10d::alltoall_",
                "c10d::reduce_scatter_",
                "c10d::_reduce_scatter_base_",
                "c10d::reduce_scatter_tensor_coalesced_",
                F + "reduce_scatter_tensor_out",
            ),
            overlap=NEVER,
            from_size=2,
            severity=UNDECIDABLE,
            follows=CORRUPTS,
        ),
    ),
)
