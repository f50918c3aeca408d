"""Reads `name=value`, as people type it, into a value of an op's argument. Nothing is evaluated.

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

DTYPES: Mapping[str, torch.dtype] = {
    name: value for name, value in sorted(vars(torch).items()) if isinstance(value, torch.dtype)
}
"""Every name that torch has for a dtype."""

_TOO_LARGE = 2**63


def parse_arguments(row: Row, pairs: Iterable[str]) -> dict[str, Any]:
    """Return the arguments that `pairs` spell, by name; raise `CommandError` for a pair that cannot be read.

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
        arguments[name] = parse_value(_argument(row, name), text)
    return arguments


def _example(row: Row) -> str:
    tensor = next((argument.name for argument in row.arguments if argument.kind == "Tensor"), None)
    return f"{tensor}=16x4:bfloat16" if tensor else "tag=1"


def _argument(row: Row, name: str) -> Argument:
    names = [argument.name for argument in row.arguments if not argument.is_group]
    if name in names:
        return row.by_name[name]
    if name in row.by_name:
        raise CommandError(f"{row.op}: {name} is the group, which --group-size and --rank describe; leave it out")
    others = f"; the op takes {', '.join(names) or 'none'}"
    raise CommandError(f"{row.op} has no argument {name!r}{suggestion(name, names) or others}")


def parse_value(argument: Argument, text: str) -> Any:
    """Return the value of `argument` that `text` spells; raise `CommandError` with the place if it spells none."""
    if argument.optional and text.strip().lower() == "none":
        return None
    if argument.depth == 0 and argument.kind not in _ITEMS:
        return text
    return _ValueReader(argument, text).whole()


class _ValueReader:
    """Reads one value from left to right."""

    def __init__(self, argument: Argument, text: str) -> None:
        self.argument, self.text, self.place = argument, text, 0

    def whole(self) -> Any:
        value = self.list_of(self.argument.depth) if self.argument.depth else self.item()
        self.match(r" *")
        if self.place < len(self.text):
            self.fail("expected the end")
        return value

    def sees(self, pattern: str) -> re.Match[str] | None:
        """Return the match at the place, and stay there."""
        return re.compile(pattern, re.ASCII).match(self.text, self.place)

    def match(self, pattern: str) -> re.Match[str] | None:
        """Return the match at the place, and go to its end."""
        match = self.sees(pattern)
        self.place = match.end() if match else self.place
        return match

    def expect(self, pattern: str, wanted: str) -> str:
        """Return the text of the match at the place, and go to its end; refuse the value if there is none."""
        match = self.match(pattern)
        return match[0] if match else self.fail(f"expected {wanted}")

    def fail(self, problem: str) -> NoReturn:
        rest = self.text[self.place : self.place + 20]
        self.refuse(f"{problem}, found {repr(rest) if rest else 'the end'} at {self.place + 1}")

    def refuse(self, problem: object) -> NoReturn:
        raise CommandError(f"{self.argument.name}={_short(self.text)}: {problem}") from None

    def list_of(self, depth: int, separators: str = "[,;]") -> tuple[Any, ...]:
        """Read a list whose items are `depth` - 1 lists deep."""
        if self.match(r" *\["):
            items = self.items((lambda: self.bracketed(depth - 1)) if depth > 1 else self.item, "[,;]")
            self.expect(r" *\]", "',' or ']'")
            return items
        if depth > 1:
            return self.items(lambda: self.list_of(depth - 1, ","), ";")
        return self.items(self.item, separators)

    def bracketed(self, depth: int) -> tuple[Any, ...]:
        if not self.sees(r" *\["):
            self.fail("expected '[': inside brackets, every inner list has its own")
        return self.list_of(depth)

    def items(self, read: Callable[[], Any], separator: str) -> tuple[Any, ...]:
        if self.sees(r" *(\]|$)"):
            return ()
        items = [read()]
        while self.match(rf" *{separator}"):
            items.append(read())
        return tuple(items)

    def item(self) -> Any:
        self.match(r" *")
        if self.argument.gaps and self.match(r"(?i:none)\b"):
            return None
        return _ITEMS.get(self.argument.kind, _ValueReader.word)(self)

    def tensor(self) -> Spec:
        sizes = self.expect(r"0d|\d+(x\d+)*", "a tensor such as 16x4:bfloat16 (or 0d)")
        shape = () if sizes == "0d" else tuple(map(self.number, sizes.split("x")))
        dtype = self.dtype() if self.match(":") else torch.float32
        stride = self.strides(len(shape)) if self.match("@") else None
        try:
            return Spec(shape, dtype, stride)
        except CallError as error:
            return self.refuse(error)

    def strides(self, count: int) -> tuple[int, ...]:
        wanted = f"{count} strides, one for each size"
        return tuple(
            self.number(self.expect(r",\d+" if place else r"\d+", wanted).lstrip(",")) for place in range(count)
        )

    def dtype(self) -> torch.dtype:
        name = self.expect(r"(torch\.)?(\w+)", "a dtype such as bfloat16").removeprefix("torch.")
        if name not in DTYPES:
            self.refuse(f"torch has no dtype {name!r}{suggestion(name, DTYPES)}")
        return DTYPES[name]

    def integer(self) -> Any:
        return self.dtype() if self.sees(r"[a-z]") else self.number(self.expect(r"-?\d+", "an int"))

    def boolean(self) -> bool:
        return self.expect(r"(?i:true|false)\b", "true or false").lower() == "true"

    def word(self) -> str:
        return self.expect(r"[^,;\[\]]+", "a value").strip()

    def number(self, digits: str) -> int:
        if len(digits) > 20 or not -_TOO_LARGE <= int(digits) < _TOO_LARGE:
            self.refuse(f"{_short(digits)} does not fit into 64 bits")
        return int(digits)


_ITEMS: Mapping[str, Callable[[_ValueReader], Any]] = {
    "Tensor": _ValueReader.tensor,
    "int": _ValueReader.integer,
    "bool": _ValueReader.boolean,
}


def _short(text: str) -> str:
    shown = text if text.isprintable() else repr(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
