"""The store over which ranks are compared: the one that `init_process_group` made, never a process group.

Each thread has a connection of its own, because a store that waits is locked. All keys lie below one prefix.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from collective_rules.errors import CollectiveRulesError

_T = TypeVar("_T")
_LONGEST = 7 * 24 * 3600.0
_ABSENT = "\0absent"


class LostStoreError(CollectiveRulesError):
    """The store does not answer."""


class RankStore:
    """The keys below `prefix`. A `get` waits at most `patience` seconds.

    Raises `CollectiveRulesError` for a store that cannot append, such as that of an init_method "file://", and every
    method raises `LostStoreError`.
    """

    def __init__(self, prefix: str, patience: float) -> None:
        store: Any = dist.distributed_c10d._get_default_store()
        if not store.has_extended_api():
            raise CollectiveRulesError(
                f"agree: a {type(store).__name__} cannot append, so ranks cannot be compared over it; "
                "let init_process_group make a TCPStore (init_method 'env://' or 'tcp://')"
            )
        self._store = store
        self._prefix = prefix
        self._patience = timedelta(seconds=min(patience, _LONGEST))
        self._local = threading.local()

    def connect(self) -> Any:
        """Return a connection for another thread: after the store is gone, to connect would be tried for minutes."""
        store = dist.distributed_c10d.PrefixStore(self._prefix, self._store.clone())
        store.set_timeout(self._patience)
        return store

    def announce(self, key: str, value: str, *, more: bool = False) -> None:
        """Set a key over the connection of the process: to make a connection may take long. `more`: append to it."""
        self._over_process(lambda store: (store.append if more else store.set)(key, value))
        self._over_process(lambda store: store.check([key]))  # a set does not notice that the store is gone

    def glance(self, key: str) -> bytes | None:
        """Return the value of a key, None where there is none, over the connection of the process."""
        return self._over_process(lambda store: _found(store, key))

    def _over_process(self, act: Callable[[Any], _T]) -> _T:
        return _noticing(act, dist.distributed_c10d.PrefixStore(self._prefix, self._store))

    def adopt(self, connection: Any) -> None:
        """Let this thread use a connection that another thread made for it."""
        self._local.store = connection

    def set(self, key: str, value: bytes) -> None:
        """Set a key, without waiting for an answer."""
        self._try(lambda store: store.set(key, value))

    def append(self, key: str, value: bytes) -> None:
        """Append to a key, or set it where there is none, without waiting for an answer."""
        self._try(lambda store: store.append(key, value))

    def add(self, key: str, number: int) -> int:
        """Add to a counter, and return the sum."""
        return self._try(lambda store: int(store.add(key, number)))

    def get(self, key: str) -> bytes:
        """Return the value of a key; where there is none, wait for it."""
        return self._try(lambda store: bytes(store.get(key)))

    def find(self, key: str) -> bytes | None:
        """Return the value of a key, None where there is none."""
        return self._try(lambda store: _found(store, key))

    def has(self, key: str) -> bool:
        """Return whether there is a key."""
        return self._try(lambda store: bool(store.check([key])))

    def claim(self, key: str, value: bytes) -> bytes:
        """Set a key unless it is set, and return its value."""
        return self._try(lambda store: bytes(store.compare_set(key, "", value.decode())))

    def delete(self, key: str) -> None:
        """Delete a key, if there is one."""
        self._try(lambda store: store.delete_key(key))

    def _try(self, act: Callable[[Any], _T]) -> _T:
        store = getattr(self._local, "store", None)
        if store is None:
            store = self._local.store = _noticing(lambda _: self.connect(), None)
        return _noticing(act, store)


def _found(store: Any, key: str) -> bytes | None:
    """Not by a check and a get: another rank may delete the key in between, and the get would wait."""
    found = bytes(store.compare_set(key, _ABSENT, _ABSENT))
    return None if found == _ABSENT.encode() else found


def _noticing(act: Callable[[Any], _T], store: Any) -> _T:
    """Return what `act` does to a store; raise `LostStoreError` where the store does not answer."""
    try:
        return act(store)
    except dist.DistError as error:
        raise LostStoreError(str(error).partition("\n")[0]) from error
