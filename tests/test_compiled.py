"""The fast path gives the answers of the slow one, which says why."""

import inspect
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.backends import limits_of
from collective_rules.binding.compiled import _NO_PLAN, _UNDERSTOOD, plan_of
from collective_rules.check import _check
from collective_rules.infer import _infer
from collective_rules.ops.op import NONE, Op
from collective_rules.rules import Form, Rule
from tests.drawn import calls

PLANNED = [op for op in cr.ops() if plan_of(cr.lookup(op)) is not _NO_PLAN]
PLANS = 57
BACKENDS = (None, "gloo")
FEWER = settings(max_examples=settings().max_examples // 4)


def aliases(value: Any) -> Any:
    """The aliases of a result, which do not count when specs are compared."""
    return tuple(map(aliases, value)) if isinstance(value, tuple) else value.alias


@pytest.mark.parametrize("op", PLANNED)
@FEWER
@given(data=st.data())
def test_a_plan_never_passes_what_the_rule_refuses(op: str, data: st.DataObject) -> None:
    """Whatever is legal by the plan has no finding by the rule, with and without a backend."""
    call = data.draw(calls(cr.lookup(op)))
    for backend in BACKENDS:
        found = _check(call, backend, limits_of(backend, call.row))
        assert found == cr.check(call, backend)
    if plan_of(call.row).legal(call) is not None:
        assert _check(call, None, ()) == ()


@pytest.mark.parametrize("op", PLANNED)
@FEWER
@given(data=st.data())
def test_a_plan_infers_what_the_rule_infers(op: str, data: st.DataObject) -> None:
    """The same names, specs and aliases; where the plan gives up, nothing is lost."""
    call = data.draw(calls(cr.lookup(op)))
    fast = plan_of(call.row).infer(call)
    if fast is not None:
        slow = _infer(call)
        assert list(slow) == list(fast)
        assert slow == fast
        assert list(map(aliases, slow.values())) == list(map(aliases, fast.values()))


@pytest.mark.parametrize("op", PLANNED)
@FEWER
@given(data=st.data())
def test_a_plain_legal_call_takes_the_fast_path(op: str, data: st.DataObject) -> None:
    """The usual form of a call that nothing is wrong with never waits for the slow path to infer."""
    call = data.draw(calls(cr.lookup(op), broken=False))
    row = call.row
    no_rows = [column.argument for column in row.entry.splits.values() if column.empty == NONE]
    usual = call.attribute("root_tensor") in (None, 0) and all(call.arguments[name] != () for name in no_rows)
    if usual and row.reads and len(row.spellings) == 1 and _check(call, None, ()) == ():
        assert plan_of(row).infer(call) is not None


@pytest.mark.parametrize("op", PLANNED)
@FEWER
@given(data=st.data())
def test_what_is_inferred_is_legal(op: str, data: st.DataObject) -> None:
    """Written arguments that are what `infer` says have no finding, and are inferred again."""
    call = data.draw(calls(cr.lookup(op), broken=False))
    row = call.row
    only_written = [name for name in row.writes if name not in row.reads and name not in row.fresh]
    reads = {name: value for name, value in call.arguments.items() if name not in only_written}
    if not row.reads or any(finding.severity == "error" for finding in cr.check(call)):
        return
    inferred = cr.infer(cr.call(op, group=call.group, **reads))
    given_back = {name: _lists(inferred[name]) for name in only_written}
    again = cr.call(op, group=call.group, **reads, **given_back)
    assert {found.severity for found in cr.check(again)} <= {"undecidable"}  # uneven lists that peers choose
    assert cr.infer(again) == inferred


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def test_most_ops_have_a_plan() -> None:
    """An op is left out for a root, a size function or a batch, not by accident."""
    left_out = {op for op in cr.ops() if op not in PLANNED}
    for op in left_out:
        row = cr.lookup(op)
        entry = row.entry
        rooted = any(part.root_only for part in row.spellings[0].statement.parts)
        special = (
            entry.batch
            or entry.requirements
            or entry.kernel_dtypes
            or entry.omits
            or entry.dtypes
            or entry.own
            or entry.scratch
            or row.rule.fixed_dtypes
        )
        parts = row.spellings[0].statement.parts
        assert rooted or special or row.rule.derived or row.spellings[0].form.flat or not parts, op


@attrs.frozen
class _WiderOp(Op):
    tomorrow: str = ""


@attrs.frozen
class _WiderRule(Rule):
    tomorrow: tuple[str, ...] = ()


@attrs.frozen
class _WiderForm(Form):
    tomorrow: dict[str, str] = attrs.field(factory=dict)


def _fields(record: Any) -> dict[str, Any]:
    return {column.name: getattr(record, column.name) for column in attrs.fields(type(record))}


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("table", [Op, Rule, Form])
def test_a_column_that_a_plan_does_not_know_makes_it_give_up(table: type, used: bool) -> None:
    """A column of tomorrow changes nothing where it has its default; where it is used, only `bind` may answer."""
    row = cr.lookup("_c10d_functional::all_gather_into_tensor")
    values = {"tomorrow": {Op: "x", Rule: ("x",), Form: {"x": "y"}}[table]} if used else {}
    if table is Op:
        wider = attrs.evolve(row, entry=_WiderOp(**_fields(row.entry), **values))
    elif table is Rule:
        wider = attrs.evolve(row, rule=_WiderRule(**_fields(row.rule), **values))
    else:
        form = _WiderForm(**_fields(row.spellings[0].form), **values)
        wider = attrs.evolve(row, spellings=(attrs.evolve(row.spellings[0], form=form),))
    assert used == (plan_of(wider) is _NO_PLAN)


@pytest.mark.parametrize("table", _UNDERSTOOD)
def test_a_plan_names_only_columns_that_there_are(table: type) -> None:
    """A column that is renamed under its old name here would make every op slow, without a wrong answer."""
    gone = set(_UNDERSTOOD[table].split()) - {column.name for column in attrs.fields(table)}
    assert not gone, f"compiled._UNDERSTOOD names columns that {table.__name__} lacks: rename or drop them there"


def test_as_many_ops_as_ever_have_a_plan() -> None:
    """An op that loses its plan is still right, but many times slower."""
    assert len(PLANNED) >= PLANS, "ops lost their plan: name the new column in compiled._UNDERSTOOD, or lower PLANS"


def test_the_lines_of_a_plan_are_shown() -> None:
    """A traceback through a plan shows its text, as it does for the methods that attrs makes."""
    plan = plan_of(cr.lookup("_c10d_functional::all_gather_into_tensor"))
    assert "return {'output': " in inspect.getsource(plan.infer)
    assert "return specs" in inspect.getsource(plan.legal)
