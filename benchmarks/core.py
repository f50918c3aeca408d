"""Times of the core against named peers, all measured in this run: `python benchmarks/core.py [--json]`.

Peers: a dict lookup, torch's FakeTensorMode running the same op, and a hand-written lambda that makes the same result.
Times are the best of several repeats; only the ratios mean anything on another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import timeit
import warnings
from collections.abc import Callable
from typing import Any

import attrs

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")

import torch
import torch.distributed._functional_collectives
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

import collective_rules as cr

GROUP = cr.Group(size=8, rank=3)
OP = torch.ops._c10d_functional.all_gather_into_tensor.default


@attrs.frozen
class Row:
    """One measurement: `seconds` of ours, `peer_seconds` of the peer's, and the ratio that is wanted."""

    what: str
    seconds: float
    peer: str
    peer_seconds: float
    wanted: str
    met: bool

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return self.seconds / self.peer_seconds


def best(function: Callable[[], Any], number: int = 5000, repeat: int = 9) -> float:
    """Return the seconds that one call of `function` takes, the best of `repeat` runs."""
    return min(timeit.repeat(function, number=number, repeat=repeat)) / number


def import_seconds() -> float:
    """Return what `import collective_rules` takes in a fresh process that has imported torch: a median of five.

    Bytecode is cached first, as pip does when it installs the package.
    """
    code = (
        "import warnings; warnings.simplefilter('ignore'); import torch, time; start = time.perf_counter(); "
        "import collective_rules; print(time.perf_counter() - start)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        for _ in range(6)
    ]
    return statistics.median(float(run.stdout) for run in runs[1:])


def by_hand(call: cr.Call) -> dict[str, cr.Spec]:
    """What `infer` makes of this one op, written by hand."""
    spec = call.arguments["input"]
    return {"output": cr.Spec((call.group.size * spec.shape[0], *spec.shape[1:]), spec.dtype, device=spec.device)}


def fake_seconds() -> float:
    """Return what the op takes under FakeTensorMode."""
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=3, world_size=8)
    try:
        name = torch.distributed.group.WORLD.group_name
        with FakeTensorMode():
            tensor = torch.empty(16, 4, dtype=torch.bfloat16)
            return best(lambda: OP(tensor, 8, name), number=300)
    finally:
        torch.distributed.destroy_process_group()


def measure() -> list[Row]:
    """Measure everything."""
    spec = cr.Spec((16, 4), torch.bfloat16)
    call = cr.call(OP, group=GROUP, input=spec)
    assert cr.infer(call) == by_hand(call)
    assert cr.check(call) == ()
    table = {OP: cr.lookup(OP)}
    tensor = torch.empty(16, 4, dtype=torch.bfloat16)

    plain = best(lambda: table[OP], number=50_000)
    infer = best(lambda: cr.infer(call))
    fake = fake_seconds()
    hand = best(lambda: by_hand(call))
    rows = [
        _at_most("import, beyond torch", import_seconds(), "60 ms", 0.060, 1),
        _at_most("lookup(OpOverload)", best(lambda: cr.lookup(OP), number=50_000), "dict lookup", plain, 3),
        _at_most("infer(call)", infer, "FakeTensorMode", fake, 1 / 50),
        _at_most("infer(call)", infer, "hand-written lambda", hand, 2),
    ]
    both = {
        "call + check, functional": lambda: cr.check(cr.call(OP, group=GROUP, input=(16, 4))),
        "call + check, c10d": lambda: cr.check(
            cr.call("c10d::_allgather_base_", group=GROUP, input_tensor=(16, 4), output_tensor=(128, 4))
        ),
        "call + check, a list": lambda: cr.check(cr.call("c10d::allreduce_", group=GROUP, tensors=[(16, 4)])),
    }
    rows += [_at_most(what, best(function), "5 µs", 5e-6, 1) for what, function in both.items()]
    more = {
        "call + check, a real tensor": lambda: cr.check(cr.call(OP, group=GROUP, input=tensor)),
        "call + check for gloo": lambda: cr.check(cr.call(OP, group=GROUP, input=(16, 4)), "gloo"),
        "infer, sizes never seen": _fresh_sizes(),
    }
    return rows + [Row(what, best(function), "FakeTensorMode", fake, "", True) for what, function in more.items()]


def _fresh_sizes() -> Callable[[], Any]:
    """Every call has another shape: no cache could help."""
    sizes = iter(range(1, 10_000_000))
    return lambda: cr.infer(cr.call(OP, group=GROUP, input=(next(sizes), 4)))


def _at_most(what: str, seconds: float, peer: str, peer_seconds: float, factor: float) -> Row:
    wanted = f"≤ {factor:g}×" if factor >= 1 else f"≤ 1/{1 / factor:g}"
    return Row(what, seconds, peer, peer_seconds, wanted, seconds <= factor * peer_seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    rows = measure()
    if options.json:
        print(json.dumps([attrs.asdict(row) | {"ratio": row.ratio} for row in rows], indent=2))
        return
    table = Table("what", "µs", "peer", "peer's µs", "ratio", "wanted", "met", title=f"torch {torch.__version__}")
    for row in rows:
        ratio = f"{row.ratio:.2f}" if row.ratio >= 0.1 else f"1/{1 / row.ratio:.0f}"
        met = "" if not row.wanted else "yes" if row.met else "no"
        table.add_row(
            row.what, f"{row.seconds * 1e6:.2f}", row.peer, f"{row.peer_seconds * 1e6:.2f}", ratio, row.wanted, met
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
