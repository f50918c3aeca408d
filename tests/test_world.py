"""A world carries out what it is given, names who did not answer, and leaves nothing behind."""

import importlib
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import collective_rules as cr
from collective_rules.testing import World, WorldTimeout, close_worlds, world
from collective_rules.testing.world import boxed_reduce_op, has_cpu_kernel
from tests.commands import run_python
from tests.leaks import held

SHORT = 0.3

# Its package has a function of that name.
world_module = importlib.import_module("collective_rules.testing.world")


def ones(size: int) -> list[dict[str, object]]:
    return [{"tensors": [torch.ones(2)]} for _ in range(size)]


def test_a_world_outlives_the_default_group() -> None:
    """destroy_process_group() forgets every group of the process; a world that is kept makes itself known again."""
    kept = world(2)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    dist.destroy_process_group()
    assert kept is world(2)
    for op in ("_c10d_functional::broadcast", "c10d_functional::broadcast"):
        name = cr.lookup(op).reads[0]
        calls = [{name: torch.tensor([rank]), "src": 1} for rank in range(2)]
        assert [[1], [1]] == [outcome.values[0].tolist() for outcome in kept.run(op, calls)]


@pytest.mark.parametrize(
    ("reduce_op", "expected"),
    [("sum", 9), ("avg", 4.5), ("product", 18), ("min", 3), ("max", 6), ("band", 2), ("bor", 7), ("bxor", 5)],
)
def test_a_reduce_op_is_passed_by_its_name(reduce_op: str, expected: float) -> None:
    """The boxed ReduceOp is the one that the name says."""
    dtype = torch.float32 if reduce_op == "avg" else torch.int64
    tensors = [torch.tensor([number], dtype=dtype) for number in (3, 6)]
    world(2).run("c10d::allreduce_", [{"tensors": [tensor], "reduce_op": reduce_op} for tensor in tensors])
    assert [[expected]] * 2 == [tensor.tolist() for tensor in tensors]


def test_a_boxed_reduce_op_keeps_its_type() -> None:
    """Boxing asks torch itself, and posts nothing."""
    names = ["sum", "avg", "product", "min", "max", "band", "bor", "bxor", "premul_sum"]
    expected = [int(getattr(dist.ReduceOp.RedOpType, name.upper())) for name in names]
    assert expected == [boxed_reduce_op(name).op() for name in names]
    with pytest.raises(cr.CallError, match="reduce_op='mean', but should be one of sum"):
        boxed_reduce_op("mean")


def test_each_rank_may_make_another_call() -> None:
    """A send meets a recv, and a rank without a call takes no part."""
    buffer = torch.zeros(3)
    calls = [{"tensors": [torch.arange(3.0)], "dst": 2}, None, {"tensors": [buffer], "src": 0}]
    outcomes = world(3).run(["c10d::send", "c10d::barrier", "c10d::recv_"], calls)
    assert [outcome.error for outcome in outcomes] == [None] * 3
    assert buffer.tolist() == [0, 1, 2]


def test_the_callers_dispatch_modes_see_what_it_posts() -> None:
    """Ops that do not block are posted by the calling thread, in the order of the ranks."""
    seen = []

    class Witness(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func.namespace == "c10d":
                seen.append(dist.ProcessGroup.unbox(args[1]).rank())
            return func(*args, **(kwargs or {}))

    ranks, calls = world(3), ones(3)
    with Witness():
        ranks.run("c10d::allreduce_", calls)
    assert seen == [0, 1, 2]


def test_a_backward_pass_runs_on_every_rank() -> None:
    """`each` gives every rank a thread, which a functional backward needs: it waits for the others."""
    inputs = [torch.full((2,), float(rank), requires_grad=True) for rank in range(2)]
    ranks = world(2)

    def backward(rank: int) -> None:
        gathered = torch.ops._c10d_functional_autograd.all_gather_into_tensor(inputs[rank], 2, ranks.groups[rank])
        weights = torch.arange(4.0) * (rank + 1)
        (torch.ops._c10d_functional.wait_tensor(gathered) * weights).sum().backward()

    assert [outcome.error for outcome in ranks.each(backward)] == [None, None]
    assert [tensor.grad.tolist() for tensor in inputs if tensor.grad is not None] == [[0.0, 3.0], [6.0, 9.0]]


def test_an_op_that_waits_by_itself_gets_a_thread_for_each_rank() -> None:
    """async_op=False blocks until all ranks have come."""
    calls = [{"tensors": [torch.ones(1)], "async_op": False} for _ in range(3)]
    world(3).run("c10d::allreduce_", calls)
    assert [call["tensors"][0].tolist() for call in calls] == [[3.0]] * 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("ops", "calls", "silent"),
    [
        pytest.param("c10d::allreduce_", [*ones(2), None], (0, 1), id="a work"),
        pytest.param(
            "_c10d_functional::all_reduce",
            [None, {"input": torch.ones(1), "reduce_op": "sum"}, {"input": torch.ones(1), "reduce_op": "sum"}],
            (1, 2),
            id="a functional result",
        ),
        pytest.param("c10d::recv_", [{"tensors": [torch.ones(1)], "src": 1}, None, None], (0,), id="a receive"),
        pytest.param("c10d::monitored_barrier_", [{}, None, {}], (0, 2), id="a monitored barrier"),
    ],
)
def test_a_rank_that_waits_in_vain_is_named(
    ops: str, calls: list[dict[str, object] | None], silent: tuple[int]
) -> None:
    """A hang is reported as a hang, the world is discarded, and the next one is fresh."""
    stale = world(3, timeout=SHORT)
    with pytest.raises(WorldTimeout, match=rf"{ops}: no answer within 0.3 s from rank") as caught:
        stale.run(ops, calls)
    assert silent == caught.value.ranks
    assert stale.closed
    fresh = world(3, timeout=SHORT)
    assert fresh is not stale
    assert [outcome.error for outcome in fresh.run("c10d::allreduce_", ones(3))] == [None] * 3


def test_a_timeout_tells_what_the_others_raised() -> None:
    """Where the root refuses its call, the message has its reason."""
    calls = [{"tensors": [torch.ones(1)], "root_rank": root} for root in (2, 0)]
    with pytest.raises(WorldTimeout, match=r"from rank 1\n  rank 0: .*invalid root rank: 2") as caught:
        world(2, timeout=SHORT).run("c10d::broadcast_", calls)
    assert list(caught.value.returned) == [0]


@pytest.mark.parametrize(("dtype", "posted"), [(torch.int16, True), (torch.float32, False)])
def test_an_outcome_says_whether_the_post_or_the_wait_raised(dtype: torch.dtype, posted: bool) -> None:
    """A dtype is refused at the wait, a root at the post."""
    calls = [{"tensors": [torch.ones(1).to(dtype)], "root_rank": 0 if posted else 5} for _ in range(2)]
    outcomes = world(2).run("c10d::broadcast_", calls)
    assert [posted, posted] == [outcome.posted for outcome in outcomes if outcome.error]


def test_a_world_that_lost_step_is_not_used_again() -> None:
    """An error after the post may leave the ranks with different counts of collectives."""
    ranks = world(2, timeout=5.0)
    ranks.run("c10d::broadcast_", [{"tensors": [torch.ones(1).to(torch.int16)], "root_rank": 0} for _ in range(2)])
    assert ranks.closed


def test_a_world_that_timed_out_leaves_nothing_behind() -> None:
    """Neither the threads that hung nor gloo's own."""
    close_worlds()
    World(1).close()
    before, threads = held(), threading.active_count()
    with pytest.raises(WorldTimeout):
        World(2, timeout=SHORT).run("c10d::recv_", [{"tensors": [torch.ones(1)], "src": 1}, None])
    assert before == held(before)
    assert threads == threading.active_count()


def interrupt() -> None:
    """Ctrl-C, caught by another thread."""
    threading.Thread(target=signal.raise_signal, args=(signal.SIGINT,)).start()


@pytest.mark.parametrize(
    ("waits", "op", "call"),
    [
        ("wait_until", "c10d::allreduce_", {"tensors": [torch.ones(2)]}),
        ("wait", "_c10d_functional::all_reduce", {"input": torch.ones(2), "reduce_op": "sum"}),
        ("wait", "c10d::recv_", {"tensors": [torch.ones(2)], "src": 0}),
        ("post", "c10d::allreduce_", {"tensors": [torch.ones(2)]}),
    ],
    ids=["a work", "a functional result", "a receive", "posting"],
)
def test_ctrl_c_closes_the_world(waits: str, op: str, call: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt goes on at once, nothing is left, and the next world is fresh."""
    close_worlds()
    World(1).close()
    before, start = held(), time.monotonic()
    ranks, unwatched = World(3, timeout=30.0), getattr(world_module, waits)

    def watched(*arguments: object) -> object:
        if waits != "post":
            interrupt()
            return unwatched(*arguments)
        result = unwatched(*arguments)
        interrupt()
        return result

    monkeypatch.setattr(world_module, waits, watched)
    with pytest.raises(KeyboardInterrupt):
        ranks.run(op, [None, call, None])
    monkeypatch.undo()
    assert ranks.closed
    assert before == held(before)
    assert time.monotonic() - start < 10
    assert world(3).run("c10d::allreduce_", ones(3))[0].error is None


def test_ctrl_c_ends_a_function_on_each_rank() -> None:
    """The ranks that wait inside gloo are let go."""
    ranks, start = World(2, timeout=30.0), time.monotonic()

    def one_waits(rank: int) -> None:
        if rank == 0:
            total = torch.ops._c10d_functional.all_reduce(torch.ones(1), "sum", ranks.groups[0])
            interrupt()
            torch.ops._c10d_functional.wait_tensor(total)

    with pytest.raises(KeyboardInterrupt):
        ranks.each(one_waits)
    assert ranks.closed
    assert time.monotonic() - start < 10


def test_a_closed_world_refuses_to_run() -> None:
    """It says how to get another."""
    ranks = World(1)
    ranks.close()
    with pytest.raises(cr.CollectiveRulesError, match=r"1 gloo ranks, closed> cannot be used; world\(1\) makes"):
        ranks.run("c10d::barrier", [{}])


@pytest.mark.parametrize(
    ("op", "calls", "message"),
    [
        ("c10d::allreduce_", [{}], "tensors is missing"),
        ("c10d::allreduce_", [{"tensors": [], "root": 0}], r"takes .*, not \['root'\]"),
        ("c10d::barrier", [{}, {}], "2 calls of 1 ops, but should be 1 of each"),
        ("symm_mem::multimem_all_reduce_", [{}], "has no CPU kernel"),
    ],
)
def test_a_call_that_no_backend_could_take_is_refused(op: str, calls: list[dict[str, object]], message: str) -> None:
    """Before anything is posted: no rank is left waiting."""
    with pytest.raises(cr.CallError, match=message):
        world(1).run(op, calls)
    assert not world(1).closed


def test_an_op_of_a_later_torch_is_refused() -> None:
    """Rows may be ahead of the running torch."""
    for row in map(cr.lookup, cr.ops()):
        if not row.available:
            assert not has_cpu_kernel(row)
            with pytest.raises(cr.CallError, match="is not in torch"):
                world(1).run(row.op, [{}])


def test_a_legacy_group_is_found_by_its_tag_and_ranks() -> None:
    """(tag, ranks, group_size) resolve to the rank's own group, whatever other worlds there are."""
    world(4)
    calls = [{"self": torch.tensor([rank]), "reduceOp": "max"} for rank in range(3)]
    outcomes = world(3).run("c10d_functional::all_reduce", calls)
    assert [outcome.values[0].tolist() for outcome in outcomes] == [[2]] * 3


def test_worlds_do_without_hypothesis() -> None:
    """The conformance tests of a backend need no hypothesis to run one."""
    script = "import sys, collective_rules.testing; sys.exit('hypothesis' in sys.modules)"
    assert run_python("-c", script).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0,), "size=0, but a world has at least one rank"),
        (("3",), "size='3'"),
        ((True,), "size=True"),
        ((2, float("nan")), "timeout=nan, but should be a number of seconds"),
        ((2, -1), "timeout=-1"),
        ((2, 1e300), "timeout=1e\\+300"),
    ],
)
def test_what_is_no_world_is_refused_in_words(arguments: tuple[object, ...], said: str) -> None:
    """Before anything is connected."""
    with pytest.raises(cr.CallError, match=said):
        World(*arguments)  # type: ignore[arg-type]  # that is the point
