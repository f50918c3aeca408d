"""Bytes, by each convention, against numbers computed by hand."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import collective_rules as cr
from collective_rules import UNKNOWN, Spec
from collective_rules.symbols import number


def moved(op: str, rank: int = 0, size: int = 4, **arguments: object) -> tuple[float, ...]:
    """Payload read and written, bytes sent, nccl-tests' S and bus factor."""
    found = cr.traffic(cr.call(op, group=cr.Group(size=size, rank=rank), **arguments))
    return found.read, found.written, found.sent, found.buffer, found.bus_factor


F32, BF16 = torch.float32, torch.bfloat16


def of(op: str, **arguments: object) -> tuple[str, dict[str, object]]:
    """An op, and what `moved` is told of its call."""
    return op, arguments


CASES = {
    "all_reduce": (of("c10d::allreduce_", tensors=[(1024,)]), (4096, 4096, 6144, 4096, 1.5)),
    "all_reduce, bfloat16": (
        of("_c10d_functional::all_reduce", input=Spec((8, 8), BF16), reduce_op="sum"),
        (128, 128, 192, 128, 1.5),
    ),
    "all_reduce, coalesced": (of("c10d::allreduce_coalesced_", tensors=[(4,), (2, 2)]), (32, 32, 48, 32, 1.5)),
    "all_reduce, alone": (of("c10d::allreduce_", tensors=[(8,)], size=1), (32, 32, 0, 32, 0)),
    "a slice counts its elements": (
        of("_c10d_functional::all_reduce", input=torch.zeros(800)[::100], reduce_op="sum"),
        (32, 32, 48, 32, 1.5),
    ),
    "an expanded tensor counts its elements": (
        of("_c10d_functional::all_reduce", input=torch.zeros(1).expand(8), reduce_op="sum"),
        (32, 32, 48, 32, 1.5),
    ),
    "broadcast, root": (of("c10d::broadcast_", tensors=[(8,)], root_rank=0), (32, 0, 32, 32, 1)),
    "broadcast, off the root": (of("c10d::broadcast_", rank=1, tensors=[(8,)], root_rank=0), (0, 32, 32, 32, 1)),
    "broadcast, last of the ring": (of("c10d::broadcast_", rank=3, tensors=[(8,)], root_rank=0), (0, 32, 0, 32, 1)),
    "reduce, root": (of("c10d::reduce_", tensors=[(8,)], root_rank=0), (32, 32, 0, 32, 1)),
    "reduce, off the root": (of("c10d::reduce_", rank=1, tensors=[(8,)], root_rank=0), (32, 0, 32, 32, 1)),
    "all_gather": (of("c10d::allgather_", input_tensors=[(8,)], output_tensors=[[(8,)] * 4]), (32, 128, 96, 128, 0.75)),
    "all_gather, output left out": (of("c10d::_allgather_base_", input_tensor=(8,)), (32, 128, 96, 128, 0.75)),
    "all_gather, out=": (
        of("_c10d_functional::all_gather_into_tensor_out", input=(8,), out=(32,)),
        (32, 128, 96, 128, 0.75),
    ),
    "reduce_scatter": (
        of("_c10d_functional::reduce_scatter_tensor", input=(32,), reduce_op="sum"),
        (128, 32, 96, 128, 0.75),
    ),
    "reduce_scatter, uneven": (
        of("c10d::reduce_scatter_", rank=1, input_tensors=[[(1,), (2,), (3,), (4,)]], output_tensors=[(2,)]),
        (40, 8, 32, 40, 0.75),
    ),
    "gather, root": (
        of("c10d::gather_", input_tensors=[(8,)], output_tensors=[[(8,)] * 4], root_rank=0),
        (32, 128, 0, 128, 0.75),
    ),
    "gather, off the root": (of("c10d::gather_", rank=2, input_tensors=[(8,)], root_rank=0), (32, 0, 32, 128, 0.75)),
    "scatter, root": (
        of("c10d::scatter_", output_tensors=[(8,)], input_tensors=[[(8,)] * 4], root_rank=0),
        (128, 32, 96, 128, 0.75),
    ),
    "scatter, off the root": (of("c10d::scatter_", rank=2, output_tensors=[(8,)], root_rank=0), (0, 32, 0, 128, 0.75)),
    "all_to_all": (of("c10d::alltoall_", input_tensors=[(2,)] * 4, output_tensors=[(2,)] * 4), (32, 32, 24, 32, 0.75)),
    "all_to_all_single, even": (of("c10d::alltoall_base_", input=(8, 2), output=(8, 2)), (64, 64, 48, 64, 0.75)),
    "all_to_all_single, uneven": (
        of(
            "_c10d_functional::all_to_all_single",
            rank=1,
            input=(10, 2),
            input_split_sizes=[1, 2, 3, 4],
            output_split_sizes=[0, 2, 0, 0],
        ),
        (80, 16, 64, 80, 0.75),
    ),
    "all_to_all_single, nothing": (of("c10d::alltoall_base_", input=(0, 2), output=(0, 2)), (0, 0, 0, 0, 0.75)),
    "all_to_all, of elements": (
        of("symm_mem::nvshmem_all_to_all", size=3, input=(2, 3), out=(2, 3)),
        (24, 24, 16, 24, 2 / 3),
    ),
    "send": (of("c10d::send", tensors=[(8,)], dst=1), (32, 0, 32, 32, 1)),
    "recv": (of("c10d::recv_", tensors=[(8,)], src=1), (0, 32, 0, 32, 1)),
    "batched p2p": (
        of(
            "_c10d_functional::batch_p2p_ops",
            op_list=["isend", "irecv"],
            peer_list=[1, 1],
            tag_list=[0, 0],
            tensors=[(8,), (4,)],
        ),
        (32, 16, 32, 48, 1),
    ),
    "barrier": (of("c10d::barrier"), (0, 0, 0, 0, 1)),
    "wait": (of("_c10d_functional::wait_tensor", tensor=(8,)), (0, 0, 0, 0, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_those_computed_by_hand(name: str) -> None:
    """Logical elements times their size, by each of the conventions."""
    (op, arguments), expected = CASES[name]
    assert expected == moved(op, **arguments)


@pytest.mark.parametrize("op", ["c10d::broadcast_", "c10d::reduce_"])
def test_what_is_sent_by_all_ranks_is_what_the_ring_carries(op: str) -> None:
    """A ring carries the buffer over W - 1 links."""
    sent = [moved(op, rank=rank, tensors=[(8,)], root_rank=2)[2] for rank in range(4)]
    assert sum(sent) == 3 * 32


EVERY_RANK_SENDS = {
    "all_reduce": lambda rank: of("c10d::allreduce_", tensors=[(8,)]),
    "all_gather, uneven": lambda rank: of(
        "c10d::allgather_", input_tensors=[(rank + 1,)], output_tensors=[[(1,), (2,), (3,), (4,)]]
    ),
    "reduce_scatter, uneven": lambda rank: of(
        "c10d::reduce_scatter_", input_tensors=[[(1,), (2,), (3,), (4,)]], output_tensors=[(rank + 1,)]
    ),
    "reduce_scatter of blocks that cover the input": lambda rank: of(
        "symm_mem::nccl_reduce_scatter_offset", input=(8, 3), dim=0
    ),
    "reduce_scatter of blocks that do not": lambda rank: of(
        "symm_mem::nccl_reduce_scatter_offset", input=(12, 3), dim=0, offsets=[2, 4, 6, 8], dst_ranks=[3, 0, 2, 1]
    ),
    "all_gather_matmul with scales of the rows": lambda rank: of(
        "symm_mem::fused_all_gather_scaled_matmul",
        A=Spec((4, 16), torch.float8_e4m3fn),
        Bs=[Spec((16, 3), torch.float8_e4m3fn)],
        A_scale=(4, 1),
        B_scales=[(1, 3)],
        gather_dim=0,
        biases=[None],
        result_scales=[None],
        out_dtypes=[BF16],
        use_fast_accum=[False],
    ),
}
"""Collectives in which every rank sends, as a function of the rank: op and arguments."""


@pytest.mark.parametrize("name", EVERY_RANK_SENDS)
def test_a_rank_sends_on_average_s_times_the_bus_factor(name: str) -> None:
    """So nccl-tests defines the bus bandwidth: what one rank's link carries in the time."""
    ranks = [moved(op, rank=rank, **arguments) for rank in range(4) for op, arguments in [EVERY_RANK_SENDS[name](rank)]]
    sent = sum(one[2] for one in ranks) / 4
    assert sent > 0
    assert [sent] * 4 == [buffer * factor for *_, buffer, factor in ranks]


def test_unknown_sizes_are_refused() -> None:
    """Bytes of a tensor whose shape a trace does not tell cannot be counted."""
    with pytest.raises(cr.CallError, match="shape and dtype must be known"):
        moved("_c10d_functional::all_reduce", input=Spec(None), reduce_op="sum")


@pytest.mark.parametrize("op", ["c10d::broadcast_", "c10d::reduce_"])
def test_an_unknown_root_is_refused(op: str) -> None:
    """Who sends depends on it, but in a group of one."""
    with pytest.raises(cr.CallError, match="root_rank must be known"):
        moved(op, rank=1, tensors=[(8,)], root_rank=UNKNOWN)
    assert moved(op, size=1, tensors=[(8,)], root_rank=0)[2] == moved(op, size=1, tensors=[(8,)], root_rank=UNKNOWN)[2]


@pytest.mark.parametrize("rank", [0, 2])
def test_the_rank_with_the_root_s_list_is_the_root(rank: int) -> None:
    """Where nothing else tells it."""
    gathered = {"input_tensors": [(8,)], "root_rank": UNKNOWN}
    scattered = {"output_tensors": [(8,)], "root_rank": UNKNOWN}
    assert (32, 128, 0, 128, 0.75) == moved("c10d::gather_", rank, output_tensors=[[(8,)] * 4], **gathered)
    assert (32, 0, 32, 128, 0.75) == moved("c10d::gather_", rank, output_tensors=[], **gathered)
    assert (128, 32, 96, 128, 0.75) == moved("c10d::scatter_", rank, input_tensors=[[(8,)] * 4], **scattered)
    assert (0, 32, 0, 128, 0.75) == moved("c10d::scatter_", rank, input_tensors=[], **scattered)


@pytest.mark.parametrize(
    ("outgoing", "incoming", "sent"),
    [(UNKNOWN, [1, 2, 3, 4], 320 - 2 * 32), ([0, 5, 2, 3], UNKNOWN, 320 - 5 * 32), (UNKNOWN, UNKNOWN, 320)],
)
def test_of_unknown_split_sizes_the_own_share_is_what_the_others_say(
    outgoing: list[int], incoming: list[int], sent: int
) -> None:
    """Both sides name it; where neither does, all is taken to leave."""
    splits = {"input_split_sizes": outgoing, "output_split_sizes": incoming}
    assert sent == moved("c10d::alltoall_base_", rank=1, input=(10, 8), output=(10, 8), **splits)[2]


def test_more_bytes_than_a_float_holds_are_refused() -> None:
    """A `CallError`, as for all that cannot be counted."""
    with pytest.raises(cr.CallError, match="cannot be counted"):
        moved("c10d::allreduce_", tensors=[(2**63 - 1,) * 20])


SYMBOLIC = {
    "all_to_all_single, even": ("c10d::alltoall_base_", lambda a, b: {"input": (4 * a, 2), "output": (4 * a, 2)}),
    "all_to_all_single, split": (
        "_c10d_functional::all_to_all_single",
        lambda a, b: {
            "input": (3 + a + 2 * b, 2),
            "input_split_sizes": [3, a, b, b],
            "output_split_sizes": [b, a, b, 1],
        },
    ),
    "all_to_all": (
        "c10d::alltoall_",
        lambda a, b: {"input_tensors": [(3,), (a,), (b,), (b,)], "output_tensors": [(b,), (a,), (b,), (1,)]},
    ),
    "batched p2p": (
        "_c10d_functional::batch_p2p_ops",
        lambda a, b: {"op_list": ["isend", "irecv"], "peer_list": [0, 0], "tag_list": [0, 0], "tensors": [(a,), (b,)]},
    ),
    "put": ("symm_mem::memcpy_to_multicast_", lambda a, b: {"src": (a,), "symm_mem_out": (b,), "byte_offset": 0}),
}


@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_sizes_move_what_their_numbers_do(name: str) -> None:
    """Without a guard: the program is not specialised to this run's sizes."""
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    symbols = [mode.from_tensor(torch.empty(size), symbolic_context=context).shape[0] for size in (5, 8)]
    op, arguments = SYMBOLIC[name]
    guards = len(environment.guards)
    found = moved(op, rank=1, **arguments(*symbols))
    assert moved(op, rank=1, **arguments(5, 8)) == tuple(map(number, found))
    assert guards == len(environment.guards)


def test_rows_that_only_the_run_knows_may_be_none() -> None:
    """What is sent is an expression, of which no rows make 0 bytes."""
    rows = ShapeEnv().create_unbacked_symint()
    torch._check(rows >= 0)
    splits = {"input_split_sizes": [rows, rows], "output_split_sizes": [rows, rows]}
    sent = moved("_c10d_functional::all_to_all_single", size=2, input=(2 * rows, 2), **splits)[2]
    expression = sent.node.expr  # type: ignore[attr-defined]  # a SymFloat
    assert [0, 24] == [float(expression.xreplace({rows.node.expr: count})) for count in (0, 3)]
