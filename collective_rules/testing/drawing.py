"""Draws legal groups of calls: the rule's names first, then every rank's arguments, which follow from them.

A `Wish` asks for what a later step needs (two ranks, a tensor with elements …), so that nothing need be thrown away.
It reads the rule's statement, the op's columns and the backend's limits; the output of a size function it cannot draw.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from hypothesis import assume
from hypothesis import strategies as st

from collective_rules.backends import Limit, limits_of, spellings_of
from collective_rules.backends.columns import DEMANDS, refuses, sets
from collective_rules.binding.attributes import REDUCE_OPS
from collective_rules.binding.splits import meaning
from collective_rules.call import Call, call
from collective_rules.check import check
from collective_rules.errors import CallError
from collective_rules.notation import Name, Part, Rest, Shares, Splits
from collective_rules.notation.sizes import dims, evaluate, pairs
from collective_rules.ops import OPS, Row, lookup
from collective_rules.ops.op import ANY, CONTIGUOUS, EVEN, FORMAT, FREE, NEVER, ORDER, OWN
from collective_rules.spec import Group, Memory, Spec
from collective_rules.testing.layouts import CHANNELS_LAST, EXPANDED, SLICED, STRAIGHT, TRANSPOSED, strides

__all__ = [
    "DTYPES",
    "Drawing",
    "Wish",
    "draw_calls",
    "draw_size",
    "drawable",
    "legal_dtypes",
    "untaken",
]

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
}
"""The demands of a backend's limits that a drawn call meets by the way it is drawn; of others, calls are dropped."""

Calls = tuple[Call, ...]


@attrs.frozen
class Wish:
    """What a drawn group must have besides being legal. What is left out is free.

    - `ranks`: at least so many ranks; `alone`: one rank. `count`: at least so many tensors in a list, `most` at most.
    - `dims`: every rest has at least so many; `least`: no size is smaller.
    - `straight`: every tensor is contiguous, and shares no memory.
    - `form`: the form of the rule. `kind`: the reduce op ("" without one) and the dtype.
    - `splits`: whether split sizes are given.
    """

    ranks: int = 1
    alone: bool = False
    dims: int = 0
    count: int = 1
    most: int = 3
    least: int = 0
    straight: bool = False
    form: str = ""
    kinds: tuple[tuple[str, torch.dtype], ...] | None = None
    splits: bool | None = None


def drawable(row: Row) -> str:
    """Return why no calls of `row` can be drawn, "" where they can."""
    known = {*_ATTRIBUTES, *_DIMS, "reduce_op", "group_size"}
    unknown = [argument for name, argument in row.entry.attributes.items() if name not in known]
    if row.rule.derived and not set(_DIMS) <= row.entry.attributes.keys():
        unknown += [f"what the sizes {', '.join(row.rule.derived)} depend on"]
    if row.entry.demands and row.namespace == "symm_mem":
        unknown += ["what meets the demands of its kernel"]
    return f"nothing says how to draw {' and '.join(unknown)}" if unknown else ""


def untaken(row: Row, backend: str | None) -> str:
    """Return why `backend` takes no call of `row`, "" where it takes some."""
    if any(limit.missing for limit in limits_of(backend, row)):
        return f"{backend} has no kernel for it"
    return "" if spellings_of(backend, row) else f"{backend} takes none of its forms"


@functools.cache
def legal_dtypes(row: Row, backend: str | None, size: int) -> tuple[tuple[str, torch.dtype], ...]:
    """Return the (reduce op, dtype) that a group of `size` ranks may use without a warning; "" where none is passed."""
    reduce_ops = [op for op in row.entry.reduce_ops or REDUCE_OPS if op != "premul_sum"] if row.reduce_op else [""]
    limits = [limit for limit in limits_of(backend, row) if size >= limit.from_size]
    return tuple(
        (reduce_op, dtype)
        for reduce_op in reduce_ops
        for dtype in row.entry.kernel_dtypes or DTYPES
        if not any(refuses(limit, reduce_op, dtype) for limit in limits)
    )


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
    rows = {one.row for one in drawn} | {lookup(op) for op in (row.entry.batch.ops.values() if row.entry.batch else ())}
    limits = [limit for each in rows for limit in limits_of(backend, each)]
    if any(sets(limit, column) for limit in limits for column in DEMANDS.keys() - _KEPT):
        assume(not any(check(one, backend) for one in drawn))
    return drawn


def draw_size(draw: st.DrawFn, row: Row, most_ranks: int, wish: Wish) -> int:
    """Draw the group's size. Two ranks are the least that can send and receive."""
    least = max(wish.ranks, 2 if row.rule.point_to_point else 1)
    return 1 if wish.alone else draw(st.integers(least, max(least, most_ranks)))


# -- point to point


def _partner(row: Row) -> Row:
    """The op of the same namespace on the other side."""
    wanted = {"send": "receive", "receive": "send"}[row.rule.direction]
    rows = (lookup(op) for op in OPS if op.startswith(f"{row.namespace}::"))
    return next(other for other in rows if other.rule.direction == wanted)


def _draw_pairs(draw: st.DrawFn, row: Row, backend: str | None, size: int, wish: Wish) -> Calls:
    """Some disjoint pairs of ranks: one sends, the other receives."""
    ranks = draw(st.permutations(range(size)))
    pairs = draw(st.integers(1, size // 2))
    partner = _partner(row)
    made = []
    for sender, receiver in zip(ranks[: 2 * pairs : 2], ranks[1 : 2 * pairs : 2], strict=True):
        spec, tag = _draw_message(draw, row, partner, backend, wish), draw(st.sampled_from((0, 7, 2**31 - 1)))
        for rank, peer, direction in ((sender, receiver, "send"), (receiver, sender, "receive")):
            own = row if row.rule.direction == direction else partner
            part = own.spellings[0].statement.parts[0]
            tensor = [_copy(spec)] if part.path.index else _copy(spec)
            arguments = {part.path.name: tensor, own.tag: tag} | ({own.peer: peer} if own.peer else {})
            made.append(call(own.op, group=Group(size, rank), **arguments))
    return tuple(sorted(made, key=lambda one: one.group.rank))


def _draw_message(draw: st.DrawFn, row: Row, partner: Row, backend: str | None, wish: Wish) -> Spec:
    wish = _nonempty(wish, limits_of(backend, row) + limits_of(backend, partner))
    kinds = legal_dtypes(row, backend, 2) if wish.kinds is None else wish.kinds
    return Spec(_draw_shape(draw, wish, 0), draw(st.sampled_from(kinds))[1])


def _nonempty(wish: Wish, limits: tuple[Limit, ...]) -> Wish:
    least = max(wish.least, 1 if any(limit.nonempty for limit in limits) else 0)
    return attrs.evolve(wish, least=least)


def _draw_batch(draw: st.DrawFn, row: Row, backend: str | None, size: int, wish: Wish) -> Calls:
    """Some messages between ranks, each a send in one rank's batch and a receive in another's."""
    batch = row.entry.batch
    assert batch is not None
    lists: list[dict[str, list[Any]]] = [
        {batch.kinds: [], batch.peers: [], batch.tags: [], batch.tensors: []} for _ in range(size)
    ]
    member = lookup(next(iter(batch.ops.values())))
    for _ in range(draw(st.integers(max(1, wish.count), 4))):
        sender, receiver = draw(st.permutations(range(size)))[:2]
        spec, tag = _draw_message(draw, member, member, backend, wish), draw(st.sampled_from((0, 7, 2**31 - 1)))
        for rank, peer, kind in ((sender, receiver, "isend"), (receiver, sender, "irecv")):
            for name, value in ((batch.kinds, kind), (batch.peers, peer), (batch.tags, tag)):
                lists[rank][name].append(value)
            lists[rank][batch.tensors].append(_copy(spec))
    taking_part = [rank for rank in range(size) if lists[rank][batch.kinds]]
    return tuple(call(row.op, group=Group(size, rank), **lists[rank]) for rank in taking_part)


def _copy(spec: Spec) -> Spec:
    """The same tensor, elsewhere in memory."""
    return Spec(spec.shape, spec.dtype, spec.stride)


def _draw_shape(draw: st.DrawFn, wish: Wish, taken: int) -> tuple[int, ...]:
    """Draw a rest; `taken` of the tensor's dims are named."""
    most = _MOST_DIMS - taken
    sizes = st.lists(st.integers(wish.least, _LARGEST), min_size=min(wish.dims, most), max_size=most)
    return tuple(draw(sizes))


# -- collectives


class Drawing:
    """One group of calls: what is drawn is kept by name, so that all ranks see the same.

    `names`: a size or a rest → what it stands for. `attributes`, `dtype`, `count` (of tensors in a list), `matrix` (of
    split sizes) and `orders` (argument → layout, of those that travel raw) are agreed by all ranks, too.
    """

    def __init__(self, draw: st.DrawFn, row: Row, backend: str | None, size: int, wish: Wish) -> None:
        self.limits = limits_of(backend, row)
        self.draw, self.row, self.size, self.wish = draw, row, size, _nonempty(wish, self.limits)
        spellings = [each for each in spellings_of(backend, row) if wish.form in ("", each.form.name)]
        self.spelling = draw(st.sampled_from(spellings))
        self.parts = self.spelling.statement.parts
        self.names: dict[Any, Any] = {}
        self.attributes = self._draw_attributes(backend)
        self.matrix = self._draw_matrix() if row.entry.splits else ()
        self.orders = self._draw_orders()

    def calls(self) -> Calls:
        """Every rank's call."""
        return tuple(self.one(rank) for rank in range(self.size))

    def one(self, rank: int) -> Call:
        """One rank's call. Changed names make it another that is legal, too, but not with the other ranks'."""
        arguments = {argument: self.attributes[name] for name, argument in self.row.entry.attributes.items()}
        if "root_tensor" in self.attributes and self.row.entry.alike:  # each rank's own affair
            arguments[self.row.entry.attributes["root_tensor"]] = self.draw(st.integers(0, self.count - 1))
        if not self.draw(st.booleans()):
            arguments.pop(self.row.group_size, None)
        tensors: dict[str, Any] = {}
        for argument in self.row.arguments:  # of which the rule does not speak: a signal, and the memory it is put into
            if argument.name in self.row.entry.also_reads:
                tensors[argument.name] = Spec((1,))
            elif (argument.kind, argument.depth, argument.has_default) == ("int", 0, False):
                arguments |= {argument.name: 1} if argument.name not in self.row.entry.attributes.values() else {}
        off_root = "root" in self.attributes and rank != self.attributes["root"]
        for part in self.parts:
            name = part.path.name
            if name in tensors or name in self.row.fresh:
                continue
            if part.root_only and off_root and name not in self.row.in_place and not self.row.entry.everywhere:
                tensors |= {name: []} if part.path.index else {}
                continue
            layout = self._draw_layout(name)
            tensors[name] = self._tensors(part, part.path.index, rank, layout, 0, 0)
        if not self.wish.straight:
            self._draw_sharing(rank, tensors)
        return call(self.row.op, group=Group(self.size, rank), **arguments, **tensors, **self._split_sizes(rank))

    # -- attributes

    def _draw_attributes(self, backend: str | None) -> dict[str, Any]:
        kinds = legal_dtypes(self.row, backend, self.size) if self.wish.kinds is None else self.wish.kinds
        alone = {op for limit in self.limits for op in limit.single or ()}
        if self.wish.kinds is None and self.wish.count > 1:
            kinds = tuple(kind for kind in kinds if kind[0] not in alone)
        reduce_op, self.dtype = self.draw(st.sampled_from(kinds))
        single = reduce_op in alone and self.wish.count == 1
        self.kinds = [dtype for op, dtype in kinds if op == reduce_op]
        self.fresh_strides = any(limit.fresh_strides for limit in self.limits) and not self.wish.straight
        self.alone = any(limit.one_dtype or limit.promotes for limit in self.limits) or self.spelling.one_dtype
        listed = any("i" in part.path.index for part in self.parts)
        drawn = self.draw(st.integers(self.wish.count, max(self.wish.most, self.wish.count))) if listed else 1
        self.count = 1 if single else drawn  # drawn in any case: a choice less would count as simpler
        result: dict[str, Any] = {"reduce_op": reduce_op, "group_size": self.size}
        for name in self.row.entry.attributes:
            if name in _ATTRIBUTES:
                result[name] = self.draw(_ATTRIBUTES[name](self.size, self.count))
        if self.row.rule.derived:
            self._draw_dims(result)
        return result

    def _draw_dims(self, attributes: dict[str, Any]) -> None:
        """Draw a shape with a dim to gather and one to shard, whose size the ranks divide."""
        shape = list(_draw_shape(self.draw, attrs.evolve(self.wish, dims=max(1, self.wish.dims)), 0))
        for name in _DIMS:
            attributes[name] = self.draw(st.integers(0, len(shape) - 1))
        shape[attributes["shard_dim"]] *= self.size
        self.names["s", None] = tuple(shape)

    def _draw_matrix(self) -> tuple[tuple[int, ...], ...]:
        """Draw how many rows go from each rank (first index) to each."""
        least = self.wish.least
        fixed = not self.row.splits or self.wish.splits is False
        if fixed or (self.wish.splits is None and self.draw(st.booleans())):
            return ((self.draw(st.integers(least, _LARGEST)),) * self.size,) * self.size
        count = self.size**2
        return _rows(self.draw(st.lists(st.integers(least, _LARGEST), min_size=count, max_size=count)), self.size)

    def _split_sizes(self, rank: int) -> dict[str, Any]:
        """The rank's row and column; some are left out where an empty list means the same."""
        result: dict[str, Any] = {}
        together = bool(self.row.entry.demands)
        for part, column in self.row.entry.splits.items():
            if column.argument is None:
                continue
            sizes = list(self.matrix[rank]) if part == "input" else [row[rank] for row in self.matrix]
            empty = meaning((), column, self.size)
            may = not together and (len(set(sizes)) == 1 if empty == EVEN else tuple(sizes) == empty)
            given = self.wish.splits if self.wish.splits is not None else self.draw(st.booleans())
            result[column.argument] = sizes if given or not may else []
        return result

    # -- tensors

    def _tensors(self, part: Part, index: Sequence[str], rank: int, layout: str, element: int, peer: int) -> Any:
        if not index:
            shape = self._shape(part, rank, element, peer)
            fixed = self.row.rule.fixed_dtypes.get(self.spelling.behind_of(part))
            spec = Spec(shape, fixed or self._dtype_of(element), strides(shape, layout))
            odd = self.fresh_strides and self.count == 1 and spec.has_odd_strides
            return Spec(spec.shape, spec.dtype) if odd else spec
        lengths = {"1": 1, "p": self.size, "i": self.count}
        at: dict[str, Callable[[int], tuple[int, int]]] = {
            "i": lambda place: (place, peer),
            "p": lambda place: (element, place),
            "1": lambda _: (element, peer),
        }
        return [self._tensors(part, index[1:], rank, layout, *at[index[0]](n)) for n in range(lengths[index[0]])]

    def _dtype_of(self, element: int) -> torch.dtype:
        if self.alone or element == 0:
            return self.dtype
        key = ("dtype", element)
        if key not in self.names:
            self.names[key] = self.draw(st.sampled_from([self.dtype, *self.kinds]))
        kept: torch.dtype = self.names[key]
        return kept

    def _shape(self, part: Part, rank: int, element: int, peer: int) -> tuple[int, ...]:
        named = dims(part.sizes)[0]

        def value_of(size: Name | Shares | Splits | Rest) -> Any:
            if isinstance(size, Splits):
                return sum(self.matrix[i][j] for i, j in pairs(size, rank, self.size))
            if isinstance(size, Rest):
                return self._rest(size, named, rank, element, peer)
            return self._value(size, element, rank, peer)

        return evaluate(part.sizes, self.size, value_of) or ()

    def _key(self, size: Name | Shares | Rest, element: int) -> tuple[Any, ...]:
        return (size.name, None if self.row.entry.alike or size.name in self.spelling.shared else element)

    def _value(self, size: Name | Shares, element: int, rank: int, peer: int) -> int:
        index = () if isinstance(size, Shares) else tuple({"r": rank, "p": peer}.get(i, i) for i in size.index)
        key = (*self._key(size, element), index)
        if key not in self.names:
            self.names[key] = self.draw(st.integers(self.wish.least, _LARGEST))
        return int(self.names[key])

    def _rest(self, size: Rest, named: int, rank: int, element: int, peer: int) -> tuple[int, ...]:
        """A rest's sizes; one that varies differs in its first dim, by rank."""
        key = self._key(size, element)
        if key not in self.names:
            self.names[key] = _draw_shape(self.draw, self.wish, max(named, self._most_named(size.name)))
        base: tuple[int, ...] = self.names[key]
        if not size.index or not base:
            return base
        key = (*key, tuple({"r": rank, "p": peer}.get(i, i) for i in size.index))
        if key not in self.names:
            self.names[key] = self.draw(st.integers(self.wish.least, _LARGEST))
        return (self.names[key], *base[1:])

    def _most_named(self, rest: str) -> int:
        """How many dims the parts with this rest have beside it."""
        holds = [part for part in self.parts if any(isinstance(s, Rest) and s.name == rest for s in part.sizes)]
        return max(len(part.sizes) - 1 for part in holds)

    # -- memory

    def _draw_orders(self) -> dict[str, str]:
        """Draw one order for all tensors that travel raw, on all ranks: argument → layout."""
        bound = [argument for argument in self._arguments() if not self._is_free(argument)]
        if not bound or self.wish.straight:
            return dict.fromkeys(bound, STRAIGHT)
        layouts = {self.row.layout_of(argument) for argument in bound}
        admitted = [STRAIGHT]
        if CONTIGUOUS not in layouts:
            admitted += [CHANNELS_LAST] if FORMAT in layouts else [TRANSPOSED, CHANNELS_LAST]
        if layouts == {ORDER}:
            admitted.append(SLICED)
        return dict.fromkeys(bound, self.draw(st.sampled_from(admitted)))

    def _arguments(self) -> Iterator[str]:
        yield from dict.fromkeys(p.path.name for p in self.parts if p.path.name not in self.row.fresh)

    def _is_free(self, argument: str) -> bool:
        together = self.count if self.row.entry.alike and self.row.reduce_op else 1
        return self.row.layout_of(argument) == ANY or self.size * together < self.row.entry.layouts_from

    def _draw_layout(self, argument: str) -> str:
        if argument in self.orders:
            return self.orders[argument]
        written = argument in self.row.writes
        admitted = [STRAIGHT, TRANSPOSED, CHANNELS_LAST, SLICED] + ([] if written else [EXPANDED])
        return STRAIGHT if self.wish.straight else self.draw(st.sampled_from(admitted))

    def _draw_sharing(self, rank: int, tensors: dict[str, Any]) -> None:
        """Let a tensor that is read lie in memory that is written, where the op admits it."""
        entry = self.row.entry
        read = next((n for n in tensors if n in self.row.reads and n not in self.row.writes), "")
        written = next((n for n in tensors if n in self.row.writes and n not in self.row.reads), "")
        if entry.overlap == NEVER or not read or not written or not self.draw(st.booleans()):
            return
        inputs, outputs = _leaves(tensors[read]), _leaves(tensors[written])
        if not inputs or not outputs:
            return
        if entry.overlap != FREE:
            inputs = inputs[rank : rank + 1] if entry.overlap == OWN else inputs[: rank + 1]
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
            tensors[name] = _replaced(tensors[name], shared)


def _rows(numbers: Sequence[int], size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(numbers[start : start + size]) for start in range(0, len(numbers), size))


def _leaves(value: Any) -> list[Spec]:
    if isinstance(value, Spec):
        return [value]
    return [leaf for item in value for leaf in _leaves(item)]


def _replaced(value: Any, by_id: Mapping[int, Spec]) -> Any:
    if isinstance(value, Spec):
        return by_id.get(id(value), value)
    return [_replaced(item, by_id) for item in value]


_ATTRIBUTES: Mapping[str, Callable[[int, int], st.SearchStrategy[Any]]] = {
    "root": lambda size, count: st.integers(0, size - 1),
    "root_tensor": lambda size, count: st.integers(0, count - 1),
    "peer": lambda size, count: st.integers(0, size - 1),
    "tag": lambda size, count: st.sampled_from((0, 7, 2**31 - 1)),
}
