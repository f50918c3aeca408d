"""Bytes of every row against a second computation, and by the conventions of two other tools."""

import doctest
import os
import socket
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch.distributed._tools import fake_collectives as peer

import collective_rules as cr
from collective_rules import Spec
from collective_rules.conventions import chakra_comm_size, collective_op_bytes
from collective_rules.testing import calls, sample, world
from collective_rules.testing.drawing import drawable
from collective_rules.testing.expected import expected_values
from collective_rules.testing.tensors import flat
from tests.test_symm_mem import TRAFFIC

DRAWN = tuple(
    row.op
    for row in map(cr.lookup, cr.ops())
    if not drawable(row) and row.rule.name not in ("put", "get", "all_to_all_vdev")
)
"""What an oracle computes; of the others, `test_symm_mem` has the bytes that were computed by hand."""


def one_call(op: str, rank: int, /, **arguments: Any) -> cr.Call:
    """One rank's call, in a group of two."""
    return cr.call(op, group=cr.Group(size=2, rank=rank), **arguments)


def foreign(rank: int, value: torch.Tensor) -> int:
    """How many contributions of other ranks the elements hold, where each rank's is one bit."""
    return sum((element & ~(1 << rank)).bit_count() for element in value.reshape(-1).tolist())


def marked(value: Any, rank: int) -> Any:
    """Tensors of the sizes of `value`, a `Spec` or lists of them, in which every element is this rank's bit."""
    if isinstance(value, Spec):
        return torch.full(value.shape, 1 << rank, dtype=torch.int64)
    return [marked(item, rank) for item in value]


def crossed(group: tuple[cr.Call, ...]) -> float:
    """The bytes that must go from one rank to another, by whose contributions the oracle's results hold."""
    made, written = {}, {}
    for call in group:
        row, rank = call.row, call.group.rank
        tensors = {name: marked(call.arguments[name], rank) for name in row.reads or row.writes}
        mixed = attrs.evolve(call, arguments={**call.arguments, row.reduce_op: "bor"}) if row.reduce_op else call
        made[rank], written[rank] = SimpleNamespace(call=mixed, contents=tensors), cr.infer(call)
    total = 0
    for rank, values in expected_values(made).items():  # type: ignore[arg-type]  # has what is read of a Made
        for (name, place), value in values.items():
            total += foreign(rank, value) * list(flat(written[rank][name]))[place].dtype.itemsize
    # The best all_reduce adds each element up once, in W - 1 steps, and passes the sum on in W - 1 more.
    return total * 2 / len(group) if group[0].row.rule.name == "all_reduce" else total


@pytest.mark.parametrize("op", DRAWN)
def test_what_all_ranks_send_is_what_must_cross(op: str) -> None:
    """All ranks' `sent` add up to what the oracle's results hold of other ranks, whatever the layouts and dtypes."""
    moving = cr.lookup(op).rule.name not in ("barrier", "wait", "view_peers")
    seen = 0.0
    for group in sample(calls(op, backend=None, most_ranks=4), 12):
        expected = crossed(group) if moving else 0
        assert expected == pytest.approx(sum(cr.traffic(call).sent for call in group)), group
        seen += expected
    assert moving == (seen > 0)


def test_every_row_has_its_bytes_checked() -> None:
    """An op is drawn, or computed by hand."""
    assert {f"symm_mem::{name}" for name in TRAFFIC} | set(DRAWN) == set(cr.ops())


def test_a_sparse_tensor_counts_as_the_dense_one() -> None:
    """How many values it holds is not known, and differs between ranks."""
    found = cr.traffic(one_call("c10d::allreduce_", 0, tensors=[torch.eye(4).to_sparse()]))
    assert (64, 64) == (found.read, found.written)


# -- torch's CollectiveOp

NAMES = {str(op).removesuffix(".default").replace(".", "::"): op for op in peer.collective_ops - peer.sync_ops}
T8 = torch.zeros(8)
SPLIT = {"input": T8, "input_split_sizes": [4, 4], "output_split_sizes": [4, 4]}
WRONG: dict[str, tuple[int, dict[str, Any], int | type[Exception], int]] = {
    "c10d::gather_": (1, {"input_tensors": [T8], "output_tensors": [], "root_rank": 0}, 0, 64),
    "c10d::scatter_": (1, {"input_tensors": [], "output_tensors": [T8], "root_rank": 0}, 0, 64),
    "_c10d_functional::all_gather_into_tensor_out": (0, {"input": T8, "out": torch.zeros(16)}, AttributeError, 64),
    "_c10d_functional::reduce_scatter_tensor_out": (
        0,
        {"input": T8, "reduce_op": "sum", "out": torch.zeros(4)},
        TypeError,
        32,
    ),
    "_c10d_functional::isend": (0, {"tensor": T8, "dst": 1}, TypeError, 32),
    "_c10d_functional::irecv": (0, {"tensor": T8, "src": 1}, TypeError, 32),
    "_c10d_functional::all_to_all_single": (0, SPLIT, 64, 32),
    "_c10d_functional_autograd::all_to_all_single": (0, SPLIT, 64, 32),
    "_dtensor::shard_dim_alltoall": (0, {"input": torch.zeros(2, 4), "gather_dim": 0, "shard_dim": 1}, 64, 32),
    "_c10d_functional::reduce_scatter_tensor_coalesced": (0, {"inputs": [T8], "reduce_op": "sum"}, 16, 32),
}
"""Where torch's helper is wrong on plain dense tensors: rank of 2, arguments, what it gives, and what is right."""


def tensors_of(value: Any) -> Any:
    """Plain tensors of the sizes of `value`, a `Spec` or lists of them; other arguments as they are."""
    if isinstance(value, Spec):
        return torch.empty(value.shape, dtype=value.dtype)
    return [tensors_of(item) for item in value] if isinstance(value, tuple) else value


def by_torch(call: cr.Call, arguments: dict[str, Any]) -> int:
    """What torch's helper makes of a call with these tensors, and of what it returns."""
    named = {**{name: tensors_of(value) for name, value in call.arguments.items()}, **arguments}
    positional = [named.get(argument.name) for argument in NAMES[call.op]._schema.arguments if not argument.kwarg_only]
    fresh = tensors_of(tuple(cr.infer(call).get(name) for name in ("output", "outputs") if name in call.row.fresh))
    result = next((value for value in fresh if value is not None), None)
    return peer.CollectiveOp.get_comm_tensor_size(NAMES[call.op], result, positional, {})


@pytest.mark.parametrize("op", sorted(NAMES.keys() - WRONG.keys()))
def test_where_torchs_helper_is_right_the_adapter_equals_it(op: str) -> None:
    """On dense tensors; drawn calls of every rank."""
    for group in sample(calls(op, backend=None, most_ranks=4), 12):
        for call in group:
            assert by_torch(call, {}) == collective_op_bytes(call), call


@pytest.mark.parametrize("op", WRONG)
def test_where_torchs_helper_is_wrong_the_adapter_is_right(op: str) -> None:
    """If torch mends one, the first assertion fails: strike it from the list, here and in docs/traffic.md."""
    rank, arguments, given, right = WRONG[op]
    call = one_call(op, rank, **arguments)
    if isinstance(given, int):
        assert given == by_torch(call, arguments)
    else:
        with pytest.raises(given):
            by_torch(call, arguments)
    assert right == collective_op_bytes(call)


def test_torchs_helper_counts_the_storage_behind_a_view() -> None:
    """Eight elements of 800: 3,200 bytes there, 32 here."""
    view = torch.zeros(800)[::100]
    call = one_call("c10d::allreduce_", 0, tensors=[view])
    assert (3200, 32) == (by_torch(call, {"tensors": [view]}), collective_op_bytes(call))


def test_what_torchs_helper_does_not_know_is_counted() -> None:
    """The coalesced c10d ops; what it refuses for want of a tensor is nothing."""
    unknown = {
        "c10d::allreduce_coalesced_": ({"tensors": [(4,), (2, 2)]}, 32),
        "c10d::allgather_coalesced_": ({"input_list": [(4,), (2,)], "output_lists": [[(4,), (2,)]] * 2}, 48),
        "c10d::allgather_into_tensor_coalesced_": ({"inputs": [(4,), (2,)]}, 48),
        "c10d::reduce_scatter_tensor_coalesced_": ({"inputs": [(4,), (2,)]}, 24),
    }
    assert not unknown.keys() & NAMES.keys()
    for op, (arguments, expected) in unknown.items():
        assert expected == collective_op_bytes(one_call(op, 1, **arguments)), op
    assert 0 == collective_op_bytes(one_call("c10d::barrier", 0))


def test_torchs_helper_finds_no_group_where_a_call_has_one() -> None:
    """If torch mends one, it fails by another error, for want of a group: strike it, here and in docs/traffic.md."""
    for op in ("_c10d_functional::reduce_scatter_tensor_out", "c10d::monitored_barrier_"):
        namespace, name = op.split("::")
        func = getattr(getattr(torch.ops, namespace), name).default
        with pytest.raises(TypeError, match=r"not found in"):
            peer.CollectiveOp.get_process_group(func, [None] * 6)
        assert cr.lookup(op).op == op


# -- Chakra's comm_size

CHAKRA: list[tuple[str, int, dict[str, Any], int]] = [
    ("c10d::allreduce_", 0, {"tensors": [T8]}, 32),
    ("c10d::allreduce_coalesced_", 0, {"tensors": [(4,), (2, 2)]}, 32),
    ("c10d::broadcast_", 1, {"tensors": [T8], "root_rank": 0}, 32),
    ("c10d::reduce_", 0, {"tensors": [T8], "root_rank": 0}, 32),
    ("c10d::allgather_", 0, {"input_tensors": [T8]}, 32),
    ("c10d::reduce_scatter_", 0, {"input_tensors": [[T8, T8]]}, 64),
    ("_c10d_functional::all_gather_into_tensor_out", 0, {"input": T8}, 32),
    ("_c10d_functional::reduce_scatter_tensor", 0, {"input": torch.zeros(800)[::100], "reduce_op": "sum"}, 32),
    ("c10d::gather_", 0, {"input_tensors": [T8], "root_rank": 0}, 32),
    ("c10d::scatter_", 0, {"input_tensors": [[T8, T8]], "output_tensors": [T8], "root_rank": 0}, 64),
    ("c10d::scatter_", 1, {"output_tensors": [T8], "root_rank": 0}, 0),
    ("_c10d_functional::all_to_all_single", 0, SPLIT, 32),
    ("c10d::send", 0, {"tensors": [T8], "dst": 1}, 32),
    ("c10d::recv_", 0, {"tensors": [T8], "src": 1}, 32),
    (
        "_c10d_functional::batch_p2p_ops",
        0,
        {"op_list": ["isend", "irecv"], "peer_list": [1, 1], "tag_list": [0, 0], "tensors": [(8,), (4,)]},
        48,
    ),
    ("c10d::barrier", 0, {}, 0),
    ("_c10d_functional::wait_tensor", 0, {"tensor": T8}, 0),
]


@pytest.mark.parametrize(("op", "rank", "arguments", "expected"), CHAKRA)
def test_chakras_comm_size_is_the_bytes_of_the_inputs(
    op: str, rank: int, arguments: dict[str, Any], expected: int
) -> None:
    """Of a group of two; elements times their size, over the inputs that NCCL's process group records."""
    assert expected == chakra_comm_size(one_call(op, rank, **arguments))


def test_chakra_has_no_size_for_symmetric_memory_or_unknown_shapes() -> None:
    """Neither is guessed."""
    with pytest.raises(cr.CallError, match="Chakra has no comm_size"):
        chakra_comm_size(one_call("symm_mem::nvshmem_put", 0, tensor=(8,), peer=1))
    with pytest.raises(cr.CallError, match="shape and dtype must be known"):
        chakra_comm_size(one_call("_c10d_functional::all_reduce", 0, input=Spec(None), reduce_op="sum"))


# -- gloo's own bytes

RANKS, SIZE, ROOT = 4, 1 << 16, 1
ON_ROOT = [rank == ROOT for rank in range(RANKS)]
ROWS = [[SIZE * (i + 2 * j) // 4 for j in range(RANKS)] for i in range(RANKS)]  # rows[i][j] go from rank i to rank j


def t(count: int = SIZE) -> torch.Tensor:
    """That many float32."""
    return torch.ones(count)


def ts() -> list[torch.Tensor]:
    """One for each rank."""
    return [t() for _ in range(RANKS)]


SENT: dict[str, tuple[list[dict[str, Any]], float]] = {
    "c10d::_allgather_base_": ([{"input_tensor": t(), "output_tensor": t(RANKS * SIZE)} for _ in ON_ROOT], 1),
    "c10d::allgather_": ([{"input_tensors": [t()], "output_tensors": [ts()]} for _ in ON_ROOT], 1),
    "c10d::alltoall_base_": ([{"input": t(RANKS * SIZE), "output": t(RANKS * SIZE)} for _ in ON_ROOT], 1),
    "c10d::alltoall_": ([{"input_tensors": ts(), "output_tensors": ts()} for _ in ON_ROOT], 1),
    "_c10d_functional::all_to_all_single": (
        [
            {
                "input": t(sum(ROWS[rank])),
                "input_split_sizes": ROWS[rank],
                "output_split_sizes": [row[rank] for row in ROWS],
            }
            for rank in range(RANKS)
        ],
        1,
    ),
    "c10d::allreduce_": ([{"tensors": [t(RANKS * SIZE)]} for _ in ON_ROOT], 1),
    "c10d::broadcast_": ([{"tensors": [t()], "root_rank": ROOT} for _ in ON_ROOT], 1),
    "c10d::gather_": (
        [{"input_tensors": [t()], "output_tensors": [ts()] if on else [], "root_rank": ROOT} for on in ON_ROOT],
        1,
    ),
    "c10d::scatter_": (
        [{"output_tensors": [t()], "input_tensors": [ts()] if on else [], "root_rank": ROOT} for on in ON_ROOT],
        1,
    ),
    "c10d::reduce_": ([{"tensors": [t()], "root_rank": ROOT} for _ in ON_ROOT], 1.25),
    "c10d::_reduce_scatter_base_": ([{"input_tensor": t(RANKS * SIZE), "output_tensor": t()} for _ in ON_ROOT], 2),
    "c10d::reduce_scatter_": ([{"input_tensors": [ts()], "output_tensors": [t()]} for _ in ON_ROOT], 2),
}
"""Four ranks' calls, and how many times the bytes of a bandwidth-optimal algorithm gloo sends.

Its reduce is a reduce_scatter whose pieces the root then gathers, 1 + 1/W; its reduce_scatter is an all_reduce of which
each rank keeps a piece.
"""


def received() -> dict[str, int]:
    """The bytes that each TCP socket of this process has received so far."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as copy:
                    info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                found[target] = struct.unpack_from("=Q", info, 128)[0]  # tcpi_bytes_received, linux/tcp.h
        except (OSError, struct.error):  # closed meanwhile, or no TCP socket
            continue
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a socket's bytes are read from Linux's TCP_INFO")
@pytest.mark.parametrize("op", SENT)
def test_gloo_sends_what_traffic_says(op: str) -> None:
    """All ranks' sockets lie in this process; headers and notices are less than 1 % of tensors of this size."""
    arguments, factor = SENT[op]
    group = [cr.call(op, group=cr.Group(RANKS, rank), **one) for rank, one in enumerate(arguments)]
    expected = factor * sum(cr.traffic(call).sent for call in group)
    ranks = world(RANKS)
    before = received()
    assert all(outcome.error is None for outcome in ranks.run(op, arguments))
    came = sum(count - before.get(name, 0) for name, count in received().items())
    assert expected == pytest.approx(came, rel=0.01)


def test_the_page_on_traffic_says_what_is() -> None:
    """Every example in it gives what it shows."""
    page = Path(__file__).parents[1] / "docs" / "traffic.md"
    failed, tried = doctest.testfile(str(page), module_relative=False)
    assert (failed, tried > 0) == (0, True)
