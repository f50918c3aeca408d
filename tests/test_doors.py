"""Bad input at each door: one clear `CallError` that names the value and what to do, and never another exception."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import collective_rules as cr
from collective_rules.ops import EXCLUSIONS, OPS, lookup
from collective_rules.ops.row import Argument

GROUP = cr.Group(size=4, rank=1)


def refused(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
    """The text of the `CallError` that a door answers with."""
    with pytest.raises(cr.CallError) as caught:
        function(*arguments, **keywords)
    return str(caught.value)


def nested(value: Any, argument: Argument) -> Any:
    """`value` at the depth of the argument's lists."""
    for _ in range(argument.depth):
        value = [value]
    return value


def kind_of(op: str, argument: Argument) -> str:
    """The argument's type as the door takes it: torch's schemas say int for a dtype, and str for a reduce op."""
    row = lookup(op)
    if argument.name in row.entry.dtypes.values():
        return "dtype"
    return "reduce_op" if argument.name == row.reduce_op else argument.kind


def plausible(op: str, argument: Argument) -> Any:
    """A value of the argument's type."""
    kinds = {"Tensor": (8, 4), "int": 0, "bool": True, "dtype": torch.float32}
    return nested(kinds.get(kind_of(op, argument), "sum"), argument)


def plausible_arguments(op: str) -> dict[str, Any]:
    """A value of the right type for each argument of the op that the door takes, but for group_size."""
    row = lookup(op)
    return {a.name: plausible(op, a) for a in row.arguments if not a.is_group and a.name != row.group_size}


ARGUMENTS = [
    pytest.param(op, argument, id=f"{op}-{argument.name}")
    for op in OPS
    for argument in lookup(op).arguments
    if not argument.is_group
]


# -- which op


@pytest.mark.parametrize("op", OPS)
def test_a_misspelt_op_is_answered_with_the_right_one(op: str) -> None:
    """A letter too many, a letter less, or the wrong namespace."""
    namespace, _, name = op.partition("::")
    for misspelt in (f"{op}x", op[:-1] if op[:-1] not in OPS else f"{op}y", f"aten::{name}"):
        said = refused(cr.lookup, misspelt)
        assert repr(misspelt) in said
        assert "did you mean" in said
    assert repr(op) in refused(cr.lookup, f"{namespace}::_x_{name}_")


def test_an_op_without_its_namespace_is_answered_with_all_that_have_its_name() -> None:
    """The suggestion is something to paste."""
    said = refused(cr.lookup, "all_gather_into_tensor_out")
    assert "'_c10d_functional::all_gather_into_tensor_out'" in said


@pytest.mark.parametrize("op", EXCLUSIONS)
def test_an_excluded_op_is_answered_with_the_reason(op: str) -> None:
    """It is not a collective, and the text says why."""
    assert f"{op} has no rule. {EXCLUSIONS[op]}" == refused(cr.lookup, op)
    assert EXCLUSIONS[op] in refused(cr.call, op, group=GROUP)


@pytest.mark.parametrize("op", ["", "::", "c10d::", "x" * 5_000, "c10d::\ud800", "c10d::allreduce_.out", "%s {0}"])
def test_a_name_like_no_other_is_answered_with_where_to_look(op: str) -> None:
    """Whatever the text is."""
    said = refused(cr.lookup, op)
    assert said.startswith("no rule for ")
    assert "did you mean" in said or "collective_rules.ops()" in said


@pytest.mark.parametrize("op", [None, 5, b"c10d::allreduce_", ["c10d::allreduce_"], {}, object(), dist.all_reduce])
def test_what_is_no_name_and_no_op_is_refused(op: object) -> None:
    """A Python function too: it may dispatch one of several ops."""
    said = refused(cr.lookup, op)
    assert repr(op) in said
    assert "should be" in said


@pytest.mark.parametrize("op", [torch.ops.aten.add, torch.ops.aten.add.Tensor, torch.ops.c10d.check_for_nan.default])
def test_an_op_of_torch_that_is_no_collective_is_refused(op: object) -> None:
    """By packet and by overload."""
    assert refused(cr.lookup, op)


def test_an_unknown_op_is_a_lookup_error_and_a_call_error() -> None:
    """So it can be caught as either, and as a ValueError."""
    with pytest.raises(cr.UnknownOpError) as caught:
        cr.call("c10d::all_shout", group=GROUP)
    assert isinstance(caught.value, LookupError)
    assert isinstance(caught.value, ValueError)
    assert caught.value.findings == ()


# -- which arguments


@pytest.mark.parametrize("op", OPS)
def test_a_missing_argument_is_named(op: str) -> None:
    """Each argument that is read and has no default."""
    row, given_ = lookup(op), plausible_arguments(op)
    for name in row.reads:
        if name in row.by_name and not row.by_name[name].has_default and not root_only(row, name):
            said = refused(cr.call, op, group=GROUP, **{k: v for k, v in given_.items() if k != name})
            assert said.startswith(f"{op}: {name} is missing; the op takes ")


def root_only(row: cr.Row, name: str) -> bool:
    """Whether the argument exists on the root alone."""
    return any(part.root_only for part in row.spellings[0].statement.parts if part.path.name == name)


@pytest.mark.parametrize("op", OPS)
def test_written_arguments_may_be_left_out(op: str) -> None:
    """`infer` says what they must be."""
    row, given_ = lookup(op), plausible_arguments(op)
    only_written = set(row.writes) - set(row.reads)
    made = cr.call(op, group=GROUP, **{k: v for k, v in given_.items() if k not in only_written})
    assert not only_written & set(made.arguments) or all(not made.arguments[name] for name in only_written)


@pytest.mark.parametrize("op", OPS)
def test_a_surplus_argument_is_named_with_the_nearest(op: str) -> None:
    """A misspelt argument is a surplus one."""
    given_ = plausible_arguments(op)
    said = refused(cr.call, op, group=GROUP, **given_, xyzzy=5)
    assert said.startswith(f"{op} has no argument 'xyzzy'")
    for name in given_:
        said = refused(cr.call, op, group=GROUP, **given_, **{f"{name}x": 1})
        assert f"{op} has no argument '{name}x'; did you mean " in said


@pytest.mark.parametrize("op", OPS)
def test_the_group_argument_is_surplus(op: str) -> None:
    """`group=` says it already."""
    row = lookup(op)
    for argument in row.arguments:
        if argument.is_group:
            said = refused(cr.call, op, group=GROUP, **plausible_arguments(op), **{argument.name: "pg"})
            assert f"{op}: {argument.name} is the group, which group= says; leave it out" == said


WRONG = {
    "Tensor": [5, "abc", 1.5, True, object(), {}, (2, "x"), (2.5,), (True,), (-1,), (2, -3), torch.float32, [8, 4]],
    "int": ["1", 1.5, True, object(), {}, (8, 4), torch.ones(1), "x" * 300],
    "bool": [1, 0, "True", 1.5, object(), torch.ones(1)],
    "str": [5, 1.5, True, object(), b"sum"],
    "dtype": [5, "float32", float, 1.5, True, object()],
    "reduce_op": [5, True, 1.5, object(), {}, b"sum", torch.float32, torch.add, ("sum",), [], float, dist.ReduceOp],
}
"""Type of an argument → values of other types."""


@pytest.mark.parametrize(("op", "argument"), ARGUMENTS)
def test_a_value_of_the_wrong_type_is_named(op: str, argument: Argument) -> None:
    """The op, the argument, the value, and what it should be; in a list and in a list of lists too."""
    right, wrong = plausible_arguments(op), WRONG.get(kind_of(op, argument), [])
    for value in [*wrong, *([] if argument.optional or argument.gaps else [None])]:
        said = refused(cr.call, op, group=GROUP, **{**right, argument.name: nested(value, argument)})
        assert "should be" in said or "may be negative" in said
        assert argument.name in said or "shape" in said
        assert repr(value)[:100] in said
        assert len(said) < 400


@pytest.mark.parametrize(("op", "argument"), [p for p in ARGUMENTS if p.values[1].depth])
def test_what_should_be_a_list_is_refused(op: str, argument: Argument) -> None:
    """A tensor, a shape, a text or a number where a list (of lists) belongs."""
    right = plausible_arguments(op)
    lists = "a list of " + "lists of " * (argument.depth - 1)
    for value in (5, "abc", torch.ones(2), cr.Spec((2,)), {}, torch.Size([2]), (n for n in (1, 2))):
        said = refused(cr.call, op, group=GROUP, **{**right, argument.name: value})
        assert f"{op}: {argument.name}=" in said
        assert lists in said
    if argument.depth > 1:
        said = refused(cr.call, op, group=GROUP, **{**right, argument.name: [torch.ones(2)]})
        assert f"{op}: {argument.name}=" in said


@pytest.mark.parametrize(("op", "argument"), [p for p in ARGUMENTS if p.values[1].kind == "Tensor"])
def test_a_list_that_is_too_deep_is_refused(op: str, argument: Argument) -> None:
    """One level too many."""
    too_deep = [plausible(op, argument)]
    said = refused(cr.call, op, group=GROUP, **{**plausible_arguments(op), argument.name: too_deep})
    assert f"{op}: {argument.name}=" in said


@pytest.mark.parametrize("group", [None, 8, "world", cr.Group, {"size": 8}, object()])
def test_a_group_that_is_none_is_refused(group: object) -> None:
    """It has to be a `Group`."""
    said = refused(cr.call, "c10d::allreduce_", group=group, tensors=[(2,)])
    assert f"group={group!r}" in said
    assert "should be a Group" in said


# -- Spec and Group


@pytest.mark.parametrize(
    "shape", ["ab", b"ab", 5, 1.5, (1.5,), (True,), ("2",), (None,), torch.ones(2), object(), {1.5}]
)
def test_a_shape_that_is_none_is_refused(shape: object) -> None:
    """A text is no shape, though it can be iterated."""
    said = refused(cr.Spec, shape)
    assert "shape=" in said
    assert "should be a tuple of sizes such as (16, 4)" in said


@pytest.mark.parametrize("shape", [(-1,), (2, -3), [4, -1]])
def test_a_negative_size_is_refused(shape: Any) -> None:
    """In a `Spec` and in a bare shape."""
    assert f"shape={tuple(shape)!r}, but none of its numbers may be negative" == refused(cr.Spec, shape)
    assert "negative" in refused(cr.call, "c10d::allreduce_", group=GROUP, tensors=[tuple(shape)])


def test_strides_of_an_unknown_shape_are_refused() -> None:
    """They say nothing."""
    assert "stride=(1,)" in refused(cr.Spec, None, stride=(1,))


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        *(("stride", value, "stride=") for value in ((), (1,), (3, 1, 1), (1.5, 1), "ab", 5, (-1, 1), (None, 1))),
        *(("dtype", value, "torch.float32") for value in ("float32", 5, float, torch.ones(1))),
        *(("device", value, "'cuda'") for value in (None, 0, 1.5, object())),
    ],
)
def test_what_is_no_part_of_a_spec_is_refused(name: str, value: object, meant: str) -> None:
    """One stride for each size, none negative; Python's `float` is no dtype; a device is a type, or a torch.device."""
    said = refused(cr.Spec, (2, 3), **{name: value})
    assert repr(value) in said
    assert meant in said


def test_a_device_may_be_a_device() -> None:
    """Its type counts."""
    assert cr.Spec((2,), device=torch.device("meta")).device == "meta"


@pytest.mark.parametrize(
    "fields",
    [
        {"size": 0},
        {"size": -1},
        {"size": 2, "rank": 2},
        {"size": 2, "rank": -1},
        {"size": 1.0},
        {"size": "8"},
        {"size": True},
        {"size": None},
        {"size": 2, "rank": "0"},
        {"size": 2, "rank": None},
        {"size": 2, "ranks": (0,)},
        {"size": 2, "ranks": (0, 1, 2)},
        {"size": 2, "ranks": 5},
        {"size": 2, "ranks": None},
    ],
    ids=repr,
)
def test_a_group_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    """No ranks, a rank outside, a number that is none, too few global ranks."""
    said = refused(cr.Group, **fields)
    name, value = list(fields.items())[-1]
    assert f"{name}={value!r}" in said
    assert "should" in said or "at least one" in said


# -- the functions


def made(op: str = "c10d::allreduce_", group: cr.Group = GROUP, **arguments: Any) -> cr.Call:
    """A call, by default a legal allreduce of one rank."""
    return cr.call(op, group=group, **(arguments or {"tensors": [(2, 3)]}))


@pytest.mark.parametrize("backend", ["mccl", "GLOO", "", 5, True, ("gloo",), ["gloo"], {"gloo": 1}], ids=repr)
def test_an_unknown_backend_is_refused_with_those_that_are_known(backend: object) -> None:
    """By `check` and by `agree`."""
    for said in (
        refused(cr.check, made(), backend=backend),
        refused(cr.agree, [made(group=cr.Group(size=2, rank=r)) for r in range(2)], backend=backend),
    ):
        assert f"backend={backend!r}" in said
        assert "'gloo'" in said


def test_one_group_has_one_size() -> None:
    """Calls of groups of two sizes cannot be one collective."""
    said = refused(cr.agree, [made(group=cr.Group(size=2, rank=0)), made(group=cr.Group(size=3, rank=1))])
    assert "groups of 2 and 3 ranks" in said


@pytest.mark.parametrize("ranks", ["0", b"0", 3, (0, "1"), (-1,), (True,), (0, 1.0)])
def test_ranks_that_are_none_are_refused(ranks: Any) -> None:
    """They are global ranks, as numbers."""
    assert f"ranks={ranks!r}" in refused(cr.agree, [made()], ranks=ranks)


def test_a_group_may_be_unnamed() -> None:
    """What one rank does not know of the group, it does not contradict."""
    groups = [cr.Group(size=2, rank=0, name="left", ranks=(4, 5)), cr.Group(size=2, rank=1)]
    assert cr.agree([made(group=group) for group in groups]) == ()


def test_no_calls_agree() -> None:
    """There is nothing to compare."""
    assert cr.agree([]) == ()
    assert cr.agree(iter(())) == ()


# -- what is taken


REDUCE_OP_VALUES = {
    "a name": ("sum", "sum"),
    "SUM": (dist.ReduceOp.SUM, "sum"),
    "AVG": (dist.ReduceOp.AVG, "avg"),
    "PRODUCT": (dist.ReduceOp.PRODUCT, "product"),
    "MIN": (dist.ReduceOp.MIN, "min"),
    "MAX": (dist.ReduceOp.MAX, "max"),
    "BAND": (dist.ReduceOp.BAND, "band"),
    "BOR": (dist.ReduceOp.BOR, "bor"),
    "BXOR": (dist.ReduceOp.BXOR, "bxor"),
    "an object": (dist.ReduceOp(dist.ReduceOp.MAX), "max"),
    "premultiplied by a number": (dist._make_nccl_premul_sum(2.0), "premul_sum"),
    "premultiplied by a tensor": (dist._make_nccl_premul_sum(torch.ones(1)), "premul_sum"),
}


@pytest.mark.parametrize("what", REDUCE_OP_VALUES)
def test_a_reduce_op_is_known_by_its_lower_case_name(what: str) -> None:
    """As a name, a `ReduceOp`, its type, and premultiplied."""
    value, name = REDUCE_OP_VALUES[what]
    assert name == made(tensors=[(2,)], reduce_op=value).arguments["reduce_op"]
    assert name == made("_c10d_functional::all_reduce", input=(2,), reduce_op=value).arguments["reduce_op"]


class Capture(TorchDispatchMode):
    """Keeps the arguments of the last op that passed."""

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        self.arguments = arguments
        return function(*arguments, **(keywords or {}))


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("what", [what for what in REDUCE_OP_VALUES if what != "a name"])
def test_a_boxed_reduce_op_is_known_by_its_lower_case_name(what: str) -> None:
    """A dispatch mode sees a script object."""
    value, name = REDUCE_OP_VALUES[what]
    with Capture() as mode:
        dist.all_reduce(torch.ones(2), op=value)
    boxed = mode.arguments[2]
    assert isinstance(boxed, torch.ScriptObject)
    assert name == made(tensors=[(2,)], reduce_op=boxed).arguments["reduce_op"]


def tensors() -> Iterator[Any]:
    """Tensors of every sort, all of shape (2, 3)."""
    yield pytest.param(lambda: torch.ones(2, 3), "cpu", "", id="real")
    yield pytest.param(lambda: torch.nn.Parameter(torch.ones(2, 3)), "cpu", "", id="parameter")
    yield pytest.param(lambda: torch.ones(2, 3, device="meta"), "meta", "", id="meta")
    yield pytest.param(fake, "cpu", "", id="fake")
    yield pytest.param(lambda: torch.ones(2, 3, dtype=torch.complex64).conj(), "cpu", "conj", id="conj")
    yield pytest.param(lambda: torch.ones(2, 3, dtype=torch.complex64).conj().imag, "cpu", "neg", id="neg")
    yield pytest.param(lambda: cr.Spec((2, 3)), "cpu", "", id="Spec")
    yield pytest.param(lambda: (2, 3), "cpu", "", id="tuple")
    yield pytest.param(lambda: torch.Size([2, 3]), "cpu", "", id="Size")


def fake() -> torch.Tensor:
    """A fake tensor."""
    with FakeTensorMode():
        return torch.ones(2, 3)


@pytest.mark.parametrize(("make", "device", "view"), list(tensors()))
def test_a_tensor_of_any_sort_is_taken(make: Callable[[], Any], device: str, view: str) -> None:
    """Real, meta, fake, lazy views, a Spec, a bare shape; in a list and alone."""
    value = make()
    for spec in (
        made(tensors=[value]).arguments["tensors"][0],
        made("_c10d_functional::all_reduce", input=value, reduce_op="sum").arguments["input"],
    ):
        assert spec.shape == (2, 3)
        assert device == spec.device
        assert view == spec.view


class Untouchable(torch.Tensor):
    """A tensor that raises when an op runs on it."""

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        raise AssertionError(f"{function} ran on the tensor")


def test_a_tensors_data_are_not_touched() -> None:
    """No op runs on it: not for a call, not for a check, not for the sizes."""
    tensor = torch.Tensor._make_subclass(Untouchable, torch.ones(8, 4))
    call = made("_c10d_functional::reduce_scatter_tensor", input=tensor, reduce_op="sum")
    assert cr.check(call, "gloo") == ()
    assert cr.infer(call)["output"].shape == (2, 4)


def test_lists_may_be_tuples() -> None:
    """Of tensors and of lists."""
    even = made("c10d::allgather_", input_tensors=((2,),), output_tensors=(((2,),) * 4,))
    assert made("c10d::allgather_", input_tensors=[(2,)], output_tensors=[[(2,)] * 4]).arguments == even.arguments


def test_a_repeated_group_size_is_the_groups_own() -> None:
    """Where it is left out."""
    assert made("_c10d_functional::all_gather_into_tensor", input=(2,)).arguments["group_size"] == 4


@pytest.mark.parametrize("name", ["", "SUM", "two words", "unused", "\ud800"])
def test_a_reduce_op_that_does_not_exist_is_a_finding(name: str) -> None:
    """A text is let in: what reduce ops there are is the rule's to say, not the door's."""
    (found,) = cr.check(made(tensors=[(2,)], reduce_op=name))
    assert found.id == "AR3"
    assert repr(name) in found.message


# -- past the door, nothing breaks


sizes = st.integers(0, 9)
shapes = st.lists(sizes, max_size=4).map(tuple)
dtypes = st.sampled_from([torch.float32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, None])


@st.composite
def specs(draw: st.DrawFn) -> Any:
    """A bare shape, or a `Spec`: strided or not, lazy, partly unknown."""
    shape = draw(st.none() | shapes)
    if draw(st.booleans()) and shape is not None:
        return shape
    strides = st.lists(st.integers(0, 30), min_size=len(shape or ()), max_size=len(shape or ())).map(tuple)
    return cr.Spec(
        shape,
        draw(dtypes),
        None if shape is None else draw(st.none() | strides),
        layout=draw(st.sampled_from(["strided", "strided", "sparse_coo"])),
        view=draw(st.sampled_from(["", "", "conj", "neg"])),
    )


def values(argument: Argument, row: cr.Row) -> st.SearchStrategy[Any]:
    """Values of the argument's type, sensible or not."""
    one: st.SearchStrategy[Any] = {
        "Tensor": specs(),
        "int": st.integers(-2, 5) | st.sampled_from([2**40]),
        "bool": st.booleans(),
        "str": st.sampled_from(["sum", "avg", "isend", "irecv", "unused", ""]),
    }.get(argument.kind, st.sampled_from(["sum", "avg", "max", "unheard of"]))
    if argument.name in row.entry.dtypes.values():
        one = dtypes.filter(bool)
    if argument.gaps:
        one = st.none() | one
    for _ in range(argument.depth):
        one = st.lists(one, max_size=5)
    return st.none() | one if argument.optional else one


@st.composite
def calls(draw: st.DrawFn, op: str, group: cr.Group) -> cr.Call | None:
    """A call of `op` with any values of the right types; None where the door refuses them."""
    row, arguments = lookup(op), {}
    for argument in row.arguments:
        if not argument.is_group and not (argument.name in row.writes and draw(st.booleans())):
            arguments[argument.name] = draw(values(argument, row))
    try:
        return cr.call(op, group=group, **arguments)
    except cr.CallError:
        return None


@pytest.mark.parametrize("op", OPS)
@settings(max_examples=settings.default.max_examples // 20)
@given(data=st.data(), size=st.integers(1, 5))
def test_whatever_passes_the_door_is_judged_without_another_exception(op: str, data: st.DataObject, size: int) -> None:
    """`check` and `agree` answer with findings; `infer` and `traffic` raise nothing but a `CallError`."""
    made_ = [data.draw(calls(op, cr.Group(size=size, rank=rank))) for rank in range(min(size, 2))]
    known = [call for call in made_ if call is not None]
    for call, backend in itertools.product(known, (None, "gloo")):
        for finding in cr.check(call, backend):
            assert finding.id in finding.message
    cr.agree(known)
    for call, function in itertools.product(known, (cr.infer, cr.traffic)):
        try:
            function(call)
        except cr.CallError as error:
            assert str(error)  # noqa: PT017 - any CallError will do, and none need be raised
