"""What a row of a table must not contradict: calls that gloo carried out, broken ones, measured limits, hand-made sums.

A `Law` is a function of whatever the tables say at the moment; it raises where they contradict what it knows. What it
knows was gathered with the tables as they are, before any was changed: groups of calls as plain arguments, what gloo
made of them, and which dtypes gloo refuses. `mutants` changes a table, and `test_mutants` asks which laws notice.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.backends import spellings_of
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.errors import CallError
from collective_rules.ops import OPS
from collective_rules.ops import row as row_module
from collective_rules.rules import KINDS, Rule
from collective_rules.spec import Memory
from collective_rules.testing import dispatch
from collective_rules.testing.drawing import DTYPES, Wish, draw_calls
from collective_rules.testing.expected import differences
from collective_rules.testing.layouts import CHANNELS_LAST, EXPANDED, SLICED, TRANSPOSED, strides
from collective_rules.testing.strategies import broken_calls, calls, sample, ways_to_break
from collective_rules.testing.tensors import Made, flat, make, mapped
from collective_rules.testing.world import WorldTimeout, has_cpu_kernel, world
from tests import test_oracles, test_symm_mem, test_tables
from tests.mutants import Mutant
from tests.test_traffic import CASES as TRAFFIC
from tests.test_traffic import moved

EMPTY = (torch.bool, torch.complex64, torch.int16)
"""The dtypes of empty tensors that are tried."""

MOST_RANKS = 4
"""Groups of more say nothing new of a table."""


# -- what is kept of a call


@attrs.frozen(eq=False)
class Post:
    """A call as it was made: it is described anew under each table."""

    op: str
    group: cr.Group
    arguments: Mapping[str, Any]

    @property
    def call(self) -> cr.Call:
        """The call, as the tables describe it now."""
        return cr.call(self.op, group=self.group, **self.arguments)


def posted(call: cr.Call) -> Post:
    """What the caller passed: an argument that is None was left out."""
    given_ = {name: value for name, value in call.arguments.items() if value is not None}
    return Post(call.op, call.group, given_)


@attrs.frozen(eq=False)
class Carried:
    """A legal group that gloo carried out: each rank's tensors, what came back, and which arguments changed."""

    posts: tuple[Post, ...]
    made: Mapping[int, Made]
    returned: Mapping[int, tuple[Any, ...]]
    changed: Mapping[int, frozenset[str]]


@attrs.frozen(eq=False)
class Fault:
    """A group in which one thing is broken, as drawn."""

    way: str
    posts: tuple[Post, ...]
    id: str
    rank: int | None
    local: bool
    backend: str | None


@attrs.frozen(eq=False)
class Tried:
    """A group that gloo was given, legal or not: `what` was tried.

    `bad` are the ranks that raised, waited in vain, or got another result.
    """

    what: str
    posts: tuple[Post, ...]
    bad: frozenset[int]


drawn = functools.partial(sample, seed=1)
"""Draw that many examples of a strategy, always the same."""


def carried_out(group: Sequence[cr.Call]) -> Carried:
    """Have gloo carry out a legal group."""
    made = {one.group.rank: make(one) for one in group}
    size, op = group[0].group.size, group[0].op
    ops = [made[rank].call.op if rank in made else op for rank in range(size)]
    outcomes = world(size).run(ops, [made[rank].arguments if rank in made else None for rank in range(size)])
    for rank in made:
        if outcomes[rank].error is not None:
            raise outcomes[rank].error
    returned = {rank: outcomes[rank].values for rank in made}
    return Carried(tuple(map(posted, group)), made, returned, {rank: changed(one) for rank, one in made.items()})


def changed(made: Made) -> frozenset[str]:
    """The arguments that hold something else than before; of those that share memory, nothing is said."""
    found = set()
    for name, before in made.contents.items():
        specs = [spec for spec in flat(made.call.arguments.get(name)) if isinstance(spec, cr.Spec)]
        if not specs or any(spec.memory is not None for spec in specs):
            continue
        pairs = zip(flat(before), flat(made.arguments[name]), strict=True)
        if any(not torch.equal(raw(a), raw(b)) for a, b in pairs):
            found.add(name)
    return frozenset(found)


def raw(tensor: torch.Tensor) -> torch.Tensor:
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    plain = dense.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return plain.reshape(-1).view(torch.uint8)


def tried(what: str, group: Sequence[cr.Call]) -> Tried:
    """Give gloo a group of calls that raises at worst, and judge what comes of it."""
    made = {one.group.rank: make(one) for one in group}
    size, op = group[0].group.size, group[0].op
    posts = tuple(map(posted, group))
    ops = [made[rank].call.op if rank in made else op for rank in range(size)]
    arguments = [made[rank].arguments if rank in made else None for rank in range(size)]
    try:
        outcomes = world(size, 1.0).run(ops, arguments) if size > 1 else [alone(op, made[0].arguments)]
    except WorldTimeout:
        return Tried(what, posts, frozenset(made))
    raised = frozenset(rank for rank in made if outcomes[rank].error is not None)
    found = () if raised else differences(made, {rank: outcomes[rank].values for rank in made})
    return Tried(what, posts, raised | {each.rank for each in found})


def alone(op: str, arguments: Mapping[str, Any]) -> dispatch.Returned:
    """Make a call in a group of one. What it raises does the world no harm: no other rank has lost step with it."""
    group = world(1).groups[0]
    return dispatch.wait(
        dispatch.post(dispatch.prepared(dispatch.RankGroup(group, group.group_name, 1), cr.lookup(op), arguments)), None
    )


# -- what is known of an op


MANY = {"wrong length": 8, "shared memory": 8, "a slice": 8, "one transposed": 6}
"""Ways to break a call that differ from each other: they are drawn more often than thrice."""


@functools.cache
def carried(op: str) -> tuple[Carried, ...]:
    """Legal groups, as drawn and by hand, that gloo carried out."""
    if not has_cpu_kernel(cr.lookup(op)):
        return ()
    groups = [*drawn(calls(op, most_ranks=MOST_RANKS), 18), *(by_hand(op, each) for each in LEGAL.get(op, ()))]
    return tuple(map(carried_out, groups))


@functools.cache
def stated(op: str) -> tuple[tuple[Post, ...], ...]:
    """Groups that are legal by the rule alone."""
    groups = [*drawn(calls(op, backend=None, most_ranks=MOST_RANKS), 12), *(by_hand(op, g) for g in STATED.get(op, ()))]
    return tuple(tuple(map(posted, group)) for group in groups)


def asked(op: str) -> str | None:
    """The backend whose table is asked: gloo's, but for ops of which gloo takes no form."""
    return "gloo" if spellings_of("gloo", cr.lookup(op)) else None


@functools.cache
def faults(op: str) -> tuple[Fault, ...]:
    """Groups with one thing broken."""
    return tuple(
        Fault(way, tuple(map(posted, each.calls)), each.id, each.rank, each.local, asked(op))
        for way in ways_to_break(op, backend=asked(op))
        for each in drawn(broken_calls(op, way=way, backend=asked(op), most_ranks=MOST_RANKS), MANY.get(way, 3))
    )


@functools.cache
def in_form(op: str, form: str) -> tuple[Post, ...]:
    """Calls in a form of the rule that the op does not take and that is refused: drawn as if the op took it."""
    entry = OPS[op]
    try:
        with Mutant(f"{op}: {form}", ops={op: attrs.evolve(entry, forms=(form,))}).in_place():
            groups = drawn(calls(op, backend=None, most_ranks=MOST_RANKS), 24)
    except (KeyError, CallError):  # the form has other parts than the op, or nothing says how to draw its calls
        return ()
    posts = [posted(call) for group in groups for call in group[:1]]
    return tuple(post for post in posts if "error" in [found.severity for found in cr.check(post.call)])


def refused_forms(op: str) -> list[tuple[str, Post]]:
    """Calls in the forms of the rule that the op does not take, each with its form's name."""
    row = cr.lookup(op)
    taken = [spelling.form.name for spelling in row.spellings]
    forms = [form.name for form in row.rule.forms if form.name not in taken]
    return [(form, post) for form in forms for post in in_form(op, form)]


def by_hand(op: str, arguments: Sequence[Mapping[str, Any]]) -> tuple[cr.Call, ...]:
    """One call for each rank."""
    return tuple(cr.call(op, group=cr.Group(len(arguments), rank), **each) for rank, each in enumerate(arguments))


@functools.cache
def plain(op: str, size: int, count: int = 1, length: int = 2) -> tuple[cr.Call, ...]:
    """A legal group of contiguous float32 tensors: four dims or more, of `length` each; `count` in any list."""
    row = cr.lookup(op)
    kinds = (("sum" if row.reduce_op else "", torch.float32),)
    sizes = {"min_ranks": size, "single_rank": size == 1, "min_dims": 4, "min_size": length, "min_tensors": count}
    wish = Wish(**sizes, straight=True, dtypes=kinds)
    return drawn(plain_calls(row, size, wish), 1)[0]


@st.composite
def plain_calls(draw: st.DrawFn, row: cr.Row, size: int, wish: Wish) -> tuple[cr.Call, ...]:
    """The group of a wish."""
    return draw_calls(draw, row, "gloo", size, wish)


def sizes_of(op: str) -> tuple[int, ...]:
    """The groups in which something is tried: one rank, if it may be alone, and two."""
    row = cr.lookup(op)
    if not has_cpu_kernel(row) or not row.spellings[0].statement.parts:
        return ()
    return (2,) if row.rule.point_to_point else (1, 2)


@functools.cache
def layouts_tried(op: str) -> tuple[Tried, ...]:
    """Every layout of every argument: on all ranks, on one rank alone, and of the first tensor of a list alone."""
    row, found = cr.lookup(op), []
    for size in sizes_of(op):
        group = plain(op, size, count=size)
        own = [call for call in group if call.op == op]
        for name, argument in row.by_name.items():
            counts = [len(list(flat(call.arguments.get(name) or ()))) for call in own]
            if argument.kind != "Tensor" or not any(counts) or row.entry.batch:
                continue
            for layout in (TRANSPOSED, SLICED, CHANNELS_LAST) + (() if name in row.writes else (EXPANDED,)):
                everywhere = tried(f"{name} {layout}, {size} ranks", laid_out(group, op, (name,), layout))
                found.append(everywhere)
                if everywhere.bad or row.rule.point_to_point:
                    continue
                if size > 1:
                    rank0 = laid_out(group, op, (name,), layout, ranks=(0,))
                    found.append(tried(f"{name} {layout} on one rank of {size}", rank0))
                if max(counts) > 1:
                    first = laid_out(group, op, (name,), layout, first=True)
                    found.append(tried(f"the first of {name} {layout}, {size} ranks", first))
        for layout in () if row.entry.batch else (TRANSPOSED, SLICED, CHANNELS_LAST):
            found.append(tried(f"all {layout}, {size} ranks", laid_out(group, op, tuple(row.by_name), layout)))
    return tuple(found)


def holds_tensors(value: Any) -> bool:
    """Whether an argument is a tensor, or a list that holds some."""
    return any(isinstance(each, cr.Spec) for each in flat(value))


def laid_out(
    group: Sequence[cr.Call], op: str, names: Sequence[str], layout: str, ranks: Sequence[int] = (), first: bool = False
) -> list[cr.Call]:
    """The group with some arguments in another layout; a partner's message, too, so that it does not wait in vain."""
    found = []
    for call in group:
        arguments = dict(posted(call).arguments)
        own = SLICED if call.op != op and layout == EXPANDED else layout
        for name in names if call.op == op else dict.fromkeys(call.row.reads + call.row.writes):
            if holds_tensors(arguments.get(name)) and (not ranks or call.group.rank in ranks):
                places = itertools.count()
                arguments[name] = mapped(
                    lambda spec, places=places, own=own: (
                        spec if next(places) and first else cr.Spec(spec.shape, spec.dtype, strides(spec.shape, own))
                    ),
                    arguments[name],
                )
        found.append(cr.call(call.op, group=call.group, **arguments))
    return found


@functools.cache
def kinds_tried(op: str) -> tuple[tuple[str, tuple[Tried, ...]], ...]:
    """Every dtype, reduced in every way: in a group of one, and what that takes in a group of two. Some are empty."""
    row, found = cr.lookup(op), []
    if row.rule.point_to_point or row.rule.waits:
        return ()
    for reduce_op, length in itertools.product(REDUCE_OPS if row.reduce_op else ("",), (2, 0)):
        dtypes: Sequence[torch.dtype] = DTYPES if length else EMPTY
        for size in sizes_of(op):
            if size > 1 and reduce_op in ("avg", "band", "bor", "bxor"):
                continue  # whether gloo takes them depends on no group's size
            groups = {dtype: of_kind(plain(op, size, length=length), reduce_op, dtype) for dtype in dtypes}
            each = {dtype: tried(f"{dtype}", group) for dtype, group in groups.items()}
            dtypes = [dtype for dtype, one in each.items() if not one.bad]
            found.append((f"{reduce_op or 'dtypes'}, {size} ranks, {length} rows", tuple(each.values())))
    return tuple(found)


@functools.cache
def odd_strides_tried(op: str) -> tuple[Tried, ...]:
    """Tensors of one element, with strides along their sizes of 1 that a fresh tensor has not: alone, and in lists."""

    def odd(spec: cr.Spec) -> cr.Spec:
        steps = [7 if n == 1 else step for n, step in zip(spec.shape, spec.stride, strict=True)]
        return cr.Spec(spec.shape, spec.dtype, (*steps[:-1], 1))

    return tuple(
        tried(f"odd strides, {size} ranks, {count} in a list", edited(plain(op, size, count, length=1), odd))
        for size in sizes_of(op)
        for count in (1, 2)
    )


def edited(group: Sequence[cr.Call], change: Callable[[cr.Spec], cr.Spec]) -> list[cr.Call]:
    """The group with other tensors."""
    found = []
    for call in group:
        tensors = {
            name: mapped(lambda each: change(each) if isinstance(each, cr.Spec) else each, value)
            for name, value in posted(call).arguments.items()
            if holds_tensors(value)
        }
        found.append(cr.call(call.op, group=call.group, **{**posted(call).arguments, **tensors}))
    return found


@functools.cache
def sharing_tried(op: str) -> tuple[Tried, ...]:
    """What is written lies in the first, or in the second tensor that is read.

    Not of the one op to which the rule forbids that for every backend: gloo gets small tensors right by luck.
    """
    row, found = cr.lookup(op), []
    read = next((name for name in row.by_name if name in row.reads and name not in row.writes), "")
    written = next((name for name in row.by_name if name in row.writes and name not in row.reads), "")
    for size, place in itertools.product(sizes_of(op), (0, 1)):
        if not read or not written or op == "c10d::alltoall_base_":
            continue
        group = [shared(call, read, place, written) for call in plain(op, size, count=size)]
        if any(call.arguments.get(read) and place < len(list(flat(call.arguments[read]))) for call in group):
            found.append(tried(f"{written} in {read}, tensor {place}, {size} ranks", group))
    return tuple(found)


def shared(call: cr.Call, read: str, place: int, written: str) -> cr.Call:
    """The call with one tensor that is written in the memory of one that is read."""
    arguments = dict(posted(call).arguments)
    for name, which in ((read, place), (written, 0)):
        if holds_tensors(arguments.get(name)):
            places = itertools.count()
            arguments[name] = mapped(
                lambda spec, places=places, which=which: (
                    cr.Spec(spec.shape, spec.dtype, memory=Memory(0, 0)) if next(places) == which else spec
                ),
                arguments[name],
            )
    return cr.call(call.op, group=call.group, **arguments)


@functools.cache
def some_tried(op: str) -> tuple[Tried, ...]:
    """Groups worked out by hand."""
    return tuple(tried(f"{group}", by_hand(op, group)) for group in TRIED.get(op, ()))


def of_kind(group: Sequence[cr.Call], reduce_op: str, dtype: torch.dtype) -> list[cr.Call]:
    """The group with tensors of another dtype, and another reduce op."""
    found = edited(group, lambda spec: cr.Spec(spec.shape, dtype))
    if not reduce_op:
        return found
    return [
        cr.call(one.op, group=one.group, **{**posted(one).arguments, one.row.reduce_op: reduce_op}) for one in found
    ]


@functools.cache
def unrecognized(op: str) -> frozenset[str]:
    """The reduce ops that torch itself does not know here, whatever the backend."""
    found = set()
    for reduce_op in REDUCE_OPS:
        (call,) = of_kind(plain(op, 1), reduce_op, torch.float32)
        if "Unrecognized reduce_op" in str(alone(op, make(call).arguments).error):
            found.add(reduce_op)
    return frozenset(found)


@functools.cache
def other_group_size(op: str) -> Tried:
    """What comes of a group_size that is not the group's; split sizes, where there are any, are even and left out."""
    row, group = cr.lookup(op), []
    for call in plain(op, 2):
        kept = {name: value for name, value in posted(call).arguments.items() if name not in row.splits}
        group.append(cr.call(op, group=call.group, **{**kept, row.group_size: 3}))
    return tried("another group_size", group)


# -- worked out by hand

_F, _L = "_c10d_functional::", "c10d_functional::"
_TWICE = cr.Spec((2, 3))


def _specs(dtype: torch.dtype) -> list[cr.Spec]:
    return [cr.Spec((2, 3), dtype), cr.Spec((2, 3), dtype)]


LEGAL: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] = {
    # what stays on the rank is copied in whatever order, and what is read may lie in what another rank's is written to
    "c10d::reduce_scatter_": [
        [
            {
                "input_tensors": [[cr.Spec((2, 3), stride=(1, 2) if rank == own else None) for rank in range(2)]],
                "output_tensors": [(2, 3)],
            }
            for own in range(2)
        ]
    ],
    "c10d::gather_": [
        [
            {
                "input_tensors": [cr.Spec((2,), memory=Memory(0, 2))],
                "output_tensors": [[cr.Spec((2,), memory=Memory(0, 2 * rank)) for rank in range(2)]],
                "root_rank": 0,
            },
            {"input_tensors": [(2,)], "output_tensors": [], "root_rank": 0},
        ]
    ],
    # in place, in lists: reduced with the other ranks' and with each other
    "c10d::allreduce_": [
        [{"tensors": _specs(torch.int64), "reduce_op": reduce_op} for _ in range(2)]
        for reduce_op in ("sum", "product", "min", "max", "band", "bor", "bxor")
    ],
    # several bools are summed in a copy; in place and copied, one tensor given twice gets one result twice
    **{
        op: [
            [{name: _specs(torch.bool), reduce_op: "sum"} for _ in range(2)],
            [{name: _specs(torch.float32), reduce_op: "avg"} for _ in range(2)],
            *([[{name: [_TWICE, _TWICE], reduce_op: "sum"}] * 2] if op.endswith("_") else []),
        ]
        for op, name, reduce_op in (
            ("c10d::allreduce_coalesced_", "tensors", "reduce_op"),
            (_F + "all_reduce_coalesced", "inputs", "reduce_op"),
            (_F + "all_reduce_coalesced_", "inputs", "reduce_op"),
            (_L + "all_reduce_coalesced", "self", "reduceOp"),
        )
    },
    # an average of each of several
    **{
        op: [[{**{name: _specs(torch.float32) for name in names}, reduce_op: "avg"}]]
        for op, names, reduce_op in (
            ("c10d::reduce_scatter_tensor_coalesced_", ("inputs", "outputs"), "reduce_op"),
            (_F + "reduce_scatter_tensor_coalesced", ("inputs",), "reduce_op"),
            (_L + "reduce_scatter_tensor_coalesced", ("inputs",), "reduceOp"),
        )
    },
    # an empty list of output splits: this rank gets no rows
    _F + "all_to_all_single": [
        [{"input": (2, 3), "input_split_sizes": [0, 2], "output_split_sizes": []},
         {"input": (3, 3), "input_split_sizes": [0, 3], "output_split_sizes": [2, 3]}],
    ],
    "_c10d_functional_autograd::all_to_all_single": [
        [{"input": (2, 3), "input_split_sizes": [0, 2], "output_split_sizes": []},
         {"input": (3, 3), "input_split_sizes": [0, 3], "output_split_sizes": [2, 3]}],
    ],
    # an empty list of input splits: equal shares
    _L + "all_to_all_single": [[{"input": (4, 3), "input_split_sizes": [], "output_split_sizes": [2, 2]}] * 2],
}  # fmt: skip
"""Legal groups that no strategy draws: for each rank, its arguments."""

TRIED: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] = {
    # sparse tensors, reduced in every way, of either kind of number
    "c10d::allreduce_": [
        [{"tensors": [cr.Spec(shape, dtype, layout="sparse_coo")], "reduce_op": reduce_op}] * 2
        for reduce_op in REDUCE_OPS
        for dtype in (torch.float32, torch.int64)
        for shape in ((3,), (0,))
    ],
    # stacked, in groups of one and two
    "c10d::_allgather_base_": [[{"input_tensor": (3, 2), "output_tensor": (n, 3, 2)}] * n for n in (1, 2)],
    "c10d::_reduce_scatter_base_": [[{"input_tensor": (n, 3, 2), "output_tensor": (3, 2)}] * n for n in (1, 2)],
}
"""Groups that gloo is given, whatever comes of it."""

STATED: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] = {
    # off the root the output is left alone
    "c10d::gather_into_tensor_": [
        [
            {"input_tensor": (3,), "output_tensor": (6,), "root_rank": 0},
            {"input_tensor": (3,), "output_tensor": (7,), "root_rank": 0},
        ]
    ],
    # each rank says which of its own tensors it broadcasts
    "c10d::broadcast_": [[{"tensors": [(2,), (2,)], "root_rank": 1, "root_tensor": n} for n in (0, 1)]],
    # equal shares on one side may be left out
    _F + "all_to_all_single": [[{"input": (4, 3), "input_split_sizes": [2, 2]}] * 2],
    "_c10d_functional_autograd::all_to_all_single": [[{"input": (4, 3), "input_split_sizes": [2, 2]}] * 2],
}
"""Legal groups that gloo cannot be given, or of whose values no oracle tells."""

_SPLIT = {"input_split_sizes": [1, 3], "output_split_sizes": [1, 3]}

UNDOCUMENTED: Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]] = {
    "c10d::alltoall_base_": [
        (2, {"input": (4, 2, 3), "output": (4, 6), **_SPLIT}),
        (2, {"input": (3, 2), "output": (6,)}),
    ]
}
"""Calls whose shapes fit by their numbers of elements alone, each with the group's size."""

ILLEGAL: Mapping[str, Sequence[tuple[int, Mapping[str, Any]]]] = {
    "c10d::alltoall_base_": [
        (2, {"input": (4, 2, 3), "output": (4, 7), **_SPLIT}),
        (2, {"input": (3, 2), "output": (6,), **_SPLIT}),
    ],
    # torch's own assertion: both lists of splits, or None for both
    _L + "all_to_all_single": [
        (2, {"input": (2,), "output_split_sizes": [1, 1]}),
        (2, {"input": (2,), "input_split_sizes": [1, 1]}),
        (2, {"input": (2,), "input_split_sizes": [1, 1], "output_split_sizes": []}),
    ],
    # torch views a complex tensor as a real one first: one of no dims becomes one of a dim
    **{
        op: [(size, {name: cr.Spec((), torch.complex64)}) for size in (1, 2)]
        for op, name in (
            (_F + "all_gather_into_tensor", "input"),
            ("_c10d_functional_autograd::all_gather_into_tensor", "input"),
            (_L + "all_gather_into_tensor", "shard"),
        )
    },
    # an empty list of output splits means no rows, and the rank sends itself one
    _F + "all_to_all_single": [(2, {"input": (2,), "output_split_sizes": []})],
    "_c10d_functional_autograd::all_to_all_single": [(2, {"input": (2,), "output_split_sizes": []})],
    # ProcessGroupGloo.cpp, assertSingleElementInput
    "c10d::allgather_": [(1, {"input_tensors": [(2,), (2,)], "output_tensors": [[(2,)]]})],
    "c10d::gather_": [(1, {"input_tensors": [(2,), (2,)], "output_tensors": [[(2,)]], "root_rank": 0})],
}
"""Calls that check refuses by the rule alone, and that no strategy draws: the group's size, the arguments."""

OTHER_COUNTS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    # stacked, of another number of pieces; a row of what has more dims than one
    "reduce_scatter_tensor": [{"input": (8, 3), "output": (3,)}],
    "all_gather_into_tensor": [
        {"input": (3,), "output": (5, 3)},
        {"input": (3,), "output": (8, 3)},
        {"input": (3, 2), "output": (1, 23)},
    ],
    # by the number of elements
    "all_to_all_single": [{"input": (2, 4)}, {"input": (2, 3), "output": (2, 3)}],
    "gather_into_tensor": [{"input": (3,), "output": (5, 3)}, {"input": (3, 2), "output": (2, 12)}],
}
"""Shapes that no op outside symmetric memory takes in a group of four, by part of the rule."""

BETWEEN: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] = {
    "_c10d_functional::batch_p2p_ops": [
        [
            {"op_list": [kind], "peer_list": [peer], "tag_list": [0], "tensors": [shape]}
            for kind, peer, shape in messages
        ]
        for messages in [(("isend", 1, (2,)), ("irecv", 0, (3,))), (("isend", 1, (2,)), ("isend", 0, (2,)))]
    ]
}
"""Groups in which only agree finds what is wrong: the sizes of a message, a send without its receive."""

USUAL = {
    "all_gather": "even",
    "all_gather_into_tensor": "concatenated",
    "reduce_scatter": "even",
    "reduce_scatter_tensor": "concatenated",
    "gather_into_tensor": "concatenated",
    "all_to_all": "even",
    "all_to_all_single": "split",
    "all_to_all_nd": "stacked",
    "all_to_all_vdev": "ranks",
}
"""The form by which a rule is known, which comes first."""

F32 = cr.Spec((8, 3))


def _int64(*shape: int) -> cr.Spec:
    return cr.Spec(shape, torch.int64)


BYTES: Mapping[str, Sequence[tuple[Mapping[str, Any], tuple[float, ...]]]] = {
    "c10d::allgather_coalesced_": [
        ({"size": 3, "input_list": [(2,), (3,)], "output_lists": [[(2,), (3,)]] * 3}, (20, 60, 40, 60, 2 / 3))
    ],
    "c10d::allgather_": [
        ({"size": 3, "input_tensors": [(1,)], "output_tensors": [[(1,), (2,), (3,)]]}, (4, 24, 8, 24, 2 / 3))
    ],
    "c10d::allgather_into_tensor_coalesced_": [({"size": 3, "inputs": [(2,), (3,)]}, (20, 60, 40, 60, 2 / 3))],
    "c10d::reduce_scatter_": [
        ({"input_tensors": [[(1,), (2,), (3,), (4,)]], "output_tensors": [(1,)]}, (40, 4, 36, 40, 0.75)),
        ({"rank": 3, "input_tensors": [[(1,), (2,), (3,), (4,)]], "output_tensors": [(4,)]}, (40, 16, 24, 40, 0.75)),
    ],
    "_c10d_functional::reduce_scatter_tensor": [
        ({"rank": 2, "input": F32, "reduce_op": "sum"}, (96, 24, 72, 96, 0.75)),
        ({"rank": 3, "input": F32, "reduce_op": "sum"}, (96, 24, 72, 96, 0.75)),
    ],
    "c10d::gather_into_tensor_": [
        ({"rank": 1, "root_rank": 1, "input_tensor": (8,), "output_tensor": (32,)}, (32, 128, 0, 128, 0.75)),
        ({"rank": 0, "root_rank": 1, "input_tensor": (8,), "output_tensor": (32,)}, (32, 0, 32, 128, 0.75)),
        ({"rank": 2, "root_rank": 1, "input_tensor": (8,), "output_tensor": (32,)}, (32, 0, 32, 128, 0.75)),
    ],
    "c10d::alltoall_": [
        ({"size": 3, "rank": rank, "input_tensors": inputs, "output_tensors": outputs}, numbers)
        for rank, inputs, outputs, numbers in [
            (1, [(1,), (2,), (4,)], [(3,), (2,), (5,)], (28, 40, 20, 40, 2 / 3)),
            (0, [(1,), (2,), (4,)], [(1,), (2,), (3,)], (28, 24, 24, 28, 2 / 3)),
            (2, [(1,), (2,), (4,)], [(1,), (0,), (4,)], (28, 20, 12, 28, 2 / 3)),
        ]
    ],
    "_c10d_functional::all_to_all_single": [
        (
            {"size": 2, "rank": 1, "input": (3,), "input_split_sizes": [1, 2], "output_split_sizes": [4, 2]},
            (12, 24, 4, 24, 0.5),
        )
    ],
    "_dtensor::shard_dim_alltoall": [
        ({"rank": rank, "input": F32, "gather_dim": 1, "shard_dim": 0}, (96, 96, 72, 96, 0.75)) for rank in (0, 1, 3)
    ],
    "c10d::send": [({"rank": 3, "tensors": [(8,)], "dst": 1}, (32, 0, 32, 32, 1))],
    "_c10d_functional::wait_tensor": [({"rank": 1, "tensor": (8,)}, (0, 0, 0, 0, 1))],
}
"""Calls, and the bytes read, written and sent, nccl-tests' S and its bus factor: beyond those of `test_traffic`."""

SYMM_MEM_OTHER_FORMS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "reduce_scatter_out": [
        {"input": (8, 3), "output": (2, 3), "split_last_dim": True},
        {"input": (4, 3), "output": (3,), "split_last_dim": True},
    ]
}
"""Arguments of forms that only other ops of the rule take, in the first legal call of `test_symm_mem`; not drawn."""

SYMM_MEM_WARNED: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "one_shot_all_reduce_copy_out": [{"local_input": (12,)}],
    "nccl_reduce_scatter_offset": [{"out": [(3, 2)]}],
}
"""What gives that call a tensor of equally many elements in another shape."""

AVERAGED = ("_low_contention_reduce_scatter", "fused_matmul_reduce_scatter", "fused_scaled_matmul_reduce_scatter")
"""Ops of symmetric memory that take averages, too."""

COPIED = (
    *("multimem_all_gather_out", "_low_contention_all_gather", "_low_contention_all_gather_ce_multicast"),
    *("_low_contention_all_gather_ce_multicast_out", "nvshmem_all_to_all", "nccl_all_to_all_nd", "nvshmem_broadcast"),
    *("get_remote_tensors", "fused_all_gather_matmul", "fused_matmul_reduce_scatter"),
    *("all_to_all_vdev", "all_to_all_vdev_2d", "all_to_all_vdev_2d_offset"),
)
"""Those that move elements of any dtype, or leave that to a matmul of torch."""

RETURNED = {"c10d::gather_into_tensor_": [("output_tensor", "argument"), ("work", "work")]}
"""What an op that this torch lacks returns."""

WARNED = {"GLOO4", "GLOO11", "GLOO18"}
"""Limits beyond which gloo carries on, and what comes back is what was meant, up to a byte or a rounding."""


# -- laws


@attrs.frozen(eq=False)
class Law:
    """One thing that the tables must not contradict: `holds` raises where they do.

    `of_gloo`: it knows gloo's limits.
    """

    name: str
    holds: Callable[[], None]
    of_gloo: bool


@functools.cache
def laws_of(op: str) -> tuple[Law, ...]:
    """Every law that says something of `op`, the cheap ones first."""
    of_gloo = (is_legal, agrees, is_found, are_as_tried, is_illegal, is_of_no_form, is_undocumented)
    return tuple(
        Law(f"{op}: {name}", functools.partial(holds, *known), holds in of_gloo) for name, holds, *known in _laws_of(op)
    )


def _laws_of(op: str) -> Iterator[tuple[Any, ...]]:  # noqa: PLR0912 - a list, with its conditions
    row = cr.lookup(op)
    for law, ops in TABLE_LAWS.items():
        if op in ops:
            yield law.__name__, law, op
    yield "its lists nest as in the schema", nests_as_in_the_schema, op
    yield "its columns", names_columns_as_the_schema, op
    yield "a batch is its members", is_its_members, op
    if op in RETURNED:
        yield "what it returns", returns, op
    for name, ((moving, arguments), numbers) in TRAFFIC.items():
        if moving == op:
            yield f"bytes of {name}", moves, op, arguments, numbers
    for arguments, numbers in BYTES.get(op, ()):
        yield f"bytes of {arguments}", moves, op, arguments, numbers
    for place, one in enumerate(carried(op)):
        yield f"call {place} is legal", is_legal, one.posts, "gloo"
        yield f"group {place} agrees", agrees, one.posts, "gloo"
    for place, group in enumerate(stated(op)):
        yield f"call {place} is legal by the rule alone", is_legal, group, None
        yield f"group {place} agrees by the rule alone", agrees, group, None
    for place, fault in enumerate(faults(op)):
        yield f"{fault.way}, {place}", is_found, fault
    if row.rule.point_to_point and not row.entry.batch:
        yield "a dense message is legal", is_legal, (transposed_message(row),), None
    for size, arguments in UNDOCUMENTED.get(op, ()):
        yield f"{arguments} is undocumented", is_undocumented, Post(op, cr.Group(size), arguments)
    for size, arguments in ILLEGAL.get(op, ()):
        yield f"{arguments} is illegal", is_illegal, Post(op, cr.Group(size), arguments)
    for form, post in refused_forms(op):
        yield f"{post.arguments} is {form}", is_illegal, post
    for shapes in OTHER_COUNTS.get(row.rule.name, ()):
        yield f"{shapes} is illegal", is_of_no_form, op, shapes
    for one in (*layouts_tried(op), *odd_strides_tried(op), *sharing_tried(op), *some_tried(op)):
        yield one.what, are_as_tried, op, (one,)
    for name, each in kinds_tried(op):
        yield name, are_as_tried, op, each
    if row.reduce_op and has_cpu_kernel(row):
        yield "torch knows its reduce ops", knows_what_torch_knows, op, unrecognized(op)
    if row.group_size and has_cpu_kernel(row):
        yield "another group size", is_ignored_or_not, other_group_size(op)
    for place, one in enumerate(carried(op)):
        yield f"promise {place}", promises, one.posts
        yield f"group {place} comes back so", came_back, one
    yield "what is written changes", writes_what_changes, op, carried(op)
    for group in BETWEEN.get(op, ()):
        yield f"{group} does not agree", disagrees, tuple(map(posted, by_hand(op, group)))


TABLE_LAWS: Mapping[Callable[[str], None], Collection[str]] = {
    test_tables.test_the_parts_of_an_op_are_those_of_all_its_forms: OPS,
    test_tables.test_every_form_of_an_op_has_the_same_parts: OPS,
    test_tables.test_the_lists_of_an_op_are_those_of_its_rule: OPS,
    test_tables.test_the_columns_of_an_op_name_what_exists: OPS,
    test_tables.test_split_sizes_are_stated_where_the_text_splits: OPS,
    test_tables.test_an_op_maps_every_argument_that_its_rule_agrees_on: OPS,
    test_tables.test_a_rule_agrees_on_every_attribute_of_its_ops: OPS,
    test_tables.test_a_row_reads_and_writes_arguments_or_fresh_returns: OPS,
    test_tables.test_what_a_schema_declares_written_is_written: OPS,
    test_tables.test_a_rule_lists_every_kind_that_its_ops_can_violate: OPS,
    test_tables.test_what_an_op_reads_writes_and_returns: test_tables.ROWS,
    test_tables.test_which_argument_holds_what: test_tables.COLUMNS,
}
"""What `test_tables` says of some row, and of which rows."""


def nests_as_in_the_schema(op: str) -> None:
    """A path has a level for each list of the argument's type."""
    row = cr.lookup(op)
    for spelling in row.spellings:
        for part in spelling.statement.parts:
            if part.path.name in row.by_name:
                assert len(part.path.index) == row.by_name[part.path.name].depth


def names_columns_as_the_schema(op: str) -> None:
    """Forms stand in the rule's order; an attribute with an argument's name is that argument; `@root` has a root."""
    row = cr.lookup(op)
    known = [form.name for form in row.rule.forms]
    assert row.entry.forms == tuple(sorted(row.entry.forms, key=known.index))
    assert all(argument == name for name, argument in row.entry.attributes.items() if name in row.by_name)
    assert not row.root_only or {"root", "roots"} & set(row.entry.attributes)


def returns(op: str) -> None:
    """As was read in torch's sources."""
    assert RETURNED[op] == [(output.name, output.kind) for output in cr.lookup(op).returns]


def is_its_members(op: str) -> None:
    """A batch needs of its tensors what its members need of theirs."""
    row = cr.lookup(op)
    if row.entry.batch is not None:
        members = [cr.lookup(member) for member in row.entry.batch.ops.values()]
        needed = {member.layout_of((member.reads + member.writes)[0]) for member in members}
        assert needed == {row.layout_of(row.entry.batch.tensors)}


def is_legal(posts: Sequence[Post], backend: str | None) -> None:
    """Neither the rule nor the backend has anything against any of the calls."""
    for post in posts:
        call = post.call
        assert cr.check(call) == ()
        assert cr.check(call, backend) == ()


def agrees(posts: Sequence[Post], backend: str | None) -> None:
    """The ranks agree."""
    group = [post.call for post in posts]
    assert cr.agree(group) == ()
    assert cr.agree(group, backend) == ()


def is_found(fault: Fault) -> None:
    """Check finds the very constraint in the changed call, or agree between the ranks; the other calls are legal."""
    group, backend = [post.call for post in fault.posts], fault.backend
    found = {call.group.rank: {each.id: each.severity for each in cr.check(call, backend)} for call in group}
    if fault.rank is None:
        severity = severity_of(fault)
        assert severity in [each.get(fault.id) for each in found.values()]
        assert severity == "error" or not any("error" in each.values() for each in found.values())
        assert not any(each.severity == "error" for call in group for each in cr.check(call))
        return
    if not fault.local:
        between = {each.id: each.severity for each in cr.agree(group, backend)}
        assert between.get(fault.id) == "error"
    for rank, each in found.items():
        assert each.get(fault.id) == severity_of(fault) if rank == fault.rank and fault.local else not each


def severity_of(fault: Fault) -> str:
    """What is ignored, or hardly shows, is a warning."""
    row = cr.lookup(fault.posts[0].op)
    if fault.way == "another group size" and not row.available:  # gloo cannot be asked
        return "warning" if row.entry.group_size_ignored else "error"
    if fault.way == "another group size":
        return "error" if other_group_size(row.op).bad else "warning"
    return "warning" if fault.id in WARNED else "error"


def transposed_message(row: cr.Row) -> Post:
    """One end of a message that is dense, and neither contiguous nor channels_last."""
    name = (*row.reads, *row.writes)[0]
    tensor = cr.Spec((2, 3), stride=(1, 2))
    arguments = {name: [tensor] if row.by_name[name].depth else tensor, row.tag: 0, row.peer: 1}
    return Post(row.op, cr.Group(2), {name: value for name, value in arguments.items() if name})


def is_undocumented(post: Post) -> None:
    """Check warns of the form, whatever the backend, and finds no error."""
    assert ["warning"] == [found.severity for found in cr.check(post.call)]


def is_illegal(post: Post) -> None:
    """Check finds an error, whatever the backend."""
    assert "error" in [found.severity for found in cr.check(post.call)]


def is_of_no_form(op: str, shapes: Mapping[str, Any]) -> None:
    """The op takes no such shapes; nothing is said where it does not take a tensor for each, and no other."""
    row = cr.lookup(op)
    arguments: dict[str, Any] = {row.reduce_op: "sum", row.root: 0}
    behind = {}
    for part in row.spellings[0].statement.parts:
        if part.path.name in row.by_name:
            behind[row.spellings[0].behind_of(part)] = part.path
    if behind.keys() == shapes.keys():
        for part, path in behind.items():
            arguments[path.name] = [shapes[part]] if path.index else shapes[part]
        is_illegal(Post(op, cr.Group(4), {name: value for name, value in arguments.items() if name}))


def disagrees(posts: Sequence[Post]) -> None:
    """Check finds nothing, and agree an error."""
    group = [post.call for post in posts]
    assert not any(cr.check(call) for call in group)
    assert "error" in [found.severity for found in cr.agree(group)]


def are_as_tried(op: str, each: Sequence[Tried]) -> None:
    """Something is found wherever gloo raises or is silently wrong, and nowhere else; of a message, on its own side."""
    for one in each:
        group = [post.call for post in one.posts]
        found = {call.group.rank for call in group if cr.check(call, "gloo")}
        if group[0].row.rule.point_to_point:
            own = {post.group.rank for post in one.posts if post.op == op}
            assert found & own == one.bad & own
        else:
            assert bool(one.bad) == bool(found or cr.agree(group, "gloo"))


def knows_what_torch_knows(op: str, unknown: frozenset[str]) -> None:
    """A reduce op is refused by the rule alone where torch does not recognize it."""
    for reduce_op in REDUCE_OPS:
        (call,) = of_kind(plain(op, 1), reduce_op, torch.float32)
        kinds = {call.row.rule.constraints.get(found.id) for found in cr.check(call)}
        assert ("reduce_op" in kinds) == (reduce_op in unknown)


def is_ignored_or_not(one: Tried) -> None:
    """A wrong group_size is an error where it changes what comes back, and a warning elsewhere."""
    for post in one.posts:
        found = {each.severity for each in cr.check(post.call)}
        assert found == ({"error"} if one.bad else {"warning"})


def promises(posts: Sequence[Post]) -> None:
    """A written argument that is left out is inferred as it was given, where this rank reads something."""
    for post in posts:
        row = cr.lookup(post.op)
        left_out = [name for name in row.writes if name not in row.reads and name in post.arguments]
        kept = {name: value for name, value in post.arguments.items() if name not in left_out}
        if not left_out or not any(list(flat(kept.get(name, ()))) for name in row.reads):
            continue
        inferred = cr.infer(attrs.evolve(post, arguments=kept).call)
        for name in left_out:
            assert described(inferred[name]) == described(post.arguments[name])


def described(value: Any) -> list[tuple[Any, Any]]:
    return [(spec.shape, spec.dtype) for spec in flat(value)]


def came_back(one: Carried) -> None:
    """Sizes, dtypes, strides, aliases and values are what gloo made of it."""
    calls_ = {post.group.rank: post.call for post in one.posts}
    made = {rank: attrs.evolve(each, call=calls_[rank]) for rank, each in one.made.items()}
    assert differences(made, one.returned) == ()
    specs = [spec for call in calls_.values() for value in cr.infer(call).values() for spec in flat(value)]
    assert all(spec.shape is not None and spec.dtype is not None for spec in specs)


def writes_what_changes(op: str, groups: Sequence[Carried]) -> None:
    """What changes is written, and what is written changes; where it is no output on that rank, it is scratch."""
    row = cr.lookup(op)
    everywhere = {part.path.name for part in row.spellings[0].statement.writes if not part.root_only}
    seen: set[str] = set()
    spoilt: set[str] = set()
    for one in groups:
        for post in one.posts:
            if post.op == op:
                seen |= one.changed[post.group.rank]
                spoilt |= set() if post.call.is_root else one.changed[post.group.rank] - everywhere
    assert not groups or seen == {name for name in row.writes if name in row.by_name}
    assert not groups or spoilt == set(row.entry.scratch)


def moves(op: str, arguments: Mapping[str, Any], numbers: tuple[float, ...]) -> None:
    """Bytes by each convention, as computed by hand."""
    assert moved(op, **arguments) == pytest.approx(numbers)


# -- laws of symmetric memory's rows


@functools.cache
def symm_mem_laws_of(op: str) -> tuple[Law, ...]:
    """What `test_symm_mem` knows of an op, worked out by hand: its witness and its bytes; and that gloo has none."""
    name = op.removeprefix("symm_mem::")
    laws = [
        *((law.__name__, law, op) for law, ops in TABLE_LAWS.items() if op in ops),
        ("no kernel", lacks_a_kernel, name),
        ("witness", contradicts_no_witness, name),
        ("bytes", moves_by_hand, name),
        ("sparse", takes_nothing_sparse, name),
        ("contiguous", needs_what_is_contiguous, name),
        ("any layout", takes_any_layout, name),
        ("other forms", takes_no_other_form, name),
        ("another shape", warns_of_another_shape, name),
        ("reduce ops", reduces_only_so, name),
        ("dtypes", takes_any_dtype, name),
        ("columns", names_columns_as_the_schema, op),
    ]
    laws += [(f"{post.arguments} is {form}", is_illegal, post) for form, post in refused_forms(op)]
    if op in ALONE:
        laws.append(("alone", takes_itself, op))
    if op in UNTOLD:
        laws.append(("untold", leaves_untold, op))
    return tuple(
        Law(f"{op}: {what}", functools.partial(law, known), law is lacks_a_kernel) for what, law, known in laws
    )


ALONE = {f"symm_mem::{name}": {"tensor": (3,), "peer": 1} for name in ("nvshmem_get", "nccl_get")}
"""What rank 1 may do with its own memory."""

UNTOLD = {
    **{op: ({"peer": 1}, "tensor") for op in ALONE},
    "symm_mem::memcpy_to_multicast_": ({"src": (3,), "byte_offset": 0}, "symm_mem_out"),
}
"""Calls that leave out an argument of which nothing is known then."""


def lacks_a_kernel(name: str) -> None:
    """Gloo carries out nothing of it."""
    arguments = test_symm_mem.WITNESSES[name].legal[0].arguments
    for size in (1, 2, 4):
        found = cr.check(test_symm_mem.call_of(name, arguments, 0, size), "gloo")
        assert ("GLOO14", "error") in [(each.id, each.severity) for each in found]


def contradicts_no_witness(name: str) -> None:
    """Nothing that was worked out by hand is contradicted."""
    assert next(test_symm_mem.objections(name), None) is None


def moves_by_hand(name: str) -> None:
    """Bytes by each convention, as computed by hand."""
    for *case, numbers in test_symm_mem.TRAFFIC.get(name, ()):
        assert test_symm_mem.moved(name, *case) == pytest.approx(numbers)


def takes_itself(op: str) -> None:
    """A one-sided op may name this very rank."""
    assert cr.check(cr.call(op, group=cr.Group(4, 1), **ALONE[op])) == ()


def instead(name: str, size: int = 4, **arguments: Any) -> set[str]:
    """The kinds of constraint that the first legal call of `test_symm_mem` violates when something in it is changed."""
    legal = test_symm_mem.WITNESSES[name].legal[0]
    call = test_symm_mem.call_of(name, {**legal.arguments, **arguments}, min(legal.rank, size - 1), size)
    return {call.row.rule.constraints[found.id] for found in cr.check(call) if found.severity == "error"}


def tensors_of(name: str) -> Iterator[tuple[str, Any]]:
    """The tensors of the first legal call of which the rule speaks."""
    row = cr.lookup(f"symm_mem::{name}")
    stated = {part.path.name for part in row.spellings[0].statement.parts}
    for argument, value in test_symm_mem.WITNESSES[name].legal[0].arguments.items():
        if argument in stated and holds_tensors(value):
            yield argument, value


def takes_nothing_sparse(name: str) -> None:
    """No kernel does."""
    for argument, value in tensors_of(name):
        sparse = mapped(lambda spec: cr.Spec(spec.shape, spec.dtype, layout="sparse_coo"), value)
        assert "strided" in instead(name, **{argument: sparse})


def needs_what_is_contiguous(name: str) -> None:
    """In a group of any size: neither gaps, nor another order, nor channels_last, whatever is wrong besides."""
    row, legal = cr.lookup(f"symm_mem::{name}"), test_symm_mem.WITNESSES[name].legal[0]
    for argument in test_symm_mem.WITNESSES[name].contiguous:
        value = legal.arguments[argument]
        for shape, layout in itertools.product(((2, 3, 4, 5), (2, 3)), (SLICED, TRANSPOSED, CHANNELS_LAST)):
            other = mapped(lambda spec, s=shape, way=layout: cr.Spec(s, spec.dtype, strides(s, way)), value)
            bad = not cr.Spec(shape, stride=strides(shape, layout)).is_contiguous
            for size in (1, 2, 4):
                root = {row.root: min(legal.rank, size - 1)} if row.root else {}
                assert not bad or "dense" in instead(name, size, **{argument: other}, **root)


def takes_any_layout(name: str) -> None:
    """What need not be contiguous may lie anyhow, and otherwise on every rank."""
    witness = test_symm_mem.WITNESSES[name]
    for argument, value in tensors_of(name):
        for layout in (SLICED, TRANSPOSED) if argument not in witness.contiguous else ():
            other = mapped(lambda spec, way=layout: cr.Spec(spec.shape, spec.dtype, strides(spec.shape, way)), value)
            assert "dense" not in instead(name, **{argument: other})
            group = [
                test_symm_mem.call_of(name, {**witness.legal[0].arguments, **({argument: other} if r == 1 else {})}, r)
                for r in range(witness.legal[0].size)
            ]
            assert "order" not in {call.row.rule.constraints[f.id] for call in group[:2] for f in cr.check(call)}
            assert "order" not in {group[0].row.rule.constraints[found.id] for found in cr.agree(group)}


def takes_no_other_form(name: str) -> None:
    """Calls of a form that other ops of the rule take."""
    for arguments in SYMM_MEM_OTHER_FORMS.get(name, ()):
        assert instead(name, **arguments)


def warns_of_another_shape(name: str) -> None:
    """Equally many elements in another shape are a warning, where the whole tensor is one `*s`."""
    for arguments in SYMM_MEM_WARNED.get(name, ()):
        legal = test_symm_mem.WITNESSES[name].legal[0]
        found = cr.check(test_symm_mem.call_of(name, {**legal.arguments, **arguments}, legal.rank, legal.size))
        assert {"warning"} == {each.severity for each in found}


def reduces_only_so(name: str) -> None:
    """A sum, and for some an average: `reduce_op` is compared with these names in torch's sources."""
    row = cr.lookup(f"symm_mem::{name}")
    for reduce_op in REDUCE_OPS if row.reduce_op else ():
        taken = reduce_op == "sum" or (reduce_op == "avg" and name in AVERAGED)
        assert taken == ("reduce_op" not in instead(name, **{row.reduce_op: reduce_op}))


def takes_any_dtype(name: str) -> None:
    """Float64 as well as another."""
    if name in COPIED:
        wide = {
            argument: mapped(lambda spec: cr.Spec(spec.shape, torch.float64, spec.stride), value)
            for argument, value in tensors_of(name)
            if next(flat(value)).dtype.is_floating_point
        }
        assert not instead(name, **wide)


def leaves_untold(op: str) -> None:
    """Neither a shape nor a dtype is made up."""
    arguments, name = UNTOLD[op]
    inferred = cr.infer(cr.call(op, group=cr.Group(4), **arguments))[name]
    assert (inferred.shape, inferred.dtype) == (None, None)


# -- laws of rules


@functools.cache
def laws_of_rule(rule: str) -> tuple[Law, ...]:
    """What is known of a rule apart from the ops that follow it."""
    laws: list[tuple[Any, ...]] = [("its ids are those of the page", has_published_ids)]
    laws += [(law.__name__, about(law)) for law in RULE_LAWS]
    laws += [("agreed", agrees_on_what_cannot_differ), ("names", names_lists_in_the_plural)]
    if rule in USUAL:
        laws.append(("the usual form", is_known_by_its_usual_form))
    if rule in test_oracles.CASES:
        laws += [(f"oracle, {n}", computes, case) for n, case in enumerate(drawn(oracle_cases(rule), 12))]
    else:
        laws.append(("no oracle", has_no_oracle))
    return tuple(Law(f"{rule}: {what}", functools.partial(law, rule, *known), False) for what, law, *known in laws)


RULE_LAWS = (
    test_tables.test_every_rule_and_every_form_is_used_by_some_op,
    test_tables.test_every_derived_name_stands_in_a_form,
    test_tables.test_a_root_only_part_has_a_root,
)
"""What `test_tables` says of every rule."""


def about(law: Callable[[Rule], None]) -> Callable[[str], None]:
    """The law, of the rule that has that name now."""
    return lambda rule: law(row_module.RULES[rule])


@functools.cache
def published_ids() -> Mapping[str, str]:
    """Each id with what it says, as the reference page was published."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "rules.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| ([A-Z]+[0-9]+) \| (.*) \|$", page.replace("\\*", "*"), re.MULTILINE))


def has_published_ids(rule: str) -> None:
    """An id keeps its meaning for ever; a new one is published with its rule."""
    for id_, kind in row_module.RULES[rule].constraints.items():
        assert published_ids()[id_] == KINDS[kind].says


def agrees_on_what_cannot_differ(rule: str) -> None:
    """Ranks may have different peers and root tensors; a group_size is compared with the group instead."""
    assert set(row_module.RULES[rule].agreed).isdisjoint(test_tables.NOT_AGREED)


def names_lists_in_the_plural(rule: str) -> None:
    """A part that is a list, and no other, has a plural name; split sizes are many in one tensor."""
    for form in row_module.RULES[rule].forms:
        for part in form.statement.parts:
            name = part.path.name
            assert bool(part.path.index) == (name.endswith("s") and not name.endswith("_splits"))


def is_known_by_its_usual_form(rule: str) -> None:
    """It comes first."""
    assert USUAL[rule] == row_module.RULES[rule].forms[0].name


@st.composite
def oracle_cases(draw: st.DrawFn, rule: str) -> test_oracles.Case:
    """One of `test_oracles`'."""
    return test_oracles.CASES[rule](test_oracles.Draw(draw))


def has_no_oracle(rule: str) -> None:
    """Where only the device knows the sizes, or nothing is computed."""
    assert row_module.RULES[rule].oracle is None


def computes(rule: str, case: test_oracles.Case) -> None:
    """As `test_oracles` demands."""
    assert test_oracles.agree_on(case.values, row_module.RULES[rule].oracle(case.inputs, **case.attributes))
