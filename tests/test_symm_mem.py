"""`symm_mem::*`, for which no kernel runs here: calls worked out by hand from torch's sources, and its Meta kernels.

Nothing in `WITNESSES` is drawn from the tables; `test_mutants` changes each row in turn, and finds that some witness
notices. What is not known here: what a GPU does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import pytest
import torch
import torch.distributed as dist

import collective_rules as cr
from collective_rules.ops import OPS
from collective_rules.ops.op import CONTIGUOUS
from collective_rules.rules import RULES
from collective_rules.spec import Spec

F32, BF16, F16, I32, I64 = torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64
FP8 = torch.float8_e4m3fn
S = "symm_mem::"
SYMM_MEM = [op for op in cr.ops() if op.startswith(S)]


def f32(*shape: int, stride: tuple[int, ...] | None = None, dtype: torch.dtype = F32) -> Spec:
    """A tensor on the GPU."""
    return Spec(shape, dtype, stride, "cuda")


def bf16(*shape: int) -> Spec:
    return f32(*shape, dtype=BF16)


def i64(*shape: int) -> Spec:
    return f32(*shape, dtype=I64)


def fp8(*shape: int, stride: tuple[int, ...] | None = None) -> Spec:
    return f32(*shape, stride=stride, dtype=FP8)


Described = tuple[tuple[int, ...], torch.dtype, tuple[int, ...], str | None, str]


def gets(
    *shape: int, dtype: torch.dtype = F32, stride: tuple[int, ...] | None = None, alias: str | None = None
) -> Described:
    """What infer is to say of one tensor; strides left out are a fresh tensor's, asked of torch."""
    return shape, dtype, stride or torch.empty(shape, device="meta").stride(), alias, "cuda"


def described(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(described, value))
    return (value.shape, value.dtype, value.stride, value.alias, value.device)


def into(name: str, *shape: int, dtype: torch.dtype = F32, stride: tuple[int, ...] | None = None) -> dict[str, Any]:
    """Infer's answer where one argument is written."""
    return {name: gets(*shape, dtype=dtype, stride=stride, alias=name)}


Changes = tuple[str, Mapping[str, Any]]
RANK, W, BASE = "rank", "W", "base"


def each(kind: str, **values: Iterable[Any]) -> list[Changes]:
    """Change one thing at a time, to each of its values in turn; what is found is of that kind."""
    return [(kind, {name: value}) for name, several in values.items() for value in several]


@attrs.frozen
class Legal:
    """A legal call of rank `rank` of `size`, and what infer says of it."""

    arguments: Mapping[str, Any]
    expected: Mapping[str, Any]
    rank: int = 0
    size: int = 4
    promised: tuple[str, ...] = ()
    """Written arguments of which infer says the same where they are left out."""
    meta: bool = True
    """Whether the Meta kernel, if there is one, answers as the CUDA one does."""


@attrs.frozen
class Witness:
    """What is known of one op.

    - `legal`: calls that nothing is wrong with; the first one gives all arguments that the op writes.
    - `broken`: the kind of constraint, and what breaks it when it is changed in the first call: arguments, its `RANK`
      or its group's size `W`. `groups`: the kind ("" for none), and what rank 1 alone changes, in the first call or
      in another legal one, the `BASE`. That all ranks may make the first call goes without saying.
    - `reads`: the arguments whose contents it consumes. `contiguous`: those that its kernel refuses to take otherwise.
    """

    legal: tuple[Legal, ...]
    reads: tuple[str, ...]
    broken: tuple[Changes, ...] = ()
    groups: tuple[Changes, ...] = ()
    contiguous: tuple[str, ...] = ()


def all_reduce(out: str, *, given: str = "input", more: tuple[str, ...] = ()) -> Witness:
    """The sum of every rank's tensor, written into `out`, of which `more` are written too; "output" is fresh."""
    fresh, in_place = not out, out == given
    arguments = {given: f32(3, 4), "reduce_op": "sum"} | {name: f32(3, 4) for name in (out, *more) if name}
    expected = {out or "output": gets(3, 4, alias=out or None)} | {name: gets(3, 4, alias=name) for name in more}
    others = [name for name in (out, *more) if name not in ("", given)]
    tensors = {name: bf16(3, 4) for name in (given, *others)}
    promised = () if fresh or in_place else (out,)
    return Witness(
        (
            Legal(arguments, expected, promised=promised),
            *(
                Legal(
                    arguments | {name: bf16(*shape) for name in (given, *others)},
                    {name: gets(*shape, dtype=BF16, alias=alias) for name, (*_, alias, _) in expected.items()},
                    size=2,
                )
                for shape in ((0, 4), ())
            ),
        ),
        (given,),
        (
            *each("sizes", **{name: [f32(3, 5), f32(4, 3)] for name in others}),
            *each("dtype", **{name: [bf16(3, 4)] for name in others}),
            ("dtype", {name: f32(3, 4, dtype=I32) for name in (given, *others)}),
            ("dtype", {name: f32(3, 4, dtype=F16) for name in (given, *others)}),
            *each("reduce_op", reduce_op=["avg", "max", "SUM"]),
        ),
        (("sizes", {name: f32(5, 4) for name in tensors}), ("dtype", tensors), ("reduce_op", {"reduce_op": "max"})),
        tuple(dict.fromkeys((given, *others))),
    )


def put(tensor: str = "tensor", *, contiguous: bool = True, **more: Any) -> Witness:
    """One tensor goes into the peer's memory; nothing of it is written here."""
    read = {name for name, value in more.items() if isinstance(value, Spec)}
    return Witness(
        (Legal({tensor: f32(3, 4), "peer": 1, **more}, {}), Legal({tensor: f32(), "peer": 0, **more}, {})),
        (tensor, *sorted(read)),
        (*each("peer", peer=[4, -1]),),
        (("", {tensor: bf16(7), "peer": 0}),),
        (tensor,) if contiguous else (),
    )


def get_out() -> Witness:
    """`size` elements of the peer's buffer, into the first of dst."""
    call = {"dst": f32(5, 2), "offset": 2, "size": 10, "peer": 1}
    return Witness(
        (Legal(call, into("dst", 5, 2)), Legal(call | {"size": 0, "dst": f32(0), "offset": 0}, into("dst", 0))),
        (),
        (*each("argument", size=[11, -1], offset=[-1]), ("peer", {"peer": 4})),
        (("", {"offset": 0, "size": 1, "dst": bf16(3)}),),
        ("dst",),
    )


def gathers(given: str, out: str, *, fresh: bool, scalar: bool = False, contiguous: tuple[str, ...] = ()) -> Witness:
    """Everyone's, concatenated along the first dim; a 0-d one only where `scalar`."""
    alias = None if fresh else out
    written = {} if fresh else {out: f32(12, 2)}
    legal = [Legal({given: f32(3, 2), **written}, {out: gets(12, 2, alias=alias)}, promised=() if fresh else (out,))]
    legal.append(Legal({given: i64(5)}, {out: gets(20, dtype=I64, alias=alias)}))
    legal.append(Legal({given: f32(0, 3)}, {out: gets(0, 3, alias=alias)}))
    if given not in contiguous:
        legal.append(Legal({given: f32(3, 2, stride=(1, 3))}, {out: gets(12, 2, alias=alias)}))
    if scalar:
        legal.append(Legal({given: f32()}, {out: gets(4, alias=alias)}))
    broken: list[tuple[str, Any]] = [] if scalar else [("dims", {given: f32(), **({} if fresh else {out: f32(4)})})]
    if not fresh:
        broken += [("sizes", {out: f32(4, 3, 2)}), ("sizes", {out: f32(8, 2)}), ("sizes", {out: f32(12, 3)})]
        broken += [("divides", {out: f32(13, 2)}), ("dtype", {out: bf16(12, 2)})]
    rank1 = {} if fresh else {out: f32(16, 2)}
    return Witness(
        tuple(legal),
        (given,),
        (*broken, ("strided", {given: Spec((3, 2), F32, device="cuda", layout="sparse_coo")})),
        (
            ("sizes", {given: f32(4, 2), **rank1}),
            ("dtype", {given: bf16(3, 2)} | ({} if fresh else {out: bf16(12, 2)})),
        ),
        contiguous,
    )


def vdev(splits: str, shape: tuple[int, ...], wrong: Iterable[tuple[str, tuple[int, ...]]], count: int) -> Witness:
    """Rows go where numbers on the device say: how many arrive is not to be known."""
    call = {"input": f32(10, 3), splits: i64(*shape), "out": f32(20, 3), "out_splits_offsets": i64(2, count)}
    expected = {
        "out": gets(20, 3, alias="out"),
        "out_splits_offsets": gets(2, count, dtype=I64, alias="out_splits_offsets"),
    }
    return Witness(
        (Legal(call, expected, rank=2, promised=("out_splits_offsets",)),),
        ("input", splits),
        (
            *((kind, {splits: i64(*bad)}) for kind, bad in wrong),
            ("dtype", {splits: f32(*shape, dtype=I32)}),
            *each("dtype", out_splits_offsets=[f32(2, count, dtype=I32)], out=[bf16(20, 3)]),
            *each("sizes", out=[f32(20, 4)], out_splits_offsets=[i64(3, count), i64(2, 2 * count)]),
            *each("dims", input=[f32()], out=[f32()], out_splits_offsets=[i64(2 * count)]),
        ),
        (
            ("", {"input": f32(6, 3), "out": f32(4, 3)}),
            ("sizes", {"input": f32(10, 4), "out": f32(20, 4)}),
            ("dtype", {"input": bf16(10, 3), "out": bf16(20, 3)}),
        ),
        ("input", "out", splits, "out_splits_offsets"),
    )


def agmm(gather_dim: int, *shapes: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """A is this rank's shard, the others its weights."""
    shard, *weights = shapes
    return {"A": f32(*shard), "Bs": [f32(*weight) for weight in weights], "gather_dim": gather_dim, **more}


FUSED = {
    "A": fp8(2, 3, 32),
    "Bs": [fp8(32, 16, stride=(1, 32)), fp8(32, 48, stride=(1, 32))],
    "A_scale": f32(),
    "B_scales": [f32(), f32()],
    "gather_dim": 0,
    "biases": [None, None],
    "result_scales": [None, None],
    "out_dtypes": [BF16, None],
    "use_fast_accum": [False, True],
}
FUSED_OUT = {"output": gets(8, 3, 32, dtype=FP8), "outputs": (gets(8, 3, 16, dtype=BF16), gets(8, 3, 48, dtype=FP8))}
SCATTERED = {
    "A": fp8(24, 32),
    "B": fp8(32, 16, stride=(1, 32)),
    "A_scale": f32(24, 1),
    "B_scale": f32(1, 16),
    "reduce_op": "sum",
    "orig_scatter_dim": 0,
    "scatter_dim_after_maybe_reshape": 0,
    "output_shape": [8, 3, 16],
    "out_dtype": BF16,
}
TILE = f32(4, 6, stride=(12, 1))
BLOCKS = {"input": f32(8, 3), "dim": 0, "out": [f32(2, 3)], "offsets": [2, 4, 6, 8], "dst_ranks": [0, 1, 2, 3]}
EXCHANGE = {"input": f32(3, 32), "scatter_dim": 1, "gather_dim": 0}
EXCHANGED = {"input": f32(12, 8), "scatter_dim": 0, "gather_dim": 1}

WITNESSES = {
    "one_shot_all_reduce": all_reduce(""),
    "one_shot_all_reduce_out": all_reduce("out"),
    "one_shot_all_reduce_copy": all_reduce("", given="local_input", more=("symm_buffer",)),
    "one_shot_all_reduce_copy_out": all_reduce("out", given="local_input", more=("symm_buffer",)),
    "two_shot_all_reduce_": all_reduce("input"),
    # the input is overwritten in part
    "two_shot_all_reduce_out": attrs.evolve(
        all_reduce("output"),
        legal=(
            Legal(
                {"input": f32(3, 4), "output": f32(3, 4), "reduce_op": "sum"},
                {"output": gets(3, 4, alias="output"), "input": gets(3, 4, alias="input")},
                promised=("output",),
            ),
            *(
                Legal(
                    {"input": bf16(8), "output": bf16(8), "reduce_op": "sum"},
                    {name: gets(8, dtype=BF16, alias=name) for name in ("output", "input")},
                    size=size,
                )
                for size in (2, 4, 8)
            ),
        ),
        broken=(*all_reduce("output").broken, *each("argument", W=[1, 3, 5, 16])),
    ),
    "multimem_all_reduce_": all_reduce("input"),
    "multimem_one_shot_all_reduce": all_reduce(""),
    "multimem_one_shot_all_reduce_out": all_reduce("out"),
    "multimem_one_shot_reduce_out": Witness(
        (
            Legal(
                {"input": f32(3, 4), "out": f32(3, 4), "root": 1, "reduce_op": "sum"},
                into("out", 3, 4),
                rank=1,
                promised=("out",),
            ),
            Legal({"input": f32(3, 4), "out": f32(7), "root": 1, "reduce_op": "sum"}, into("out", 7)),
            Legal({"input": bf16(3, 4), "root": 1, "reduce_op": "sum"}, into("out", 3, 4, dtype=BF16), rank=1),
        ),
        ("input",),
        (
            *each("root", root=[4, -1]),
            ("reduce_op", {"reduce_op": "avg"}),
            *each("sizes", out=[f32(3, 5), f32(4, 3)]),
            ("dtype", {"out": bf16(3, 4)}),
            ("dtype", {"input": f32(3, 4, dtype=F16), "out": f32(3, 4, dtype=F16)}),
        ),
        (
            ("root", {"root": 0}),
            ("dtype", {"input": bf16(3, 4), "out": bf16(3, 4)}),
            ("reduce_op", {"reduce_op": "max"}),
            ("sizes", {"input": f32(3, 5), "out": f32(3, 5)}),
        ),
        ("input", "out"),
    ),
    "tile_reduce": Witness(
        (
            Legal({"in_tile": TILE, "out_tile": TILE, "root": 1}, into("out_tile", 4, 6, stride=(12, 1)), rank=1),
            Legal(
                {"in_tile": f32(4, 6), "out_tile": f32(4, 6), "root": 1, "reduce_op": "sum"},
                into("out_tile", 4, 6),
                promised=("out_tile",),
            ),
            *(
                Legal({"in_tile": f32(4, 6, dtype=dtype), "root": 0}, into("out_tile", 4, 6, dtype=dtype))
                for dtype in (BF16, F16)
            ),
        ),
        ("in_tile",),
        (
            ("root", {"root": 4}),
            ("reduce_op", {"reduce_op": "max"}),
            *each("sizes", out_tile=[f32(4, 7), f32(6, 4)]),
            ("sizes", {"out_tile": f32(4, 7), RANK: 0}),
            ("dtype", {"out_tile": bf16(4, 6), RANK: 0}),
            ("dtype", {"out_tile": bf16(4, 6)}),
            ("dtype", {"in_tile": i64(4, 6), "out_tile": i64(4, 6)}),
            ("sizes", {"in_tile": f32(4, 6, 1), "out_tile": f32(4, 6, 1)}),
            ("sizes", {"in_tile": f32(4), "out_tile": f32(4)}),
        ),
        (
            ("root", {"root": 0}),
            ("dtype", {"in_tile": bf16(4, 6), "out_tile": bf16(4, 6)}),
            ("reduce_op", {"reduce_op": "max"}),
            ("sizes", {"in_tile": f32(4, 7), "out_tile": f32(4, 7)}),
            ("", {BASE: 2, "in_tile": f32(4, 6, dtype=BF16, stride=(1, 4))}),
        ),
    ),
    "multi_root_tile_reduce": Witness(
        (
            Legal(
                {"in_tiles": [f32(4, 6)] * 2, "out_tile": f32(4, 6), "roots": [2, 0]},
                into("out_tile", 4, 6),
                promised=("out_tile",),
            ),
            Legal(
                {"in_tiles": [TILE] * 3, "out_tile": TILE, "roots": [3, 0, 1], "reduce_op": "sum"},
                into("out_tile", 4, 6, stride=(12, 1)),
                rank=2,
            ),
            *(
                Legal({"in_tiles": [f32(4, 6, dtype=dtype)], "roots": [0]}, into("out_tile", 4, 6, dtype=dtype))
                for dtype in (BF16, F16)
            ),
        ),
        ("in_tiles",),
        (
            *each("root", roots=[[0, 0], [0], [0, 1, 2], [0, 4], [-1, 0]]),
            ("reduce_op", {"reduce_op": "max"}),
            *each("sizes", in_tiles=[[f32(4, 6), f32(4, 7)], [f32(4, 6), f32(5, 6)]], out_tile=[f32(4, 7), f32(5, 6)]),
            *each("dims", out_tile=[f32(4, 6, 1)], in_tiles=[[f32(4, 6), f32(24)]]),
            ("dtype", {"out_tile": bf16(4, 6)}),
            ("sizes", {"out_tile": f32(4, 7), RANK: 1}),
            ("dtype", {"in_tiles": [i64(4, 6)] * 2, "out_tile": i64(4, 6)}),
            ("lists", {"in_tiles": []}),
        ),
        (
            ("root", {"roots": [0, 2]}),
            ("dtype", {"in_tiles": [bf16(4, 6)] * 2, "out_tile": bf16(4, 6)}),
            ("reduce_op", {"reduce_op": "max"}),
            ("sizes", {"in_tiles": [f32(4, 7)] * 2, "out_tile": f32(4, 7)}),
            ("sizes", {"in_tiles": [f32(5, 6)] * 2, "out_tile": f32(5, 6)}),
        ),
    ),
    "multimem_all_gather_out": gathers("input", "out", fresh=False, contiguous=("input", "out")),
    "_low_contention_all_gather": gathers("tensor", "output", fresh=True),
    "_low_contention_all_gather_ce_multicast": gathers("tensor", "output", fresh=True, scalar=True),
    "_low_contention_all_gather_ce_multicast_out": gathers(
        "tensor", "out", fresh=False, scalar=True, contiguous=("out",)
    ),
    "reduce_scatter_out": Witness(
        (
            Legal(
                {"input": f32(3, 32), "split_last_dim": True, "output": f32(3, 8)},
                into("output", 3, 8),
                promised=("output",),
            ),
            Legal({"input": f32(32), "split_last_dim": False}, into("output", 8), rank=3),
            Legal({"input": f32(32), "split_last_dim": True}, into("output", 16), size=2),
            Legal({"input": bf16(2, 3, 64), "split_last_dim": True}, into("output", 2, 3, 8, dtype=BF16), size=8),
        ),
        ("input",),
        (
            ("argument", {"split_last_dim": False}),
            ("divides", {"input": f32(3, 33)}),
            *each("dims", input=[f32()], output=[f32()]),
            *each("sizes", output=[f32(3, 9), f32(4, 8), f32(24)]),
            ("dtype", {"output": bf16(3, 8)}),
            ("dtype", {"input": f32(3, 32, dtype=F16), "output": f32(3, 8, dtype=F16)}),
            ("argument", {"input": f32(3, 24), W: 3}),
            ("argument", {"output": f32(3, 32), W: 1}),
        ),
        (
            ("sizes", {"input": f32(4, 32), "output": f32(4, 8)}),
            ("sizes", {"input": f32(3, 64), "output": f32(3, 16)}),
            ("dtype", {"input": bf16(3, 32), "output": bf16(3, 8)}),
        ),
        ("input", "output"),
    ),
    "_low_contention_reduce_scatter": Witness(
        (
            Legal({"tensor": f32(8, 3), "reduce_op": "avg"}, {"output": gets(2, 3)}),
            Legal({"tensor": f32(8, 3, stride=(1, 8)), "reduce_op": "sum"}, {"output": gets(2, 3)}),
            Legal({"tensor": f32(8), "reduce_op": "sum"}, {"output": gets(4)}, size=2),
            Legal({"tensor": f32(8, dtype=I32), "reduce_op": "sum"}, {"output": gets(2, dtype=I64)}, meta=False),
            Legal({"tensor": f32(8, 2, 3), "reduce_op": "sum"}, {"output": gets(2, 2, 3)}),
            Legal({"tensor": bf16(8), "reduce_op": "sum"}, {"output": gets(2, dtype=BF16)}),
        ),
        ("tensor",),
        (
            *each("reduce_op", reduce_op=["max", "premul_sum"]),
            ("dtype", {"tensor": f32(8, dtype=I32)}),
            ("divides", {"tensor": f32(6, 4)}),
            ("dims", {"tensor": f32()}),
        ),
        (
            *each("sizes", tensor=[f32(12, 3), f32(8, 4)]),
            ("dtype", {"tensor": bf16(8, 3)}),
            ("reduce_op", {"reduce_op": "sum"}),
        ),
    ),
    "nccl_reduce_scatter_offset": Witness(
        (
            Legal(BLOCKS, {"out": (gets(2, 3, alias="out"),)}, rank=1, promised=("out", "offsets", "dst_ranks")),
            Legal({"input": f32(3, 8), "dim": 1}, {"out": (gets(3, 2, alias="out"),)}, rank=3),
            Legal(
                {"input": f32(12, 3), "dim": 0, "offsets": [2, 4, 7, 10]},
                {"out": (gets(2, 3, alias="out"), gets(3, 3, alias="out"))},
                rank=1,
                size=2,
            ),
            Legal(
                {"input": f32(5, 10), "dim": 1, "offsets": [2, 5, 7, 10], "dst_ranks": [1, 1, 0, 0]},
                {"out": (gets(5, 2, alias="out"), gets(5, 3, alias="out"))},
                size=2,
            ),
            Legal(
                {"input": f32(8, 3), "dim": 0, "offsets": [0, 0, 3, 6]},
                {"out": (gets(0, 3, alias="out"), gets(3, 3, alias="out"))},
                size=2,
            ),
            Legal(
                {"input": f32(8, 3), "dim": 0, "dst_ranks": [3, 2, 0, 1], "red_op": "sum"},
                {"out": (gets(2, 3, alias="out"),)},
                rank=2,
            ),
            *(
                Legal({"input": f32(8, 3, dtype=dtype), "dim": 0}, {"out": (gets(2, 3, dtype=dtype, alias="out"),)})
                for dtype in (BF16, F16)
            ),
        ),
        ("input",),
        (
            ("dtype", {"input": i64(8, 3), "out": [i64(2, 3)]}),
            *each(
                "argument",
                offsets=[[2, 4, 5, 8], [2, 4, 6], []],
                dim=[2, -1],
                input=[f32(7, 3)],
                dst_ranks=[[0, 1, 2], [0, 1, 2, 4], [0, 1, 2, -1], [0, 1, 2, 2]],
            ),
            ("argument", {"offsets": [2, 5, 7, 10], "dst_ranks": [1, 0, 0, 1], "input": f32(10, 3), RANK: 0, W: 2}),
            ("reduce_op", {"red_op": "max"}),
            *each("dims", input=[f32(8, 3, 1), f32(8)]),
            ("divides", {"input": f32(7, 3), "offsets": None, "dst_ranks": None}),
            ("argument", {"input": f32(20, 3), "offsets": [3, 6, 5, 4], "dst_ranks": [0, 1, 0, 1], RANK: 0, W: 2}),
            ("argument", {"dst_ranks": [0, 0, 0, 1], RANK: 0, W: 2}),
            ("lists", {"out": [f32(2, 3)] * 2}),
            *each("sizes", out=[[f32(3, 3)], [f32(2, 4)]]),
            ("dtype", {"out": [bf16(2, 3)]}),
        ),
        (
            ("argument", {"dim": 1, "input": f32(3, 8), "out": [f32(3, 2)]}),
            ("argument", {"offsets": [1, 2, 3, 4], "out": [f32(1, 3)]}),
            ("argument", {"dst_ranks": [3, 2, 1, 0]}),
            ("sizes", {"input": f32(8, 4), "out": [f32(2, 4)]}),
            ("dtype", {"input": bf16(8, 3), "out": [bf16(2, 3)]}),
            ("reduce_op", {"red_op": "avg"}),
        ),
        ("out",),
    ),
    "nvshmem_all_to_all": Witness(
        (
            Legal({"input": f32(8, 3), "out": f32(6, 4)}, into("out", 6, 4)),
            Legal({"input": f32(8, 3)}, into("out", 24)),
        ),
        ("input",),
        (("divides", {"input": f32(9), "out": f32(9)}), ("pairs", {"out": f32(7, 4)}), ("dtype", {"out": bf16(6, 4)})),
        (
            ("", {"input": f32(24), "out": f32(2, 12)}),
            ("pairs", {"input": f32(8, 4), "out": f32(8, 4)}),
            ("dtype", {"input": bf16(8, 3), "out": bf16(6, 4)}),
        ),
        ("input", "out"),
    ),
    "nccl_all_to_all_nd": Witness(
        (
            Legal({**EXCHANGE, "out": f32(4, 3, 8)}, into("out", 4, 3, 8), promised=("out",)),
            Legal({**EXCHANGE, "out": f32(12, 8)}, into("out", 12, 8)),
            Legal({**EXCHANGE, "input": f32(3, 4, 8), "out": f32(4, 3, 8)}, into("out", 4, 3, 8)),
            Legal({**EXCHANGE, "input": f32(3, 4, 8), "out": f32(12, 8)}, into("out", 12, 8)),
            Legal({**EXCHANGED, "out": f32(3, 4, 8)}, into("out", 3, 4, 8), promised=("out",)),
            Legal({**EXCHANGED, "out": f32(3, 32)}, into("out", 3, 32)),
            Legal({**EXCHANGED, "input": f32(4, 3, 8), "out": f32(3, 4, 8)}, into("out", 3, 4, 8)),
            Legal({**EXCHANGED, "input": f32(4, 3, 8), "out": f32(3, 32)}, into("out", 3, 32)),
        ),
        ("input",),
        (
            *each("argument", gather_dim=[1], scatter_dim=[0, -1]),
            ("argument", {"scatter_dim": 2, "gather_dim": 0, "input": f32(3, 4, 32)}),
            *each("dims", input=[f32(96), f32(3, 4, 8, 1)]),
            ("divides", {"input": f32(3, 33)}),
            *each("sizes", input=[f32(3, 5, 8), f32(4, 5, 8)], out=[f32(3, 4, 8), f32(4, 4, 8), f32(3, 32)]),
            ("divides", {"input": f32(14, 8), "scatter_dim": 0, "gather_dim": 1}),
            ("sizes", {"out": f32(4, 3, 8), "scatter_dim": 0, "gather_dim": 1, "input": f32(12, 8)}),
            ("dtype", {"out": bf16(4, 3, 8)}),
        ),
        (
            ("argument", {"scatter_dim": 0, "gather_dim": 1, "input": f32(12, 8), "out": f32(3, 4, 8)}),
            *each("argument", scatter_dim=[0], gather_dim=[1]),
            ("sizes", {BASE: 1, "input": f32(3, 64), "out": f32(12, 16)}),
            ("sizes", {"input": f32(3, 64), "out": f32(4, 3, 16)}),
            ("dtype", {"input": bf16(3, 32), "out": bf16(4, 3, 8)}),
        ),
        ("input", "out"),
    ),
    "all_to_all_vdev": vdev("in_splits", (4,), [("sizes", (5,)), ("dims", (4, 1)), ("dims", ())], 4),
    "all_to_all_vdev_2d": vdev(
        "in_splits", (12,), [("divides", (13,)), ("sizes", (8,)), ("dims", (4, 3)), ("dims", ())], 12
    ),
    "all_to_all_vdev_2d_offset": vdev(
        "in_splits_offsets",
        (2, 12),
        [("divides", (2, 13)), ("sizes", (2, 8)), ("sizes", (3, 12)), ("dims", (12,)), ("dims", (2, 4, 3))],
        12,
    ),
    "nvshmem_broadcast": Witness(
        (
            Legal({"input": f32(3, 4), "root": 1}, into("input", 3, 4), rank=1),
            Legal({"input": f32(dtype=I32), "root": 1}, into("input", dtype=I32)),
        ),
        ("input",),
        (*each("root", root=[4, -1]),),
        (("root", {"root": 0}), ("sizes", {"input": f32(3, 5)}), ("dtype", {"input": bf16(3, 4)})),
        ("input",),
    ),
    "get_remote_tensors": Witness(
        (
            Legal({"x": f32(3, 4)}, {"outputs": (gets(3, 4), gets(3, 4), gets(3, 4, alias="x"), gets(3, 4))}, rank=2),
            Legal(
                {"x": f32(3, 4, stride=(1, 3))}, {"outputs": (gets(3, 4, alias="x"), gets(3, 4))}, size=2, meta=False
            ),
            Legal({"x": i64()}, {"outputs": (gets(dtype=I64, alias="x"), gets(dtype=I64))}, size=2),
        ),
        ("x",),
        (("strided", {"x": Spec((3, 4), F32, device="cuda", layout="sparse_csr")}),),
        (("sizes", {"x": f32(3, 5)}), ("dtype", {"x": bf16(3, 4)})),
    ),
    "fused_all_gather_matmul": Witness(
        (
            Legal(
                agmm(0, (2, 3, 8), (8, 5), (8, 7)), {"output": gets(8, 3, 8), "outputs": (gets(8, 3, 5), gets(8, 3, 7))}
            ),
            Legal(
                agmm(1, (2, 3, 8), (8, 5), return_A=True),
                {"output": gets(2, 12, 8, stride=(8, 16, 1)), "outputs": (gets(2, 12, 5, stride=(5, 10, 1)),)},
            ),
            Legal(
                agmm(1, (2, 3, 6, 8), (8, 5)),
                {
                    "output": gets(2, 12, 6, 8, stride=(48, 96, 8, 1)),
                    "outputs": (gets(2, 12, 6, 5, stride=(30, 60, 5, 1)),),
                },
            ),
            Legal(
                agmm(2, (2, 3, 6, 8), (8, 5)),
                {
                    "output": gets(2, 3, 12, 8, stride=(24, 8, 48, 1)),
                    "outputs": (gets(2, 3, 12, 5, stride=(15, 5, 30, 1)),),
                },
                size=2,
            ),
            Legal(agmm(2, (2, 3, 8), (32, 5)), {"output": gets(2, 3, 32), "outputs": (gets(2, 3, 5),)}),
            Legal(agmm(1, (6, 8), (32, 5)), {"output": gets(6, 32), "outputs": (gets(6, 5),)}),
            Legal(agmm(0, (6, 8), (8, 5)), {"output": gets(24, 8), "outputs": (gets(24, 5),)}),
            Legal(agmm(0, (6, 8), (8, 5), return_A=False), {"outputs": (gets(24, 5),)}),
            Legal(agmm(0, (2, 3, 5, 8), (8, 7)), {"output": gets(8, 3, 5, 8), "outputs": (gets(8, 3, 5, 7),)}),
            Legal(agmm(3, (2, 3, 5, 8), (32, 7)), {"output": gets(2, 3, 5, 32), "outputs": (gets(2, 3, 5, 7),)}),
        ),
        ("A", "Bs"),
        (
            *each("argument", gather_dim=[3, -1]),
            *each("sizes", gather_dim=[2], Bs=[[f32(9, 5)], [f32(8, 5), f32(9, 5)]]),
            *each("dims", A=[f32(8)], Bs=[[f32(8, 5, 1)], [f32(8)]]),
            ("dtype", {"Bs": [bf16(8, 5)]}),
        ),
        (
            ("", {"Bs": [f32(8, 9), f32(8, 4)]}),
            ("argument", {"gather_dim": 1}),
            ("sizes", {"A": f32(4, 3, 8)}),
            ("sizes", {"A": f32(2, 3, 6), "Bs": [f32(6, 5), f32(6, 7)]}),
            ("dtype", {"A": bf16(2, 3, 8), "Bs": [bf16(8, 5), bf16(8, 7)]}),
        ),
    ),
    "fused_all_gather_scaled_matmul": Witness(
        (
            Legal(FUSED, FUSED_OUT),
            Legal({**FUSED, "A_scale": f32(2, 3, 1), "B_scales": [f32(1, 16), f32(1, 48)]}, FUSED_OUT),
            Legal({**FUSED, "A_scale": f32(8, 3, 1), "B_scales": [f32(1, 16), f32(1, 48)]}, FUSED_OUT),
            Legal({**FUSED, "A_scale": f32(1), "biases": [bf16(16), None], "result_scales": [None, f32()]}, FUSED_OUT),
            Legal(
                {**FUSED, "gather_dim": 1},
                {
                    "output": gets(2, 12, 32, dtype=FP8, stride=(32, 64, 1)),
                    "outputs": (
                        gets(2, 12, 16, dtype=BF16, stride=(16, 32, 1)),
                        gets(2, 12, 48, dtype=FP8, stride=(48, 96, 1)),
                    ),
                },
            ),
        ),
        ("A", "Bs", "A_scale", "B_scales", "biases", "result_scales"),
        (
            ("argument", {"gather_dim": 2, "Bs": [fp8(128, 16, stride=(1, 128)), fp8(128, 48, stride=(1, 128))]}),
            *each("argument", gather_dim=[3], A_scale=[f32(5, 1), f32(2, 4, 1), f32(2, 3), f32(2, 3, 7)]),
            *each(
                "lists",
                B_scales=[[f32()]],
                biases=[[None]],
                result_scales=[[None]],
                out_dtypes=[[BF16]],
                use_fast_accum=[[False]],
            ),
            ("sizes", {"Bs": [fp8(48, 16, stride=(1, 48)), fp8(48, 48, stride=(1, 48))]}),
            ("dims", {"A": fp8(32)}),
        ),
        (("argument", {"gather_dim": 1}), ("sizes", {"A": fp8(2, 4, 32)})),
    ),
    "fused_matmul_reduce_scatter": Witness(
        (
            Legal(
                {"A": f32(8, 3, 6), "B": f32(6, 12), "reduce_op": "sum", "scatter_dim": 0}, {"output": gets(2, 3, 12)}
            ),
            Legal(
                {"A": f32(3, 8, 6), "B": f32(6, 5), "reduce_op": "avg", "scatter_dim": 1},
                {"output": gets(3, 2, 5)},
                rank=3,
            ),
            Legal(
                {"A": f32(8, 3, 6), "B": f32(6, 12), "reduce_op": "sum", "scatter_dim": 2}, {"output": gets(8, 3, 3)}
            ),
            Legal({"A": f32(9, 6), "B": f32(6, 12), "reduce_op": "sum", "scatter_dim": 1}, {"output": gets(9, 3)}),
            *(
                Legal({"A": f32(4, 8, 12, 6), "B": f32(6, 4), "reduce_op": "sum", "scatter_dim": dim}, {"output": out})
                for dim, out in enumerate((gets(1, 8, 12, 4), gets(4, 2, 12, 4), gets(4, 8, 3, 4), gets(4, 8, 12, 1)))
            ),
            Legal({"A": f32(8, 6), "B": f32(6, 12), "reduce_op": "sum", "scatter_dim": 0}, {"output": gets(2, 12)}),
        ),
        ("A", "B"),
        (
            ("reduce_op", {"reduce_op": "max"}),
            *each("argument", scatter_dim=[3, -1]),
            *each("divides", A=[f32(6, 2, 6)], scatter_dim=[1]),
            ("divides", {"scatter_dim": 2, "B": f32(6, 14)}),
            ("sizes", {"B": f32(5, 12)}),
            *each("dims", B=[f32(6, 12, 1)], A=[f32(6)]),
            ("dtype", {"B": bf16(6, 12)}),
        ),
        (
            ("argument", {"scatter_dim": 2}),
            *each("sizes", A=[f32(4, 3, 6)], B=[f32(6, 16)]),
            ("sizes", {"A": f32(8, 3, 5), "B": f32(5, 12)}),
            ("dtype", {"A": bf16(8, 3, 6), "B": bf16(6, 12)}),
            ("reduce_op", {"reduce_op": "avg"}),
        ),
    ),
    "fused_scaled_matmul_reduce_scatter": Witness(
        (
            Legal(SCATTERED, {"output": gets(2, 3, 16, dtype=BF16)}),
            Legal({**SCATTERED, "out_dtype": None}, {"output": gets(2, 3, 16, dtype=FP8)}),
            Legal(
                {
                    **SCATTERED,
                    "A": fp8(3, 8, 32),
                    "A_scale": f32(3, 8, 1),
                    "orig_scatter_dim": 1,
                    "scatter_dim_after_maybe_reshape": 1,
                    "output_shape": [3, 8, 16],
                },
                {"output": gets(3, 2, 16, dtype=BF16)},
            ),
            Legal(
                {**SCATTERED, "A_scale": f32(), "B_scale": f32(), "reduce_op": "avg", "output_shape": [24, 16]},
                {"output": gets(6, 16, dtype=BF16)},
            ),
        ),
        ("A", "B", "A_scale", "B_scale", "bias", "result_scale"),
        (
            ("reduce_op", {"reduce_op": "max"}),
            *each(
                "argument",
                output_shape=[None, [8, 4, 16]],
                orig_scatter_dim=[3, -1, 2],
                scatter_dim_after_maybe_reshape=[1, 2],
                A_scale=[f32(5, 1)],
            ),
            ("divides", {"orig_scatter_dim": 1}),
            ("sizes", {"B": fp8(48, 16, stride=(1, 48))}),
            ("dims", {"B": fp8(32)}),
        ),
        (
            ("argument", {"orig_scatter_dim": 1, "output_shape": [3, 8, 16]}),
            ("sizes", {"A": fp8(48, 32), "A_scale": f32(), "output_shape": [16, 3, 16]}),
            ("sizes", {"B": fp8(32, 32, stride=(1, 32)), "B_scale": f32(), "output_shape": [8, 3, 32]}),
            ("reduce_op", {"reduce_op": "avg"}),
        ),
    ),
    "nvshmem_put": put(),
    "nccl_put": put(),
    "nvshmem_put_with_signal": put(sigpad=i64(1), signal=1),
    "nccl_put_with_signal": put(signal=1),
    "nccl_put_signal": put("src"),
    "memcpy_to_multicast_": Witness(
        (
            Legal(
                {"src": f32(3), "symm_mem_out": bf16(8, 8), "byte_offset": 16}, into("symm_mem_out", 8, 8, dtype=BF16)
            ),
            Legal({"src": f32(), "symm_mem_out": f32(), "byte_offset": 0}, into("symm_mem_out")),
        ),
        ("src",),
        (("argument", {"byte_offset": -4}),),
        (("", {"src": bf16(5), "byte_offset": 0}),),
        ("src",),
    ),
    **{
        name: Witness(
            (Legal({"tensor": f32(3, 4), "peer": 1}, into("tensor", 3, 4)),),
            (),
            (*each("peer", peer=[4, -1]),),
            (("", {"tensor": bf16(7), "peer": 0}),),
            ("tensor",),
        )
        for name in ("nvshmem_get", "nccl_get")
    },
    "nvshmem_get_out": get_out(),
    "nccl_get_out": get_out(),
    "_barrier": Witness((Legal({}, {}),), ()),
}


# -- what a witness says of a row


def call_of(op: str, arguments: Mapping[str, Any], rank: int, size: int = 4) -> cr.Call:
    return cr.call(S + op, group=cr.Group(size=size, rank=rank), **arguments)


def errors(findings: Iterable[cr.Finding]) -> set[str]:
    return {finding.id for finding in findings if finding.severity == "error"}


def transposed(spec: Spec) -> Spec:
    """Dense, but with the first dim innermost."""
    order = torch.empty(spec.shape[::-1], device="meta").stride()[::-1]
    return Spec(spec.shape, spec.dtype, order, spec.device)


def gapped(spec: Spec) -> Spec:
    """A view that leaves out every second element."""
    return Spec(spec.shape, spec.dtype, tuple(2 * step for step in spec.stride), spec.device)


def bent(function: Any, value: Any) -> Any:
    """The same tensor, or list of tensors, lying differently in memory."""
    return [bent(function, item) for item in value] if isinstance(value, (list, tuple)) else function(value)


def promises(legal: Legal) -> Iterator[tuple[Legal, dict[str, Any]]]:
    yield legal, dict(legal.arguments)
    for name in legal.promised:
        yield legal, {key: value for key, value in legal.arguments.items() if key != name}


def calls_that_break(op: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The kind of constraint and the arguments of each call that breaks it, wrong memory layouts included."""
    witness = WITNESSES[op]
    first = witness.legal[0].arguments
    for kind, changes in witness.broken:
        yield kind, {**first, **changes}
    for name in witness.contiguous:
        for function in (gapped, transposed):
            other = bent(function, first[name])
            if described(tuple(leaves(other))) != described(tuple(leaves(first[name]))):
                yield "dense", {**first, name: other}


def leaves(value: Any) -> Iterator[Spec]:
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def id_of(row: cr.Row, kind: str) -> str:
    return next((id_ for id_, known in row.rule.constraints.items() if known == kind), kind)


def objections(op: str) -> Iterator[str]:
    """Everything in which the row of `op`, as it is looked up now, contradicts its witness."""
    witness, row = WITNESSES[op], cr.lookup(S + op)
    first = witness.legal[0]
    if (set(witness.reads), set(first.expected)) != (set(row.reads), set(row.writes)):
        yield f"it reads {row.reads} and writes {row.writes}, not {witness.reads} and {tuple(first.expected)}"
    for legal, arguments in itertools.chain.from_iterable(map(promises, witness.legal)):
        call = call_of(op, arguments, legal.rank, legal.size)
        found, inferred = cr.check(call), {name: described(value) for name, value in cr.infer(call).items()}
        if found or inferred != legal.expected:
            yield f"{call.arguments} on rank {legal.rank}: {found}, {inferred}, not {legal.expected}"
    for kind, changed in calls_that_break(op):
        arguments = {RANK: first.rank, W: first.size, **changed}
        found = cr.check(call_of(op, arguments, arguments.pop(RANK), arguments.pop(W)))
        if id_of(row, kind) not in errors(found):
            yield f"{changed}: {found}, not {kind}"
    for kind, changes in (("", {}), *witness.groups):
        base, other = witness.legal[changes.get(BASE, 0)], {k: v for k, v in changes.items() if k != BASE}
        ranks = range(base.size)
        found = cr.agree(call_of(op, {**base.arguments, **(other if r == 1 else {})}, r, base.size) for r in ranks)
        if id_of(row, kind) not in errors(found) if kind else found:
            yield f"rank 1 changes {changes}: {found}, not {kind or 'nothing'}"


def named(op: str) -> str:
    return op.removeprefix(S)


def test_every_op_has_a_witness() -> None:
    """A legal call, and one that is refused; a barrier takes nothing that could be wrong."""
    assert {named(op) for op in SYMM_MEM} == set(WITNESSES)
    assert {"_barrier"} == {name for name in WITNESSES if not list(calls_that_break(name))}


@pytest.mark.parametrize("op", WITNESSES)
def test_a_row_says_what_was_worked_out_by_hand(op: str) -> None:
    """Shapes, dtypes, strides and aliases of legal calls; the constraint that each broken call or group breaks."""
    assert [] == list(objections(op))


def test_a_barrier_is_every_ranks() -> None:
    """Nothing else can be wrong with it."""
    group = [call_of("_barrier", {}, rank) for rank in range(3)]
    assert {RULES["barrier"].id_of("ranks")} == errors(cr.agree(group))


def test_off_the_root_what_is_not_written_may_lie_anyhow() -> None:
    """The kernel looks at out's memory and shape on the root alone."""
    call = {"input": f32(3, 4), "out": f32(3, 4, stride=(8, 2)), "root": 1, "reduce_op": "sum"}
    assert () == cr.check(call_of("multimem_one_shot_reduce_out", call, 0))
    assert {"RD6"} == errors(cr.check(call_of("multimem_one_shot_reduce_out", call, 1)))


def test_the_layouts_are_those_of_the_kernels() -> None:
    """An argument that no witness calls contiguous may lie anyhow."""
    stated = {(named(op), name): layout for op in SYMM_MEM for name, layout in OPS[op].layouts.items()}
    assert {(op, name): CONTIGUOUS for op in WITNESSES for name in WITNESSES[op].contiguous} == stated


# -- torch's own Meta kernels


HAVE_META = [
    op
    for op in WITNESSES
    if cr.lookup(S + op).available and torch._C._dispatch_has_kernel_for_dispatch_key(S + op, "Meta")
]


def on_meta(value: Any) -> Any:
    if isinstance(value, Spec):
        return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")
    return list(map(on_meta, value)) if isinstance(value, list) else value


def of_torch(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(of_torch(item) for item in value if item is not None)
    return tuple(value.shape), value.dtype, value.stride()


def of_witness(value: Any) -> Any:
    return value[:3] if isinstance(value[-1], str) else tuple(map(of_witness, value))


@pytest.mark.parametrize("op", HAVE_META)
def test_a_meta_kernel_returns_what_was_worked_out_by_hand(op: str, group: dist.ProcessGroup) -> None:
    """Shapes, dtypes and strides of what is returned, in order."""
    for legal in WITNESSES[op].legal:
        arguments = {name: on_meta(value) for name, value in legal.arguments.items()}
        expected = [legal.expected[each.name] for each in cr.lookup(S + op).returns if each.name in legal.expected]
        if legal.meta:
            name = dist.new_group(range(legal.size)).group_name
            returned = getattr(torch.ops.symm_mem, op)(**arguments, group_name=name)
            several = returned if isinstance(returned, tuple) else [] if returned is None else [returned]
            assert tuple(map(of_witness, expected)) == of_torch(several)


# -- bytes

TRAFFIC = {
    # 2 tiles of 4 × 6 float32, 96 bytes each; all but the one that is reduced here travel
    "multi_root_tile_reduce": [
        ({"in_tiles": [f32(4, 6)] * 2, "roots": [2, 0], "out_tile": f32(4, 6)}, 0, 4, (192, 96, 96, 192, 1)),
        *(
            ({"in_tiles": [f32(4, 6)] * 2, "roots": [2, 0], "out_tile": f32(4, 6)}, rank, 4, (192, 0, 192, 192, 1))
            for rank in (1, 3)
        ),
    ],
    # 8 × 3 float32, of which 2 × 3 are this rank's
    "nccl_reduce_scatter_offset": [
        ({"input": f32(8, 3), "dim": 0}, 1, 4, (96, 24, 72, 96, 0.75)),
        ({"input": f32(8, 3), "dim": 0, "out": [f32(2, 3)]}, 0, 4, (96, 24, 72, 96, 0.75)),
        ({"input": bf16(5, 10), "dim": 1, "offsets": [2, 4, 7, 10]}, 1, 2, (100, 50, 50, 100, 0.5)),
        # the last two of the twelve rows are no one's, and stay where they are
        ({"input": f32(12, 3), "dim": 0, "offsets": [2, 4, 7, 10]}, 1, 2, (144, 60, 60, 120, 0.5)),
    ],
    "nccl_all_to_all_nd": [
        ({**EXCHANGE, "out": f32(4, 3, 8)}, 0, 4, (384, 384, 288, 384, 0.75)),
        ({**EXCHANGED, "input": bf16(12, 8)}, 3, 4, (192, 192, 144, 192, 0.75)),
    ],
    # Only the device knows how much of the input stays, or is used: all of it, and the split sizes, may travel
    "all_to_all_vdev": [
        ({"input": f32(10, 3), "in_splits": i64(4), "out": f32(20, 3)}, rank, 4, (152, 304, 152, 152, 0.75))
        for rank in (0, 3)
    ],
    "all_to_all_vdev_2d": [({"input": f32(8, 2), "in_splits": i64(2), "out": f32(9, 2)}, 0, 2, (80, 104, 80, 80, 0.5))],
    "all_to_all_vdev_2d_offset": [
        ({"input": f32(10, 3), "in_splits_offsets": i64(2, 8), "out": f32(20, 3)}, 0, 4, (248, 368, 248, 248, 0.75))
    ],
    # A of 48 float32 goes to three others; 8 × (5 + 7) weights stay here
    "fused_all_gather_matmul": [
        (agmm(0, (2, 3, 8), (8, 5), (8, 7)), 0, 4, (576, 1920, 576, 768, 0.75)),
        (agmm(2, (2, 3, 8), (16, 5)), 1, 2, (512, 504, 192, 384, 0.5)),
    ],
    # A of 192 bytes goes to three others; its scales do if they are six, of its rows, and not if they are of all ranks'
    "fused_all_gather_scaled_matmul": [
        ({**FUSED, "A_scale": f32(2, 3, 1)}, 0, 4, (2264, 2688, 648, 864, 0.75)),
        ({**FUSED, "A_scale": f32(8, 3, 1)}, 0, 4, (2240, 2688, 576, 768, 0.75)),
        (FUSED, 0, 4, (2240, 2688, 576, 768, 0.75)),
    ],
    # 2 × 3 × 12 float32 of product for each rank
    "fused_matmul_reduce_scatter": [
        ({"A": f32(8, 3, 6), "B": f32(6, 12), "reduce_op": "sum", "scatter_dim": 0}, 0, 4, (864, 288, 864, 1152, 0.75)),
        ({"A": f32(8, 6), "B": f32(6, 12), "reduce_op": "sum", "scatter_dim": 0}, 0, 4, (480, 96, 288, 384, 0.75)),
    ],
    "fused_scaled_matmul_reduce_scatter": [
        (
            {
                **SCATTERED,
                "A": fp8(4, 16),
                "A_scale": f32(4, 1),
                "B": fp8(16, 3),
                "B_scale": f32(),
                "output_shape": [4, 3],
            },
            0,
            2,
            (112, 12, 12, 24, 0.5),
        )
    ],
    "get_remote_tensors": [({"x": f32(3, 4)}, rank, 4, (0, 0, 0, 0, 1)) for rank in (0, 1)],
    **{
        name: [({argument: f32(3, 4), "peer": 1, **more}, rank, 4, (48, 0, 48, 48, 1)) for rank in (0, 3)]
        for name, argument, more in (
            ("nvshmem_put", "tensor", {}),
            ("nccl_put", "tensor", {}),
            ("nvshmem_put_with_signal", "tensor", {"sigpad": i64(1), "signal": 1}),
            ("nccl_put_with_signal", "tensor", {"signal": 1}),
            ("nccl_put_signal", "src", {}),
        )
    },
    # eight float32 of the ten that dst holds
    **{
        name: [({"dst": f32(5, 2), "offset": 2, "size": 8, "peer": 1}, 0, 4, (0, 32, 0, 32, 1))]
        for name in ("nvshmem_get_out", "nccl_get_out")
    },
    "memcpy_to_multicast_": [({"src": f32(3), "symm_mem_out": f32(64), "byte_offset": 16}, 0, 4, (12, 12, 12, 12, 1))],
    **{name: [({"tensor": f32(3, 4), "peer": 1}, 0, 4, (0, 48, 0, 48, 1))] for name in ("nvshmem_get", "nccl_get")},
    "one_shot_all_reduce": [({"input": bf16(3, 4), "reduce_op": "sum"}, 0, 4, (24, 24, 36, 24, 1.5))],
    "one_shot_all_reduce_copy_out": [
        ({"symm_buffer": f32(8), "local_input": f32(8), "out": f32(8), "reduce_op": "sum"}, 0, 2, (32, 64, 32, 32, 1))
    ],
    "two_shot_all_reduce_out": [({"input": f32(8), "output": f32(8), "reduce_op": "sum"}, 0, 2, (32, 32, 32, 32, 1))],
    "tile_reduce": [
        ({"in_tile": f32(2, 4), "out_tile": f32(2, 4), "root": 0}, 0, 2, (32, 32, 0, 32, 1)),
        ({"in_tile": f32(2, 4), "out_tile": f32(2, 4), "root": 0}, 1, 2, (32, 0, 32, 32, 1)),
    ],
    # a local sum of int32, or of bools, is an int64
    "_low_contention_reduce_scatter": [
        ({"tensor": f32(8, 2, dtype=I32), "reduce_op": "sum"}, 0, 2, (64, 64, 32, 64, 0.5)),
        ({"tensor": f32(8, dtype=torch.bool), "reduce_op": "sum"}, 0, 4, (8, 16, 6, 8, 0.75)),
    ],
    "multimem_one_shot_reduce_out": [
        ({"input": f32(3, 4), "out": f32(3, 4), "root": 1, "reduce_op": "sum"}, 1, 4, (48, 48, 0, 48, 1)),
        ({"input": f32(3, 4), "out": f32(3, 4), "root": 1, "reduce_op": "sum"}, 0, 4, (48, 0, 48, 48, 1)),
    ],
    "_low_contention_all_gather": [({"tensor": f32(3, 2)}, 0, 4, (24, 96, 72, 96, 0.75))],
    "reduce_scatter_out": [({"input": f32(3, 32), "split_last_dim": True}, 0, 4, (384, 96, 288, 384, 0.75))],
    "nvshmem_all_to_all": [({"input": f32(8, 3)}, 0, 4, (96, 96, 72, 96, 0.75))],
    "nvshmem_broadcast": [
        ({"input": f32(3, 4), "root": 1}, 1, 4, (48, 0, 48, 48, 1)),
        ({"input": f32(3, 4), "root": 1}, 0, 4, (0, 48, 0, 48, 1)),
    ],
    "_barrier": [({}, 0, 4, (0, 0, 0, 0, 1))],
}
"""Read, written, sent, nccl-tests' S and its bus factor, in bytes."""


def moved(op: str, arguments: Mapping[str, Any], rank: int, size: int) -> tuple[float, ...]:
    found = cr.traffic(call_of(op, arguments, rank, size))
    return found.read, found.written, found.sent, found.buffer, found.bus_factor


@pytest.mark.parametrize("op", TRAFFIC)
def test_bytes_are_those_computed_by_hand(op: str) -> None:
    """By each of the conventions."""
    assert [case[-1] for case in TRAFFIC[op]] == [moved(op, *case[:-1]) for case in TRAFFIC[op]]


def test_a_call_of_every_rule_is_counted() -> None:
    """Of those that a symmetric-memory op follows."""
    rules = {OPS[op].rule for op in SYMM_MEM}
    assert rules == {OPS[S + op].rule for op in TRAFFIC}
