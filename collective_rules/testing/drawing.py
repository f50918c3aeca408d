"""Draws legal groups of calls: the rule's names first, then every rank's arguments, which follow from them.

A `Wish` asks for the properties that a later step needs (two ranks, a tensor with elements …), so that few drawn groups
are thrown away. The rule's statement, the op's columns and the backend's limits decide what is drawn. The output of a
size function cannot be drawn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from hypothesis import assume
from hypothesis import strategies as st

from collective_rules.backends import Limit, limits_of, spellings_of
from collective_rules.backends.columns import DEMANDS, matters_in, refuses, sets
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.binding.bound import Key
from collective_rules.binding.splits import meaning
from collective_rules.call import Call, call, on_device
from collective_rules.check import check
from collective_rules.errors import CallError
from collective_rules.notation import GroupSize, Name, Part, Rest, Shares, Splits
from collective_rules.notation.sizes import evaluate, pairs
from collective_rules.ops import OPS, Row, lookup
from collective_rules.ops.op import (
    ANY,
    CONTIGUOUS,
    DENSE,
    EVEN,
    FLAT,
    FORMAT,
    FREE,
    NEVER,
    ORDER,
    OWN,
    REAL_FLAT,
    REAL_FORMAT,
    SENT,
    UP_TO_OWN,
)
from collective_rules.spec import Group, Memory, Spec
from collective_rules.testing.layouts import CHANNELS_LAST, EXPANDED, SLICED, STRAIGHT, TRANSPOSED, strides
from collective_rules.testing.tensors import flat, mapped

DTYPES = (
    torch.float32,
    *(torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.bool, torch.complex64, torch.complex128),
)
"""The dtypes that are drawn, the simplest first."""

_MOST_DIMS, _LARGEST = 5, 3
_DIMS = ("shard_dim", "gather_dim")

_KEPT = {
    *("missing", "dtypes", "reduces", "single", "forms", "one_dtype", "promotes", "nonempty", "fresh_strides"),
    *("exact", "sparse_reduces"),  # equal shapes and strided tensors alone are drawn
    *("most_tensors", "layouts", "ordered", "overlap", "devices", "divides", "to_others"),
}
"""The columns of a backend's limits that every drawn call meets. Calls that break a limit of another are dropped."""

_LAYOUTS = (ANY, ORDER, SENT, DENSE, FLAT, REAL_FLAT, FORMAT, REAL_FORMAT, CONTIGUOUS)
_OVERLAPS = (FREE, UP_TO_OWN, OWN, NEVER)
"""From the laxest to the strictest."""

Calls = tuple[Call, ...]
Dtypes = tuple[tuple[str, torch.dtype], ...]


@attrs.frozen
class Wish:
    """Says which properties a drawn group must have, besides being legal. The defaults demand nothing.

    - `min_ranks`: the least size of the group; `single_rank`: the group has one rank.
    - `min_dims`: the least number of dims of every rest; `min_size`: the least size of a dim.
    - `min_tensors`, `max_tensors`: the length of lists of tensors.
    - `straight`: every tensor is contiguous, and shares no memory; `one_dtype`: all tensors of a list have one dtype.
    - `form`: the form of the rule.
    - `dtypes`: the (reduce op, dtype) to choose from.
    - `splits`: whether split sizes are given.
    """

    min_ranks: int = 1
    single_rank: bool = False
    min_dims: int = 0
    min_size: int = 0
    min_tensors: int = 1
    max_tensors: int = 3
    straight: bool = False
    one_dtype: bool = False
    form: str = ""
    dtypes: Dtypes | None = None
    splits: bool | None = None


def drawable(row: Row) -> str:
    """Return why no calls of `row` can be drawn, "" where they can."""
    drawn = {*_ATTRIBUTES, *_DIMS, "reduce_op", "group_size"}
    unknown = [argument for name, argument in row.entry.attributes.items() if name not in drawn]
    if row.rule.derived and not set(_DIMS) <= row.entry.attributes.keys():
        unknown += [f"the arguments on which the sizes {', '.join(row.rule.derived)} depend"]
    if row.entry.requirements and row.namespace == "symm_mem":
        unknown += ["arguments that meet the demands of its kernel"]
    return f"nothing says how to draw {' and '.join(unknown)}" if unknown else ""


def untaken(row: Row, backend: str | None) -> str:
    """Return why `backend` takes no call of `row`, "" where it takes some."""
    if any(limit.missing for limit in limits_of(backend, row)):
        return f"{backend} has no kernel for it"
    return "" if spellings_of(backend, row) else f"{backend} takes none of its forms"


@functools.cache
def dtypes_of(row: Row) -> Dtypes:
    """Return every (reduce op, dtype) that the op takes; the reduce op is "" for an op without one."""
    reduce_ops = [op for op in row.entry.reduce_ops or REDUCE_OPS if op != "premul_sum"] if row.reduce_op else [""]
    return tuple((reduce_op, dtype) for reduce_op in reduce_ops for dtype in row.entry.kernel_dtypes or DTYPES)


@functools.cache
def legal_dtypes(row: Row, backend: str | None, size: int) -> Dtypes:
    """Return the (reduce op, dtype) that a group of `size` ranks may use without a warning."""
    limits = [limit for limit in limits_of(backend, row) if matters_in(limit, size)]
    return tuple(each for each in dtypes_of(row) if not any(refuses(limit, *each) for limit in limits))


def draw_calls(draw: st.DrawFn, row: Row, backend: str | None, most_ranks: int, wish: Wish) -> Calls:
    """Draw one call for each rank that takes part."""
    why = drawable(row)
    if why:
        raise CallError(f"no strategy draws calls of {row.op}: {why}")
    size = draw_size(draw, row, most_ranks, wish)
    if row.entry.batch:
        drawn = _draw_batch(draw, row, backend, size, wish)
    elif row.rule.point_to_point:
        drawn = _draw_pairs(draw, row, backend, size, wish)
    else:
        drawn = Drawing(draw, row, backend, size, wish).calls()
    device = device_of(limits_of(backend, row))
    if device != "cpu" and row.rule.point_to_point:
        drawn = tuple(on_device(one, device) for one in drawn)
    rows = {one.row for one in drawn} | {lookup(op) for op in (row.entry.batch.ops.values() if row.entry.batch else ())}
    limits = [limit for each in rows for limit in limits_of(backend, each)]
    if any(sets(limit, column) for limit in limits for column in DEMANDS.keys() - _KEPT):
        assume(not any(check(one, backend) for one in drawn))
    return drawn


def device_of(limits: Sequence[Limit]) -> str:
    """Return the first device whose tensors all of the limits take."""
    taken = [limit.devices for limit in limits if limit.devices is not None]
    return next((device for device in (taken[0] if taken else ()) if all(device in each for each in taken)), "cpu")


def draw_size(draw: st.DrawFn, row: Row, most_ranks: int, wish: Wish) -> int:
    """Draw the size of the group; a send and a receive take two ranks."""
    least = max(wish.min_ranks, 2 if row.rule.point_to_point else 1)
    return 1 if wish.single_rank else draw(st.integers(least, max(least, most_ranks)))


# -- point to point


_TAGS = st.sampled_from((0, 7, 2**31 - 1))


def _partner(row: Row) -> Row:
    """Return the op of the same namespace for the other end of a message."""
    wanted = {"send": "receive", "receive": "send"}[row.rule.direction]
    rows = (lookup(op) for op in OPS if op.startswith(f"{row.namespace}::"))
    return next(other for other in rows if other.rule.direction == wanted)


def _draw_pairs(draw: st.DrawFn, row: Row, backend: str | None, size: int, wish: Wish) -> Calls:
    """Draw disjoint pairs of a sender and a receiver."""
    ranks = draw(st.permutations(range(size)))
    pairs = draw(st.integers(1, size // 2))
    partner = _partner(row)
    made = []
    for sender, receiver in zip(ranks[: 2 * pairs : 2], ranks[1 : 2 * pairs : 2], strict=True):
        spec, tag = _draw_message(draw, row, partner, backend, wish), draw(_TAGS)
        for rank, peer, direction in ((sender, receiver, "send"), (receiver, sender, "receive")):
            own = row if row.rule.direction == direction else partner
            part = own.spellings[0].statement.parts[0]
            tensor = copied([spec] if part.path.index else spec, strided=True)
            arguments = {part.path.name: tensor, own.tag: tag} | ({own.peer: peer} if own.peer else {})
            made.append(call(own.op, group=Group(size, rank), **arguments))
    return tuple(sorted(made, key=lambda one: one.group.rank))


def _draw_message(draw: st.DrawFn, row: Row, partner: Row, backend: str | None, wish: Wish) -> Spec:
    """Draw the tensor that `row` and its partner send and receive."""
    limits = limits_of(backend, row) + limits_of(backend, partner)
    wish = _nonempty(wish, limits)
    dtypes = legal_dtypes(row, backend, 2) if wish.dtypes is None else wish.dtypes
    shape, dtype = _draw_shape(draw, wish, 0), draw(st.sampled_from(dtypes))[1]
    contiguous = wish.straight or any(CONTIGUOUS in (limit.layouts or {}).values() for limit in limits)
    layout = STRAIGHT if contiguous else draw(st.sampled_from([STRAIGHT, TRANSPOSED, CHANNELS_LAST]))
    return Spec(shape, dtype, strides(shape, layout))


def _nonempty(wish: Wish, limits: Sequence[Limit]) -> Wish:
    least = max(wish.min_size, 1 if any(limit.nonempty for limit in limits) else 0)
    return attrs.evolve(wish, min_size=least)


def _draw_batch(draw: st.DrawFn, row: Row, backend: str | None, size: int, wish: Wish) -> Calls:
    """Draw messages between ranks: each is a send in one rank's batch and a receive in another rank's."""
    batch = row.entry.batch
    assert batch is not None
    names = (batch.kinds, batch.peers, batch.tags, batch.tensors)
    lists: list[dict[str, list[Any]]] = [{name: [] for name in names} for _ in range(size)]
    member = lookup(next(iter(batch.ops.values())))
    for _ in range(draw(st.integers(max(1, wish.min_tensors), 4))):
        sender, receiver = draw(st.permutations(range(size)))[:2]
        spec, tag = _draw_message(draw, member, member, backend, wish), draw(_TAGS)
        for rank, peer, kind in ((sender, receiver, "isend"), (receiver, sender, "irecv")):
            for name, value in zip(names, (kind, peer, tag, copied(spec, strided=True)), strict=True):
                lists[rank][name].append(value)
    taking_part = [rank for rank in range(size) if lists[rank][batch.kinds]]
    return tuple(call(row.op, group=Group(size, rank), **lists[rank]) for rank in taking_part)


def copied(value: Any, *, strided: bool = False) -> Any:
    """Return equal tensors in other memory, contiguous, or of the same strides; `value` may be a (nested) list."""
    return mapped(lambda spec: Spec(spec.shape, spec.dtype, spec.stride if strided else None, spec.device), value)


def _draw_shape(draw: st.DrawFn, wish: Wish, taken: int) -> tuple[int, ...]:
    """Draw the sizes of a rest; `taken` dims of the tensor are named."""
    most = _MOST_DIMS - taken
    sizes = st.lists(st.integers(wish.min_size, _LARGEST), min_size=min(wish.min_dims, most), max_size=most)
    return tuple(draw(sizes))


# -- collectives


@attrs.define
class Values:
    """The values on which all ranks of a group agree.

    A rank's call that is made after a change is legal by itself, but does not fit the other ranks' calls.

    - `dtype`: of the first tensor of a list; `dtypes`: of further tensors, by their place.
    - `count`: how many tensors a list holds.
    - `attributes`: "reduce_op", "root" … → value.
    - `matrix`: `matrix[i][j]` is how many rows rank i sends to rank j.
    - `layouts`: argument → layout, for the arguments whose memory is sent as it is.
    - `sizes`: a size is a number, a rest is a tuple. A missing size is drawn when a call first needs it.
    """

    dtype: torch.dtype
    count: int
    attributes: dict[str, Any]
    dtypes: dict[int, torch.dtype] = attrs.field(factory=dict)
    matrix: tuple[tuple[int, ...], ...] = ()
    layouts: dict[str, str] = attrs.field(factory=dict)
    sizes: dict[Key, Any] = attrs.field(factory=dict)


class Drawing:
    """Draws the values of one group of calls, and makes every rank's call from them."""

    def __init__(self, draw: st.DrawFn, row: Row, backend: str | None, size: int, wish: Wish) -> None:
        self.limits = [limit for limit in limits_of(backend, row) if matters_in(limit, size)]
        self.draw, self.row, self.size, self.wish = draw, row, size, _nonempty(wish, self.limits)
        self.device = device_of(self.limits)
        taken = spellings_of(backend, row)
        spellings = [each for each in taken if (each.form.name == wish.form if wish.form else each.documented)]
        self.spelling = draw(st.sampled_from(spellings))
        self.parts = self.spelling.statement.parts
        mixed = not any(limit.one_dtype or limit.promotes for limit in self.limits)
        self.one_dtype = wish.one_dtype or self.spelling.one_dtype or not mixed
        self.fresh_strides = any(limit.fresh_strides for limit in self.limits) and not wish.straight
        self.dtypes, self.values = self._draw_values(backend)
        if row.rule.derived:
            self._draw_dims()
        self.values.matrix = self._draw_matrix() if row.entry.splits else ()
        self.values.layouts = self._draw_layouts()

    def calls(self) -> Calls:
        """Return the call of every rank."""
        return tuple(self.call_of(rank) for rank in range(self.size))

    def call_of(self, rank: int) -> Call:
        """Return the call of one rank, made from the values as they are now."""
        entry, attributes = self.row.entry, self.values.attributes
        arguments = {argument: attributes[name] for name, argument in entry.attributes.items()}
        if "root_tensor" in attributes and entry.one_tensor:  # each rank chooses for itself
            arguments[entry.attributes["root_tensor"]] = self.draw(st.integers(0, self.values.count - 1))
        if not self.draw(st.booleans()):
            arguments.pop(self.row.group_size, None)
        tensors: dict[str, Any] = {}
        for argument in self.row.arguments:  # those that the rule does not name: a signal, and its place
            if argument.name in entry.also_reads:
                tensors[argument.name] = Spec((1,))
            elif (argument.kind, argument.depth, argument.has_default) == ("int", 0, False):
                arguments |= {argument.name: 1} if argument.name not in entry.attributes.values() else {}
        off_root = "root" in attributes and rank != attributes["root"]
        for part in self.parts:
            name = part.path.name
            if name in tensors or name in self.row.fresh:
                continue
            if part.root_only and off_root and name not in self.row.in_place and not entry.everywhere:
                tensors |= {name: []} if part.path.index else {}
                continue
            layout = self._draw_layout(name)
            tensors[name] = self._tensors(part, part.path.index, layout, {"r": rank, "i": 0, "p": 0})
        if not self.wish.straight:
            self._draw_sharing(rank, tensors)
        made = call(self.row.op, group=Group(self.size, rank), **arguments, **tensors, **self._split_sizes(rank))
        return made if self.device == "cpu" else on_device(made, self.device)

    # -- values

    def _draw_values(self, backend: str | None) -> tuple[list[torch.dtype], Values]:
        """Draw the reduce op, dtype, count and attributes; return them after the dtypes that go with the reduce op."""
        wish, draw = self.wish, self.draw
        dtypes = legal_dtypes(self.row, backend, self.size) if wish.dtypes is None else wish.dtypes
        single_ops = {op for limit in self.limits for op in limit.single or ()}
        if wish.dtypes is None and wish.min_tensors > 1:
            dtypes = tuple(each for each in dtypes if each[0] not in single_ops)
        forms = self.row.entry.complex_forms
        if wish.dtypes is None and forms and self.spelling.form.name not in forms:
            dtypes = tuple(each for each in dtypes if not each[1].is_complex)
        reduce_op, dtype = draw(st.sampled_from(dtypes))
        listed = any("i" in part.path.index for part in self.parts)
        count = draw(st.integers(wish.min_tensors, max(wish.max_tensors, wish.min_tensors))) if listed else 1
        if reduce_op in single_ops and wish.min_tensors == 1:
            count = 1  # drawn in any case: a choice less would count as simpler
        for limit in self.limits:
            count = min(count, max(limit.most_tensors or count, wish.min_tensors))
        attributes: dict[str, Any] = {"reduce_op": reduce_op, "group_size": self.size}
        for name in self.row.entry.attributes:
            if name in _ATTRIBUTES:
                attributes[name] = draw(_ATTRIBUTES[name](self.size, count))
        return [each for op, each in dtypes if op == reduce_op], Values(dtype, count, attributes)

    def _draw_dims(self) -> None:
        """Draw a shape with a dim to gather and one to shard, whose size the ranks divide."""
        shape = list(_draw_shape(self.draw, attrs.evolve(self.wish, min_dims=max(1, self.wish.min_dims)), 0))
        chosen = {name: self.draw(st.integers(0, len(shape) - 1)) for name in _DIMS}
        shape[chosen["shard_dim"]] *= self.size
        self.values.attributes |= chosen
        self.values.sizes[Key("s")] = tuple(shape)

    def _draw_matrix(self) -> tuple[tuple[int, ...], ...]:
        """Draw how many rows go from each rank (first index) to each."""
        size, number = self.size, st.integers(self.wish.min_size, _LARGEST)
        fixed = not self.row.splits or self.wish.splits is False
        if fixed or (self.wish.splits is None and self.draw(st.booleans())):
            return ((self.draw(number),) * size,) * size
        numbers = self.draw(st.lists(number, min_size=size**2, max_size=size**2))
        return tuple(tuple(numbers[start : start + size]) for start in range(0, size**2, size))

    def _split_sizes(self, rank: int) -> dict[str, Any]:
        """Return the rank's row and column of the matrix; some are left out where an empty list means the same."""
        result: dict[str, Any] = {}
        together = bool(self.row.entry.requirements)
        for part, column in self.row.entry.splits.items():
            if column.argument is None:
                continue
            sizes = list(self.values.matrix[rank]) if part == "input" else [row[rank] for row in self.values.matrix]
            empty = meaning((), column, self.size)
            may = not together and (len(set(sizes)) == 1 if empty == EVEN else tuple(sizes) == empty)
            given = self.wish.splits if self.wish.splits is not None else self.draw(st.booleans())
            result[column.argument] = sizes if given or not may else []
        return result

    # -- tensors

    def _tensors(self, part: Part, index: Sequence[str], layout: str, at: Mapping[str, int]) -> Any:
        """Return the argument of a part: a tensor, or lists along `index`; `at` holds the outer lists' places."""
        if not index:
            shape = self._shape(part, at)
            fixed = self.row.rule.fixed_dtypes.get(self.spelling.behind_of(part))
            spec = Spec(shape, fixed or self._dtype_of(at["i"]), strides(shape, layout))
            odd = self.fresh_strides and self.values.count == 1 and spec.has_odd_strides
            return copied(spec) if odd else spec
        length = {"1": 1, "p": self.size, "i": self.values.count}[index[0]]
        return [self._tensors(part, index[1:], layout, {**at, index[0]: place}) for place in range(length)]

    def _dtype_of(self, element: int) -> torch.dtype:
        if self.one_dtype or element == 0:
            return self.values.dtype
        if element not in self.values.dtypes:
            self.values.dtypes[element] = self.draw(st.sampled_from([self.values.dtype, *self.dtypes]))
        return self.values.dtypes[element]

    def _shape(self, part: Part, at: Mapping[str, int]) -> tuple[int, ...]:
        def value_of(size: Name | Shares | Splits | Rest) -> Any:
            if isinstance(size, Splits):
                return sum(self.values.matrix[i][j] for i, j in pairs(size, at["r"], self.size))
            listed = not self.row.entry.one_tensor and size.name not in self.spelling.shared
            key = Key(size.name, at["i"] if listed else None)
            index = () if isinstance(size, Shares) else tuple(at.get(each, each) for each in size.index)
            own = key._replace(ranks=index)
            if not isinstance(size, Rest):
                return self._size(own)
            if key not in self.values.sizes:
                self.values.sizes[key] = _draw_shape(self.draw, self.wish, self._most_named(size.name))
            sizes = self.values.sizes[key]
            return (self._size(own), *sizes[1:]) if index and sizes else sizes  # a rest differs in its first dim

        return evaluate(part.sizes, self.size, value_of) or ()

    def _size(self, key: Key) -> int:
        if key not in self.values.sizes:
            self.values.sizes[key] = self.draw(st.integers(self.wish.min_size, _LARGEST))
        return int(self.values.sizes[key])

    def _most_named(self, rest: str) -> int:
        """Return how many dims the parts with this rest name beside it, at most."""
        return max(len(p.sizes) - 1 for p in self.parts if any(isinstance(s, Rest) and s.name == rest for s in p.sizes))

    # -- memory

    def _draw_layouts(self) -> dict[str, str]:
        """Draw one layout for all arguments whose memory is sent as it is, on all ranks."""
        row = self.row
        together = self.values.count if row.entry.one_tensor and row.reduce_op else 1
        names = [part.path.name for part in self.parts if part.path.name not in row.fresh]
        matters = self.size * together >= row.entry.layouts_from
        wanted = {name: self._layout(name, row.layout_of(name) if matters else ANY) for name in names}
        raw = [name for name in names if wanted[name] != ANY]
        if not raw or self.wish.straight:
            return dict.fromkeys(raw, STRAIGHT)
        layouts = {wanted[name] for name in raw}
        if REAL_FORMAT in layouts:
            layouts.add(CONTIGUOUS if self.values.dtype.is_complex else FORMAT)
        if REAL_FLAT in layouts:
            layouts.add(FLAT)
        admitted = [STRAIGHT]
        if not layouts & {CONTIGUOUS, FLAT} and not self._sends_pieces():
            admitted += [CHANNELS_LAST] if FORMAT in layouts else [TRANSPOSED, CHANNELS_LAST]
        if layouts == {ORDER}:
            admitted.append(SLICED)
        return dict.fromkeys(raw, self.draw(st.sampled_from(admitted)))

    def _layout(self, argument: str, own: str) -> str:
        """Return the strictest layout that the op or a limit wants of an argument."""
        behind = {name for name, path in self.row.entry.parts.items() if path.partition("[")[0] == argument}
        wanted = [own]
        for limit in self._limits_in_form():
            wanted += [layout for part, layout in (limit.layouts or {}).items() if part in behind]
            wanted += [ORDER] * bool(behind.intersection(limit.ordered or ()))
        return max(wanted, key=_LAYOUTS.index)

    def _limits_in_form(self) -> list[Limit]:
        form = self.spelling.form.name
        return [limit for limit in self.limits if not limit.in_forms or form in limit.in_forms]

    def _sends_pieces(self) -> bool:
        """Return whether a limit orders tensors that hold the ranks' pieces, which must lie together, too."""
        sizes = [part.sizes[0] for part in self.parts if part.sizes]
        pieces = any(isinstance(size, (Shares, GroupSize)) for size in sizes)
        return pieces and any(limit.ordered for limit in self._limits_in_form())

    def _draw_layout(self, argument: str) -> str:
        if argument in self.values.layouts:
            return self.values.layouts[argument]
        written = argument in self.row.writes
        admitted = [STRAIGHT, TRANSPOSED, CHANNELS_LAST, SLICED] + ([] if written else [EXPANDED])
        return STRAIGHT if self.wish.straight else self.draw(st.sampled_from(admitted))

    def _draw_sharing(self, rank: int, tensors: dict[str, Any]) -> None:
        """Let a tensor that is read lie in memory that is written, where the op admits it."""
        limits = [limit.overlap for limit in self._limits_in_form() if limit.overlap]
        overlap = max([self.row.entry.overlap, *limits], key=_OVERLAPS.index)
        read = next((n for n in tensors if n in self.row.reads and n not in self.row.writes), "")
        written = next((n for n in tensors if n in self.row.writes and n not in self.row.reads), "")
        if overlap == NEVER or not read or not written or not self.draw(st.booleans()):
            return
        inputs, outputs = list(flat(tensors[read])), list(flat(tensors[written]))
        if not inputs or not outputs:
            return
        listed = any("p" in part.path.index for part in self.parts if part.path.name == read)
        if overlap != FREE and not listed:
            return
        if overlap != FREE:
            inputs = inputs[rank : rank + 1] if overlap == OWN else inputs[: rank + 1]
        inner, outer = self.draw(st.sampled_from(inputs)), self.draw(st.sampled_from(outputs))
        if not (inner.is_contiguous and outer.is_contiguous and inner.dtype is outer.dtype):
            return
        room = abs(outer.numel - inner.numel)
        start = self.draw(st.sampled_from(sorted({0, room // 2, room})))
        larger = outer.numel >= inner.numel
        shared = {
            id(inner): Spec(inner.shape, inner.dtype, memory=Memory(rank, start if larger else 0)),
            id(outer): Spec(outer.shape, outer.dtype, memory=Memory(rank, 0 if larger else start)),
        }
        for name in (read, written):
            tensors[name] = mapped(lambda spec: shared.get(id(spec), spec), tensors[name])


_ATTRIBUTES: Mapping[str, Callable[[int, int], st.SearchStrategy[Any]]] = {
    "root": lambda size, count: st.integers(0, size - 1),
    "root_tensor": lambda size, count: st.integers(0, count - 1),
    "peer": lambda size, count: st.integers(0, size - 1),
    "tag": lambda size, count: _TAGS,
}
"""Attribute → what draws it, by the group's size and the tensors in a list."""
