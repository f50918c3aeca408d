"""What the dispatch mode costs: over no mode, an empty mode and torch's CommDebugMode, in one run.

    python benchmarks/mode.py

Each figure is the least of several rounds, taken in turn, of this thread's own time: other work on the machine counts
little. "÷ CommDebugMode" compares what a mode adds over the empty one. The process group is torch's fake one, which
sends nothing.
"""

from __future__ import annotations

import contextlib
import time
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import collective_rules as cr

ROUNDS, CALLS, STEPS = 15, 300, 100


class EmptyMode(TorchDispatchMode):
    """The least that a mode can do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


MODES: dict[str, Callable[[], Any]] = {
    "no mode": contextlib.nullcontext,
    "empty mode": EmptyMode,
    "CommDebugMode": CommDebugMode,
    "record": cr.RuleMode,
    "check": lambda: cr.RuleMode(check=True),
    "execute=False": lambda: cr.RuleMode(execute=False),
}


def seconds(act: Callable[[], Any], calls: int) -> float:
    """Return the seconds of one call, of so many."""
    start = time.thread_time()
    for _ in range(calls):
        act()
    return (time.thread_time() - start) / calls


def measure(act: Callable[[], Any], calls: int, modes: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Return microseconds a call under each mode, the least of all rounds."""
    rounds: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(ROUNDS):
        for name, mode in modes.items():
            with mode():
                seconds(act, max(1, calls // 20))
                rounds[name].append(seconds(act, calls) * 1e6)
    return {name: min(values) for name, values in rounds.items()}


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> None:
    """Do one step of data parallel training by hand."""
    model(inputs).square().mean().backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    """Measure and print."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    tensor, gathered = torch.zeros(16), torch.zeros(128)
    model = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()) for _ in range(4)])
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    inputs = torch.ones(32, 64)
    acts: dict[str, tuple[Callable[[], Any], int]] = {
        "dist.all_reduce": (lambda: dist.all_reduce(tensor), CALLS),
        "dist.all_gather_into_tensor": (lambda: dist.all_gather_into_tensor(gathered, tensor), CALLS),
        "functional all_reduce, waited": (
            lambda: functional.wait_tensor(functional.all_reduce(tensor, "sum", dist.group.WORLD)),
            CALLS,
        ),
        "aten.add_": (lambda: tensor.add_(1), 5 * CALLS),
        "a training step": (lambda: train(model, optimizer, inputs), STEPS),
    }
    print(f"{'µs a call':32}", *(f"{name:>14}" for name in MODES))
    for name, (act, calls) in acts.items():
        # CommDebugMode fails on a plain nested module that is run twice (its stack of names runs empty).
        modes = {mode: make for mode, make in MODES.items() if calls != STEPS or mode != "CommDebugMode"}
        found = measure(act, calls, modes)
        print(f"{name:32}", *(f"{found[mode]:14.2f}" if mode in found else f"{'-':>14}" for mode in MODES))
        empty = found["empty mode"]
        print(
            f"{'  ÷ empty mode':32}",
            *(f"{found[mode] / empty:14.2f}" if mode in found else f"{'-':>14}" for mode in MODES),
        )
        peer = found.get("CommDebugMode", empty) - empty
        if peer:
            added = {mode: (found[mode] - empty) / peer for mode in ("record", "check", "execute=False")}
            columns = (f"{added[mode]:14.2f}" if mode in added else f"{'':>14}" for mode in MODES)
            print(f"{'  added, ÷ CommDebugMode':32}", *columns)
    tracemalloc.start()
    with cr.RuleMode() as ledger:
        before = tracemalloc.get_traced_memory()[0]
        seconds(lambda: dist.all_reduce(tensor), 10_000)
        after = tracemalloc.get_traced_memory()[0]
    print(f"memory of the ledger: {(after - before) / ledger.count:.0f} bytes a call")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
