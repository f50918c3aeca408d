"""torch's meta and fake kernels as a third answer, beside the rules and real gloo.

One rank's call is given to torch's Meta kernel and, in a FakeTensorMode, to its fake one; what comes back is compared
with `infer`, and for a call that `check` refuses, whether it is refused at all. tests/torch_defects.py lists where
torch is wrong, and is held to be complete and true.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import pytest
import torch
import torch.distributed.distributed_c10d as c10d
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode, UnsupportedOperatorException
from torch.distributed import _meta_registrations

import collective_rules as cr
from collective_rules.ops import Row
from collective_rules.ops.op import ANY
from collective_rules.rules import RULES
from collective_rules.spec import Spec
from collective_rules.testing import Returned, World, WorldTimeout, world
from collective_rules.testing.broken import BREACHES
from collective_rules.testing.drawing import drawable
from collective_rules.testing.expected import _share, _steps
from collective_rules.testing.layouts import SLICED, TRANSPOSED, strides
from collective_rules.testing.run_calls import OK, carry_out
from collective_rules.testing.strategies import broken_calls, calls, ways_to_break
from collective_rules.testing.tensors import flat, mapped
from collective_rules.testing.world import has_cpu_kernel
from tests.torch_defects import ALIAS, ALONE, BOTH, DEFECTS, FAKE, META, NO_KERNEL, RAISES, RETURNS, STRIDE, Defect

ROWS = [row for row in map(cr.lookup, cr.ops()) if has_cpu_kernel(row)]
DRAWN = [row for row in ROWS if not drawable(row)]

listed = pytest.mark.skipif(
    not torch.__version__.startswith("2.13."), reason="tests/torch_defects.py lists the defects of torch 2.13"
)

TWO = cr.Group(size=2)
F, A, L = "_c10d_functional::", "_c10d_functional_autograd::", "c10d_functional::"
SHARD_DIM = "_dtensor::shard_dim_alltoall"

PATIENCE, SHORT = 5.0, 0.3

REFUSED = (
    cr.call(F + "reduce_scatter_tensor", group=TWO, input=(), reduce_op="sum"),
    cr.call(F + "reduce_scatter_tensor_out", group=TWO, input=(), out=(1,), reduce_op="sum"),
    cr.call(F + "reduce_scatter_tensor_coalesced", group=TWO, inputs=[()], reduce_op="sum"),
    cr.call(A + "reduce_scatter_tensor", group=TWO, input=(), reduce_op="sum"),
    cr.call(L + "reduce_scatter_tensor", group=TWO, input=(), reduceOp="sum"),
    cr.call(L + "reduce_scatter_tensor_coalesced", group=TWO, inputs=[()], reduceOp="sum"),
    *(
        cr.call(op + "all_to_all_single", group=TWO, input=shape, input_split_sizes=[1, 0], output_split_sizes=splits)
        for op in (F, A, L)
        for shape, splits in (((), [1, 0]), ((1,), [2, -1]))
    ),
    cr.call(L + "all_to_all_single", group=TWO, input=(2,), input_split_sizes=[1, 1]),
    cr.call(SHARD_DIM, group=TWO, input=(2, 2), gather_dim=2, shard_dim=1),
    cr.call(SHARD_DIM, group=TWO, input=(2, 2), gather_dim=0, shard_dim=2),
)
"""Illegal calls that torch's kernels do refuse, both of them."""

JUDGED = (
    *("sizes", "pairs", "divides", "dims", "splits", "lists", "dtype"),
    *("root", "presence", "peer", "tag", "reduce_op", "group_size", "argument"),
)
"""Kinds of constraints that a kernel could judge from what it is given: not memory, and not other ranks."""

ACROSS = "it lies between two ranks' calls"
ONE_TENSOR = "one tensor has one size and one dtype"
BOXED = "a boxed ReduceOp is always one that exists"
SYMMETRIC = "only symm_mem's ops can violate it"
IGNORED = "group_size is ignored, and a wrong one only warned of"

OUT_OF_REACH = {
    ("reduce", "sizes"): ONE_TENSOR,
    ("reduce", "dtype"): ONE_TENSOR,
    ("reduce", "reduce_op"): BOXED,
    ("reduce_scatter", "reduce_op"): BOXED,
    ("send", "pairs"): ACROSS,
    ("send", "dtype"): ACROSS,
    ("recv", "pairs"): ACROSS,
    ("recv", "dtype"): ACROSS,
    ("shard_dim_alltoall", "sizes"): ONE_TENSOR,
    ("shard_dim_alltoall", "dtype"): ONE_TENSOR,
    ("all_reduce", "group_size"): IGNORED,
    ("broadcast", "group_size"): IGNORED,
    ("all_reduce", "argument"): SYMMETRIC,
    ("reduce_scatter_tensor", "argument"): SYMMETRIC,
    ("wait", "lists"): "wait_tensors alone takes a list, since torch 2.15",
}


# -- asking a kernel


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put back what c10d's meta kernels take from `random`, and the ids that they keep for ever."""
    state, ids = random.getstate(), set(_meta_registrations.used_ids)
    try:
        yield
    finally:
        random.setstate(state)
        _meta_registrations.used_ids.intersection_update(ids)


@contextlib.contextmanager
def default_group(group: Any) -> Iterator[None]:
    before = c10d._world.default_pg
    c10d._world.default_pg = group
    try:
        yield
    finally:
        c10d._world.default_pg = before


@attrs.frozen(eq=False)
class Answer:
    """What a kernel made of a call's `arguments`."""

    arguments: dict[str, Any]
    outcome: Returned


def ask(call: cr.Call, witness: str, *, default: bool = False) -> Answer:
    """Give `call` to the witness, without or with its group as the default group.

    Only one rank of a world is asked: a kernel that sent anything would wait for the others in vain.
    """
    ranks = world(call.group.size, PATIENCE)
    asked: list[dict[str, Any] | None] = [None] * ranks.size
    with undisturbed(), contextlib.ExitStack() as stack:
        if default:
            stack.enter_context(default_group(ranks.groups[call.group.rank]))
        stack.enter_context(FakeTensorMode() if witness == FAKE else torch.device("meta"))
        given = {name: mapped(tensor_of, value) for name, value in call.arguments.items()}
        asked[call.group.rank] = given
        return Answer(given, ranks.run(call.op, asked)[call.group.rank])


def tensor_of(value: Any) -> Any:
    """Return a tensor without memory for a `Spec`. Made of no constant: a fake one of those is carried out for real."""
    return torch.empty_strided(value.shape, value.stride, dtype=value.dtype) if isinstance(value, Spec) else value


# -- comparing


def violated(call: cr.Call) -> set[str]:
    """Return the ids of the rules' constraints that `call` violates; those of a backend do not count."""
    ids = {finding.id for finding in cr.check(call) if finding.severity == "error"}
    return ids & {id for rule in RULES.values() for id in rule.constraints}


def disagreements(call: cr.Call, witness: str, violates: Iterable[str] = ()) -> dict[str, str]:
    """Return what the witness says otherwise than the rules, for which `call` `violates` these: kind → an instance."""
    found: list[tuple[str, str]] = []
    answer = ask(call, witness)
    if answer.outcome.error is not None:
        helped = ask(call, witness, default=True)
        if helped.outcome.error is None:
            found.append((ALONE, repr(answer.outcome.error)))
            answer = helped
    if violates:
        found += [(f"accepts {id}", f"{answer.outcome.values}") for id in violates if answer.outcome.error is None]
    elif answer.outcome.error is not None:
        missing = isinstance(answer.outcome.error, (NotImplementedError, UnsupportedOperatorException))
        found.append((NO_KERNEL if missing else RAISES, repr(answer.outcome.error)))
    else:
        found += unlike(call, answer)
    return dict(found)


def unlike(call: cr.Call, answer: Answer) -> Iterator[tuple[str, str]]:
    """Say where what was written and returned is not what `infer` says."""
    row, inferred = call.row, cr.infer(call)
    outputs = [output for output in row.returns if output.kind != "work"]
    returned = answer.outcome.values
    if len(returned) != len(outputs):
        yield RETURNS, f"{returned}, but should be {outputs}"
    results = [(name, answer.arguments[name]) for name in row.writes if name in answer.arguments]
    results += [(output.name, value) for output, value in zip(outputs, returned, strict=False)]
    for name, value in results:
        yield from unlike_value(name, inferred[name], value, answer.arguments)


def unlike_value(name: str, wanted: Any, got: Any, arguments: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if isinstance(wanted, tuple):
        if not isinstance(got, (list, tuple)) or len(got) != len(wanted):
            yield RETURNS, f"{name} is {got!r}, but should be {wanted}"
            return
        for place, (inner, item) in enumerate(zip(wanted, got, strict=True)):
            yield from unlike_value(f"{name}[{place}]", inner, item, arguments)
        return
    if not isinstance(got, torch.Tensor):
        yield RETURNS, f"{name} is {got!r}, but should be {wanted}"
        return
    actual = Spec.of(got)
    says = f"{name} is {actual} of strides {actual.stride}, but should be {wanted} of {wanted.stride}"
    if actual.dtype is not wanted.dtype:
        yield "dtype", says
    if actual.shape != wanted.shape:
        yield "shape", says
    elif _steps(actual) != _steps(wanted):
        yield STRIDE, says
    owners = [owner for owner, value in arguments.items() if any(_share(got, leaf) for leaf in flat(value))]
    if owners != ([wanted.alias] if wanted.alias else []):
        yield ALIAS, f"{name} is the memory of {owners}, but should be that of {wanted.alias}"


def excuses(defect: Defect, call: cr.Call, witness: str, kind: str) -> bool:
    """Whether `defect` says that this disagreement is to be expected."""
    concerned = kind == defect.kind and witness in defect.witnesses
    return concerned and call.op in {example.op for example in defect.examples} and defect.when(call)


def foretold(call: cr.Call, witness: str) -> set[str]:
    """Return the kinds of disagreement about a legal call that the list foretells."""
    return {
        defect.kind
        for defect in DEFECTS
        if not defect.kind.startswith("accepts") and excuses(defect, call, witness, defect.kind)
    }


# -- the list is complete


@listed
@pytest.mark.parametrize("row", DRAWN, ids=lambda row: row.op)
@settings(max_examples=settings().max_examples // 5)
@given(data=st.data())
def test_a_legal_call_has_the_listed_disagreements_and_no_others(row: Row, data: st.DataObject) -> None:
    """What the kernels make of one rank's legal call is what infer says, but where a row says that it is not."""
    group = data.draw(calls(row.op))
    drawn = data.draw(st.sampled_from([each for each in group if each.op == row.op]))
    call = relaid(drawn, data.draw(st.sampled_from(("", TRANSPOSED, SLICED))))
    for witness in BOTH:
        found = disagreements(call, witness)
        assert foretold(call, witness) == set(found), found


def relaid(call: cr.Call, layout: str) -> cr.Call:
    """Return the call with `layout` ("": as it is) for the tensors that may have any: most kernels err on strides."""
    free = {name for name in call.row.reads + call.row.writes if call.row.layout_of(name) == ANY} if layout else set()
    changed = {
        name: mapped(lambda spec: Spec(spec.shape, spec.dtype, strides(spec.shape, layout)), call.arguments[name])
        for name in sorted(free & set(call.arguments))
    }
    return cr.call(call.op, group=call.group, **{**call.arguments, **changed})


EXAMPLES = [pytest.param(defect, call, id=f"{defect.kind}-{call.op}") for defect in DEFECTS for call in defect.examples]
ILLEGAL = [call for defect in DEFECTS if defect.kind.startswith("accepts") for call in defect.examples] + [*REFUSED]


@listed
@pytest.mark.parametrize("call", ILLEGAL, ids=lambda call: f"{'-'.join(sorted(violated(call)))}-{call.op}")
def test_an_illegal_call_is_refused_but_for_the_listed_defects(call: cr.Call) -> None:
    """Each witness refuses it, where no row says that this witness accepts this violation."""
    assert violated(call)
    for witness in BOTH:
        for kind in disagreements(call, witness, violated(call)):
            assert any(excuses(defect, call, witness, kind) for defect in DEFECTS), f"{witness} {kind}"


def ways_to_judge(row: Row) -> list[str]:
    """Return the ways to break the op's calls that a kernel could notice."""
    known = {breach.name for breach in BREACHES if breach.kind in JUDGED}
    return [way for way in ways_to_break(row.op, backend=None) if way in known]


@listed
@pytest.mark.parametrize("row", [row for row in DRAWN if ways_to_judge(row)], ids=lambda row: row.op)
@settings(max_examples=settings().max_examples // 10)
@given(data=st.data())
def test_a_broken_call_is_refused_but_for_the_listed_defects(row: Row, data: st.DataObject) -> None:
    """However it is broken, as long as one rank's call shows it, and is not merely warned of."""
    broken = data.draw(broken_calls(row.op, way=data.draw(st.sampled_from(ways_to_judge(row))), backend=None))
    call = next(each for each in broken.calls if each.group.rank == broken.rank)
    ids = violated(call) & {broken.id} if broken.local else set()
    for witness in BOTH if ids else ():
        for kind, text in disagreements(call, witness, ids).items():
            assert any(excuses(defect, call, witness, kind) for defect in DEFECTS), f"{witness} {kind}: {text}"


@listed
def test_every_constraint_that_a_kernel_could_judge_is_put_to_it() -> None:
    """No such constraint of an op with a CPU kernel lacks an illegal call or a reason."""
    rules = {row.rule.name: row.rule for row in ROWS}
    wanted = {(name, kind) for name, rule in rules.items() for kind in rule.constraints.values() if kind in JUDGED}
    ids = {id for call in ILLEGAL for id in violated(call)}
    put = {(name, rule.constraints[id]) for name, rule in rules.items() for id in ids & set(rule.constraints)}
    assert wanted - set(OUT_OF_REACH) == put


@listed
def test_every_op_with_a_kernel_is_given_an_illegal_call() -> None:
    """But for those that read no size, root, peer or reduce op."""
    without = {call.op for defect in DEFECTS if defect.kind == NO_KERNEL for call in defect.examples}
    free = {row.op for row in ROWS if row.rule.name in ("barrier", "wait")}
    assert {row.op for row in ROWS} - without - free == {call.op for call in ILLEGAL}


# -- the list is true


@pytest.mark.parametrize(("defect", "call"), EXAMPLES)
def test_a_listed_defect_still_shows(defect: Defect, call: cr.Call) -> None:
    """On every torch: a row that no longer holds must go, or its `when` be narrowed."""
    if not has_cpu_kernel(call.row):
        pytest.skip(f"torch {torch.__version__} has no {call.op}")
    assert defect.when(call), f"{call} is no example of {defect.what!r}"
    for witness in defect.witnesses:
        mended = f"torch {torch.__version__} mended it, {witness}, {call.op}: take it out of tests/torch_defects.py"
        assert defect.kind in disagreements(call, witness, violated(call)), mended


@listed
@pytest.mark.parametrize(("defect", "call"), EXAMPLES)
def test_every_row_is_needed(defect: Defect, call: cr.Call) -> None:
    """What it lists, it alone excuses."""
    assert [defect] == [
        each for each in DEFECTS if any(excuses(each, call, witness, defect.kind) for witness in defect.witnesses)
    ]


@pytest.mark.parametrize(
    ("defect", "call"), [each for each in EXAMPLES if not each.values[0].kind.startswith("accepts")]
)
def test_gloo_is_with_the_rules_against_the_kernel(defect: Defect, call: cr.Call) -> None:
    """Where a kernel and infer disagree about a legal call, real gloo does what infer says."""
    trial = carry_out(world(call.group.size), group_of(call))
    assert OK == trial.outcome, f"{defect.what}: {trial}"


def group_of(call: cr.Call) -> list[cr.Call]:
    """Return the group that `call` is the call of rank 0 of: all make it, or one sends what it receives."""
    if call.row.rule.name != "recv":
        return [attrs.evolve(call, group=attrs.evolve(call.group, rank=rank)) for rank in range(call.group.size)]
    (received,) = call.row.writes
    sent = {received: call.arguments[received], "dst": call.group.rank, "tag": call.attribute("tag")}
    sender = cr.Group(size=call.group.size, rank=call.attribute("peer"))
    return [call, cr.call(call.op.replace("irecv", "isend"), group=sender, **sent)]


# -- the asking itself


def state() -> tuple[Any, ...]:
    groups = (c10d._world.default_pg, dict(c10d._world.pg_group_ranks), dict(c10d._world.tags_to_pg))
    return random.getstate(), set(_meta_registrations.used_ids), groups


@pytest.mark.parametrize("witness", BOTH)
def test_asking_leaves_nothing_behind(witness: str) -> None:
    """Neither groups nor a default group, nor what the kernels do to `random`."""
    before = state()
    call = cr.call("c10d::allreduce_", group=TWO, tensors=[(2,)])
    assert ask(call, witness, default=True).outcome.error is None
    assert before == state()


def test_a_message_would_be_noticed() -> None:
    """A kernel that did send would wait for the other ranks in vain."""
    with World(2, SHORT) as ranks, pytest.raises(WorldTimeout):
        ranks.run("c10d::allreduce_", [{"tensors": [torch.ones(2)]}, None])


@pytest.mark.parametrize(
    ("kinds", "value"),
    [
        ({RETURNS}, None),
        ({RETURNS}, [torch.empty(4)]),
        ({ALIAS, "shape"}, torch.empty(5)),
        ({ALIAS, "dtype"}, torch.empty(4, dtype=torch.int8)),
        ({ALIAS, STRIDE}, torch.empty(8)[::2]),
        ({ALIAS}, torch.empty(4)),
    ],
    ids=["none", "list", "shape", "dtype", "stride", "alias"],
)
def test_a_doctored_answer_shows_what_was_doctored(kinds: set[str], value: Any) -> None:
    """Each kind of disagreement is seen, and told from the others."""
    call = cr.call("c10d::_allgather_base_", group=TWO, input_tensor=(2,), output_tensor=(4,))
    answer = ask(call, META)
    assert [] == list(unlike(call, answer))
    doctored = attrs.evolve(answer, outcome=Returned((value,)))
    assert kinds == {kind for kind, _ in unlike(call, doctored)}


def test_a_missing_return_is_seen() -> None:
    call = cr.call("c10d::_allgather_base_", group=TWO, input_tensor=(2,), output_tensor=(4,))
    doctored = attrs.evolve(ask(call, FAKE), outcome=Returned())
    assert [RETURNS] == [kind for kind, _ in unlike(call, doctored)]
