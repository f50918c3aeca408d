"""What comparing ranks adds to a collective of W ranks: the real protocol at a real TCPStore, without tensors.

    python benchmarks/live_size.py [SIZES…]

Ranks are simulated: each has its own connections to the store, its own session and its own watchdog's work, and posts
what a real rank posts, but nothing is sent afterwards. A few threads take the ranks' turns, so that the store has
several messages to serve at once; the store's server is a process of its own. "in all" is the time from the first
rank's post to the last rank's release, on this one machine: on a job's machines the ranks' own share of it is spent on
W machines at once. So "server" is told apart: the processor time of the store's process, which no further machine can
share. "trip" is a bare set and get of one client, in the same minute.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import warnings
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

import torch
import torch.distributed as dist

import collective_rules as cr
from collective_rules.ledger import CallFacts, Ledger
from collective_rules.live.rendezvous import Rendezvous
from collective_rules.live.running_hash import RunningHash
from collective_rules.live.session import Session
from collective_rules.live.store import RankStore
from collective_rules.live.watchdog import Watchdog

SIZES, EVERY, THREADS, LIMIT = (64, 256, 1024, 4096), 100, 16, timedelta(seconds=120)


class Client(RankStore):
    """A simulated rank's store: one connection, for whichever thread."""

    def __init__(self, port: int) -> None:
        self._prefix, self._patience = "size", LIMIT
        self._store = dist.TCPStore("127.0.0.1", port, None, False, LIMIT, wait_for_workers=False)
        self._local = type("Connection", (), {})()  # type: ignore[assignment]  # not one for each thread
        self._local.store = dist.PrefixStore(self._prefix, self._store)

    def connect(self) -> Any:
        """Return the one connection."""
        return self._local.store


class Simulated:
    """One rank: what it posts for a collective, and what it does to be released."""

    def __init__(self, rank: int, size: int, port: int) -> None:
        ranks = tuple(range(size))
        self.session = Session(Client(port), rank, ranks, 60.0, lambda findings: None, deque(maxlen=100), how="always")
        self.group = cr.Group(size, rank, "0", ranks)
        call = cr.call("c10d::allreduce_", group=self.group, tensors=[cr.Spec((1024,), torch.float32)])
        self.entry = Ledger(0).enter(CallFacts.of(call, "gloo"), "train.py:88", "", "", 0.0, True)
        self.entry.asynchronous = False
        self.rendezvous, self.watchdog = Rendezvous(self.session), Watchdog(self.session)
        self.running = RunningHash("group", self.group)
        self.open: list[Any] = []
        self.rendezvous._wait = self.open.append  # type: ignore[method-assign]  # the wait comes when all have posted

    def meet(self, index: int) -> None:
        """Do what `agree="always"` does before a collective, up to its wait."""
        self.rendezvous.meet(self.entry, index, "group", "gloo")

    def be_released(self) -> None:
        """Wait as the rank that met does."""
        for meeting in self.open:
            Rendezvous._wait(self.rendezvous, meeting)
        self.open.clear()
        self.watchdog._clean(2)

    def close_window(self, count: int) -> None:
        """Do what `agree=100` does after a hundred collectives."""
        self.session.windows.append((f"window {count}/", self.group, 123456789 * count, count))
        self.watchdog._compare_windows()

    def look(self) -> None:
        """Do what a rank's watchdog does at each look while calls are made."""
        self.watchdog._hear()
        self.session.post_last()


def serve(writer: int) -> None:
    """Be the store's process."""
    store = dist.TCPStore("127.0.0.1", 0, None, True, LIMIT, wait_for_workers=False)
    os.write(writer, b"%d\n" % store.port)
    time.sleep(100_000)


def worked(pid: int) -> float:
    """Return the processor seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def trip_of(port: int) -> float:
    """Return the seconds of a bare set and get, the median of many."""
    client, times = Client(port), []
    for _ in range(300):
        start = time.perf_counter()
        client.set("trip", b"x" * 100)
        client.get("trip")
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(size: int, port: int, server: int) -> None:
    """Print what one size costs."""
    start = time.perf_counter()
    threads = ThreadPoolExecutor(THREADS)
    with ThreadPoolExecutor(256) as connecting:  # a name server that does not answer takes seconds for each
        ranks = [*connecting.map(lambda rank: Simulated(rank, size, port), range(size))]
    joined = time.perf_counter() - start
    rounds = max(5, 5000 // size)
    _always(threads, ranks, 0)  # the first comparison is not alike any other
    trip = trip_of(port)
    figures = {}
    for name, act in (("always", _always), ("N = 100", _window), ("looks", _looks)):
        before, start = worked(server), time.perf_counter()
        for index in range(1, rounds + 1):
            act(threads, ranks, index)
        figures[name] = ((time.perf_counter() - start) / rounds, (worked(server) - before) / rounds)
    tick, (window, window_server) = ranks[0].session.tick, figures["N = 100"]
    always, always_server = figures["always"]
    print(
        f"{size:>6} {joined:>7.1f} {trip * 1e6:>8.0f} {always * 1e3:>10.1f} {always_server * 1e3:>8.1f} "
        f"{always / size / trip:>8.2f} {window * 1e3 / EVERY:>10.3f} {window_server * 1e3 / EVERY:>8.3f} "
        f"{figures['looks'][1] / tick:>8.1%}",
        flush=True,
    )


def _always(threads: ThreadPoolExecutor, ranks: list[Simulated], index: int) -> None:
    list(threads.map(lambda rank: rank.meet(index), ranks))
    list(threads.map(Simulated.be_released, ranks))


def _window(threads: ThreadPoolExecutor, ranks: list[Simulated], index: int) -> None:
    list(threads.map(lambda rank: rank.close_window(index * EVERY), ranks))


def _looks(threads: ThreadPoolExecutor, ranks: list[Simulated], index: int) -> None:
    list(threads.map(Simulated.look, ranks))


def main() -> None:
    """Measure each size, with a store of its own."""
    print(
        "     W  join s  trip µs  always ms   server  ÷W÷trip  N=100 ms   server  looks\n"
        "                         a collective, in all    of W trips   a collective      of the server"
    )
    for size in map(int, sys.argv[1:] or SIZES):
        reader, writer = os.pipe()
        server = os.fork()
        if server == 0:
            serve(writer)
        port = int(os.read(reader, 20))
        if os.fork() == 0:
            measure(size, port, server)
            os._exit(0)
        os.wait()
        os.kill(server, 9)
        os.wait()


if __name__ == "__main__":
    main()
