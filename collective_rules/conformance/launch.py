"""Writes the lines of a program that start its ranks on a backend, around its `run(rank, pg)`. Knows no op."""

from __future__ import annotations

import os
from pathlib import Path

import attrs


@attrs.frozen
class Launch:
    """The lines that start a program: `imports`, a `preamble` below them, `main` at the end; and its command."""

    imports: tuple[str, ...]
    preamble: tuple[str, ...]
    main: tuple[str, ...]
    command: str


def launch(backend: str, size: int, expects: bool, device: str = "cpu") -> Launch:
    """Return how to start `size` ranks of `backend`; with `expects`, each prints the expected values, too.

    The program makes its tensors on `device`, of which rank r takes the one with the number r modulo their count.

    >>> launch("gloo", 2, False).main[3:5]
    ('    dist.init_process_group("gloo")', '    rank = dist.get_rank()')
    """
    torchrun = f"torchrun --nproc-per-node {size} reproducer.py"
    shown = ['print(f"rank {rank}: {run(rank, dist.group.WORLD)}")']
    if expects:
        shown = [
            "got = run(rank, dist.group.WORLD)",
            'print(f"rank {rank}:\\n  got      {got}\\n  expected {EXPECTED[rank]}")',
        ]
    guard = ("", "", 'if __name__ == "__main__":')
    if backend == "threaded":
        return _threaded(size, guard, shown)
    imports: tuple[str, ...] = ()
    preamble: tuple[str, ...] = ()
    started: tuple[str, ...] = (f'dist.init_process_group("{backend}")', "rank = dist.get_rank()")
    if backend == "fake":
        imports = ("import os", "from torch.testing._internal.distributed.fake_pg import FakeStore")
        started = (
            'rank = int(os.environ["RANK"])',
            f'dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size={size})',
        )
    elif ":" in backend:
        imports, preamble, factory = _imported(backend)
        started = (
            f'dist.Backend.register_backend("under_test", {factory}, devices=["{device}"])',
            'dist.init_process_group("under_test")',
            "rank = dist.get_rank()",
        )
    if device != "cpu":
        index = "rank % torch.accelerator.device_count()"
        started = (*started, f"torch.accelerator.set_device_index({index})", f'torch.set_default_device("{device}")')
    lines = [*started, *shown, "dist.destroy_process_group()"]
    return Launch(imports, preamble, (*guard, *(f"    {line}" for line in lines)), torchrun)


def _imported(backend: str) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Return the imports of the factory of "package.module:name" or "/path/to/file.py:name", and its name then."""
    place, _, name = backend.rpartition(":")
    if not place.endswith(".py"):
        return (f"import {place}",), (), f"{place}.{name}"
    path = Path(os.path.abspath(place))
    lines = (
        "",
        f"sys.path.insert(0, {str(path.parent)!r})",
        f"factory = importlib.import_module({path.stem!r}).{name}",
    )
    return ("import importlib", "import sys"), lines, "factory"


def _threaded(size: int, guard: tuple[str, ...], shown: list[str]) -> Launch:
    """Return the lines for torch's threaded group, which keeps one world a thread once it is installed."""
    lines = [
        "_set_thread_isolation_mode(True)",
        "_install_threaded_pg()",
        "store = dist.HashStore()",
        f"threads = [threading.Thread(target=main, args=(rank, store)) for rank in range({size})]",
        "for thread in threads:",
        "    thread.start()",
        "for thread in threads:",
        "    thread.join()",
    ]
    main = [
        "def main(rank, store):",
        f'    dist.init_process_group("threaded", rank=rank, world_size={size}, store=store)',
        *(f"    {line}" for line in shown),
    ]
    imports = (
        "import threading",
        "from torch._C._distributed_c10d import _set_thread_isolation_mode",
        "from torch.testing._internal.distributed.multi_threaded_pg import _install_threaded_pg",
    )
    return Launch(imports, (), ("", "", *main, *guard, *(f"    {line}" for line in lines)), "python reproducer.py")
