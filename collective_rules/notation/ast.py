"""The nodes that a rule's text is parsed into. They hold what was written and know nothing of torch.

`str(node)` is the canonical text, so that `str(parse(text)) == text` for every canonical text.
"""

from __future__ import annotations

import functools

import attrs

__all__ = [
    "ANY",
    "GroupSize",
    "Name",
    "Number",
    "Part",
    "Path",
    "Rest",
    "Shares",
    "Size",
    "Splits",
    "Statement",
    "names",
]

ANY = ":"
"""The index that runs over all ranks inside `S[r,:]`."""


@attrs.frozen
class Name:
    """`d`: one size, the same number on every rank. With an index, `d[r]`, it varies with the rank."""

    name: str
    index: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}[{','.join(self.index)}]" if self.index else self.name


@attrs.frozen
class Number:
    """`2`: a size that is always the same."""

    value: int

    def __str__(self) -> str:
        return str(self.value)


@attrs.frozen
class GroupSize:
    """`W`: the number of ranks in the group."""

    def __str__(self) -> str:
        return "W"


@attrs.frozen
class Shares:
    """`(W d)`: W pieces of size `d`, rank-major, as one size."""

    name: str

    def __str__(self) -> str:
        return f"(W {self.name})"


@attrs.frozen
class Splits:
    """`S[r,:]`: a row (or column) of the matrix of split sizes, summed into one size."""

    name: str
    row: str
    column: str

    def __str__(self) -> str:
        return f"{self.name}[{self.row},{self.column}]"


@attrs.frozen
class Rest:
    """`*s`: any number of sizes. With an index, `*s[r,p]`, they vary with the rank."""

    name: str
    index: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"*{self.name}[{','.join(self.index)}]" if self.index else f"*{self.name}"


Size = Name | Number | GroupSize | Shares | Splits | Rest


@attrs.frozen
class Path:
    """`outputs[p]`: one tensor, or which tensors of a (nested) list. `[1]` is a list of exactly one."""

    name: str
    index: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name + "".join(f"[{i}]" for i in self.index)


@attrs.frozen
class Part:
    """`outputs[p]: *s @root`: the sizes of one argument; with `@root` it exists on the root alone."""

    path: Path
    sizes: tuple[Size, ...]
    root_only: bool = False
    span: tuple[int, int] = attrs.field(default=(0, 0), eq=False, repr=False)

    def __str__(self) -> str:
        text = " ".join([f"{self.path}:", *map(str, self.sizes)])
        return f"{text} @root" if self.root_only else text

    @functools.cached_property
    def dims(self) -> tuple[int, bool]:
        """The number of dims that the sizes need, and whether there may be more."""
        single = sum(not isinstance(size, Rest) for size in self.sizes)
        return single, single < len(self.sizes)

    @functools.cached_property
    def places(self) -> tuple[tuple[Size, int | slice], ...]:
        """Each size with its place in a shape: the sizes of one dim first, then the rest with its slice.

        Dims after the rest are counted from the end.

        >>> part = Part(Path("x"), (Name("a"), Rest("s"), Name("b")))
        >>> [(str(size), place) for size, place in part.places]
        [('a', 0), ('b', -1), ('*s', slice(1, -1, None))]
        """
        rest = next((at for at, size in enumerate(self.sizes) if isinstance(size, Rest)), len(self.sizes))
        after = len(self.sizes) - 1 - rest
        before = [(size, at) for at, size in enumerate(self.sizes[:rest])]
        behind = [(size, at - after) for at, size in enumerate(self.sizes[rest + 1 :])]
        return (*before, *behind, *((size, slice(rest, -after or None)) for size in self.sizes[rest : rest + 1]))


@attrs.frozen
class Statement:
    """`reads -> writes`: what one collective does to sizes, for the whole group."""

    reads: tuple[Part, ...]
    writes: tuple[Part, ...]

    def __str__(self) -> str:
        left, right = (", ".join(map(str, side)) for side in (self.reads, self.writes))
        return f"{left} -> {right}" if left and right else f"{left} ->" if left else f"-> {right}" if right else "->"

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is read, then what is written."""
        return self.reads + self.writes


def names(part: Part) -> frozenset[str]:
    """Return the names that matching `part` against a shape binds."""
    return frozenset(size.name for size in part.sizes if not isinstance(size, (GroupSize, Number)))
