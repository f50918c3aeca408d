"""Tensors without memory: a fake tensor has a shape, a dtype and strides, and no values.

Small integer tensors are real, because programs need their values: seeds, indices, counts and splits. A program that
reads an unknown value gets an `UnknownValueError` that names its line.
"""

from __future__ import annotations

import math
import operator
import threading
import traceback
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from collective_rules.dryrun.devices import on_cpu
from collective_rules.dryrun.host_tensors import HostTensors
from collective_rules.errors import CollectiveRulesError
from collective_rules.mode.call_sites import is_program, place_text, source_line
from collective_rules.mode.simulated import is_unknown, make_unknown
from collective_rules.nested import leaves

_SMALL = 1024
"""The number of elements up to which a tensor of integers is real; `_EACH` for each rank, in a large world."""

_EACH = 16

_READ_AS = "_collective_rules_read_as"
"""The attribute of a fake tensor with the number that its elements read as, where it differs from `item`."""

_aten = torch.ops.aten
_FACTORY_NAMES = (
    "empty.memory_format empty_strided.default zeros.default ones.default full.default arange.default arange.start "
    "arange.start_step randint.default randint.low randint.generator randint.low_generator randperm.default "
    "randperm.generator scalar_tensor.default"
)
_FACTORIES = frozenset(operator.attrgetter(name)(_aten) for name in _FACTORY_NAMES.split())
_INTEGRAL_BY_DEFAULT = frozenset(
    op for op in _FACTORIES if op.name().split(".")[0] in {"aten::arange", "aten::randint", "aten::randperm"}
)
_FRESH = frozenset({_aten.lift_fresh.default, _aten.lift_fresh_copy.default, _aten.lift.default})


class UnknownValueError(CollectiveRulesError):
    """The program reads a value that a dry run does not have; `where` is the line, such as "train.py:88"."""

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where


class _Local(threading.local):
    """The number of ops that a thread is within; tensors that an op itself makes have no values."""

    def __init__(self) -> None:
        self.inside = 0


class FakeValues(FakeTensorMode):
    """A `FakeTensorMode` that keeps small integers real; unknown numbers read as `item`, or raise an error for None.

    A truth value reads as if all unknown numbers were `item`: none is nan, all are finite. What is made of `host`
    tensors alone becomes one of them.
    """

    def __init__(self, *, item: float | None = None, world_size: int = 1, host: HostTensors | None = None) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._host = HostTensors() if host is None else host
        self._item = item
        self._small = max(_SMALL, _EACH * world_size)
        self._local = _Local()

    def __torch_dispatch__(  # type: ignore[override]
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func` without values, or for real where all tensors are small ones of integers."""
        result = self._run(func, types, args, kwargs)
        if self._host:
            self._host.follow((*args, *(kwargs or {}).values()), result)
        return result

    def _run(self, func: Any, types: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> Any:
        named: dict[str, Any] = dict(kwargs) if kwargs else {}
        if named.get("device") is not None:
            named["device"] = on_cpu(named["device"])
        local = self._local
        if not (local.inside and func in _FACTORIES) and _is_control(func, args, named, self._small):
            return func(*args, **named)
        if func._schema.is_mutable:
            _make_written_unknown(func, args, named)
        local.inside += 1
        try:
            result = super().__torch_dispatch__(func, types, args, named)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            by_value = isinstance(error, DataDependentOutputException)
            if self._item is not None and by_value:
                return self._of_items(func, args, named)
            raise unknown(func, by_value=by_value) from None
        finally:
            local.inside -= 1
        if self._item is not None and isinstance(result, FakeTensor):
            self._set_read_as(result, func, args, named)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeValues:
        """Return the mode itself: a copied tensor belongs to the same mode."""
        return self

    def read(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return the number that each element of `tensor` reads as, without dims; None where a read is an error."""
        if self._item is None:
            return None
        with _disable_current_modes():
            return self._number(tensor)

    def _number(self, tensor: torch.Tensor) -> torch.Tensor:
        value = getattr(tensor, _READ_AS, None)
        if value is not None:
            return torch.as_tensor(value)
        if not isinstance(tensor, FakeTensor) and tensor.numel() == 1:
            return tensor.detach().reshape(()).clone()
        dtype = tensor.dtype
        wide = torch.complex128 if dtype.is_complex else torch.float64 if dtype.is_floating_point else dtype
        item: Any = self._item
        return torch.full((), item if dtype is not torch.bool else bool(item), dtype=wide)

    def _of_items(self, func: Callable[..., Any], args: Any, named: Any) -> Any:
        """Return the result of `func` for the numbers that its tensors read as."""
        with _disable_current_modes():
            numbers = tree_map_only(torch.Tensor, self._number, (args, named))
            return func(*numbers[0], **numbers[1])

    def _set_read_as(self, result: FakeTensor, func: Any, args: Any, named: Any) -> None:
        """Set what a truth value, or a result of truth values, reads as if all unknown numbers are the same."""
        tensors = tuple(leaves((*args, *named.values()), torch.Tensor))
        if not tensors or (
            result.dtype is not torch.bool and any(tensor.dtype is not torch.bool for tensor in tensors)
        ):
            return
        values = {getattr(tensor, _READ_AS, None) for tensor in tensors}
        if torch.Tag.pointwise in func.tags:
            setattr(result, _READ_AS, self._of_items(func, args, named).item())
        elif len(values) == 1:
            setattr(result, _READ_AS, values.pop())


def unknown(what: object, *, by_value: bool = True) -> UnknownValueError:
    """Return the error for a read of a value by `what`, an op or words, at the current line of the program."""
    where = source_line() or "an unknown line"
    name = str(what).removesuffix(".default")
    if name == "aten._local_scalar_dense":
        name = ".item(), float(), bool(), tolist() or the like"
    if by_value:
        advice = (
            "leave the line out of the dry run, or choose a number for unknown values: "
            "item=0.0 in Python, --item 0.0 on the command line"
        )
    else:
        advice = "the shape of the result depends on the values: use an op of fixed shape, or leave the line out"
    return UnknownValueError(f"{where} reads a tensor's values ({name}), and a dry run has none; {advice}", where)


def line_of(trace: types.TracebackType | None) -> str:
    """Return the innermost line of the program in a traceback, such as "train.py:88", or ""."""
    places = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(trace)]
    chosen = [place for place in places if is_program(place[0])]
    return place_text(*chosen[-1]) if chosen else ""


def _is_control(func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any], small: int) -> bool:
    """Return whether all tensors of an op are integers, with at most `small` elements."""
    if func in _FACTORIES:
        return _is_small_factory(func, args, named, small)
    tensors = tuple(leaves((*args, *named.values()), torch.Tensor))
    return (bool(tensors) or func in _FRESH) and all(_is_small(tensor, small) for tensor in tensors)


def _make_written_unknown(func: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Mark the real tensors that an op writes as unknown."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else named.get(argument.name)
            for tensor in leaves((value,), torch.Tensor):
                if type(tensor) is torch.Tensor:
                    make_unknown(tensor)


def _is_small(tensor: torch.Tensor, small: int) -> bool:
    return (
        type(tensor) is torch.Tensor
        and not is_unknown(tensor)
        and _is_integral(tensor.dtype)
        and tensor.is_cpu
        and tensor.numel() <= small
    )


def _is_small_factory(func: Any, args: tuple[Any, ...], named: Mapping[str, Any], small: int) -> bool:
    dtype = named.get("dtype")
    if dtype is None and func not in _INTEGRAL_BY_DEFAULT:
        return False
    device = named.get("device")
    if (dtype is not None and not _is_integral(dtype)) or (device is not None and torch.device(device).type != "cpu"):
        return False
    bounds = [number for number in args if isinstance(number, (int, float))]
    if any(isinstance(number, float) for number in bounds) and dtype is None:
        return False
    sizes = next((size for size in args if isinstance(size, (list, tuple))), None)
    count = math.prod(sizes) if sizes is not None else max((abs(number) for number in bounds), default=1)
    return count <= small


def _is_integral(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)
