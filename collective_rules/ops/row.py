"""One op, looked up: its row of the op table, its rule, and what the live schema says.

The schema comes from the running torch; for an op that this torch does not have, from the row itself.
"""

from __future__ import annotations

import difflib
import functools
import importlib
from collections.abc import Mapping
from typing import Any

import attrs
import torch

from collective_rules.errors import UnknownOpError
from collective_rules.notation import Part, Path, Statement, names, parse_path
from collective_rules.ops.c10d import C10D
from collective_rules.ops.exclusions import EXCLUSIONS
from collective_rules.ops.functional import FUNCTIONAL
from collective_rules.ops.groups import GROUP_OPS
from collective_rules.ops.op import Op
from collective_rules.ops.symm_mem import SYMM_MEM
from collective_rules.rules import GROUP_RULES, RULES, Form, Rule

OPS: Mapping[str, Op] = {op.op: op for op in C10D + FUNCTIONAL + SYMM_MEM}

_REGISTER = (
    "torch.distributed",
    "torch.distributed._functional_collectives",
    "torch.distributed._symmetric_memory",
    "torch.distributed.tensor",
)
"""Modules that register ops of the collective namespaces when they are imported."""

_SOURCES: Mapping[str, str] = {
    "c10d": "torch/csrc/distributed/c10d/Ops.cpp",
    "_c10d_functional": "torch/csrc/distributed/c10d/Functional.cpp",
    "_c10d_functional_autograd": "torch/csrc/distributed/c10d/Functional.cpp",
    "c10d_functional": "torch/distributed/_functional_collectives_impl.py",
    "_dtensor": "torch/csrc/distributed/c10d/Functional.cpp",
    "dist": "torch/distributed/distributed_c10d.py",
    "symm_mem": "torch/csrc/distributed/c10d/symm_mem, torch/distributed/_symmetric_memory/__init__.py",
}

# The legacy group is the triple (tag, ranks, group_size); group_size is checked against the group.
_GROUP_ARGUMENTS = ("process_group", "group_name", "ranks", "hdl", "symm")
_CLASS = "__torch__.torch.classes.c10d."

_DEFAULTS: Mapping[str, Any] = {
    "tag": 0,
    "root_tensor": 0,
    "device_ids": (),
    "sparse_indices": None,
    "timeout": -1,
    "wait_all_ranks": False,
    "input_split_sizes": (),
    "output_split_sizes": (),
}
"""torch.distributed's own defaults, for arguments that have none in the schema."""


@attrs.frozen
class Argument:
    """One argument of the schema: `kind` is its type without List and Optional, `depth` the depth of its lists.

    `optional`: it may be None; `gaps`: so may the elements of its list. `mutable`: the schema says that it is written.
    """

    name: str
    kind: str
    depth: int
    optional: bool
    gaps: bool
    mutable: bool
    has_default: bool
    default: Any
    is_group: bool


@attrs.frozen
class Output:
    """One thing that an op returns: the tensors of an argument, fresh ones, a Work, or an `empty(0)`."""

    name: str
    kind: str


@attrs.frozen
class Spelling:
    """A form of the rule in the op's own arguments.

    `behind` names the rule's part behind each part of the statement, and `shared` the names that stand for one value
    in all elements of a list; the others have a value for each element. `one_dtype`: so does the dtype. `documented`:
    whether torch promises the form, or it is the op's usual one.
    """

    form: Form
    statement: Statement
    behind: tuple[str, ...]
    shared: frozenset[str]
    one_dtype: bool
    documented: bool

    def behind_of(self, part: Part) -> str:
        """Return the rule's name for `part`, which is one of this statement's own."""
        return next(name for known, name in zip(self.statement.parts, self.behind, strict=True) if known is part)


@attrs.frozen(eq=False, slots=False)
class Row:
    """One op with its rule and its schema. Made by `lookup`; compared by identity.

    - `entry`: its row of the op table. `rule`: what it does, for the whole group.
    - `arguments`: all arguments in the schema's order. `available`: whether the running torch has the op.
    - `spellings`: the admitted forms, in the op's own arguments, the usual one first.
    - `returns`: what comes back, in order: an `Output` of kind "argument", "fresh", "empty" or "work".

    The properties that name an argument are "" where the op has none.

    >>> import collective_rules as cr
    >>> row = cr.lookup("c10d::_allgather_base_")
    >>> row.notation
    'input_tensor: d *s -> output_tensor: (W d) *s'
    >>> row.group, row.reads, row.writes
    ('process_group', ('input_tensor',), ('output_tensor',))
    """

    entry: Op
    rule: Rule
    schema: Any
    available: bool
    arguments: tuple[Argument, ...]
    spellings: tuple[Spelling, ...]
    returns: tuple[Output, ...]

    def __reduce__(self) -> Any:
        """Copy and unpickle to this very row, in any process."""
        return lookup, (self.op,)

    @property
    def op(self) -> str:
        """The qualified name, `c10d::allreduce_`."""
        return self.entry.op

    @property
    def namespace(self) -> str:
        """The part of the name before `::`."""
        return self.op.partition("::")[0]

    @property
    def meets(self) -> str:
        """What the op meets on the other ranks: ops of its rule, by the rule's name, or else what its entry says."""
        return self.entry.meets or self.rule.name

    @property
    def notation(self) -> str:
        """The usual form, in the op's own arguments."""
        return str(self.spellings[0].statement)

    @functools.cached_property
    def reads(self) -> tuple[str, ...]:
        """The arguments whose contents the op consumes."""
        return _names(self.spellings[0].statement.reads) + self.entry.also_reads

    @functools.cached_property
    def writes(self) -> tuple[str, ...]:
        """The arguments whose contents the op changes, and the fresh tensors that it returns."""
        stated = _names(self.spellings[0].statement.writes)
        return stated + tuple(name for name in self.entry.scratch if name not in stated)

    @functools.cached_property
    def in_place(self) -> frozenset[str]:
        """The arguments that are both read and written."""
        return frozenset(self.reads) & frozenset(self.writes)

    @functools.cached_property
    def fresh(self) -> frozenset[str]:
        """The tensors that are written and returned, and are no argument."""
        return frozenset(self.writes) - {argument.name for argument in self.arguments}

    @property
    def group(self) -> str:
        """The argument that holds the group: a ProcessGroup, its name, its ranks or a SymmetricMemory."""
        return next((name for name in _GROUP_ARGUMENTS if name in self.by_name), "")

    @property
    def reduce_op(self) -> str:
        """The argument that holds the reduce op."""
        return self.entry.attributes.get("reduce_op", "")

    @property
    def root(self) -> str:
        """The argument that holds the root's rank in the group."""
        return self.entry.attributes.get("root", "")

    @property
    def peer(self) -> str:
        """The argument that holds the peer's rank in the group (a list of them, of a batch)."""
        return self.entry.attributes.get("peer", self.entry.batch.peers if self.entry.batch else "")

    @property
    def tag(self) -> str:
        """The argument that holds the tag of a point-to-point op (a list of them, of a batch)."""
        return self.entry.attributes.get("tag", self.entry.batch.tags if self.entry.batch else "")

    @property
    def root_only(self) -> tuple[str, ...]:
        """The arguments that are given, and read or written, on the root alone."""
        return _names(tuple(part for part in self.spellings[0].statement.parts if part.root_only))

    @property
    def source(self) -> str:
        """Where torch defines the op; `rule.source` is where torch documents it."""
        return _SOURCES[self.namespace]

    @property
    def group_size(self) -> str:
        """The argument that repeats the group's size."""
        return self.entry.attributes.get("group_size", "")

    @property
    def splits(self) -> tuple[str, ...]:
        """The arguments that hold split sizes."""
        return tuple(split.argument for split in self.entry.splits.values() if split.argument)

    @functools.cached_property
    def by_name(self) -> Mapping[str, Argument]:
        """The arguments by name."""
        return {argument.name: argument for argument in self.arguments}

    def layout_of(self, argument: str) -> str:
        """Return the layout that every backend needs of `argument`."""
        return self.entry.layouts.get(argument, "any")

    def __repr__(self) -> str:
        return f"<{self.op}: {self.notation}>"


def _names(parts: tuple[Part, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.path.name for part in parts))


_CACHE: dict[Any, Row] = {}


def lookup(op: Any) -> Row:
    """Return the row of `op`: its qualified name, its OpOverload or its OpOverloadPacket.

    Raises `UnknownOpError` (a `LookupError`) for an op without a rule, and says why there is none.

    >>> import torch
    >>> lookup("c10d::allreduce_") is lookup(torch.ops.c10d.allreduce_.default)
    True
    >>> lookup("c10d::allreduce")
    Traceback (most recent call last):
    collective_rules.errors.UnknownOpError: no rule for 'c10d::allreduce'; did you mean 'c10d::allreduce_', ...?
    """
    try:
        return _CACHE[op]
    except (KeyError, TypeError):
        pass  # an error below is not raised from here, so that its traceback shows nothing of this cache
    return _look_further(op)


def _look_further(op: Any) -> Row:
    name = _name_of(op)
    if name not in _CACHE:
        entry = OPS.get(name) or GROUP_OPS.get(name)
        if entry is None:
            raise UnknownOpError(_why_unknown(name))
        _CACHE[name] = _resolve(entry)
    _CACHE[op] = _CACHE[name]
    return _CACHE[name]


def _name_of(op: Any) -> str:
    if isinstance(op, str):
        return op.removesuffix(".default")
    if isinstance(op, torch._ops.OpOverload):
        return op._schema.name if op._overloadname == "default" else op.name()
    if isinstance(op, torch._ops.OpOverloadPacket):
        return op._qualified_op_name
    raise UnknownOpError(f"op={op!r}, but should be a name such as 'c10d::allreduce_', an OpOverload or its packet")


def _why_unknown(name: str) -> str:
    if name in EXCLUSIONS:
        return f"{name} has no rule. {EXCLUSIONS[name]}"
    near = difflib.get_close_matches(name, OPS, n=3, cutoff=0.6)
    same_name = [known for known in OPS if known.partition("::")[2] == name.rpartition("::")[2].rpartition(".")[2]]
    suggestions = list(dict.fromkeys(same_name + near))[:3]
    if suggestions:
        return f"no rule for {name!r}; did you mean {', '.join(map(repr, suggestions))}?"
    return f"no rule for {name!r}; collective_rules.ops() names those that there are"


def _resolve(entry: Op) -> Row:
    schema = _live_schema(entry.op)
    available = schema is not None
    if schema is None:
        if not entry.schema:
            raise UnknownOpError(f"{entry.op} is not registered in torch {torch.__version__}")
        schema = torch._C.parse_schema(entry.schema)
    rule = RULES.get(entry.rule) or GROUP_RULES[entry.rule]
    legacy = any(argument.name == "ranks" for argument in schema.arguments)
    arguments = tuple(_argument(argument, legacy) for argument in schema.arguments)
    names_ = entry.forms or (rule.forms[0].name,)
    spellings = tuple(_spelling(entry, rule.form(name), usual=name == names_[0]) for name in names_)
    return Row(entry, rule, schema, available, arguments, spellings, _returns(entry, schema, spellings[0]))


def _live_schema(name: str) -> Any:
    namespace, _, op = name.partition("::")
    for module in ("", *_REGISTER):
        if module:
            try:
                importlib.import_module(module)
            except ImportError:  # a torch built without distributed: the op cannot be there
                continue
        packet = getattr(getattr(torch.ops, namespace), op, None)
        if packet is not None:
            return packet.default._schema
    return None


def _argument(argument: Any, legacy: bool) -> Argument:
    kind, depth, optional, gaps = str(argument.type), 0, False, False
    while kind.endswith("]"):
        outer, _, kind = kind[:-1].partition("[")
        gaps = gaps or (outer == "Optional" and depth > 0)
        optional = optional or (outer == "Optional" and depth == 0)
        depth += outer == "List"
    name = argument.name
    mutable = argument.alias_info is not None and argument.alias_info.is_write
    is_group = name in _GROUP_ARGUMENTS or (legacy and name == "tag")
    has_default, default = argument.has_default_value(), argument.default_value
    if not has_default and (optional or name in _DEFAULTS):
        has_default, default = True, None if optional else _DEFAULTS[name]
    if kind.removeprefix(_CLASS) == "ReduceOp":
        has_default, default = True, "sum"
    return Argument(name, kind, depth, optional, gaps, mutable, has_default, default, is_group)


def _spelling(entry: Op, form: Form, *, usual: bool) -> Spelling:
    statement = form.statement
    sides, behind = [], []
    for parts in (statement.reads, statement.writes):
        own = []
        for part in parts:
            path: Path = parse_path(entry.parts[part.path.name])
            own.append(attrs.evolve(part, path=path))
            behind.append(part.path.name)
        sides.append(tuple(own))
    stated = Statement(sides[0], sides[1])
    outside = [names(part) for part in stated.parts if entry.one_tensor or "i" not in part.path.index]
    one_dtype = entry.one_tensor or any("i" not in part.path.index for part in stated.parts)
    shared = frozenset[str]().union(*outside)
    return Spelling(form, stated, tuple(behind), shared, one_dtype, usual or form.documented)


def _returns(entry: Op, schema: Any, spelling: Spelling) -> tuple[Output, ...]:
    written = [part.path.name for part in spelling.statement.writes]
    arguments = {argument.name for argument in schema.arguments}
    outputs, fresh = [], [name for name in written if name not in arguments]
    for returned in schema.returns:
        if "Tensor" not in str(returned.type):
            outputs.append(Output("work", "work"))
        elif entry.returns == "empty":
            outputs.append(Output("outputs" if str(returned.type).startswith("List") else "output", "empty"))
        elif fresh:
            outputs.append(Output(fresh.pop(0), "fresh"))
        else:
            outputs.append(Output(_aliased(schema, returned) or entry.returns or written[0], "argument"))
    return tuple(outputs)


def _aliased(schema: Any, returned: Any) -> str:
    """Return the argument that the schema declares `returned` to be, "" where it declares none."""
    if returned.alias_info is not None:
        for argument in schema.arguments:
            if argument.alias_info is not None and argument.alias_info.before_set & returned.alias_info.before_set:
                return str(argument.name)
    return ""
