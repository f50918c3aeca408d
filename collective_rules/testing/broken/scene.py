"""Tools to break a group of calls: a scene that draws, functions that edit a call, and questions about an op."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from hypothesis import strategies as st

from collective_rules.binding.binder import bind
from collective_rules.binding.bound import Slot
from collective_rules.call import Call, call
from collective_rules.ops import Row
from collective_rules.spec import Spec
from collective_rules.testing.drawing import Calls, Drawing, Wish, draw_calls, draw_size

__all__ = [
    "Breach",
    "Broken",
    "Scene",
    "copies",
    "edited",
    "for_two_alike",
    "given_parts",
    "grown",
    "has_attribute",
    "has_layout",
    "has_size",
    "holds_two_alike",
    "is_collective",
    "list_parts",
    "mattering",
    "may_be_uneven",
    "replaced",
    "slots_of",
    "with_arguments",
]


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
    """Draws legal calls of an op, within the limits of a backend, in which something is to be broken."""

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
        """Return the group with one call replaced, in which `check` must find the constraint of `kind`."""
        id_ = changed.row.rule.id_of(kind)
        return Broken(replaced(calls, changed), id_, changed.group.rank, True, change)

    def between(self, calls: Calls, changed: Call, kind: str, change: str) -> Broken:
        """Return the group with one call replaced, in which `agree` must find the constraint of `kind`."""
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
    """Return the tensors of a call that its rule names."""
    return bind(one).slots


def edited(one: Call, slot: Slot, **changes: Any) -> Call:
    """Return the call with another tensor in a slot: `changes` are of shape, dtype, stride, layout, view, memory."""
    spec = Spec(**{"shape": slot.spec.shape, "dtype": slot.spec.dtype, **changes})
    path = [{"1": 0, "i": slot.element, "p": slot.rank}[index] for index in slot.part.path.index]
    name = slot.part.path.name
    return with_arguments(one, **{name: _put(one.arguments[name], path, spec)})


def with_arguments(one: Call, **arguments: Any) -> Call:
    """Return the call with other arguments."""
    return call(one.op, group=one.group, **{**one.arguments, **arguments})


def _put(value: Any, path: list[Any], spec: Spec) -> Any:
    if not path:
        return spec
    return [_put(item, path[1:], spec) if place == path[0] else item for place, item in enumerate(value)]


def grown(shape: tuple[int, ...], dim: int, by: int = 1) -> tuple[int, ...]:
    """Return the shape, larger along one dim."""
    return (*shape[:dim], shape[dim] + by, *shape[dim + 1 :])


# -- what an op is


def given_parts(row: Row) -> list[Any]:
    """Return the parts that are arguments, each path once."""
    parts: dict[str, Any] = {}
    for part in row.spellings[0].statement.parts:
        if part.path.name not in row.fresh:
            parts.setdefault(str(part.path), part)
    return list(parts.values())


def has_size(row: Row, kind: type) -> bool:
    """Return whether an argument has a size of this kind."""
    return any(isinstance(size, kind) for part in given_parts(row) for size in part.sizes)


def is_collective(row: Row) -> bool:
    """Return whether all ranks take part."""
    return not (row.rule.point_to_point or row.rule.one_sided)


def _pairwise(row: Row) -> bool:
    return row.rule.point_to_point


def holds_two_alike(row: Row) -> bool:
    """Return whether a call holds two tensors that must agree."""
    parts = given_parts(row)
    return is_collective(row) and (row.entry.alike or len(parts) > 1 or any("p" in part.path.index for part in parts))


def for_two_alike(row: Row) -> dict[str, Any]:
    """Return the wish for a call that holds two tensors that must agree."""
    return {"count": 2} if row.entry.alike else {}


def may_be_uneven(row: Row) -> bool:
    """Return whether the op takes lists of uneven tensors."""
    return len(row.spellings) > 1 and "pairs" in row.rule.constraints.values() and not row.entry.splits


def has_attribute(*attributes: str) -> Callable[[Row], bool]:
    """Return a function that tells whether an op has one of the attributes."""
    return lambda row: any(attribute in row.entry.attributes for attribute in attributes)


def list_parts(row: Row, index: str) -> list[Any]:
    """Return the arguments that are lists indexed by `index`."""
    return [part for part in given_parts(row) if index in part.path.index]


def has_layout(row: Row, *layouts: str) -> bool:
    """Return whether an argument needs one of the layouts."""
    return any(row.layout_of(part.path.name) in layouts for part in given_parts(row))


def mattering(row: Row) -> dict[str, Any]:
    """Return the wish for a group in which layouts matter."""
    return {"ranks": row.entry.layouts_from}


def copies(value: Any) -> Any:
    """Return equal tensors elsewhere in memory, contiguous."""
    return [copies(item) for item in value] if isinstance(value, tuple) else Spec(value.shape, value.dtype)
