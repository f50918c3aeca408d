"""Reads a pickle that holds plain data: dicts, lists, tuples, text, bytes, numbers, truth values and None.

Python's own unpickler reads it, the one that is written in Python: it looks each opcode up in a table, which holds here
only the opcodes that build plain data. Every opcode that would import, call or look up something is refused. What is
built is bounded in depth, in size, and in the size that it would have were all its shared parts written out.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any, NoReturn

from collective_rules.recordings.recording import SourceError

_DEEPEST = 32
_MOST = 50_000_000
"""Values, shared ones counted each time: a dump of 20,000 entries has a million."""
_MOST_OPCODES = 20_000_000
"""A dump of 20,000 entries with 30 frames each has 7 million."""
_CONTAINERS = (dict, list, tuple)
_PLAIN, _EMPTY = (1, 0), (1, 1)
"""Size and depth of what is no container, and of an empty one."""
_LARGEST_INT = 16
"""Bytes of a number."""
_OPCODES = (
    "PROTO FRAME STOP MARK POP POP_MARK DUP PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET "
    "NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
    "BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3"
)


def load_plain(data: bytes, name: str = "the pickle") -> Any:
    """Return the plain value that `data` holds; raises `SourceError` for anything else. Nothing is ever executed.

    >>> import pickle
    >>> load_plain(pickle.dumps({"a": [1, 2.5, (None, True, "x")]}))
    {'a': [1, 2.5, (None, True, 'x')]}
    >>> load_plain(pickle.dumps(print))
    Traceback (most recent call last):
    collective_rules.recordings.recording.SourceError: the pickle is refused: ... (STACK_GLOBAL)
    """
    unpickler: Any = pickle._Unpickler(io.BytesIO(data), encoding="latin-1")
    unpickler.dispatch = _Dispatch(name)
    try:
        value = unpickler.load()
        if unpickler.stack or unpickler.metastack:
            raise ValueError("it does not end with one value")
    except SourceError:
        raise
    except Exception as error:  # of a damaged pickle: of nearly any kind
        raise SourceError(f"{name} cannot be read: {str(error)[:200] or 'it has no end'}") from None
    _must_be_small((value,), name)
    return value


class _Dispatch(dict[int, Any]):
    """The unpickler's methods by opcode, those that build plain data; counts the opcodes."""

    def __init__(self, name: str) -> None:
        codes = {ord(opcode.code): opcode for opcode in pickletools.opcodes}
        methods = pickle._Unpickler.dispatch
        plain = set(_OPCODES.split())
        super().__init__((code, methods[code]) for code, opcode in codes.items() if opcode.name in plain)
        self.name, self.codes, self.count = name, codes, 0

    def __getitem__(self, code: int) -> Any:
        self.count += 1
        if self.count > _MOST_OPCODES:
            _refuse(self.name, f"it has more than {_MOST_OPCODES:,} opcodes")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> NoReturn:
        opcode = self.codes[code].name if code in self.codes else code
        _refuse(self.name, f"it does more than hold plain data ({opcode})")


def _refuse(name: str, why: str) -> NoReturn:
    raise SourceError(f"{name} is refused: {why}")


def _must_be_small(value: Any, name: str) -> None:
    """Refuse what nests too deep, contains itself, holds a huge number, or is large only by sharing."""
    sizes: dict[int, tuple[int, int]] = {}
    open_: set[int] = set()
    work: list[tuple[Any, bool]] = [(value, False)]
    while work:
        one, done = work.pop()
        key = id(one)
        if key in sizes and not done:
            continue
        parts = one.values() if isinstance(one, dict) else one
        if not done:
            if key in open_:
                _refuse(name, "it contains itself")
            if isinstance(one, dict) and any(isinstance(each, tuple) for each in one):
                _refuse(name, "a tuple is a key of a dict")
            if any(isinstance(each, int) and each.bit_length() > 8 * _LARGEST_INT for each in (*one, *parts)):
                _refuse(name, f"it holds a number of more than {_LARGEST_INT} bytes")
            open_.add(key)
            work.append((one, True))
            work += [(part, False) for part in parts if part and isinstance(part, _CONTAINERS)]
            continue
        open_.discard(key)
        size, depth = 1, 0
        for part in parts:
            more, deep = sizes.get(id(part), _EMPTY) if isinstance(part, _CONTAINERS) else _PLAIN
            size, depth = size + more, max(depth, deep)
        if depth > _DEEPEST:
            _refuse(name, f"it nests more than {_DEEPEST} deep")
        if size > _MOST:
            _refuse(name, f"it stands for more than {_MOST} values")
        sizes[key] = (size, depth + 1)
