"""`RuleMode` sees each collective, refuses an illegal one before it is sent, and leaves nothing of itself behind."""

import contextlib
import os
import random
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._local_tensor import LocalTensor, LocalTensorMode
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.optim import optimizer as optimizers
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import collective_rules as cr
from collective_rules.mode.postcheck import RETURNED
from collective_rules.mode.recorder import UNWAITED
from collective_rules.testing import calls, carry_out, sample, world
from collective_rules.testing.dispatch import has_cpu_kernel

# torch's functional collectives call some of themselves deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

KERNELS = [op for op in cr.ops() if has_cpu_kernel(cr.lookup(op)) and cr.lookup(op).rule.name != "wait"]


def seen(ledger: cr.Ledger) -> list[str]:
    return [entry.call.op.partition("::")[2] for entry in ledger.entries]


def program() -> torch.Tensor:
    """One collective of torch.distributed, and a functional one."""
    tensor = torch.zeros(4)
    dist.all_reduce(tensor)
    return functional.all_gather_tensor(tensor, 0, dist.group.WORLD) + 1


PROGRAM = ["allreduce_", "all_gather_into_tensor"]


# -- record


def test_collectives_and_messages_are_counted_apart(group: dist.ProcessGroup) -> None:
    """Ranks send unlike numbers of messages; their collectives still have one index."""
    with cr.RuleMode() as ledger:
        dist.isend(torch.ones(1), 0)
        dist.all_reduce(torch.ones(1))
        dist.isend(torch.ones(1), 0)
        dist.barrier()
    assert [0, 0, 1, 1] == [call.index for call in ledger.calls]


def test_an_entry_tells_the_call_and_its_place(group: dist.ProcessGroup) -> None:
    """Group, sizes, line, index, asynchronous or not, and the line of the wait."""
    half = dist.new_group([1, 3])
    with cr.RuleMode() as ledger:
        work = dist.all_reduce(torch.ones(2, 3), async_op=True)
        dist.broadcast(torch.ones(5), src=3, group=half)
        result = functional.all_reduce(torch.ones(1), "max", half)
        waited = result + 1
    work.wait()
    assert waited.shape == (1,)
    first, second, third = ledger.entries
    assert first.call.arguments["tensors"] == (cr.Spec((2, 3)),)
    assert (first.call.group.size, first.call.group.rank, first.call.group.ranks) == (4, 1, (0, 1, 2, 3))
    assert (second.call.group.size, second.call.group.rank, second.call.group.ranks) == (2, 0, (1, 3))
    assert second.call.arguments["root_rank"] == 1
    assert [0, 1, 2] == [entry.number for entry in ledger.entries]
    assert [0, 0, 1] == [entry.call.index for entry in ledger.entries]
    assert [True, False, True] == [entry.asynchronous for entry in ledger.entries]
    line = test_an_entry_tells_the_call_and_its_place.__code__.co_firstlineno
    lines = [int(source.rpartition(":")[2]) - line for source in (first.source, third.call.source, third.waited)]
    assert [4, 6, 7] == lines
    assert first.source.rpartition(":")[0].endswith("test_mode.py")
    assert "" == first.waited
    assert set(ledger.groups) == {first.call.group.name, second.call.group.name}


def test_totals_count_what_is_no_longer_kept(group: dist.ProcessGroup) -> None:
    """The last calls are kept; the sums are of all."""
    with cr.RuleMode(keep=3) as ledger:
        for size in range(1, 6):
            dist.all_reduce(torch.ones(size))
        dist.barrier()
    assert (6, 3) == (len(ledger), len(ledger.entries))
    assert [3, 4, 5] == [entry.number for entry in ledger.entries]
    assert 6 == ledger.total.calls
    assert sum(range(1, 6)) * 4 == ledger.total.read
    assert 2 * 3 / 4 * 60 == ledger.total.sent == ledger.by("op")["c10d::allreduce_",].sent
    assert {("c10d::allreduce_", "0"): 5, ("c10d::barrier", "0"): 1} == {
        key: total.calls for key, total in ledger.by("op", "group").items()
    }
    with pytest.raises(cr.CallError, match="'rank' is no name to sum by; the names are 'op', 'group', 'module'"):
        ledger.by("rank")


def test_sizes_of_a_total_are_bounded(group: dist.ProcessGroup) -> None:
    with cr.RuleMode() as ledger:
        for size in range(1, 12):
            dist.all_reduce(torch.ones(size))
    assert (8, 3) == (len(ledger.total.sizes), ledger.total.more)


def test_alike_calls_are_described_once_and_others_apart(group: dist.ProcessGroup) -> None:
    """Size, dtype, strides, reduce op, and which tensors share memory tell calls apart."""
    base = torch.ones(4, 4)
    with cr.RuleMode() as ledger:
        for tensor in (base, base, base.t(), base.double(), base[:2], base.clone()):
            dist.all_reduce(tensor)
        dist.all_reduce(base, dist.ReduceOp.MAX)
        for outputs in ([torch.ones(2) for _ in range(4)], [base[0, :2]] * 4):
            dist.all_gather(outputs, torch.ones(2))
    known = [id(entry.facts) for entry in ledger.entries]
    assert known[0] == known[1] == known[5]
    assert 7 == len({*known})
    assert known[-1] != known[-2]
    assert ["sum", "max"] == [ledger.entries[place].call.arguments["reduce_op"] for place in (0, 6)]


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.all_gather_tensor_autograd(self.linear(inputs), 0, dist.group.WORLD)


class Model(torch.nn.Module):
    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Block(), Block()])
        self.again = again

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            inputs = checkpoint(layer, inputs, use_reentrant=False) if self.again else layer(inputs)
        return inputs.sum() * 1


def test_modules_and_phases_are_known_in_forward_and_backward(silent: dist.ProcessGroup) -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.register_step_pre_hook(lambda *_: dist.all_reduce(torch.ones(1)))
    with cr.RuleMode(execute=False) as ledger:
        for _ in range(2):
            model(torch.ones(2, 4)).backward()
            optimizer.step()
        dist.barrier()
    forward = [("all_gather_into_tensor", f"layers.{layer}", "forward") for layer in (0, 1)]
    backward = [("reduce_scatter_tensor", f"layers.{layer}", "backward") for layer in (1, 0)]
    step = [*forward, *backward, ("allreduce_", "", "optimizer")]
    found = [(op, one.module, one.phase) for op, one in zip(seen(ledger), ledger.entries, strict=True)]
    assert [*step, *step, ("barrier", "", "")] == found
    assert [0] * 5 + [1] * 5 + [2] == [one.step for one in ledger.entries]
    assert 2 == ledger.steps


def test_recomputation_belongs_to_the_backward_pass(silent: dist.ProcessGroup) -> None:
    with cr.RuleMode(execute=False) as ledger:
        Model(again=True)(torch.ones(2, 4)).backward()
    phases = [entry.phase for entry in ledger.entries if "gather" in entry.call.op]
    assert phases[:2] == ["forward", "forward"]
    assert {"backward"} >= {*phases[2:]}
    assert {"layers.0", "layers.1"} == {entry.module for entry in ledger.entries}


# -- what is seen


MODES: dict[str, Callable[[], Any]] = {
    "FakeTensorMode": FakeTensorMode,
    "FlopCounterMode": lambda: FlopCounterMode(display=False),
    "RuleMode": cr.RuleMode,
}


@pytest.mark.parametrize("execute", [True, False])
@pytest.mark.parametrize("other", MODES)
def test_other_modes_may_stand_within_or_around(group: dist.ProcessGroup, other: str, execute: bool) -> None:
    """And nested rule modes see each call once."""
    with cr.RuleMode(check=True, execute=execute) as ledger, MODES[other]() as inner:
        program()
    with MODES[other](), cr.RuleMode(check=True, execute=execute) as within:
        program()
    assert PROGRAM == seen(ledger) == seen(within)
    if isinstance(inner, cr.Ledger):
        assert PROGRAM == seen(inner)
    assert [] == ledger.findings + within.findings


def test_an_outer_mode_sees_what_an_inner_one_does_not_send(silent: dist.ProcessGroup) -> None:
    with cr.RuleMode() as outer, cr.RuleMode(execute=False):
        program()
    assert PROGRAM == seen(outer)


def test_a_mode_entered_again_stays_one(group: dist.ProcessGroup) -> None:
    mode = cr.RuleMode()
    with mode as ledger, mode as again:
        program()
    program()
    with mode:
        program()
    assert ledger is again
    assert PROGRAM * 2 == seen(ledger)


def test_coalescing_is_one_call(group: dist.ProcessGroup) -> None:
    with cr.RuleMode(check=True) as ledger, dist._coalescing_manager(group):
        for _ in range(3):
            dist.all_reduce(torch.ones(3))
    assert ["allreduce_coalesced_"] == seen(ledger)
    assert {"3 × float32[3]": 1} == ledger.total.sizes


def test_collectives_within_dtensor_ops_are_seen(silent: dist.ProcessGroup) -> None:
    mesh = init_device_mesh("cpu", (silent.size(),))
    with cr.RuleMode(check=True, execute=False) as ledger:
        tensor = distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)])
        assert (8, 4) == tensor.full_tensor().shape
    assert ["scatter_", "all_gather_into_tensor"] == seen(ledger)
    assert all(entry.waited for entry in ledger.entries[1:])


def test_local_tensors_are_seen_within_their_mode(group: dist.ProcessGroup) -> None:
    with LocalTensorMode(group.size()), cr.RuleMode(check=True) as ledger:
        dist.all_reduce(torch.ones(4))
    assert ["allreduce_"] == seen(ledger)


def test_a_local_tensor_is_seen_as_one_rank_has_it(silent: dist.ProcessGroup) -> None:
    """Its sizes may differ by rank, and the partner of its messages is not that of the group's own rank."""
    ranks = range(silent.size())
    with LocalTensorMode(silent.size()), cr.RuleMode(check=True, backend=None) as ledger:
        gathered = [LocalTensor({r: torch.ones(i + 1, 2) for r in ranks}) for i in ranks]
        dist.all_gather(gathered, LocalTensor({r: torch.ones(r + 1, 2) for r in ranks}))
        with contextlib.suppress(AttributeError):  # torch carries messages out under its LocalRunnerMode alone
            torch.ops.c10d.recv_([torch.ones(3)], silent.boxed(), silent.rank(), 0)
    assert ["allgather_", "recv_"] == seen(ledger)
    assert [] == ledger.findings


def test_a_call_of_a_group_that_nobody_here_knows_is_passed_on(silent: dist.ProcessGroup) -> None:
    with cr.RuleMode(check=True) as ledger:
        shape = torch.ops._c10d_functional.all_reduce(torch.ones(3, device="meta"), "sum", "nobody").shape
    assert ((3,), []) == (shape, seen(ledger))


def test_ops_that_are_done_as_they_return_need_no_wait(silent: dist.ProcessGroup) -> None:
    def call_both() -> cr.Ledger:
        with cr.RuleMode(check=True, execute=False) as ledger:
            torch.ops.symm_mem.one_shot_all_reduce(torch.ones(8), "sum", silent.group_name)
            torch.ops.symm_mem._low_contention_all_gather(torch.ones(8), silent.group_name)
        return ledger

    with pytest.warns(UserWarning, match="MODE2"):
        ledger = call_both()
    assert [("MODE2", "symm_mem::_low_contention_all_gather")] == [(each.id, each.op) for each in ledger.findings]


def test_compiled_code_is_seen(group: dist.ProcessGroup) -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def double(tensor: torch.Tensor) -> torch.Tensor:
        return functional.all_reduce(tensor, "sum", "0") * 2

    with cr.RuleMode(check=True) as ledger:
        for _ in range(2):
            double(torch.ones(4))
    assert ["all_reduce", "all_reduce"] == seen(ledger)
    assert [] == ledger.findings
    torch._dynamo.reset()


def test_what_another_tool_put_in_place_of_thread_start_stays(
    group: dist.ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is called inside the block, too, and is there afterwards; so is one that came while the block was open."""
    started, begin = [], threading.Thread.start

    def counted(self: threading.Thread) -> None:
        started.append(self)
        begin(self)

    def later(self: threading.Thread) -> None:
        started.append(self)
        inside(self)

    def run() -> int:
        thread = threading.Thread(target=lambda: dist.all_reduce(torch.ones(2), group=group))
        thread.start()
        thread.join()
        return len(started)

    monkeypatch.setattr(threading.Thread, "start", counted)
    with cr.RuleMode() as ledger:
        assert (1, 1) == (run(), ledger.count)
    assert threading.Thread.start is counted
    with cr.RuleMode() as ledger:
        inside = threading.Thread.start
        monkeypatch.setattr(threading.Thread, "start", later)
        assert (3, 1) == (run(), ledger.count)
    assert (5, 1) == (run(), ledger.count)
    with cr.RuleMode() as ledger:
        assert (7, 1) == (run(), ledger.count)
    assert threading.Thread.start is later


def test_threads_are_seen(group: dist.ProcessGroup) -> None:
    """Those that ran before, a subclass with a run of its own, and a thread that a seen thread starts."""
    begin, done = threading.Event(), threading.Event()

    def outside() -> None:
        begin.wait(30)
        dist.barrier()
        done.set()

    class Own(threading.Thread):
        def run(self) -> None:
            thread = threading.Thread(target=program)
            thread.start()
            thread.join()

    running = threading.Thread(target=outside)
    running.start()
    with cr.RuleMode() as ledger:
        begin.set()
        done.wait(30)
        thread = Own()
        thread.start()
        thread.join()
    running.join()
    assert ["barrier", *PROGRAM] == seen(ledger)
    assert [] == _get_current_dispatch_mode_stack()


def test_lines_of_python_and_of_torch_are_no_places(group: dist.ProcessGroup) -> None:
    """The thread of a pool runs the program's own function, or one of torch, as that of `async_save` does."""

    def own() -> None:
        dist.barrier()

    with cr.RuleMode() as ledger, ThreadPoolExecutor(1) as pool:
        pool.submit(own).result()
        pool.submit(dist.barrier).result()
    line = own.__code__.co_firstlineno + 1
    assert [f"{Path(__file__).name}:{line}", ""] == [Path(entry.source).name for entry in ledger.entries]


def test_a_line_is_told_where_there_is_no_current_directory(
    group: dist.ProcessGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, then: there is nothing that it could be told from."""
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    with cr.RuleMode() as ledger:
        dist.all_reduce(torch.ones(2), group=group)
    assert ledger.entries[0].source.startswith(f"{__file__}:")


def test_a_thread_that_outlives_the_block_is_seen_no_more(group: dist.ProcessGroup) -> None:
    begin = threading.Event()

    def late() -> None:
        begin.wait(30)
        dist.barrier()

    with cr.RuleMode() as ledger:
        thread = threading.Thread(target=late)
        thread.start()
    begin.set()
    thread.join()
    assert [] == seen(ledger)


# -- check


def test_an_illegal_call_is_refused_before_anything_is_sent(silent: dist.ProcessGroup) -> None:
    """The backend would raise another error."""
    with cr.RuleMode(check=True) as ledger, pytest.raises(cr.CallError, match=r"(?s)AGT\d.*test_mode.py:\d+") as error:
        dist.all_gather_into_tensor(torch.ones(7), torch.ones(2))
    assert ledger.entries[0].findings == error.value.findings == tuple(ledger.findings)
    with cr.RuleMode(check="warn"), pytest.warns(UserWarning, match="AGT"), pytest.raises(RuntimeError):
        dist.all_gather_into_tensor(torch.ones(7), torch.ones(2))
    with cr.RuleMode(check="record") as ledger, pytest.raises(RuntimeError):
        dist.all_gather_into_tensor(torch.ones(7), torch.ones(2))
    assert 1 == len(ledger.findings)
    with cr.RuleMode() as ledger, pytest.raises(RuntimeError):
        dist.all_gather_into_tensor(torch.ones(7), torch.ones(2))
    assert [] == ledger.findings
    assert 1 == ledger.count


class Liar(TorchDispatchMode):
    """Stands for a kernel that returns something else."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        if func is torch.ops._c10d_functional.all_gather_into_tensor.default:
            return returned[:-1]
        return (args[0].clone(), *returned[1:]) if func is torch.ops.c10d._allgather_base_.default else returned


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: functional.all_gather_tensor(torch.ones(2), 0, "0") + 1, r"output=.*\(7,\).*should be.*\(8,\)"),
        (lambda: dist.all_gather_into_tensor(torch.ones(8), torch.ones(2)), "output_tensor came back as another"),
    ],
)
def test_what_comes_back_is_compared_with_what_was_inferred(
    group: dist.ProcessGroup, act: Callable[[], Any], message: str
) -> None:
    with cr.RuleMode(check=True):
        act()
    with pytest.raises(cr.CallError, match=rf"{message}.*\[{RETURNED}\]"), Liar(), cr.RuleMode(check=True):
        act()


def test_a_result_that_is_never_waited_on_is_reported(group: dist.ProcessGroup) -> None:
    """With the line that made it, once; memory that is used again hides nothing."""
    mode = cr.RuleMode()
    ledger = mode.__enter__()
    for _ in range(3):
        torch.ops._c10d_functional.all_reduce(torch.ones(2), "sum", "0")
    functional.all_reduce(torch.ones(2), "sum", "0") + 1
    with pytest.warns(UserWarning, match=rf"{UNWAITED}(?s:.)*test_mode.py:\d+") as told:
        mode.__exit__(None, None, None)
    assert 3 == len(told) == len(ledger.findings)
    assert [1, 1, 1, 0] == [len(entry.findings) for entry in ledger.entries]


@pytest.mark.parametrize("op", KERNELS)
def test_legal_calls_on_gloo_raise_no_alarm(op: str) -> None:
    """What came back is what was inferred, and every rank's call is in the ledger; a legacy op as what it calls."""
    for ranks in sample(calls(op), 3):
        with cr.RuleMode(check=True) as ledger:
            assert "ok" == carry_out(world(ranks[0].group.size), ranks).outcome
        assert [] == ledger.findings
        assert sorted(map(name_and_rank, ranks)) == sorted(map(name_and_rank, ledger.calls))


def name_and_rank(call: cr.Call) -> tuple[str, int]:
    return call.op.partition("::")[2], call.group.rank


# -- off


def state() -> dict[str, Any]:
    modules = torch.nn.modules.module
    return {
        "thread": threading.Thread.start,
        "hooks": [
            dict(hooks)
            for hooks in (
                modules._global_forward_hooks,
                modules._global_forward_pre_hooks,
                modules._global_forward_hooks_always_called,
                optimizers._global_optimizer_pre_hooks,
                optimizers._global_optimizer_post_hooks,
            )
        ],
        "random": (random.getstate(), torch.get_rng_state().tolist()),
        "except": sys.excepthook,
        "environment": dict(os.environ),
        "coalescing": dict(dist.distributed_c10d._world.pg_coalesce_state),
        "modes": _get_current_dispatch_mode_stack(),
    }


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_off_means_off(group: dist.ProcessGroup, error: type[BaseException] | None) -> None:
    """Also when the block is left by an error, out of a module and a coalescing manager."""
    program()
    before = state()

    def leave(*_: Any) -> None:
        with dist._coalescing_manager(group):
            dist.all_reduce(torch.ones(2))
            if error is not None:
                raise error

    model = torch.nn.Linear(2, 2)
    before["random"] = state()["random"]
    model.register_forward_hook(leave)
    with cr.RuleMode(check=True):
        during = state()
        if error is None:
            model(torch.ones(1, 2))
        else:
            with pytest.raises(error), cr.RuleMode():
                model(torch.ones(1, 2))
    assert before != during
    assert before == state()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"check": "yes"}, "check='yes', but should be False, True, 'raise', 'warn' or 'record'"),
        ({"execute": 0}, "execute=0, but should be True or False"),
        ({"backend": "nccl2"}, "backend='nccl2', but should be 'auto', None or one of 'gloo'"),
        ({"keep": -1}, "keep=-1, but should be the number of calls to keep, 0 or more"),
        ({"check": []}, r"check=\[\], but should be"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(cr.CallError, match=message):
        cr.RuleMode(**arguments)
