"""Cuts a rule's text into tokens, each with its place. Knows the characters, not the grammar."""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs

from collective_rules.errors import NotationError

NAME, NUMBER, END = "name", "number", "end"

_TOKEN = re.compile(r"(?P<space>[ ]+)|(?P<name>[A-Za-z_][A-Za-z_0-9]*)|(?P<number>[0-9]+)|(?P<mark>->|[:,*@()\[\]])")


@attrs.frozen
class Token:
    """One token: `kind` is "name", "number", "end" or the punctuation itself."""

    kind: str
    text: str
    start: int

    @property
    def stop(self) -> int:
        """One past the last character; the end token still marks one character."""
        return self.start + max(1, len(self.text))


def tokenize(text: str) -> Iterator[Token]:
    """Yield the tokens of `text`, an end token last; raise `NotationError` at a foreign character."""
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise NotationError(f"{text[place]!r} has no meaning here", text, place, place + 1)
        if match.lastgroup != "space":
            kind = match.lastgroup if match.lastgroup in (NAME, NUMBER) else match.group()
            yield Token(kind or "", match.group(), place)
        place = match.end()
    yield Token(END, "", len(text))
