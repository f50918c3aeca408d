"""Reads one big JSON document piece by piece: the elements of chosen arrays, and the other values of the top level.

Memory is bounded by the largest single element, never by the document: what is not asked for is skipped unread. What
is malformed is passed over to the next thing that looks like an element, and counted. As torch writes them, NaN and
Infinity are numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from collective_rules.recordings.byte_stream import TextStream

BEGINS = object()
"""Stands for a chosen array that begins."""

_SPACE = re.compile(r"[ \t\n\r]*")
_GAP = re.compile(r"[ \t\n\r,]*")
_PARTS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*("?)|[\[\]{}]', re.DOTALL)
"""A string, closed where its group is not empty, or a bracket."""
_NEXT = re.compile(r"\}\s*,\s*(?=\{)")
_LARGEST = 1 << 24
"""Characters of one element, or of one value of the top level that is kept."""
_NEAR_END = 64
"""An error this close to the end of what was read so far may be no error once more was read."""
_MOST_FAULTS = 10_000


class _Ended(Exception):  # noqa: N818 - control flow inside the reader
    """The text ended inside something."""


class JsonStream:
    """Walks one document. `cut` says why it ended early ("" where it did not), `faults` how much was passed over.

    - `arrays`: the keys of the top level whose arrays are given element by element. A document that is an array has
      them under the key "". One that begins is told by (key, False, `BEGINS`).
    - `fault`: called with a word on each thing that was passed over.
    """

    def __init__(self, text: TextStream, arrays: Collection[str], fault: Callable[[str], None]) -> None:
        self._text = text
        self._arrays = arrays
        self._fault = fault
        self._decode = json.JSONDecoder().raw_decode
        self._buffer = ""
        self._at = 0
        self._open = 0
        self.cut = ""
        self.faults = 0

    def __iter__(self) -> Iterator[tuple[str, bool, Any]]:
        """Yield (key, whether it is an element of that key's array, value) in the document's order."""
        try:
            start = self._peek()
            if start == "[":
                yield from self._elements("")
            elif start == "{":
                yield from self._object()
            else:
                self.cut = "it is no JSON object or array"
                return
            if not self.cut and not self._is_at_end():
                self.cut = "its text goes on behind the end of the document"
        except _Ended:
            self.cut = self._text.bytes.cut or "its text stops in the middle"
        except ValueError as error:
            self.cut = f"what follows is no JSON: {error}"

    def _object(self) -> Iterator[tuple[str, bool, Any]]:
        self._at += 1
        while True:
            sign = self._peek()
            if sign == "}":
                self._at += 1
                return
            if sign == ",":
                self._at += 1
                continue
            key = self._value()
            if not isinstance(key, str) or self._peek() != ":":
                self.cut = "what follows is no JSON"
                return
            self._at += 1
            self._peek()
            if key in self._arrays and self._peek() == "[":
                yield key, False, BEGINS
                yield from self._elements(key)
                if self.cut:
                    return
            elif self._is_small():
                yield key, False, self._value()
            else:
                self._skip()

    def _elements(self, key: str) -> Iterator[tuple[str, bool, Any]]:
        self._at += 1
        while True:
            self._at = _GAP.match(self._buffer, self._at).end()  # type: ignore[union-attr]  # it always matches
            if self._at == len(self._buffer):
                if not self._refill():
                    raise _Ended
                continue
            if self._buffer[self._at] == "]":
                self._at += 1
                return
            try:
                value = self._value()
            except ValueError as error:
                self._pass_over(str(error))
                if self.cut:
                    return
                continue
            yield key, True, value

    def _pass_over(self, why: str) -> None:
        """Go to the next thing that looks like an element."""
        self.faults += 1
        self._fault(why)
        if self.faults > _MOST_FAULTS:
            self.cut = "too much of it is no JSON"
            return
        while True:
            found = _NEXT.search(self._buffer, self._at + 1)
            if found is not None:
                self._at = found.end()
                return
            self._at = max(self._at, len(self._buffer) - _NEAR_END)
            if not self._refill():
                self.cut = self._text.bytes.cut or "what follows is no JSON"
                return

    def _is_at_end(self) -> bool:
        try:
            self._peek()
        except _Ended:
            return not self._text.bytes.cut
        return False

    def _peek(self) -> str:
        """Return the next character that is no space."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()  # type: ignore[union-attr]  # it always matches
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._refill():
                raise _Ended

    def _value(self) -> Any:
        """Decode the value that starts here; a `ValueError` says that it is malformed."""
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
            except RecursionError:
                raise ValueError("it nests too deep") from None
            except ValueError as error:
                if not self._may_go_on(error):
                    raise
                if not self._refill():
                    raise _Ended from None
                continue
            if not isinstance(value, (dict, list, str)) and end + _NEAR_END > len(self._buffer) and self._refill():
                continue  # a number may go on
            self._at = end
            return value

    def _may_go_on(self, error: ValueError) -> bool:
        """Return whether more text might mend `error`."""
        if len(self._buffer) - self._at > _LARGEST or not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos + _NEAR_END >= len(self._buffer)

    def _is_small(self) -> bool:
        """Return whether the next value is small enough to be kept."""
        if self._peek() not in "[{":
            return True
        depth, at = 0, self._at
        while True:
            end, depth = self._brackets(depth, at)
            if end is not None:
                return end - self._at <= _LARGEST
            at = self._open - self._at
            if len(self._buffer) - self._at > _LARGEST or not self._refill():
                return False

    def _skip(self) -> None:
        """Pass over the next value, keeping nothing of it."""
        depth = 0
        while True:
            end, depth = self._brackets(depth, self._at)
            if end is not None:
                self._at = end
                return
            self._at = self._open
            if not self._refill():
                raise _Ended

    def _brackets(self, depth: int, at: int) -> tuple[int | None, int]:
        """Return where the brackets that are open at `at` close, if they do in the buffer, and else how many are open.

        `_open` is then where to go on: what stands before it is done with.
        """
        for part in _PARTS.finditer(self._buffer, at):
            sign = part[0]
            if sign[0] == '"':
                if not part[1]:
                    self._open = part.start()
                    return None, depth
                continue
            depth += 1 if sign in "[{" else -1
            if not depth:
                return part.end(), depth
        self._open = len(self._buffer)
        return None, depth

    def _refill(self) -> bool:
        """Read on, dropping what was used; returns whether there was more."""
        more = self._text.read()
        if more:
            self._buffer = self._buffer[self._at :] + more
            self._at = 0
        return bool(more)
