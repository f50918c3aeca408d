"""The narrow waist: one rank's view of one collective, as data."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from collective_rules.errors import CallError
from collective_rules.ops import Row, lookup
from collective_rules.ops.row import Argument
from collective_rules.spec import Group, Spec, is_size

__all__ = ["Call", "call", "reduce_op_name"]


@attrs.frozen(slots=False)
class Call:
    """One rank's view of one collective. Made by `call`; everything else is a function of it and the tables.

    - `row`: the op. `group`: the group as this rank sees it.
    - `arguments`: by schema name, tensors as `Spec`s (lists as tuples), without the group. A written argument may be
      absent.
    - `source`: the line that made it, where that is known. `index`: its place among the group's collectives.
    """

    row: Row
    group: Group
    arguments: Mapping[str, Any]
    source: str = ""
    index: int | None = None

    @property
    def op(self) -> str:
        """The qualified name of the op."""
        return self.row.op

    def attribute(self, name: str) -> Any:
        """Return the argument that holds the rule's attribute `name` ("root", "reduce_op", …), None without one."""
        argument = self.row.entry.attributes.get(name)
        return None if argument is None else self.arguments.get(argument)


def call(op: Any, /, *, group: Group, **arguments: Any) -> Call:
    """Describe one rank's call of `op`, as data.

    `arguments` are the op's own schema arguments by name, without the group's. A tensor is a `torch.Tensor` (of any
    device, meta and fake too; its data are not touched), a `Spec`, or a bare shape tuple (float32). Written arguments
    may be left out; `infer` then says what they must be. `group_size` left out is the group's own, and optional
    arguments have the schema's or torch.distributed's defaults. A reduce op is a `ReduceOp` or its lower-case name.

    Raises `CallError` for a missing, surplus or mistyped argument, `UnknownOpError` for an op without a rule.

    >>> made = call("c10d::allreduce_", group=Group(size=4, rank=1), tensors=[(2, 3)])
    >>> made.arguments["tensors"], made.arguments["reduce_op"]
    ((Spec((2, 3), float32),), 'sum')
    """
    row = lookup(op)
    if not isinstance(group, Group):
        raise CallError(f"{row.op}: group={group!r}, but should be a Group such as Group(size=8, rank=3)")
    normal: dict[str, Any] = {}
    left = len(arguments)
    for name, convert, default in _door(row):
        if name in arguments:
            left -= 1
            normal[name] = convert(arguments[name])
        elif default is _GROUP_SIZE:
            normal[name] = group.size
        elif default is _REQUIRED:
            raise CallError(_missing(row, name))
        elif default is not _ABSENT:
            normal[name] = default
    if left:
        raise CallError(_surplus(row, arguments))
    return Call(row, group, normal)


_REQUIRED, _ABSENT, _GROUP_SIZE = object(), object(), object()

_Convert = Callable[[Any], Any]


@functools.cache
def _door(row: Row) -> tuple[tuple[str, _Convert, Any], ...]:
    """How each argument of `row` comes in: its name, what converts it, and its default."""
    off_root = {part.path.name for part in row.spellings[0].statement.parts if part.root_only}
    door = []
    for argument in row.arguments:
        if argument.is_group:
            continue
        name = argument.name
        default: Any = _REQUIRED
        if name == row.group_size:
            default = _GROUP_SIZE
        elif argument.has_default:
            default = argument.default
        elif argument.kind == "Tensor" and name in row.writes and name not in row.reads:
            default = _ABSENT
        elif argument.depth and name in off_root:
            default = ()
        elif not row.spellings[0].statement.parts and argument.kind == "Tensor":  # a barrier's tensor says nothing
            default = _ABSENT
        door.append((name, _converter(row, argument), default))
    return tuple(door)


def _converter(row: Row, argument: Argument) -> _Convert:
    what = f"{row.op}: {argument.name}"
    if argument.name == row.reduce_op:
        return functools.partial(_reduce_op, what)
    convert = functools.partial(_ONE.get(argument.kind, _anything), what)
    if argument.gaps:
        convert = functools.partial(_optional, convert)
    items = "tensors" if argument.kind == "Tensor" else "values"
    for depth in range(argument.depth):
        convert = functools.partial(_list, what, items, depth, convert)
    return functools.partial(_optional, convert) if argument.optional else convert


def _optional(convert: _Convert, value: Any) -> Any:
    return None if value is None else convert(value)


def _tensor(what: str, value: Any) -> Any:
    kind = type(value)
    if kind is Spec:
        return value
    if kind is tuple:
        return Spec(value) if all(map(is_size, value)) else _refuse(what, value, "a tensor, a Spec or a shape tuple")
    if isinstance(value, torch.Tensor):
        return Spec.of(value)
    if isinstance(value, torch.Size):
        return Spec(tuple(value))
    return _refuse(what, value, "a tensor, a Spec or a shape tuple such as (16, 4)")


def _int(what: str, value: Any) -> Any:
    return value if is_size(value) or isinstance(value, torch.dtype) else _refuse(what, value, "an int")


def _bool(what: str, value: Any) -> Any:
    return value if isinstance(value, bool) else _refuse(what, value, "True or False")


def _str(what: str, value: Any) -> Any:
    return value if isinstance(value, str) else _refuse(what, value, "a string")


def _anything(what: str, value: Any) -> Any:
    return value


_ONE: Mapping[str, Callable[[str, Any], Any]] = {
    "Tensor": _tensor,
    "int": _int,
    "bool": _bool,
    "str": _str,
}


def _list(what: str, items: str, depth: int, convert: _Convert, value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return tuple(convert(item) for item in value)
    return tuple(_refuse(what, value, f"a list of {'lists of ' * depth}{items}"))


def reduce_op_name(value: Any) -> str | None:
    """Return the lower-case name of a reduce op: a name, a `ReduceOp` or its boxed form; None for anything else."""
    if isinstance(value, str):
        return value
    name = str(getattr(value, "name", "") or value)
    if not name.isidentifier():
        with_type = getattr(value, "op", None) or _unboxed(value)
        name = str(with_type).rpartition(".")[2]
    return name.lower() if name.isidentifier() else None


def _unboxed(value: Any) -> Any:
    """The type of a boxed ReduceOp, as the dispatcher passes it."""
    try:
        return torch.distributed.ReduceOp.unbox(value).op  # type: ignore[attr-defined]  # absent from torch's stubs
    except (AttributeError, RuntimeError, TypeError):
        return None


def _reduce_op(what: str, value: Any) -> str:
    name = reduce_op_name(value)
    return _refuse(what, value, "a ReduceOp or its lower-case name, 'sum'") if name is None else name


def _refuse(what: str, value: Any, wanted: str) -> Any:
    shown = repr(value)
    raise CallError(f"{what}={shown if len(shown) <= 120 else shown[:117] + '...'}, but should be {wanted}")


def _missing(row: Row, name: str) -> str:
    return f"{row.op}: {name} is missing; the op takes {', '.join(argument for argument, _, _ in _door(row))}"


def _surplus(row: Row, arguments: Mapping[str, Any]) -> str:
    known = [name for name, _, _ in _door(row)]
    surplus = [name for name in arguments if name not in known]
    name = surplus[0]
    if name in row.by_name:
        return f"{row.op}: {name} is the group, which group= says; leave it out"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; the op takes {', '.join(known)}"
    return f"{row.op} has no argument {name!r}{hint}"
