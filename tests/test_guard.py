"""The guard sees every collective of the process, and leaves nothing behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._subclasses.fake_tensor import FakeTensorMode

import collective_rules as cr
from collective_rules.errors import CallError
from collective_rules.guarding import GuardSettings
from collective_rules.mode import kernels
from collective_rules.recordings import read

LIBRARY = torch.library.Library("collective_rules_tests", "FRAGMENT")
LIBRARY.define("sums(Tensor x) -> Tensor")


@torch.library.custom_op("collective_rules_tests::adds", mutates_args=("x",))
def adds(x: torch.Tensor) -> None:
    """A custom op that communicates in a kernel of its own."""
    dist.all_reduce(x)


def _sums(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    dist.all_reduce(x)
    return x


LIBRARY.impl("sums", _sums, "CPU")


def quiet(**settings: Any) -> Any:
    return cr.guard(agree=False, **settings)


def ops(ledger: cr.Ledger) -> list[str]:
    return [entry.call.op.partition("::")[2] for entry in ledger.entries]


def program() -> None:
    dist.all_reduce(torch.ones(3))
    functional.all_reduce(torch.ones(2), "sum", dist.group.WORLD).sum()
    dist.barrier()


PROGRAM = ["allreduce_", "all_reduce", "barrier"]


@pytest.fixture(autouse=True)
def _untouched(group: dist.ProcessGroup) -> Iterator[None]:
    """After every test, the dispatcher has the kernels that it had before."""
    before = [torch._C._dispatch_dump(op) for op in ("c10d::allreduce_", "_c10d_functional::all_reduce")]
    yield
    assert before == [torch._C._dispatch_dump(op) for op in ("c10d::allreduce_", "_c10d_functional::all_reduce")]
    assert () == kernels._state.listening


def test_a_call_is_counted_once_as_the_program_wrote_it() -> None:
    with quiet() as guarded:
        program()
    assert PROGRAM == ops(guarded.ledger)
    assert {f"test_guard.py:{line}" for line in range(1, 100)} >= {
        entry.source.rpartition("/")[2] for entry in guarded.ledger.entries
    }


@pytest.mark.parametrize("op", [adds, torch.ops.collective_rules_tests.sums], ids=["custom_op", "Library.impl"])
def test_inside_of_custom_ops(op: Any) -> None:
    with quiet() as guarded, cr.RuleMode() as ledger:
        op(torch.ones(2))
    assert ["allreduce_"] == ops(guarded.ledger) == ops(ledger)


@pytest.mark.parametrize("op", [adds, torch.ops.collective_rules_tests.sums], ids=["custom_op", "Library.impl"])
def test_custom_ops_send_nothing_with_execute_false(op: Any) -> None:
    with quiet() as guarded, cr.RuleMode(execute=False) as ledger:
        op(torch.ones(2))
    assert ["allreduce_"] == ops(ledger)
    assert ["allreduce_"] == ops(guarded.ledger)  # told of it, though it is not sent


def test_threads_that_ran_before() -> None:
    begin, done = threading.Event(), threading.Event()

    def run() -> None:
        begin.wait(30)
        program()
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    with quiet() as guarded:
        begin.set()
        assert done.wait(30)
    thread.join()
    assert PROGRAM == ops(guarded.ledger)


def test_callbacks_of_futures() -> None:
    def again(future: Any) -> Any:
        dist.barrier()
        return future.value()

    with quiet() as guarded:
        work = dist.all_reduce(torch.ones(2), async_op=True)
        work.get_future().then(again).wait()
    assert ["allreduce_", "barrier"] == ops(guarded.ledger)


def test_inference_backward_and_compiled_code() -> None:
    x = torch.ones(4, requires_grad=True)
    compiled = torch.compile(lambda x: functional.all_reduce(x * 2, "sum", dist.group.WORLD) + 1, backend="eager")
    with quiet() as guarded:
        with torch.inference_mode():
            dist.all_reduce(torch.ones(2))
        gathered = torch.ops._c10d_functional_autograd.all_gather_into_tensor(x, 4, dist.group.WORLD.group_name)
        functional.wait_tensor(gathered).sum().backward()
        compiled(torch.ones(2))
    assert ["allreduce_", "all_gather_into_tensor", "reduce_scatter_tensor", "all_reduce"] == ops(guarded.ledger)


def test_fake_and_meta_tensors_send_nothing() -> None:
    with quiet() as guarded:
        with FakeTensorMode():
            functional.all_reduce(torch.ones(2), "sum", dist.group.WORLD)
        functional.all_reduce(torch.ones(2, device="meta"), "sum", dist.group.WORLD)
    assert [] == ops(guarded.ledger)


def test_guards_and_modes_in_each_other() -> None:
    with quiet() as outer, cr.RuleMode() as ledger, quiet() as inner, cr.RuleMode() as innermost:
        program()
    assert [PROGRAM] * 4 == [ops(each) for each in (outer.ledger, ledger, inner.ledger, innermost)]


def test_a_guard_that_is_entered_again_stays_one() -> None:
    guarded = quiet()

    def enter() -> None:
        with guarded:
            program()

    with guarded:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        program()
    assert PROGRAM * 2 == ops(guarded.ledger)
    program()
    assert PROGRAM * 2 == ops(guarded.ledger)


def test_modes_of_several_threads_hear_of_their_own_calls() -> None:
    """As the ranks of a test in one process do."""
    both, ledgers = threading.Barrier(2), {}

    def rank(number: int) -> None:
        with cr.RuleMode() as ledgers[number]:
            both.wait(30)
            for _ in range(number + 1):
                adds(torch.ones(2))
            both.wait(30)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [1, 2] == [len(ops(ledgers[number])) for number in range(2)]


def test_an_illegal_call_is_not_sent() -> None:
    x = torch.ones(4)
    with pytest.raises(CallError, match="AGT1"), quiet():
        dist.all_gather_into_tensor(torch.zeros(7), x)
    with pytest.raises(KeyError), quiet():
        raise KeyError("the program's own")


def test_a_forked_process_begins_without_a_guard() -> None:
    with quiet() as guarded:
        child = os.fork()
        if child == 0:
            os._exit(len(kernels._state.listening))
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        program()
    assert PROGRAM == ops(guarded.ledger)


def test_a_ledger_file_has_each_call(tmp_path: Path) -> None:
    with quiet(ledger=tmp_path / "rank{rank}.jsonl"):
        program()
        assert PROGRAM == [call.op.partition("::")[2] for call in read(tmp_path / "rank1.jsonl").calls]


def test_modules_are_told_where_asked_for() -> None:
    class Reduces(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            dist.all_reduce(x)
            return x

    told = []
    for modules in (False, True):
        with quiet(modules=modules) as guarded:
            Reduces()(torch.ones(2))
        told += [(entry.module, entry.phase) for entry in guarded.ledger.entries]
    assert [("", ""), ("Reduces", "forward")] == told


def test_settings_are_read_from_text() -> None:
    settings = GuardSettings.read("agree=100 check=warn backend=none keep=5 deadline=2.5 ledger='a b/{rank}'")
    assert GuardSettings("warn", 100, None, 5, 2.5, "a b/{rank}") == settings
    assert (True, False) == (GuardSettings.read("check=yes").check, GuardSettings.read("agree=no").agree)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("agre=1", "'agre=1' is no setting of a guard, as check=warn is one: did you mean agree=?"),
        ("x", "there are check, agree, backend"),
        ("ledger='a", "cannot be read: No closing quotation"),
        ("agree=-1", "agree='-1', but should be"),
        ("deadline=soon", "deadline='soon', but should be"),
        ("keep=many", "keep='many', but should be"),
        ("check=maybe", "check='maybe', but should be"),
        ("backend=smoke", "backend='smoke', but should be"),
    ],
)
def test_settings_that_do_not_fit_are_named(text: str, says: str) -> None:
    with pytest.raises(CallError) as refused:
        GuardSettings.read(text).guard()
    assert says in str(refused.value)
