"""What a program may leave behind in the interpreter, and how to put it back."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed import distributed_c10d
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._redistribute import clear_redistribute_planner_cache
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["kept_state"]


@contextlib.contextmanager
def kept_state() -> Iterator[None]:
    """Put back the environment, arguments, paths, generators, hooks and torch's defaults after the block."""
    environment, arguments, paths, main = dict(os.environ), list(sys.argv), list(sys.path), sys.modules["__main__"]
    hook, directory = sys.excepthook, os.getcwd()
    drawn, numbers, numpy = random.getstate(), torch.get_rng_state(), _numpy_state()
    coalescing = dict(distributed_c10d._world.pg_coalesce_state)
    settings = _torch_settings()
    with warnings.catch_warnings():
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(environment)
            sys.argv[:], sys.path[:], sys.modules["__main__"], sys.excepthook = arguments, paths, main, hook
            os.chdir(directory)
            random.setstate(drawn)
            with _disable_current_modes():
                torch.set_rng_state(numbers)
            if numpy is not None:
                sys.modules["numpy"].random.set_state(numpy)
            distributed_c10d._world.pg_coalesce_state.clear()
            distributed_c10d._world.pg_coalesce_state.update(coalescing)
            _set_torch(settings)
            _forget_meshes()


def _forget_meshes() -> None:
    """Empty DTensor's caches: equal meshes of two runs have groups of other names."""
    # As torch.distributed.tensor.debug does, which needs numpy.
    DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding.cache_clear()
    torch._C._clear_DTensor_sharding_propagator_cache()
    clear_redistribute_planner_cache()


def _numpy_state() -> Any:
    return sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None


def _torch_settings() -> tuple[Any, ...]:
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None),
    )


def _set_torch(settings: tuple[Any, ...]) -> None:
    dtype, grad, precision, deterministic, warn_only, context = settings
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    if getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None) is not context:
        torch.set_default_device(None if context is None else context.device)
