"""Laws of the tables: ids, kinds, forms, columns and look-ups; a rule lists what its ops can violate, and no more."""

import ast
import functools
import inspect
from collections.abc import Iterator
from itertools import chain

import pytest
import torch

import collective_rules as cr
from collective_rules.backends import BACKENDS, BackendTable, limits_of, spellings_of
from collective_rules.backends.columns import demands_of, holds_for
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.mode import simulated
from collective_rules.notation import ANY, GroupSize, Name, Number, Rest, Shares, Splits, parse_path
from collective_rules.ops import OPS, lookup
from collective_rules.ops import op as op_columns
from collective_rules.rules import GROUP_RULES, KINDS, RULES, Rule, size_functions

FOLLOWERS = {name: [lookup(op) for op, entry in OPS.items() if entry.rule == name] for name in RULES}
RAW = (op_columns.SENT, op_columns.DENSE, op_columns.FORMAT, op_columns.CONTIGUOUS)
LAYOUTS = (op_columns.ANY, op_columns.ORDER, *RAW)
OWN_KIND = ("reduce_op", "root", "peer", "tag", "group_size")
NOT_AGREED = ("peer", "group_size", "root_tensor")
"""Attributes that may differ between the ranks, or are compared with the group instead."""


# -- ids


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_ids_of_a_rule_are_one_prefix_and_count_up(rule: Rule) -> None:
    """`AR1`, `AR2`, … without a gap: none is used twice, and none is lost."""
    prefix = next(iter(rule.constraints)).rstrip("0123456789")
    assert prefix.isupper()
    assert [f"{prefix}{number}" for number in range(1, len(rule.constraints) + 1)] == list(rule.constraints)


def test_no_two_rules_share_a_prefix_and_no_id_is_used_twice() -> None:
    """Nor does a backend's limit have a rule's id."""
    rules = [id_ for rule in RULES.values() for id_ in rule.constraints]
    limits = [limit.id for backend in BACKENDS.values() for limit in backend.limits]
    assert len(set(rules + limits)) == len(rules + limits)
    prefixes = [next(iter(rule.constraints)).rstrip("0123456789") for rule in RULES.values()]
    assert len(set(prefixes)) == len(prefixes)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_the_ids_of_a_backend_are_its_name_and_count_up(backend: BackendTable) -> None:
    """`GLOO1`, `GLOO2` and so on."""
    wanted = [f"{backend.name.upper()}{number}" for number in range(1, len(backend.limits) + 1)]
    assert wanted == [limit.id for limit in backend.limits]


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_a_backend_limits_ops_and_rules_that_exist(backend: BackendTable) -> None:
    """A misspelt name would limit nothing."""
    assert [] == list(wrong_names(backend))


def wrong_names(backend: BackendTable) -> Iterator[str]:
    """What is wrong with the names in a backend's table, in sentences."""
    known = {
        "op": {*OPS},
        "rule": {*RULES},
        "namespace": {op.partition("::")[0] for op in OPS},
        "reduce op": {*REDUCE_OPS},
    }
    for limit in backend.limits:
        named = (*limit.ops, *limit.but), limit.rules, limit.namespaces, (*(limit.reduces or ()), *(limit.single or ()))
        for (kind, names), used in zip(known.items(), named, strict=True):
            yield from (f"{limit.id}: there is no {kind} {name!r}" for name in used if name not in names)
        rows = [lookup(op) for op in OPS if holds_for(limit, lookup(op))]
        if not rows:
            yield f"{limit.id} names no op"
        if not demands_of(limit):
            yield f"{limit.id} demands nothing"
        forms = {spelling.form.name for row in rows for spelling in row.spellings}
        named_forms = {*(limit.forms or ()), *limit.in_forms}
        yield from (f"{limit.id}: no op that it names has the form {form!r}" for form in named_forms - forms)
        parts = {part for row in rows for part in row.entry.parts}
        named_parts = {*(limit.layouts or ()), *(limit.ordered or ())}
        yield from (f"{limit.id}: no op that it names has the part {part!r}" for part in named_parts - parts)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
def test_a_backend_takes_some_form_of_every_op_that_it_has(op: str, backend: str) -> None:
    """Or the op is missing there: a limit of forms would refuse every call of it."""
    row = lookup(op)
    missing = any(limit.missing for limit in limits_of(backend, row))
    if not missing and row.spellings:
        names = [spelling.form.name for spelling in row.spellings]
        assert spellings_of(backend, row), f"{backend} takes none of the forms {names}; mark the op as missing there"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_lists_each_kind_once_and_only_known_ones(rule: Rule) -> None:
    """One id for each kind, and each kind has its sentence and its advice."""
    kinds = list(rule.constraints.values())
    assert set(kinds) <= set(KINDS)
    assert len(set(kinds)) == len(kinds)
    assert {kind: id_ for id_, kind in rule.constraints.items()} == {kind: rule.id_of(kind) for kind in kinds}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_some_rules(kind: str) -> None:
    """And its advice is a sentence."""
    assert any(kind in rule.constraints.values() for rule in (*RULES.values(), *GROUP_RULES.values()))
    assert KINDS[kind].advice.endswith(".")


# -- which kinds can be violated, from the columns alone


def written_arguments(row: cr.Row) -> set[str]:
    """The arguments, fresh returns apart, that the op writes."""
    return {name for name in row.writes if name in row.by_name}


@functools.cache
def raised_by(function: str) -> frozenset[str]:
    """The kinds that a size function demands, its helpers included, read from its source."""
    tree = ast.parse(inspect.getsource(size_functions))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found, seen, todo = set(), set(), [function]
    while todo:
        name = todo.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        for node in ast.walk(functions[name]):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                place = {"demand": 1, "Unsolvable": 0}.get(called)
                if place is None:
                    todo.append(called)
                else:
                    found.add(ast.literal_eval(node.args[place]))
    return frozenset(found)


def kinds_of_sizes(row: cr.Row) -> Iterator[str]:
    """What the text of the row's forms, and its lists, splits and size functions, can find wrong."""
    rule, entry, across = row.rule, row.entry, not row.rule.one_sided
    for spelling in row.spellings:
        parts = spelling.statement.parts
        sizes = [size for part in parts for size in part.sizes if getattr(size, "name", "") not in rule.derived]
        plain = [
            size.name for size in sizes if isinstance(size, (Name, Rest, Shares)) and not getattr(size, "index", ())
        ]
        indices = {index for size in sizes if isinstance(size, (Name, Rest)) for index in size.index}
        indices |= {ANY for size in sizes if isinstance(size, Splits)}
        if any(not isinstance(size, Rest) for part in parts for size in part.sizes):
            yield "dims"
        if (plain and across and not rule.point_to_point) or len(set(plain)) < len(plain):
            yield "sizes"
        if any(isinstance(size, (GroupSize, Number)) for size in sizes):
            yield "sizes"
        if across and indices & {"p", "peer", ANY}:
            yield "pairs"
        if any(isinstance(size, Shares) for size in sizes):
            yield "divides"
        if any(part.path.index for part in parts if part.path.name in row.by_name):
            yield "lists"
        if any(part.root_only and part.path.index and part.path.name not in row.in_place for part in parts):
            yield "presence"
    if row.splits:
        yield "splits"
    if any(split.empty == op_columns.EVEN for split in entry.splits.values()):
        yield "divides"
    for function in chain(entry.requirements, used_derived(row)):
        yield from raised_by(function.__name__)


def used_derived(row: cr.Row) -> Iterator:
    """The size functions of the names in the row's forms."""
    stated = {getattr(size, "name", "") for s in row.spellings for part in s.statement.parts for size in part.sizes}
    counted = any("i" in part.path.index for s in row.spellings for part in s.statement.writes)
    for name, function in row.rule.derived.items():
        if name in stated or (name == "length" and counted):
            yield function


def kinds_of_attributes(row: cr.Row) -> Iterator[str]:
    """What the arguments that are no tensors can be wrong in."""
    attributes, agreed = row.entry.attributes, row.rule.agreed
    yield from (kind for kind in OWN_KIND if kind in attributes)
    if {"root_tensor", "roots"} & set(attributes):
        yield "root"
    if any(name in agreed and name not in (*OWN_KIND, "roots") for name in attributes):
        yield "argument"
    if "dtype" in agreed:
        yield "dtype"
    if row.entry.batch is not None:
        yield from ("lists", "argument")


def kinds_of_memory(row: cr.Row) -> Iterator[str]:
    """What the layouts, overlaps and views of the row's tensors can be wrong in."""
    parts = row.spellings[0].statement.parts
    given = [part for part in parts if part.path.name in row.by_name]
    laid_out = [part for part in given if row.layout_of(part.path.name) != op_columns.ANY]
    if given:
        yield "strided"
    if any(row.layout_of(part.path.name) in RAW for part in given):
        yield "dense"
    several = len({part.path.name for part in laid_out}) > 1 or any({"p"} & set(p.path.index) for p in laid_out)
    if laid_out and (several or not row.rule.one_sided):
        yield "order"
    if written_arguments(row):
        yield "overlap"
    for part in given:
        name = part.path.name
        if len(part.path.index) > 1:
            if row.layout_of(name) not in (op_columns.ANY, op_columns.ORDER):
                yield "view"
        elif name in row.writes:
            yield "view"


def kinds_of_ranks(row: cr.Row) -> Iterator[str]:
    """What the ranks of a group can do apart."""
    if row.rule.point_to_point:
        yield "partner"
    elif not row.rule.one_sided:
        yield from ("call", "ranks")


def can_be_violated(row: cr.Row) -> set[str]:
    """The kinds of constraint that a call of this op can violate, alone or with other ranks."""
    if row.entry.batch is not None:  # its members are judged by their own rules
        return {"lists", "argument", "overlap"}
    return {*kinds_of_sizes(row), *kinds_of_attributes(row), *kinds_of_memory(row), *kinds_of_ranks(row)}


@pytest.mark.parametrize("op", OPS)
def test_a_rule_lists_every_kind_that_its_ops_can_violate(op: str) -> None:
    """Otherwise a wrong call would end in a KeyError instead of a finding."""
    row = lookup(op)
    assert set() == can_be_violated(row) - set(row.rule.constraints.values()), op


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_lists_no_kind_that_none_of_its_ops_can_violate(rule: Rule) -> None:
    """An id that nothing can emit is promised by the reference page, and proved by no test."""
    possible = set().union(*(can_be_violated(row) for row in FOLLOWERS[rule.name]))
    dead = {id_: kind for id_, kind in rule.constraints.items() if kind not in possible}
    assert not dead


# -- rules and their forms


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_rule_and_every_form_is_used_by_some_op(rule: Rule) -> None:
    """What no op uses cannot be checked against anything."""
    used = {spelling.form.name for row in FOLLOWERS[rule.name] for spelling in row.spellings}
    assert {form.name for form in rule.forms} == used


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_forms_of_a_rule_have_different_names_and_texts(rule: Rule) -> None:
    """A form is found by its name; `notation` is the usual one."""
    assert len({form.name for form in rule.forms}) == len(rule.forms)
    assert len({(form.text, form.flat) for form in rule.forms}) == len(rule.forms)
    assert rule.forms[0].text == rule.notation
    assert list(rule.forms) == [rule.form(form.name) for form in rule.forms]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_derived_name_stands_in_a_form(rule: Rule) -> None:
    """But for `length`, that of a list."""
    stated = {getattr(size, "name", "") for form in rule.forms for part in form.statement.parts for size in part.sizes}
    assert set(rule.derived) - {"length"} <= stated


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_written_name_is_read_or_derived_or_given(rule: Rule) -> None:
    """A name that only the written side has is a size function's, or the rule reads nothing, or nothing can tell it."""
    for form in rule.forms:
        read = {getattr(size, "name", "") for part in form.statement.reads for size in part.sizes}
        written = {getattr(size, "name", "") for part in form.statement.writes for size in part.sizes}
        unknown = written - read - set(rule.derived) - {""}
        assert not unknown or not form.statement.reads or (rule.name, unknown) in UNDECIDABLE, (form, unknown)


UNDECIDABLE = [("all_to_all_vdev", {"k"}), ("put", {"t"})]
"""Sizes that only the device knows, and memory of which the call touches a part."""


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_says_what_it_does_and_where_that_is_written(rule: Rule) -> None:
    """A title in one sentence, a source."""
    assert rule.title.endswith(".")
    assert rule.source
    assert set(rule.fixed_dtypes) <= {part.path.name for form in rule.forms for part in form.statement.parts}


def test_there_is_no_form_or_constraint_by_another_name() -> None:
    """Both look-ups say so."""
    with pytest.raises(KeyError, match="no form 'oblique'"):
        RULES["all_reduce"].form("oblique")
    with pytest.raises(KeyError, match="no constraint of kind 'taste'"):
        RULES["all_reduce"].id_of("taste")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_oracles_and_simulated_answers_know_every_form(rule: Rule) -> None:
    """A new form needs a few lines in each; until then both refuse it, and say where these lines go."""
    for form in rule.forms:
        if rule.oracle is not None and form.name not in rule.oracle.forms:
            rule.oracle([], form=form.name)
        simulated._filler(rule.name, form.name)
    if rule.oracle is not None:
        assert set(rule.oracle.forms) <= {form.name for r in RULES.values() for form in r.forms}, "no such form"


ROUTES = ("to root", "from root", "to each", "to peer", "from peer")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_columns_of_a_rule_hold_known_words(rule: Rule) -> None:
    """A misspelt word would be no direction, and no route."""
    assert rule.direction in ("", "send", "receive", "both")
    assert rule.route in ("", "ring", "chain from root", "chain to root", *ROUTES)
    assert rule.contents in ("all", "root", "none")
    assert rule.waits == (rule.name == "wait")


# -- rows


@pytest.mark.parametrize("op", OPS)
def test_an_op_is_found_by_name_overload_and_packet(op: str) -> None:
    """And always as the same row."""
    row = lookup(op)
    assert row is lookup(op) is lookup(f"{op}.default")
    assert op == row.op
    if row.available:
        namespace, _, name = op.partition("::")
        packet = getattr(getattr(torch.ops, namespace), name)
        assert row is lookup(packet)
        assert row is lookup(packet.default)


@pytest.mark.parametrize("op", OPS)
def test_the_parts_of_an_op_are_those_of_all_its_forms(op: str) -> None:
    """None is missing, and none is left over."""
    row = lookup(op)
    stated = {part.path.name for spelling in row.spellings for part in spelling.form.statement.parts}
    assert stated == set(row.entry.parts)


@pytest.mark.parametrize("op", OPS)
def test_every_form_of_an_op_has_the_same_parts(op: str) -> None:
    """What an op reads and writes does not depend on the form; `reads` and `writes` come from the usual one."""
    sides = {
        (
            tuple((part.path, part.root_only) for part in spelling.statement.reads),
            tuple((part.path, part.root_only) for part in spelling.statement.writes),
        )
        for spelling in lookup(op).spellings
    }
    assert len(sides) == 1


@pytest.mark.parametrize("op", OPS)
def test_the_lists_of_an_op_are_those_of_its_rule(op: str) -> None:
    """An op may add a list of one, or a coalescing `i`; where the rule runs over `p` or `i`, so does the op."""
    for spelling in lookup(op).spellings:
        for own, part in zip(spelling.statement.parts, spelling.form.statement.parts, strict=True):
            added = [i for i in own.path.index if i not in part.path.index]
            assert [i for i in own.path.index if i in part.path.index] == list(part.path.index)
            assert set(added) <= {"1", "i"}


@pytest.mark.parametrize("op", OPS)
def test_the_columns_of_an_op_name_what_exists(op: str) -> None:
    """Parts, layouts, reduce ops and overlaps are known ones."""
    row = lookup(op)
    entry, parts = row.entry, set(row.entry.parts)
    assert set(entry.splits) <= parts
    assert set(entry.dtypes) <= parts
    assert set(entry.strides) <= parts
    assert set(entry.own) <= {parse_path(path).name for path in entry.parts.values()}
    assert set(entry.row_scales) <= set(row.reads)
    assert set(entry.row_scales.values()) <= set(entry.also_reads)
    assert set(entry.layouts.values()) <= set(LAYOUTS)
    assert entry.overlap in (op_columns.FREE, op_columns.OWN, op_columns.UP_TO_OWN, op_columns.NEVER)
    assert set(entry.reduce_ops) <= set(REDUCE_OPS)
    assert not entry.reduce_ops or row.reduce_op
    assert not entry.group_size_ignored or row.group_size
    assert {split.empty for split in entry.splits.values()} <= {op_columns.EVEN, op_columns.NONE}


@pytest.mark.parametrize("op", OPS)
def test_split_sizes_are_stated_where_the_text_splits(op: str) -> None:
    """A part has a column of split sizes exactly where its text sums a row or a column of them."""
    row = lookup(op)
    for spelling in row.spellings:
        split = {
            behind
            for behind, part in zip(spelling.behind, spelling.statement.parts, strict=True)
            if any(isinstance(size, Splits) for size in part.sizes)
        }
        assert split == set(row.entry.splits)


@pytest.mark.parametrize("op", OPS)
def test_an_op_maps_every_argument_that_its_rule_agrees_on(op: str) -> None:
    """Otherwise ranks that disagree on it would go unseen."""
    row = lookup(op)
    mapped = set(row.entry.attributes.values())
    assert {name for name in row.rule.agreed if name in row.by_name} <= mapped
    for name in ("group_size", "root_rank", "reduce_op", "reduceOp", "dst", "peer"):
        assert name not in row.by_name or row.by_name[name].kind == "Tensor" or name in mapped


@pytest.mark.parametrize("op", OPS)
def test_a_rule_agrees_on_every_attribute_of_its_ops(op: str) -> None:
    """But for those that may differ, or are compared with the group."""
    row = lookup(op)
    if not row.rule.one_sided:
        assert set(row.entry.attributes) - set(NOT_AGREED) <= set(row.rule.agreed)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_root_only_part_has_a_root(rule: Rule) -> None:
    """Every op of a rule that says `@root` knows who the root is."""
    if any(part.root_only for form in rule.forms for part in form.statement.parts):
        assert all({"root", "roots"} & set(row.entry.attributes) for row in FOLLOWERS[rule.name])


@pytest.mark.parametrize("op", OPS)
def test_a_row_reads_and_writes_arguments_or_fresh_returns(op: str) -> None:
    """`fresh` is what is no argument; it is called output or outputs, and it is returned."""
    row = lookup(op)
    fresh = {name for name in (*row.reads, *row.writes) if name not in row.by_name}
    assert fresh == row.fresh
    assert fresh <= {"output", "outputs"}
    assert fresh == {output.name for output in row.returns if output.kind == "fresh"}
    assert {output.name for output in row.returns if output.kind == "argument"} <= set(row.by_name)


@pytest.mark.parametrize("op", OPS)
def test_what_a_schema_declares_written_is_written(op: str) -> None:
    """`(a!)` means a write, but for the annotations that the op table knows to mislead."""
    row = lookup(op)
    declared = {a.name for a in row.schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    assert MISLEADING.get(op, set()) == declared - set(row.writes)


MISLEADING = {
    "symm_mem::reduce_scatter_out": {"input"},
    "symm_mem::nvshmem_put": {"tensor"},
    "symm_mem::nccl_put": {"tensor"},
}
"""Arguments that a schema declares written, and that are only read (symm_mem.py says so at its top)."""

ROWS = {
    # op: reads, writes, returns
    "c10d::allreduce_": (("tensors",), ("tensors",), "tensors work"),
    "c10d::allgather_": (("input_tensors",), ("output_tensors",), "output_tensors work"),
    "c10d::_reduce_scatter_base_": (("input_tensor",), ("output_tensor",), "output_tensor work"),
    "c10d::reduce_scatter_tensor_coalesced_": (("inputs",), ("outputs",), "work"),
    "c10d::scatter_": (("input_tensors",), ("output_tensors",), "output_tensors work"),
    "c10d::gather_": (("input_tensors",), ("output_tensors",), "work"),
    "c10d::alltoall_base_": (("input",), ("output",), "work"),
    "c10d::send": (("tensors",), (), "work"),
    "c10d::recv_": ((), ("tensors",), "work"),
    "c10d::barrier": ((), (), "work"),
    "c10d::monitored_barrier_": ((), (), ""),
    "_c10d_functional::all_reduce": (("input",), ("output",), "output"),
    "_c10d_functional::all_reduce_": (("input",), ("input",), "input"),
    "_c10d_functional::all_reduce_coalesced": (("inputs",), ("outputs",), "outputs"),
    "_c10d_functional::all_gather_into_tensor_out": (("input",), ("out",), "out"),
    "_c10d_functional::reduce_scatter_tensor_coalesced": (("inputs",), ("outputs",), "outputs"),
    "_c10d_functional::isend": (("tensor",), (), "output"),
    "_c10d_functional::irecv": ((), ("tensor",), "tensor"),
    "_c10d_functional::batch_p2p_ops": (("tensors",), ("tensors",), "outputs"),
    "_c10d_functional::wait_tensor": (("tensor",), (), "tensor"),
    "_c10d_functional::wait_tensors": (("tensors",), (), "tensors"),
    "c10d_functional::wait_tensor": (("self",), (), "self"),
    "c10d_functional::all_gather_into_tensor": (("shard",), ("output",), "output"),
    "_dtensor::shard_dim_alltoall": (("input",), ("output",), "output"),
    "symm_mem::two_shot_all_reduce_out": (("input",), ("output", "input"), "output"),
    "symm_mem::one_shot_all_reduce_copy": (("local_input",), ("symm_buffer", "output"), "output"),
    "symm_mem::one_shot_all_reduce_copy_out": (("local_input",), ("symm_buffer", "out"), "out"),
    "symm_mem::reduce_scatter_out": (("input",), ("output",), "output"),
    "symm_mem::all_to_all_vdev": (("input", "in_splits"), ("out", "out_splits_offsets"), ""),
    "symm_mem::fused_all_gather_matmul": (("A", "Bs"), ("output", "outputs"), "output outputs"),
    "symm_mem::nvshmem_put_with_signal": (("tensor", "sigpad"), (), ""),
    "symm_mem::nccl_get": ((), ("tensor",), ""),
}


@pytest.mark.parametrize("op", ROWS)
def test_what_an_op_reads_writes_and_returns(op: str) -> None:
    """By example, from torch's sources."""
    row = lookup(op)
    reads, writes, returns = ROWS[op]
    assert reads == row.reads
    assert writes == row.writes
    assert returns.split() == [output.name for output in row.returns]


COLUMNS = {
    # op: group, reduce_op, root, peer, tag, group_size, splits
    "c10d::allreduce_": ("process_group", "reduce_op", "", "", "", "", ()),
    "c10d::broadcast_": ("process_group", "", "root_rank", "", "", "", ()),
    "c10d::reduce_": ("process_group", "reduce_op", "root_rank", "", "", "", ()),
    "c10d::alltoall_base_": ("process_group", "", "", "", "", "", ("input_split_sizes", "output_split_sizes")),
    "c10d::send": ("process_group", "", "", "dst", "tag", "", ()),
    "c10d::recv_": ("process_group", "", "", "src", "tag", "", ()),
    "c10d::recv_any_source_": ("process_group", "", "", "", "tag", "", ()),
    "_c10d_functional::broadcast": ("group_name", "", "src", "", "", "", ()),
    "_c10d_functional::reduce_scatter_tensor": ("group_name", "reduce_op", "", "", "", "group_size", ()),
    "_c10d_functional::isend": ("group_name", "", "", "dst", "tag", "", ()),
    "_c10d_functional::wait_tensor": ("", "", "", "", "", "", ()),
    "c10d_functional::all_reduce": ("ranks", "reduceOp", "", "", "", "group_size", ()),
    "c10d_functional::broadcast": ("ranks", "", "src", "", "", "group_size", ()),
    "_dtensor::shard_dim_alltoall": ("group_name", "", "", "", "", "", ()),
    "symm_mem::nccl_reduce_scatter_offset": ("group_name", "red_op", "", "", "", "", ()),
    "symm_mem::nvshmem_broadcast": ("group_name", "", "root", "", "", "", ()),
    "symm_mem::nccl_put_signal": ("hdl", "", "", "peer", "", "", ()),
    "symm_mem::nvshmem_put": ("", "", "", "peer", "", "", ()),
    "symm_mem::_barrier": ("symm", "", "", "", "", "", ()),
}


@pytest.mark.parametrize("op", COLUMNS)
def test_which_argument_holds_what(op: str) -> None:
    """The group, the reduce op, the root, the peer, the tag, the group size and the split sizes, by example."""
    row = lookup(op)
    found = (row.group, row.reduce_op, row.root, row.peer, row.tag, row.group_size, row.splits)
    assert COLUMNS[op] == found


def test_a_row_shows_its_notation() -> None:
    """In the op's own arguments."""
    row = lookup("c10d::allgather_")
    assert row.notation == "input_tensors[1]: *s -> output_tensors[1][p]: *s"
    assert f"<c10d::allgather_: {row.notation}>" == repr(row)
    assert row.namespace == "c10d"
