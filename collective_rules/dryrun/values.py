"""Tensors without memory: a fake tensor has a shape, a dtype and strides, and no values.

Small integer tensors are real, because programs steer by them: seeds, indices, counts and splits. What reads a value
that nothing knows gets an `UnknownValueError` that names the line of the program.
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from collective_rules.dryrun.devices import on_cpu
from collective_rules.errors import CollectiveRulesError
from collective_rules.mode.places import is_program, source_line

__all__ = ["FakeValues", "UnknownValueError", "line_of", "unknown"]

_SMALL = 1024
"""Integer tensors of at most so many elements are real."""

_aten = torch.ops.aten
_FACTORIES = frozenset(
    {
        _aten.empty.memory_format,
        _aten.zeros.default,
        _aten.ones.default,
        _aten.full.default,
        _aten.arange.default,
        _aten.arange.start,
        _aten.arange.start_step,
        _aten.randint.default,
        _aten.randint.low,
        _aten.randint.generator,
        _aten.randint.low_generator,
        _aten.randperm.default,
        _aten.randperm.generator,
        _aten.scalar_tensor.default,
    }
)
_INTEGRAL_BY_DEFAULT = frozenset(
    op for op in _FACTORIES if op.name().split(".")[0] in {"aten::arange", "aten::randint", "aten::randperm"}
)
_FRESH = frozenset({_aten.lift_fresh.default, _aten.lift_fresh_copy.default, _aten.lift.default})


class UnknownValueError(CollectiveRulesError):
    """The program reads a value that a dry run does not have; `where` is its line, such as "train.py:88"."""

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where


class FakeValues(FakeTensorMode):
    """A `FakeTensorMode` that keeps small integers real; `item` is what an unknown number reads as, None: an error."""

    def __init__(self, *, item: float | None = None) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._item = item

    def __torch_dispatch__(  # type: ignore[override]
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func` without values, or for real where it only concerns small integers."""
        named: dict[str, Any] = dict(kwargs) if kwargs else {}
        if named.get("device") is not None:
            named["device"] = on_cpu(named["device"])
        if _is_control(func, args, named):
            return func(*args, **named)
        try:
            return super().__torch_dispatch__(func, types, args, named)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            if self._item is not None and func is _aten._local_scalar_dense.default:
                return _number(args[0].dtype, self._item)
            if self._item is not None and func is _aten.equal.default:
                return True
            raise unknown(func, by_value=isinstance(error, DataDependentOutputException)) from None


def unknown(what: object, *, by_value: bool = True) -> UnknownValueError:
    """Return the error for a read of a value by `what`, at the line of the program that now runs."""
    where = source_line() or "an unknown line"
    name = str(what).removesuffix(".default")
    if name == "aten._local_scalar_dense":
        name = ".item(), float(), bool(), tolist() or the like"
    if by_value:
        advice = (
            "leave it out of the dry run, or say what unknown numbers shall read as: "
            "item=0.0 in Python, --item 0.0 on the command line"
        )
    else:
        advice = "its result's shape depends on the values: use an op whose shape does not, or leave it out"
    return UnknownValueError(f"{where} reads a tensor's values ({name}), and a dry run has none; {advice}", where)


def line_of(trace: types.TracebackType | None) -> str:
    """Return the innermost line in a traceback that is the program's own: "train.py:88", or nothing."""
    places = [(found.tb_frame.f_code.co_filename, found.tb_lineno) for found in _walk(trace)]
    chosen = [place for place in places if is_program(place[0])]
    return f"{chosen[-1][0].removeprefix(os.getcwd() + os.sep)}:{chosen[-1][1]}" if chosen else ""


def _walk(trace: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _is_control(func: Callable[..., Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    if func in _FACTORIES:
        return _is_small_factory(func, args, named)
    tensors = tuple(_tensors(args)) + tuple(_tensors(tuple(named.values())))
    if func in _FRESH:
        return all(_is_small(tensor) for tensor in tensors)
    return bool(tensors) and all(_is_small(tensor) for tensor in tensors)


def _is_small(tensor: torch.Tensor) -> bool:
    return type(tensor) is torch.Tensor and _is_integral(tensor.dtype) and tensor.is_cpu and tensor.numel() <= _SMALL


def _is_small_factory(func: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
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
    return count <= _SMALL


def _is_integral(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _number(dtype: torch.dtype, item: float) -> bool | int | float | complex:
    if dtype == torch.bool:
        return bool(item)
    if dtype.is_complex:
        return complex(item)
    return float(item) if dtype.is_floating_point else int(item)
