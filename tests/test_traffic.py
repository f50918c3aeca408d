"""Bytes, by each convention, against numbers computed by hand."""

import pytest
import torch

import collective_rules as cr
from collective_rules import Spec


def moved(op: str, rank: int = 0, size: int = 4, **arguments: object) -> tuple[float, ...]:
    """Payload read and written, bytes sent, nccl-tests' S and bus factor."""
    found = cr.traffic(cr.call(op, group=cr.Group(size=size, rank=rank), **arguments))
    return found.read, found.written, found.sent, found.buffer, found.bus_factor


F32, BF16 = torch.float32, torch.bfloat16

CASES = {
    "all_reduce": (("c10d::allreduce_", {"tensors": [(1024,)]}), (4096, 4096, 6144, 4096, 1.5)),
    "all_reduce, bfloat16": (
        ("_c10d_functional::all_reduce", {"input": Spec((8, 8), BF16), "reduce_op": "sum"}),
        (128, 128, 192, 128, 1.5),
    ),
    "all_reduce, coalesced": (("c10d::allreduce_coalesced_", {"tensors": [(4,), (2, 2)]}), (32, 32, 48, 32, 1.5)),
    "all_reduce, alone": (("c10d::allreduce_", {"tensors": [(8,)], "size": 1}), (32, 32, 0, 32, 0)),
    "a slice counts its elements": (
        ("_c10d_functional::all_reduce", {"input": torch.zeros(800)[::100], "reduce_op": "sum"}),
        (32, 32, 48, 32, 1.5),
    ),
    "an expanded tensor counts its elements": (
        ("_c10d_functional::all_reduce", {"input": torch.zeros(1).expand(8), "reduce_op": "sum"}),
        (32, 32, 48, 32, 1.5),
    ),
    "broadcast, root": (("c10d::broadcast_", {"tensors": [(8,)], "root_rank": 0}), (32, 0, 32, 32, 1)),
    "broadcast, off the root": (
        ("c10d::broadcast_", {"rank": 1, "tensors": [(8,)], "root_rank": 0}),
        (0, 32, 32, 32, 1),
    ),
    "broadcast, last of the ring": (
        ("c10d::broadcast_", {"rank": 3, "tensors": [(8,)], "root_rank": 0}),
        (0, 32, 0, 32, 1),
    ),
    "reduce, root": (("c10d::reduce_", {"tensors": [(8,)], "root_rank": 0}), (32, 32, 0, 32, 1)),
    "reduce, off the root": (("c10d::reduce_", {"rank": 1, "tensors": [(8,)], "root_rank": 0}), (32, 0, 32, 32, 1)),
    "all_gather": (
        ("c10d::allgather_", {"input_tensors": [(8,)], "output_tensors": [[(8,)] * 4]}),
        (32, 128, 96, 128, 0.75),
    ),
    "all_gather, output left out": (("c10d::_allgather_base_", {"input_tensor": (8,)}), (32, 128, 96, 128, 0.75)),
    "all_gather, out=": (
        ("_c10d_functional::all_gather_into_tensor_out", {"input": (8,), "out": (32,)}),
        (32, 128, 96, 128, 0.75),
    ),
    "reduce_scatter": (
        ("_c10d_functional::reduce_scatter_tensor", {"input": (32,), "reduce_op": "sum"}),
        (128, 32, 96, 128, 0.75),
    ),
    "reduce_scatter, uneven": (
        ("c10d::reduce_scatter_", {"rank": 1, "input_tensors": [[(1,), (2,), (3,), (4,)]], "output_tensors": [(2,)]}),
        (40, 8, 32, 40, 0.75),
    ),
    "gather, root": (
        ("c10d::gather_", {"input_tensors": [(8,)], "output_tensors": [[(8,)] * 4], "root_rank": 0}),
        (32, 128, 0, 128, 0.75),
    ),
    "gather, off the root": (
        ("c10d::gather_", {"rank": 2, "input_tensors": [(8,)], "root_rank": 0}),
        (32, 0, 32, 128, 0.75),
    ),
    "scatter, root": (
        ("c10d::scatter_", {"output_tensors": [(8,)], "input_tensors": [[(8,)] * 4], "root_rank": 0}),
        (128, 32, 96, 128, 0.75),
    ),
    "scatter, off the root": (
        ("c10d::scatter_", {"rank": 2, "output_tensors": [(8,)], "root_rank": 0}),
        (0, 32, 0, 128, 0.75),
    ),
    "all_to_all": (
        ("c10d::alltoall_", {"input_tensors": [(2,)] * 4, "output_tensors": [(2,)] * 4}),
        (32, 32, 24, 32, 0.75),
    ),
    "all_to_all_single, even": (
        ("c10d::alltoall_base_", {"input": (8, 2), "output": (8, 2)}),
        (64, 64, 48, 64, 0.75),
    ),
    "all_to_all_single, uneven": (
        (
            "_c10d_functional::all_to_all_single",
            {"rank": 1, "input": (10, 2), "input_split_sizes": [1, 2, 3, 4], "output_split_sizes": [0, 2, 0, 0]},
        ),
        (80, 16, 64, 80, 0.75),
    ),
    "all_to_all_single, nothing": (
        ("c10d::alltoall_base_", {"input": (0, 2), "output": (0, 2)}),
        (0, 0, 0, 0, 0.75),
    ),
    "send": (("c10d::send", {"tensors": [(8,)], "dst": 1}), (32, 0, 32, 32, 1)),
    "recv": (("c10d::recv_", {"tensors": [(8,)], "src": 1}), (0, 32, 0, 32, 1)),
    "batched p2p": (
        (
            "_c10d_functional::batch_p2p_ops",
            {"op_list": ["isend", "irecv"], "peer_list": [1, 1], "tag_list": [0, 0], "tensors": [(8,), (4,)]},
        ),
        (32, 16, 32, 48, 1),
    ),
    "barrier": (("c10d::barrier", {}), (0, 0, 0, 0, 1)),
    "wait": (("_c10d_functional::wait_tensor", {"tensor": (8,)}), (0, 0, 0, 0, 1)),
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
    "all_reduce": lambda rank: ("c10d::allreduce_", {"tensors": [(8,)]}),
    "all_gather, uneven": lambda rank: (
        "c10d::allgather_",
        {"input_tensors": [(rank + 1,)], "output_tensors": [[(1,), (2,), (3,), (4,)]]},
    ),
    "reduce_scatter, uneven": lambda rank: (
        "c10d::reduce_scatter_",
        {"input_tensors": [[(1,), (2,), (3,), (4,)]], "output_tensors": [(rank + 1,)]},
    ),
    "reduce_scatter of blocks that cover the input": lambda rank: (
        "symm_mem::nccl_reduce_scatter_offset",
        {"input": (8, 3), "dim": 0},
    ),
    "reduce_scatter of blocks that do not": lambda rank: (
        "symm_mem::nccl_reduce_scatter_offset",
        {"input": (12, 3), "dim": 0, "offsets": [2, 4, 6, 8], "dst_ranks": [3, 0, 2, 1]},
    ),
    "all_gather_matmul with scales of the rows": lambda rank: (
        "symm_mem::fused_all_gather_scaled_matmul",
        {
            "A": Spec((4, 16), torch.float8_e4m3fn),
            "Bs": [Spec((16, 3), torch.float8_e4m3fn)],
            "A_scale": (4, 1),
            "B_scales": [(1, 3)],
            "gather_dim": 0,
            "biases": [None],
            "result_scales": [None],
            "out_dtypes": [BF16],
            "use_fast_accum": [False],
        },
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
