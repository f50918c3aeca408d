"""A program that says `cuda` on a machine without one: its tensors are on the cpu, and torch.cuda answers politely.

Only the program sees a GPU; torch's own code, when it asks, sees none. `Tensor.device` says cpu.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from collective_rules.dryrun.attention import attend, is_distributed_attention
from collective_rules.dryrun.patches import Patches

__all__ = ["DeclaredDevices", "on_cpu", "pretend_devices"]

_KINDS = ("cuda", "xpu", "hpu", "npu", "mtia", "mps")
_NAME = re.compile(rf"(?:{'|'.join(_KINDS)})(?::\d+)?\Z")
_MEMORY = 80 * 2**30


def on_cpu(device: Any) -> Any:
    """Return the cpu for any device that is an accelerator; every other value as it is.

    >>> on_cpu(torch.device("cuda", 3)), on_cpu("cuda:1"), on_cpu("meta"), on_cpu(None)
    (device(type='cpu'), 'cpu', 'meta', None)
    """
    if isinstance(device, torch.device):
        return torch.device("cpu") if device.type in _KINDS else device
    if isinstance(device, str):
        return "cpu" if _NAME.match(device) else device
    return device


class DeclaredDevices(TorchFunctionMode):
    """Puts on the cpu what the program puts on an accelerator; `seen` is told its kind, `kinds` has all."""

    def __init__(self, seen: Callable[[str], object]) -> None:
        super().__init__()
        self._tell = seen
        self.kinds: set[str] = set()

    def _seen(self, kind: str) -> None:
        self.kinds.add(kind)
        self._tell(kind)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func` with every accelerator replaced by the cpu."""
        named: dict[str, Any] = dict(kwargs) if kwargs else {}
        if func is torch.device:  # it is the program's to look at; where it is used it is mapped
            return func("cuda", *args) if args and type(args[0]) is int else func(*args, **named)
        if func in (torch.Tensor.cuda, torch.Tensor.xpu):
            self._seen(func.__name__)
            return args[0]
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.Tensor.is_pinned:
            return False
        if func is torch.Tensor.record_stream:
            return None
        if func is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
            args = (args[0], "cuda", *args[2:])
        if self.kinds and is_distributed_attention(func, args, named):
            return attend(*args, **named)
        args = tuple(self.map(value) for value in args)
        if "device" in named:
            named["device"] = self.map("cuda" if type(named["device"]) is int else named["device"])
        return func(*args, **named)

    def map(self, device: Any) -> Any:
        """Return `on_cpu(device)`, and say that an accelerator was seen."""
        if isinstance(device, (torch.device, str)):
            mapped = on_cpu(device)
            if mapped is not device:
                self._seen(device.type if isinstance(device, torch.device) else device.partition(":")[0])
            return mapped
        return device


class _Stream:
    """A stream or an event of no device: all that is asked of it is done already."""

    device = torch.device("cpu")

    def __init__(self, *_: Any, **__: Any) -> None:
        self.cuda_stream = self.stream_id = self.priority = 0

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None: ...

    def wait_stream(self, *_: object) -> None: ...

    wait_event = synchronize = record = wait = wait_stream

    def record_event(self, event: Any = None) -> Any:
        return event or _Stream()

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: object) -> float:
        return 0.0


def pretend_devices(patches: Patches, mode: DeclaredDevices, count: int, index: int) -> None:
    """Have torch.cuda answer as with `count` devices, of which `index` is the current one."""
    current = [index]

    def set_device(device: Any) -> None:
        mode.map("cuda")
        number = device if isinstance(device, int) else torch.device(device).index
        current[0] = current[0] if number is None else number

    cuda, accelerator = torch.cuda, torch.accelerator
    for module in (cuda, accelerator):
        own = {
            "is_available": _for_programs(module.is_available, True),
            "device_count": _for_programs(module.device_count, count),
            **dict.fromkeys(("set_device", "set_device_index", "set_device_idx"), set_device),
            **dict.fromkeys(("current_device", "current_device_index", "current_device_idx"), lambda: current[0]),
        }
        for name, answer in {**_answers(count), **own}.items():
            if hasattr(module, name):
                patches.replace_function(module, name, answer)
    for name in ("Stream", "Event", "ExternalStream"):
        patches.replace_function(cuda, name, _Stream)
    for name in ("range_push", "range_pop", "mark", "range_start", "range_end"):
        patches.replace(cuda.nvtx, name, _nothing)
    for name in ("_record_memory_history", "_dump_snapshot"):
        patches.replace_function(cuda.memory, name, _nothing)
    patches.replace_function(cuda.memory, "_snapshot", lambda *_, **__: {"segments": [], "device_traces": []})
    patches.replace_function(cuda.memory, "memory_snapshot", lambda *_, **__: [])
    for name in ("start", "stop"):
        patches.replace(cuda.profiler, name, _nothing)
    patches.replace(cuda.profiler, "profile", _context)
    patches.replace(torch.version, "cuda", "12.8")
    patches.replace_function(cuda.nccl, "version", lambda: (2, 27, 0))
    first = _for_programs(accelerator.current_accelerator, torch.device("cuda"))
    patches.replace_function(accelerator, "current_accelerator", first)
    _map_entrances(patches, mode)


def _answers(count: int) -> dict[str, Callable[..., Any]]:
    zero = (
        "memory_allocated max_memory_allocated memory_reserved max_memory_reserved memory_cached max_memory_cached "
        "utilization temperature power_draw clock_rate memory_usage device_memory_used initial_seed"
    )
    nothing = (
        "synchronize empty_cache ipc_collect init reset_peak_memory_stats reset_accumulated_memory_stats "
        "reset_max_memory_allocated reset_max_memory_cached set_per_process_memory_fraction set_stream manual_seed "
        "manual_seed_all seed seed_all set_rng_state set_rng_state_all set_sync_debug_mode _lazy_init _sleep "
        "empty_host_cache reset_peak_host_memory_stats reset_accumulated_host_memory_stats"
    )
    properties = types.SimpleNamespace(
        name="dry run",
        total_memory=_MEMORY,
        major=9,
        minor=0,
        multi_processor_count=132,
        warp_size=32,
        max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=227 << 10,
        shared_memory_per_multiprocessor=228 << 10,
        L2_cache_size=50 << 20,
        gcnArchName="",
        is_integrated=False,
        is_multi_gpu_board=False,
    )
    answers: dict[str, Callable[..., Any]] = dict.fromkeys(zero.split(), lambda *_, **__: 0)
    answers |= dict.fromkeys(nothing.split(), _nothing)
    answers |= dict.fromkeys(("current_stream", "default_stream"), lambda *_, **__: _Stream())
    answers |= dict.fromkeys(("memory_stats", "host_memory_stats"), lambda *_, **__: _Zeros())
    answers |= dict.fromkeys(("mem_get_info", "get_memory_info"), lambda *_, **__: (_MEMORY, _MEMORY))
    answers |= dict.fromkeys(("device", "stream", "device_of"), _context)
    return answers | {
        "get_device_name": lambda *_, **__: "dry run",
        "get_device_capability": lambda *_, **__: (9, 0),
        "get_device_properties": lambda *_, **__: properties,
        "is_bf16_supported": lambda *_, **__: True,
        "is_initialized": _for_programs(torch.cuda.is_initialized, True),
        "can_device_access_peer": lambda *_, **__: True,
        "memory_summary": lambda *_, **__: "",
        "is_current_stream_capturing": lambda: False,
        "get_allocator_backend": lambda: "native",
        "get_sync_debug_mode": lambda: 0,
        "cudart": _Runtime,
        "get_rng_state": lambda *_, **__: torch.get_rng_state(),
        "get_rng_state_all": lambda *_, **__: [torch.get_rng_state()] * count,
    }


class _Runtime:
    """The CUDA runtime: whatever is called is done already, and without an error."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_, **__: 0


class _Zeros(dict[str, int]):
    def __missing__(self, key: str) -> int:
        return 0


def _nothing(*_: Any, **__: Any) -> None: ...


@contextlib.contextmanager
def _context(*_: Any, **__: Any) -> Iterator[None]:
    yield


def _for_programs(original: Callable[..., Any], answer: Any) -> Callable[..., Any]:
    """Return a function that gives `answer` to the program and what `original` gives to torch's own code."""

    @functools.wraps(original)
    def ask(*args: Any, **named: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller == "torch" or caller.startswith("torch."):
            return original(*args, **named)
        return answer

    return ask


def _map_entrances(patches: Patches, mode: DeclaredDevices) -> None:
    """Map the devices that reach torch elsewhere than by a torch function."""
    parse_to = torch._C._nn._parse_to

    def parse(*args: Any, **named: Any) -> Any:
        mapped = tuple(mode.map("cuda" if type(value) is int else value) for value in args)
        return parse_to(*mapped, **{name: mode.map(value) for name, value in named.items()})

    patches.replace(torch._C._nn, "_parse_to", parse)
    set_default_device = torch.set_default_device
    patches.replace_function(
        torch, "set_default_device", lambda device: set_default_device(mode.map("cuda" if device == 0 else device))
    )
    base = torch.Generator

    class Generator(base):  # type: ignore[valid-type, misc]
        def __new__(cls, device: Any = "cpu") -> Any:
            return base.__new__(cls, mode.map(device))  # type: ignore[call-arg]

        def __init__(self, device: Any = "cpu") -> None:
            super().__init__()

    patches.replace(torch, "Generator", Generator)
    autocast = torch.amp.autocast_mode.autocast
    enter_autocast = autocast.__init__

    def init_autocast(self: Any, device_type: str, *args: Any, **named: Any) -> None:
        enter_autocast(self, mode.map(device_type), *args, **named)

    patches.replace(autocast, "__init__", init_autocast)
    run_backward = torch.autograd.graph._engine_run_backward

    def run_mapped(*args: Any, **named: Any) -> Any:
        # A mode is off within the torch function that it handles, and what a backward pass recomputes names devices.
        with mode:
            return run_backward(*args, **named)

    patches.replace_function(torch.autograd.graph, "_engine_run_backward", run_mapped)
