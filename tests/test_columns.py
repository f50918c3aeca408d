"""A new column of `Op` or `Limit`, or a new backend, is used everywhere or refused by name: nothing ignores it."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import pytest
import torch

import collective_rules as cr
from collective_rules import backends
from collective_rules.backend_reference import backends_page, limit_row
from collective_rules.backends import BackendTable, Limit
from collective_rules.backends.columns import CONDITIONS, DEMANDS, PROSE, SCOPES, Condition, Demand, Plain
from collective_rules.ops.op import Op
from collective_rules.testing.broken.limits import UNBREAKABLE, WAYS
from collective_rules.testing.strategies import broken_calls, calls, sample, ways_to_break
from tests import test_tables
from tests.limit_mutants import limit_mutants
from tests.mutants import in_backends
from tests.test_mutants import expected, laws_of_limits, survivors

ROOT = Path(__file__).resolve().parents[1]
OP_COLUMNS = {field.name for field in attrs.fields(Op)}
LIMIT_COLUMNS = {field.name: field for field in attrs.fields(Limit)}


# -- columns of Op

_UNDRAWN = "a legal call needs no more than what the row of the op, or the rule, says of it"
_SAYS_RESULTS = "says what comes back, not what is passed"
_NOT_SHOWN = "says which ops meet, and when the call is over: agree and the mode ask"
_ON_SYMM_MEM = "a column of symmetric memory's rows, whose witnesses in test_symm_mem test it"

IRRELEVANT: Mapping[tuple[str, ...], Mapping[str, str]] = {
    ("collective_rules/reference.py", "collective_rules/cli/show.py"): {
        "parts": "shown as the notation in the op's own arguments",
        "also_reads": "listed with what the row reads",
        "schema": "shown as the arguments",
        "meets": _NOT_SHOWN,
        "done": _NOT_SHOWN,
    },
    ("collective_rules/testing/drawing.py",): {
        **dict.fromkeys(("op", "rule", "forms", "layouts", "schema"), "read through the row"),
        **dict.fromkeys(("returns", "scratch", "dtypes", "strides", "promotes", "omits", "own"), _SAYS_RESULTS),
        **dict.fromkeys(("row_scales", "elements", "exact", "group_size_ignored"), _UNDRAWN),
        "sparse": "strided tensors alone are drawn",
        "meets": "every rank calls the same op",
        "done": _SAYS_RESULTS,
        "since": "which torch has the op does not matter to a call as data",
    },
    ("tests/mutants.py",): {
        **dict.fromkeys(("dtypes", "strides", "promotes", "omits", "own", "elements"), _ON_SYMM_MEM),
        "meets": "test_agree_sequences tests it",
        "done": "test_mode_waits tests it",
        **dict.fromkeys(("since", "schema"), "test_coverage holds it against torch"),
    },
}
"""Those who enumerate the columns of `Op`, and the columns that they leave out, each with the reason."""


def columns_read(file: str) -> set[str]:
    """The columns of `Op` that a module reads from an entry, or writes as a key."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            owner = node.value
            if "entry" in (getattr(owner, "id", ""), getattr(owner, "attr", "")):
                found.add(node.attr)
        elif isinstance(node, ast.Dict):
            found |= {key.value for key in node.keys if isinstance(key, ast.Constant)}
    return found & OP_COLUMNS


@pytest.mark.parametrize("files", IRRELEVANT, ids=", ".join)
def test_every_column_of_op_is_used_or_left_out_for_a_reason(files: tuple[str, ...]) -> None:
    """A new column is read there, or the reason stands here why it does not matter."""
    used = set().union(*map(columns_read, files))
    unknown = sorted(OP_COLUMNS - used - IRRELEVANT[files].keys())
    assert [] == unknown, f"{' and '.join(files)}: read these columns of Op, or give a reason in {__name__}.IRRELEVANT"
    assert set() == IRRELEVANT[files].keys() & used, "the column is read there: take the reason out"
    assert set() == IRRELEVANT[files].keys() - OP_COLUMNS, "Op has no such column"


# -- columns of Limit


def unstated(limit: type[Limit]) -> Iterator[str]:
    """What is missing of the columns of a limit's class, in sentences."""
    for field in attrs.fields(limit):
        tables = [table for table in (PROSE, SCOPES, CONDITIONS, DEMANDS) if field.name in table]
        if len(tables) != 1:
            yield f"backends/columns.py: state the column {field.name!r} of Limit in one table, not in {len(tables)}"
        elif tables == [DEMANDS]:
            if (field.name in WAYS) == (field.name in UNBREAKABLE):
                yield f"broken/limits.py: say in WAYS how to go beyond {field.name!r}, or why not in UNBREAKABLE"
            if field.default not in (None, False):
                yield f"backends/limit.py: {field.name!r} demands nothing by None or False"


def test_every_column_of_limit_is_stated_once() -> None:
    """And there is a way to go beyond every demand."""
    assert [] == list(unstated(Limit))
    assert {*PROSE, *SCOPES, *CONDITIONS, *DEMANDS} == LIMIT_COLUMNS.keys()
    assert WAYS.keys() | UNBREAKABLE.keys() == DEMANDS.keys()


@attrs.frozen
class Placed(Limit):
    """A limit with two columns more: how the devices are linked, and the driver's version."""

    links: tuple[str, ...] | None = None
    driver: tuple[int, ...] | None = None


def all_reduce(*specs: Any, size: int = 2) -> cr.Call:
    return cr.call("c10d::allreduce_", group=cr.Group(size), tensors=list(specs))


def table(*limits: Limit, name: str = "acme") -> BackendTable:
    return BackendTable(name, "made up", limits)


LINKED = Placed("ACME1", "linked devices", "Link them.", rules=("all_reduce",), links=("cuda",))


def test_a_limit_with_a_column_that_nothing_states_is_an_error() -> None:
    """Never silently no limit, whether the call is plain or not; and what is missing is said."""
    with in_backends(table(LINKED)):
        for call in (all_reduce((3,)), all_reduce(cr.Spec((2, 2), stride=(1, 2)))):
            with pytest.raises(NotImplementedError, match="ACME1 sets the column 'links', of which backends/columns"):
                cr.check(call, "acme")
        assert cr.check(cr.call("c10d::barrier", group=cr.Group(2)), "acme") == ()
    assert [
        "backends/columns.py: state the column 'links' of Limit in one table, not in 0",
        "backends/columns.py: state the column 'driver' of Limit in one table, not in 0",
    ] == list(unstated(Placed))


def elsewhere(limit: Any, bound: Any) -> Iterator[tuple[str, Mapping[str, object]]]:
    for slot in bound.slots:
        if slot.spec.device not in limit.links:
            yield f"does not take tensors on {slot.spec.device}", {slot.label: slot.spec}
            return


def test_a_new_demand_is_stated_once() -> None:
    """Check finds it, no plain call passes beside it, drawn calls meet it, and its mutants are noticed or named."""
    with mock.patch.dict(DEMANDS, {"links": Demand(elsewhere)}), in_backends(table(LINKED)):
        (found,) = cr.check(all_reduce((3,)), "acme")
        assert (found.id, found.severity) == ("ACME1", "error")
        assert found.message.startswith("c10d::allreduce_: acme does not take tensors on cpu   [ACME1]")
        assert cr.check(all_reduce(cr.Spec((3,), device="cuda")), "acme") == ()
        nowhere = attrs.evolve(LINKED, links=("cpu", "cuda"))
        with in_backends(table(nowhere)):
            assert all(
                not cr.check(call, "acme")
                for group in sample(calls("c10d::allreduce_", backend="acme"), 20)
                for call in group
            )
        changed = [mutant.name for mutant in limit_mutants(table(LINKED), "ACME1")]
        assert {"ACME1: links, without cuda", "ACME1: links, left out"} <= {*changed}
        assert [
            "broken/limits.py: say in WAYS how to go beyond 'links', or why not in UNBREAKABLE",
            "backends/columns.py: state the column 'driver' of Limit in one table, not in 0",
        ] == list(unstated(Placed))


def test_a_new_condition_may_not_tell() -> None:
    """Then the finding is undecidable."""
    until = attrs.evolve(LINKED, links=None, dtypes=frozenset({torch.float32}), driver=(2, 24))
    condition = Condition(lambda limit, bound, backend: None, words=lambda limit: "before 2.24")
    with mock.patch.dict(CONDITIONS, {"driver": condition}), in_backends(table(until)):
        (found,) = cr.check(all_reduce(cr.Spec((3,), torch.int64)), "acme")
        assert (found.id, found.severity) == ("ACME1", "undecidable")
        assert limit_row(until)[-1] == "[all_reduce](rules.md#all_reduce) (before 2.24)"


@pytest.mark.parametrize(
    ("column", "value", "plain", "admitted"),
    [
        ("dtypes", frozenset({torch.float32}), Plain(frozenset({torch.float32}), "sum", "even"), True),
        ("dtypes", frozenset({torch.float32}), Plain(frozenset({torch.float64}), "sum", "even"), False),
        ("reduces", {"sum": frozenset({torch.int8})}, Plain(frozenset({torch.float32}), "max", "even"), True),
        ("reduces", {"sum": frozenset({torch.int8})}, Plain(frozenset({torch.float32}), "sum", "even"), False),
        ("forms", ("even",), Plain(frozenset(), "", "even"), True),
        ("forms", ("even",), Plain(frozenset(), "", "uneven"), False),
        ("single", ("avg",), Plain(frozenset(), "sum", "even"), True),
        ("single", ("avg",), Plain(frozenset(), "avg", "even"), False),
        ("one_dtype", True, Plain(frozenset({torch.float32}), "sum", "even"), True),
        ("one_dtype", True, Plain(frozenset({torch.float32, torch.int8}), "sum", "even"), False),
        ("promotes", True, Plain(frozenset({torch.float32}), "sum", "even"), True),
        ("promotes", True, Plain(frozenset({torch.float32, torch.int8}), "sum", "even"), False),
        ("nonempty", True, Plain(frozenset({torch.float32}), "sum", "even"), False),
        ("missing", True, Plain(frozenset(), "", ""), False),
    ],
)
def test_the_fast_path_admits_what_is_certainly_within(column: str, value: Any, plain: Plain, admitted: bool) -> None:
    """And gives up on all else."""
    limit = attrs.evolve(Limit("A1", "", ""), **{column: value})
    assert DEMANDS[column].admits(limit, plain) is admitted


def test_a_plain_call_within_every_limit_takes_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow path would find nothing, and take longer; what is beyond a limit waits for it."""
    module = importlib.import_module("collective_rules.check")  # the package's attribute is the function
    monkeypatch.setattr(module, "_check", mock.Mock(side_effect=AssertionError("slow")))

    def reduced(op: str, *dtypes: torch.dtype) -> cr.Call:
        name, specs = cr.lookup(op).reads[0], [cr.Spec((4, 3), dtype) for dtype in dtypes]
        value = specs if cr.lookup(op).by_name[name].depth else specs[0]
        return cr.call(op, group=cr.Group(2), **{name: value}, reduce_op="avg")

    one, several = "_c10d_functional::reduce_scatter_tensor", "c10d::allreduce_coalesced_"
    for call in (reduced(one, torch.float32), reduced(several, torch.float32, torch.float32)):
        assert cr.check(call, "gloo") == ()
    for call in (reduced(one, torch.int64), reduced(several, torch.float32, torch.float64)):
        with pytest.raises(AssertionError, match="slow"):
            cr.check(call, "gloo")


# -- a second backend

ACME = table(
    Limit("ACME1", "floats", "Convert.", rules=("reduce",), dtypes=frozenset({torch.float32, torch.float64})),
    Limit("ACME2", "the concatenated form", "Reshape.", ops=("c10d::_allgather_base_",), forms=("concatenated",)),
    Limit("ACME3", "nothing empty", "Do not.", ops=("c10d::broadcast_",), nonempty=True, from_size=2),
)  # fmt: skip


@pytest.fixture
def acme() -> Iterator[BackendTable]:
    """A second backend among the others, of three limits."""
    with in_backends(ACME):
        yield ACME


def test_a_second_backend_is_tested_by_what_tests_the_first(acme: BackendTable) -> None:
    """The laws of its ids and names hold, and the page has its section."""
    test_tables.test_the_ids_of_a_backend_are_its_name_and_count_up(acme)
    test_tables.test_a_backend_limits_ops_and_rules_that_exist(acme)
    test_tables.test_no_two_rules_share_a_prefix_and_no_id_is_used_twice()
    page = backends_page()
    assert "[acme](#what-acme-takes)" in page
    assert "| ACME3 | nothing empty | error |  | Do not. | `c10d::broadcast_` (groups of 2 or more) |" in page


@pytest.mark.parametrize("op", ["c10d::reduce_", "c10d::_allgather_base_", "c10d::broadcast_"])
def test_legal_calls_of_a_second_backend_are_within_its_limits(acme: BackendTable, op: str) -> None:
    """And those that go beyond one are found by its id."""
    assert all(not cr.check(call, "acme") for group in sample(calls(op, backend="acme"), 30) for call in group)
    beyond = [way for way in ways_to_break(op, backend="acme") if way.startswith("beyond ")]
    assert len(beyond) == 1
    for broken in sample(broken_calls(op, way=beyond[0], backend="acme", most_ranks=4), 10):
        assert broken.id in [found.id for call in broken.calls for found in cr.check(call, "acme")]


@pytest.mark.parametrize("id_", [limit.id for limit in ACME.limits])
def test_a_changed_limit_of_a_second_backend_is_noticed(acme: BackendTable, id_: str) -> None:
    """Its mutants are made and judged on generated calls; one in eight."""
    mutants = [mutant for place, mutant in enumerate(limit_mutants(acme, id_)) if place % 8 == 0]
    assert len(mutants) > 5
    assert expected(mutants) == survivors(mutants, laws_of_limits(acme))


def test_a_limit_that_limits_nothing_is_named() -> None:
    """The mutant without the limit survives, and nobody gives a reason."""
    idle = table(Limit("IDLE1", "any form", "None.", rules=("all_reduce",), forms=("even", "copied")), name="idle")
    with in_backends(idle):
        mutants = [
            mutant for mutant in limit_mutants(idle, "IDLE1") if mutant.name.endswith(("left out", "without copied"))
        ]
        left = survivors(mutants, laws_of_limits(idle))
        assert "IDLE1: left out" in left


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (Limit("ACME1", "", "", ops=("c10d::all_reduce",), missing=True), "no op 'c10d::all_reduce'"),
        (Limit("ACME1", "", "", rules=("allreduce",), missing=True), "no rule 'allreduce'"),
        (Limit("ACME1", "", "", namespaces=("c10",), missing=True), "no namespace 'c10'"),
        (Limit("ACME1", "", "", missing=True), "names no op"),
        (Limit("ACME1", "", "", rules=("all_gather",), forms=("flat",)), "no op that it names has the form 'flat'"),
        (Limit("ACME1", "", "", rules=("reduce",), reduces={"mean": frozenset()}), "no reduce op 'mean'"),
        (Limit("ACME1", "", "", rules=("reduce",)), "demands nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_row_of_a_backend_is_named(limit: Limit, said: str) -> None:
    """What fails, says which limit, and what is wrong with it."""
    with pytest.raises(AssertionError, match=f"ACME1.*{said}"):
        test_tables.test_a_backend_limits_ops_and_rules_that_exist(table(limit))


def test_a_backend_that_takes_none_of_an_op_s_forms_says_so() -> None:
    """Check finds it for every call, and nothing legal is drawn."""
    forms = table(Limit("ACME1", "", "Use another op.", rules=("all_reduce",), forms=("stacked",)))
    with in_backends(forms):
        (found,) = cr.check(all_reduce((3,)), "acme")
        assert found.message.startswith(
            "c10d::allreduce_: acme takes only the stacked form, and the op has only even   [ACME1]"
        )
        with pytest.raises(cr.CallError, match="c10d::allreduce_: acme takes none of its forms"):
            calls("c10d::allreduce_", backend="acme")
    missing = table(Limit("ACME1", "", "", rules=("all_reduce",), missing=True))
    with in_backends(missing), pytest.raises(cr.CallError, match="c10d::allreduce_: acme has no kernel for it"):
        calls("c10d::allreduce_", backend="acme")


def test_a_backend_is_forgotten_afterwards() -> None:
    """The table is put in place for a while."""
    with in_backends(ACME):
        assert "acme" in backends.BACKENDS
    with pytest.raises(cr.CallError, match="backend='acme', but should be one of 'gloo'"):
        cr.check(all_reduce((3,)), "acme")
