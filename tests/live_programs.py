"""What ranks do in the tests of the guard: each program is one function of the rank and the group size."""

import contextlib
import importlib
import os
import runpy
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState, post_localSGD_hook
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import PostLocalSGDOptimizer
from torch.nn.parallel import DistributedDataParallel

from collective_rules import DisagreementError, RuleMode, guard, recordings
from collective_rules.live import rendezvous, store
from tests.leaks import held

ones = torch.ones


def carry_out(name: str, rank: int, size: int, agree: Any, deadline: float) -> dict[str, Any]:
    """Run a program under the guard, or by itself for `agree=None`, and say how it ended.

    `name`: a function of this module, or "module:function" of another one of the tests.
    """
    module, _, function = name.rpartition(":")
    program = getattr(importlib.import_module(f"tests.{module}"), function) if module else globals()[name]
    prepared = getattr(program, "prepare", lambda: ())()
    dist.barrier()
    start, extra, cause, through = time.monotonic(), None, "", False
    noted: list[str] = []
    outcome, message, findings = "passed", "", []
    try:
        if agree is None:
            extra = program(rank, size, *prepared)
        else:
            mode: Any = guard(deadline=deadline) if agree == "guard" else RuleMode(agree=agree, deadline=deadline)
            try:
                with mode:
                    extra = program(rank, size, *prepared)
                    through = True
            finally:
                noted = [found.severity for found in mode.ledger.findings]
    except BaseException as error:
        outcome, message = type(error).__name__, str(error)
        cause = type(error.__cause__).__name__ if error.__cause__ is not None else ""
        if isinstance(error, DisagreementError):
            findings = [(found.id, found.severity, found.ranks) for found in error.findings]
    return {
        "outcome": outcome,
        "seconds": time.monotonic() - start,
        "message": message,
        "findings": findings,
        "cause": cause,
        "noted": noted,
        "extra": extra,
        "through": through,
    }


def with_groups(count: int) -> Callable[[Any], Any]:
    """Give a program groups of all ranks, made before the block."""

    def mark(program: Any) -> Any:
        program.prepare = lambda: [dist.new_group() for _ in range(count)]
        return program

    return mark


def clean(rank: int, size: int) -> None:
    for _ in range(20):
        dist.all_reduce(ones(8))
    dist.barrier()
    dist.all_gather_into_tensor(ones(size * 4), ones(4))
    assert funcol.all_reduce(ones(3), "sum", dist.group.WORLD).sum() == 3 * size
    dist.all_reduce(ones(3), async_op=True).wait()
    dist.all_gather([ones(2, 3) for _ in range(size)], ones(2, 3))
    dist.gather(ones(2), [ones(2) for _ in range(size)] if rank == 0 else None, dst=0)
    dist.scatter(ones(2), [ones(2) for _ in range(size)] if rank == 1 else None, src=1)
    splits = [rank + 1] * size
    dist.all_to_all_single(ones(sum(range(1, size + 1))), ones(sum(splits)), [*range(1, size + 1)], splits)
    if rank == 0:
        dist.send(ones(3), 1)
        dist.isend(ones(4), 1, tag=7).wait()
    elif rank == 1:
        dist.recv(ones(3), 0)
        dist.irecv(ones(4), 0, tag=7).wait()
    right, left = (rank + 1) % size, (rank - 1) % size
    for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, ones(2), right), dist.P2POp(dist.irecv, ones(2), left)]):
        work.wait()


def more_bytes(rank: int, size: int) -> None:
    dist.broadcast(ones(8 if rank == 0 else 4), 0)


def fewer_bytes(rank: int, size: int) -> None:
    dist.broadcast(ones(4 if rank == 0 else 8), 0)


def other_dtype(rank: int, size: int) -> None:
    dist.all_reduce(ones(8, dtype=torch.int32 if rank == 1 else torch.float32))


def other_shape(rank: int, size: int) -> None:
    dist.all_reduce(ones(2, 3) if rank == 1 else ones(3, 2))


def other_reduce_op(rank: int, size: int) -> None:
    dist.all_reduce(ones(3), op=dist.ReduceOp.MAX if rank == 1 else dist.ReduceOp.SUM)


def other_root(rank: int, size: int) -> None:
    dist.broadcast(ones(3), 1 if rank == 1 else 0)


def other_collective(rank: int, size: int) -> None:
    dist.barrier() if rank == 1 else dist.all_reduce(ones(3))


def swapped(rank: int, size: int) -> None:
    calls = [lambda: dist.all_reduce(ones(3)), lambda: dist.broadcast(ones(3), 0)]
    for call in reversed(calls) if rank == 1 else calls:
        call()


def other_splits(rank: int, size: int) -> None:
    counts = [1] * size
    sent = [3 if rank == 0 and peer == 1 else 1 for peer in range(size)]
    dist.all_to_all_single(ones(sum(counts)), ones(sum(sent)), counts, sent)


def after_a_call(culprit: int, act: Callable[[], Any]) -> Callable[[int, int], None]:
    """Return a program in which one rank acts between two calls; it leaves the second out if `act` returns True."""

    def program(rank: int, size: int) -> None:
        dist.all_reduce(ones(3))
        if rank != culprit or not act():
            dist.all_reduce(ones(3))

    return program


def stop() -> None:
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGSTOP)


def fail() -> None:
    raise KeyError("no such batch")


one_less, root_leaves = (after_a_call(rank, lambda: True) for rank in (1, 0))
stops, root_stops = (after_a_call(rank, stop) for rank in (1, 0))
ends, root_ends = (after_a_call(rank, lambda: os._exit(3)) for rank in (1, 0))
raises = after_a_call(1, fail)
dawdles = after_a_call(1, lambda: time.sleep(6))


def message(
    sizes: tuple[int, int] = (3, 3), tags: tuple[int, int] = (0, 0), *, waits: bool = True
) -> Callable[[int, int], None]:
    """Return a program in which rank 0 sends to rank 1, each with its own size and tag."""
    send, receive = (dist.send, dist.recv) if waits else (dist.isend, dist.irecv)

    def program(rank: int, size: int) -> None:
        if rank < 2:
            work = (send, receive)[rank](ones(sizes[rank]), 1 - rank, tag=tags[rank])
            if not waits:
                work.wait()

    return program


message_size, async_message_size = (message(sizes=(3, 4), waits=waits) for waits in (True, False))
message_tag, async_message_tag = (message(tags=(1, 2), waits=waits) for waits in (True, False))


@with_groups(2)
def crossed_async(rank: int, size: int, first: Any, second: Any) -> None:
    groups = (first, second) if rank == 0 else (second, first)
    for _ in range(3):
        for work in [dist.all_reduce(ones(3), group=group, async_op=True) for group in groups]:
            work.wait()
        for result in [funcol.all_reduce(ones(3), "sum", group) for group in groups]:
            assert result.sum() == 3 * size


@with_groups(2)
def crossed(rank: int, size: int, first: Any, second: Any) -> None:
    for group in (first, second) if rank == 0 else (second, first):
        dist.all_reduce(ones(3), group=group)


def async_size(rank: int, size: int) -> None:
    dist.all_reduce(ones(3 if rank else 4), async_op=True).wait()


@torch.library.custom_op("collective_rules_live::adds", mutates_args=("x",))
def _adds(x: torch.Tensor) -> None:
    dist.all_reduce(x)


_LIBRARY = torch.library.Library("collective_rules_live", "FRAGMENT")
_LIBRARY.define("impl_adds(Tensor(a!) x) -> ()")
_LIBRARY.impl("impl_adds", dist.all_reduce, "CPU")


def custom_op_size(rank: int, size: int) -> None:
    _adds(ones(8 if rank == 0 else 7))


def library_impl_size(rank: int, size: int) -> None:
    torch.ops.collective_rules_live.impl_adds(ones(8 if rank == 0 else 7))


def functional_size(rank: int, size: int) -> None:
    funcol.all_reduce(ones(3 if rank else 4), "sum", dist.group.WORLD).sum()


def message_to_nobody(rank: int, size: int) -> None:
    if rank == 0:
        dist.send(ones(3), 1)


def any_source(rank: int, size: int) -> None:
    if rank == 0:
        assert {*range(1, size)} == {dist.recv(ones(3)) for _ in range(size - 1)}
    else:
        dist.send(ones(3), 0)


def drops_a_receive(rank: int, size: int) -> list[int]:
    """Return how many warnings came by the next call, after a receive that was waited for, and after a dropped one."""
    counts = []
    for drop in (False, True):
        with warnings.catch_warnings(record=True, action="always") as told:
            if rank == 0:
                dist.send(ones(3), 1)
            else:
                work = dist.irecv(ones(3), 0)
                dist.barrier(dist.new_group([1], use_local_synchronization=True))
                if not drop:
                    work.wait()
                del work
            dist.barrier()
        counts.append(len(told))
    return counts


def any_source_too_often(rank: int, size: int) -> None:
    if rank == 0:
        for _ in range(size):
            dist.recv(ones(3))
    else:
        dist.send(ones(3), 0)


def windows(rank: int, size: int) -> float:
    """The last to come clears away what one rank is about to read; how long the end takes."""
    add = store.RankStore.add

    def slowly(self: Any, key: str, number: int) -> int:
        time.sleep(0.5 if "window" in key and rank == 0 else 0)
        total = add(self, key, number)
        time.sleep(1.5 if "window" in key and rank == 1 else 0)
        return total

    store.RankStore.add = slowly
    with RuleMode(agree=5, deadline=30):
        for _ in range(5):
            dist.all_reduce(ones(8))
        time.sleep(2)
        start = time.monotonic()
    return time.monotonic() - start


def enters_late(rank: int, size: int) -> None:
    """One rank is there after the others have given up."""
    if rank == 1:
        time.sleep(4)
    with RuleMode(agree="always", deadline=2):
        dist.all_reduce(ones(3))


def connects_slowly(rank: int, size: int) -> None:
    """A name server that does not answer keeps one rank from its connection for longer than the deadline."""
    connect = store.RankStore.connect
    if rank == 1:
        store.RankStore.connect = lambda self: (time.sleep(1.5), connect(self))[1]
    with RuleMode(agree="always", deadline=2):
        dist.all_reduce(ones(3))


def stops_another_group(rank: int, size: int) -> None:
    """What two ranks of a group disagree on keeps them from what all do next."""
    group = dist.new_group([0, 1])
    dist.all_reduce(ones(3))
    if rank < 2:
        dist.all_reduce(ones(3 + rank), group=group)
    dist.all_reduce(ones(3))


def aborts(rank: int, size: int) -> None:
    """A rank that receives more bytes than it expects is aborted; the others are left waiting at different places."""
    for step in range(6):
        dist.broadcast(ones(4 if rank == 1 and step == 3 else 8), 0)


def leaves_nothing_after_an_error(rank: int, size: int) -> list[Any]:
    store = dist.distributed_c10d._get_default_store()
    first, counts = None, []
    for agree in (None, "always", "exit", 1, "guard"):
        mode: Any = contextlib.nullcontext()
        if agree is not None:
            mode = guard(deadline=30) if agree == "guard" else RuleMode(agree=agree, deadline=30)
        with contextlib.suppress(DisagreementError), mode:
            dist.all_reduce(ones(4))
            if agree is not None:
                dist.all_reduce(ones(3), op=dist.ReduceOp.MAX if rank == 1 else dist.ReduceOp.SUM)
        dist.barrier()
        time.sleep(0.2)
        first = held(first)
        counts.append([list(first), store.num_keys()])
        dist.barrier()
    return counts


def quarrels(rank: int, size: int) -> None:
    """Several disagreements, of which only the first is come to."""
    dist.all_reduce(ones(3), async_op=True).wait()
    dist.broadcast(ones(3), 0)
    dist.all_gather_into_tensor(ones((2 + rank) * size), ones(2 + rank))


def trains(rank: int, size: int) -> int:
    """DDP, FSDP2 over a mesh, and a norm that DTensor communicates inside an op."""
    llama = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "examples" / "llama.py"))
    config, make = llama["CONFIGS"]["tiny"], llama["Llama"]
    sharded = make(config)
    mesh = init_device_mesh("cpu", (size,))
    for block in sharded.layers.values():
        fully_shard(block, mesh=mesh)
    models = [DistributedDataParallel(make(config), bucket_cap_mb=0.05), fully_shard(sharded, mesh=mesh)]
    for model in models:
        (model.module if isinstance(model, DistributedDataParallel) else model).init_weights()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for step in range(2):
            tokens, targets = llama["draw_batch"](config, size=1, length=16, rank=rank, step=step)
            llama["measure_loss"](model(tokens), targets).backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad()
            assert torch.isfinite(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
    return dist.get_world_size()


def compresses(rank: int, size: int) -> int:
    """Train with torch's hooks whose calls are made in callbacks of futures; return how many hooks."""
    hooks: list[tuple[Any, Any]] = [
        (
            powerSGD_hook.PowerSGDState(None, 1, start_powerSGD_iter=3, min_compression_rate=0.5),
            powerSGD_hook.powerSGD_hook,
        ),
        (powerSGD_hook.PowerSGDState(None, 1, start_powerSGD_iter=3), powerSGD_hook.batched_powerSGD_hook),
        (PostLocalSGDState(None, dist.new_subgroups(1)[0], start_localSGD_iter=5), post_localSGD_hook),
    ]
    orthogonalize = powerSGD_hook._orthogonalize
    # torch's batched hook passes a matrix on, where a batch of matrices is asked for: it raises without a guard, too.
    powerSGD_hook._orthogonalize = lambda matrix, *rest: orthogonalize(
        matrix if matrix.dim() == 3 else matrix[None], *rest
    )
    for state, hook in hooks:
        model = DistributedDataParallel(
            torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 4)), bucket_cap_mb=0.0005
        )
        model.register_comm_hook(state, hook)
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.01)
        if hook is post_localSGD_hook:
            optimizer = PostLocalSGDOptimizer(optimizer, PeriodicModelAverager(period=4, warmup_steps=5))
        for _ in range(12):
            model(torch.randn(2, 16)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    powerSGD_hook._orthogonalize = orthogonalize
    return len(hooks)


def leaves_nothing(rank: int, size: int) -> list[Any]:
    """What the process and the store hold, and gloo's time-out, before and after blocks of every kind."""
    backend = dist.group.WORLD._get_backend(torch.device("cpu"))
    store = dist.distributed_c10d._get_default_store()
    first, counts = None, []
    for agree in (None, "always", "exit", 3, "guard"):
        mode: Any = contextlib.nullcontext()
        if agree is not None:
            mode = guard(deadline=30) if agree == "guard" else RuleMode(agree=agree, deadline=30)
        with mode:
            for _ in range(10):
                dist.all_reduce(ones(3))
            inside = backend.options._timeout.total_seconds()
            if rank < 2:
                (dist.send if rank == 0 else dist.recv)(ones(3), 1 - rank)
        dist.barrier()
        time.sleep(0.2)
        first = held(first)
        counts.append([list(first), store.num_keys(), backend.options._timeout.total_seconds(), inside])
        dist.barrier()
    return counts


def some_of_them(rank: int, size: int) -> Any:
    """A group of its own is guarded while another rank is elsewhere."""
    group = dist.new_group([0, 1])
    if rank > 1:
        return None
    with guard(group, deadline=30) as guarded:
        dist.all_reduce(ones(3), group=group)
    return [guarded.ledger.count, len(guarded.findings)]


def whole_script(rank: int, size: int) -> int:
    """A program that makes its groups, and destroys them, inside the block."""
    store = dist.distributed_c10d._get_default_store()
    dist.destroy_process_group()
    with RuleMode(agree="always", deadline=30) as ledger:
        dist.init_process_group("gloo", store=dist.PrefixStore("again", store), rank=rank, world_size=size)
        clean(rank, size)
        dist.destroy_process_group()
    return ledger.count


def in_a_large_group(rank: int, size: int) -> None:
    clean(rank, size)


def differing_in_a_large_group(rank: int, size: int) -> None:
    dist.all_reduce(ones(3))
    dist.all_reduce(ones(3), async_op=rank == 2).wait() if rank == 2 else dist.all_reduce(ones(4 if rank == 1 else 3))


def count_posts() -> tuple[Any, ...]:
    """Let ranks meet as those of groups do that are too large for each to read what all others post."""
    rendezvous._SMALL = 1
    return ()


in_a_large_group.prepare = differing_in_a_large_group.prepare = count_posts


def drifts(rank: int, size: int) -> None:
    for step in range(60):
        dist.all_reduce(ones(8), op=dist.ReduceOp.MAX if rank == 1 and step == 17 else dist.ReduceOp.SUM)
        time.sleep(0.01)


def drifts_legally(rank: int, size: int) -> None:
    for step in range(25):
        dist.all_reduce(ones(8))
        splits = [rank + 1] * size
        dist.all_to_all_single(ones(sum(range(1, size + 1))), ones(sum(splits)), [*range(1, size + 1)], splits)
        dist.gather(ones(step), [ones(step) for _ in range(size)] if rank == 0 else None, dst=0)
        if rank < 2:
            (dist.send if rank == 0 else dist.recv)(ones(3), 1 - rank)
        time.sleep(0.01)


def steps(rank: int, size: int) -> Any:
    """Many calls; how many keys and threads there are early and late."""
    store = dist.distributed_c10d._get_default_store()
    counts = []
    for step in range(250):
        dist.all_reduce(ones(8))
        dist.all_reduce(ones(8), async_op=True).wait()
        if rank < 2:
            (dist.send if rank == 0 else dist.recv)(ones(1 + step % 3), 1 - rank, tag=step)
        if step in (124, 249):
            dist.barrier()
            time.sleep(0.3)
            counts.append(store.num_keys())
    return counts


def ring_of_sends(rank: int, size: int) -> None:
    """Each rank sends to the next before it receives."""
    dist.all_reduce(ones(3))
    dist.send(ones(4), (rank + 1) % size)
    dist.recv(ones(4), (rank - 1) % size)


def send_meets_collective(rank: int, size: int) -> None:
    """What one rank sends is received behind a collective that needs the sender."""
    if rank == 0:
        dist.send(ones(4), 1)
        dist.all_reduce(ones(3))
    else:
        dist.all_reduce(ones(3))
        dist.recv(ones(4), 0)


def raise_with_gloo() -> None:
    raise RuntimeError("the gloo of the lamp timed out")


def ask_a_store() -> None:
    dist.HashStore().wait(["a key that nobody sets"], timedelta(seconds=0.1))


raises_with_gloo, raises_of_a_store = (after_a_call(1, act) for act in (raise_with_gloo, ask_a_store))


def wraps_a_failure(rank: int, size: int) -> None:
    """The error that a collective raised reaches the end of the block inside another one."""
    try:
        one_less(rank, size)
    except RuntimeError as error:
        raise ValueError("step 1 failed") from error


def guarded_with_a_ledger(rank: int, size: int) -> list[list[str]]:
    """What a guard's file tells of a disagreement that ended its block."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(DisagreementError), guard(deadline=30, ledger=f"{folder}/{{rank}}.jsonl"):
            other_reduce_op(rank, size)
        recording = recordings.read(f"{folder}/{rank}.jsonl")
    return [[found.id for found in recording.told], [call.op for call in recording.calls]]


def aborted_and_ended(rank: int, size: int) -> None:
    """Gloo aborts a rank, and what torchrun does follows: it ends the others at once."""
    store = dist.distributed_c10d._get_default_store()
    store.set(f"pid of {rank}", str(os.getpid()))
    dist.all_reduce(ones(8))
    pids = [store.get(f"pid of {each}") for each in range(size)]
    time.sleep(0.3)
    if rank == 2 and not os.fork():
        while Path(f"/proc/{int(pids[1])}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.02)
        for each in (0, 2):
            os.kill(int(pids[each]), signal.SIGTERM)
        os._exit(0)
    dist.broadcast(ones(4 if rank == 1 else 8), 0)
    dist.all_reduce(ones(8))


def other_settings(rank: int, size: int) -> None:
    with RuleMode(agree="always" if rank else "exit", deadline=2):
        dist.all_reduce(ones(3))
