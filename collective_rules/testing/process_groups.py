"""Finds backends by name: torch's own, those registered with it, and a factory in a module or a file.

It knows how to make torch's in-process groups without the patches of torch's own tests. It starts no ranks: `World`
does.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import threading
import types
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as _c10d

from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.places import described, found_at

Factory = Callable[[Any, int, int, timedelta], Any]
"""`factory(store, rank, size, timeout)`, as `torch.distributed.Backend.register_backend` takes it.

It returns one rank's `torch.distributed` Backend (C++), or a ProcessGroup written in Python, whose methods are called.
"""

_WAYS = (
    "'gloo', 'fake', 'threaded', a name registered by torch.distributed.Backend.register_backend, "
    "'package.module:factory' or '/path/to/file.py:factory'"
)


@attrs.frozen
class Provider:
    """The source of a world's groups: `start()` returns the factory of one world.

    `posts_at_once`: an op that is posted does not wait for the other ranks, so that one thread can post for all.
    """

    name: str
    start: Callable[[], Factory] = attrs.field(repr=False)
    posts_at_once: bool = False

    def make(self, factory: Factory, store: Any, rank: int, size: int, timeout: timedelta) -> Any:
        """Return what the factory makes for one rank.

        Raises `CallError`, with the text of what the factory raises, or where it returns something else.
        """
        try:
            made = factory(store, rank, size, timeout)
        except Exception as error:
            raise CallError(f"backend {self.name!r}: its factory raised for rank {rank}: {described(error)}") from None
        if not isinstance(made, (_c10d.Backend, dist.ProcessGroup)):
            wanted = "but should return a torch.distributed Backend or ProcessGroup"
            raise CallError(f"backend {self.name!r}: its factory returned {made!r} for rank {rank}, {wanted}")
        return made


def resolve(backend: str | Factory) -> Provider:
    """Return the provider of a backend by its name; a factory itself will do, too.

    - "gloo": torch's, all ranks on one device.
    - "fake": torch's FakeProcessGroup, which sends nothing.
    - "threaded": torch's ProcessLocalGroup (torch/testing/_internal/distributed/multi_threaded_pg.py).
    - a name that `torch.distributed.Backend.register_backend` was given.
    - "package.module:factory" and "/path/to/file.py:factory": a `Factory` by the place that defines it.

    Raises `CallError` for an unknown name, and for a module, file or attribute that is not there or does not do.

    >>> resolve("gloo")
    Provider(name='gloo', posts_at_once=True)
    >>> resolve("math:pi")
    Traceback (most recent call last):
    collective_rules.errors.CallError: backend='math:pi', but math.pi is 3.14..., which cannot be called
    """
    if callable(backend):
        return Provider(_name_of(backend), lambda: backend)
    if not isinstance(backend, str):
        raise CallError(f"backend={backend!r}, but should be a factory, {_WAYS}")
    if backend.lower() in _OWN:
        return _OWN[backend.lower()]
    plugin = dist.Backend._plugins.get(backend.upper())
    if plugin is not None:
        return Provider(backend, lambda: _registered(plugin))
    place, colon, name = backend.rpartition(":")
    if not (place and colon and name):
        raise CallError(f"backend={backend!r}, but should be {_WAYS}")
    factory = _factory_at(backend)
    return Provider(backend, lambda: factory)


def _name_of(factory: Factory) -> str:
    name = getattr(factory, "__qualname__", type(factory).__qualname__)
    return f"{getattr(factory, '__module__', None) or '?'}:{name}"


# -- a factory by its place


def _factory_at(place: str) -> Factory:
    module = place.rpartition(":")[0]
    home = str(Path(module).resolve()) if module.endswith(".py") else module

    def fits(value: Any) -> bool:
        return callable(value) and getattr(value, "__module__", "") == home

    factory = found_at(place, "backend", fits)
    if not callable(factory):
        raise CallError(f"backend={place!r}, but {place.replace(':', '.')} is {factory!r}, which cannot be called")
    return factory  # type: ignore[no-any-return]  # callable() says no more


# -- torch's own


def _gloo() -> Factory:
    if not dist.is_gloo_available():
        raise CollectiveRulesError(f"torch {torch.__version__} was built without gloo")
    # Nothing here outlives the connecting: who lets go of the device last waits for its thread.
    device = dist.ProcessGroupGloo.create_device(hostname="127.0.0.1")

    def make(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # absent from torch's stubs
        options._devices = [device]
        options._threads = 2
        options._timeout = timeout
        return dist.ProcessGroupGloo(store, rank, size, options)

    return make


def _fake() -> Factory:
    importlib.import_module("torch.testing._internal.distributed.fake_pg")
    return _registered(dist.Backend._plugins["FAKE"])


def _registered(plugin: Any) -> Factory:
    """Return the creator of a registered backend with plain arguments, also where torch gives it extended ones."""
    if not plugin.extended_api:
        return plugin.creator_fn  # type: ignore[no-any-return]  # torch's is untyped

    def make(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
        options = _c10d._DistributedBackendOptions()
        options.store, options.group_rank, options.group_size, options.timeout = store, rank, size, timeout
        options.group_id, options.global_ranks_in_group = "collective_rules", list(range(size))
        return plugin.creator_fn(options, None)

    return make


_COUNTER = itertools.count()


def _threaded() -> Factory:
    """Return what makes ranks that meet under a name of their own: torch's meet under that of their group.

    Nothing is patched: `_install_threaded_pg` is needed only where `torch.distributed` keeps one world a thread.
    """
    group_class = _threaded_class()
    meeting = f"collective_rules.threaded.{next(_COUNTER)}"
    return lambda store, rank, size, timeout: group_class(rank, size, meeting)


@functools.cache
def _threaded_class() -> Any:
    """Made when it is asked for: torch's module registers a backend when it is imported."""
    module: Any = importlib.import_module("torch.testing._internal.distributed.multi_threaded_pg")

    class Threaded(module.ProcessLocalGroup):  # type: ignore[misc]  # torch's is untyped
        """A ProcessLocalGroup that knows its own names, and lets go of the ranks that wait."""

        def __init__(self, rank: int, size: int, meeting: str) -> None:
            super().__init__(rank, size)
            self.meeting, self.own_name = meeting, ""

        @property
        def pg_name(self) -> str:
            """The name under which the ranks meet."""
            return self.meeting

        @property
        def group_name(self) -> str:
            """The name under which torch finds this rank's group."""
            return self.own_name

        def _set_group_name(self, name: str) -> None:
            self.own_name = name

        def shutdown(self) -> None:
            """End the collective that waits for this group's ranks; they raise SystemExit."""
            waiting = self._cur_coll_on_pgs.pop(self.meeting, None)
            if waiting is None:
                return
            ended = threading.Event()
            ended.set()
            waiting._pg = types.SimpleNamespace(_terminate=ended)  # torch has one Event, for all groups together
            for condition in (waiting._start_cond, waiting._done_cond):
                with condition:
                    condition.notify_all()

    return Threaded


_OWN = {
    "gloo": Provider("gloo", _gloo, posts_at_once=True),
    "fake": Provider("fake", _fake, posts_at_once=True),
    "threaded": Provider("threaded", _threaded),
}
