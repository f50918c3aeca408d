"""Each rule's oracle against infer's sizes and against another way to compute the same values.

An oracle is the second witness of a rule's text; this is the witness of the oracle. Inputs tell rank and position
apart. `tests/test_gloo.py` holds what gloo can carry out against the oracles; here are all rules, most of all those
that no CPU backend carries out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.rules import RULES

F, S, C = "_c10d_functional::", "symm_mem::", "c10d::"


@attrs.frozen
class Case:
    """One collective: each rank's arguments of `op`, and the oracle's; `values` computes the outputs another way."""

    op: str
    arguments: list[dict[str, Any]]
    inputs: list[Any]
    attributes: dict[str, Any]
    values: list[Any]


class Draw:
    """Draws a group and its tensors."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.size = draw(st.integers(1, 4))
        self.ranks = range(self.size)
        self.root = draw(st.integers(0, self.size - 1))

    def number(self, least: int = 0, most: int = 3) -> int:
        return self.draw(st.integers(least, most))

    def shape(self) -> tuple[int, ...]:
        return tuple(self.draw(st.lists(st.integers(0, 3), max_size=2)))

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def tensor(self, rank: int, *shape: int) -> torch.Tensor:
        """Every element of every rank is another number."""
        count = torch.Size(shape).numel()
        return (torch.arange(count, dtype=torch.float64) + 1000 * (rank + 1)).reshape(shape)

    def tensors(self, *shape: int) -> list[torch.Tensor]:
        return [self.tensor(rank, *shape) for rank in self.ranks]

    def reductions(self) -> tuple[str, Callable[[list[torch.Tensor]], torch.Tensor]]:
        """A reduce op, and what it makes of one element of each rank."""
        return self.pick(
            ("sum", lambda each: torch.stack(each).sum(0)),
            ("avg", lambda each: torch.stack(each).mean(0)),
            ("max", lambda each: torch.stack(each).amax(0)),
            ("min", lambda each: torch.stack(each).amin(0)),
            ("product", lambda each: torch.stack(each).prod(0)),
        )


def same_for_all(d: Draw, **arguments: Any) -> list[dict[str, Any]]:
    return [arguments for _ in d.ranks]


def all_reduce(d: Draw) -> Case:
    (op, reduced), shape = d.reductions(), d.shape()
    inputs = d.tensors(*shape)
    calls = [{"input": each, "reduce_op": op} for each in inputs]
    return Case(F + "all_reduce", calls, inputs, {"reduce_op": op}, [reduced(inputs)] * d.size)


def broadcast(d: Draw) -> Case:
    inputs = d.tensors(*d.shape())
    calls = [{"input": each, "src": d.root} for each in inputs]
    return Case(F + "broadcast", calls, inputs, {"root": d.root}, [inputs[d.root]] * d.size)


def reduce(d: Draw) -> Case:
    inputs = d.tensors(d.number(), d.number())
    calls = [{"in_tile": each.float(), "root": d.root} for each in inputs]
    values = [torch.stack(inputs).sum(0) if rank == d.root else None for rank in d.ranks]
    return Case(S + "tile_reduce", calls, inputs, {"root": d.root}, values)


def reduce_to_roots(d: Draw) -> Case:
    roots = d.draw(st.permutations(d.ranks))[: d.number(1, d.size)]
    inputs = [[d.tensor(10 * i + rank, 2, 3) for i in range(len(roots))] for rank in d.ranks]
    calls = [{"in_tiles": [each.float() for each in tiles], "roots": list(roots)} for tiles in inputs]
    values: list[Any] = [None] * d.size
    for i, root in enumerate(roots):
        values[root] = torch.stack([tiles[i] for tiles in inputs]).sum(0)
    return Case(S + "multi_root_tile_reduce", calls, inputs, {"roots": roots}, values)


def all_gather(d: Draw) -> Case:
    inputs = [d.tensor(rank, *d.shape()) for rank in d.ranks]
    calls = [{"input_tensors": [each], "output_tensors": [inputs]} for each in inputs]
    return Case(C + "allgather_", calls, inputs, {}, [list(inputs)] * d.size)


def all_gather_into_tensor(d: Draw, *forms: str) -> Case:
    form = d.pick(*(forms or ("concatenated", "stacked", "row")))
    shape = (d.number(), *(d.shape() if form != "row" else ()))
    inputs = d.tensors(*shape)
    whole = torch.empty(d.size, *shape, dtype=torch.float64)
    for rank in d.ranks:
        whole[rank] = inputs[rank]
    if form != "stacked":
        whole = whole.reshape(*((1,) if form == "row" else ()), d.size * shape[0], *shape[1:])
    calls = [{"input_tensor": each, "output_tensor": whole} for each in inputs]
    return Case(C + "_allgather_base_", calls, inputs, {"form": form}, [whole] * d.size)


def reduce_scatter(d: Draw) -> Case:
    (op, reduced), shapes = d.reductions(), [d.shape() for _ in d.ranks]
    inputs = [[d.tensor(10 * p + rank, *shapes[p]) for p in d.ranks] for rank in d.ranks]
    values = [reduced([lists[rank] for lists in inputs]) for rank in d.ranks]
    calls = [{"input_tensors": [inputs[rank]], "output_tensors": [values[rank]], "reduce_op": op} for rank in d.ranks]
    return Case(C + "reduce_scatter_", calls, inputs, {"reduce_op": op}, values)


def reduce_scatter_tensor(d: Draw) -> Case:
    form, rest = d.pick("concatenated", "stacked"), d.shape()
    (op, reduced), rows = d.reductions(), d.number()
    inputs = d.tensors(*((d.size * rows, *rest) if form == "concatenated" else (d.size, *rest)))
    whole = reduced(inputs)
    values = [whole[r * rows : (r + 1) * rows] if form == "concatenated" else whole[r] for r in d.ranks]
    calls = [{"input_tensor": inputs[rank], "output_tensor": values[rank], "reduce_op": op} for rank in d.ranks]
    return Case(C + "_reduce_scatter_base_", calls, inputs, {"reduce_op": op, "form": form}, values)


def reduce_scatter_blocks(d: Draw) -> Case:
    turns, dim = d.number(1, 3), d.number(0, 1)
    sizes = [d.number() for _ in range(turns)]  # the j-th block of every rank has one size
    owners = list(d.draw(st.permutations([rank for rank in d.ranks for _ in sizes])))
    seen, ends, end = [0] * d.size, [], 0
    for owner in owners:
        end, seen[owner] = end + sizes[seen[owner]], seen[owner] + 1
        ends.append(end)
    inputs = d.tensors(*((end + d.number(), 2) if dim == 0 else (2, end + d.number())))
    whole = torch.stack(inputs).sum(0)
    values: list[Any] = [[] for _ in d.ranks]
    for owner, start, stop in zip(owners, [0, *ends], ends, strict=False):
        values[owner].append(whole[start:stop] if dim == 0 else whole[:, start:stop])
    attributes = {"dim": dim, "offsets": ends, "dst_ranks": owners}
    if owners == [i % d.size for i in range(len(owners))] and d.pick(True, False):
        attributes["dst_ranks"] = None
    calls = [{"input": each.float(), **attributes} for each in inputs]
    return Case(S + "nccl_reduce_scatter_offset", calls, inputs, attributes, values)


def gather(d: Draw) -> Case:
    inputs = d.tensors(*d.shape())
    calls = [
        {"input_tensors": [inputs[rank]], "output_tensors": [inputs] if rank == d.root else [], "root_rank": d.root}
        for rank in d.ranks
    ]
    values = [list(inputs) if rank == d.root else None for rank in d.ranks]
    return Case(C + "gather_", calls, inputs, {"root": d.root}, values)


def gather_into_tensor(d: Draw) -> Case:
    one = all_gather_into_tensor(d, "concatenated", "stacked")
    calls = [call | {"root_rank": d.root} for call in one.arguments]
    values = [one.values[rank] if rank == d.root else None for rank in d.ranks]
    return Case(C + "gather_into_tensor_", calls, one.inputs, {**one.attributes, "root": d.root}, values)


def scatter(d: Draw) -> Case:
    sent = [d.tensor(rank, *shape) for shape in [d.shape()] for rank in d.ranks]
    calls = [
        {"input_tensors": [sent] if rank == d.root else [], "output_tensors": [sent[rank]], "root_rank": d.root}
        for rank in d.ranks
    ]
    inputs = [sent if rank == d.root else None for rank in d.ranks]
    return Case(C + "scatter_", calls, inputs, {"root": d.root}, sent)


def all_to_all(d: Draw) -> Case:
    inputs = [[d.tensor(10 * p + rank, *d.shape()) for p in d.ranks] for rank in d.ranks]
    values = [list(column) for column in zip(*inputs, strict=True)]
    calls = [{"input_tensors": inputs[rank], "output_tensors": values[rank]} for rank in d.ranks]
    return Case(C + "alltoall_", calls, inputs, {}, values)


def all_to_all_single(d: Draw) -> Case:
    splits, rest = [[d.number() for _ in d.ranks] for _ in d.ranks], d.shape()
    inputs = [d.tensor(rank, sum(splits[rank]), *rest) for rank in d.ranks]
    values = []
    for rank in d.ranks:
        rows = [row for p in d.ranks for row in inputs[p][sum(splits[p][:rank]) :][: splits[p][rank]]]
        values.append(torch.stack(rows) if rows else inputs[rank][:0])
    calls = [
        {
            "input": inputs[rank],
            "output": values[rank],
            "input_split_sizes": splits[rank],
            "output_split_sizes": [row[rank] for row in splits],
        }
        for rank in d.ranks
    ]
    return Case(C + "alltoall_base_", calls, inputs, {"splits": splits}, values)


def all_to_all_nd(d: Draw) -> Case:
    scatter_dim, form, deep = d.number(0, 1), d.pick("stacked", "concatenated"), d.pick(True, False)
    rows, columns = d.number(1), d.number(1)
    shape = (rows, d.size, columns) if scatter_dim == 1 else (d.size, rows, columns)
    flat = (rows, d.size * columns) if scatter_dim == 1 else (d.size * rows, columns)
    cubes = d.tensors(*shape)
    values = []
    for rank in d.ranks:
        out = torch.empty(d.size, rows, columns, dtype=torch.float64)
        for p in d.ranks:
            out[p] = cubes[p][:, rank] if scatter_dim == 1 else cubes[p][rank]
        if scatter_dim == 0:
            out = out.transpose(0, 1).contiguous()
        joined = (d.size * rows, columns) if scatter_dim == 1 else (rows, d.size * columns)
        values.append(out if form == "stacked" else out.reshape(joined))
    inputs = cubes if deep else [cube.reshape(flat) for cube in cubes]
    attributes = {"scatter_dim": scatter_dim, "gather_dim": 1 - scatter_dim}
    calls = [{"input": inputs[rank], "out": values[rank], **attributes} for rank in d.ranks]
    return Case(S + "nccl_all_to_all_nd", calls, inputs, {**attributes, "form": form}, values)


def shard_dim_alltoall(d: Draw) -> Case:
    gathered, sharded = d.draw(st.permutations(range(3)))[:2]
    shape = [d.number(1) for _ in range(3)]
    shape[sharded] *= d.size
    inputs = d.tensors(*shape)
    values = [torch.cat(inputs, gathered).unflatten(sharded, (d.size, -1)).select(sharded, r) for r in d.ranks]
    attributes = {"gather_dim": gathered, "shard_dim": sharded}
    calls = [{"input": each, **attributes} for each in inputs]
    return Case("_dtensor::shard_dim_alltoall", calls, inputs, attributes, values)


def all_gather_matmul(d: Draw) -> Case:
    shape, count = [d.number(1) for _ in range(d.number(2, 3))], d.number(1, 2)
    dim = d.number(0, len(shape) - 1)
    inputs = d.tensors(*shape)
    inner = shape[-1] * (d.size if dim == len(shape) - 1 else 1)
    weights = [[d.tensor(rank + i, inner, d.number(1)) for i in range(count)] for rank in d.ranks]
    whole = torch.cat(inputs, dim)
    values = [[whole, [torch.einsum("...k,kn->...n", whole, weight) for weight in weights[rank]]] for rank in d.ranks]
    calls = [{"A": inputs[rank], "Bs": weights[rank], "gather_dim": dim} for rank in d.ranks]
    return Case(S + "fused_all_gather_matmul", calls, inputs, {"weights": weights, "gather_dim": dim}, values)


def matmul_reduce_scatter(d: Draw) -> Case:
    shape, columns = [d.number(1) for _ in range(d.number(2, 3))], d.number(1)
    dim = d.number(0, len(shape) - 1)
    if dim == len(shape) - 1:
        columns *= d.size
    else:
        shape[dim] *= d.size
    inputs, weights = d.tensors(*shape), [d.tensor(rank, shape[-1], columns) for rank in d.ranks]
    op = d.pick("sum", "avg")
    whole = sum(torch.einsum("...k,kn->...n", each, weights[rank]) for rank, each in enumerate(inputs))
    whole = whole / d.size if op == "avg" else whole
    values = [whole.unflatten(dim, (d.size, -1)).select(dim, rank) for rank in d.ranks]
    calls = [{"A": inputs[r], "B": weights[r], "reduce_op": op, "scatter_dim": dim} for r in d.ranks]
    attributes = {"weights": weights, "scatter_dim": dim, "reduce_op": op}
    return Case(S + "fused_matmul_reduce_scatter", calls, inputs, attributes, values)


def view_peers(d: Draw) -> Case:
    inputs = d.tensors(*d.shape())
    return Case(S + "get_remote_tensors", [{"x": x} for x in inputs], inputs, {}, [list(inputs)] * d.size)


def send(d: Draw) -> Case:
    """Around a ring: what a rank sends, the next one has."""
    inputs = [d.tensor(rank, *d.shape()) for rank in d.ranks]
    peers = [(rank + 1) % d.size for rank in d.ranks]
    calls = [{"tensor": each, "dst": peer, "tag": 0} for each, peer in zip(inputs, peers, strict=True)]
    return Case(F + "isend", calls, inputs, {"peer": peers}, [inputs[rank - 1] for rank in d.ranks])


def put(d: Draw) -> Case:
    ring = send(d)
    calls = [{"tensor": call["tensor"], "peer": call["dst"]} for call in ring.arguments]
    return attrs.evolve(ring, op=S + "nvshmem_put", arguments=calls)


def wait(d: Draw) -> Case:
    inputs = d.tensors(*d.shape())
    return Case(F + "wait_tensor", [{"tensor": each} for each in inputs], inputs, {}, inputs)


CASES = {
    function.__name__: function
    for function in (
        all_reduce,
        broadcast,
        reduce,
        reduce_to_roots,
        all_gather,
        all_gather_into_tensor,
        reduce_scatter,
        reduce_scatter_tensor,
        reduce_scatter_blocks,
        gather,
        gather_into_tensor,
        scatter,
        all_to_all,
        all_to_all_single,
        all_to_all_nd,
        shard_dim_alltoall,
        all_gather_matmul,
        matmul_reduce_scatter,
        view_peers,
        send,
        put,
        wait,
    )
}
WRITES_ELSEWHERE = {"send", "put"}
"""What they write lies on another rank: it has the sizes of what that rank is sent."""


def shapes(value: Any) -> Any:
    """The shapes in nested lists; of a list of one, its only one; None of what is not there."""
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return [shapes(item) for item in value]
    return None if value is None else tuple(value.shape)


def inferred(case: Case, rank: int) -> Any:
    """The shapes of what infer says that one rank's call writes, as the oracle lists them."""
    size = len(case.arguments)
    call = cr.call(case.op, group=cr.Group(size=size, rank=rank), **case.arguments[rank])
    assert [] == [finding for finding in cr.check(call) if "float64" not in finding.message]
    results, row = cr.infer(call), cr.lookup(case.op)
    written = [results[name] for name in (row.writes or ("tensor",))]
    off_root = any(part.root_only for part in row.spellings[0].statement.writes) and rank not in roots(case)
    found = [shapes(only(value, row, name)) for value, name in zip(written, row.writes or ("tensor",), strict=True)]
    return None if off_root else found[0] if len(found) == 1 else found


def roots(case: Case) -> list[int]:
    return list(case.attributes["roots"]) if "roots" in case.attributes else [case.attributes["root"]]


def only(value: Any, row: cr.Row, name: str) -> Any:
    """Take the list of exactly one off."""
    part = next((part for part in row.spellings[0].statement.writes if part.path.name == name), None)
    for index in part.path.index if part else ():
        if index == "1":
            value = value[0] if value else None
    return value


def agree_on(expected: Any, actual: Any) -> bool:
    if isinstance(expected, (list, tuple)):
        return len(expected) == len(actual) and all(map(agree_on, expected, actual))
    if expected is None or actual is None:
        return expected is actual
    return expected.shape == actual.shape and torch.allclose(expected, actual)


def test_every_oracle_is_held_against_another_computation() -> None:
    """Of all rules that have one."""
    assert {rule.name for rule in RULES.values() if rule.oracle is not None} == set(CASES)


@pytest.mark.parametrize("rule", CASES)
@given(data=st.data())
@settings(max_examples=40)
def test_an_oracle_computes_what_the_rule_says(rule: str, data: st.DataObject) -> None:
    """Every element lies where another computation puts it."""
    case = CASES[rule](Draw(data.draw))
    outputs = RULES[rule].oracle(case.inputs, **case.attributes)
    assert agree_on(case.values, outputs)
    kept = [each.data_ptr() for each in tensors_of(case.inputs) if each.numel()]
    assert not set(kept) & {each.data_ptr() for each in tensors_of(outputs) if each.numel()}


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, (list, tuple)):
        return [each for item in value for each in tensors_of(item)]
    return [] if value is None else [value]


@pytest.mark.parametrize("rule", sorted(set(CASES) - WRITES_ELSEWHERE))
@given(data=st.data())
@settings(max_examples=40)
def test_infer_says_the_oracles_sizes(rule: str, data: st.DataObject) -> None:
    """On every rank, of every tensor that the rule writes there."""
    case = CASES[rule](Draw(data.draw))
    outputs = RULES[rule].oracle(case.inputs, **case.attributes)
    assert [shapes(each) for each in outputs] == [inferred(case, rank) for rank in range(len(outputs))]


def test_blocks_are_equal_shares_by_default() -> None:
    """One for each rank, in order."""
    inputs = [torch.arange(6).reshape(1, 6) * factor for factor in (1, 10)]
    outputs = RULES["reduce_scatter_blocks"].oracle(inputs, dim=1)
    assert [[[0, 11, 22]], [[33, 44, 55]]] == [[block.flatten().tolist() for block in blocks] for blocks in outputs]


@pytest.mark.parametrize("rows", [10, 12], ids=["whole", "with a rest"])
def test_all_blocks_together_are_the_covered_part_of_the_sum(rows: int) -> None:
    """Worked out by hand: two ranks, blocks of 2, 3, 2 and 3 rows, of ten or of twelve."""
    inputs = [torch.arange(rows).reshape(rows, 1) * factor for factor in (1, 10)]
    attributes = {"dim": 0, "offsets": [2, 5, 7, 10], "dst_ranks": [1, 1, 0, 0]}
    outputs = RULES["reduce_scatter_blocks"].oracle(inputs, **attributes)
    assert [[[55, 66], [77, 88, 99]], [[0, 11], [22, 33, 44]]] == [
        [block.flatten().tolist() for block in blocks] for blocks in outputs
    ]
