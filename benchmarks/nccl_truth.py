"""Where a backend's table is wrong: `torchrun --nproc-per-node N benchmarks/nccl_truth.py`, on N GPUs.

It runs what the table speaks of on the real backend, and prints the disagreements: each reduce op and dtype, legal
calls of each op, and calls beyond each limit that all ranks find by themselves. Such a limit is wrong where the calls
pass. A limit that lets a backend hang or corrupt data is not tried: after a hang, the job could not go on.

Its own test needs no GPU: `torchrun --nproc-per-node 2 benchmarks/nccl_truth.py --backend gloo --device cpu`. The exit
status is 0 where the table is right, and 1 where it is wrong, or the run ended early.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator

warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch

import collective_rules as cr
from collective_rules.backends import limits_of
from collective_rules.conformance import torchrun
from collective_rules.conformance.examples import Calls, Example, ExamplePlan
from collective_rules.conformance.measure import ops_to_measure, plan_of
from collective_rules.conformance.process_runner import EndedError
from collective_rules.conformance.reproducer import reproducer
from collective_rules.conformance.selection import selection_of
from collective_rules.errors import CollectiveRulesError
from collective_rules.ops import Row
from collective_rules.sandbox import OK, RAISES, UNDEFINED, Result
from collective_rules.testing.device import checked_device


def main() -> int:
    """Be a rank of torchrun's job; return the exit status."""
    options = parsed()
    try:
        checked_device(options.device)
        if not torchrun.is_launched():
            raise CollectiveRulesError(f"start this with torchrun: torchrun --nproc-per-node 2 {sys.argv[0]}")
        plan = plan_of(options.backend, [torchrun.world_size()], options.examples, options.seed, options.limits)
        rows, _ = ops_to_measure(selection_of(options.select, [], plan.table), plan)
        if plan.table is None:
            raise CollectiveRulesError(f"there is no table of {options.backend}: name one by --limits")
    except CollectiveRulesError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if torchrun.is_follower():
        torchrun.follow(options.deadline, options.backend, options.device)
        return 0
    with torchrun.led(options.deadline, options.backend, options.device) as job:
        return Truth(job, plan, options).told(rows)


def parsed() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", default="nccl")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limits", help="the table; left out, the backend's own")
    parser.add_argument("--select", action="append", default=[], help="only these ops, such as 'c10d::*'; repeatable")
    parser.add_argument("--examples", type=int, default=10, help="legal calls of each op")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds for a call")
    parser.add_argument("--programs", action="store_true", help="print a program for each disagreement")
    return parser.parse_args()


class Truth:
    """The table beside the backend: `told` prints the disagreements."""

    def __init__(self, job: torchrun.Job, plan: ExamplePlan, options: argparse.Namespace) -> None:
        self.job, self.plan, self.options = job, plan, options
        self.wrong = self.tried = 0

    def told(self, rows: list[Row]) -> int:
        """Try every op, print where the table is wrong, and return the exit status."""
        ended = ""
        for row in rows:
            try:
                for _ in self._tried(row):
                    self.tried += 1
            except EndedError as error:
                ended = f" The run ended with {row.op}, after which its ranks cannot go on: {error.result}"
                break
        size, device = self.plan.sizes[0], self.options.device
        where = f"{size} ranks of {self.options.backend} on {device}, torch {torch.__version__}{versions(device)}"
        print(f"{where}: {self.tried} calls of {len(rows)} ops; the table is wrong about {self.wrong}.{ended}")
        return int(bool(self.wrong or ended))

    def _tried(self, row: Row) -> Iterator[None]:
        """Try the calls of one op, and yield after each."""
        if not self.plan.untaken(row):
            for example in self.plan.legal(row, None):
                self._judge(row, example.calls, True, "a legal call")
                yield
            for example in self._beyond(row):
                self._judge(row, example.calls, False, f"{example.id}, {example.change}")
                yield
        for (reduce_op, dtype), admitted, calls in self.plan.kinds(row):
            name = f"{reduce_op} {str(dtype).removeprefix('torch.')}".strip()
            if admitted or all(raises(one, self.plan.table) for one in calls):
                self._judge(row, calls, bool(admitted), name)
                yield

    def _beyond(self, row: Row) -> Iterator[Example]:
        """Yield the examples beyond a limit that every rank must find by itself."""
        for example in self.plan.broken(row, None):
            whole = len(example.calls) == self.plan.sizes[0]
            if example.way.startswith("beyond ") and whole and all(raises(o, self.plan.table) for o in example.calls):
                yield example

    def _judge(self, row: Row, calls: Calls, admitted: bool, name: str) -> None:
        try:
            result = self.job.carry_out(calls)
        except CollectiveRulesError as error:  # the calls cannot be made here at all
            print(f"{row.op}: {name}: not tried: {error}", flush=True)
            return
        if result.outcome != UNDEFINED and (result.outcome == OK) != admitted:
            self.wrong += 1
            self._print(row, calls, result, name, admitted)

    def _print(self, row: Row, calls: Calls, result: Result, name: str, admitted: bool) -> None:
        says = "takes" if admitted else "refuses"
        print(f"{row.op}: the table says that it {says} {name}: {result.outcome}", flush=True)
        for line in result.message.splitlines()[:2]:
            print(f"    {line[:200]}", flush=True)
        if self.options.programs:
            print(reproducer(calls, self.options.backend, result, device=self.options.device), flush=True)


def raises(call: cr.Call, table: str | None) -> bool:
    """Return whether the table says that this rank raises, where the limits say what follows."""
    errors = [found for found in cr.check(call, table) if found.severity == "error"]
    return bool(errors) and all(follows(found.id, call, table) in ("", RAISES) for found in errors)


def follows(id: str, call: cr.Call, table: str | None) -> str:
    """Return what the table says of a call beyond a limit, such as "raises"; "" where it does not say."""
    return next((str(getattr(each, "follows", "")) for each in limits_of(table, call.row) if each.id == id), "")


def versions(device: str) -> str:
    """Return the versions that a table of NCCL may depend on."""
    if device != "cuda":
        return ""
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]  # torch's
    return f", NCCL {nccl}, {torch.cuda.get_device_name()}, compute capability {torch.cuda.get_device_capability()}"


if __name__ == "__main__":
    sys.exit(main())
