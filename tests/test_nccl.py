"""NCCL's table by hand, op by op: what its sources take, refuse and corrupt. Nothing runs on a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import collective_rules as cr
from collective_rules.backends.nccl import NCCL
from collective_rules.spec import Memory
from collective_rules.testing.layouts import CHANNELS_LAST, SLICED, STRAIGHT, TRANSPOSED, strides

F, A, L = "_c10d_functional::", "_c10d_functional_autograd::", "c10d_functional::"
W, SHAPE = 4, (4, 2, 3, 2)

OK, REFUSED, CORRUPT, RULE = "", "raises an error", "silently corrupts the result", "no backend takes it"


def spec(shape: Any = SHAPE, layout: str = STRAIGHT, dtype: torch.dtype = torch.float32, **more: Any) -> cr.Spec:
    """A CUDA tensor."""
    return cr.Spec(shape, dtype, strides(shape, layout), "cuda", **more)


def each(shape: Any = SHAPE, layout: str = STRAIGHT, count: int = W, **more: Any) -> list[cr.Spec]:
    return [spec(shape, layout, **more) for _ in range(count)]


LARGE = (W * SHAPE[0], *SHAPE[1:])

MADE = {
    "c10d::allreduce_": lambda i, o, **d: {"tensors": [spec(SHAPE, i, **d)]},
    "c10d::broadcast_": lambda i, o, **d: {"tensors": [spec(SHAPE, i, **d)], "root_rank": 0},
    "c10d::reduce_": lambda i, o, **d: {"tensors": [spec(SHAPE, i, **d)], "root_rank": 0},
    F + "all_reduce": lambda i, o, **d: {"input": spec(SHAPE, i, **d), "reduce_op": "sum"},
    F + "all_reduce_": lambda i, o, **d: {"input": spec(SHAPE, i, **d), "reduce_op": "sum"},
    F + "broadcast_": lambda i, o, **d: {"input": spec(SHAPE, i, **d), "src": 0},
    "c10d::allreduce_coalesced_": lambda i, o, **d: {"tensors": [spec(SHAPE, i, **d), spec((5,), **d)]},
    "c10d::allgather_": lambda i, o, **d: {
        "input_tensors": [spec(SHAPE, i, **d)],
        "output_tensors": [each(SHAPE, o, **d)],
    },
    "c10d::_allgather_base_": lambda i, o, **d: {
        "input_tensor": spec(SHAPE, i, **d),
        "output_tensor": spec(LARGE, o, **d),
    },
    F + "all_gather_into_tensor_out": lambda i, o, **d: {"input": spec(SHAPE, i, **d), "out": spec(LARGE, o, **d)},
    "c10d::allgather_into_tensor_coalesced_": lambda i, o, **d: {
        "inputs": [spec(SHAPE, i, **d)],
        "outputs": [spec(LARGE, o, **d)],
    },
    "c10d::reduce_scatter_": lambda i, o, **d: {
        "input_tensors": [each(SHAPE, i, **d)],
        "output_tensors": [spec(SHAPE, o, **d)],
    },
    "c10d::_reduce_scatter_base_": lambda i, o, **d: {
        "input_tensor": spec(LARGE, i, **d),
        "output_tensor": spec(SHAPE, o, **d),
    },
    "c10d::reduce_scatter_tensor_coalesced_": lambda i, o, **d: {
        "inputs": [spec(LARGE, i, **d)],
        "outputs": [spec(SHAPE, o, **d)],
    },
    F + "reduce_scatter_tensor": lambda i, o, **d: {"input": spec(LARGE, i, **d), "reduce_op": "sum"},
    F + "reduce_scatter_tensor_out": lambda i, o, **d: {
        "input": spec(LARGE, i, **d),
        "out": spec(SHAPE, o, **d),
        "reduce_op": "sum",
    },
    "c10d::gather_": lambda i, o, **d: {
        "input_tensors": [spec(SHAPE, i, **d)],
        "output_tensors": [each(SHAPE, o, **d)],
        "root_rank": 0,
    },
    "c10d::scatter_": lambda i, o, **d: {
        "input_tensors": [each(SHAPE, i, **d)],
        "output_tensors": [spec(SHAPE, o, **d)],
        "root_rank": 0,
    },
    "c10d::alltoall_": lambda i, o, **d: {"input_tensors": each(SHAPE, i, **d), "output_tensors": each(SHAPE, o, **d)},
    "c10d::alltoall_base_": lambda i, o, **d: {"input": spec(SHAPE, i, **d), "output": spec(SHAPE, o, **d)},
    F + "all_to_all_single": lambda i, o, **d: {
        "input": spec(SHAPE, i, **d),
        "output_split_sizes": [1] * W,
        "input_split_sizes": [1] * W,
    },
    "c10d::send": lambda i, o, **d: {"tensors": [spec(SHAPE, i, **d)], "dst": 1},
    "c10d::recv_": lambda i, o, **d: {"tensors": [spec(SHAPE, i, **d)], "src": 1},
    F + "isend": lambda i, o, **d: {"tensor": spec(SHAPE, i, **d), "dst": 1, "tag": 0},
}
"""Op → its arguments on the root, from the layouts of what is read and written."""

T, S, C = TRANSPOSED, SLICED, CHANNELS_LAST
LAYOUTS = {
    "c10d::allreduce_": {T: REFUSED, S: RULE, C: OK},
    "c10d::broadcast_": {T: REFUSED, S: RULE, C: OK},
    "c10d::reduce_": {T: REFUSED, S: RULE, C: OK},
    F + "all_reduce": {T: OK, S: OK, C: OK},
    F + "all_reduce_": {T: REFUSED, S: RULE, C: OK},
    F + "broadcast_": {T: REFUSED, S: RULE, C: OK},
    "c10d::allreduce_coalesced_": {T: OK, S: REFUSED, C: OK},
    "c10d::allgather_": {T: REFUSED, S: REFUSED, C: OK},
    "c10d::_allgather_base_": {T: REFUSED, S: REFUSED, C: CORRUPT},
    F + "all_gather_into_tensor_out": {T: OK, S: OK, C: OK},
    "c10d::allgather_into_tensor_coalesced_": {T: CORRUPT, S: CORRUPT, C: CORRUPT},
    "c10d::reduce_scatter_": {T: OK, S: OK, C: OK},
    "c10d::_reduce_scatter_base_": {T: CORRUPT, S: CORRUPT, C: CORRUPT},
    "c10d::reduce_scatter_tensor_coalesced_": {T: CORRUPT, S: CORRUPT, C: CORRUPT},
    F + "reduce_scatter_tensor": {T: OK, S: OK, C: OK},
    F + "reduce_scatter_tensor_out": {T: OK, S: OK, C: OK},
    "c10d::gather_": {T: REFUSED, S: REFUSED, C: CORRUPT},
    "c10d::alltoall_": {T: REFUSED, S: REFUSED, C: CORRUPT},
    F + "all_to_all_single": {T: OK, S: OK, C: OK},
    "c10d::send": {T: OK, C: OK},
    "c10d::recv_": {T: OK, C: OK},
    F + "isend": {T: OK, C: OK},
}
"""What is read, in another layout, beside contiguous outputs."""

OUTPUTS = {
    "c10d::allgather_": {T: OK, S: OK, C: OK},
    "c10d::_allgather_base_": {T: REFUSED, S: REFUSED, C: CORRUPT},
    F + "all_gather_into_tensor_out": {T: REFUSED, S: REFUSED, C: CORRUPT},
    "c10d::allgather_into_tensor_coalesced_": {T: CORRUPT, S: CORRUPT, C: CORRUPT},
    "c10d::reduce_scatter_": {T: REFUSED, C: CORRUPT},
    "c10d::_reduce_scatter_base_": {T: CORRUPT, S: CORRUPT, C: CORRUPT},
    "c10d::reduce_scatter_tensor_coalesced_": {T: CORRUPT, S: CORRUPT, C: CORRUPT},
    F + "reduce_scatter_tensor_out": {T: CORRUPT, S: CORRUPT, C: CORRUPT},
    "c10d::gather_": {T: CORRUPT, S: CORRUPT, C: CORRUPT},
    "c10d::alltoall_": {T: REFUSED, S: REFUSED, C: CORRUPT},
}
"""What is written, in another layout, beside contiguous inputs."""

CASES = [(op, (layout, STRAIGHT), what) for op, row in LAYOUTS.items() for layout, what in row.items()]
CASES += [(op, (STRAIGHT, layout), what) for op, row in OUTPUTS.items() for layout, what in row.items()]
CASES += [(op, (C, C), OK) for op in ("c10d::_allgather_base_", "c10d::_reduce_scatter_base_", "c10d::gather_")]
CASES += [(op, (C, C), OK) for op in ("c10d::alltoall_", "c10d::alltoall_base_", "c10d::send")]
CASES += [(op, (T, T), CORRUPT) for op in ("c10d::_reduce_scatter_base_", "c10d::allgather_into_tensor_coalesced_")]


def errors(op: str, backend: Any = "nccl", size: int = W, rank: int = 0, **arguments: Any) -> list[cr.Finding]:
    made = cr.call(op, group=cr.Group(size, rank), **arguments)
    return [found for found in cr.check(made, backend) if found.severity == "error"]


def what_follows(found: list[cr.Finding]) -> str:
    """Return what the first finding says that NCCL does; RULE where every backend refuses or corrupts the call."""
    if found and not found[0].id.startswith("NCCL"):
        return RULE
    return found[0].message.partition("   [")[0].rpartition(": it ")[2] if found else OK


@pytest.mark.parametrize(("op", "layouts", "what"), CASES)
def test_layouts(op: str, layouts: tuple[str, str], what: str) -> None:
    """The one that is looked at raises; the one that is not is read, or written, as it lies."""
    assert what == what_follows(errors(op, **MADE[op](*layouts)))


@pytest.mark.parametrize(
    ("size", "shape", "layout", "op", "what"),
    [
        (1, (2, 3), S, "c10d::allreduce_", REFUSED),
        (1, (2, 3), T, "c10d::_reduce_scatter_base_", CORRUPT),
        (1, (2, 3), S, "c10d::_reduce_scatter_base_", OK),
        (1, (2, 3), T, "c10d::allgather_into_tensor_coalesced_", OK),
    ],
)
def test_groups_of_one(size: int, shape: Any, layout: str, op: str, what: str) -> None:
    """There a reduce_scatter is a copy, into what .flatten() returns; and an all_gather moves one piece of memory."""
    arguments = {"tensors": [spec(shape, layout)]}
    if "reduce_scatter" in op:
        arguments = {"input_tensor": spec(shape, T), "output_tensor": spec(shape, layout)}
    if "coalesced" in op:
        arguments = {"inputs": [spec(shape, layout)], "outputs": [spec(shape, layout)]}
    assert what == what_follows(errors(op, size=size, **arguments))


@pytest.mark.parametrize("op", ["c10d::allreduce_", "c10d::broadcast_", "c10d::reduce_", F + "all_reduce_"])
def test_a_complex_tensor_has_no_format_but_contiguous(op: str) -> None:
    """It is viewed as a real one, of a dim more, before its format is looked at."""
    assert REFUSED == what_follows(errors(op, **MADE[op](C, STRAIGHT, dtype=torch.complex64)))
    assert OK == what_follows(errors(op, **MADE[op](STRAIGHT, STRAIGHT, dtype=torch.complex64)))


@pytest.mark.parametrize(("dtype", "what"), [(torch.float32, OK), (torch.complex64, CORRUPT)])
def test_a_copy_in_a_group_of_one_does_not_reach_a_sliced_complex_output(dtype: torch.dtype, what: str) -> None:
    """`.flatten()` of its real view is a copy."""
    pair = {"input": spec((2, 3), dtype=dtype), "out": spec((2, 3), S, dtype=dtype), "reduce_op": "sum"}
    assert what == what_follows(errors(F + "reduce_scatter_tensor_out", size=1, **pair))


PLAIN = {torch.float8_e4m3fnuz: OK, torch.bool: OK, torch.bfloat16: OK, torch.int16: REFUSED, torch.uint32: REFUSED}
AS_REAL = ("allreduce_", "broadcast_", "reduce_", "all_reduce", "all_reduce_", "reduce_scatter_tensor")


@pytest.mark.parametrize("op", MADE)
def test_dtypes(op: str) -> None:
    """Bytes of float8 travel anywhere; complex tensors where they are viewed as real."""
    reduces = "reduce" in op
    for dtype, what in PLAIN.items():
        if not (reduces and dtype is torch.float8_e4m3fnuz):
            assert what == what_follows(errors(op, **MADE[op](STRAIGHT, STRAIGHT, dtype=dtype))), dtype
    name = op.partition("::")[2]
    taken = name in (*AS_REAL, "reduce_scatter_tensor_out")
    assert (OK if taken else REFUSED) == what_follows(errors(op, **MADE[op](STRAIGHT, STRAIGHT, dtype=torch.complex64)))


REDUCTIONS = [
    ("c10d::allreduce_", "avg", torch.int32, OK),
    ("c10d::allreduce_", "avg", torch.bool, REFUSED),
    ("c10d::allreduce_", "sum", torch.bool, OK),
    ("c10d::allreduce_", "bxor", torch.int32, REFUSED),
    ("c10d::allreduce_", "max", torch.complex64, REFUSED),
    ("c10d::allreduce_", "avg", torch.complex64, OK),
    ("c10d::allreduce_", "premul_sum", torch.float16, OK),
    ("c10d::allreduce_", "premul_sum", torch.int32, REFUSED),
    ("c10d::allreduce_", "premul_sum", torch.bfloat16, CORRUPT),
    ("c10d::_reduce_scatter_base_", "premul_sum", torch.bfloat16, CORRUPT),
    ("c10d::reduce_", "max", torch.float8_e5m2fnuz, CORRUPT),
    ("c10d::allreduce_", "sum", torch.float8_e5m2fnuz, REFUSED),
    ("c10d::reduce_scatter_", "sum", torch.float8_e5m2fnuz, REFUSED),
    (F + "reduce_scatter_tensor", "min", torch.complex64, CORRUPT),
    (F + "reduce_scatter_tensor", "avg", torch.complex64, OK),
]
NOTHING = {"input": spec((W, 0), dtype=torch.complex64), "reduce_op": "max"}


@pytest.mark.parametrize(("op", "reduce_op", "dtype", "what"), REDUCTIONS)
def test_reductions(op: str, reduce_op: str, dtype: torch.dtype, what: str) -> None:
    """Each reduce op, of the dtypes at its edges."""
    assert what == what_follows(errors(op, **{**MADE[op](STRAIGHT, STRAIGHT, dtype=dtype), "reduce_op": reduce_op}))
    assert [] == errors(F + "reduce_scatter_tensor", **NOTHING)


def test_a_group_of_one_looks_at_few_dtypes_of_a_reduce_scatter_and_applies_no_factor() -> None:
    """It copies."""
    odd = torch.float8_e4m3fnuz
    for dtype, reduce_op, what in (
        (torch.int16, "sum", OK),
        (torch.float32, "premul_sum", CORRUPT),
        (odd, "max", REFUSED),
        (torch.float8_e8m0fnu, "max", REFUSED),
    ):
        pair = {"input_tensor": spec((4,), dtype=dtype), "output_tensor": spec((4,), dtype=dtype)}
        assert what == what_follows(errors("c10d::_reduce_scatter_base_", size=1, **pair, reduce_op=reduce_op))


@pytest.mark.parametrize("op", ["c10d::allreduce_", "c10d::reduce_scatter_"])
@pytest.mark.parametrize(
    ("backend", "severities"),
    [
        ("nccl", ["undecidable"]),
        (cr.Backend("nccl", version=(2, 21)), ["error"]),
        (cr.Backend("nccl", compute_capability=(8, 0)), ["error"]),
        (cr.Backend("nccl", version=(2, 24)), ["undecidable"]),
        (cr.Backend("nccl", version=(2, 27, 3), compute_capability=(9, 0)), []),
    ],
)
def test_what_depends_on_the_version_and_the_devices(op: str, backend: Any, severities: list[str]) -> None:
    """float8 is reduced from NCCL 2.24 and compute capability 9.0 on."""
    arguments = MADE[op](STRAIGHT, STRAIGHT, dtype=torch.float8_e4m3fn)
    found = cr.check(cr.call(op, group=cr.Group(W), **arguments), backend)
    assert severities == [each_.severity for each_ in found]


def at(offset: int, shape: Any = (4,)) -> cr.Spec:
    return spec(shape, memory=Memory(1, offset))


OVERLAPS = [
    ("c10d::_allgather_base_", 1, {"input_tensor": at(4), "output_tensor": at(0, (16,))}, OK),
    ("c10d::_allgather_base_", 1, {"input_tensor": at(8), "output_tensor": at(0, (16,))}, CORRUPT),
    ("c10d::_reduce_scatter_base_", 2, {"input_tensor": at(0, (16,)), "output_tensor": at(8)}, OK),
    ("c10d::_reduce_scatter_base_", 2, {"input_tensor": at(0, (16,)), "output_tensor": at(0)}, CORRUPT),
    ("c10d::gather_", 0, {"input_tensors": [at(0)], "output_tensors": [[at(4 * k) for k in range(4)]], "root_rank": 0},
     OK),
    ("c10d::gather_", 0, {"input_tensors": [at(4)], "output_tensors": [[at(4 * k) for k in range(4)]], "root_rank": 0},
     CORRUPT),
    ("c10d::allgather_", 0, {"input_tensors": [at(8)], "output_tensors": [[at(4 * k) for k in range(4)]]}, OK),
    ("c10d::reduce_scatter_", 0, {"input_tensors": [[at(4 * k) for k in range(4)]], "output_tensors": [at(12)]}, OK),
    ("c10d::allreduce_coalesced_", 0, {"tensors": [at(0), at(2)]}, CORRUPT),
    ("c10d::allreduce_coalesced_", 0, {"tensors": [at(0), at(4)]}, OK),
    ("c10d::alltoall_", 0, {"input_tensors": [at(4 * k) for k in range(4)], "output_tensors": [at(4 * k) for k in
                                                                                           range(4)]}, CORRUPT),
]  # fmt: skip


@pytest.mark.parametrize(("op", "rank", "arguments", "what"), OVERLAPS)
def test_overlaps(op: str, rank: int, arguments: dict[str, Any], what: str) -> None:
    """In place is this rank's own piece; the list forms of one shape copy first."""
    assert what == what_follows(errors(op, rank=rank, **arguments))


def test_in_place_in_an_alltoall_is_every_backends_error() -> None:
    """Its memory is sent and received in no order."""
    pair = {"input": at(0), "output": at(0)}
    assert ["overlap"] == [cr.lookup("c10d::alltoall_base_").rule.constraints[f.id] for f in
                           errors("c10d::alltoall_base_", None, **pair)]  # fmt: skip


RESHAPED = [
    ("c10d::_allgather_base_", {"input_tensor": spec((2, 3)), "output_tensor": spec((6, 4))}),
    ("c10d::_allgather_base_", {"input_tensor": spec((2, 3)), "output_tensor": spec((24,))}),
    ("c10d::_reduce_scatter_base_", {"input_tensor": spec((24,)), "output_tensor": spec((2, 3))}),
    ("c10d::_reduce_scatter_base_", {"input_tensor": spec((2, 2)), "output_tensor": spec((1,))}),
    ("c10d::alltoall_base_", {"input": spec((2, 2)), "output": spec((4,))}),
    ("c10d::alltoall_base_", {"input": spec((4, 2, 3)), "output": spec((4, 6)), "input_split_sizes": [1] * W,
                              "output_split_sizes": [1] * W}),
    ("c10d::allgather_", {"input_tensors": [spec((2, 3))], "output_tensors": [each((6,))]}),
    ("c10d::reduce_scatter_", {"input_tensors": [each((2, 3))], "output_tensors": [spec((6,))]}),
    ("c10d::alltoall_", {"input_tensors": each((2, 3)), "output_tensors": each((6,))}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "arguments"), RESHAPED)
def test_equally_many_elements_in_another_shape(op: str, arguments: dict[str, Any]) -> None:
    """Torch does not document it: a warning, on NCCL too; gloo refuses most."""
    made = cr.call(op, group=cr.Group(W), **arguments)
    assert {"warning"} == {found.severity for found in cr.check(made)}
    assert {"warning"} == {found.severity for found in cr.check(made, "nccl")}
    refused = any(found.id.startswith("GLOO") and found.severity == "error" for found in cr.check(made, "gloo"))
    assert refused is not ("alltoall_base" in op and arguments["input"].shape[0] % W == 0)


@pytest.mark.parametrize(
    ("op", "arguments", "id_"),
    [
        ("c10d::gather_", {"input_tensors": [spec((2, 3))], "output_tensors": [each((6,))], "root_rank": 0}, "NCCL39"),
        ("c10d::broadcast_", {"tensors": each((4,), count=2), "root_rank": 0}, "NCCL35"),
        ("c10d::recv_any_source_", {"tensors": [spec((4,))]}, "NCCL36"),
        ("c10d::allreduce_", {"tensors": [spec((4,), layout=STRAIGHT)], "reduce_op": "band"}, "NCCL5"),
        ("c10d::allreduce_coalesced_", {"tensors": [spec((4,)), spec((4,), dtype=torch.int8)]}, "NCCL38"),
        ("c10d::allreduce_", {"tensors": [cr.Spec((4,))]}, "NCCL40"),
        ("c10d::allreduce_", {"tensors": [cr.Spec((4,), device="cuda", layout="sparse_coo")]}, "NCCL37"),
    ],
)
def test_other_limits(op: str, arguments: dict[str, Any], id_: str) -> None:
    """Shapes, lists, missing ops, devices, sparse tensors."""
    assert id_ in [found.id for found in errors(op, **arguments)]


def test_a_batch_may_hold_a_message_to_its_own_rank_but_on_gloo() -> None:
    """A send alone may not: it waits for its own receive."""
    batch = {"op_list": ["isend", "irecv"], "peer_list": [0, 0], "tag_list": [0, 0], "tensors": each((4,), count=2)}
    assert [] == errors(F + "batch_p2p_ops", None, **batch)
    assert [] == errors(F + "batch_p2p_ops", **batch)
    assert ["GLOO22"] == [found.id for found in errors(F + "batch_p2p_ops", "gloo", **batch)]
    assert ["peer"] == [cr.lookup(F + "isend").rule.constraints[f.id] for f in
                        errors(F + "isend", tensor=spec((4,)), dst=0, tag=0)]  # fmt: skip


def test_a_message_has_one_order_of_dims_at_both_ends() -> None:
    """Raw memory travels: transposed to transposed is right, to contiguous is not."""

    def ends(layout: str) -> list[cr.Call]:
        sent = cr.call("c10d::send", group=cr.Group(2, 0), tensors=[spec((2, 3), T)], dst=1)
        return [sent, cr.call("c10d::recv_", group=cr.Group(2, 1), tensors=[spec((2, 3), layout)], src=0)]

    assert [] == list(cr.agree(ends(T), "nccl"))
    (found,) = cr.agree(ends(STRAIGHT), "nccl")
    assert (found.severity, cr.lookup("c10d::recv_").rule.constraints[found.id]) == ("error", "order")


def test_a_coalesced_all_reduce_has_one_order_on_every_rank() -> None:
    """On gloo each rank copies."""
    calls = [
        cr.call("c10d::allreduce_coalesced_", group=cr.Group(2, rank), tensors=[spec((2, 3), layout)])
        for rank, layout in enumerate((STRAIGHT, T))
    ]
    assert ["error"] == [found.severity for found in cr.agree(calls, "nccl")]
    assert () == cr.agree(calls, "gloo")


def test_the_table_says_by_what_it_was_verified() -> None:
    """And each of its rows, what follows."""
    assert "not run" in NCCL.verified
    assert all(limit.follows for limit in NCCL.limits)
