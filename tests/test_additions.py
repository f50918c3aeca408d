"""An addition to the tables, tried on temporary ones: what fails is what is missing, and says what to do.

The op is one of a torch that is not there yet, and takes a form that its rule did not have.
"""

from collections.abc import Iterator
from unittest import mock

import attrs
import pytest
import torch

import collective_rules as cr
from collective_rules.errors import UnknownFormError
from collective_rules.ops import OPS
from collective_rules.ops.op import Op
from collective_rules.rules import RULES, Form
from tests import test_coverage, test_reference, test_tables
from tests.laws import RULE_LAWS, Law, in_form, is_illegal, laws_of
from tests.mutants import Mutant, op_mutants
from tests.test_mutants import survivors

OP, RULE, FORM = "c10d::_allgather_last_dim_", "all_gather_into_tensor", "last_dim"
ENTRY = Op(
    OP,
    RULE,
    {"input": "input_tensor", "output": "output_tensor"},
    forms=(FORM,),
    since="2.16",
    schema=f"{OP}(Tensor output_tensor, Tensor input_tensor, __torch__.torch.classes.c10d.ProcessGroup process_group, "
    "bool async_op=True, int timeout=-1) -> (Tensor, __torch__.torch.classes.c10d.Work)",
)


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    """The tables with the op and the form, and nothing else done."""
    rule = RULES[RULE]
    grown = attrs.evolve(rule, forms=(*rule.forms, Form(FORM, "input: *s d -> output: *s (W d)")))
    changed = Mutant("an op with a new form", ops={OP: ENTRY}, rules={RULE: grown})
    with mock.patch.dict(OPS, {OP: ENTRY}), mock.patch.dict(RULES, {RULE: grown}), changed.in_place():
        followers = [cr.lookup(op) for op, entry in OPS.items() if entry.rule == RULE]
        with mock.patch.dict(test_tables.FOLLOWERS, {RULE: followers}):
            yield


def test_the_op_is_known_at_once() -> None:
    """Its row is enough for infer and check, whatever torch runs."""
    call = cr.call(OP, group=cr.Group(4), input_tensor=(3, 2))
    assert cr.infer(call)["output_tensor"].shape == (3, 8)
    wrong = cr.call(OP, group=cr.Group(4), input_tensor=(3, 2), output_tensor=(12, 2))
    assert [found.severity for found in cr.check(wrong)][:1] == ["error"]
    assert not cr.lookup(OP).available


def test_the_oracle_and_the_simulated_answer_are_missing() -> None:
    """Both refuse the form, and say where to add it."""
    where = r"collective_rules/rules/oracles\.py, all_gather_into_tensor, and name it there"
    with pytest.raises(UnknownFormError, match=f"does not know the form 'last_dim'.*{where}"):
        test_tables.test_oracles_and_simulated_answers_know_every_form(RULES[RULE])
    with pytest.raises(UnknownFormError, match=r"rules/oracles\.py"):
        RULES[RULE].oracle([torch.zeros(2)] * 2, form=FORM)
    with pytest.raises(UnknownFormError, match=r"mode/simulated\.py, FILLERS, and name it there"):
        test_tables.simulated._filler(RULE, FORM)


def test_the_page_is_missing() -> None:
    """It is written anew by a command that the failure names."""
    with pytest.raises(pytest.fail.Exception, match=r"python -m collective_rules\.reference > docs/rules\.md"):
        test_reference.test_the_page_in_docs_is_the_one_that_the_tables_make(test_reference.reference())


def test_a_backend_that_takes_no_such_form_is_named() -> None:
    """Its table says which forms it takes, and so the op belongs to those that it lacks."""
    with pytest.raises(
        AssertionError, match=r"gloo takes none of the forms .'last_dim'.; mark the op as missing there"
    ):
        test_tables.test_a_backend_takes_some_form_of_every_op_that_it_has(OP, "gloo")


def test_nothing_else_is_missing() -> None:
    """All that the tables' other tests say holds, and none of them asks a torch that lacks the op to carry it out."""
    laws = [
        *laws_of.__wrapped__(OP),
        *(Law(law.__name__, lambda law=law: law(RULES[RULE]), False) for law in RULE_LAWS),
    ]
    for law in laws:
        law.holds()
    schemas = test_coverage.SNAPSHOTS[test_coverage.LIVE]
    assert test_coverage.gate(test_coverage.LIVE, schemas, OPS.values()) == []


def test_rows_that_do_not_take_the_form_are_seen_to_refuse_it() -> None:
    """None of their mutants survives that takes it, too: calls of the form are drawn."""
    for op in [op for op, entry in OPS.items() if entry.rule == RULE and op != OP]:
        laws = [Law("refused", lambda post=post: is_illegal(post), False) for post in in_form.__wrapped__(op, FORM)]
        takers = [mutant for mutant in op_mutants(op) if mutant.name.endswith(f"forms, also {FORM}")]
        assert len(takers) == 1
        assert survivors(takers, lambda mutant, laws=laws: laws) == {}, op
