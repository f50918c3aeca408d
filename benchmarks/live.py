"""What it costs to compare ranks while they run, beside TORCH_DISTRIBUTED_DEBUG=DETAIL, in one run.

    python benchmarks/live.py [SIZES…]

Each rank is a process, on gloo over the loopback device. Figures are microseconds of an all_reduce of 64 floats as rank
0 sees it, the median of several rounds that are taken in turn; entering and leaving a block is not counted. "own" is
the time that the calling thread itself was at work. "record" is `RuleMode()`, which compares nothing. The ranks share
this machine's cores, so the figures of large groups say little.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch
import torch._dynamo  # imported by the first mode: not to be counted
import torch.distributed as dist

import collective_rules as cr

SIZES, ROUNDS, CALLS = (2, 4), 9, 300

MODES: dict[str, Callable[[], Any]] = {
    "no mode": contextlib.nullcontext,
    "record": cr.RuleMode,
    "exit": lambda: cr.RuleMode(agree="exit"),
    "N = 100": lambda: cr.RuleMode(agree=100),
    "always": lambda: cr.RuleMode(agree="always"),
    "DETAIL": contextlib.nullcontext,
}


def measure(rank: int, size: int, port: int) -> None:
    """Be one rank; rank 0 prints what was measured."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    plain = dist.new_group()
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    detail = dist.new_group()
    dist.set_debug_level(dist.DebugLevel.OFF)
    tensor = torch.zeros(64)
    rounds: dict[str, list[float]] = {name: [] for name in MODES}
    own: dict[str, list[float]] = {name: [] for name in MODES}
    for _ in range(ROUNDS):
        for name, mode in MODES.items():
            group = detail if name == "DETAIL" else plain
            with mode():
                for _ in range(CALLS // 10):
                    dist.all_reduce(tensor, group=group)
                start, worked = time.perf_counter(), time.thread_time()
                for _ in range(CALLS):
                    dist.all_reduce(tensor, group=group)
                rounds[name].append((time.perf_counter() - start) / CALLS * 1e6)
                own[name].append((time.thread_time() - worked) / CALLS * 1e6)
    if rank == 0:
        times = {name: statistics.median(values) for name, values in rounds.items()}
        print(f"\n{size} ranks   {'µs':>8}   ÷ no mode   ÷ record      own   spread")
        for name, value in times.items():
            spread = f"{min(rounds[name]):.0f} to {max(rounds[name]):.0f}"
            ratios = f"{value / times['no mode']:>9.2f}   {value / times['record']:>8.2f}"
            print(f"  {name:<8}{value:>9.0f}   {ratios}   {statistics.median(own[name]):>6.0f}   {spread}", flush=True)
    dist.barrier()
    os._exit(0)


def main() -> None:
    """Measure groups of each size."""
    for size in map(int, sys.argv[1:] or SIZES):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        children = []
        for rank in range(size):
            child = os.fork()
            if child == 0:
                measure(rank, size, port)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
