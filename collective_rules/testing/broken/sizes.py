"""Broken sizes: of tensors, of lists, of splits."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from collective_rules.binding.bound import Slot
from collective_rules.notation import Name, Rest, Shares, Splits
from collective_rules.ops import Row
from collective_rules.testing.broken.scene import (
    Breach,
    Broken,
    Scene,
    copies,
    edited,
    for_two_alike,
    given_parts,
    grown,
    has_size,
    holds_two_alike,
    is_collective,
    list_parts,
    may_be_uneven,
    slots_of,
    with_arguments,
)
from collective_rules.testing.drawing import legal_dtypes

__all__ = ["SIZES"]


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
        if any(isinstance(size, Rest) for size in slot.part.sizes[:dim]):  # then only the dims behind it are counted
            dim += len(slot.spec.shape) - len(slot.part.sizes)
    by = scene.draw(st.integers(1, one.group.size - 1))
    changed = edited(one, slot, shape=grown(slot.spec.shape, dim, by))
    return scene.local(calls, changed, "divides", f"{slot.label} has {by} too many along dim {dim}")


def _divided(row: Row) -> bool:
    return has_size(row, Shares) or _even_splits(row) or "shard_dim" in row.entry.attributes


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
    calls = scene.legal(
        dims=1, least=1, alone=may_be_uneven(row), form=row.spellings[0].form.name, **for_two_alike(row)
    )
    one, slot = scene.slot((each for each in calls if len(slots_of(each)) > 1), lambda slot: _rest_of(slot) is not None)
    dim = _rest_of(slot)
    assert dim is not None
    changed = edited(one, slot, shape=grown(slot.spec.shape, dim))
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
    drawing.names[key] = grown(value, len(value) - 1, by) if isinstance(value, tuple) else value + 1
    changed = drawing.one(scene.draw(st.integers(0, drawing.size - 1)))
    return scene.between(calls, changed, "sizes", f"{key[0]} is larger on this rank")


def _other_size_of_a_list(scene: Scene) -> Broken:
    """Every tensor of a list is larger: the one that this rank keeps does not fit what it came from."""
    calls = scene.legal(ranks=2, dims=1, least=1, form=scene.row.spellings[0].form.name)
    part = next(part for part in list_parts(scene.row, "p") if part.path.name in scene.row.writes)
    one = scene.one(calls)
    for slot in [slot for slot in slots_of(one) if slot.part.path == part.path]:
        one = edited(one, slot, shape=grown(slot.spec.shape, 0))
    return scene.local(calls, one, "pairs", f"every tensor of {part.path.name} is larger along dim 0")


def _writes_uneven_list(row: Row) -> bool:
    return may_be_uneven(row) and any(part.path.name in row.writes for part in list_parts(row, "p"))


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


def _has_common_size(row: Row) -> bool:
    """Whether all ranks take part, and some size is one for all."""
    if not is_collective(row):
        return False
    named = [size for part in given_parts(row) for size in part.sizes if isinstance(size, (Name, Rest, Shares))]
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
    changed = with_arguments(one, **{column.argument: numbers})
    return scene.local(calls, changed, "splits", f"{column.argument} has {how}")


def _wrong_length(scene: Scene) -> Broken:
    row = scene.row
    part = scene.pick(
        part for part in given_parts(row) if set(part.path.index) & {"1", "p"} and _level(row, part) is not None
    )
    calls = scene.legal(dims=1, least=1)
    one = scene.pick(each for each in calls if each.arguments[part.path.name])
    more = scene.draw(st.booleans())
    level = _level(row, part)
    assert level is not None
    value = _resized(one.arguments[part.path.name], level, more)
    change = f"{part.path.name} has a tensor too {'many' if more else 'few'}"
    return scene.local(calls, with_arguments(one, **{part.path.name: value}), "lists", change)


def _level(row: Row, part: Any) -> int | None:
    """At which depth a list of the part may have a wrong length; the outer one of an `@root` part says who is root."""
    return next((k for k, i in enumerate(part.path.index) if i in "1p" and not (part.root_only and k == 0)), None)


def _resized(value: Any, level: int, more: bool) -> list[Any]:
    if level:
        return [_resized(value[0], level - 1, more), *value[1:]]
    return [*value, copies(value[-1])] if more else list(value[:-1])


def _empty_list(scene: Scene) -> Broken:
    calls = scene.legal()
    one, part = scene.pick(calls), scene.pick(list_parts(scene.row, "i"))
    value: list[Any] = [[] for _ in one.arguments[part.path.name]] if part.path.index[0] == "p" else []
    return scene.local(calls, with_arguments(one, **{part.path.name: value}), "lists", f"{part.path.name} is empty")


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
        return scene.local(calls, with_arguments(root, **{name: []}), "presence", f"{name} is empty on the root")
    other = scene.pick(one for one in calls if not one.is_root)
    value = [copies(item) for item in root.arguments[name]]
    return scene.local(calls, with_arguments(other, **{name: value}), "presence", f"{name} is given off the root")


SIZES: tuple[Breach, ...] = (
    Breach("indivisible", "divides", _divided, _indivisible),
    Breach("no dims", "dims", _dims_named, _missing_dims),
    Breach("another size", "sizes", lambda row: holds_two_alike(row) and has_size(row, Rest), _other_size),
    Breach("another size on one rank", "sizes", _has_common_size, _other_size_on_one_rank),
    Breach("another size of a list", "pairs", _writes_uneven_list, _other_size_of_a_list),
    Breach("another pair", "pairs", lambda row: is_collective(row) and may_be_uneven(row), _other_pair, form="uneven"),
    Breach("another pair of split sizes", "pairs", lambda row: bool(row.splits), _other_pair_of_splits),
    Breach("wrong split sizes", "splits", lambda row: bool(row.splits), _wrong_split),
    Breach(
        "wrong length",
        "lists",
        lambda row: any(_level(row, part) is not None for part in given_parts(row)) and not row.entry.batch,
        _wrong_length,
    ),
    Breach("empty list", "lists", lambda row: bool(list_parts(row, "i")) and not row.entry.batch, _empty_list),
    Breach(
        "longer lists on one rank",
        "lists",
        lambda row: bool(list_parts(row, "i")) and is_collective(row) and not row.entry.alike,
        _longer_list_on_one_rank,
    ),
    Breach("the root's list", "presence", lambda row: bool(list_parts(row, "p")), _list_of_the_root),
)
