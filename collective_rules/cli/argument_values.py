"""Reads `name=value`, as people type it, into what an op's argument takes. Nothing is evaluated.

The grammar, by the argument's type in the schema:

    tensor  = sizes [":" dtype] ["@" stride {"," stride}]   16x4   16x4:bfloat16   16x4:bfloat16@1,16
    sizes   = "0d" | INT {"x" INT}                          0d is a tensor without dims, 0 one of no elements
    int     = ["-"] INT | dtype                             a dtype where the op takes one (out_dtype=bfloat16)
    bool    = "true" | "false"
    list    = item {("," | ";") item} | "[" list "]"        4x3,4x3   [4x3;4x3]   nothing at all is an empty list
    lists   = list {";" list} | "[" "[" list "]" {"," "[" list "]"} "]"
                                                            4x3,4x3;2x3,2x3 is [[4x3,4x3],[2x3,2x3]]
    none    = "none"                                        where the argument, or its list's items, may be None

A dtype left out is float32. A tensor has as many strides as sizes, so that the comma after the last one separates
items again. Anything else (a string, a reduce op) is taken as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch

from collective_rules.cli.output import CommandError, suggestion
from collective_rules.errors import CallError
from collective_rules.ops import Argument, Row
from collective_rules.spec import Spec

__all__ = ["DTYPES", "parse_arguments", "parse_value"]

DTYPES: Mapping[str, torch.dtype] = {
    name: value for name, value in sorted(vars(torch).items()) if isinstance(value, torch.dtype)
}
"""Every name that torch has for a dtype."""

_TOO_LARGE = 2**63


def parse_arguments(row: Row, pairs: Iterable[str]) -> dict[str, Any]:
    """Return the arguments that `pairs` spell, by name; raise `CommandError` where one cannot be read.

    >>> import collective_rules as cr
    >>> parse_arguments(cr.lookup("c10d::allreduce_"), ["tensors=2x3:int32,2x3:int32", "reduce_op=max"])
    {'tensors': (Spec((2, 3), int32), Spec((2, 3), int32)), 'reduce_op': 'max'}
    """
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise CommandError(f"{pair!r} is no name=value, such as {_example(row)}")
        if name in arguments:
            raise CommandError(f"{name} is given twice")
        arguments[name] = parse_value(_known(row, name), text)
    return arguments


def _example(row: Row) -> str:
    tensor = next((argument.name for argument in row.arguments if argument.kind == "Tensor"), "tag")
    return "tag=1" if tensor == "tag" else f"{tensor}=16x4:bfloat16"


def _known(row: Row, name: str) -> Argument:
    known = [argument.name for argument in row.arguments if not argument.is_group]
    if name in known:
        return row.by_name[name]
    if name in row.by_name:
        raise CommandError(f"{row.op}: {name} is the group, which --group-size and --rank describe; leave it out")
    others = f"the op takes {', '.join(known)}" if known else "the op takes none"
    raise CommandError(f"{row.op} has no argument {name!r}{suggestion(name, known) or f'; {others}'}")


def parse_value(argument: Argument, text: str) -> Any:
    """Return the value of `argument` that `text` spells; raise `CommandError`, with the place, where it spells none."""
    if argument.optional and text.strip().lower() == "none":
        return None
    if argument.depth == 0 and argument.kind not in _ITEMS:
        return text
    return _Reader(argument, text).whole()


class _Reader:
    """Reads one value from left to right."""

    def __init__(self, argument: Argument, text: str) -> None:
        self.argument = argument
        self.text = text
        self.place = 0

    def whole(self) -> Any:
        value = self.list_of(self.argument.depth) if self.argument.depth else self.item()
        self.match(r" *")
        if self.place < len(self.text):
            self.fail("expected the end")
        return value

    def match(self, pattern: str) -> re.Match[str] | None:
        found = re.compile(pattern, re.ASCII).match(self.text, self.place)
        if found:
            self.place = found.end()
        return found

    def fail(self, problem: str) -> NoReturn:
        found = self.text[self.place : self.place + 20]
        what = repr(found) if found else "the end"
        raise CommandError(f"{self.argument.name}={_short(self.text)}: {problem}, found {what} at {self.place + 1}")

    def list_of(self, depth: int, separators: str = "") -> tuple[Any, ...]:
        """Read a list whose items are `depth` - 1 lists deep."""
        if self.match(r" *\["):
            inner = (lambda: self.bracketed(depth - 1)) if depth > 1 else self.item
            items = self.items(inner, "[,;]")
            if not self.match(r" *\]"):
                self.fail("expected ',' or ']'")
            return items
        if depth > 1:
            return self.items(lambda: self.list_of(depth - 1, ","), ";")
        return self.items(self.item, separators or "[,;]")

    def bracketed(self, depth: int) -> tuple[Any, ...]:
        if not re.compile(r" *\[").match(self.text, self.place):
            self.fail("expected '[': inside brackets, every inner list has its own")
        return self.list_of(depth)

    def items(self, read: Callable[[], Any], separator: str) -> tuple[Any, ...]:
        if re.compile(r" *(\]|$)").match(self.text, self.place):
            return ()
        items = [read()]
        while self.match(rf" *{separator}"):
            items.append(read())
        return tuple(items)

    def item(self) -> Any:
        self.match(r" *")
        if self.argument.gaps and self.match(r"(?i:none)\b"):
            return None
        return _ITEMS.get(self.argument.kind, _Reader.word)(self)

    def tensor(self) -> Spec:
        sizes = self.match(r"0d|\d+(x\d+)*")
        if sizes is None:
            self.fail("expected a tensor such as 16x4:bfloat16 (or 0d)")
        shape = () if sizes[0] == "0d" else tuple(self.number(size) for size in sizes[0].split("x"))
        dtype = self.dtype() if self.match(":") else torch.float32
        stride = self.strides(len(shape)) if self.match("@") else None
        try:
            return Spec(shape, dtype, stride)
        except CallError as error:
            raise CommandError(f"{self.argument.name}={_short(self.text)}: {error}") from None

    def strides(self, count: int) -> tuple[int, ...]:
        strides = []
        for place in range(count):
            found = self.match(r",\d+" if place else r"\d+")
            if found is None:
                self.fail(f"expected {count} strides, one for each size")
            strides.append(self.number(found[0].lstrip(",")))
        return tuple(strides)

    def dtype(self) -> torch.dtype:
        found = self.match(r"(torch\.)?(\w+)")
        if found is None:
            self.fail("expected a dtype such as bfloat16")
        if found[2] not in DTYPES:
            near = suggestion(found[2], DTYPES)
            raise CommandError(f"{self.argument.name}={_short(self.text)}: torch has no dtype {found[2]!r}{near}")
        return DTYPES[found[2]]

    def integer(self) -> Any:
        found = self.match(r"-?\d+")
        if found:
            return self.number(found[0])
        if re.compile(r"[a-z]").match(self.text, self.place):
            return self.dtype()
        return self.fail("expected an int")

    def boolean(self) -> bool:
        found = self.match(r"(?i:true|false)\b")
        return found[0].lower() == "true" if found else self.fail("expected true or false")

    def word(self) -> str:
        found = self.match(r"[^,;\[\]]+")
        return found[0].strip() if found else self.fail("expected a value")

    def number(self, digits: str) -> int:
        if len(digits) > 20 or not -_TOO_LARGE <= int(digits) < _TOO_LARGE:
            raise CommandError(f"{self.argument.name}={_short(self.text)}: {_short(digits)} does not fit into 64 bits")
        return int(digits)


_ITEMS: Mapping[str, Callable[[_Reader], Any]] = {
    "Tensor": _Reader.tensor,
    "int": _Reader.integer,
    "bool": _Reader.boolean,
}


def _short(text: str) -> str:
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
