"""Breaks exactly one thing in a legal group of calls, and says which constraint that violates. The ways are a table.

Where it takes two ranks to see it, one rank's call is taken from a group in which one name has another value: each
call is legal by itself. Otherwise one argument of one rank's call is changed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch
from hypothesis import strategies as st

from collective_rules.bind import bind
from collective_rules.bound import Slot
from collective_rules.call import Call, call
from collective_rules.memory import memory_order
from collective_rules.notation import Name, Rest, Shares, Splits
from collective_rules.ops import Row
from collective_rules.ops.columns import ANY, CONTIGUOUS, DENSE, FORMAT, FREE, NEVER, ORDER, OWN
from collective_rules.spec import Memory, Spec
from collective_rules.testing.drawing import Calls, Drawing, Wish, draw_calls, draw_size, legal_dtypes
from collective_rules.testing.layouts import CHANNELS_LAST, SLICED, TRANSPOSED, strides

__all__ = ["BREACHES", "Breach", "Broken", "Scene", "edited", "replaced", "slots_of"]

_RAW = (DENSE, FORMAT, CONTIGUOUS)


@attrs.frozen
class Broken:
    """A group of calls in which one thing is broken.

    - `calls`: as `calls` draws them (one fewer, where that is what is broken).
    - `id`: the constraint of the rule, or the limit of the backend, that must be found.
    - `rank`: whose call was changed; None where all were (beyond a backend's limit).
    - `local`: whether `check` finds it in that call; if not, `agree` finds it between the ranks.
    - `change`: what was done, in words.
    """

    calls: Calls
    id: str
    rank: int | None
    local: bool
    change: str


@attrs.frozen
class Scene:
    """Where something is broken: the op, the backend whose legal calls are drawn, and how to draw."""

    draw: st.DrawFn
    row: Row
    backend: str | None
    most_ranks: int

    def legal(self, **wish: Any) -> Calls:
        """Draw a legal group."""
        return draw_calls(self.draw, self.row, self.backend, self.most_ranks, self._wish(wish))

    def drawing(self, **wish: Any) -> Drawing:
        """Draw a legal group by its names."""
        wished = self._wish(wish)
        size = draw_size(self.draw, self.row, self.most_ranks, wished)
        return Drawing(self.draw, self.row, self.backend, size, wished)

    def _wish(self, wish: Mapping[str, Any]) -> Wish:
        return Wish(**{"straight": True, "splits": True if self.row.entry.splits else None, **wish})

    def pick(self, choices: Iterable[Any]) -> Any:
        """Draw one of some things."""
        return self.draw(st.sampled_from(list(choices)))

    def one(self, calls: Iterable[Call]) -> Call:
        """Draw a rank's call of this op."""
        found: Call = self.pick(one for one in calls if one.row is self.row)
        return found

    def slot(self, calls: Iterable[Call], fits: Callable[[Slot], bool] = lambda slot: True) -> tuple[Call, Slot]:
        """Draw a rank's call of this op, and a tensor of it."""
        own = [one for one in calls if one.row is self.row]
        found: tuple[Call, Slot] = self.pick((one, slot) for one in own for slot in slots_of(one) if fits(slot))
        return found

    def local(self, calls: Calls, changed: Call, kind: str, change: str) -> Broken:
        """The group with one call replaced, in which `check` must find the constraint of `kind`."""
        id_ = changed.row.rule.id_of(kind)
        return Broken(replaced(calls, changed), id_, changed.group.rank, True, change)

    def between(self, calls: Calls, changed: Call, kind: str, change: str) -> Broken:
        """The group with one call replaced, in which `agree` must find the constraint of `kind`."""
        return attrs.evolve(self.local(calls, changed, kind, change), local=False)


@attrs.frozen
class Breach:
    """One way to break a constraint: `broken` draws a group in which it is, for the ops to which it `applies`.

    `form`: the form of the rule that it needs, of those that the backend takes.
    """

    name: str
    kind: str
    applies: Callable[[Row], bool]
    broken: Callable[[Scene], Broken]
    form: str = ""


# -- editing calls


def replaced(calls: Calls, changed: Call) -> Calls:
    """Return the group with one rank's call replaced."""
    return tuple(changed if one.group.rank == changed.group.rank else one for one in calls)


def slots_of(one: Call) -> list[Slot]:
    """Return the tensors of a call of which its rule speaks."""
    return bind(one).slots


def edited(one: Call, slot: Slot, **changes: Any) -> Call:
    """Return the call with another tensor in a slot: `changes` are of shape, dtype, stride, layout, view, memory."""
    spec = Spec(**{"shape": slot.spec.shape, "dtype": slot.spec.dtype, **changes})
    path = [{"1": 0, "i": slot.element, "p": slot.rank}[index] for index in slot.part.path.index]
    name = slot.part.path.name
    return _with(one, **{name: _put(one.arguments[name], path, spec)})


def _with(one: Call, **arguments: Any) -> Call:
    return call(one.op, group=one.group, **{**one.arguments, **arguments})


def _put(value: Any, path: list[Any], spec: Spec) -> Any:
    if not path:
        return spec
    return [_put(item, path[1:], spec) if place == path[0] else item for place, item in enumerate(value)]


def _grown(shape: tuple[int, ...], dim: int, by: int = 1) -> tuple[int, ...]:
    return (*shape[:dim], shape[dim] + by, *shape[dim + 1 :])


# -- what an op is


def _given(row: Row) -> list[Any]:
    """The parts that are arguments, each path once."""
    parts = {str(part.path): part for part in row.spellings[0].statement.parts if part.path.name not in row.fresh}
    return list(parts.values())


def _sizes(row: Row, kind: type) -> bool:
    return any(isinstance(size, kind) for part in _given(row) for size in part.sizes)


def _collective(row: Row) -> bool:
    return not (row.rule.point_to_point or row.rule.one_sided)


def _pairwise(row: Row) -> bool:
    return row.rule.point_to_point


def _two_alike(row: Row) -> bool:
    """Whether a call holds two tensors that must agree."""
    parts = _given(row)
    return _collective(row) and (row.entry.alike or len(parts) > 1 or any("p" in part.path.index for part in parts))


def _several(row: Row) -> dict[str, Any]:
    """What a call of the op needs to hold two tensors that must agree."""
    return {"count": 2} if row.entry.alike else {}


def _uneven(row: Row) -> bool:
    return len(row.spellings) > 1 and "pairs" in row.rule.constraints.values() and not row.entry.splits


def _has(*attributes: str) -> Callable[[Row], bool]:
    return lambda row: any(attribute in row.entry.attributes for attribute in attributes)


def _lists(row: Row, index: str) -> list[Any]:
    return [part for part in _given(row) if index in part.path.index]


def _layouts(row: Row, *layouts: str) -> bool:
    return any(row.layout_of(part.path.name) in layouts for part in _given(row))


def _from(row: Row) -> dict[str, Any]:
    """A group in which layouts matter."""
    return {"ranks": row.entry.layouts_from}


# -- sizes


def _indivisible(scene: Scene) -> Broken:
    even = {"splits": False} if scene.row.entry.splits else {}
    calls = scene.legal(ranks=2, dims=1, least=1, form=scene.row.spellings[0].form.name, **even)
    shared = (Shares, Splits)
    if scene.row.rule.derived:
        one, slot = scene.slot(calls)
        dim = one.attribute("shard_dim")
    else:
        one, slot = scene.slot(calls, lambda slot: any(isinstance(size, shared) for size in slot.part.sizes))
        dim = next(place for place, size in enumerate(slot.part.sizes) if isinstance(size, shared))
    by = scene.draw(st.integers(1, one.group.size - 1))
    changed = edited(one, slot, shape=_grown(slot.spec.shape, dim, by))
    return scene.local(calls, changed, "divides", f"{slot.label} has {by} too many along dim {dim}")


def _divided(row: Row) -> bool:
    return _sizes(row, Shares) or _even_splits(row) or "shard_dim" in row.entry.attributes


def _even_splits(row: Row) -> bool:
    return any(row.entry.splits) and not row.fresh


def _missing_dims(scene: Scene) -> Broken:
    calls = scene.legal()
    one, slot = scene.slot(calls, lambda slot: any(isinstance(s, (Name, Shares, Splits)) for s in slot.part.sizes))
    return scene.local(calls, edited(one, slot, shape=()), "dims", f"{slot.label} has no dims")


def _dims_named(row: Row) -> bool:
    """Whether every spelling names a dim of some argument."""
    return all(
        not spelling.form.flat
        and any(isinstance(size, (Name, Shares, Splits)) for part in spelling.statement.reads for size in part.sizes)
        for spelling in row.spellings
    )


def _other_size(scene: Scene) -> Broken:
    row = scene.row
    calls = scene.legal(dims=1, least=1, alone=_uneven(row), form=row.spellings[0].form.name, **_several(row))
    one, slot = scene.slot((each for each in calls if len(slots_of(each)) > 1), lambda slot: _rest_of(slot) is not None)
    dim = _rest_of(slot)
    assert dim is not None
    changed = edited(one, slot, shape=_grown(slot.spec.shape, dim))
    return scene.local(calls, changed, "sizes", f"{slot.label} is larger along dim {dim}")


def _rest_of(slot: Slot) -> int | None:
    """A dim that the part's rest covers."""
    return next((place for place, size in enumerate(slot.part.sizes) if isinstance(size, Rest)), None)


def _other_size_on_one_rank(scene: Scene) -> Broken:
    row = scene.row
    drawing = scene.drawing(ranks=2, dims=1, least=1, form=row.spellings[0].form.name)
    calls = drawing.calls()
    key = scene.pick(key for key in drawing.names if key[0] != "dtype" and not any(key[2:]))
    value, by = drawing.names[key], drawing.size if row.rule.derived else 1
    drawing.names[key] = _grown(value, len(value) - 1, by) if isinstance(value, tuple) else value + 1
    changed = drawing.one(scene.draw(st.integers(0, drawing.size - 1)))
    return scene.between(calls, changed, "sizes", f"{key[0]} is larger on this rank")


def _other_pair(scene: Scene) -> Broken:
    """A size of two ranks is another for one of them."""
    drawing = scene.drawing(ranks=2, dims=1, least=1, form="uneven")
    calls = drawing.calls()
    i, j = scene.draw(st.permutations(range(drawing.size)))[:2]
    key = next(key for key in drawing.names if key[0] == "s" and key[-1] in ((i, j), (j,)))
    drawing.names[key] += 1
    changed = drawing.one(scene.pick((i, j)))
    return scene.between(calls, changed, "pairs", f"what rank {i} sends to rank {j} is larger")


def _other_pair_of_splits(scene: Scene) -> Broken:
    drawing = scene.drawing(ranks=2, dims=1, least=1)
    calls = drawing.calls()
    i, j = scene.draw(st.permutations(range(drawing.size)))[:2]
    rows = [list(row) for row in drawing.matrix]
    rows[i][j] += 1
    drawing.matrix = tuple(map(tuple, rows))
    changed = drawing.one(scene.pick((i, j)))
    return scene.between(calls, changed, "pairs", f"rank {i} sends one row more to rank {j}")


def _common(row: Row) -> bool:
    """Whether some size is one for all ranks."""
    named = [size for part in _given(row) for size in part.sizes if isinstance(size, (Name, Rest, Shares))]
    return any(isinstance(size, Shares) or not size.index for size in named)


def _wrong_split(scene: Scene) -> Broken:
    calls = scene.legal(ranks=2)
    one = scene.pick(calls)
    column = scene.pick(column for column in scene.row.entry.splits.values() if column.argument)
    part = next(part for part, known in scene.row.entry.splits.items() if known is column)
    given = scene.row.entry.parts[part] not in scene.row.fresh
    how = scene.pick(["one too many", "a negative one", *(["a wrong sum"] if given else [])])
    numbers = list(one.arguments[column.argument])
    if how == "one too many":
        numbers.append(0)
    elif how == "a negative one":
        numbers[:2] = [-1, numbers[1] + numbers[0] + 1]
    else:
        numbers[scene.draw(st.integers(0, len(numbers) - 1))] += 1
    return scene.local(calls, _with(one, **{column.argument: numbers}), "splits", f"{column.argument} has {how}")


# -- lists


def _wrong_length(scene: Scene) -> Broken:
    row = scene.row
    part = scene.pick(
        part for part in _given(row) if set(part.path.index) & {"1", "p"} and _level(row, part) is not None
    )
    calls = scene.legal(dims=1, least=1)
    one = scene.pick(each for each in calls if each.arguments[part.path.name])
    more = scene.draw(st.booleans())
    level = _level(row, part)
    assert level is not None
    value = _resized(one.arguments[part.path.name], level, more)
    change = f"{part.path.name} has a tensor too {'many' if more else 'few'}"
    return scene.local(calls, _with(one, **{part.path.name: value}), "lists", change)


def _level(row: Row, part: Any) -> int | None:
    """At which depth a list of the part may have a wrong length; the outer one of an `@root` part says who is root."""
    return next((k for k, i in enumerate(part.path.index) if i in "1p" and not (part.root_only and k == 0)), None)


def _resized(value: Any, level: int, more: bool) -> list[Any]:
    if level:
        return [_resized(value[0], level - 1, more), *value[1:]]
    return [*value, _copies(value[-1])] if more else list(value[:-1])


def _copies(value: Any) -> Any:
    return [_copies(item) for item in value] if isinstance(value, tuple) else Spec(value.shape, value.dtype)


def _empty_list(scene: Scene) -> Broken:
    calls = scene.legal()
    one, part = scene.pick(calls), scene.pick(_lists(scene.row, "i"))
    value: list[Any] = [[] for _ in one.arguments[part.path.name]] if part.path.index[0] == "p" else []
    return scene.local(calls, _with(one, **{part.path.name: value}), "lists", f"{part.path.name} is empty")


def _longer_list_on_one_rank(scene: Scene) -> Broken:
    kinds = tuple(kind for kind in legal_dtypes(scene.row, scene.backend, 2) if kind[0] != "avg")
    drawing = scene.drawing(ranks=2, kinds=kinds, dims=1, least=1)
    calls = drawing.calls()
    drawing.count += 1
    changed = drawing.one(scene.draw(st.integers(0, drawing.size - 1)))
    return scene.between(calls, changed, "lists", "this rank's lists hold one tensor more")


def _list_of_the_root(scene: Scene) -> Broken:
    calls = scene.legal(ranks=2)
    name = scene.pick(name for name in scene.row.root_only)
    root = next(one for one in calls if one.is_root)
    if scene.draw(st.booleans()):
        return scene.local(calls, _with(root, **{name: []}), "presence", f"{name} is empty on the root")
    other = scene.pick(one for one in calls if not one.is_root)
    value = [_copies(item) for item in root.arguments[name]]
    return scene.local(calls, _with(other, **{name: value}), "presence", f"{name} is given off the root")


# -- dtype and attributes


def _other_dtype(scene: Scene) -> Broken:
    calls = scene.legal(least=1, **_several(scene.row))
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
    return scene.local(calls, _with(scene.one(calls), **{scene.row.reduce_op: name}), "reduce_op", f"it is {name!r}")


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
        return scene.local(calls, _with(one, **{name: beyond}), kind, f"{name} is {beyond}")

    return broken


# -- memory


def _sliced(scene: Scene) -> Broken:
    row = scene.row
    calls = scene.legal(**_from(row), dims=1, least=2, form=row.spellings[0].form.name)
    one, slot = scene.slot(calls, lambda slot: row.layout_of(slot.part.path.name) in _RAW and slot.spec.numel > 1)
    changed = edited(one, slot, stride=strides(slot.spec.shape, SLICED))
    return scene.local(calls, changed, "dense", f"{slot.label} is a slice")


def _one_transposed(scene: Scene) -> Broken:
    row = scene.row
    calls = scene.legal(**_from(row), dims=2, least=2, **_several(row))
    ordered = [(one, slot) for one in calls for slot in _ordered(one)]
    one, slot = scene.pick(ordered)
    changed = edited(one, slot, stride=strides(slot.spec.shape, TRANSPOSED))
    return scene.local(calls, changed, "order", f"{slot.label} is transposed")


def _ordered(one: Call) -> list[Slot]:
    """The tensors whose order another of the call must have."""
    orders = [(key, slot) for key, slot, _ in memory_order(bind(one))]
    keys = [key for key, _ in orders]
    return [
        slot for key, slot in orders if keys.count(key) > 1 and one.row.layout_of(slot.part.path.name) in (DENSE, ORDER)
    ]


def _ordered_together(row: Row) -> bool:
    bound = [part for part in _given(row) if row.layout_of(part.path.name) in (DENSE, ORDER, FORMAT)]
    together = len(bound) > 1 or any("p" in part.path.index for part in bound)
    return together or (row.entry.alike and bool(row.reduce_op) and bool(bound))


def _transposed_on_one_rank(scene: Scene) -> Broken:
    row = scene.row
    strict = _layouts(row, FORMAT)
    drawing = scene.drawing(ranks=2, dims=3 if strict else 2, least=2)
    calls = drawing.calls()
    layout = CHANNELS_LAST if strict else TRANSPOSED
    drawing.orders = dict.fromkeys(drawing.orders, layout)
    changed = drawing.one(scene.draw(st.integers(0, drawing.size - 1)))
    return scene.between(calls, changed, "order", f"this rank's tensors are {layout}")


def _expanded(scene: Scene) -> Broken:
    row = scene.row
    calls = scene.legal(dims=1, least=2)
    one, slot = scene.slot(calls, lambda slot: _copied_out(row, slot.part.path.name))
    dim = next(dim for dim, n in enumerate(slot.spec.shape) if n > 1)
    steps = list(slot.spec.stride)
    steps[dim] = 0
    return scene.local(calls, edited(one, slot, stride=steps), "overlap", f"{slot.label} is expanded along dim {dim}")


def _copied_out(row: Row, name: str) -> bool:
    return name in row.writes and name not in row.fresh and row.layout_of(name) == ANY


def _one_memory(scene: Scene) -> Broken:
    """What is written lies in what is read, where the op does not admit it."""
    row = scene.row
    calls = scene.legal(ranks=2, dims=1, least=1, count=2 if _lists(row, "i") else 1)
    found = [(one, a, b) for one in calls for a, b in _apart(one)]
    one, a, b = scene.pick(found)
    changed = edited(edited(one, a, memory=Memory(0, 0)), b, memory=Memory(0, 0))
    return scene.local(calls, changed, "overlap", f"{b.label} lies in the memory of {a.label}")


def _apart(one: Call) -> list[tuple[Slot, Slot]]:
    """Pairs of tensors of the call that may not share memory."""
    row, slots, rank = one.row, slots_of(one), one.group.rank
    reads = [slot for slot in slots if slot.part.path.name in row.reads and slot.part.path.name not in row.writes]
    writes = [slot for slot in slots if slot.part.path.name in row.writes]
    if row.entry.overlap == FREE:
        reads = []
    elif row.entry.overlap == OWN:
        reads = [slot for slot in reads if slot.rank != rank]
    elif row.entry.overlap != NEVER:
        reads = [slot for slot in reads if slot.rank is not None and slot.rank > rank]
    twice = [] if row.in_place and not row.reduce_op else list(itertools.pairwise(writes))
    if row.in_place and any(row.layout_of(name) == ANY for name in row.in_place):
        twice = []
    return [(a, b) for a in reads for b in writes] + twice


def _may_overlap(row: Row) -> bool:
    lists = [part for part in _given(row) if part.path.name in row.writes and set(part.path.index) & {"p", "i"}]
    in_place = bool(row.in_place)
    twice = bool(lists) and (not in_place or (bool(row.reduce_op) and _layouts(row, DENSE)))
    return _collective(row) and (twice or (row.entry.overlap != FREE and not in_place))


def _negative_view(scene: Scene) -> Broken:
    row = scene.row
    kinds = tuple(kind for kind in legal_dtypes(row, scene.backend, 2) if kind[1] is torch.float32)
    calls = scene.legal(ranks=2, dims=1, least=1, kinds=kinds)
    one, slot = scene.slot(calls, lambda slot: _loses_view(row, slot.part.path.name))
    return scene.local(calls, edited(one, slot, view="neg"), "view", f"{slot.label} is a negative view")


def _loses_view(row: Row, name: str) -> bool:
    return name in row.writes and name not in row.fresh and row.by_name[name].depth < 2


def _sparse(scene: Scene) -> Broken:
    row = scene.row
    kinds = tuple(kind for kind in legal_dtypes(row, scene.backend, 2) if kind[1] is torch.float32)
    calls = scene.legal(dims=1, least=1, kinds=kinds)
    one, slot = scene.slot(calls)
    return scene.local(calls, edited(one, slot, layout="sparse_coo"), "strided", f"{slot.label} is sparse")


# -- who takes part


def _another_collective(scene: Scene) -> Broken:
    row = scene.row
    calls = scene.legal(ranks=2, dims=1, least=1)
    group = scene.pick(calls).group
    other = "c10d::allreduce_" if row.rule.name != "all_reduce" else "c10d::broadcast_"
    own: dict[str, Any] = {"tensors": [(2,)]} | ({"root_rank": 0} if other == "c10d::broadcast_" else {})
    changed = call(other, group=group, **own)
    broken = Broken(replaced(calls, changed), "", group.rank, False, f"this rank calls {other}")
    speaker = next(one for one in broken.calls if "call" in one.row.rule.constraints.values())
    return attrs.evolve(broken, id=speaker.row.rule.id_of("call"))


def _one_missing(scene: Scene) -> Broken:
    calls = scene.legal(ranks=2, dims=1, least=1)
    gone = scene.pick(calls)
    rest = tuple(one for one in calls if one is not gone)
    return Broken(rest, scene.row.rule.id_of("ranks"), gone.group.rank, False, "this rank does not take part")


# -- point to point


def _message(scene: Scene) -> tuple[Calls, Call, Call]:
    """Draw a group, one call of this op in it, and its partner's."""
    calls = scene.legal(dims=1, least=1)
    one = scene.pick(each for each in calls if each.row is scene.row)
    partner = next(each for each in calls if _meet(one, each))
    return calls, one, partner


def _meet(one: Call, other: Call) -> bool:
    if one.group.rank == other.group.rank or one.row.rule is other.row.rule:
        return False
    return bool(one.group.rank == other.attribute("peer") or other.group.rank == one.attribute("peer"))


def _of_speaker(scene: Scene, calls: Calls, changed: Call, partner: Call, kind: str, change: str) -> Broken:
    """The message names the rule of the higher rank."""
    broken = scene.between(calls, changed, kind, change)
    speaker = max((changed, partner), key=lambda one: one.group.rank)
    return attrs.evolve(broken, id=speaker.row.rule.id_of(kind))


def _other_end_larger(scene: Scene) -> Broken:
    calls, one, partner = _message(scene)
    slot = slots_of(one)[0]
    changed = edited(one, slot, shape=_grown(slot.spec.shape, 0))
    return _of_speaker(scene, calls, changed, partner, "pairs", f"{slot.label} is larger than the partner's")


def _other_end_dtype(scene: Scene) -> Broken:
    calls, one, partner = _message(scene)
    slot = slots_of(one)[0]
    dtypes = {dtype for _, dtype in legal_dtypes(scene.row, scene.backend, 2)} - {slot.spec.dtype}
    changed = edited(one, slot, dtype=scene.pick(sorted(dtypes, key=str)))
    return _of_speaker(scene, calls, changed, partner, "dtype", f"{slot.label} is not of the partner's dtype")


def _other_tag(scene: Scene) -> Broken:
    calls, one, partner = _message(scene)
    changed = _with(one, **{scene.row.tag: 3})
    return _of_speaker(scene, calls, changed, partner, "tag", "the tag is not the partner's")


def _alone(scene: Scene) -> Broken:
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
    return calls, _with(one, **lists)


def _uneven_batch(scene: Scene) -> Broken:
    calls, changed = _batched(scene, lambda lists: lists["tag_list"].append(0))
    return scene.local(calls, changed, "lists", "tag_list is longer than the other lists")


def _unknown_kind(scene: Scene) -> Broken:
    calls, changed = _batched(scene, lambda lists: lists["op_list"].__setitem__(0, "isent"))
    return scene.local(calls, changed, "argument", "op_list names an unknown op")


def _single_p2p(row: Row) -> bool:
    return row.rule.point_to_point and not row.entry.batch


def _batch(row: Row) -> bool:
    return row.entry.batch is not None


def _copied_layouts(row: Row) -> bool:
    return _layouts(row, DENSE, ORDER, FORMAT) and _collective(row)


BREACHES: tuple[Breach, ...] = (
    Breach("indivisible", "divides", _divided, _indivisible),
    Breach("no dims", "dims", _dims_named, _missing_dims),
    Breach("another size", "sizes", lambda row: _two_alike(row) and _sizes(row, Rest), _other_size),
    Breach("another size on one rank", "sizes", lambda row: _collective(row) and _common(row), _other_size_on_one_rank),
    Breach("another pair", "pairs", lambda row: _collective(row) and _uneven(row), _other_pair, form="uneven"),
    Breach("another pair of split sizes", "pairs", lambda row: bool(row.splits), _other_pair_of_splits),
    Breach("wrong split sizes", "splits", lambda row: bool(row.splits), _wrong_split),
    Breach(
        "wrong length",
        "lists",
        lambda row: any(_level(row, part) is not None for part in _given(row)) and not row.entry.batch,
        _wrong_length,
    ),
    Breach("empty list", "lists", lambda row: bool(_lists(row, "i")) and not row.entry.batch, _empty_list),
    Breach(
        "longer lists on one rank",
        "lists",
        lambda row: bool(_lists(row, "i")) and _collective(row),
        _longer_list_on_one_rank,
    ),
    Breach("the root's list", "presence", lambda row: bool(_lists(row, "p")), _list_of_the_root),
    Breach("another dtype", "dtype", _two_alike, _other_dtype),
    Breach("another dtype on one rank", "dtype", _collective, _other_dtype_on_one_rank),
    Breach("another reduce op on one rank", "reduce_op", _several_reduce_ops, _other_reduce_op_on_one_rank),
    Breach("no such reduce op", "reduce_op", _reduce_op_by_name, _no_such_reduce_op),
    Breach("another root on one rank", "root", _has("root"), _other_attribute_on_one_rank("root", "root")),
    Breach("no such root", "root", _has("root"), _out_of_range("root", "root")),
    Breach("no such root tensor", "root", _has("root_tensor"), _out_of_range("root_tensor", "root")),
    Breach(
        "another dim on one rank",
        "argument",
        _has("gather_dim"),
        _other_attribute_on_one_rank("gather_dim", "argument"),
    ),
    Breach("no such dim", "argument", _has("shard_dim"), _out_of_range("shard_dim", "argument")),
    Breach("another group size", "group_size", _has("group_size"), _out_of_range("group_size", "group_size")),
    Breach("a slice", "dense", lambda row: _layouts(row, *_RAW), _sliced),
    Breach("one transposed", "order", lambda row: _collective(row) and _ordered_together(row), _one_transposed),
    Breach("transposed on one rank", "order", _copied_layouts, _transposed_on_one_rank),
    Breach("expanded", "overlap", lambda row: any(_copied_out(row, part.path.name) for part in _given(row)), _expanded),
    Breach("shared memory", "overlap", _may_overlap, _one_memory),
    Breach(
        "a negative view", "view", lambda row: any(_loses_view(row, p.path.name) for p in _given(row)), _negative_view
    ),
    Breach(
        "sparse", "strided", lambda row: not row.entry.sparse and bool(_given(row)) and not row.entry.batch, _sparse
    ),
    Breach("another collective", "call", _collective, _another_collective),
    Breach("a missing rank", "ranks", _collective, _one_missing),
    Breach("no such peer", "peer", _has("peer"), _out_of_range("peer", "peer")),
    Breach("no such tag", "tag", _has("tag"), _out_of_range("tag", "tag")),
    Breach("the partner's size", "pairs", _single_p2p, _other_end_larger),
    Breach("the partner's dtype", "dtype", _single_p2p, _other_end_dtype),
    Breach("the partner's tag", "tag", _single_p2p, _other_tag),
    Breach("no partner", "partner", _single_p2p, _alone),
    Breach("a batch of uneven lists", "lists", _batch, _uneven_batch),
    Breach("an unknown kind in a batch", "argument", _batch, _unknown_kind),
)
"""The ways to break a rule's constraints. A row applies to the ops whose rule lists its kind."""
