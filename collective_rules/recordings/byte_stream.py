"""A file as a stream of bytes, plain or gzip, that ends where it is damaged instead of raising.

Nothing here knows what the bytes mean. Memory does not grow with the file.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from collective_rules.recordings.recording import SourceError, named

CHUNK = 1 << 20
_PIECE = 1 << 15
"""Bytes of packed data that are unpacked at once."""


class _Unpacked:
    """Unpacks gzip; unlike `gzip`, it gives all that there is before the data stop or are damaged."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._packed = b""
        self._member = zlib.decompressobj(31)
        self._fault: zlib.error | None = None

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end; raises `EOFError` or `zlib.error` where it cannot go on."""
        while self._fault is None:
            if self._member.eof:
                self._packed = self._member.unused_data or self._file.read(_PIECE)
                if not self._packed.startswith(b"\x1f\x8b"):
                    return b""  # the end, or the padding behind it
                self._member = zlib.decompressobj(31)
            packed = self._member.unconsumed_tail or self._packed or self._file.read(_PIECE)
            self._packed = b""
            data = self._unpack(packed, size)
            if data:
                return data
            if not packed and not self._member.eof:
                raise EOFError
        raise self._fault

    def _unpack(self, packed: bytes, size: int) -> bytes:
        """Return what `packed` holds; where it is damaged, what stands before the damage."""
        before = self._member.copy()
        try:
            return self._member.decompress(packed, size)
        except zlib.error as error:
            self._fault = error
        parts: list[bytes] = []
        with contextlib.suppress(zlib.error):
            for place in range(len(packed)):
                parts.append(before.decompress(packed[place : place + 1]))
        return b"".join(parts)


class ByteStream:
    """Reads on; `cut` says why it ended before its end, "" where it did not."""

    def __init__(self, file: IO[bytes] | _Unpacked) -> None:
        self._file = file
        self._ahead = b""
        self.cut = ""

    def peek(self, size: int) -> bytes:
        """Return the next bytes without using them up, `size` of them if there are as many."""
        while len(self._ahead) < size:
            more = self._more(size - len(self._ahead))
            if not more:
                break
            self._ahead += more
        return self._ahead[:size]

    def read(self, size: int = CHUNK) -> bytes:
        """Return up to `size` bytes; none at the end, and where the rest cannot be read."""
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        return self._more(size)

    def _more(self, size: int) -> bytes:
        if self.cut:
            return b""
        try:
            return self._file.read(size)
        except EOFError:
            self.cut = "its compressed data stop in the middle"
        except (OSError, zlib.error) as error:
            self.cut = f"its data are damaged: {error}"
        return b""


class TextStream:
    """A stream as UTF-8 text; other bytes become U+FFFD, and then `foreign` is true."""

    def __init__(self, stream: ByteStream) -> None:
        self.bytes = stream
        self.foreign = False
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
        self._ended = False

    def read(self) -> str:
        """Return some more text, "" at the end."""
        while not self._ended:
            data = self.bytes.read()
            self._ended = not data
            text = self._decoder.decode(data, final=self._ended)
            if "\N{REPLACEMENT CHARACTER}" in text and "\N{REPLACEMENT CHARACTER}".encode() not in data:
                self.foreign = True
            if text:
                return text
        return ""


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[ByteStream]:
    """Open `path`, unpacking gzip, which is recognised by its content.

    Raises `SourceError` for what is no file that can be read, and for an empty one.
    """
    shown = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(shown, str):
        raise SourceError(f"path={path!r}, but should be the path of a recording")
    try:
        if not Path(shown).is_file():
            what = "is a directory; name the files in it" if Path(shown).is_dir() else "is no file"
            raise SourceError(f"{named(shown)} {what if Path(shown).exists() else 'does not exist'}")
        with open(shown, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream = ByteStream(_Unpacked(file) if packed else file)
            if not stream.peek(1):
                why = f"cannot be read: {stream.cut}" if stream.cut else "is empty"
                raise SourceError(f"{named(shown)} {why}")
            yield stream
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise SourceError(f"{shown!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
