"""Tells of every collective in the process, from any thread: by kernels of its own in front of the backends' kernels.

The dispatcher asks the key `BackendSelect` in every thread, also in inference mode and below autograd, for tensors of
every device, and no collective has a kernel there. One is put there while somebody listens, and taken away afterwards.
It tells the listeners, and passes the call on to the kernel of the tensors' backend. The functions that make groups are
no ops; while somebody listens, `group_making` tells of them.
Calls on meta and fake tensors are passed on, and not told: nothing is sent.

A listener that belongs to a thread hears the calls of that thread, and of the threads that it starts. While listeners
belong to one thread only, they hear the calls of all threads that have none.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
import torch
from torch._C._dynamo import eval_frame as _eval_frame

from collective_rules.mode.group_making import GroupFunctions, GroupMaking, Make
from collective_rules.ops import OPS

_KEY = torch._C.DispatchKey.BackendSelect
_BELOW = torch._C._dispatch_keyset_full_after(_KEY)
_META, _PYTHON = torch._C.DispatchKey.Meta, torch._C.DispatchKey.PythonDispatcher
_NOT_COMPILED = _eval_frame._FrameExecStrategy(_eval_frame._FrameAction.SKIP, _eval_frame._FrameAction.SKIP)
"""Neither a kernel nor what it calls: else torch.compile, where it is at work, compiles this library's own code."""

Send = Callable[..., Any]
"""Sends a call: takes the arguments of the op."""


class Listener(Protocol):
    """Is told of calls, and sends them."""

    executes: bool
    """Whether the listener sends the calls."""

    def hear(self, op: Any, send: Send, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Hear of a call, send it by `send`, and return what the program gets."""

    def hear_of_groups(self, making: GroupMaking, make: Make) -> Any:
        """Hear that groups are about to be made, make them by `make`, and return what the program gets."""


@attrs.frozen(eq=False)
class _Heard:
    """One who listens: to the calls of a thread, or of all threads for None."""

    listener: Listener
    thread: int | None


class _State:
    """Who listens, and the kernels that are there while somebody does."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.libraries: list[Any] = []
        self.functions = GroupFunctions(_tell_of_groups)
        self.listening: tuple[_Heard, ...] = ()
        self.adopted: dict[int, int] = {}
        """Thread → the thread whose listeners hear its calls, of threads that were started by another."""

    def install(self) -> None:
        """Put the kernels there, and replace the functions that make groups."""
        libraries: dict[str, Any] = {}
        try:
            for op in filter(None, map(_overload, OPS)):
                library = libraries.get(op.namespace)
                if library is None:
                    library = libraries[op.namespace] = torch.library.Library(op.namespace, "IMPL")
                library.impl(op.name().partition("::")[2], _kernel(op), "BackendSelect", with_keyset=True)
            self.functions.replace()
        finally:
            self.libraries = [*libraries.values()]

    def uninstall(self) -> None:
        """Take the kernels away, and put the functions back."""
        self.functions.restore()
        while self.libraries:
            self.libraries.pop()._destroy()

    def forget(self) -> None:
        """Let a forked process begin without listeners: they are its parent's."""
        self.lock, self.listening, self.adopted = threading.RLock(), (), {}


def _tell_of_groups(making: GroupMaking, make: Make) -> Any:
    for listener in _listeners():
        make = _making_through(listener, making, make)
    return make(None)


def _making_through(listener: Listener, making: GroupMaking, make: Make) -> Make:
    return lambda limit: listener.hear_of_groups(making, lambda own: make(_least(limit, own)))


def _least(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit is not None), default=None)


_state = _State()
os.register_at_fork(after_in_child=_state.forget)


def listen(listener: Listener, *, everywhere: bool = False) -> None:
    """Tell `listener` of calls from now on: of this thread's, or of all threads' with `everywhere`."""
    with _state.lock:
        if not _state.libraries:
            _state.install()
        heard = (*_state.listening, _Heard(listener, None if everywhere else owner()))
        # One that sends nothing is told last.
        _state.listening = tuple(sorted(heard, key=lambda each: each.listener.executes))


def unlisten(listener: Listener) -> None:
    """Undo `listen`. The kernels are taken away with the last listener."""
    with _state.lock:
        _state.listening = tuple(each for each in _state.listening if each.listener is not listener)
        if not _state.listening:
            _state.uninstall()


def owner() -> int:
    """Return the thread whose listeners hear the calls of this thread."""
    own = threading.get_ident()
    return _state.adopted.get(own, own)


def adopt(thread: int) -> None:
    """Let the listeners of `thread` hear the calls of this one, too."""
    _state.adopted[threading.get_ident()] = thread


def release() -> None:
    """Undo `adopt`."""
    _state.adopted.pop(threading.get_ident(), None)


def _listeners() -> list[Listener]:
    """Return who hears the calls of this thread, from the one that sends."""
    thread, listening = owner(), _state.listening
    owners = {each.thread for each in listening if each.thread is not None}
    return [
        each.listener
        for each in listening
        if each.thread is None or each.thread == thread or (thread not in owners and len(owners) == 1)
    ]


def _overload(name: str) -> Any:
    """Return the op of a row; None for one that is not in this torch."""
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, namespace), packet, None)
    return found and getattr(found, overload or "default")


def _kernel(op: Any) -> Callable[..., Any]:
    """Return a kernel that tells of a call of `op`, and passes it on."""
    routes: dict[int, tuple[Send, bool]] = {}

    def tell(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        raw = keyset.raw_repr()
        try:
            send, told = routes[raw]
        except KeyError:
            send, told = routes[raw] = _route(op, keyset & _BELOW)
        listening = _state.listening
        if not told:
            return send(*args, **kwargs)
        if len(listening) == 1 and listening[0].thread is None:
            return listening[0].listener.hear(op, send, args, kwargs)
        for listener in _listeners():
            send = _through(listener, op, send)
        return send(*args, **kwargs)

    _eval_frame.set_code_exec_strategy(tell.__code__, _NOT_COMPILED)
    return tell


def _route(op: Any, below: Any) -> tuple[Send, bool]:
    """Return what passes a call on to the kernel for these keys, and whether it is told.

    Other threads run meanwhile: the kernel may block, and may wait for a thread that runs Python.
    """
    told = below.highestPriorityTypeId() != _PYTHON and not below.has(_META)
    return functools.partial(op._handle.redispatch_boxed, below), told


def _through(listener: Listener, op: Any, send: Send) -> Send:
    return lambda *args, **kwargs: listener.hear(op, send, args, kwargs)
