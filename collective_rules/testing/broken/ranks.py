"""Broken groups: a rank is missing or calls another op, or two partners do not fit each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs

from collective_rules.call import Call, call, on_device
from collective_rules.ops import Row
from collective_rules.spec import Memory, Spec
from collective_rules.testing.broken.edits import edited, grown, replaced, slots_of, with_arguments
from collective_rules.testing.broken.scene import Breach, Broken, Scene
from collective_rules.testing.broken.traits import is_collective
from collective_rules.testing.drawing import Calls
from collective_rules.testing.layouts import TRANSPOSED, strides


def _another_collective(scene: Scene) -> Broken:
    calls = scene.legal(min_ranks=2, min_dims=1, min_size=1)
    group = scene.pick(calls).group
    other = "c10d::broadcast_" if scene.row.rule.name != "broadcast" else "c10d::allreduce_"
    own: dict[str, Any] = {"tensors": [(2,)]} | ({"root_rank": 0} if other == "c10d::broadcast_" else {})
    device = next((slot.spec.device for one in calls for slot in slots_of(one)), "cpu")
    changed = on_device(call(other, group=group, **own), device)
    broken = Broken(replaced(calls, changed), "", group.rank, False, f"this rank calls {other}")
    speaker = next(one for one in broken.calls if "call" in one.row.rule.constraints.values())
    return attrs.evolve(broken, id=speaker.row.rule.id_of("call"))


def _one_missing(scene: Scene) -> Broken:
    calls = scene.legal(min_ranks=2, min_dims=1, min_size=1)
    gone = scene.pick(calls)
    rest = tuple(one for one in calls if one is not gone)
    return Broken(rest, scene.row.rule.id_of("ranks"), gone.group.rank, False, "this rank does not take part")


def _message(scene: Scene, dims: int = 1) -> tuple[Calls, Call, Call]:
    """Draw a group; return it with one call of this op, and the call of its partner."""
    calls = scene.legal(min_dims=dims, min_size=dims)
    one = scene.one(calls)
    return calls, one, next(each for each in calls if _meet(one, each))


def _meet(one: Call, other: Call) -> bool:
    if one.group.rank == other.group.rank or one.row.rule is other.row.rule:
        return False
    return bool(one.group.rank == other.attribute("peer") or other.group.rank == one.attribute("peer"))


def _other_end(name: str, kind: str, change: str, changed_call: Callable[[Scene, Call], Call], dims: int = 1) -> Breach:
    """Return a way to change one end of a message. The finding names the rule of the higher rank."""

    def broken(scene: Scene) -> Broken:
        calls, one, partner = _message(scene, dims)
        changed = changed_call(scene, one)
        speaker = max((changed, partner), key=lambda each: each.group.rank)
        return Broken(replaced(calls, changed), speaker.row.rule.id_of(kind), one.group.rank, False, change)

    return Breach(name, kind, _single_p2p, broken, strides=kind == "order", tags=kind == "tag")


def _larger(scene: Scene, one: Call) -> Call:
    slot = slots_of(one)[0]
    return edited(one, slot, shape=grown(slot.spec.shape, 0))


def _converted(scene: Scene, one: Call) -> Call:
    slot = slots_of(one)[0]
    dtypes = {dtype for _, dtype in scene.dtypes()} - {slot.spec.dtype}
    return edited(one, slot, dtype=scene.pick(sorted(dtypes, key=str)))


def _transposed(scene: Scene, one: Call) -> Call:
    slot = slots_of(one)[0]
    return edited(one, slot, stride=strides(slot.spec.shape, TRANSPOSED))


def _retagged(scene: Scene, one: Call) -> Call:
    return with_arguments(one, **{scene.row.tag: 3})


def _no_partner(scene: Scene) -> Broken:
    calls, one, partner = _message(scene)
    rest = tuple(each for each in calls if each is not partner)
    return Broken(rest, one.row.rule.id_of("partner"), partner.group.rank, False, "the partner makes no call")


def _batched(scene: Scene, change: Callable[[dict[str, list[Any]]], None]) -> tuple[Calls, Call]:
    batch = scene.row.entry.batch
    assert batch is not None
    calls = scene.legal()
    one = scene.pick(calls)
    lists = {name: list(one.arguments[name]) for name in (batch.kinds, batch.peers, batch.tags, batch.tensors)}
    change(lists)
    return calls, with_arguments(one, **lists)


def _uneven_batch(scene: Scene) -> Broken:
    calls, changed = _batched(scene, lambda lists: lists["tag_list"].append(0))
    return scene.local(calls, changed, "lists", "tag_list is longer than the other lists")


def _shared_in_a_batch(scene: Scene) -> Broken:
    """Put all tensors of a batch, of which one is received, into one memory."""
    dtype = scene.pick(scene.dtypes())
    calls = attrs.evolve(scene, most_ranks=2).legal(min_tensors=2, min_dims=1, min_size=1, dtypes=(dtype,))
    one = scene.pick(one for one in calls if "irecv" in one.arguments["op_list"])
    specs = one.arguments["tensors"]
    tensors = [Spec(spec.shape, spec.dtype, None, spec.device, memory=Memory(0, 0)) for spec in specs]
    changed = with_arguments(one, tensors=tensors)
    return scene.local(calls, changed, "overlap", "all tensors of this rank's batch share memory")


def _unknown_kind(scene: Scene) -> Broken:
    calls, changed = _batched(scene, lambda lists: lists["op_list"].__setitem__(0, "isent"))
    return scene.local(calls, changed, "argument", "op_list names an unknown op")


def _single_p2p(row: Row) -> bool:
    return row.rule.point_to_point and not row.entry.batch


def _batch(row: Row) -> bool:
    return row.entry.batch is not None


RANKS: tuple[Breach, ...] = (
    Breach("another collective", "call", is_collective, _another_collective),
    Breach("a missing rank", "ranks", is_collective, _one_missing),
    _other_end("the partner's size", "pairs", "its tensor is larger than the partner's", _larger),
    _other_end("the partner's dtype", "dtype", "its tensor is not of the partner's dtype", _converted),
    _other_end("the partner's order", "order", "its tensor is transposed", _transposed, dims=2),
    _other_end("the partner's tag", "tag", "the tag is not the partner's", _retagged),
    Breach("no partner", "partner", _single_p2p, _no_partner),
    Breach("a batch of uneven lists", "lists", _batch, _uneven_batch),
    Breach("shared memory in a batch", "overlap", _batch, _shared_in_a_batch),
    Breach("an unknown kind in a batch", "argument", _batch, _unknown_kind),
)
