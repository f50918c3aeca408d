"""Size functions: the sizes that a shape cannot say, because an argument chooses the dim.

Each takes a `Sizing` and returns the value of one derived name, or raises `Unsolvable`. They take SymInts as well as
ints, and never look at a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from collective_rules.rules.rule import Unsolvable
from collective_rules.spec import contiguous_stride
from collective_rules.symbols import same

Shape = tuple[int, ...]


@attrs.frozen
class Sizing:
    """What a size function may use: the names bound so far, W, this rank, the other arguments.

    `element` is the place in a list of coalesced tensors, 0 where there is none.

    `demand(condition, kind, verdict)` ends the function where the condition does not hold, and leaves to the run
    what only the run can tell (an unbacked SymInt).
    """

    names: Mapping[str, Any]
    group_size: int
    rank: int
    element: int
    arguments: Mapping[str, Any]
    demand: Callable[[Any, str, str], None]

    def dim(self, shape: Shape, argument: str, *, wrap: bool = False) -> int:
        """Return the dim that `argument` chooses; it may be negative only with `wrap`."""
        dim = self.arguments[argument]
        if not isinstance(dim, int) or not (-len(shape) if wrap else 0) <= dim < len(shape):
            raise Unsolvable("argument", f"{argument}={dim!r} is no dim of a tensor of shape {shape}")
        return dim % len(shape)

    def divide(self, shape: Shape, dim: int) -> Shape:
        """Return `shape` with `dim` divided among the ranks."""
        size, parts = shape[dim], self.group_size
        self.demand(size % parts == 0, "divides", f"dim {dim} has {size} elements, which is no multiple of W={parts}")
        return (*shape[:dim], size // parts, *shape[dim + 1 :])

    def multiply(self, shape: Shape, dim: int) -> Shape:
        """Return `shape` with `dim` gathered from all ranks."""
        return (*shape[:dim], shape[dim] * self.group_size, *shape[dim + 1 :])


def gathered_dim(sizing: Sizing) -> Shape:
    """`s`, gathered along gather_dim."""
    shape = sizing.names["s"]
    return sizing.multiply(shape, sizing.dim(shape, "gather_dim"))


def swapped_dims(sizing: Sizing) -> Shape:
    """`s`, gathered along gather_dim and sharded along shard_dim.

    A negative dim corrupts the heap (measured on gloo), but for a gather_dim in a group of one, which gathers nothing.
    """
    shape, alone = sizing.names["s"], sizing.group_size == 1
    gathered, sharded = sizing.dim(shape, "gather_dim", wrap=alone), sizing.dim(shape, "shard_dim")
    return sizing.multiply(sizing.divide(shape, sharded), gathered)


def _matmul(sizing: Sizing, shape: Shape) -> Shape:
    inner = sizing.names["k"]
    if len(shape) < 2:
        raise Unsolvable("dims", f"the left factor has shape {shape}, but needs at least 2 dims")
    sizing.demand(
        shape[-1] == inner, "sizes", f"the left factor's last size is {shape[-1]}, the weight's first {inner}"
    )
    return (*shape[:-1], sizing.names["n"])


def gathered_product(sizing: Sizing) -> Shape:
    """The gathered `s`, times a weight."""
    return _matmul(sizing, gathered_dim(sizing))


def scattered_product(sizing: Sizing) -> Shape:
    """`s` times the weight, scattered along scatter_dim."""
    shape = _matmul(sizing, sizing.names["s"])
    return sizing.divide(shape, sizing.dim(shape, "scatter_dim"))


def reshaped_product(sizing: Sizing) -> Shape:
    """`output_shape` with the weight's last size, scattered along orig_scatter_dim."""
    product = _matmul(sizing, sizing.names["s"])
    wanted = sizing.arguments.get("output_shape")
    if not wanted:
        raise Unsolvable("argument", f"output_shape={wanted!r}, but both kernels need the product's full shape")
    whole = (*wanted[:-1], product[-1])
    rows, shown = math.prod(product[:-1]), math.prod(whole[:-1])
    sizing.demand(rows == shown, "argument", f"output_shape={tuple(wanted)} has {shown} rows, the product {rows}")
    return sizing.divide(whole, sizing.dim(whole, "orig_scatter_dim"))


def _blocks(sizing: Sizing) -> tuple[int, list[Any]]:
    shape, arguments = sizing.names["s"], sizing.arguments
    if len(shape) != 2:
        raise Unsolvable("dims", f"the input has shape {shape}, but must have 2 dims")
    dim, offsets, owners = sizing.dim(shape, "dim"), arguments.get("offsets"), arguments.get("dst_ranks")
    if offsets is None:
        block = sizing.divide(shape, dim)[dim]
        offsets = [block * (i + 1) for i in range(sizing.group_size)]
    if owners is None:
        owners = [i % sizing.group_size for i in range(len(offsets))]
    if len(owners) != len(offsets):
        raise Unsolvable("argument", f"offsets names {len(offsets)} blocks, dst_ranks {len(owners)}")
    if not all(0 <= owner < sizing.group_size for owner in owners):
        raise Unsolvable("argument", f"dst_ranks={tuple(owners)} are not all ranks of a group of {sizing.group_size}")
    if not offsets or len({owners.count(rank) for rank in range(sizing.group_size)}) > 1:
        raise Unsolvable("argument", f"dst_ranks={tuple(owners)} does not give every rank equally many blocks")
    sizes = [end - start for start, end in zip([0, *offsets], offsets, strict=False)]
    for size in sizes:
        sizing.demand(size >= 0, "argument", f"offsets={tuple(offsets)} must not decrease")
    for turn in range(len(offsets) // sizing.group_size):
        turns = {sizes[at] for at in (_nth_of(owners, rank, turn) for rank in range(sizing.group_size))}
        alike = len(turns) == 1 or any(not isinstance(size, int) for size in turns)
        sizing.demand(alike, "argument", f"offsets={tuple(offsets)}: block {turn} of every rank must have one size")
    end = offsets[-1]
    sizing.demand(end <= shape[dim], "argument", f"offsets={tuple(offsets)} end after the {shape[dim]} of dim {dim}")
    return dim, [size for size, owner in zip(sizes, owners, strict=True) if owner == sizing.rank]


def _nth_of(owners: Sequence[int], rank: int, turn: int) -> int:
    """The place of the block that is `rank`'s `turn`-th."""
    return [place for place, owner in enumerate(owners) if owner == rank][turn]


def owned_blocks(sizing: Sizing) -> int:
    """How many blocks this rank owns: the length of its list of outputs."""
    return len(_blocks(sizing)[1])


def block_shape(sizing: Sizing) -> Shape:
    """The shape of the i-th block that this rank owns."""
    dim, owned = _blocks(sizing)
    size, other = owned[sizing.element], sizing.names["s"][1 - dim]
    return (size, other) if dim == 0 else (other, size)


def _exchange(sizing: Sizing) -> tuple[int, tuple[int, int]]:
    shape, dims = sizing.names["s"], (sizing.arguments["scatter_dim"], sizing.arguments["gather_dim"])
    if dims not in ((1, 0), (0, 1)):
        raise Unsolvable("argument", f"(scatter_dim, gather_dim)={dims}, but must be (1, 0) or (0, 1)")
    scatter = dims[0]
    if len(shape) == 3:
        size = shape[scatter]
        sizing.demand(size == sizing.group_size, "sizes", f"dim {scatter} has size {size}, but must be W")
        rows, columns = shape[1 - scatter], shape[2]
    elif len(shape) == 2:
        rows, columns = sizing.divide(shape, scatter)
    else:
        raise Unsolvable("dims", f"the input has shape {shape}, but must have 2 or 3 dims")
    return scatter, (rows, columns)


def stacked_exchange(sizing: Sizing) -> Shape:
    """The exchanged pieces, stacked along a dim of size W."""
    scatter, (rows, columns) = _exchange(sizing)
    return (sizing.group_size, rows, columns) if scatter == 1 else (rows, sizing.group_size, columns)


def concatenated_exchange(sizing: Sizing) -> Shape:
    """The exchanged pieces, joined into a matrix."""
    scatter, (rows, columns) = _exchange(sizing)
    return (rows * sizing.group_size, columns) if scatter == 1 else (rows, columns * sizing.group_size)


def gather_dim_outermost(shape: Shape, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """The fresh tensors' strides have gather_dim outermost, unless it is the last dim."""
    dim = arguments["gather_dim"]
    order = list(range(len(shape)))
    if dim != len(shape) - 1:
        order.insert(0, order.pop(dim))
    inner = contiguous_stride([shape[d] for d in order])
    strides = dict(zip(order, inner, strict=True))
    return tuple(strides[d] for d in range(len(shape)))


def matrix(sizing: Sizing) -> None:
    """The tile has two dims."""
    shape = sizing.names["s"]
    sizing.demand(len(shape) == 2, "sizes", f"a tile has 2 dims, not shape {shape}")


def one_root_each(sizing: Sizing) -> None:
    """There is a root for each tensor, and no rank is root of two."""
    roots, count, ranks = sizing.arguments["roots"], sizing.names["length"], range(sizing.group_size)
    sizing.demand(len(roots) == count, "root", f"roots={tuple(roots)}, but there are {count} tensors")
    sizing.demand(all(root in ranks for root in roots), "root", f"roots={tuple(roots)} are not all ranks of the group")
    sizing.demand(len(set(roots)) == len(roots), "root", f"roots={tuple(roots)} names one rank twice")


def one_dim_unless_split_last(sizing: Sizing) -> None:
    """Without split_last_dim, only a tensor of one dim can be scattered."""
    dims = len(sizing.names["s"]) + 1
    split = bool(sizing.arguments["split_last_dim"])
    sizing.demand(split or dims == 1, "argument", f"split_last_dim=False takes 1 dim, but the input has {dims}")


def gather_dim_not_last(sizing: Sizing) -> None:
    """The scaled kernel cannot gather along the last dim."""
    shape = sizing.names["s"]
    last = sizing.dim(shape, "gather_dim") == len(shape) - 1
    sizing.demand(not last, "argument", f"gather_dim={len(shape) - 1} is the last dim, along which scales vary")


def one_option_for_each_weight(sizing: Sizing) -> None:
    """B_scales, biases, result_scales, out_dtypes and use_fast_accum have one entry for each weight."""
    count = sizing.names["length"]
    for argument in ("B_scales", "biases", "result_scales", "out_dtypes", "use_fast_accum"):
        length = len(sizing.arguments.get(argument) or ())
        sizing.demand(length == count, "lists", f"{argument} has {length} entries, but there are {count} weights")


def _scale_fits(scale: Any, shapes: list[Shape]) -> bool:
    if scale is None or scale.shape is None or scale.numel == 1:
        return True
    return any(scale.shape == (*shape[:-1], 1) for shape in shapes)


def gathered_scale(sizing: Sizing) -> None:
    """A_scale is one number, one for each row of this rank's shard, or one for each gathered row."""
    scale, shapes = sizing.arguments.get("A_scale"), [sizing.names["s"], gathered_dim(sizing)]
    verdict = f"A_scale has shape {scale and scale.shape}, which scales neither the tensor nor the rows of {shapes[0]}"
    sizing.demand(_scale_fits(scale, shapes), "argument", verdict)


def row_or_tensor_scale(sizing: Sizing) -> None:
    """A_scale is one number, or one for each row."""
    scale, shape = sizing.arguments.get("A_scale"), sizing.names["s"]
    verdict = f"A_scale has shape {scale and scale.shape}, which scales neither the tensor nor the rows of {shape}"
    sizing.demand(_scale_fits(scale, [shape]), "argument", verdict)


def scatter_dims_not_last(sizing: Sizing) -> None:
    """The scaled kernel cannot scatter along the last dim, before or after the reshape."""
    whole, shape = sizing.arguments.get("output_shape") or (), sizing.names["s"]
    before = len(whole) > 0 and sizing.dim(whole, "orig_scatter_dim") == len(whole) - 1
    after = sizing.dim(shape, "scatter_dim_after_maybe_reshape") == len(shape) - 1
    sizing.demand(not (before or after), "argument", "the last dim, along which scales vary, cannot be scattered")


def both_splits_or_neither(sizing: Sizing) -> None:
    """The legacy op takes both lists of split sizes, or None for both."""
    given = [name for name in ("input_split_sizes", "output_split_sizes") if sizing.arguments[name] is not None]
    sizing.demand(
        len(given) != 1, "splits", f"{' and '.join(given)} is given, and the other list of split sizes is None"
    )


def two_four_or_eight_ranks(sizing: Sizing) -> None:
    """The kernel is written for groups of 2, 4 or 8 ranks."""
    size = sizing.group_size
    sizing.demand(size in (2, 4, 8), "argument", f"a group of {size} ranks, but its kernel takes 2, 4 or 8")


def buffer_like_output(sizing: Sizing) -> None:
    """The output has the buffer's shape; the input may have another of equally many elements."""
    out, buffer = sizing.arguments.get("out"), sizing.arguments.get("symm_buffer")
    if out is not None and buffer is not None and None not in (out.shape, buffer.shape):
        verdict = f"out has shape {out.shape}, but symm_buffer {buffer.shape}"
        sizing.demand(same(out.shape, buffer.shape) is not False, "sizes", verdict)


def average_of_floats(sizing: Sizing) -> None:
    """An average is taken of floating tensors alone."""
    floating = sizing.names["dtype"].is_floating_point or sizing.names["dtype"].is_complex
    averages = sizing.arguments["reduce_op"] == "avg"
    sizing.demand(floating or not averages, "dtype", f"avg of {sizing.names['dtype']}, which does not float")


def summed_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a local sum over one dim: integers and bool become int64."""
    return dtype if dtype.is_floating_point or dtype.is_complex else torch.int64


def byte_offset_not_negative(sizing: Sizing) -> None:
    """byte_offset counts from the start of the allocation."""
    offset = sizing.arguments["byte_offset"]
    sizing.demand(offset >= 0, "argument", f"byte_offset={offset}, but may not be negative")


def room_for_size(sizing: Sizing) -> None:
    """The tensor `dst` holds at least `size` elements; offset and size are not negative."""
    size, offset = sizing.arguments["size"], sizing.arguments["offset"]
    room = math.prod(sizing.names["s"])
    sizing.demand(size >= 0 and offset >= 0, "argument", f"size={size}, offset={offset}, but neither may be negative")
    sizing.demand(room >= size, "argument", f"dst holds {room} elements, fewer than size={size}")
