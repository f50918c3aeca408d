"""A Work that nobody waits for is found, with the line that made the call; one that somebody may wait for is not."""

from __future__ import annotations

import gc
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import allow_inflight_collective_as_graph_input_ctx, wait_tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.distributed_c10d import _coalescing_manager
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

import collective_rules as cr
from collective_rules.mode import works
from collective_rules.mode.recorder import UNWAITED

pytestmark = pytest.mark.filterwarnings("ignore")
WAYS: dict[str, Callable[..., Any]] = {
    "guard": lambda: cr.guard(agree=False),
    "guard, agree": cr.guard,
    "RuleMode": lambda: cr.RuleMode(check=True),
    "RuleMode, execute=False": lambda: cr.RuleMode(execute=False),
}


class PassesOn(TorchFunctionMode):
    """A mode of the program, which calls the functions of torch.distributed in turn."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def begin() -> Any:
    return dist.all_reduce(torch.ones(3), async_op=True)


def is_dropped() -> None:
    begin()
    torch.ones(3).div_(2)


def is_dropped_before_another_call() -> None:
    begin()
    begin().wait()


def is_dropped_by_a_function() -> None:
    work = begin()
    torch.ones(3).div_(2)
    del work


def is_dropped_by_the_garbage_collector() -> None:
    cycle = [begin()]
    cycle.append(cycle)  # type: ignore[arg-type]  # in a ring
    del cycle
    gc.collect()
    dist.barrier()


def is_asked_in_vain() -> None:
    assert begin().boxed  # an attribute, which waits for nothing


def is_of_a_gather() -> None:
    dist.all_gather([torch.ones(3)], torch.ones(3), async_op=True)


def is_of_a_coalescing_manager() -> None:
    with _coalescing_manager(async_ops=True):
        dist.all_reduce(torch.ones(3))
        dist.all_reduce(torch.ones(3))


def is_dropped_under_a_function_mode() -> None:
    with torch.device("cpu"):
        begin()
        torch.ones(3).div_(2)


LOST = [value for name, value in [*globals().items()] if name.startswith("is_")]


def waited() -> None:
    begin().wait()


def waited_later() -> None:
    begun = [begin() for _ in range(4)]
    dist.barrier()
    for work in begun:
        work.wait()


def polled() -> None:
    work = begin()
    while not work.is_completed():
        threading.Event().wait(0.001)


def waited_by_another_thread() -> None:
    thread = threading.Thread(target=begin().wait)
    thread.start()
    thread.join()
    dist.barrier()


def its_future() -> None:
    future = begin().get_future().then(lambda done: done.value())
    dist.barrier()
    future.wait()


def its_future_is_kept_by_nobody() -> None:
    """What its callback does with the result is in order, whoever holds the future."""
    done = threading.Event()
    begin().get_future().add_done_callback(lambda _: done.set())
    assert done.wait(30)


def handed_to_cpp() -> None:
    boxed = begin().boxed()
    dist.barrier()
    dist.Work.unbox(boxed).wait()


def waited_by_a_coalescing_manager() -> None:
    with _coalescing_manager(async_ops=True) as manager:
        dist.all_reduce(torch.ones(3))
        dist.all_reduce(torch.ones(3))
    dist.barrier()
    manager.wait()


def waited_by_its_tensor() -> None:
    x = torch.ones(3)
    with allow_inflight_collective_as_graph_input_ctx():
        dist.all_reduce(x, async_op=True)
        dist.barrier()
        wait_tensor(x)


def a_barrier_has_no_tensor() -> None:
    dist.barrier(async_op=True)
    dist.barrier()


def synchronous() -> None:
    dist.all_reduce(torch.ones(3))
    dist.all_gather_object([None], "text")


def by_a_method_of_the_group() -> None:
    """Not known: a program in C++ looks the same, and may wait."""
    dist.group.WORLD.allreduce([torch.ones(3)])  # type: ignore[union-attr]
    dist.barrier()


def by_hooks_of_ddp() -> None:
    for hook in (None, powerSGD_hook):
        model = DistributedDataParallel(torch.nn.Linear(8, 8))
        if hook is not None:
            model.register_comm_hook(PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=0.5), hook)
        for _ in range(3):
            model(torch.ones(2, 8)).sum().backward()


def by_ddp_under_a_function_mode() -> None:
    with PassesOn():
        by_ddp_for_uneven_inputs()


def by_ddp_for_uneven_inputs() -> None:
    """DDP passes one Work on to C++, and drops another."""
    model = DistributedDataParallel(torch.nn.Linear(8, 8))
    with model.join():
        for _ in range(3):
            model(torch.ones(2, 8)).sum().backward()


LEGAL = [
    waited,
    waited_later,
    polled,
    waited_by_another_thread,
    its_future,
    its_future_is_kept_by_nobody,
    handed_to_cpp,
    waited_by_a_coalescing_manager,
    waited_by_its_tensor,
    a_barrier_has_no_tensor,
    synchronous,
    by_a_method_of_the_group,
    by_hooks_of_ddp,
    by_ddp_for_uneven_inputs,
    by_ddp_under_a_function_mode,
]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    """The only rank of a gloo group; `Work` has the methods afterwards that it had before."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    before = dict(vars(dist.Work))
    yield
    dist.destroy_process_group()
    assert before == dict(vars(dist.Work))
    assert not works._state.watched


def ledger_of(way: str, program: Callable[[], None]) -> cr.Ledger:
    with WAYS[way]() as entered:
        program()
    return entered if isinstance(entered, cr.Ledger) else entered.ledger


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", LOST, ids=lambda program: program.__name__)
def test_a_work_that_nobody_waits_for_is_found(way: str, program: Callable[[], None]) -> None:
    ledger = ledger_of(way, program)
    assert [(UNWAITED, "warning")] == [(found.id, found.severity) for found in ledger.findings]
    assert ["test_mode_works.py"] == [
        os.path.basename(entry.source).partition(":")[0] for entry in ledger.entries if entry.findings
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", LEGAL, ids=lambda program: program.__name__)
def test_no_false_alarm(way: str, program: Callable[[], None]) -> None:
    if way.endswith("execute=False") and program is by_hooks_of_ddp:
        pytest.skip("powerSGD decomposes its own values, which are simulated")
    assert [] == ledger_of(way, program).findings


@pytest.mark.parametrize("way", WAYS)
def test_it_is_told_at_the_next_call_of_the_thread_with_its_line(way: str) -> None:
    with WAYS[way](), warnings.catch_warnings(record=True, action="always") as told:
        is_dropped()
        dist.barrier()
    assert 1 == len(told)
    assert re.search(rf"the Work(?s:.)*{UNWAITED}(?s:.)*test_mode_works.py:\d+", str(told[0].message))


def test_a_work_that_is_kept_is_told_at_the_end_of_the_block() -> None:
    with cr.guard(agree=False) as guard:
        kept = begin()
        dist.barrier()
        assert [] == guard.ledger.findings
    assert [UNWAITED] == [found.id for found in guard.findings]
    assert kept.wait()


def test_another_thread_may_wait_after_the_block() -> None:
    begun, ended = threading.Event(), threading.Event()

    def run() -> None:
        work = begin()
        begun.set()
        ended.wait(30)
        work.wait()

    thread = threading.Thread(target=run)
    with cr.guard(agree=False) as guard:
        thread.start()
        assert begun.wait(30)
    ended.set()
    thread.join()
    assert () == guard.findings


def test_every_block_around_a_call_is_told() -> None:
    with cr.guard(agree=False) as outer, cr.RuleMode() as ledger, cr.guard() as inner:
        is_dropped_before_another_call()
        begin().wait()
    assert [1, 1, 1] == [len(each.findings) for each in (outer.ledger, ledger, inner.ledger)]


def test_a_program_that_failed_is_told_its_own_error_only() -> None:
    def fail() -> None:
        begin()
        raise KeyError("the program's own")

    with pytest.raises(KeyError), warnings.catch_warnings(action="error"), cr.guard(agree=False):
        fail()


def test_a_forked_process_waits_as_torch_does() -> None:
    with cr.guard(agree=False):
        work = begin()
        child = os.fork()
        if child == 0:
            os._exit(len(works._state.watched) + len(works._state.replaced))
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        work.wait()


def test_of_a_backend_that_orders_its_calls_nothing_is_known() -> None:
    """On NCCL a program may as well synchronize the device; torch's fake group has sent nothing."""
    needs = {name for name in cr.backends.BACKENDS if cr.backends.BACKENDS[name].needs_wait}
    assert {"gloo"} == needs
