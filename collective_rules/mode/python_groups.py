"""Refuses process groups whose collectives are written in Python, where nothing may be sent.

A call on such a group passes the dispatcher by, so nobody is told of it and it is sent. Groups that are there when a
block begins are refused then; the function by which torch.distributed registers groups is replaced while blocks last,
so that groups made inside of a block are refused, too.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d as _c10d

from collective_rules.errors import SimulationError
from collective_rules.ops import OPS

_REGISTER = "_register_process_group"
_METHODS = tuple(
    sorted({op.partition("::")[2].rstrip("_") for op in OPS if op.startswith("c10d::")} & {*dir(dist.ProcessGroup)})
)

_lock = threading.RLock()
_blocks: list[object] = []
_replaced: list[tuple[Any, Any]] = []
"""The replacement, and the function that was there before."""


def start(block: object) -> None:
    """Refuse such groups until `stop`. Raises `SimulationError` for one that is there."""
    for group in _c10d._world.pg_map:
        _refuse(group)
    with _lock:
        if not _blocks:
            before = getattr(_c10d, _REGISTER)
            _replaced[:] = [(_refusing(before), before)]
            setattr(_c10d, _REGISTER, _replaced[0][0])
        _blocks.append(block)


def stop(block: object) -> None:
    """Undo `start`, once or more."""
    with _lock:
        _blocks[:] = [each for each in _blocks if each is not block]
        if not _blocks and _replaced:
            replacement, before = _replaced.pop()
            if getattr(_c10d, _REGISTER) is replacement:
                setattr(_c10d, _REGISTER, before)


def _refusing(register: Any) -> Any:
    @functools.wraps(register)
    def refuse_or_register(name: str, group: Any) -> Any:
        if _blocks:
            _refuse(group)
        return register(name, group)

    return refuse_or_register


def _refuse(group: Any) -> None:
    kind = type(group)
    written = [name for name in _METHODS if getattr(kind, name) is not getattr(dist.ProcessGroup, name)]
    if written:
        raise SimulationError(
            f"the process group {kind.__name__} has methods of its own, such as {written[0]}: its calls pass the "
            "dispatcher by, and would be sent although execute=False says that nothing is. Make the group with another "
            'backend here, such as "fake".'
        )
