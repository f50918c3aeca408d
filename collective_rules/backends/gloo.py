"""What gloo takes: measured on torch 2.13.0 (CPU), every op × dtype × reduce op × group size. Rows only.

A dtype or reduce op that gloo refuses is refused in every group size and for empty tensors too, when the work is
waited on; some ops have overwritten their arguments by then.
"""

from __future__ import annotations

import torch

from collective_rules.backends.limit import CORRUPTS, RAISES, BackendTable, Limit
from collective_rules.backends.matching import Matching
from collective_rules.finding import WARNING
from collective_rules.ops.op import CONTIGUOUS, DENSE, UP_TO_OWN

_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_INTS = frozenset({torch.int8, torch.uint8, torch.int32, torch.int64})
_BOOL = frozenset({torch.bool})
_COMPLEX = frozenset({torch.complex64, torch.complex128})
_REAL = _FLOATS | _INTS | _BOOL

_REDUCING = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor")
_F, _A, _L = "_c10d_functional::", "_c10d_functional_autograd::", "c10d_functional::"

_CONCATENATES = (
    "c10d::allgather_coalesced_",
    "c10d::allgather_into_tensor_coalesced_",
    _F + "all_gather_into_tensor_coalesced",
    _L + "all_gather_into_tensor_coalesced",
)

_COMPONENTWISE = (
    _F + "reduce_scatter_tensor",
    _F + "reduce_scatter_tensor_out",
    _A + "reduce_scatter_tensor",
    _L + "reduce_scatter_tensor",
)

_REDUCES = {
    "sum": _REAL | _COMPLEX,
    "avg": _FLOATS | _COMPLEX,
    "product": _REAL,
    "min": _REAL,
    "max": _REAL,
    "band": _INTS | _BOOL,
    "bor": _INTS | _BOOL,
    "bxor": _INTS | _BOOL,
    "premul_sum": frozenset[torch.dtype](),
}

GLOO = BackendTable(
    name="gloo",
    source="torch/csrc/distributed/c10d/ProcessGroupGloo.cpp",
    verified="measured on torch 2.13.0",
    lists=True,
    needs_wait=True,
    matching=Matching(
        alike=(
            ("all_gather", "all_gather_into_tensor"),
            ("all_reduce", "reduce_scatter_tensor"),
            ("all_to_all", "all_to_all_single"),
        )
    ),
    limits=(
        Limit(
            "GLOO1",
            "float16, bfloat16, float32, float64, int8, uint8, int32, int64, bool, complex64 and complex128",
            "Convert to one of these dtypes, for instance with .view(torch.uint8) where nothing is reduced.",
            ops=(
                "c10d::broadcast_",
                _F + "broadcast",
                _F + "broadcast_",
                _L + "broadcast",
                _F + "all_gather_into_tensor",
                _A + "all_gather_into_tensor",
                _L + "all_gather_into_tensor",
                "_dtensor::shard_dim_alltoall",
            ),
            rules=_REDUCING,
            dtypes=_REAL | _COMPLEX,
            follows=RAISES,
        ),
        Limit(
            "GLOO2",
            "float16, bfloat16, float32, float64, int8, uint8, int32, int64 and bool",
            "Convert to one of these dtypes; a complex tensor travels as torch.view_as_real(...).",
            ops=(
                "c10d::_allgather_base_",
                "c10d::allgather_into_tensor_coalesced_",
                _F + "all_gather_into_tensor_out",
                _F + "all_gather_into_tensor_coalesced",
                _L + "all_gather_into_tensor_coalesced",
            ),
            rules=("all_gather", "gather", "scatter", "all_to_all", "all_to_all_single"),
            dtypes=_REAL,
            follows=RAISES,
        ),
        Limit(
            "GLOO3",
            "sum of any dtype; avg of floating and complex ones; product, min and max of real ones; "
            "band, bor and bxor of integers and bool; premul_sum of none",
            "Reduce in another dtype, or with another op (avg of integers: sum, then divide).",
            rules=_REDUCING,
            but=_COMPONENTWISE,
            reduces=_REDUCES,
            follows=RAISES,
        ),
        Limit(
            "GLOO4",
            "a sum of bool stores the bytes 2, 3, … in these ops, which read as True but do not compare equal to it",
            "Use bor, or max.",
            ops=(
                "c10d::allreduce_",
                "c10d::reduce_",
                "c10d::reduce_scatter_",
                _F + "all_reduce",
                _F + "all_reduce_",
                _L + "all_reduce",
            ),
            reduces={"sum": _REAL - _BOOL | _COMPLEX},
            from_size=2,
            spares_empty=True,
            severity=WARNING,
            follows=CORRUPTS,
        ),
        Limit(
            "GLOO5",
            "the concatenated form alone: no stacked, flat or 0-d output",
            "Pass an output of (W d, *s), and reshape it afterwards.",
            rules=("all_gather_into_tensor", "reduce_scatter_tensor"),
            forms=("concatenated",),
            follows=RAISES,
        ),
        Limit(
            "GLOO6",
            "even lists alone: all tensors of one shape",
            "Pad to one shape, or use all_to_all_single with split sizes.",
            rules=("all_gather", "all_to_all"),
            forms=("even",),
            follows=RAISES,
        ),
        Limit(
            "GLOO7",
            "equal shapes, where the rule is content with equally many elements",
            "Reshape one side with .view(...).",
            ops=("c10d::allreduce_", "c10d::broadcast_"),
            rules=("all_gather", "gather", "scatter", "all_to_all", "reduce_scatter"),
            exact=True,
            follows=RAISES,
        ),
        Limit(
            "GLOO8",
            "lists of one dtype",
            "Call the op once for each dtype.",
            ops=(
                "c10d::allreduce_coalesced_",
                _F + "all_reduce_coalesced",
                _F + "all_reduce_coalesced_",
                _L + "all_reduce_coalesced",
            ),
            one_dtype=True,
            follows=RAISES,
        ),
        Limit(
            "GLOO9",
            "no empty tensor from any source",
            "Name the source, or do not send empty tensors.",
            ops=("c10d::recv_any_source_",),
            nonempty=True,
            follows=RAISES,
        ),
        Limit(
            "GLOO10",
            "lists that travel as one tensor, in the dtype of the first: the others must be promoted to it",
            "Call the op once for each dtype.",
            ops=_CONCATENATES,
            promotes=True,
            follows=CORRUPTS,
        ),
        Limit(
            "GLOO11",
            "lists of one dtype: another is rounded to that of the first",
            "Call the op once for each dtype.",
            ops=_CONCATENATES,
            one_dtype=True,
            severity=WARNING,
        ),
        Limit(
            "GLOO12",
            "avg of one tensor at a time: of several, the first is divided by W, and the others are not",
            "Call the op once for each tensor, or reduce with sum and divide.",
            ops=("c10d::allreduce_",),
            single=("avg",),
            follows=CORRUPTS,
        ),
        Limit(
            "GLOO13",
            "a sum of sparse tensors, and no other reduction of them",
            "Convert with .to_dense() first.",
            ops=("c10d::allreduce_",),
            sparse_reduces=("sum",),
            follows=RAISES,
        ),
        Limit(
            "GLOO14",
            "no symmetric memory",
            "Use the c10d or functional op of the same rule.",
            namespaces=("symm_mem",),
            missing=True,
            follows=RAISES,
        ),
        Limit(
            "GLOO15",
            "as GLOO3; product, min and max of complex tensors are taken of the real and imaginary parts apart",
            "Reduce with sum or avg, or reduce torch.view_as_real(...) where that is meant.",
            ops=_COMPONENTWISE,
            reduces={name: _REDUCES[name] for name in ("product", "min", "max")},
            from_size=2,
            spares_empty=True,
            follows=CORRUPTS,
        ),
        Limit(
            "GLOO16",
            "as GLOO3, but for product, min and max, which see GLOO15",
            "Reduce in another dtype, or with another op (avg of integers: sum, then divide).",
            ops=_COMPONENTWISE,
            reduces={name: dtypes for name, dtypes in _REDUCES.items() if name not in ("product", "min", "max")},
            follows=RAISES,
        ),
        Limit(
            "GLOO17",
            "of a contiguous tensor alone in its list, the strides of a fresh one: those of sizes of 1 count too",
            "Pass a .clone(memory_format=torch.contiguous_format), and copy it back.",
            ops=("c10d::allreduce_coalesced_", _F + "all_reduce_coalesced_"),
            fresh_strides=True,
            follows=RAISES,
        ),
        Limit(
            "GLOO18",
            "as GLOO4, of a tensor alone in its list",
            "Use bor, or max.",
            ops=(
                "c10d::allreduce_coalesced_",
                _F + "all_reduce_coalesced",
                _F + "all_reduce_coalesced_",
                _L + "all_reduce_coalesced",
            ),
            reduces={"sum": _REAL - _BOOL | _COMPLEX},
            alone=True,
            from_size=2,
            spares_empty=True,
            severity=WARNING,
            follows=CORRUPTS,
        ),
        Limit(
            "GLOO19",
            "contiguous messages",
            "Call .contiguous() first, and copy into the tensor what was received.",
            rules=("send", "recv"),
            layouts={"input": CONTIGUOUS, "output": CONTIGUOUS},
            follows=RAISES,
        ),
        Limit(
            "GLOO20",
            "tensors that lie in memory in one order of dims, but for this rank's own input: dense ones are copied as "
            "they lie",
            "Call .contiguous() on every rank.",
            ops=("c10d::reduce_scatter_",),
            ordered=("inputs", "output"),
            from_size=2,
            spares_own=True,
            follows=CORRUPTS,
        ),
        Limit(
            "GLOO21",
            "an output in the memory of the inputs up to this rank's own, and of none behind it",
            "Write to a fresh tensor, for instance torch.empty_like(...).",
            ops=("c10d::reduce_scatter_",),
            overlap=UP_TO_OWN,
            follows=CORRUPTS,
        ),
        Limit(
            "GLOO22",
            "messages to other ranks alone",
            "Copy the tensor: a message to this very rank needs no backend.",
            rules=("batch_p2p",),
            to_others=True,
            follows=RAISES,
        ),
        Limit(
            "GLOO23",
            "without split sizes, tensors whose first dim the ranks divide",
            "Reshape the tensors, or pad them.",
            rules=("all_to_all_single",),
            divides=("input", "output"),
            follows=CORRUPTS,
        ),
        Limit(
            "GLOO24",
            "dense tensors in one order of dims, also where the root exchanges them with itself: memory is copied",
            "Call .contiguous() on every rank.",
            ops=("c10d::scatter_",),
            layouts={"inputs": DENSE, "output": DENSE},
            ordered=("inputs", "output"),
            follows=CORRUPTS,
        ),
    ),
)
