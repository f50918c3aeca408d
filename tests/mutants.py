"""Tables with one thing changed: a row of the op table, or a rule. Those of a backend's limit are in `limit_mutants`.

What is prose (a rule's title and source, a kind's sentences) is not changed, nor what says which torch
has an op (`since`, `schema`), which `test_coverage` holds against torch. Nor is anything added to symmetric memory's
rows of which only a kernel could tell whether it is so: that memory may not be shared, or is spoilt.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast
from unittest import mock

import attrs
import torch

import collective_rules as cr
from collective_rules import backends
from collective_rules.backends import BackendTable
from collective_rules.binding import compiled
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.call import _call_schema
from collective_rules.errors import NotationError
from collective_rules.notation import (
    GroupSize,
    Name,
    Number,
    Part,
    Path,
    Rest,
    Shares,
    Size,
    Splits,
    Statement,
    parse,
    parse_path,
)
from collective_rules.ops import OPS
from collective_rules.ops import op as op_columns
from collective_rules.ops import row as row_module
from collective_rules.ops.op import Batch, Op, SplitSizes
from collective_rules.rules import RULES, Rule, volumes
from collective_rules.rules import size_functions as sizes
from collective_rules.testing import expected
from collective_rules.testing.drawing import legal_dtypes

__all__ = ["Changes", "Mutant", "compares_whole", "in_backends", "op_mutants", "rule_mutants"]


@attrs.frozen(eq=False)
class Mutant:
    """The tables with one thing changed: some rows of the op table, some rules, or a backend's limits.

    `same`: why it is the same statement, where a column says nothing of the row that it stands in; "" elsewhere.
    """

    name: str
    ops: Mapping[str, Op] = attrs.field(factory=dict)
    rules: Mapping[str, Rule] = attrs.field(factory=dict)
    backend: BackendTable | None = None
    same: str = ""

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put it in the tables' place; they are as they were afterwards, whatever happens."""
        rules = {**RULES, **self.rules}
        kept = {op: row for op, row in row_module._CACHE.items() if not self._concerns(row)}
        before = set(compiled._PLANS)
        with contextlib.ExitStack() as stack:
            stack.callback(_forget, before)
            for module, name, value in (
                (row_module, "OPS", {**OPS, **self.ops}),
                (row_module, "RULES", rules),
                (expected, "RULES", rules),
                (row_module, "_CACHE", kept),
            ):
                stack.enter_context(mock.patch.object(module, name, value))
            if self.backend is not None:
                stack.enter_context(in_backends(self.backend))
            yield

    def _concerns(self, row: cr.Row) -> bool:
        return row.op in self.ops or row.entry.rule in self.rules


@contextlib.contextmanager
def in_backends(backend: BackendTable) -> Iterator[None]:
    """Put a backend's table in `BACKENDS`, beside the others or in the place of one."""
    with contextlib.ExitStack() as stack:
        stack.callback(legal_dtypes.cache_clear)
        stack.callback(backends.forget)
        stack.enter_context(
            mock.patch.dict(cast("dict[str, BackendTable]", backends.BACKENDS), {backend.name: backend})
        )
        legal_dtypes.cache_clear()
        backends.forget()
        yield


def _forget(plans_before: set[Any]) -> None:
    """Clear what was kept of rows that are no more."""
    backends.forget()
    _call_schema.cache_clear()
    for row in set(compiled._PLANS) - plans_before:
        del compiled._PLANS[row]


# -- rows of the op table

_LAYOUTS = (
    op_columns.ANY,
    op_columns.ORDER,
    op_columns.SENT,
    op_columns.DENSE,
    op_columns.FORMAT,
    op_columns.CONTIGUOUS,
)
_OVERLAPS = (op_columns.FREE, op_columns.OWN, op_columns.UP_TO_OWN, op_columns.NEVER)
_LEVELS = ("1", "i", "p")


def op_mutants(op: str) -> Iterator[Mutant]:
    """Change each column of one row, one entry at a time."""
    entry = OPS[op]
    seen = set()
    for column in _OP_COLUMNS:
        for what, changes, *same in column(entry):
            changed = attrs.evolve(entry, **changes)
            if changed != entry and repr(changed) not in seen:
                seen.add(repr(changed))
                yield Mutant(f"{op}: {what}", ops={op: changed}, same="".join(same))


Changes = Iterator[tuple[str, dict[str, Any]] | tuple[str, dict[str, Any], str]]
"""What is changed, the columns that are, and (where it is so) why that says the same."""

_BATCHED = "the members of a batch are judged by their own rows"


def _parts(entry: Op) -> Changes:
    """Arguments swapped; a level of a list left out, added, or of another kind."""
    for one, two in itertools.combinations(entry.parts, 2):
        swapped = {**entry.parts, one: entry.parts[two], two: entry.parts[one]}
        yield f"parts, {one} and {two} swapped", {"parts": swapped}
    for path in dict.fromkeys(entry.parts.values()):
        for other in _other_paths(parse_path(path)):
            moved = {part: str(other) if known == path else known for part, known in entry.parts.items()}
            yield f"parts, {path} → {other}", {"parts": moved}


def _other_paths(path: Path) -> Iterator[Path]:
    index = path.index
    for place, level in enumerate(index):
        yield attrs.evolve(path, index=(*index[:place], *index[place + 1 :]))
        for other in _LEVELS:
            if other != level:
                yield attrs.evolve(path, index=(*index[:place], other, *index[place + 1 :]))
    for level in _LEVELS:
        yield attrs.evolve(path, index=(level, *index))
    if len(index) > 1:
        yield attrs.evolve(path, index=index[::-1])


def _forms(entry: Op) -> Changes:
    names = tuple(form.name for form in RULES[entry.rule].forms)
    forms = entry.forms or names[:1]
    for name in forms if len(forms) > 1 else ():
        yield f"forms, without {name}", {"forms": tuple(other for other in forms if other != name)}
    for name in names:
        if name not in forms:
            yield f"forms, also {name}", {"forms": tuple(other for other in names if other in (*forms, name))}
            yield f"forms, {name} alone", {"forms": (name,)}
    if len(forms) > 1:
        yield "forms, in another order", {"forms": forms[::-1]}


def _attributes(entry: Op) -> Changes:
    known = entry.attributes
    for name in known:
        yield f"attributes, without {name}", {"attributes": {k: v for k, v in known.items() if k != name}}
    for one, two in itertools.combinations(known, 2):
        yield f"attributes, {one} and {two} swapped", {"attributes": {**known, one: known[two], two: known[one]}}


def _splits(entry: Op) -> Changes:
    known = entry.splits
    if len(known) == 2:
        one, two = known
        yield "splits, swapped", {"splits": {one: known[two], two: known[one]}}
    for part, column in known.items():
        other = op_columns.NONE if column.empty == op_columns.EVEN else op_columns.EVEN
        yield (
            f"splits, {part}: empty → {other}",
            {"splits": {**known, part: SplitSizes(column.argument, other)}},
            "" if column.argument else "there is no list that could be empty",
        )
        yield f"splits, {part}: no argument", {"splits": {**known, part: SplitSizes(None, column.empty)}}
        yield f"splits, without {part}", {"splits": {key: value for key, value in known.items() if key != part}}


def _returns(entry: Op) -> Changes:
    row = cr.lookup(entry.op)
    for name in ("", "empty", *row.by_name):
        if name in ("", "empty") or row.by_name[name].kind == "Tensor":
            what = f"returns, {entry.returns or 'nothing'} → {name or 'nothing'}"
            yield what, {"returns": name}, _SAME_RETURNS if _returns_the_same(row, name) else ""


_SAME_RETURNS = "what is returned is a Work, fresh, declared an alias, or what is written first"


def _returns_the_same(row: cr.Row, name: str) -> bool:
    try:
        return row_module._returns(attrs.evolve(row.entry, returns=name), row.schema, row.spellings[0]) == row.returns
    except IndexError:  # nothing is written
        return False


def _tensors(row: cr.Row) -> list[str]:
    """The tensors of which the rule speaks."""
    named = {part.path.name for part in row.spellings[0].statement.parts}
    return [name for name, argument in row.by_name.items() if argument.kind == "Tensor" and name in named]


def _memory(entry: Op) -> Changes:
    row = cr.lookup(entry.op)
    tensors = _tensors(row)
    for name in tensors:
        for layout in _LAYOUTS:
            laxest = {layout, row.layout_of(name)} == {op_columns.ANY, op_columns.ORDER}
            alone = row.rule.one_sided and len(tensors) == 1
            same = "no other tensor, of this rank or another, must lie in the same order" if laxest and alone else ""
            local = any("p" in part.path.index for part in row.spellings[0].statement.parts) or bool(
                row.root_only or entry.batch
            )
            if {layout, row.layout_of(name)} == {op_columns.SENT, op_columns.DENSE} and not local:
                same = "nothing of the tensor stays on this rank"
            if layout != row.layout_of(name):
                changed = {"layouts": {**entry.layouts, name: layout}}
                yield f"layouts, {name} {row.layout_of(name)} → {layout}", changed, same
        kept = tuple(other for other in entry.scratch if other != name)
        if name in entry.scratch:
            yield f"scratch, without {name}", {"scratch": kept}
        elif row.namespace != "symm_mem":
            yield f"scratch, also {name}", {"scratch": (*kept, name)}
    for least in (1, 2, 3) if entry.layouts else ():
        yield f"layouts_from, {entry.layouts_from} → {least}", {"layouts_from": least}, _same_layouts_from(row, least)
    inputs = [name for name in tensors if name not in row.writes]
    outputs = [name for name in tensors if name not in row.reads]
    for overlap in _OVERLAPS if tensors and row.namespace != "symm_mem" else ():
        same = "" if inputs and outputs else "no argument is written beside one that is read"
        told_apart = any("p" in part.path.index for part in row.spellings[0].statement.reads)
        if not told_apart and op_columns.FREE not in (overlap, entry.overlap):
            same = "of the tensor that is read none is the r-th"
        yield f"overlap, {entry.overlap} → {overlap}", {"overlap": overlap}, same


def _same_layouts_from(row: cr.Row, least: int) -> str:
    if row.entry.batch:
        return _BATCHED
    if {least, row.entry.layouts_from} == {1, 2} and row.rule.point_to_point:
        return "a message takes two ranks"
    ordered = set(row.entry.layouts.values()) == {op_columns.ORDER}
    several = any("p" in part.path.index for part in row.spellings[0].statement.parts)
    if {least, row.entry.layouts_from} == {1, 2} and ordered and not several:
        return "in a group of one there is no other tensor to lie in the same order"
    return ""


def _reduce_ops(entry: Op) -> Changes:
    taken = entry.reduce_ops or REDUCE_OPS
    for name in REDUCE_OPS if "reduce_op" in entry.attributes else ():
        if name in taken:
            yield f"reduce_ops, without {name}", {"reduce_ops": tuple(other for other in taken if other != name)}
        else:
            yield f"reduce_ops, also {name}", {"reduce_ops": (*taken, name)}


def _flags(entry: Op) -> Changes:
    """What is true or false, or a set that most rows leave empty."""
    row = cr.lookup(entry.op)
    parts = row.spellings[0].statement.parts
    batched = _BATCHED if entry.batch else ""
    if not parts:
        return
    if any("i" in part.path.index for part in parts):  # the column is about lists of any length
        yield "one_tensor, turned", {"one_tensor": not entry.one_tensor}, batched
    compared = "" if compares_whole(row) else "no two of its tensors have one `*s` that is all that is said of a part"
    yield "exact, turned", {"exact": not entry.exact}, batched or compared
    if row.root_only:
        everywhere = "off the root, too, it is read" if set(row.root_only) <= row.in_place else ""
        yield "everywhere, turned", {"everywhere": not entry.everywhere}, everywhere
    if row.group_size:
        yield "group_size_ignored, turned", {"group_size_ignored": not entry.group_size_ignored}
    strided = "" if "strided" in row.rule.constraints.values() else "its rule takes tensors of every layout"
    yield "sparse, turned", {"sparse": () if entry.sparse else ("sparse_coo",)}, batched or strided
    typed = "" if "dtype" in row.rule.agreed else "its rule says nothing of dtypes"
    yield "kernel_dtypes, float32 alone", {"kernel_dtypes": (torch.float32,)}, batched or typed
    if entry.complex_forms:
        yield "complex_forms, left out", {"complex_forms": ()}
        others = (spelling.form.name for spelling in row.spellings if spelling.form.name not in entry.complex_forms)
        yield from ((f"complex_forms, {other}", {"complex_forms": (other,)}) for other in others)
    for argument, scale in entry.row_scales.items():
        yield f"row_scales, without {argument}", {"row_scales": {}}
        for other in entry.also_reads:
            if other != scale:
                yield f"row_scales, {argument} by {other}", {"row_scales": {argument: other}}
    for requirement in entry.requirements:
        rest = tuple(other for other in entry.requirements if other is not requirement)
        yield f"requirements, without {requirement.__name__}", {"requirements": rest}
    if _split_arguments(row) and sizes.both_splits_or_neither not in entry.requirements:
        none = any(
            row.by_name[name].optional or column.empty == op_columns.NONE for name, column in _split_arguments(row)
        )
        same = "" if none else "its lists of split sizes are never None"
        more = (*entry.requirements, sizes.both_splits_or_neither)
        yield "requirements, also both_splits_or_neither", {"requirements": more}, same


def _split_arguments(row: cr.Row) -> list[tuple[str, SplitSizes]]:
    return [(column.argument, column) for column in row.entry.splits.values() if column.argument]


@functools.cache
def compares_whole(row: cr.Row) -> bool:
    """Whether a call holds two tensors whose part is one and the same `*s`."""
    for spelling in row.spellings:
        given = {str(part.path): part for part in spelling.statement.parts if part.path.name in row.by_name}
        whole = [part for part in given.values() if [type(size) for size in part.sizes] == [Rest]]
        several = any("p" in part.path.index for part in whole) or (row.entry.one_tensor and whole)
        stated = [size.name for part in whole for size in part.sizes if isinstance(size, Rest)]
        if several or len(set(stated)) < len(stated) or {*stated} & {*row.rule.derived}:
            return True
    return False


def _batch(entry: Op) -> Changes:
    batch = entry.batch
    if batch is None:
        return
    one, two = batch.ops
    yield "batch, ops swapped", {"batch": attrs.evolve(batch, ops={one: batch.ops[two], two: batch.ops[one]})}
    for kind in batch.ops:
        rest = {known: op for known, op in batch.ops.items() if known != kind}
        yield f"batch, without {kind}", {"batch": attrs.evolve(batch, ops=rest)}
    columns = [field.name for field in attrs.fields(Batch) if field.name != "ops"]
    for first, second in itertools.combinations(columns, 2):
        swapped = {first: getattr(batch, second), second: getattr(batch, first)}
        yield f"batch, {first} and {second} swapped", {"batch": attrs.evolve(batch, **swapped)}
    yield "batch, none", {"batch": None}


def _rule(entry: Op) -> Changes:
    """Another rule whose usual form has the same parts."""
    parts = [part.path.name for part in RULES[entry.rule].forms[0].statement.parts]
    for name, rule in RULES.items():
        same = [part.path.name for part in rule.forms[0].statement.parts] == parts
        if name != entry.rule and same and all(form in [f.name for f in rule.forms] for form in entry.forms):
            yield f"rule, {name}", {"rule": name}


_OP_COLUMNS: tuple[Callable[[Op], Changes], ...] = (
    _rule,
    _parts,
    _forms,
    _attributes,
    _splits,
    _returns,
    _memory,
    _reduce_ops,
    _flags,
    _batch,
)


# -- rules

_SIZES = (volumes.nothing, volumes.inputs, volumes.outputs, volumes.larger, volumes.gathered, volumes.scattered)
_VOLUMES = (
    *_SIZES,
    volumes.ring_all_reduce,
    volumes.to_every_other,
    volumes.to_every_other_first,
    volumes.gathered_first,
    volumes.outputs_to_every_other,
    volumes.all_but_own_share,
    volumes.all_but_kept,
    volumes.all_but_outputs,
    volumes.around_from_root,
    volumes.towards_root,
    volumes.from_root,
)
_FACTORS = (volumes.one, volumes.share, volumes.twice_share)
_CONTENTS = ("all", "root", "none")
_DERIVED = (
    *(sizes.gathered_dim, sizes.swapped_dims, sizes.gathered_product, sizes.scattered_product, sizes.reshaped_product),
    *(sizes.stacked_exchange, sizes.concatenated_exchange),
)


def rule_mutants(name: str) -> Iterator[Mutant]:
    """Change each column of one rule, one entry at a time; each form by each part and each size of its text."""
    rule = RULES[name]
    seen = set()
    for column in (_texts, _agreements, _constraints, _functions, _rule_flags):
        for what, changes, *same in column(rule):
            changed = attrs.evolve(rule, **changes)
            if changed != rule and repr(changed) not in seen:
                seen.add(repr(changed))
                yield Mutant(f"{name}: {what}", rules={name: changed}, same="".join(same))


def _agreements(rule: Rule) -> Changes:
    batched = _BATCHED if rule.name == "batch_p2p" else ""
    for name in rule.agreed:
        yield f"agreed, without {name}", {"agreed": tuple(other for other in rule.agreed if other != name)}, batched
    known = [name for op in OPS.values() if op.rule == rule.name for name in op.attributes]
    for name in dict.fromkeys(["dtype", *known]):
        if name not in rule.agreed:
            yield f"agreed, also {name}", {"agreed": (*rule.agreed, name)}


def _constraints(rule: Rule) -> Changes:
    """Two ids swapped, and one that is lost."""
    ids = list(rule.constraints)
    for one, two in itertools.pairwise(ids):
        swapped = {**rule.constraints, one: rule.constraints[two], two: rule.constraints[one]}
        yield f"constraints, {one} and {two} swapped", {"constraints": swapped}
    for id_ in ids:
        rest = {known: kind for known, kind in rule.constraints.items() if known != id_}
        yield f"constraints, without {id_}", {"constraints": rest}


def _functions(rule: Rule) -> Changes:
    """Size functions, oracles and volumes taken from another rule."""
    batched = _BATCHED if rule.name == "batch_p2p" else ""
    for column, functions in (("sent", _VOLUMES), ("buffer", _VOLUMES), ("bus_factor", _FACTORS)):
        for function in functions:
            known = getattr(rule.volumes, column)
            if function is not known:
                changed = attrs.evolve(rule.volumes, **{column: function})
                same = batched or _same_volume(rule, known, function)
                yield f"{column}, {function.__name__}", {"volumes": changed}, same
    for other in dict.fromkeys(each.oracle for each in RULES.values()):
        if other is not rule.oracle:
            yield f"oracle, {other.compute.__name__ if other else 'none'}", {"oracle": other}
    for name, function in rule.derived.items():
        for other in _DERIVED:
            if other is not function:
                yield f"derived, {name} by {other.__name__}", {"derived": {**rule.derived, name: other}}
        rest = {known: each for known, each in rule.derived.items() if known != name}
        yield f"derived, without {name}", {"derived": rest}


def _same_volume(rule: Rule, one: Any, two: Any) -> str:
    """Why two formulas give the same bytes for every call of the rule; "" where they do not."""
    if rule.name not in _VOLUMES_OF:
        return ""
    why, seen_by = _VOLUMES_OF[rule.name]
    values = itertools.product((1, 2, 3, 4), range(4), range(4), (12, 24, 36), (12, 24, 48), (4, 12), (0, 4, 12))
    rooted = any(OPS[op].rule == rule.name and "root" in OPS[op].attributes for op in OPS)
    for size, rank, root, *sizes_ in values:
        if rank < size and root < size and (rooted or root == 0):
            volume = seen_by(volumes.Volume(size, rank, root, *sizes_))
            if one(volume) != two(volume):
                return ""
    return why


def _kept(v: volumes.Volume) -> volumes.Volume:
    return attrs.evolve(v, first=min(v.first, v.inputs), kept=0)


def _alike(v: volumes.Volume) -> volumes.Volume:
    return attrs.evolve(_kept(v), outputs=v.inputs)


def _at_root(v: volumes.Volume, outputs: float) -> volumes.Volume:
    return attrs.evolve(_kept(v), outputs=outputs if v.is_root else 0)


def _unread(v: volumes.Volume) -> volumes.Volume:
    return attrs.evolve(v, inputs=0, first=0, kept=0)


def _message(v: volumes.Volume) -> volumes.Volume:
    return attrs.evolve(v, outputs=0, first=v.inputs, kept=0)


def _scattered(v: volumes.Volume) -> volumes.Volume:
    share = v.outputs if v.is_root else 0
    return attrs.evolve(v, inputs=share * v.group_size, first=share, kept=share)


_VOLUMES_OF: Mapping[str, tuple[str, Callable[[volumes.Volume], volumes.Volume]]] = {
    "all_reduce": (
        "no chunk is kept, and no less is written than is read",
        lambda v: attrs.evolve(_kept(v), outputs=max(v.outputs, v.inputs), first=v.inputs),
    ),
    "broadcast": ("as much is written as is read", _alike),
    "reduce": ("the root alone writes, as much as it reads", lambda v: _at_root(v, v.inputs)),
    "reduce_to_roots": ("no chunk is kept, and no more is written than is read", lambda v: _smaller(v)),  # noqa: PLW0108 - defined below
    "reduce_scatter_blocks": ("no chunk is kept, and no more is written than is read", lambda v: _smaller(v)),  # noqa: PLW0108 - defined below
    "all_gather": (
        "its own input is among what a rank writes",
        lambda v: attrs.evolve(_kept(v), outputs=v.inputs + v.outputs),
    ),
    "all_gather_into_tensor": (
        "W times as much is written as is read",
        lambda v: attrs.evolve(_kept(v), outputs=v.inputs * v.group_size),
    ),
    "reduce_scatter": (
        "what is written is as large as one of the tensors that are read",
        lambda v: attrs.evolve(v, inputs=v.inputs + v.outputs, kept=v.outputs),
    ),
    "reduce_scatter_tensor": ("no chunk is kept", _kept),
    "gather": (
        "one tensor is read, and the root writes W of them",
        lambda v: attrs.evolve(_at_root(v, v.inputs * v.group_size), first=v.inputs),
    ),
    "gather_into_tensor": (
        "one tensor is read, and the root writes W of them",
        lambda v: attrs.evolve(_at_root(v, v.inputs * v.group_size), first=v.inputs),
    ),
    "scatter": ("the root alone reads: W tensors of one size", _scattered),
    "all_to_all_single": ("one tensor is read", lambda v: attrs.evolve(v, first=v.inputs, kept=min(v.kept, v.inputs))),
    "all_to_all_nd": ("one tensor is read, and as much written", lambda v: attrs.evolve(_alike(v), first=v.inputs)),
    "shard_dim_alltoall": (
        "one tensor is read, and as much written",
        lambda v: attrs.evolve(_alike(v), first=v.inputs),
    ),
    "all_to_all_vdev": ("only the device knows which chunk is kept", _kept),
    "all_gather_matmul": ("no chunk is kept", _kept),
    "matmul_reduce_scatter": ("no chunk is kept", _kept),
    "view_peers": (
        "W views of one tensor",
        lambda v: attrs.evolve(_kept(v), first=v.inputs, outputs=v.inputs * v.group_size),
    ),
    "send": ("one tensor is read, and nothing written", _message),
    "put": ("one tensor is read, and none of it kept", lambda v: attrs.evolve(v, first=v.inputs, kept=0)),
    "recv": ("nothing is read", _unread),
    "get": ("nothing is read", _unread),
    "barrier": ("there are no tensors", lambda v: attrs.evolve(_unread(v), outputs=0)),
    "wait": ("nothing is written, and no chunk kept", lambda v: attrs.evolve(_kept(v), outputs=0)),
}
"""What is so of the bytes of every call of a rule, and a call's view that is made so."""


def _smaller(v: volumes.Volume) -> volumes.Volume:
    return attrs.evolve(_kept(v), outputs=min(v.outputs, v.inputs))


def _rule_flags(rule: Rule) -> Changes:
    batched = _BATCHED if rule.name == "batch_p2p" else ""
    for direction in ("", "send", "receive", "both"):
        if direction != rule.direction:
            yield f"direction, {direction or 'none'}", {"direction": direction}
    yield "one_sided, turned", {"one_sided": not rule.one_sided}
    for contents in _CONTENTS:
        if contents != rule.contents:
            yield f"contents, {contents}", {"contents": contents}, batched or _same_contents(rule, contents)
    for part, dtype in rule.fixed_dtypes.items():
        rest = {known: each for known, each in rule.fixed_dtypes.items() if known != part}
        yield f"fixed_dtypes, without {part}", {"fixed_dtypes": rest}
        yield f"fixed_dtypes, {part} {dtype} → int32", {"fixed_dtypes": {**rule.fixed_dtypes, part: torch.int32}}
    reads = {part.path.name for form in rule.forms for part in form.statement.reads}
    for part in dict.fromkeys(part.path.name for form in rule.forms for part in form.statement.parts):
        if part not in rule.fixed_dtypes:
            untold = "the rule says nothing of the dtypes of what is read" if part in reads else ""
            same = batched or ("" if "dtype" in rule.agreed else untold)
            yield f"fixed_dtypes, {part} int64", {"fixed_dtypes": {**rule.fixed_dtypes, part: torch.int64}}, same


def _same_contents(rule: Rule, contents: str) -> str:
    """Why it counts the same bytes: where nothing is read off the root, or nothing read and nothing written."""
    parts = [part for form in rule.forms for part in form.statement.parts]
    if not parts:
        return "there are no tensors"
    rooted = any(OPS[op].rule == rule.name and {"root", "roots"} & set(OPS[op].attributes) for op in OPS)
    reads = rule.forms[0].statement.reads
    if {contents, rule.contents} == {"all", "root"} and (not reads or all(part.root_only for part in reads)):
        return "nothing is read off the root"
    if {contents, rule.contents} == {"none", "root"} and not rooted and rule.one_sided:
        return "there is no root whose contents could count"
    return ""


def _texts(rule: Rule) -> Changes:
    """One form changed in one place; those in another order."""
    for place, form in enumerate(rule.forms):
        flat = attrs.evolve(form, flat=not form.flat)
        others = [(f"{form.name}, flat turned", flat, "" if _compares(rule) else _UNCOMPARED)]
        for statement in _other_statements(form.statement):
            if str(statement) != form.text and _can_be_written(statement):
                other = attrs.evolve(form, text=str(statement))
                others.append((f"{form.name}, {statement}", other, _same_text(rule, form.statement, statement)))
        for what, other, same in others:
            yield what, {"forms": (*rule.forms[:place], other, *rule.forms[place + 1 :])}, same
    if len(rule.forms) > 1:
        yield "forms, in another order", {"forms": rule.forms[::-1]}


_UNCOMPARED = "the name stands once, and nothing compares what it stands for"


def _compares(rule: Rule) -> bool:
    """Whether a size is compared with that of another rank, or of another tensor of the call."""
    return not rule.one_sided and any(form.statement.parts for form in rule.forms) and rule.name != "batch_p2p"


def _same_text(rule: Rule, known: Statement, other: Statement) -> str:
    """Why a changed text says the same of every call; "" where it does not."""
    pairs = [(one, two) for one, two in zip(known.parts, other.parts, strict=False) if one != two]
    if rule.name == "batch_p2p":
        levels = {(part.path.name, part.path.index, part.root_only) for part in other.parts}
        return _BATCHED if levels == {(name, ("i",), False) for name in ("inputs", "outputs")} else ""
    if len(known.parts) != len(other.parts) or len(pairs) != 1:
        return ""
    one, two = pairs[0]
    if one.path != two.path and (one.sizes, one.root_only) == (two.sizes, two.root_only):
        own = {op.parts[one.path.name] for op in OPS.values() if op.rule == rule.name and one.path.name in op.parts}
        single = one.path.index and {parse_path(path).index for path in own} == {("1", *one.path.index)} == {
            two.path.index
        }
        return "every op of the rule takes a list of one there" if single else ""
    changed = [sizes_ for sizes_ in zip(one.sizes, two.sizes, strict=False) if sizes_[0] != sizes_[1]]
    if (one.path, one.root_only, len(one.sizes)) != (two.path, two.root_only, len(two.sizes)) or len(changed) != 1:
        return ""
    return _same_size(rule, known, *changed[0])


def _same_size(rule: Rule, known: Statement, one: Size, two: Size) -> str:
    if type(one) is not type(two) or not isinstance(one, (Name, Rest)) or not isinstance(two, (Name, Rest)):
        return ""
    stated = [getattr(size, "name", "") for part in known.parts for size in part.sizes]
    if one.name == two.name and one.name in rule.derived:
        return "a size function computes it on each rank, and agree compares what it is computed from"
    if one.name == two.name and rule.point_to_point and one.index and two.index:
        return "of a message, whatever varies with a rank is compared between its two ends"
    required = {function for op in OPS.values() if op.rule == rule.name for function in op.requirements}
    computed = bool(rule.derived) or any("names" in function.__code__.co_names for function in required)
    if stated.count(one.name) > 1 or two.name in {*stated} - {one.name} or rule.point_to_point:
        return ""
    if computed and two.name != one.name:
        return ""
    return _UNCOMPARED if rule.one_sided or (one.index and one.index == two.index) else ""


def _can_be_written(statement: Statement) -> bool:
    try:
        return str(parse(str(statement))) == str(statement)
    except NotationError:
        return False


def _other_statements(statement: Statement) -> Iterator[Statement]:
    yield Statement(statement.writes, statement.reads)
    for side in ("reads", "writes"):
        parts: tuple[Part, ...] = getattr(statement, side)
        for place, part in enumerate(parts):
            for other in _other_parts(part, statement):
                changed = () if other is None else (other,)
                yield attrs.evolve(statement, **{side: (*parts[:place], *changed, *parts[place + 1 :])})


def _other_parts(part: Part, statement: Statement) -> Iterator[Part | None]:
    """The part left out, off the root or on it, in other lists, with other sizes."""
    yield None
    yield attrs.evolve(part, root_only=not part.root_only)
    for path in _other_paths(part.path):
        yield attrs.evolve(part, path=path)
    given = part.sizes
    for place, size in enumerate(given):
        for other in _other_sizes(size, statement):
            changed = () if other is None else (other,)
            yield attrs.evolve(part, sizes=(*given[:place], *changed, *given[place + 1 :]))
        if place:
            yield attrs.evolve(part, sizes=(*given[: place - 1], size, given[place - 1], *given[place + 1 :]))
    for extra in (Number(1), Name("z"), GroupSize()):
        yield attrs.evolve(part, sizes=(*given, extra))
        yield attrs.evolve(part, sizes=(extra, *given))


def _other_sizes(size: Size, statement: Statement) -> Iterator[Size | None]:
    """What could stand there by mistake; None leaves it out."""
    yield None
    stated = [each for part in statement.parts for each in part.sizes]
    if isinstance(size, Shares):
        yield from (Name(size.name), GroupSize(), Number(1), Shares("z"))
    elif isinstance(size, (GroupSize, Number)):
        yield from (Number(1), Number(3), GroupSize(), Name("z"), Shares("z"))
    elif isinstance(size, Splits):
        yield from (Splits(size.name, size.column, size.row), Splits(size.name, size.row, size.row))
        yield from (Name("z"), Shares("z"), Name("z", ("r",)))
    else:
        kind: Any = type(size)
        others = [each.name for each in stated if type(each) is kind and each.name != size.name]
        yield from (kind(name, size.index) for name in dict.fromkeys([*others, "z"]))
        yield from (kind(size.name, index) for index in _other_indices(size.index))
        yield from (GroupSize(), Number(1), Shares("z"))
        yield from [Shares(size.name)] if isinstance(size, Name) else [Name("z")]


def _other_indices(index: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield from ((), ("r",), ("p",), ("p", "r"), ("r", "p"), ("r", "peer"), ("peer", "r"))
    for place, level in enumerate(index):
        yield (*index[:place], *index[place + 1 :])
        for other in ("r", "p", "peer"):
            if other != level:
                yield (*index[:place], other, *index[place + 1 :])
