"""Broken dtypes, reduce ops, roots, dims, peers and tags."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from collective_rules.ops import Row
from collective_rules.testing.broken.scene import (
    Breach,
    Broken,
    Scene,
    edited,
    for_two_alike,
    has_attribute,
    holds_two_alike,
    is_collective,
    slots_of,
    with_arguments,
)
from collective_rules.testing.drawing import legal_dtypes

__all__ = ["ATTRIBUTES"]


def _other_dtype(scene: Scene) -> Broken:
    calls = scene.legal(least=1, **for_two_alike(scene.row))
    one, slot = scene.slot(each for each in calls if len(slots_of(each)) > 1)
    kinds = legal_dtypes(scene.row, scene.backend, one.group.size)
    dtype = scene.pick(sorted({dtype for _, dtype in kinds} - {slot.spec.dtype}, key=str))
    return scene.local(calls, edited(one, slot, dtype=dtype), "dtype", f"{slot.label} has dtype {dtype}")


def _other_dtype_on_one_rank(scene: Scene) -> Broken:
    drawing = scene.drawing(ranks=2, least=1)
    calls = drawing.calls()
    drawing.dtype = scene.pick(dtype for dtype in drawing.kinds if dtype is not drawing.dtype)
    changed = drawing.one(scene.draw(st.integers(0, drawing.size - 1)))
    return scene.between(calls, changed, "dtype", f"this rank's dtype is {drawing.dtype}")


def _other_reduce_op_on_one_rank(scene: Scene) -> Broken:
    drawing = scene.drawing(ranks=2, least=1)
    drawing.alone = True
    calls = drawing.calls()
    kinds = legal_dtypes(scene.row, scene.backend, drawing.size)
    fits = {op for op, dtype in kinds if dtype is drawing.dtype} - {drawing.attributes["reduce_op"]}
    if drawing.count > 1:
        fits -= {"avg"}
    drawing.attributes["reduce_op"] = scene.pick(sorted(fits))
    changed = drawing.one(scene.draw(st.integers(0, drawing.size - 1)))
    return scene.between(calls, changed, "reduce_op", f"this rank reduces with {drawing.attributes['reduce_op']}")


def _no_such_reduce_op(scene: Scene) -> Broken:
    calls = scene.legal()
    name = scene.pick(("mean", "SUM", ""))
    return scene.local(
        calls, with_arguments(scene.one(calls), **{scene.row.reduce_op: name}), "reduce_op", f"it is {name!r}"
    )


def _several_reduce_ops(row: Row) -> bool:
    return bool(row.reduce_op) and len(row.entry.reduce_ops) != 1


def _reduce_op_by_name(row: Row) -> bool:
    return bool(row.reduce_op) and not row.by_name[row.reduce_op].kind.endswith(".ReduceOp")


def _other_attribute_on_one_rank(attribute: str, kind: str) -> Callable[[Scene], Broken]:
    def broken(scene: Scene) -> Broken:
        drawing = scene.drawing(ranks=2, dims=2, least=1)
        calls = drawing.calls()
        value = drawing.attributes[attribute]
        most = drawing.size if attribute == "root" else len(slots_of(calls[0])[0].spec.shape)
        drawing.attributes[attribute] = scene.pick(other for other in range(most) if other != value)
        changed = drawing.one(scene.draw(st.integers(0, drawing.size - 1)))
        return scene.between(calls, changed, kind, f"this rank's {attribute} is {drawing.attributes[attribute]}")

    return broken


def _out_of_range(attribute: str, kind: str) -> Callable[[Scene], Broken]:
    def broken(scene: Scene) -> Broken:
        calls = scene.legal(ranks=2, dims=1)
        one = scene.one(calls)
        beyond = {
            "root": one.group.size,
            "peer": one.group.size,
            "root_tensor": len(slots_of(one)),
            "tag": -1,
            "group_size": one.group.size + 1,
            "shard_dim": len(slots_of(one)[0].spec.shape),
            "gather_dim": len(slots_of(one)[0].spec.shape),
        }[attribute]
        if attribute == "peer" and one.row.rule.point_to_point and scene.draw(st.booleans()):
            beyond = one.group.rank
        name = one.row.entry.attributes[attribute]
        return scene.local(calls, with_arguments(one, **{name: beyond}), kind, f"{name} is {beyond}")

    return broken


ATTRIBUTES: tuple[Breach, ...] = (
    Breach("another dtype", "dtype", holds_two_alike, _other_dtype),
    Breach("another dtype on one rank", "dtype", is_collective, _other_dtype_on_one_rank),
    Breach("another reduce op on one rank", "reduce_op", _several_reduce_ops, _other_reduce_op_on_one_rank),
    Breach("no such reduce op", "reduce_op", _reduce_op_by_name, _no_such_reduce_op),
    Breach("another root on one rank", "root", has_attribute("root"), _other_attribute_on_one_rank("root", "root")),
    Breach("no such root", "root", has_attribute("root"), _out_of_range("root", "root")),
    Breach("no such root tensor", "root", has_attribute("root_tensor"), _out_of_range("root_tensor", "root")),
    Breach(
        "another dim on one rank",
        "argument",
        has_attribute("gather_dim"),
        _other_attribute_on_one_rank("gather_dim", "argument"),
    ),
    Breach("no such dim", "argument", has_attribute("shard_dim"), _out_of_range("shard_dim", "argument")),
    Breach("another group size", "group_size", has_attribute("group_size"), _out_of_range("group_size", "group_size")),
    Breach("no such peer", "peer", has_attribute("peer"), _out_of_range("peer", "peer")),
    Breach("no such tag", "tag", has_attribute("tag"), _out_of_range("tag", "tag")),
)
