"""Plain torch: all ranks' inputs → all ranks' outputs. These never read a rule's text; they are its second witness.

An oracle takes `inputs`, one entry for each rank (a tensor, a list of W tensors where the rule says `inputs[p]`, None
where the rank passes nothing), and the call's attributes by keyword; it returns one entry for each rank, None where
the rule writes nothing there. Tensors are contiguous and of one device; splits, roots and dims are as in the op.
`@computes` names the forms that an oracle knows, the usual one first: it refuses to be asked for another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from collective_rules.errors import UnknownFormError

PerRank = list[Any]


@attrs.frozen
class Oracle:
    """Computes all ranks' outputs from all ranks' inputs, in the `forms` that it knows; by default in the first."""

    compute: Callable[..., PerRank]
    forms: tuple[str, ...]

    def __call__(self, inputs: PerRank, *, form: str = "", **attributes: Any) -> PerRank:
        """Return each rank's outputs; raise `UnknownFormError` for a form that is not known."""
        form = form or self.forms[0]
        if form not in self.forms:
            name = self.compute.__name__
            raise UnknownFormError(f"the oracle {name}", form, self.forms, f"collective_rules/rules/oracles.py, {name}")
        return self.compute(inputs, form=form, **attributes)


def computes(*forms: str) -> Callable[[Callable[..., PerRank]], Oracle]:
    """Make an oracle of a function that computes these forms."""
    return lambda compute: Oracle(compute, forms)


def _average(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0) / len(tensors)


def _fold(operation: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
    def reduced(tensors: Sequence[Tensor]) -> Tensor:
        return functools.reduce(operation, tensors).clone()

    return reduced


REDUCTIONS: dict[str, Callable[[Sequence[Tensor]], Tensor]] = {
    "sum": _fold(torch.add),
    "avg": _average,
    "product": _fold(torch.mul),
    "min": _fold(torch.minimum),
    "max": _fold(torch.maximum),
    "band": _fold(torch.bitwise_and),
    "bor": _fold(torch.bitwise_or),
    "bxor": _fold(torch.bitwise_xor),
}


def reduction(reduce_op: str, tensors: Sequence[Tensor]) -> Tensor:
    """Reduce `tensors` elementwise, in the dtype that they have."""
    return REDUCTIONS[reduce_op](tensors).to(tensors[0].dtype)


@computes("even", "copied")
def all_reduce(inputs: PerRank, *, reduce_op: str = "sum", **_: Any) -> PerRank:
    """Every rank gets the reduction of all."""
    return [reduction(reduce_op, inputs) for _ in inputs]


@computes("even")
def broadcast(inputs: PerRank, *, root: int, **_: Any) -> PerRank:
    """Every rank gets the root's."""
    return [inputs[root].clone() for _ in inputs]


@computes("even")
def reduce(inputs: PerRank, *, root: int, reduce_op: str = "sum", **_: Any) -> PerRank:
    """The root gets the reduction of all."""
    return [reduction(reduce_op, inputs) if rank == root else None for rank in range(len(inputs))]


@computes("even", "uneven")
def all_gather(inputs: PerRank, **_: Any) -> PerRank:
    """Every rank gets everyone's, as a list."""
    return [[tensor.clone() for tensor in inputs] for _ in inputs]


def _flattened(inputs: PerRank) -> PerRank:
    return [tensor.reshape(-1) for tensor in inputs]


@computes("concatenated", "stacked", "scalar", "row", "reshaped")
def all_gather_into_tensor(inputs: PerRank, *, form: str, **_: Any) -> PerRank:
    """Every rank gets everyone's, one after another in one tensor."""
    inputs = _flattened(inputs) if form == "reshaped" else inputs
    whole = torch.stack(inputs) if form in ("stacked", "scalar") else torch.cat(inputs)
    return [whole[None].clone() if form == "row" else whole.clone() for _ in inputs]


@computes("even", "uneven")
def reduce_scatter(inputs: PerRank, *, reduce_op: str = "sum", **_: Any) -> PerRank:
    """Rank r gets the reduction of everyone's r-th tensor."""
    return [reduction(reduce_op, [lists[rank] for lists in inputs]) for rank in range(len(inputs))]


@computes("concatenated", "stacked", "last_dim", "reshaped")
def reduce_scatter_tensor(inputs: PerRank, *, form: str, reduce_op: str = "sum", **_: Any) -> PerRank:
    """Rank r gets the r-th piece of the reduction."""
    whole = reduction(reduce_op, _flattened(inputs) if form == "reshaped" else inputs)
    if form == "stacked":
        return [piece.clone() for piece in whole.unbind()]
    return [piece.clone() for piece in whole.tensor_split(len(inputs), -1 if form == "last_dim" else 0)]


@computes("even")
def reduce_to_roots(inputs: PerRank, *, roots: Sequence[int], reduce_op: str = "sum", **_: Any) -> PerRank:
    """Rank roots[i] gets the reduction of everyone's i-th tensor."""
    outputs: PerRank = [None] * len(inputs)
    for i, root in enumerate(roots):
        outputs[root] = reduction(reduce_op, [tensors[i] for tensors in inputs])
    return outputs


@computes("even")
def reduce_scatter_blocks(
    inputs: PerRank,
    *,
    dim: int,
    offsets: Sequence[int] | None = None,
    dst_ranks: Sequence[int] | None = None,
    reduce_op: str = "sum",
    **_: Any,
) -> PerRank:
    """Block i ends at offsets[i] along `dim`; rank dst_ranks[i] gets its reduction."""
    group_size = len(inputs)
    whole = reduction(reduce_op, inputs)
    ends = list(offsets or [whole.shape[dim] // group_size * (i + 1) for i in range(group_size)])
    owners = dst_ranks or [i % group_size for i in range(len(ends))]
    outputs: PerRank = [[] for _ in inputs]
    for start, end, owner in zip([0, *ends], ends, owners, strict=False):
        outputs[owner].append(whole.narrow(dim, start, end - start).clone())
    return outputs


@computes("stacked", "concatenated")
def all_to_all_nd(inputs: PerRank, *, scatter_dim: int, gather_dim: int, form: str, **_: Any) -> PerRank:
    """The ranks' pieces along `scatter_dim` are swapped, and stacked (or joined) along `gather_dim`."""
    group_size = len(inputs)
    joined: PerRank = []
    for rank in range(group_size):
        pieces = []
        for tensor in inputs:
            matrix = tensor.flatten(scatter_dim, scatter_dim + 1) if tensor.dim() == 3 else tensor
            pieces.append(matrix.chunk(group_size, scatter_dim)[rank])
        joined.append(torch.stack(pieces, gather_dim) if form == "stacked" else torch.cat(pieces, gather_dim))
    return joined


@computes("even")
def all_gather_matmul(inputs: PerRank, *, weights: Sequence[Sequence[Tensor]], gather_dim: int, **_: Any) -> PerRank:
    """Every rank gets everyone's shard along `gather_dim`, and its product with each of its own weights."""
    whole = torch.cat(inputs, dim=gather_dim)
    return [[whole.clone(), [whole @ weight for weight in own]] for own in weights]


@computes("even", "reshaped")
def matmul_reduce_scatter(
    inputs: PerRank, *, weights: Sequence[Tensor], scatter_dim: int, reduce_op: str = "sum", **_: Any
) -> PerRank:
    """Rank r gets the r-th piece, along `scatter_dim`, of the reduction of everyone's product."""
    whole = reduction(reduce_op, [tensor @ weight for tensor, weight in zip(inputs, weights, strict=True)])
    return [piece.clone() for piece in whole.chunk(len(inputs), scatter_dim)]


@computes("even")
def gather(inputs: PerRank, *, root: int, **_: Any) -> PerRank:
    """The root gets everyone's, as a list."""
    return [[tensor.clone() for tensor in inputs] if rank == root else None for rank in range(len(inputs))]


@computes("concatenated", "stacked")
def gather_into_tensor(inputs: PerRank, *, root: int, form: str, **_: Any) -> PerRank:
    """The root gets everyone's, one after another in one tensor."""
    gathered = all_gather_into_tensor(inputs, form=form)
    return [whole if rank == root else None for rank, whole in enumerate(gathered)]


@computes("even")
def scatter(inputs: PerRank, *, root: int, **_: Any) -> PerRank:
    """Rank r gets the root's r-th tensor."""
    return [tensor.clone() for tensor in inputs[root]]


@computes("even", "uneven")
def all_to_all(inputs: PerRank, **_: Any) -> PerRank:
    """Rank r gets everyone's r-th tensor."""
    return [[tensors[rank].clone() for tensors in inputs] for rank in range(len(inputs))]


@computes("split", "rows", "flat")
def all_to_all_single(inputs: PerRank, *, splits: Sequence[Sequence[int]], form: str, **_: Any) -> PerRank:
    """Rank r gets everyone's r-th piece, one after another; `splits[i][j]` rows go from rank i to rank j."""
    if form == "flat":
        inputs = _flattened(inputs)
    if form == "rows":
        inputs = [tensor.flatten(1) for tensor in inputs]
    pieces = [tensor.split(list(row)) for tensor, row in zip(inputs, splits, strict=True)]
    return [torch.cat([row[rank] for row in pieces]) for rank in range(len(inputs))]


@computes("even")
def shard_dim_alltoall(inputs: PerRank, *, gather_dim: int, shard_dim: int, **_: Any) -> PerRank:
    """The global tensor, sharded along `gather_dim` before, is sharded along `shard_dim` after."""
    group_size = len(inputs)
    size = inputs[0].shape[shard_dim] // group_size
    return [
        torch.cat([tensor.narrow(shard_dim, rank * size, size) for tensor in inputs], dim=gather_dim)
        for rank in range(group_size)
    ]


@computes("even", "multicast")
def send(inputs: PerRank, *, peer: Sequence[int | None], **_: Any) -> PerRank:
    """Rank `peer[i]` gets what rank i sends; None sends nothing."""
    outputs: PerRank = [None] * len(inputs)
    for tensor, to in zip(inputs, peer, strict=True):
        if to is not None:
            outputs[to] = tensor.clone()
    return outputs


@computes("even")
def unchanged(inputs: PerRank, **_: Any) -> PerRank:
    """Every rank keeps its own."""
    return [None if tensor is None else tensor.clone() for tensor in inputs]
