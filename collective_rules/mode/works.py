"""Works that the program was given: who drops one, or ends its block, without a wait.

torch does not tell who waits for a Work. While one is watched, the methods of `Work` by which a program learns that it
is done, or by which others do (`wait`, `is_completed`, `get_future`, ...), are replaced by some that note so first.
A dropped Work is one that nobody but this module holds; its thread finds out when it makes another call. Not known is
who waits below Python: `watch` is to be told only of Works that the program's own Python gets.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import attrs
import torch.distributed as dist

from collective_rules.ledger import Entry

_SETTLING = (
    "wait",
    "synchronize",
    "block_current_stream",
    "get_future",
    "get_future_result",
    "result",
    "is_success",
    "exception",
    "source_rank",
    "_source_rank",
    "boxed",
)
"""After a call of these, the program may know that the Work is done, or somebody else may."""

_ANSWERS = "is_completed"
"""The same, once it says True."""

_HOLDERS = 2
"""Who holds a dropped Work: its `_Watched`, and the call of getrefcount."""

Tell = Callable[[Entry], None]
"""Is told of a call for whose Work nobody waits."""


@attrs.define(eq=False)
class _Watched:
    """A Work as the program has it, and the calls for which it stands, with whom to tell of each.

    `keys`: its identity, and those of the Works that it holds and passes waits on to.
    """

    given: Any
    thread: threading.Thread
    keys: set[int] = attrs.field(factory=set)
    calls: list[tuple[Tell, Entry]] = attrs.field(factory=list)

    @property
    def is_dropped(self) -> bool:
        # C++ does not keep the Python half of a Work, so whoever wrote one in Python does.
        return sys.getrefcount(self.given) <= _HOLDERS + (type(self.given) is not dist.Work)


class _State:
    """The watched Works by identity, and the methods that were replaced."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.watched: dict[int, _Watched] = {}
        self.replaced: dict[str, Any] = {}
        self.blocks: tuple[Tell, ...] = ()
        self.calls = 0

    def install(self) -> None:
        methods = vars(dist.Work)
        for name in (*_SETTLING, _ANSWERS):
            if name in methods:
                self.replaced[name] = methods[name]
                setattr(dist.Work, name, _noting(name, methods[name]))

    def uninstall(self) -> None:
        for name in [*self.replaced]:
            setattr(dist.Work, name, self.replaced.pop(name))

    def forget(self) -> None:
        """Let a forked process begin with nothing watched."""
        self.lock, self.watched, self.blocks = threading.RLock(), {}, ()
        self.uninstall()


_state = _State()
os.register_at_fork(after_in_child=_state.forget)


def _noting(name: str, method: Any) -> Callable[..., Any]:
    @functools.wraps(method)
    def note(self: Any, *args: Any, **kwargs: Any) -> Any:
        if name is not _ANSWERS:
            settle(self)
            return method(self, *args, **kwargs)
        answer = method(self, *args, **kwargs)
        if answer:
            settle(self)
        return answer

    return note


def start(tell: Tell) -> None:
    """Begin a block: `tell` hears of the calls that are watched for it."""
    with _state.lock:
        _state.blocks = (*_state.blocks, tell)


def stop(tell: Tell) -> list[Entry]:
    """End a block, once or more; return its calls for whose Works nobody has waited.

    Those of another thread that still runs are left out: it may wait yet. With the last block, `Work` has its own
    methods again.
    """
    with _state.lock:
        entries = _remaining(tell)
        _state.blocks = tuple(each for each in _state.blocks if each != tell)
        if not _state.blocks:
            _state.watched.clear()
            _state.uninstall()
    return entries


def watch(sent: Any, given: Any, tell: Tell, entry: Entry) -> None:
    """Watch the Work that the program is `given` for `entry`, by whatever way the op `sent` the call.

    `tell` hears of it where nobody waits. A Work that is written in Python has to call `settle`; where `sent` is one
    that does not, nothing is known.
    """
    with _state.lock:
        if tell not in _state.blocks:
            return
        watched = _state.watched.get(id(sent))
        if watched is None:
            if type(sent) is not dist.Work and not getattr(sent, "settles", False):
                return
            if not _state.replaced:
                _state.install()
            watched = _Watched(given, threading.current_thread())
        watched.given = given
        for key in (id(sent), id(given)):
            watched.keys.add(key)
            _state.watched[key] = watched
        watched.calls.append((tell, entry))


def settle(work: Any) -> None:
    """Note that the program waits for a Work, or hands it to others that may."""
    watched = _state.watched.get(id(work))
    if watched is not None:
        _forget(watched)


def _forget(watched: _Watched) -> None:
    for key in watched.keys:
        _state.watched.pop(key, None)


def tell_of_dropped() -> None:
    """Tell of the Works of this thread that were dropped before anybody waited."""
    if not _state.watched:
        return
    _state.calls += 1
    if _state.calls < len(_state.watched) // 2:
        return  # a program that keeps many looks through them no more often than it makes as many calls
    _state.calls = 0
    thread = threading.current_thread()
    for watched in _all():
        if watched.thread is thread and watched.is_dropped:
            _forget(watched)
            for tell, entry in watched.calls:
                tell(entry)


def _remaining(tell: Tell) -> list[Entry]:
    """Watch the calls of a block no longer; return those of them that are lost."""
    own = threading.current_thread()
    entries = []
    for watched in _all():
        mine = [(each, entry) for each, entry in watched.calls if each == tell]
        watched.calls = [each for each in watched.calls if each not in mine]
        if not watched.calls:
            _forget(watched)
        if watched.thread is own or not watched.thread.is_alive():
            entries += [entry for _, entry in mine]
    return entries


def _all() -> list[_Watched]:
    with _state.lock:
        return list(dict.fromkeys(_state.watched.values()))
