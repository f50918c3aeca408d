"""Changes one thing in a call, or in a group of calls. A changed call need not be legal."""

from __future__ import annotations

from typing import Any

from collective_rules.binding.binder import bind
from collective_rules.binding.bound import Slot
from collective_rules.call import Call, call
from collective_rules.spec import Spec
from collective_rules.testing.drawing import Calls


def slots_of(one: Call) -> list[Slot]:
    """Return the tensors of a call that its rule names."""
    return bind(one).slots


def replaced(calls: Calls, changed: Call) -> Calls:
    """Return the group with one rank's call replaced."""
    return tuple(changed if one.group.rank == changed.group.rank else one for one in calls)


def with_arguments(one: Call, **arguments: Any) -> Call:
    """Return the call with other arguments."""
    return call(one.op, group=one.group, **{**one.arguments, **arguments})


def edited(one: Call, *slots: Slot, **changes: Any) -> Call:
    """Return the call with other tensors in `slots`: `changes` are of shape, dtype, stride, layout, view, memory."""
    for slot in slots:
        spec = Spec(**{"shape": slot.spec.shape, "dtype": slot.spec.dtype, "device": slot.spec.device, **changes})
        path = [{"1": 0, "i": slot.element, "p": slot.rank}[index] for index in slot.part.path.index]
        name = slot.part.path.name
        one = with_arguments(one, **{name: _put(one.arguments[name], path, spec)})
    return one


def _put(value: Any, path: list[Any], spec: Spec) -> Any:
    if not path:
        return spec
    return [_put(item, path[1:], spec) if place == path[0] else item for place, item in enumerate(value)]


def grown(shape: tuple[int, ...], dim: int, by: int = 1) -> tuple[int, ...]:
    """Return the shape, larger along one dim."""
    return (*shape[:dim], shape[dim] + by, *shape[dim + 1 :])
