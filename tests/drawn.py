"""A hypothesis strategy: calls of one row, most of them legal, some broken in one place."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.notation import GroupSize, Name, Number, Part, Rest, Shares
from collective_rules.ops import Row, Spelling

DTYPES = (torch.float32, torch.int64, torch.bfloat16)


@st.composite
def calls(draw: st.DrawFn, row: Row, *, broken: bool | None = None) -> cr.Call:
    """Draw a call of `row`, which must have no size functions; with `broken`, something in it was changed."""
    size = draw(st.integers(1, 4))
    group = cr.Group(size=size, rank=draw(st.integers(0, size - 1)))
    spelling = draw(st.sampled_from(row.spellings))
    arguments = _Maker(draw, row, group, spelling).arguments()
    if draw(st.booleans()) if broken is None else broken:
        _break(draw, arguments, row)
    return cr.call(row.op, group=group, **arguments)


class _Maker:
    def __init__(self, draw: st.DrawFn, row: Row, group: cr.Group, spelling: Spelling) -> None:
        self.draw, self.row, self.group, self.spelling = draw, row, group, spelling
        self.length = draw(st.integers(1, 3))
        self.values: dict[Any, Any] = {}

    def arguments(self) -> dict[str, Any]:
        made: dict[str, Any] = self.attributes() | self.split_sizes()
        for part in self.spelling.statement.parts:
            written_only = part.path.name in self.row.writes and part.path.name not in self.row.reads
            if part.path.name in self.row.fresh or (written_only and self.draw(st.booleans())):
                continue
            made.setdefault(part.path.name, self.tensors(part, part.path.index, None, None))
        for argument in self.row.arguments:  # what the rule does not speak of: signals, handles' offsets
            asked = not (argument.has_default or argument.is_group or argument.name == self.row.group_size)
            if argument.name in self.row.entry.also_reads:
                made[argument.name] = cr.Spec((1,))
            elif asked and argument.kind == "int" and not argument.depth:
                made.setdefault(argument.name, 1)
        return made

    def attributes(self) -> dict[str, Any]:
        ranks = st.integers(0, self.group.size - 1)
        drawn = {"root": ranks, "root_tensor": st.just(0), "peer": ranks, "tag": st.integers(0, 3)}
        drawn["reduce_op"] = st.sampled_from(self.row.entry.reduce_ops or ("sum", "max", "avg"))
        attributes = self.row.entry.attributes.items()
        return {argument: self.draw(drawn[name]) for name, argument in attributes if name in drawn}

    def split_sizes(self) -> dict[str, Any]:
        """Rows and columns of one matrix, or none given for equal shares."""
        rank, size = self.group.rank, self.group.size
        own = self.draw(st.integers(0, 3))
        made: dict[str, Any] = {}
        for part, column in self.row.entry.splits.items():
            even = column.empty == "even" and self.draw(st.booleans())
            shares = [own] * size if even else [self.draw(st.integers(0, 3)) for _ in range(size)]
            shares[rank] = own
            self.values["splits", part] = sum(shares)
            if column.argument:
                made[column.argument] = [] if even else shares
        return made

    def tensors(self, part: Part, index: tuple[str, ...], element: int | None, rank: int | None) -> Any:
        if not index:
            return cr.Spec(self.shape(part, element, rank), self.value("dtype", element, st.sampled_from(DTYPES)))
        lengths = {"1": 1, "p": self.group.size, "i": self.length}
        at = {"i": lambda place: (place, rank), "p": lambda place: (element, place), "1": lambda _: (element, rank)}
        return [self.tensors(part, index[1:], *at[index[0]](place)) for place in range(lengths[index[0]])]

    def shape(self, part: Part, element: int | None, rank: int | None) -> tuple[int, ...]:
        shape: list[int] = []
        for size in part.sizes:
            if isinstance(size, (GroupSize, Number)):
                shape.append(self.group.size if isinstance(size, GroupSize) else size.value)
            elif isinstance(size, Rest):
                at = tuple({"r": self.group.rank, "p": rank}.get(index, index) for index in size.index)
                shape += self.value((size.name, at), element, st.lists(st.integers(0, 3), max_size=2))
            elif isinstance(size, (Name, Shares)):
                value = self.value(size.name, element, st.integers(0, 4))
                shape.append(value * self.group.size if isinstance(size, Shares) else value)
            else:
                behind = self.spelling.behind[self.spelling.statement.parts.index(part)]
                shape.append(self.values["splits", behind])
        return tuple(shape)

    def value(self, name: Any, element: int | None, strategy: st.SearchStrategy[Any]) -> Any:
        plain = name[0] if isinstance(name, tuple) else name
        key = (name, None if self.row.entry.alike or plain in self.spelling.shared else element)
        if key not in self.values:
            self.values[key] = self.draw(strategy)
        return self.values[key]


def _break(draw: st.DrawFn, arguments: dict[str, Any], row: Row) -> None:
    """Change one argument, somewhere."""
    name = draw(st.sampled_from(sorted(arguments)))
    arguments[name] = _changed(draw, arguments[name])


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if isinstance(value, list):
        how = draw(st.sampled_from(("drop", "double", "inside")))
        if how == "drop" or not value:
            return value[1:]
        place = draw(st.integers(0, len(value) - 1))
        inside = value[place] if how == "double" else _changed(draw, value[place])
        return [*value[:place], inside, *value[place + (how == "inside") :]]
    if isinstance(value, cr.Spec):
        return draw(st.sampled_from(_changed_specs(value)))
    return draw(st.sampled_from(("mean", "min"))) if isinstance(value, str) else draw(st.integers(-2, 6))


def _changed_specs(spec: cr.Spec) -> list[cr.Spec]:
    shape = spec.shape
    bent = [cr.Spec(shape, spec.dtype, tuple(2 * step for step in spec.stride)), cr.Spec(shape[::-1], spec.dtype)]
    longer = [cr.Spec((*shape, 1), spec.dtype), cr.Spec((2, *shape), spec.dtype), cr.Spec(shape[1:], spec.dtype)]
    other = [cr.Spec(shape, torch.float64), cr.Spec(None, spec.dtype), cr.Spec(shape, spec.dtype, view="neg")]
    more = (
        [cr.Spec((shape[0] + 1, *shape[1:]), spec.dtype), cr.Spec(shape, spec.dtype, (0,) * len(shape))]
        if shape
        else []
    )
    return bent + longer + other + more
