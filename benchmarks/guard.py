"""What a guard costs: over no guard, an empty dispatch mode, torch's CommDebugMode and TORCH_DISTRIBUTED_DEBUG=DETAIL.

    python benchmarks/guard.py

Each figure is the least of several rounds, taken in turn, of this thread's own time: other work on the machine counts
little. The process group is torch's fake one, which sends nothing. The last table are steps of two real gloo ranks, of
which each round is timed by the clock.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
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

ROUNDS, CALLS, STEPS, LAYERS = 15, 300, 30, 12


class EmptyMode(TorchDispatchMode):
    """The least that a mode can do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


WAYS: dict[str, Callable[[], Any]] = {
    "no guard": contextlib.nullcontext,
    "empty mode": EmptyMode,
    "CommDebugMode": CommDebugMode,
    "guard: record": lambda: cr.guard(check=False, agree=False),
    "guard: check": lambda: cr.guard(agree=False),
    "RuleMode: check": lambda: cr.RuleMode(check=True),
}


def seconds(act: Callable[[], Any], calls: int) -> float:
    """Return the seconds of one call, of so many."""
    start = time.thread_time()
    for _ in range(calls):
        act()
    return (time.thread_time() - start) / calls


def measure(act: Callable[[], Any], calls: int, without: str = "") -> dict[str, float]:
    """Return microseconds a call in each way, the least of all rounds."""
    ways = {name: way for name, way in WAYS.items() if name != without}
    rounds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            with way():
                seconds(act, max(1, calls // 20))
                rounds[name].append(seconds(act, calls) * 1e6)
    return {name: min(values) for name, values in rounds.items()}


def table(title: str, micros: dict[str, float]) -> None:
    """Print the times, over no guard, and what is added as a share of what an empty mode adds."""
    bare, empty = micros["no guard"], micros["empty mode"] - micros["no guard"]
    print(f"\n{title}")
    for name, each in micros.items():
        adds = (each - bare) / empty
        print(f"  {name:<16} {each:>10.1f} µs   {each / bare:>5.2f} ×   adds {adds:>6.2f} of an empty mode")


def layers() -> Callable[[], None]:
    """Return one training step of small layers, with an all_reduce for each."""
    model = torch.nn.Sequential(*[layer for _ in range(LAYERS) for layer in (torch.nn.Linear(16, 16), torch.nn.ReLU())])
    optimizer, inputs = torch.optim.SGD(model.parameters(), lr=1e-3), torch.randn(8, 16)

    def step() -> None:
        model(inputs).square().mean().backward()
        for layer in model[::2]:
            dist.all_reduce(layer.weight.grad)  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    return step


RANK = """
import os, sys, time, torch, torch.distributed as dist, contextlib
import collective_rules as cr
way, rounds = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo")
torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(*[layer for _ in range(4) for layer in (torch.nn.Linear(512, 512), torch.nn.ReLU())])
model = torch.nn.parallel.DistributedDataParallel(model)
optimizer, inputs = torch.optim.SGD(model.parameters(), lr=1e-3), torch.randn(64, 512)
def steps(count):
    for _ in range(count):
        model(inputs).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
steps(10)
best = {"bare": [], "guarded": []}
for _ in range(rounds):
    for name in best:
        guard = contextlib.nullcontext() if name == "bare" else cr.guard(agree=False if way == "check" else int(way))
        dist.barrier()
        with guard:
            start = time.perf_counter()
            steps(20)
            best[name].append(time.perf_counter() - start)
if dist.get_rank() == 0:
    print(f"{min(best['bare']) / 20 * 1e3:.2f} {min(best['guarded']) / 20 * 1e3:.2f}")
"""


def ranks(way: str, rounds: int = 8) -> tuple[float, float]:
    """Return the milliseconds of a DDP step of two gloo ranks, bare and guarded, taken in turn in the same job."""
    with tempfile.TemporaryDirectory() as folder:
        script = os.path.join(folder, "rank.py")
        with open(script, "w", encoding="utf-8") as file:
            file.write(RANK)
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
        ended = subprocess.run([*start, way, str(rounds)], capture_output=True, text=True, timeout=600, check=True)
    bare, guarded = ended.stdout.split()[-2:]
    return float(bare), float(guarded)


def main() -> None:
    """Measure and print."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
    tensor, group = torch.ones(1024), dist.group.WORLD
    table("dist.all_reduce", measure(lambda: dist.all_reduce(tensor), CALLS))
    gathered = torch.empty(8192)
    table("dist.all_gather_into_tensor", measure(lambda: dist.all_gather_into_tensor(gathered, tensor), CALLS))
    table("functional all_reduce", measure(lambda: functional.all_reduce(tensor, "sum", group).sum(), CALLS))
    table("aten.add_", measure(lambda: tensor.add_(1), CALLS))
    table(f"a training step of {LAYERS} layers", measure(layers(), STEPS, without="CommDebugMode"))
    dist.destroy_process_group()
    print("\nA DDP step of two gloo ranks, in turn in one job")
    for way, says in (("check", "check"), ("100", "check, and agree=100")):
        bare, guarded = ranks(way)
        print(f"  {says:<22} {bare:>7.2f} ms bare, {guarded:>7.2f} ms guarded, {guarded / bare:.3f} ×")


if __name__ == "__main__":
    main()
