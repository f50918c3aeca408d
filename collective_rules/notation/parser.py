"""Parses a rule's text into a `Statement`, one method for each line of the grammar.

The grammar:

    statement = [part {"," part}] "->" [part {"," part}]
    part      = path ":" {size} ["@" "root"]
    path      = NAME {"[" ("p" | "i" | "1") "]"}
    size      = NAME ["[" index {"," index} "]"]   one size, the same on every rank unless it is indexed
              | NUMBER                      a size that is always the same
              | "W"                         the group size
              | "(" "W" NAME ")"            W pieces, rank-major, as one size
              | NAME "[" index "," index "]"   with one ':', a row S[r,:] or column S[:,r] of split sizes, summed
              | "*" NAME ["[" index {"," index} "]"]   any number of sizes
    index     = "r" | "p" | "peer" | ":"

`r` is this rank, `p` runs over the ranks of the group, `i` over a list of coalesced tensors, `peer` is the partner
of a point-to-point op, `[1]` is a list of exactly one. A part has at most one `*rest`. Names are lower-case but for
the matrix of splits. The parser does not know which arguments an op has, nor whether the sizes can be solved.
"""

from __future__ import annotations

import functools

from collective_rules.errors import NotationError
from collective_rules.notation.ast import (
    ANY,
    GroupSize,
    Name,
    Number,
    Part,
    Path,
    Rest,
    Shares,
    Size,
    Splits,
    Statement,
    names,
)
from collective_rules.notation.tokenizer import END, NAME, NUMBER, Token, tokenize

_RESERVED = {"W": "the group size", "r": "this rank", "p": "the ranks", "i": "the list", "peer": "the partner"}


@functools.lru_cache(maxsize=1024)
def parse(text: str) -> Statement:
    """Parse `text`; raise `NotationError`, with the place, where it is malformed.

    >>> parse("input: d *s -> output: (W d) *s").writes[0].sizes
    (Shares(name='d'), Rest(name='s', index=()))
    """
    return _Parser(text).statement()


@functools.lru_cache(maxsize=1024)
def parse_path(text: str) -> Path:
    """Parse a path alone, as the op table writes it: `output_tensors[1][p]`."""
    parser = _Parser(text)
    path = parser.path()
    parser.expect(END, "the end of the path")
    return path


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(tokenize(text))
        self.place = 0

    @property
    def next(self) -> Token:
        return self.tokens[self.place]

    def take(self, kind: str) -> Token | None:
        token = self.next
        if token.kind != kind:
            return None
        self.place += 1
        return token

    def expect(self, kind: str, what: str) -> Token:
        found = repr(self.next.text) if self.next.text else "the end"
        return self.take(kind) or self.fail(f"expected {what}, found {found}")

    def fail(self, message: str, token: Token | None = None) -> Token:
        token = token or self.next
        raise NotationError(message, self.text, token.start, token.stop)

    def statement(self) -> Statement:
        reads = self.side("->")
        self.expect("->", "',' or '->'")
        writes = self.side(END)
        self.expect(END, "',' or the end")
        for side in (reads, writes):
            seen: set[str] = set()
            for part in side:
                if part.path.name in seen:
                    raise NotationError(f"{part.path.name} is stated twice", self.text, *part.span)
                seen.add(part.path.name)
        return Statement(reads, writes)

    def side(self, end: str) -> tuple[Part, ...]:
        if self.next.kind == end:
            return ()
        parts = [self.part()]
        while self.take(","):
            parts.append(self.part())
        return tuple(parts)

    def part(self) -> Part:
        start = self.next.start
        path = self.path()
        self.expect(":", "':' and the sizes")
        sizes: list[Size] = []
        seen_rest = False
        while self.next.kind in (NAME, NUMBER, "(", "*"):
            token = self.next
            size = self.size()
            if isinstance(size, Rest):
                if seen_rest:
                    self.fail("a part has at most one *rest: where it ends could not be told", token)
                seen_rest = True
            sizes.append(size)
        root_only = bool(self.take("@"))
        if root_only and self.expect(NAME, "'root'").text != "root":
            self.fail("only 'root' can follow '@'", self.tokens[self.place - 1])
        last = self.tokens[self.place - 1]
        part = Part(path, tuple(sizes), root_only, (start, last.stop))
        if len(names(part)) < sum(not isinstance(size, (GroupSize, Number)) for size in sizes):
            raise NotationError(f"{path} uses one name for two of its sizes", self.text, *part.span)
        return part

    def path(self) -> Path:
        name = self.expect(NAME, "an argument's name").text
        index: list[str] = []
        while self.take("["):
            token = self.take(NAME) or self.expect(NUMBER, "'p', 'i' or '1'")
            if token.text not in ("p", "i", "1"):
                self.fail("a list is indexed by p (the ranks), i (coalesced tensors) or 1 (exactly one)", token)
            if token.text in index and token.text != "1":
                self.fail(f"{token.text} indexes this path twice", token)
            index.append(token.text)
            self.expect("]", "']'")
        return Path(name, tuple(index))

    def size(self) -> Size:
        if self.take("("):
            return self.shares()
        if self.take("*"):
            name = self.fresh_name()
            token = self.next
            index = self.indices() if self.next.kind == "[" else ()
            if ANY in index or not name.islower():
                self.fail("a *rest has a lower-case name, and no ':', which sums split sizes", token)
            return Rest(name, index)
        if self.next.text == "W":
            self.take(NAME)
            return GroupSize()
        if number := self.take(NUMBER):
            if len(number.text) > 4 or str(int(number.text)) != number.text:
                self.fail("a number is written plainly, and has at most four digits", number)
            return Number(int(number.text))
        token = self.next
        name = self.fresh_name()
        if self.next.kind != "[":
            return Name(name)
        index = self.indices()
        if (ANY in index) == name.islower():
            self.fail(f"{name}: names are lower-case, but for a matrix of split sizes", token)
        if ANY not in index:
            return Name(name, index)
        if len(index) != 2 or index.count(ANY) != 1:
            self.fail("split sizes are a row S[r,:] or a column S[:,r]", token)
        return Splits(name, *index)

    def shares(self) -> Size:
        first = self.expect(NAME, "'W'")
        if first.text != "W":
            message = "write (W {}): the ranks' pieces lie one after another"
            self.fail(message.format(first.text) if self.next.text == "W" else "only (W d) can be in brackets", first)
        name = self.fresh_name()
        self.expect(")", "')'")
        return Shares(name)

    def fresh_name(self) -> str:
        token = self.expect(NAME, "a name")
        if token.text in _RESERVED:
            self.fail(f"{token.text} is reserved: it is {_RESERVED[token.text]}", token)
        if not token.text.islower() and self.next.kind != "[":
            self.fail(f"{token.text}: names are lower-case, but for a matrix of split sizes", token)
        return token.text

    def indices(self) -> tuple[str, ...]:
        self.expect("[", "'['")
        index: list[str] = []
        while True:
            token = self.take(":") or self.expect(NAME, "an index")
            if token.text not in ("r", "p", "peer", ANY):
                self.fail("an index is r (this rank), p (the ranks), peer or ':'", token)
            index.append(token.text)
            if not self.take(","):
                break
        self.expect("]", "']'")
        return tuple(index)
