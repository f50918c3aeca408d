"""The columns of the op table: they say only what is the op's own.

Positions, types, defaults, the group argument, returns and declared aliases come from the live schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

FLAT = "flat"
"""A layout that a backend's limit may ask for: read as the shape reads, the elements lie at one distance in memory."""

REAL_FORMAT, REAL_FLAT = "format as real", "flat as real"
"""Two more: `format` and `flat`, of a complex tensor's real view, which has a dim more: the tensor is contiguous."""

ANY, ORDER, SENT, DENSE, FORMAT, CONTIGUOUS = "any", "order", "sent", "dense", "format", "contiguous"
"""Layouts that an op takes, from the laxest to the strictest.

- `any`: copied element by element.
- `order`: copied too, but a dense tensor keeps its memory order, and all such tensors must have one order. Of a list
  indexed by `p`, this rank's own does not count: it does not travel.
- `sent`: as `dense`, where it goes to another rank or comes from one; what stays on this rank is copied.
- `dense`: travels as raw memory: no gaps, no element twice, one order.
- `format`: dense, and contiguous or channels_last; another is refused.
- `contiguous`: another is refused.
"""

FREE, OWN, UP_TO_OWN, NEVER = "free", "own", "up to own", "never"
"""Which memory that is read may be written by the same call: any; rank r's own, in place; the first r+1; or none.

In place: the r-th of `inputs[p]` or `outputs[p]` is the tensor on the other side, or that is the r-th piece of the
larger one.
"""

EVEN, NONE = "even", "none"
"""What an empty list of split sizes means: equal shares, or no rows at all. None always means equal shares."""


@attrs.frozen
class SplitSizes:
    """The argument that holds split sizes (None: the op has none), and what an empty list means."""

    argument: str | None
    empty: str = EVEN


@attrs.frozen
class Batch:
    """The arguments of an op that is a list of other ops: all are lists, and `kinds` names one of `ops` per element."""

    kinds: str
    ops: Mapping[str, str]
    peers: str
    tags: str
    tensors: str


@attrs.frozen
class Op:
    """One op: which rule it follows, and how its arguments play the rule's parts. Each column names an op that uses it.

    The rule, told in the op's arguments:

    - `parts`: part of the rule → path into the arguments, `output_tensors[1][p]` (`c10d::allgather_`). A name that is
      no argument is a fresh return (`_c10d_functional::all_reduce`).
    - `forms`: the forms of the rule that the op admits, the usual one first; empty means the rule's first one alone
      (`c10d::_allgather_base_`).
    - `attributes`: value that the ranks agree on → the argument that holds it (`c10d::broadcast_`).
    - `splits`: part → the argument that holds its split sizes (`c10d::alltoall_base_`).
    - `one_tensor`: the list stands for one tensor: its tensors have one shape and one dtype, and a single one travels,
      the result of reducing them all or the one that the root chooses (`c10d::allreduce_`).
    - `elements`: the argument that says how many elements move, where not all of the tensor does
      (`symm_mem::nccl_get_out`).
    - `everywhere`: an `@root` tensor must fit off the root too (`symm_mem::tile_reduce`).
    - `batch`: the op is a list of other ops (`_c10d_functional::batch_p2p_ops`).
    - `group_size_ignored`: torch never reads the argument group_size (`c10d_functional::broadcast`).
    - `meets`: what the op meets on the other ranks, where that is no op of its rule (`c10d::monitored_barrier_`).
    - `done`: the op returns no work, and its result may be used as it returns (`_dtensor::shard_dim_alltoall`).

    What comes back:

    - `returns`: the argument that is returned, or "empty" for a fresh `empty(0)`, where the schema does not tell
      (`_c10d_functional::isend`).
    - `dtypes`: part → the argument that chooses its dtype (`symm_mem::fused_scaled_matmul_reduce_scatter`).
    - `promotes`: part → function from the dtype that is read to that of a fresh tensor
      (`symm_mem::_low_contention_reduce_scatter`).
    - `strides`: part → function of shape and arguments (`symm_mem::fused_all_gather_matmul`).
    - `omits`: fresh part → the argument that leaves it out if it is False (`symm_mem::fused_all_gather_matmul`).
    - `own`: fresh list → the argument whose own memory is its r-th element (`symm_mem::get_remote_tensors`).

    Memory:

    - `layouts`: argument → layout that every backend needs; `any` where it is left out (`c10d::send`).
    - `layouts_from`: the smallest group in which layouts matter: some ops touch no memory in a group of one
      (`c10d::allreduce_`).
    - `overlap`: which of the memory that is read may be written (`c10d::scatter_`).
    - `scratch`: arguments with undefined contents afterwards, on ranks where they are no output (`c10d::reduce_`).
    - `also_reads`: tensors that are read and have no part in the rule (`symm_mem::nvshmem_put_with_signal`).
    - `row_scales`: argument → the argument with its scale, which travels with it if it has one number for each row
      (`symm_mem::fused_all_gather_scaled_matmul`).

    What the kernels take:

    - `reduce_ops`, `kernel_dtypes`: the only reduce ops and dtypes; empty means all (`symm_mem::one_shot_all_reduce`).
    - `complex_forms`: the forms that the op takes of complex tensors, where those are not all of its forms
      (`_c10d_functional::all_gather_into_tensor`).
    - `sparse`: the layouts besides strided ones, by torch's names (`c10d::allreduce_`).
    - `exact`: the kernels compare shapes, where the rule is content with equal numbers of elements
      (`symm_mem::nccl_all_to_all_nd`).
    - `requirements`: functions of a `Sizing` that raise `Unsolvable`, for conditions that no text can say
      (`symm_mem::two_shot_all_reduce_out`).

    Versions:

    - `since`, `schema`: the first torch that has the op, and its schema, for an op that the oldest one lacks
      (`c10d::gather_into_tensor_`).
    """

    op: str
    rule: str
    parts: Mapping[str, str]
    forms: tuple[str, ...] = ()
    attributes: Mapping[str, str] = attrs.field(factory=dict)
    splits: Mapping[str, SplitSizes] = attrs.field(factory=dict)
    one_tensor: bool = False
    elements: str = ""
    everywhere: bool = False
    batch: Batch | None = None
    group_size_ignored: bool = False
    meets: str = ""
    done: bool = False

    returns: str = ""
    dtypes: Mapping[str, str] = attrs.field(factory=dict)
    promotes: Mapping[str, Callable[..., Any]] = attrs.field(factory=dict)
    strides: Mapping[str, Callable[..., Any]] = attrs.field(factory=dict)
    omits: Mapping[str, str] = attrs.field(factory=dict)
    own: Mapping[str, str] = attrs.field(factory=dict)

    layouts: Mapping[str, str] = attrs.field(factory=dict)
    layouts_from: int = 1
    overlap: str = FREE
    scratch: tuple[str, ...] = ()
    also_reads: tuple[str, ...] = ()
    row_scales: Mapping[str, str] = attrs.field(factory=dict)

    reduce_ops: tuple[str, ...] = ()
    kernel_dtypes: tuple[torch.dtype, ...] = ()
    complex_forms: tuple[str, ...] = ()
    sparse: tuple[str, ...] = ()
    exact: bool = False
    requirements: tuple[Callable[..., Any], ...] = ()

    since: str = ""
    schema: str = ""
