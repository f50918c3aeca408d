"""The tables against real gloo: legal calls do what rules and oracles say, broken ones are found, and refused or worse.

Calls are drawn by the public strategies. Values tell rank, tensor and position, and every tensor lies between canaries.
What broken calls come to is run in a sandbox, and held against the record in `gloo_outcomes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.backends import BACKENDS
from collective_rules.rules import RULES
from collective_rules.sandbox import Sandbox
from collective_rules.testing import World, world
from collective_rules.testing.drawing import drawable
from collective_rules.testing.expected import expected_values
from collective_rules.testing.run_calls import TRY_CALLS, carry_out, payload_of
from collective_rules.testing.strategies import Broken, broken_calls, calls, sample, ways_to_break
from collective_rules.testing.tensors import flat, make
from collective_rules.testing.world import has_cpu_kernel
from tests.gloo_outcomes import OUTCOMES

ROWS = [cr.lookup(op) for op in cr.ops()]
ON_GLOO = [row.op for row in ROWS if has_cpu_kernel(row)]
DRAWABLE = [row.op for row in ROWS if not drawable(row)]
Group = tuple[cr.Call, ...]

WITHOUT_KERNEL = {
    "symm_mem": "symmetric memory is CUDA's",
    "c10d::gather_into_tensor_": "torch has it since 2.14",
    "_c10d_functional::wait_tensors": "torch has it since 2.15",
}


def part(share: int) -> settings:
    """Settings for one `share`-th of the profile's examples."""
    return settings(max_examples=max(1, settings.default.max_examples // share))


def errors(findings: tuple[cr.Finding, ...]) -> list[str]:
    return [str(found) for found in findings]


# -- legal calls


def test_every_op_without_a_gloo_kernel_has_its_reason() -> None:
    """No op is left out silently, and every other can be drawn."""
    missing = [row.op for row in ROWS if row.op not in ON_GLOO]
    assert missing == [op for op in missing if op in WITHOUT_KERNEL or op.partition("::")[0] in WITHOUT_KERNEL]
    assert not any(op in WITHOUT_KERNEL or op.partition("::")[0] in WITHOUT_KERNEL for op in ON_GLOO)
    assert set(ON_GLOO) <= set(DRAWABLE)


@pytest.mark.parametrize("op", ON_GLOO)
@part(5)
@given(data=st.data())
def test_gloo_does_with_legal_calls_what_rules_and_oracles_say(op: str, data: st.DataObject) -> None:
    """Sizes, dtypes, strides, aliases, values, and no other memory touched; check and agree find nothing."""
    group = data.draw(calls(op))
    for call in group:
        assert errors(cr.check(call, backend="gloo")) == []
    assert errors(cr.agree(group, backend="gloo")) == []
    trial = carry_out(world(group[0].group.size), group)
    assert ("ok", ()) == (trial.outcome, trial.details)


@pytest.mark.parametrize("op", DRAWABLE)
@part(5)
@given(data=st.data())
def test_what_the_rules_alone_allow_is_drawn(op: str, data: st.DataObject) -> None:
    """Without a backend's limits, too: neither check nor agree finds an error."""
    group = data.draw(calls(op, backend=None))
    for call in group:
        assert errors(cr.check(call)) == []
    assert errors(cr.agree(group)) == []


def reads_something(call: cr.Call) -> bool:
    statement = call.row.spellings[0].statement
    return any(not each.root_only or call.is_root for each in statement.reads)


ONLY_WRITE = [
    op for op in ON_GLOO if (set(cr.lookup(op).writes) - set(cr.lookup(op).reads)) & cr.lookup(op).by_name.keys()
]


@pytest.mark.parametrize("op", ONLY_WRITE)
@part(5)
@given(data=st.data())
def test_infer_promises_what_a_written_argument_must_be(op: str, data: st.DataObject) -> None:
    """Left out, its shape and dtype are inferred wherever this rank reads something."""
    group = data.draw(calls(op))
    for call in group:
        row = call.row
        left_out = [name for name in row.writes if name not in row.reads and name in call.arguments]
        kept = {name: value for name, value in call.arguments.items() if name not in left_out}
        inferred = cr.infer(cr.call(call.op, group=call.group, **kept))
        for name in left_out:
            promised = [(spec.shape, spec.dtype) for spec in flat(inferred[name])]
            given_ = [(spec.shape, spec.dtype) for spec in flat(call.arguments[name])]
            if reads_something(call):
                assert given_ == promised
            else:
                assert {shape for shape, _ in promised} <= {None}


@pytest.mark.parametrize("op", ON_GLOO)
def test_every_written_argument_is_written(op: str) -> None:
    """Some legal call changes it: the column names no argument that the op leaves alone."""
    row = cr.lookup(op)
    changed: set[str] = set()

    for group in sample(calls(op, most_ranks=3), 30):
        made = {call.group.rank: make(call) for call in group}
        size = group[0].group.size
        ops = [made[rank].call.op if rank in made else op for rank in range(size)]
        world(size).run(ops, [made[rank].arguments if rank in made else None for rank in range(size)])
        for one in made.values():
            for name in one.call.row.writes if one.call.row is row else ():
                after, before = flat(one.arguments.get(name, [])), flat(one.contents.get(name, []))
                if any(not torch.equal(a, b) for a, b in zip(after, before, strict=True)):
                    changed.add(name)
    assert set(row.writes) & row.by_name.keys() == changed


@pytest.mark.parametrize(("size", "outcome"), [(1, "silently wrong"), (2, "raises")])
def test_a_complex_tensor_without_dims_is_not_gathered_by_torch(size: int, outcome: str) -> None:
    """On no backend: the functional op views it as a real one of a dim, and the result as a complex one."""
    scalar = {"input": cr.Spec((), torch.complex64)}
    group = [
        cr.call("_c10d_functional::all_gather_into_tensor", group=cr.Group(size, r), **scalar) for r in range(size)
    ]
    assert ["error"] * size == [found.severity for call in group for found in cr.check(call)]
    for backend in ("gloo", "fake"):
        with World(size, backend=backend) as trying:
            assert outcome == carry_out(trying, group).outcome


# -- autograd

BACKWARD = {
    "_c10d_functional_autograd::all_gather_into_tensor": "_c10d_functional::reduce_scatter_tensor",
    "_c10d_functional_autograd::reduce_scatter_tensor": "_c10d_functional::all_gather_into_tensor",
    "_c10d_functional_autograd::all_to_all_single": "_c10d_functional::all_to_all_single",
}
"""An autograd op → the collective that its backward pass is."""


def backward_of(call: cr.Call) -> cr.Call:
    """The collective of the gradients: of the outputs' sizes, with split sizes swapped."""
    splits = {"input_split_sizes": "output_split_sizes", "output_split_sizes": "input_split_sizes"}
    given_ = {other: call.arguments[name] for name, other in splits.items() if call.arguments.get(name)}
    reduces = {"reduce_op": "sum"} if cr.lookup(BACKWARD[call.op]).reduce_op else {}
    return cr.call(BACKWARD[call.op], group=call.group, input=cr.infer(call)["output"], **given_, **reduces)


@pytest.mark.parametrize("op", BACKWARD)
@part(5)
@given(data=st.data())
def test_a_backward_pass_is_the_opposite_collective(op: str, data: st.DataObject) -> None:
    """Gradients that tell rank and position come to lie where the opposite rule's oracle puts them."""
    group = data.draw(calls(op, most_ranks=4))
    floats = [attrs.evolve(call, arguments={**call.arguments, **plain(call)}) for call in group]
    ranks: World = world(len(group))
    gradients = {call.group.rank: make(backward_of(call)) for call in floats}
    expected = expected_values(gradients)

    def run(rank: int) -> torch.Tensor:
        made = make(floats[rank])
        tensor = made.arguments["input"].clone().requires_grad_()
        arguments = {**made.arguments, "input": tensor, "group_name": ranks.groups[rank]}
        output = getattr(torch.ops._c10d_functional_autograd, op.partition("::")[2])(**arguments)
        torch.ops._c10d_functional.wait_tensor(output).backward(gradients[rank].arguments["input"])
        gradient: Any = tensor.grad
        return gradient

    for rank, outcome in enumerate(ranks.each(run)):
        assert outcome.error is None
        (wanted,) = expected[rank].values()
        assert torch.equal(wanted, outcome.values[0])


def plain(call: cr.Call) -> dict[str, Any]:
    """Floats, which have gradients, and a sum, whose gradient is everyone's.

    Split sizes are written out: torch's backward takes the input's for the output's, and an empty list means equal
    shares of an input, but no rows of an output.
    """
    size, shape = call.group.size, call.arguments["input"].shape
    given_: dict[str, Any] = {call.row.reduce_op: "sum"} if call.row.reduce_op else {}
    shares = zip(call.row.splits, (shape[0] // size, 0), strict=False)
    given_ |= {name: (share,) * size for name, share in shares if not call.arguments[name]}
    return {"input": cr.Spec(shape, torch.float32), **given_}


# -- broken calls

WAYS = [(op, way, "gloo") for op in ON_GLOO for way in ways_to_break(op)]
WAYS += [(op, way, None) for op in DRAWABLE for way in ways_to_break(op, backend=None)]


@pytest.mark.parametrize(("op", "way", "backend"), WAYS)
def test_a_broken_call_is_found(op: str, way: str, backend: str | None) -> None:
    """By check, in that rank's call and no other; what takes two ranks, by agree alone."""

    # Inside: of a test with parameters hypothesis links the settings of every run to those of the last, and ends in a
    # RecursionError after a thousand.
    @part(25)
    @given(broken_calls(op, way=way, backend=backend))
    def is_found(broken: Broken) -> None:
        found = {call.group.rank: {each.id for each in cr.check(call, backend)} for call in broken.calls}
        if broken.local and broken.rank is not None:
            assert broken.id in found.pop(broken.rank)
        elif broken.local:
            assert broken.id in set().union(*found.values())
            return
        assert {rank: ids for rank, ids in found.items() if ids} == {}
        if not broken.local:
            assert broken.id in {each.id for each in cr.agree(broken.calls, backend) if each.severity == "error"}

    is_found()


def drawn(op: str, way: str, count: int) -> list[Broken]:
    """The same few broken groups every time."""
    return sample(broken_calls(op, way=way, most_ranks=4), count, seed=1)


def broken_groups(count: int) -> list[Broken]:
    """`count` broken groups of every op and way."""
    return [broken for op, way, backend in WAYS if backend for broken in drawn(op, way, count)]


def observed(cases: list[Broken], *, timeout: float = 1.0) -> Iterator[tuple[Broken, str, str]]:
    """Run broken groups on gloo, in a sandbox; a rank that does not answer in time hangs."""
    with Sandbox(deadline=20.0 * timeout, workers=16) as sandbox:
        for place, verdict in sandbox.map(TRY_CALLS, [payload_of(broken.calls, timeout=timeout) for broken in cases]):
            died = f"dies by {verdict.signal}" if verdict.signal else ""
            yield cases[place], died or verdict.outcome, verdict.message


@pytest.mark.timeout(600)
def test_gloo_answers_broken_calls_as_recorded() -> None:
    """Each constraint's outcome is one that has been seen of it before; ranks that seem to hang get more time."""
    cases = broken_groups(max(1, settings.default.max_examples // 100))
    for timeout in (1.0, 15.0):
        new = [each for each in observed(cases, timeout=timeout) if each[1] not in OUTCOMES.get(each[0].id, ())]
        cases = [broken for broken, _, _ in new]
    assert [] == [f"{b.id}: {outcome}: {b.change} in {b.calls}: {message}" for b, outcome, message in new]


SILENT = {
    "AR12": "torch never reads this group_size",
    "BC12": "torch never reads this group_size",
    "GLOO11": "numbers as small as those drawn survive the rounding",
}
"""Constraints whose breach gloo may pass with the right values, each with the reason."""


def test_gloo_minds_every_breach() -> None:
    """A broken call is broken: with few exceptions, it never just works."""
    harmless = {id_ for id_, outcomes in OUTCOMES.items() if set(outcomes) == {"ok"}}
    assert harmless == SILENT.keys()


RAW = "a raw tensor that overlaps itself is not dense"
SYMMETRIC = "only symm_mem's ops can violate it"
UNREACHABLE = {
    ("reduce", "overlap"): RAW,
    ("recv", "overlap"): RAW,
    ("recv", "order"): "gloo takes contiguous messages alone",
    ("send", "order"): "gloo takes contiguous messages alone",
    ("all_gather_into_tensor", "dense"): SYMMETRIC,
    ("all_gather_into_tensor", "order"): SYMMETRIC,
    ("all_reduce", "argument"): SYMMETRIC,
    ("reduce_scatter_tensor", "argument"): SYMMETRIC,
    ("reduce_scatter_tensor", "dense"): SYMMETRIC,
    ("wait", "lists"): "wait_tensors alone takes a list, since torch 2.15",
}


def test_every_constraint_is_broken_or_out_of_reach() -> None:
    """No id of a rule with a gloo op lacks its proof or its reason, nor any of gloo's limits."""
    rules = {row.rule.name: row.rule for row in ROWS if row.op in ON_GLOO}
    wanted = {(name, id_): kind for name, rule in rules.items() for id_, kind in rule.constraints.items()}
    missing = {(name, kind) for (name, id_), kind in wanted.items() if id_ not in OUTCOMES}
    assert missing == UNREACHABLE.keys()
    limits = {limit.id for limit in BACKENDS["gloo"].limits if not limit.missing}  # no kernel, nothing to run
    assert limits == {id_ for id_ in OUTCOMES if id_.startswith("GLOO")}
    assert {id_ for rule in RULES.values() for id_ in rule.constraints} | limits >= OUTCOMES.keys()
