"""Put the tensors of a program for an accelerator on the cpu, and answer the program's questions about its GPU.

Only the program sees a GPU; torch's own code sees none. `Tensor.device` says cpu.
"""

from __future__ import annotations

import collections
import contextlib
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from collective_rules.dryrun.attention import attend, is_distributed_attention
from collective_rules.dryrun.host_tensors import MAKERS, HostTensors
from collective_rules.dryrun.patches import Patches, calling_module
from collective_rules.mode.call_sites import is_program

_KINDS = ("cuda", "xpu", "hpu", "npu", "mtia", "mps")
_NAME = re.compile(rf"(?:{'|'.join(_KINDS)})(?::\d+)?\Z")


def on_cpu(device: Any) -> Any:
    """Return the cpu for an accelerator, and any other value as it is.

    >>> on_cpu(torch.device("cuda", 3)), on_cpu("cuda:1"), on_cpu("meta"), on_cpu(None)
    (device(type='cpu'), 'cpu', 'meta', None)
    """
    if isinstance(device, torch.device):
        return torch.device("cpu") if device.type in _KINDS else device
    if isinstance(device, str):
        return "cpu" if _NAME.match(device) else device
    return device


_MOVES = (torch.Tensor.cpu, torch.Tensor.to)


class DeclaredDevices(TorchFunctionMode):
    """Puts on the cpu what the program puts on an accelerator; calls `seen` with its type, and keeps all in `kinds`.

    `used`: the accelerators that hold something. `host`: the tensors that are on the cpu in a real run, too.
    `default_is_host`: whether a tensor goes to the cpu where the program names no device.
    """

    def __init__(self, seen: Callable[[str], object]) -> None:
        super().__init__()
        self._tell = seen
        self.kinds: set[str] = set()
        self.used: dict[str, None] = {}
        self.host = HostTensors()
        self.default_is_host = True

    def name(self, kind: str) -> None:
        """Note an accelerator that the program names, and may not use."""
        self.kinds.add(kind)
        self._tell(kind)

    def _seen(self, kind: str) -> None:
        self.used[kind] = None
        self.name(kind)

    def types_in_a_real_run(self, tensors: list[torch.Tensor]) -> tuple[str, ...]:
        """Return the device types of the tensors of a call in a real run, with "meta" where they are only likely."""
        return ("cpu",) if self.used and self.host.has_all(tensors) else (*self.used, "cpu", "meta")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call `func` with every accelerator replaced by the cpu."""
        named: dict[str, Any] = dict(kwargs) if kwargs else {}
        if func is torch.device:  # the program may look at a device; it is mapped where it is used
            return func("cuda", *args) if args and type(args[0]) is int else func(*args, **named)
        if func in (torch.Tensor.cuda, torch.Tensor.xpu):
            self._seen(func.__name__)
            self.host.discard(args[0])
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
        mapped = tuple(self.map(value) for value in args)
        device = named.get("device")
        if device is not None:
            named["device"] = self.map("cuda" if type(device) is int else device)
        return self._noted(func(*mapped, **named), func, args, device)

    def _noted(self, result: Any, func: Any, args: tuple[Any, ...], device: Any) -> Any:
        """Return the result of a function, having noted whether it is on the cpu in a real run, too."""
        if func in MAKERS:
            if (device == "cpu" or (device is None and self.default_is_host)) and _is_called_by_program():
                self.host.add(result)
        elif func in _MOVES and self.used and (func is torch.Tensor.cpu or "cpu" in (device, *args[1:2])):
            if _is_called_by_program() and not self.host.has_all((result,)):
                result = result.clone() if result is args[0] else result  # as a real run copies it from the accelerator
                self.host.add(result)
        elif self.host and any(isinstance(each, torch.device) or on_cpu(each) is not each for each in (device, *args)):
            self.host.discard(result)  # on the accelerator, or on the device of another tensor
        return result

    def map(self, device: Any) -> Any:
        """Return `on_cpu(device)`, and call `seen` for an accelerator."""
        if isinstance(device, (torch.device, str)):
            mapped = on_cpu(device)
            if mapped is not device:
                self._seen(device.type if isinstance(device, torch.device) else device.partition(":")[0])
            return mapped
        return device


class _Stream:
    """A stream or an event of no device: its work is done already."""

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


class _Runtime:
    """The CUDA runtime: each call is done already, and without an error."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_, **__: 0


def patch_devices(patches: Patches, devices: DeclaredDevices, count: int, index: int) -> None:
    """Have torch.cuda answer as with `count` devices, and `index` the current one."""
    current = [index]

    def set_device(original: object, device: Any) -> None:
        devices.map("cuda")
        number = device if isinstance(device, int) else torch.device(device).index
        current[0] = current[0] if number is None else number

    def current_device(original: object) -> int:
        return current[0]

    def device_count(original: Callable[[], int]) -> int:
        return original() if _is_asked_by_torch() else count

    def get_rng_state_all(original: object) -> list[torch.Tensor]:
        return [torch.get_rng_state()] * count

    patches.replace(set_device, current_device, device_count, get_rng_state_all)
    _patch_entrances(patches, devices)


def _answer(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def _make(factory: Callable[[], Any]) -> Callable[..., Any]:
    return lambda *_, **__: factory()


_MEMORY = 80 * 2**30
_nothing = _answer(None)
_zero = _answer(0)
_true = _answer(True)
_false = _answer(False)
_no_text = _answer("")
_allocator = _answer("native")
_device_name = _answer("dry run")
_capability = _answer((9, 0))
_free_and_all_memory = _answer((_MEMORY, _MEMORY))
_nccl_version = _answer((2, 27, 0))
_CUDA_VERSION = "12.8"
_memory_stats = _make(lambda: collections.defaultdict(int))
_memory_snapshot = _make(list)
_snapshot = _make(lambda: {"segments": [], "device_traces": []})
_get_rng_state = _make(torch.get_rng_state)
_current_stream = _make(_Stream)
_cudart = _make(_Runtime)
_properties = _answer(
    types.SimpleNamespace(
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
)


def _is_asked_by_torch() -> bool:
    return f"{calling_module()}.".startswith("torch.")


def _is_called_by_program() -> bool:
    return is_program(sys._getframe(3).f_code.co_filename)  # past `_noted` and `__torch_function__`


def _is_available(original: Callable[[], bool]) -> bool:
    return original() if _is_asked_by_torch() else True


def _current_accelerator(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
    return original(*args, **named) if _is_asked_by_torch() else torch.device("cuda")


@contextlib.contextmanager
def _context(original: object, *_: Any, **__: Any) -> Iterator[None]:
    yield


def _patch_entrances(patches: Patches, devices: DeclaredDevices) -> None:
    """Map the devices that reach torch elsewhere than by a torch function."""

    def parse_to(parse: Callable[..., Any], *args: Any, **named: Any) -> Any:
        mapped = (devices.map("cuda" if type(value) is int else value) for value in args)
        return parse(*mapped, **{name: devices.map(value) for name, value in named.items()})

    def set_default_device(original: Callable[..., None], device: Any) -> None:
        chosen = "cuda" if device == 0 else device
        devices.default_is_host = on_cpu(chosen) is chosen
        original(devices.map(chosen))

    base = torch.Generator

    class Generator(base):  # type: ignore[valid-type, misc]
        def __new__(cls, device: Any = "cpu") -> Any:
            return base.__new__(cls, devices.map(device))  # type: ignore[call-arg]

        def __init__(self, device: Any = "cpu") -> None:
            super().__init__()

    def init_autocast(init: Callable[..., None], autocast: Any, device_type: str, *args: Any, **named: Any) -> None:
        init(autocast, devices.map(device_type), *args, **named)

    def run_backward(run: Callable[..., Any], *args: Any, **named: Any) -> Any:
        # A mode is off within the torch function that it handles, and what a backward pass recomputes names devices.
        with devices:
            return run(*args, **named)

    patches.replace(parse_to, set_default_device, init_autocast, run_backward, Generator)
