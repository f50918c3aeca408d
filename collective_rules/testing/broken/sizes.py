"""Broken sizes: of tensors, of lists, of splits."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from collective_rules.binding.bound import Slot
from collective_rules.notation import Name, Rest, Shares, Splits
from collective_rules.ops import Row
from collective_rules.testing.broken.edits import edited, grown, slots_of, with_arguments
from collective_rules.testing.broken.scene import Breach, Broken, Scene
from collective_rules.testing.broken.traits import (
    given_parts,
    has_size,
    holds_two_alike,
    is_collective,
    list_parts,
    may_be_uneven,
)
from collective_rules.testing.drawing import copied

_NAMED = (Name, Shares, Splits)


def _first_form(row: Row) -> str:
    return row.spellings[0].form.name


def _indivisible(scene: Scene) -> Broken:
    row = scene.row
    splits = False if row.entry.splits else None
    calls = scene.legal(min_ranks=2, min_dims=1, min_size=1, form=_first_form(row), splits=splits)
    if row.rule.derived:
        one, slot = scene.slot(calls)
        dim = one.attribute("shard_dim")
    else:
        one, slot = scene.slot(calls, lambda slot: _dim_of(slot, Shares, Splits) is not None)
        dim = _dim_of(slot, Shares, Splits)
    by = scene.draw(st.integers(1, one.group.size - 1))
    changed = edited(one, slot, shape=grown(slot.spec.shape, dim, by))
    return scene.local(calls, changed, "divides", f"{slot.label} has {by} too many along dim {dim}")


def _dim_of(slot: Slot, *kinds: type) -> Any:
    """Return the first dim whose size is of one of the kinds, None if there is none."""
    sizes = slot.part.sizes
    place = next((place for place, size in enumerate(sizes) if isinstance(size, kinds)), None)
    behind_rest = any(isinstance(size, Rest) for size in sizes[:place])  # then only the dims behind it are counted
    return place if place is None or not behind_rest else place + len(slot.spec.shape) - len(sizes)


def _divided(row: Row) -> bool:
    even_splits = any(row.entry.splits) and not row.fresh
    return has_size(row, Shares) or even_splits or "shard_dim" in row.entry.attributes


def _missing_dims(scene: Scene) -> Broken:
    calls = scene.legal()
    one, slot = scene.slot(calls, lambda slot: _dim_of(slot, *_NAMED) is not None)
    return scene.local(calls, edited(one, slot, shape=()), "dims", f"{slot.label} has no dims")


def _dims_named(row: Row) -> bool:
    """Return whether every spelling names a dim of some argument."""
    return all(
        not spelling.form.flat
        and any(isinstance(size, _NAMED) for part in spelling.statement.reads for size in part.sizes)
        for spelling in row.spellings
    )


def _other_size(scene: Scene) -> Broken:
    row, tensors = scene.row, 2 if scene.row.entry.one_tensor else 1
    wish = {"single_rank": may_be_uneven(row), "form": _first_form(row), "min_tensors": tensors}
    calls = scene.legal(min_dims=1, min_size=1, **wish)
    several = (each for each in calls if len(slots_of(each)) > 1)
    one, slot = scene.slot(several, lambda slot: _dim_of(slot, Rest) is not None)
    dim = _dim_of(slot, Rest)
    changed = edited(one, slot, shape=grown(slot.spec.shape, dim))
    return scene.local(calls, changed, "sizes", f"{slot.label} is larger along dim {dim}")


def _other_size_on_one_rank(scene: Scene) -> Broken:
    drawing, calls = scene.drawing(min_ranks=2, min_dims=1, min_size=1, form=_first_form(scene.row))
    sizes, by = drawing.values.sizes, drawing.size if scene.row.rule.derived else 1
    key = scene.pick(key for key in sizes if not key.ranks)
    value = sizes[key]
    sizes[key] = grown(value, len(value) - 1, by) if isinstance(value, tuple) else value + 1
    return scene.on_one_rank(drawing, calls, "sizes", f"{key.name} is larger on this rank")


def _has_common_size(row: Row) -> bool:
    """Return whether all ranks take part, and agree on some size."""
    named = [size for part in given_parts(row) for size in part.sizes if isinstance(size, (Name, Rest, Shares))]
    return is_collective(row) and any(isinstance(size, Shares) or not size.index for size in named)


def _other_size_of_a_list(scene: Scene) -> Broken:
    """Make every tensor of a list larger: the one that this rank keeps does not fit the tensor that it came from."""
    calls = scene.legal(min_ranks=2, min_dims=1, min_size=1, form=_first_form(scene.row))
    part = next(part for part in list_parts(scene.row, "p") if part.path.name in scene.row.writes)
    one = scene.one(calls)
    for slot in [slot for slot in slots_of(one) if slot.part.path == part.path]:
        one = edited(one, slot, shape=grown(slot.spec.shape, 0))
    return scene.local(calls, one, "pairs", f"every tensor of {part.path.name} is larger along dim 0")


def _writes_uneven_list(row: Row) -> bool:
    return may_be_uneven(row) and any(part.path.name in row.writes for part in list_parts(row, "p"))


def _other_pair(scene: Scene) -> Broken:
    """Change a size of two ranks for one of them."""
    drawing, calls = scene.drawing(min_ranks=2, min_dims=1, min_size=1, form="uneven")
    i, j = scene.draw(st.permutations(range(drawing.size)))[:2]
    key = next(key for key in drawing.values.sizes if key.name == "s" and key.ranks in ((i, j), (j,)))
    drawing.values.sizes[key] += 1
    return scene.on_one_rank(drawing, calls, "pairs", f"what rank {i} sends to rank {j} is larger", (i, j))


def _other_pair_of_splits(scene: Scene) -> Broken:
    drawing, calls = scene.drawing(min_ranks=2, min_dims=1, min_size=1)
    i, j = scene.draw(st.permutations(range(drawing.size)))[:2]
    matrix = drawing.values.matrix
    drawing.values.matrix = (*matrix[:i], grown(matrix[i], j), *matrix[i + 1 :])
    return scene.on_one_rank(drawing, calls, "pairs", f"rank {i} sends one row more to rank {j}", (i, j))


def _wrong_split(scene: Scene) -> Broken:
    calls = scene.legal(min_ranks=2)
    one = scene.pick(calls)
    part, column = scene.pick(each for each in scene.row.entry.splits.items() if each[1].argument)
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
    part = scene.pick(part for part in given_parts(scene.row) if _level(part) is not None)
    calls = scene.legal(min_dims=1, min_size=1)
    one = scene.pick(each for each in calls if each.arguments[part.path.name])
    more = scene.draw(st.booleans())
    value = _resized(one.arguments[part.path.name], _level(part) or 0, more)
    change = f"{part.path.name} has a tensor too {'many' if more else 'few'}"
    return scene.local(calls, with_arguments(one, **{part.path.name: value}), "lists", change)


def _level(part: Any) -> int | None:
    """Return the depth at which a list of the part can have a wrong length; an `@root` part's outer list says more."""
    return next((k for k, i in enumerate(part.path.index) if i in "1p" and not (part.root_only and k == 0)), None)


def _resized(value: Any, level: int, more: bool) -> list[Any]:
    if level:
        return [_resized(value[0], level - 1, more), *value[1:]]
    return [*value, copied(value[-1])] if more else list(value[:-1])


def _empty_list(scene: Scene) -> Broken:
    calls = scene.legal()
    one, part = scene.pick(calls), scene.pick(list_parts(scene.row, "i"))
    value: list[Any] = [[] for _ in one.arguments[part.path.name]] if part.path.index[0] == "p" else []
    return scene.local(calls, with_arguments(one, **{part.path.name: value}), "lists", f"{part.path.name} is empty")


def _longer_list_on_one_rank(scene: Scene) -> Broken:
    dtypes = tuple(each for each in scene.dtypes() if each[0] != "avg")
    drawing, calls = scene.drawing(min_ranks=2, dtypes=dtypes, min_dims=1, min_size=1)
    drawing.values.count += 1
    return scene.on_one_rank(drawing, calls, "lists", "this rank's lists hold one tensor more")


def _list_of_the_root(scene: Scene) -> Broken:
    calls = scene.legal(min_ranks=2)
    name = scene.pick(scene.row.root_only)
    root = next(one for one in calls if one.is_root)
    if scene.draw(st.booleans()):
        return scene.local(calls, with_arguments(root, **{name: []}), "presence", f"{name} is empty on the root")
    other = scene.pick(one for one in calls if not one.is_root)
    changed = with_arguments(other, **{name: copied(root.arguments[name])})
    return scene.local(calls, changed, "presence", f"{name} is given off the root")


def _lists_of_fixed_length(row: Row) -> bool:
    return any(_level(part) is not None for part in given_parts(row)) and not row.entry.batch


def _free_lists(row: Row) -> bool:
    return bool(list_parts(row, "i")) and not row.entry.batch


def _agreed_lists(row: Row) -> bool:
    return bool(list_parts(row, "i")) and is_collective(row) and not row.entry.one_tensor


SIZES: tuple[Breach, ...] = (
    Breach("indivisible", "divides", _divided, _indivisible),
    Breach("no dims", "dims", _dims_named, _missing_dims),
    Breach("another size", "sizes", lambda row: holds_two_alike(row) and has_size(row, Rest), _other_size),
    Breach("another size on one rank", "sizes", _has_common_size, _other_size_on_one_rank),
    Breach("another size of a list", "pairs", _writes_uneven_list, _other_size_of_a_list),
    Breach("another pair", "pairs", lambda row: is_collective(row) and may_be_uneven(row), _other_pair, form="uneven"),
    Breach("another pair of split sizes", "pairs", lambda row: bool(row.splits), _other_pair_of_splits),
    Breach("wrong split sizes", "splits", lambda row: bool(row.splits), _wrong_split),
    Breach("wrong length", "lists", _lists_of_fixed_length, _wrong_length),
    Breach("empty list", "lists", _free_lists, _empty_list),
    Breach("longer lists on one rank", "lists", _agreed_lists, _longer_list_on_one_rank),
    Breach("the root's list", "presence", lambda row: bool(list_parts(row, "p")), _list_of_the_root),
)
