"""Broken dtypes, reduce ops, roots, dims, peers and tags."""

from __future__ import annotations

from hypothesis import assume
from hypothesis import strategies as st

from collective_rules.ops import Row
from collective_rules.testing.broken.edits import edited, slots_of, with_arguments
from collective_rules.testing.broken.scene import Breach, Broken, Scene
from collective_rules.testing.broken.traits import holds_two_alike, is_collective


def _other_dtype(scene: Scene) -> Broken:
    calls = scene.legal(min_size=1, min_tensors=2 if scene.row.entry.one_tensor else 1)
    one, slot = scene.slot(each for each in calls if len(slots_of(each)) > 1)
    dtype = scene.pick(sorted({dtype for _, dtype in scene.dtypes(one.group.size)} - {slot.spec.dtype}, key=str))
    return scene.local(calls, edited(one, slot, dtype=dtype), "dtype", f"{slot.label} has dtype {dtype}")


def _other_dtype_on_one_rank(scene: Scene) -> Broken:
    drawing, calls = scene.drawing(min_ranks=2, min_size=1)
    dtype = scene.pick(dtype for dtype in drawing.dtypes if dtype is not drawing.values.dtype)
    drawing.values.dtype = dtype
    return scene.on_one_rank(drawing, calls, "dtype", f"this rank's dtype is {dtype}")


def _other_reduce_op_on_one_rank(scene: Scene) -> Broken:
    drawing, calls = scene.drawing(min_ranks=2, min_size=1, one_dtype=True)
    values = drawing.values
    fits = {op for op, dtype in scene.dtypes(drawing.size) if dtype is values.dtype} - {values.attributes["reduce_op"]}
    others = sorted(fits - {"avg"} if values.count > 1 else fits)
    assume(others)  # of a list, avg may be all that is left
    reduce_op = scene.pick(others)
    values.attributes["reduce_op"] = reduce_op
    return scene.on_one_rank(drawing, calls, "reduce_op", f"this rank reduces with {reduce_op}")


def _no_such_reduce_op(scene: Scene) -> Broken:
    calls = scene.legal()
    name = scene.pick(("mean", "SUM", ""))
    changed = with_arguments(scene.one(calls), **{scene.row.reduce_op: name})
    return scene.local(calls, changed, "reduce_op", f"it is {name!r}")


def _several_reduce_ops(row: Row) -> bool:
    return bool(row.reduce_op) and len(row.entry.reduce_ops) != 1


def _reduce_op_by_name(row: Row) -> bool:
    return bool(row.reduce_op) and not row.by_name[row.reduce_op].kind.endswith(".ReduceOp")


def _other(name: str, attribute: str, kind: str) -> Breach:
    """Return the way to change an attribute on which the ranks must agree."""

    def broken(scene: Scene) -> Broken:
        drawing, calls = scene.drawing(min_ranks=2, min_dims=2, min_size=1)
        attributes = drawing.values.attributes
        most = drawing.size if attribute == "root" else len(slots_of(calls[0])[0].spec.shape)
        value = scene.pick(other for other in range(most) if other != attributes[attribute])
        attributes[attribute] = value
        return scene.on_one_rank(drawing, calls, kind, f"this rank's {attribute} is {value}")

    return Breach(name, kind, lambda row: attribute in row.entry.attributes, broken)


def _no_such(breach: str, attribute: str, kind: str) -> Breach:
    """Return the way to give an attribute a value that it never has."""

    def broken(scene: Scene) -> Broken:
        calls = scene.legal(min_ranks=2, min_dims=1)
        one = scene.one(calls)
        slots, size = slots_of(one), one.group.size
        beyond = {"root": size, "peer": size, "root_tensor": len(slots), "tag": -1, "group_size": size + 1}
        value = beyond[attribute] if attribute in beyond else len(slots[0].spec.shape)
        if attribute == "peer" and one.row.rule.point_to_point and scene.draw(st.booleans()):
            value = one.group.rank
        name = one.row.entry.attributes[attribute]
        return scene.local(calls, with_arguments(one, **{name: value}), kind, f"{name} is {value}")

    return Breach(breach, kind, lambda row: attribute in row.entry.attributes, broken)


ATTRIBUTES: tuple[Breach, ...] = (
    Breach("another dtype", "dtype", holds_two_alike, _other_dtype),
    Breach("another dtype on one rank", "dtype", is_collective, _other_dtype_on_one_rank),
    Breach("another reduce op on one rank", "reduce_op", _several_reduce_ops, _other_reduce_op_on_one_rank),
    Breach("no such reduce op", "reduce_op", _reduce_op_by_name, _no_such_reduce_op),
    _other("another root on one rank", "root", "root"),
    _no_such("no such root", "root", "root"),
    _no_such("no such root tensor", "root_tensor", "root"),
    _other("another dim on one rank", "gather_dim", "argument"),
    _no_such("no such dim", "shard_dim", "argument"),
    _no_such("another group size", "group_size", "group_size"),
    _no_such("no such peer", "peer", "peer"),
    _no_such("no such tag", "tag", "tag"),
)
