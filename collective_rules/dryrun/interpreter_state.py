"""Put back the settings of the interpreter and of torch that a program may change."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import multiprocessing
from torch.distributed import distributed_c10d
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._redistribute import clear_redistribute_planner_cache
from torch.utils._python_dispatch import _disable_current_modes


@contextlib.contextmanager
def kept_state() -> Iterator[None]:
    """Put back the environment, arguments, paths, generators, hooks, signal handlers and torch's settings."""
    environment, arguments, paths, main = dict(os.environ), list(sys.argv), list(sys.path), sys.modules["__main__"]
    hook, directory = sys.excepthook, os.getcwd()
    generator, torch_generator = random.getstate(), torch.get_rng_state()
    numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None
    coalescing = dict(distributed_c10d._world.pg_coalesce_state)
    settings = [(read, write, read()) for read, write in _SETTINGS]
    with warnings.catch_warnings():
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(environment)
            sys.argv[:], sys.path[:], sys.modules["__main__"], sys.excepthook = arguments, paths, main, hook
            os.chdir(directory)
            random.setstate(generator)
            with _disable_current_modes():
                torch.set_rng_state(torch_generator)
            if numpy is not None:
                sys.modules["numpy"].random.set_state(numpy)
            distributed_c10d._world.pg_coalesce_state.clear()
            distributed_c10d._world.pg_coalesce_state.update(coalescing)
            for read, write, value in settings:
                if read() != value:
                    write(value)
            _forget_meshes()


def _forget_meshes() -> None:
    """Empty DTensor's caches: the groups of equal meshes have other names in another run."""
    # As torch.distributed.tensor.debug does, which needs numpy.
    DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache_clear()
    torch._C._clear_DTensor_sharding_propagator_cache()
    clear_redistribute_planner_cache()


def _keep_signals() -> dict[int, Any]:
    """Return Python's own signal handlers; only the main thread may set handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    return {number: handler for number, handler in handlers.items() if handler is not None}


def _restore_signals(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _set_default_device(context: Any) -> None:
    torch.set_default_device(None if context is None else context.device)


def _default_device() -> Any:
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(enabled: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(enabled[0], warn_only=enabled[1])


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return (lambda: getattr(owner, name)), (lambda value: setattr(owner, name, value))


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], None]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch._C._set_grad_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (_deterministic, _set_deterministic),
    (_default_device, _set_default_device),
    (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch._C._get_flash_sdp_enabled, torch._C._set_sdp_use_flash),
    (torch._C._get_mem_efficient_sdp_enabled, torch._C._set_sdp_use_mem_efficient),
    (torch._C._get_math_sdp_enabled, torch._C._set_sdp_use_math),
    _attribute(torch.backends.cudnn, "enabled"),
    _attribute(torch.backends.cudnn, "benchmark"),
    _attribute(torch.backends.cudnn, "deterministic"),
    (multiprocessing.get_sharing_strategy, multiprocessing.set_sharing_strategy),
    (_keep_signals, _restore_signals),
)
"""The settings of the whole process: a function that reads the setting, and a function that sets it."""
