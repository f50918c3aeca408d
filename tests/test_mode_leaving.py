"""Leaving the mode: twice, out of order, by an interrupt at any moment. And what is left of it: a ledger to keep."""

import copy
import pickle
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.optim import optimizer as optimizers
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

import collective_rules as cr
from collective_rules.mode import dispatch_mode as mode_module


def begin() -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    begin()
    yield
    dist.destroy_process_group()


def state() -> tuple[Any, ...]:
    """What the mode puts in place."""
    modules = torch.nn.modules.module
    hooks = (
        modules._global_forward_hooks,
        modules._global_forward_pre_hooks,
        modules._global_forward_hooks_always_called,
        optimizers._global_optimizer_pre_hooks,
        optimizers._global_optimizer_post_hooks,
    )
    return threading.Thread.start, _get_current_dispatch_mode_stack(), [list(each.values()) for each in hooks]


def reduce(times: int = 1) -> None:
    for _ in range(times):
        dist.all_reduce(torch.ones(2))


def test_a_mode_that_was_left_once_too_often_can_be_entered_again() -> None:
    before, mode = state(), cr.RuleMode()
    with mode:
        reduce()
    mode.__exit__(None, None, None)
    with mode as ledger:
        reduce()
    assert 2 == ledger.count
    assert before == state()


class Other(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_modes_that_are_left_out_of_order_leave_nothing_and_take_nobody_with_them() -> None:
    before, mode, inner, other = state(), cr.RuleMode(), cr.RuleMode(), Other()
    for each in (mode, inner, other):
        each.__enter__()
    mode.__exit__(None, None, None)
    reduce()
    assert (0, 1) == (mode.ledger.count, inner.ledger.count)
    assert [inner, other] == _get_current_dispatch_mode_stack()
    other.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    assert before == state()


@pytest.mark.parametrize("name", ["follow", "unfollow"])
def test_an_interrupt_while_the_mode_is_entered_or_left_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real: Callable[..., None] = getattr(mode_module, name)
    interrupts = iter([True])

    def interrupted(mode: Any) -> None:
        if next(interrupts, False):
            raise KeyboardInterrupt
        real(mode)

    monkeypatch.setattr(mode_module, name, interrupted)
    before = state()
    with pytest.raises(KeyboardInterrupt), cr.RuleMode():
        reduce()
    assert before == state()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # one may come in a callback of C
def test_an_interrupt_at_any_moment_of_the_block_leaves_nothing() -> None:
    """As Ctrl-C: between two lines of the program, of torch or of this library, once the block is entered."""
    before, inside, interrupts = state(), [], 0

    def interrupt(_: int, frame: types.FrameType | None) -> None:
        if inside:
            inside.clear()
            raise KeyboardInterrupt

    known = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(60):
            try:
                with cr.RuleMode():
                    inside.append(True)
                    signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + number))
                    while inside:
                        reduce()
            except KeyboardInterrupt:
                interrupts += 1
            assert before == state()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, known)
    assert interrupts


def test_a_thread_that_cannot_start_is_left_as_it_was() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    with cr.RuleMode(), pytest.raises(RuntimeError, match="once"):
        thread.start()
    assert "run" not in vars(thread)


def test_a_name_that_is_used_again_is_another_group() -> None:
    """Groups are counted from the beginning after destroy_process_group."""
    with cr.RuleMode() as ledger:
        for ranks in ([0, 1], [0, 2]):
            dist.destroy_process_group()
            begin()
            dist.all_reduce(torch.ones(2), group=dist.new_group(ranks))
    reduced = [call.group for call in ledger.calls if call.op == "c10d::allreduce_"]
    assert 1 == len({group.name for group in reduced})
    assert [(0, 1), (0, 2)] == [group.ranks for group in reduced]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda ledger: pickle.loads(pickle.dumps(ledger))])
def test_a_ledger_can_be_copied_and_pickled(again: Callable[[cr.Ledger], cr.Ledger]) -> None:
    """Its calls are equal ones, and it goes on as a ledger of its own."""
    seen: list[Any] = []
    with cr.RuleMode() as ledger:
        ledger.followers.append(seen.append)
        reduce(3)
        twin = again(ledger)
        reduce()
    assert (4, 3, 4) == (ledger.count, twin.count, len(seen))
    assert ledger.calls[:3] == twin.calls
    assert ledger.calls[0].row is twin.calls[0].row
    assert 3 * 12.0 == twin.total.sent
    assert [] == twin.followers


def test_a_ledger_keeps_no_more_than_there_can_be() -> None:
    with pytest.raises(cr.CallError, match=f"keep={sys.maxsize + 1}, but should be the number of calls to keep"):
        cr.RuleMode(keep=sys.maxsize + 1)
