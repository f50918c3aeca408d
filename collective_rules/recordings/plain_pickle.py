"""Reads a pickle that holds plain data: dicts, lists, tuples, text, bytes, numbers, truth values and None.

The opcodes are walked with `pickletools`, which only splits them; this module builds what they say and refuses every
opcode that would import, call or look up something. What is built is bounded in depth, in size, and in the size that
it would have were all its shared parts written out.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any

from collective_rules.recordings.recording import SourceError, short

_MARK = object()
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
_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_PUSH = frozenset(
    {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
    | {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
_PUT, _GET = frozenset({"PUT", "BINPUT", "LONG_BINPUT"}), frozenset({"GET", "BINGET", "LONG_BINGET"})
_KEYS = (str, int, float, bool, bytes, type(None))


def load_plain(data: bytes, name: str = "the pickle") -> Any:
    """Return the plain value that `data` holds; raises `SourceError` for anything else. Nothing is ever executed.

    >>> import pickle
    >>> load_plain(pickle.dumps({"a": [1, 2.5, (None, True, "x")]}))
    {'a': [1, 2.5, (None, True, 'x')]}
    >>> load_plain(pickle.dumps(print))
    Traceback (most recent call last):
    collective_rules.recordings.recording.SourceError: the pickle is refused: ... (STACK_GLOBAL)...
    """
    builder = _Builder(name)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
            if count == _MOST_OPCODES:
                raise builder.refused(f"it has more than {_MOST_OPCODES:,} opcodes")
            if builder.take(opcode.name, argument):
                break
        else:
            raise SourceError(f"{name} cannot be read: it has no end")
        value = builder.result()
    except SourceError:
        raise
    except (ValueError, IndexError, TypeError, OverflowError, KeyError, EOFError) as error:
        raise SourceError(f"{name} cannot be read: {str(error)[:200]}") from None
    _must_be_small(value, name)
    return value


class _Builder:
    """Carries out the opcodes that build plain data."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def take(self, opcode: str, argument: Any) -> bool:
        """Carry out one opcode; returns whether it was the last."""
        stack = self.stack
        if opcode in _PUSH:
            if isinstance(argument, int) and argument.bit_length() > 8 * _LARGEST_INT:
                raise self.refused(f"it holds a number of {argument.bit_length()} bits")
            stack.append(argument)
        elif opcode in _NEW:
            stack.append(_NEW[opcode]())
        elif opcode in _VALUES:
            stack.append(_VALUES[opcode])
        elif opcode in _GET:
            stack.append(self.memo[int(argument)])
        elif opcode in _PUT:
            self.memo[int(argument)] = self._top()
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif opcode == "STOP":
            return True
        elif opcode in ("PROTO", "FRAME"):
            pass
        elif not self._contain(opcode):
            raise self.refused(f"it does more than hold plain data ({opcode}): {short(argument)}")
        return False

    def _contain(self, opcode: str) -> bool:
        """Carry out an opcode that builds or fills a container."""
        stack = self.stack
        if opcode == "MARK":
            stack.append(_MARK)
        elif opcode in ("TUPLE", "LIST"):
            items = self._marked()
            stack.append(tuple(items) if opcode == "TUPLE" else items)
        elif opcode in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(opcode[-1])
            items = [self._pop() for _ in range(count)]
            stack.append(tuple(reversed(items)))
        elif opcode == "DICT":
            items = self._marked()
            stack.append({})
            self._set(items)
        elif opcode in ("APPEND", "APPENDS"):
            items = self._marked() if opcode == "APPENDS" else [self._pop()]
            self._top(list).extend(items)
        elif opcode in ("SETITEM", "SETITEMS"):
            items = self._marked() if opcode == "SETITEMS" else [self._pop(), self._pop()][::-1]
            self._set(items)
        elif opcode == "POP":
            stack.pop()
        elif opcode == "POP_MARK":
            self._marked()
        elif opcode == "DUP":
            stack.append(self._top())
        else:
            return False
        return True

    def _set(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEYS):
                raise ValueError(f"{short(key)} is a key of a dict")
            target[key] = value

    def _marked(self) -> list[Any]:
        """Take what was put on the stack since the last mark, and the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("it closes what it did not open")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _pop(self) -> Any:
        value = self._top()
        self.stack.pop()
        return value

    def _top(self, kind: type = object) -> Any:
        value = self.stack[-1]
        if value is _MARK or not isinstance(value, kind):
            raise ValueError(f"it fills {short(value) if value is not _MARK else 'nothing'}")
        return value

    def result(self) -> Any:
        """Return the one value that is left."""
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            raise ValueError("it does not end with one value")
        return self.stack[0]

    def refused(self, why: str) -> SourceError:
        return SourceError(f"{self.name} is refused: {why}")


def _must_be_small(value: Any, name: str) -> None:
    """Refuse what nests too deep, contains itself, or is large only by sharing."""
    sizes: dict[int, tuple[int, int]] = {}
    open_: set[int] = set()
    work: list[tuple[Any, bool]] = [(value, False)]
    while work:
        one, done = work.pop()
        key = id(one)
        if not isinstance(one, _CONTAINERS) or (key in sizes and not done):
            continue
        parts = one.values() if isinstance(one, dict) else one
        if not done:
            if key in open_:
                raise SourceError(f"{name} is refused: it contains itself")
            open_.add(key)
            work.append((one, True))
            work += [(part, False) for part in parts if part and isinstance(part, _CONTAINERS)]
            continue
        open_.discard(key)
        size, depth = 1, 0
        for part in parts:
            more, deep = sizes.get(id(part), _EMPTY) if isinstance(part, _CONTAINERS) else _PLAIN
            size, depth = size + more, max(depth, deep)
        if depth + 1 > _DEEPEST or size > _MOST:
            what = (
                f"nests more than {_DEEPEST} deep" if depth + 1 > _DEEPEST else f"stands for more than {_MOST} values"
            )
            raise SourceError(f"{name} is refused: it {what}")
        sizes[key] = (size, depth + 1)
