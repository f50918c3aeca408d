"""Symbolic sizes: what comes in symbolic goes out symbolic, and no guard is added but the one that the rule demands."""

import itertools
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import collective_rules as cr

W = 4
GROUP = cr.Group(size=W, rank=1)
SHAPE = (16, 12)


class World:
    """A fresh `ShapeEnv` with its fake tensors."""

    def __init__(self) -> None:
        self.env = ShapeEnv()
        self.mode = FakeTensorMode(shape_env=self.env)

    def backed(self, shape: tuple[int, ...] = SHAPE, order: tuple[int, ...] | None = None) -> torch.Tensor:
        """A fake tensor all of whose sizes are symbols, with `shape` as their hints."""
        tensor = torch.empty(shape) if order is None else torch.empty_permuted(shape, order)
        dynamic = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * len(shape))
        return self.mode.from_tensor(tensor, symbolic_context=dynamic)

    def unbacked(self, *others: int) -> torch.Tensor:
        """A fake tensor whose first size only the run can tell."""
        size = self.env.create_unbacked_symint()
        torch._check(size >= 0)
        with self.mode:
            return torch.empty(size, *others)

    def guards(self) -> list[str]:
        """The guards added so far."""
        return [str(guard.expr) for guard in self.env.guards]

    def asserts(self) -> list[str]:
        """What the run will check, but for the sizes being none below zero."""
        each = itertools.chain.from_iterable(self.env.deferred_runtime_asserts.values())
        return [text for text in (str(one.expr) for one in each) if not text.startswith("0 <= ")]


@pytest.fixture
def world() -> World:
    """A fresh `ShapeEnv` for each test."""
    return World()


@attrs.frozen
class Case:
    """An op, its arguments made from the input, and the shape of its output made from the input's sizes."""

    op: str
    arguments: Callable[[Any], dict[str, Any]]
    output: Callable[[Any, Any], tuple[Any, ...]]
    divides: bool = False
    written: str = "output"


F = "_c10d_functional::"
CASES = {
    "all_gather_into_tensor": Case(F + "all_gather_into_tensor", lambda x: {"input": x}, lambda a, b: (W * a, b)),
    "all_gather_into_tensor_coalesced": Case(
        F + "all_gather_into_tensor_coalesced", lambda x: {"inputs": [x]}, lambda a, b: (W * a, b), written="outputs"
    ),
    "_allgather_base_": Case(
        "c10d::_allgather_base_", lambda x: {"input_tensor": x}, lambda a, b: (W * a, b), written="output_tensor"
    ),
    "reduce_scatter_tensor": Case(
        F + "reduce_scatter_tensor", lambda x: {"input": x, "reduce_op": "sum"}, lambda a, b: (a // W, b), divides=True
    ),
    "_reduce_scatter_base_": Case(
        "c10d::_reduce_scatter_base_",
        lambda x: {"input_tensor": x},
        lambda a, b: (a // W, b),
        divides=True,
        written="output_tensor",
    ),
    "all_reduce": Case(F + "all_reduce", lambda x: {"input": x, "reduce_op": "sum"}, lambda a, b: (a, b)),
    "allreduce_": Case("c10d::allreduce_", lambda x: {"tensors": [x]}, lambda a, b: (a, b), written="tensors"),
    "broadcast": Case(F + "broadcast", lambda x: {"input": x, "src": 0}, lambda a, b: (a, b)),
    "all_to_all_single, even": Case(
        "c10d_functional::all_to_all_single", lambda x: {"input": x}, lambda a, b: (W * (a // W), b), divides=True
    ),
    "shard_dim_alltoall": Case(
        "_dtensor::shard_dim_alltoall",
        lambda x: {"input": x, "gather_dim": 1, "shard_dim": 0},
        lambda a, b: (a // W, b * W),
        divides=True,
    ),
}

DIVIDING = {name: case for name, case in CASES.items() if case.divides}
CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def described(case: Case, tensor: Any) -> cr.Call:
    """The case's call of `tensor`."""
    return cr.call(case.op, group=GROUP, **case.arguments(tensor))


def first(value: Any) -> cr.Spec:
    """The one tensor of a list of one, or the tensor itself."""
    return value[0] if isinstance(value, tuple) else value


def hinted(sizes: Any) -> tuple[int, ...]:
    """Sizes with their hints put in."""
    return tuple(size if isinstance(size, int) else int(size.node.hint) for size in sizes)


# -- sizes that have a hint


@CASE
def test_backed_sizes_stay_symbolic(case: Case, world: World) -> None:
    """The output's sizes are expressions of the input's."""
    tensor = world.backed()
    inferred = first(cr.infer(described(case, tensor))[case.written])
    wanted = case.output(*tensor.shape)
    assert all(isinstance(size, torch.SymInt) for size in inferred.shape)
    assert [str(world.env.simplify(size.node.expr)) for size in wanted] == [
        str(world.env.simplify(size.node.expr)) for size in inferred.shape
    ]


@CASE
def test_infer_adds_no_guard_but_divisibility(case: Case, world: World) -> None:
    """A program is specialised to nothing that the rule does not demand, however often it is asked."""
    tensor = world.backed()
    for _ in range(3):
        first(cr.infer(described(case, tensor))[case.written])
    wanted = [f"Eq(Mod({tensor.shape[0]}, {W}), 0)"] if case.divides else []
    assert wanted == world.guards()
    assert world.asserts() == []


@CASE
@pytest.mark.parametrize("order", [None, (1, 0)], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("backend", [None, "gloo"])
def test_check_adds_no_guard(case: Case, world: World, order: tuple[int, ...] | None, backend: str | None) -> None:
    """Looking does not change the program: neither at the sizes, nor at symbolic strides."""
    call = described(case, world.backed(order=order))
    cr.check(call, backend)
    assert world.guards() == []
    assert world.asserts() == []


@CASE
def test_comparing_ranks_adds_no_guard(case: Case, world: World) -> None:
    """Every rank of a traced program has the same symbols."""
    tensor = world.backed()
    calls = [cr.call(case.op, group=cr.Group(size=W, rank=r), **case.arguments(tensor)) for r in range(W)]
    assert cr.agree(calls) == ()
    assert world.guards() == []


@CASE
def test_counting_bytes_adds_no_guard_but_divisibility(case: Case, world: World) -> None:
    """Bytes are expressions of the sizes."""
    tensor = world.backed()
    cr.traffic(described(case, tensor))
    demanded = [f"Eq(Mod({tensor.shape[0]}, {W}), 0)"] * case.divides
    assert set(world.guards()) <= set(demanded)


@CASE
def test_a_legal_symbolic_call_is_found_legal(case: Case, world: World) -> None:
    """A backed size is answered by its hint."""
    assert cr.check(described(case, world.backed()), "gloo") == ()


@pytest.mark.parametrize("case", DIVIDING.values(), ids=DIVIDING)
def test_an_illegal_symbolic_call_is_found_illegal(case: Case, world: World) -> None:
    """By its hint too, without a guard, and infer refuses it."""
    call = described(case, world.backed((18, 12)))
    (found,) = cr.check(call)
    kind = cr.lookup(case.op).rule.constraints[found.id]
    assert (kind, found.severity) == ("divides", "error")
    assert world.guards() == []
    with pytest.raises(cr.CallError):
        cr.infer(call)


@CASE
@pytest.mark.parametrize("order", [None, (1, 0)], ids=["contiguous", "transposed"])
def test_symbolic_results_are_the_plain_ones_with_the_hints_put_in(
    case: Case, world: World, order: tuple[int, ...] | None
) -> None:
    """Shape, strides, dtype, device and alias; and the findings."""
    plain = torch.empty(SHAPE) if order is None else torch.empty_permuted(SHAPE, order)
    symbolic = world.backed(order=order)
    assert [f.id for f in cr.check(described(case, plain))] == [f.id for f in cr.check(described(case, symbolic))]
    wanted, got = (first(cr.infer(described(case, tensor))[case.written]) for tensor in (plain, symbolic))
    assert wanted.shape == hinted(got.shape)
    assert wanted.stride == hinted(got.stride)
    assert (wanted.dtype, wanted.device, wanted.alias) == (got.dtype, got.device, got.alias)


def test_symbolic_split_sizes_are_summed(world: World) -> None:
    """Not specialised: the output is the sum of the output's split sizes."""
    a, b = world.backed((3, 5)).shape
    splits = [a, b, a, b]
    call = cr.call(
        F + "all_to_all_single",
        group=cr.Group(size=W, rank=0),
        input=cr.Spec((a + b + a + b, 2)),
        input_split_sizes=splits,
        output_split_sizes=splits,
    )
    assert cr.check(call) == ()
    assert world.guards() == []
    assert str(world.env.simplify((2 * a + 2 * b).node.expr)) == str(
        world.env.simplify(cr.infer(call)["output"].shape[0].node.expr)
    )
    assert world.guards() == []


def test_symbolic_split_sizes_that_do_not_sum_are_found(world: World) -> None:
    """By their hints: 3 + 5 + 3 + 5 is not 15."""
    a, b = world.backed((3, 5)).shape
    arguments = {"input": cr.Spec((a * b, 2)), "input_split_sizes": [a, b, a, b], "output_split_sizes": [a, b, a, b]}
    (found,) = cr.check(cr.call(F + "all_to_all_single", group=GROUP, **arguments))
    assert cr.lookup(F + "all_to_all_single").rule.constraints[found.id] == "splits"
    assert world.guards() == []


def test_two_symbols_with_one_hint_are_not_made_one_by_looking(world: World) -> None:
    """`check` compares hints; only `infer`, which relies on it, adds the guard."""
    one, two = world.backed((6, 6)).shape
    tensors = {"input": cr.Spec((one,)), "out": cr.Spec((W * two,))}
    call = cr.call(F + "all_gather_into_tensor_out", group=GROUP, **tensors)
    assert cr.check(call) == ()
    assert world.guards() == []


# -- sizes that only the run can tell


@CASE
def test_unbacked_sizes_are_inferred(case: Case, world: World) -> None:
    """Without an error about data-dependent guards; the output's size is an expression."""
    tensor = world.unbacked(12)
    inferred = first(cr.infer(described(case, tensor))[case.written])
    assert str(world.env.simplify(sympy(case.output(*tensor.shape)[0]))) == str(
        world.env.simplify(sympy(inferred.shape[0]))
    )
    assert world.guards() == []


def sympy(size: Any) -> Any:
    """The expression behind a size."""
    return size.node.expr


@CASE
def test_unbacked_divisibility_is_left_to_the_run(case: Case, world: World) -> None:
    """`infer` has torch check it there, exactly where the rule demands it."""
    tensor = world.unbacked(12)
    cr.infer(described(case, tensor))
    wanted = [f"Eq(Mod({tensor.shape[0]}, {W}), 0)"] if case.divides else []
    assert wanted == world.asserts()


@CASE
@pytest.mark.parametrize("backend", [None, "gloo"])
def test_check_of_unbacked_sizes_says_undecidable(case: Case, world: World, backend: str | None) -> None:
    """Never guessed: no guard, no assert, and one finding where the rule demands divisibility."""
    found = cr.check(described(case, world.unbacked(12)), backend)
    assert [("undecidable",)] * case.divides == [(one.severity,) for one in found]
    assert world.guards() == []
    assert world.asserts() == []
    kinds = cr.lookup(case.op).rule.constraints
    assert ["divides"] * case.divides == [kinds[one.id] for one in found]


@CASE
def test_what_the_program_has_checked_is_known(case: Case, world: World) -> None:
    """After `torch._check(u % W == 0)` nothing is undecidable."""
    tensor = world.unbacked(12)
    torch._check(tensor.shape[0] % W == 0)
    before = world.asserts()
    assert cr.check(described(case, tensor)) == ()
    cr.infer(described(case, tensor))
    assert before == world.asserts()


def test_a_multiple_of_the_group_size_divides(world: World) -> None:
    """4 * u is a multiple of 4, whatever u is."""
    size = world.unbacked(1).shape[0]
    call = cr.call(F + "reduce_scatter_tensor", group=GROUP, input=cr.Spec((size * W, 2)), reduce_op="sum")
    assert cr.check(call) == ()
    assert str(sympy(cr.infer(call)["output"].shape[0])) == str(sympy(size))
    assert world.asserts() == []


@pytest.mark.parametrize("backend", [None, "gloo"])
@pytest.mark.parametrize("case", ["allreduce_", "_reduce_scatter_base_", "all_reduce"])
def test_unbacked_strides_add_no_guard(case: str, backend: str | None, world: World) -> None:
    """A transposed fake tensor has `u` among its strides."""
    tensor = world.unbacked(12).t()
    cr.check(described(CASES[case], tensor), backend)
    assert world.guards() == []
    assert world.asserts() == []


@CASE
def test_comparing_ranks_of_unbacked_sizes_raises_nothing(case: Case, world: World) -> None:
    """Two sizes that only the run can tell are not called different for sure."""
    tensors = [world.unbacked(12) for _ in range(W)]
    calls = [cr.call(case.op, group=cr.Group(size=W, rank=r), **case.arguments(tensors[r])) for r in range(W)]
    assert "error" not in [found.severity for found in cr.agree(calls)]
    assert world.guards() == []


@CASE
def test_traffic_of_unbacked_sizes_raises_nothing(case: Case, world: World) -> None:
    """Bytes are expressions too."""
    cr.traffic(described(case, world.unbacked(12)))
    assert world.guards() == []


def test_unbacked_split_sizes_are_left_to_the_run(world: World) -> None:
    """Their sum must be the input's size, and none may be negative: what is not known is undecidable."""
    u = world.unbacked(1).shape[0]
    rows = world.unbacked(2)
    arguments = {"input": rows, "input_split_sizes": [u, 1, u, 1], "output_split_sizes": [1, 1, 1, 1]}
    call = cr.call(F + "all_to_all_single", group=GROUP, **arguments)
    assert {found.severity for found in cr.check(call)} == {"undecidable"}
    assert world.guards() == []
    assert world.asserts() == []
    assert cr.infer(call)["output"].shape[0] == 4
    assert len(world.asserts()) >= 1
    assert world.guards() == []


def test_unbacked_outputs_that_are_given_are_compared_in_the_run(world: World) -> None:
    """`output: (W d)` with an unbacked output and an unbacked input."""
    one, two = world.unbacked(3), world.unbacked(3)
    call = cr.call(F + "all_gather_into_tensor_out", group=GROUP, input=one, out=two)
    assert {found.severity for found in cr.check(call)} == {"undecidable"}
    assert world.guards() == []
    cr.infer(call)
    assert world.asserts() != []
    assert world.guards() == []


def test_an_unknown_shape_is_undecidable_or_says_nothing() -> None:
    """A trace that does not tell the shape: no error is made up."""
    for case in CASES.values():
        assert "error" not in [f.severity for f in cr.check(described(case, cr.Spec(None)))]
        assert first(cr.infer(described(case, cr.Spec(None)))[case.written]).shape is None
