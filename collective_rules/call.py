"""One rank's call of one collective, as data: all that the rest of the library computes from."""

from __future__ import annotations

import difflib
import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import torch

from collective_rules.errors import CallError
from collective_rules.ops import Row, lookup
from collective_rules.ops.op import NONE
from collective_rules.ops.row import Argument
from collective_rules.spec import Group, Spec, is_size


class _Unknown(enum.Enum):
    UNKNOWN = "unknown"

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "unknown"


UNKNOWN: Final = _Unknown.UNKNOWN
"""The value of an argument that a record leaves out; of a tensor, a `Spec` says what is not known."""


@attrs.frozen(slots=False, repr=False)
class Call:
    """One rank's call of one collective, made by `call`.

    - `row`: the op. `group`: the group as this rank sees it.
    - `arguments`: by schema name, tensors as `Spec`s (lists as tuples), without the group. A written argument may be
      absent. An argument that is not known is `UNKNOWN`; a tensor has None for an unknown shape or dtype.
    - `source`: the line that made the call, if known. `index`: its place among the group's collectives.
    - `blocking`: whether this rank goes no further until the call is done; None if only the op and its arguments say.
    """

    row: Row
    group: Group
    arguments: Mapping[str, Any]
    source: str = ""
    index: int | None = None
    blocking: bool | None = None

    @property
    def op(self) -> str:
        """The qualified name of the op."""
        return self.row.op

    def __repr__(self) -> str:
        arguments = "".join(f", {name}={value!r}" for name, value in self.arguments.items())
        return f"<{self.op} on rank {self.group.rank} of {self.group.size}{arguments}>"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the same in hypothesis and IPython, which would print the whole row."""
        printer.text(repr(self))

    @property
    def is_root(self) -> bool:
        """Whether this rank is a root; if no root is known, whether it has the list that only a root passes."""
        root, roots = self.attribute("root"), self.attribute("roots")
        if roots is not None:
            return self.group.rank in roots
        if root is None and self.row.root_only:
            lists = [name for name in self.row.root_only if name not in self.row.in_place]
            return any(self.arguments.get(name) for name in lists if self.row.by_name[name].depth)
        return bool(self.group.rank == root)

    def attribute(self, name: str) -> Any:
        """Return the argument of the rule's attribute `name` ("root", "reduce_op", …); None if absent or unknown."""
        value = self.arguments.get(self.row.entry.attributes.get(name, ""))
        return None if value is UNKNOWN else value


def on_device(one: Call, device: str) -> Call:
    """Return the call with all its tensors on a device of this type; "meta" where it is not known."""

    def moved(value: Any) -> Any:
        if isinstance(value, tuple) and any(isinstance(item, (Spec, tuple)) for item in value):
            return tuple(map(moved, value))
        if not isinstance(value, Spec):
            return value
        shape, dtype, stride = value.shape, value.dtype, value._stride
        return Spec(shape, dtype, stride, device, layout=value.layout, view=value.view, memory=value.memory)

    return attrs.evolve(one, arguments={name: moved(value) for name, value in one.arguments.items()})


def must_be_call(value: Any) -> Call:
    """Return `value`; raise `CallError` if it is no `Call`."""
    if isinstance(value, Call):
        return value
    raise CallError(f"{value!r} is no Call: describe it first, with call(op, group=..., ...)")


def call(op: Any, /, *, group: Group, **arguments: Any) -> Call:
    """Return one rank's call of `op`, as data.

    `arguments` are the op's own schema arguments by name, without the group's. A tensor is a `torch.Tensor` (of any
    device, meta and fake too; its data are not read), a `Spec`, or a bare shape tuple (float32). Written arguments may
    be left out; `infer` returns what they must be. An argument that a record leaves out is `UNKNOWN`, or a `Spec` of an
    unknown shape. `group_size` is by default the group's, and optional arguments have the schema's or
    torch.distributed's defaults. A reduce op is a `ReduceOp` or its lower-case name.

    Raises `CallError` for a missing, surplus or mistyped argument, `UnknownOpError` for an op without a rule.

    >>> made = call("c10d::allreduce_", group=Group(size=4, rank=1), tensors=[(2, 3)])
    >>> made.arguments["tensors"], made.arguments["reduce_op"]
    ((Spec((2, 3), float32),), 'sum')
    """
    row = lookup(op)
    if not isinstance(group, Group):
        raise CallError(f"{row.op}: group={group!r}, but should be a Group such as Group(size=8, rank=3)")
    schema = _call_schema(row)
    normal = schema.defaults.copy()
    if schema.group_size:
        normal[schema.group_size] = group.size
    for name, value in arguments.items():
        convert = schema.converters.get(name)
        if convert is None:
            raise CallError(_surplus(row, name))
        normal[name] = UNKNOWN if value is UNKNOWN and name not in schema.known else convert(value)
    if not schema.required <= arguments.keys():
        raise CallError(_missing(row, arguments))
    return Call(row, group, normal)


_Convert = Callable[[Any], Any]


@attrs.frozen
class _CallSchema:
    """The arguments that calls of one op take: their converters, the required ones, and the defaults of the others.

    `known`: the arguments that cannot be `UNKNOWN`, because without them nothing could be said of the call.
    """

    converters: dict[str, _Convert]
    required: frozenset[str]
    known: frozenset[str]
    defaults: dict[str, Any]
    group_size: str


@functools.cache
def _call_schema(row: Row) -> _CallSchema:
    statement = row.spellings[0].statement
    off_root = {part.path.name for part in statement.reads if part.root_only}
    even = {split.argument for split in row.entry.splits.values() if split.empty == NONE}
    converters, required = {}, set()
    defaults: dict[str, Any] = {}
    for argument in row.arguments:
        name = argument.name
        if argument.is_group:
            continue
        converters[name] = _converter(row, argument)
        if name == row.group_size:
            continue
        if name in even:
            defaults[name] = None  # an empty list means no rows here; torch.distributed's None, equal shares
        elif argument.has_default:
            defaults[name] = argument.default
        elif argument.depth and name in off_root:
            defaults[name] = ()
        elif argument.kind != "Tensor" or (statement.parts and (name in row.reads or name not in row.writes)):
            required.add(name)  # a barrier's tensor says nothing, and an argument that is only written can be inferred
    # Python functions, as of sizes, read any argument.
    read = row.rule.derived or row.entry.requirements or row.entry.batch or row.entry.elements
    known = {argument.name for argument in row.arguments if read or argument.kind == "Tensor"}
    return _CallSchema(converters, frozenset(required), frozenset(known), defaults, row.group_size)


def _converter(row: Row, argument: Argument) -> _Convert:
    what = f"{row.op}: {argument.name}"
    if argument.name == row.reduce_op:
        return functools.partial(_reduce_op, what)
    chooses_dtype = argument.name in row.entry.dtypes.values()
    convert = functools.partial(_dtype if chooses_dtype else _BY_KIND.get(argument.kind, _anything), what)
    if argument.gaps:
        convert = functools.partial(_optional, convert)
    items = "tensors" if argument.kind == "Tensor" else "values"
    for depth in range(argument.depth):
        convert = functools.partial(_list, what, items, depth, convert)
    return functools.partial(_optional, convert) if argument.optional else convert


def _optional(convert: _Convert, value: Any) -> Any:
    return None if value is None else convert(value)


def _tensor(what: str, value: Any) -> Any:
    if isinstance(value, Spec):
        return value
    if type(value) is tuple:
        try:
            return Spec(value)
        except CallError as error:
            raise CallError(f"{what}: {error}") from None
    if isinstance(value, torch.Tensor):
        return Spec.of(value)
    if isinstance(value, torch.Size):
        return Spec(tuple(value))
    return _refuse(what, value, "a tensor, a Spec or a shape tuple such as (16, 4)")


def _int(what: str, value: Any) -> Any:
    return value if is_size(value) else _refuse(what, value, "an int")


def _dtype(what: str, value: Any) -> Any:
    return value if isinstance(value, torch.dtype) else _refuse(what, value, "a torch.dtype such as torch.bfloat16")


def _bool(what: str, value: Any) -> Any:
    return value if isinstance(value, bool) else _refuse(what, value, "True or False")


def _str(what: str, value: Any) -> Any:
    return value if isinstance(value, str) else _refuse(what, value, "a string")


def _anything(what: str, value: Any) -> Any:
    return value


_BY_KIND: Mapping[str, Callable[[str, Any], Any]] = {"Tensor": _tensor, "int": _int, "bool": _bool, "str": _str}


def _list(what: str, items: str, depth: int, convert: _Convert, value: Any) -> tuple[Any, ...]:
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return tuple(convert(item) for item in value)
    return tuple(_refuse(what, value, f"a list of {'lists of ' * depth}{items}"))


def reduce_op_name(value: Any) -> str | None:
    """Return the lower-case name of a reduce op: a name, a `ReduceOp` or its boxed form; None for anything else."""
    if isinstance(value, str):
        return value
    if isinstance(value, torch.ScriptObject) and hasattr(value, "op"):  # boxed, as the dispatcher passes it
        value = torch.distributed.ReduceOp.RedOpType(value.op())
    op = getattr(value, "op", value)
    return str(op.name).lower() if type(op).__name__ == "RedOpType" else None


def _reduce_op(what: str, value: Any) -> str:
    name = reduce_op_name(value)
    return _refuse(what, value, "a ReduceOp or its lower-case name, 'sum'") if name is None else name


def _refuse(what: str, value: Any, wanted: str) -> Any:
    shown = repr(value)
    raise CallError(f"{what}={shown if len(shown) <= 120 else shown[:117] + '...'}, but should be {wanted}")


def _missing(row: Row, arguments: Mapping[str, Any]) -> str:
    schema = _call_schema(row)
    names = [name for name in schema.converters if name in schema.required and name not in arguments]
    verb = "is" if len(names) == 1 else "are"
    return f"{row.op}: {' and '.join(names)} {verb} missing; the op takes {', '.join(schema.converters)}"


def _surplus(row: Row, name: str) -> str:
    if name in row.by_name:
        return f"{row.op}: {name} is the group, which group= says; leave it out"
    names = list(_call_schema(row).converters)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; the op takes {', '.join(names)}"
    return f"{row.op} has no argument {name!r}{hint}"
