"""Golden messages: what a person reads when something is wrong, word for word."""

import pytest
import torch

import collective_rules as cr
from collective_rules import Spec, agree, check

SHARED = Spec((8, 2))


def call(op: str, rank: int = 0, size: int = 4, **arguments: object) -> cr.Call:
    """One rank's call in a group of four."""
    return cr.call(op, group=cr.Group(size=size, rank=rank), **arguments)


CASES = {
    "RST1_indivisible": (
        call("_c10d_functional::reduce_scatter_tensor", input=(13, 2), reduce_op="sum"),
        """
_c10d_functional::reduce_scatter_tensor: dim 0 of input has 13 elements, which is no multiple of W=4   [RST1]
    input: (W d) *s -> output: d *s
           ^^^^^
  W = 4
  input.shape = (13, 2)
Pad that size to a multiple of the group size.
""",
    ),
    "AGT2_output_too_large": (
        call("c10d::_allgather_base_", input_tensor=(5,), output_tensor=(24,)),
        """
c10d::_allgather_base_: output_tensor has d = 6, but input_tensor has d = 5   [AGT2]
    input_tensor: d *s -> output_tensor: (W d) *s
                                         ^^^^^
  input_tensor.shape = (5,)
  output_tensor.shape = (24,)
Give the tensors the sizes that the rule states.
""",
    ),
    "AGT4_other_dtype": (
        call("c10d::_allgather_base_", input_tensor=(5,), output_tensor=Spec((20,), torch.int32)),
        """
c10d::_allgather_base_: output_tensor has dtype int32, but input_tensor has float32   [AGT4]
    input_tensor: d *s -> output_tensor: (W d) *s
                          ^^^^^^^^^^^^^^^^^^^^^^^
  input_tensor = 5 float32
  output_tensor = 20 int32
Convert one side with .to(dtype) before the call.
""",
    ),
    "RST3_no_dim_to_scatter": (
        call("_c10d_functional::reduce_scatter_tensor", input=(), reduce_op="sum"),
        """
_c10d_functional::reduce_scatter_tensor: input has 0 dims, but needs at least 1   [RST3]
    input: (W d) *s -> output: d *s
    ^^^^^^^^^^^^^^^
  input.shape = ()
Give it the missing dimensions, for instance with unsqueeze or reshape.
""",
    ),
    "AGT6_group_size_ignored": (
        call("_c10d_functional::all_gather_into_tensor_out", input=(4,), out=(16,), group_size=2),
        """
_c10d_functional::all_gather_into_tensor_out: group_size=2, but the group has 4 ranks; torch ignores it here   [AGT6]
    input: d *s -> out: (W d) *s
  group_size = 2
  W = 4
Pass the size of the very group that is named, group.size().
""",
    ),
    "AG1_list_too_short": (
        call("c10d::allgather_", input_tensors=[(5,)], output_tensors=[[(5,)] * 3]),
        """
c10d::allgather_: output_tensors[0] has 3 elements, but the group has 4 ranks   [AG1]
    input_tensors[1]: *s -> output_tensors[1][p]: *s
                            ^^^^^^^^^^^^^^^^^^^^^^^^
Pass one tensor for each rank of the group, in the order of the ranks.
""",
    ),
    "AAS2_too_few_splits": (
        call(
            "c10d::alltoall_base_",
            input=(6,),
            output=(6,),
            input_split_sizes=[1, 2, 3],
            output_split_sizes=[1, 2, 3, 0],
        ),
        """
c10d::alltoall_base_: input_split_sizes names 3 split sizes, but the group has 4 ranks   [AAS2]
    input: S[r,:] *s -> output: S[:,r] *s
           ^^^^^^
  input_split_sizes = (1, 2, 3)
Pass one split size for each rank; they must sum to the tensor's first size.
""",
    ),
    "AAS2_sum_of_splits": (
        call(
            "_c10d_functional::all_to_all_single",
            input=(6, 2),
            input_split_sizes=[1, 2, 3, 1],
            output_split_sizes=[1, 0, 0, 0],
        ),
        """
_c10d_functional::all_to_all_single: input_split_sizes sums to 7, but input has 6 rows   [AAS2]
    input: S[r,:] *s -> output: S[:,r] *s
           ^^^^^^
  input_split_sizes = (1, 2, 3, 1)
Pass one split size for each rank; they must sum to the tensor's first size.
""",
    ),
    "AAS3_own_piece": (
        call(
            "c10d::alltoall_base_",
            input=(6,),
            output=(6,),
            input_split_sizes=[1, 2, 3, 0],
            output_split_sizes=[2, 2, 2, 0],
        ),
        """
c10d::alltoall_base_: output has S[0,0] = 2, but input has S[0,0] = 1   [AAS3]
    input: S[r,:] *s -> output: S[:,r] *s
                                ^^^^^^
  input.shape = (6,)
  output.shape = (6,)
Both sides must name one size; exchange the sizes first, for instance by an all_to_all_single of the counts.
""",
    ),
    "AAS9_in_place": (
        call("c10d::alltoall_base_", input=SHARED, output=SHARED, input_split_sizes=[], output_split_sizes=[]),
        """
c10d::alltoall_base_: output is written while input, which shares its memory, is read   [AAS9]
    input: S[r,:] *s -> output: S[:,r] *s
                        ^^^^^^^^^^^^^^^^^
  input = 8x2 float32
  output = 8x2 float32
Write to a fresh tensor, for instance torch.empty_like(...).
""",
    ),
    "AR5_gaps": (
        call("c10d::allreduce_", tensors=[torch.zeros(4, 6)[:, ::2]]),
        """
c10d::allreduce_: tensors[0] has gaps, or elements twice, in memory that travels as it is   [AR5]
    tensors[i]: *s -> tensors[i]: *s
    ^^^^^^^^^^^^^^
  tensors[0] = 4x3 float32, stride (6, 2)
Call .contiguous() first, and copy the result back for an in-place op.
""",
    ),
    "AR3_unknown_reduce_op": (
        call("_c10d_functional::all_reduce", input=(3,), reduce_op="mean"),
        """
_c10d_functional::all_reduce: reduce_op='mean' is no reduce op that it takes   [AR3]
    input: *s -> output: *s
  reduce_op = mean
Use one of sum, avg, product, min, max, band, bor, bxor.
""",
    ),
    "GLOO3_avg_of_ints": (
        call("c10d::allreduce_", tensors=[Spec((4,), torch.int32)], reduce_op="avg"),
        """
c10d::allreduce_: gloo does not reduce int32 with avg: it raises an error   [GLOO3]
    tensors[i]: *s -> tensors[i]: *s
    ^^^^^^^^^^^^^^
  tensors[0] = 4 int32
Reduce in another dtype, or with another op (avg of integers: sum, then divide).
""",
    ),
    "GLOO5_stacked": (
        call("c10d::_allgather_base_", input_tensor=(2, 3), output_tensor=(4, 2, 3)),
        """
c10d::_allgather_base_: gloo takes only the concatenated form, and output_tensor has d = 1, but input_tensor has d = 2: it raises an error   [GLOO5]
    input_tensor: *s -> output_tensor: W *s
  input_tensor.shape = (2, 3)
  output_tensor.shape = (4, 2, 3)
Pass an output of (W d, *s), and reshape it afterwards.
""",
    ),
    "SC5_given_off_the_root": (
        call("c10d::scatter_", rank=1, output_tensors=[(3,)], input_tensors=[[(3,)] * 4], root_rank=0),
        """
c10d::scatter_: input_tensors is given on rank 1, which is not the root (0)   [SC5]
    input_tensors[1][p]: *s @root -> output_tensors[1]: *s
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
Pass the list on the root alone, and an empty list on every other rank.
""",
    ),
    "BC3_root_out_of_range": (
        call("c10d::broadcast_", tensors=[(3,)], root_rank=4),
        """
c10d::broadcast_: root_rank=4 is no rank of a group of 4   [BC3]
    tensors[i]: *s -> tensors[i]: *s
  root_rank = 4
  W = 4
Pass the root's rank in the group; torch.distributed's src and dst are global ranks.
""",
    ),
    "BC8_lazy_view": (
        call("c10d::broadcast_", tensors=[torch._neg_view(torch.zeros(3))], root_rank=0),
        """
c10d::broadcast_: tensors[0] is a lazy neg view   [BC8]
    tensors[i]: *s -> tensors[i]: *s
    ^^^^^^^^^^^^^^
  tensors[0] = 3 float32
Call .resolve_conj().resolve_neg() first, and pass the result.
""",
    ),
    "SDA1_negative_dim": (
        call("_dtensor::shard_dim_alltoall", input=(4, 6), gather_dim=0, shard_dim=-1),
        """
_dtensor::shard_dim_alltoall: shard_dim=-1 is no dim of a tensor of shape (4, 6)   [SDA1]
    input: *s -> output: *t
    ^^^^^^^^^
Pass a value that the op takes.
""",
    ),
    "SE3_to_itself": (
        call("c10d::send", tensors=[(3,)], dst=0, tag=0),
        """
c10d::send: dst=0 is this very rank   [SE3]
    tensors[1]: *s[r,peer] ->
  dst = 0
  W = 4
  rank = 0
Pass the peer's rank in the group; torch.distributed's src and dst are global ranks.
""",
    ),
    "AGT2_ranks_disagree": (
        [call("c10d::_allgather_base_", rank=rank, input_tensor=(6 if rank == 1 else 5,)) for rank in range(4)],
        """
c10d::_allgather_base_: ranks disagree on d   [AGT2]
    input_tensor: d *s -> output_tensor: (W d) *s
                  ^
  d = 5   ranks 0, 2, 3
  d = 6   rank 1
Every rank must pass tensors of the same sizes; pad them where the data are uneven.
""",
    ),
    "AR1_same_elements": (
        [call("c10d::allreduce_", rank=rank, tensors=[(2, 3) if rank else (3, 2)]) for rank in range(4)],
        """
c10d::allreduce_: ranks disagree on s   [AR1]
    tensors[i]: *s -> tensors[i]: *s
                ^^
  s = (2, 3)   ranks 1-3
  s = (3, 2)   rank 0
Every rank must pass tensors of the same sizes; pad them where the data are uneven.
""",
    ),
    "AR3_ranks_disagree": (
        [
            call("c10d::allreduce_", rank=rank, tensors=[(2,)], reduce_op="max" if rank == 2 else "sum")
            for rank in range(4)
        ],
        """
c10d::allreduce_: ranks disagree on reduce_op   [AR3]
    tensors[i]: *s -> tensors[i]: *s
  reduce_op = sum   ranks 0, 1, 3
  reduce_op = max   rank 2
Use the same reduce op on every rank.
""",
    ),
    "AAS3_pair_disagrees": (
        [
            call(
                "_c10d_functional::all_to_all_single",
                rank=rank,
                size=2,
                input=(8,),
                input_split_sizes=[4, 4],
                output_split_sizes=[6, 4] if rank else [4, 4],
            )
            for rank in range(2)
        ],
        """
_c10d_functional::all_to_all_single: ranks 0 and 1 disagree on S[0,1]   [AAS3]
    input: S[r,:] *s -> output: S[:,r] *s
                                ^^^^^^
  S[0,1] = 4   rank 0
  S[0,1] = 6   rank 1
Both sides must name one size; exchange the sizes first, for instance by an all_to_all_single of the counts.
""",
    ),
    "AR11_rank_missing": (
        [call("c10d::allreduce_", rank=rank, tensors=[(2, 3)]) for rank in (0, 1, 3)],
        """
c10d::allreduce_: rank 2 does not take part   [AR11]
    tensors[i]: *s -> tensors[i]: *s
  taking part = ranks 0, 1, 3
Make the call on every rank of the group.
""",
    ),
    "BC10_other_collective": (
        [
            call("c10d::allreduce_", rank=rank, tensors=[(2,)])
            if rank
            else call("c10d::broadcast_", tensors=[(2,)], root_rank=0)
            for rank in range(4)
        ],
        """
c10d::broadcast_: ranks make different collectives   [BC10]
    tensors[i]: *s -> tensors[i]: *s
  all_reduce = c10d::allreduce_ of 2 float32, reduce_op sum   ranks 1-3
  broadcast = c10d::broadcast_ of 2 float32, root 0           rank 0
Call the same collective on every rank.
""",
    ),
    "SE8_no_partner": (
        [call("c10d::send", size=3, tensors=[(3,)], dst=1, tag=1)],
        """
c10d::send: rank 0 sends to rank 1, which receives nothing from it   [SE8]
    tensors[1]: *s[r,peer] ->
  tag = 1   rank 0
Post the matching call on the other rank.
""",
    ),
}
"""The id of the finding and what is wrong → a call, or one of each rank, and the message."""


@pytest.mark.parametrize("name", CASES)
def test_the_message_says_what_where_and_what_to_do(name: str) -> None:
    """The verdict with the constraint's id, the rule with a caret, the values, what to do."""
    made, expected = CASES[name]
    (found,) = check(made, "gloo" if name.startswith("GLOO") else None) if isinstance(made, cr.Call) else agree(made)
    assert name.partition("_")[0] == found.id
    assert expected.strip("\n") == found.message


def test_infer_raises_what_check_finds() -> None:
    """A call whose reads fit no form has no output: the error carries the finding."""
    broken = call("_c10d_functional::reduce_scatter_tensor", input=(13, 2), reduce_op="sum")
    with pytest.raises(cr.CallError) as caught:
        cr.infer(broken)
    assert check(broken) == caught.value.findings
    assert check(broken)[0].message == str(caught.value)
