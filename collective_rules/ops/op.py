"""What a row of the op table can say: only what is the op's own.

Positions, types, defaults, the group argument, returns and declared aliases are read from the live schema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

__all__ = [
    "ANY",
    "CONTIGUOUS",
    "DENSE",
    "EVEN",
    "FORMAT",
    "FREE",
    "NEVER",
    "NONE",
    "ORDER",
    "OWN",
    "UP_TO_OWN",
    "Batch",
    "Op",
    "SplitSizes",
]

ANY, ORDER, DENSE, FORMAT, CONTIGUOUS = "any", "order", "dense", "format", "contiguous"
"""Layouts that an op takes, from the laxest to the strictest.

- `any`: copied element by element.
- `order`: copied too, but a dense tensor keeps its memory order, and all such tensors must have one order. Of a list
  indexed by `p`, this rank's own does not count: it does not travel.
- `dense`: travels as raw memory: no gaps, no element twice, one order.
- `format`: dense, and contiguous or channels_last; another is refused.
- `contiguous`: another is refused.
"""

FREE, OWN, UP_TO_OWN, NEVER = "free", "own", "up to own", "never"
"""Which memory that is read may be written by the same call: any, the r-th of `inputs[p]`, the first r+1, or none."""

EVEN, NONE = "even", "none"
"""What an empty list of split sizes means: equal shares, or no rows at all. None always means equal shares."""


@attrs.frozen
class SplitSizes:
    """Which argument holds split sizes (None: the op has none), and what an empty one means."""

    argument: str | None
    empty: str = EVEN


@attrs.frozen
class Batch:
    """An op that is a list of other ops: `kinds` names, for each element, one of `ops`; the rest are lists too."""

    kinds: str
    ops: Mapping[str, str]
    peers: str
    tags: str
    tensors: str


@attrs.frozen
class Op:
    """One op: which rule it follows, and how its arguments play the rule's parts.

    - `parts`: part of the rule → path into the op's arguments, `output_tensors[1][p]`. A name that is no argument is
      a fresh return.
    - `forms`: the forms of the rule that it admits; empty means the usual one alone.
    - `attributes`: what the rule agrees on → the argument that holds it.
    - `splits`: part → the argument that holds its split sizes.
    - `returns`: the argument (or the path of a fresh `empty(0)`, written "empty") that is returned, where the schema
      does not tell.
    - `scratch`: arguments whose contents are undefined afterwards, on ranks where they are no output.
    - `also_reads`: tensors that are read, and that the rule does not speak of.
    - `row_scales`: argument → the one with its scale, which travels with it if it is one number for each of its rows.
    - `alike`: all tensors of the list have one shape.
    - `layouts`: argument → layout that every backend needs; `any` where it is left out. They matter in groups of
      `layouts_from` ranks or more: some ops touch no memory in a group of one.
    - `sparse`: the layouts that it takes besides strided ones, by torch's names.
    - `overlap`: which of the memory that is read may be written.
    - `exact`: its kernels compare shapes, where the rule is content with equally many elements.
    - `kernel_dtypes`: the dtypes that its kernels take; empty means all.
    - `everywhere`: an `@root` tensor must fit off the root too.
    - `reduce_ops`: the reduce ops that its kernels take; empty means all.
    - `demands`: functions of a `Sizing` that raise `Unsolvable`, for what no text can say.
    - `dtypes`: part → argument that chooses its dtype. `strides`: part → function of shape and arguments.
    - `elements`: the argument that says how many elements move, where that is not all of the tensor.
    - `promotes`: part → function from the dtype that is read to that of a fresh tensor.
    - `omits`: fresh part → the argument that, if False, leaves it out.
    - `own`: a fresh list whose r-th element is this argument's own memory.
    - `group_size_ignored`: torch never reads the argument group_size.
    - `meets`: what it meets on the other ranks, where that is not each op of its rule.
    - `done`: it returns no work and is over when it returns.
    - `since`, `schema`: for an op newer than the oldest torch, its first version and its schema.
    """

    op: str
    rule: str
    parts: Mapping[str, str]
    forms: tuple[str, ...] = ()
    attributes: Mapping[str, str] = attrs.field(factory=dict)
    splits: Mapping[str, SplitSizes] = attrs.field(factory=dict)
    returns: str = ""
    scratch: tuple[str, ...] = ()
    also_reads: tuple[str, ...] = ()
    row_scales: Mapping[str, str] = attrs.field(factory=dict)
    alike: bool = False
    layouts: Mapping[str, str] = attrs.field(factory=dict)
    layouts_from: int = 1
    overlap: str = FREE
    sparse: tuple[str, ...] = ()
    reduce_ops: tuple[str, ...] = ()
    demands: tuple[Callable[..., Any], ...] = ()
    dtypes: Mapping[str, str] = attrs.field(factory=dict)
    strides: Mapping[str, Callable[..., Any]] = attrs.field(factory=dict)
    promotes: Mapping[str, Callable[..., Any]] = attrs.field(factory=dict)
    omits: Mapping[str, str] = attrs.field(factory=dict)
    own: Mapping[str, str] = attrs.field(factory=dict)
    elements: str = ""
    exact: bool = False
    kernel_dtypes: tuple[torch.dtype, ...] = ()
    everywhere: bool = False
    batch: Batch | None = None
    group_size_ignored: bool = False
    meets: str = ""
    done: bool = False
    since: str = ""
    schema: str = ""
