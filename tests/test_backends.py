"""A world of any backend: found by its name, called by its methods or at the dispatcher, judged, and closed."""

import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, find, given, settings

import collective_rules as cr
from collective_rules.sandbox import Result
from collective_rules.testing import World, WorldTimeout, close_worlds, world
from collective_rules.testing.expected import differences
from collective_rules.testing.methods import METHODS, call_method, method_name, method_source
from collective_rules.testing.process_groups import resolve
from collective_rules.testing.run_calls import carry_out
from collective_rules.testing.strategies import calls
from collective_rules.testing.tensors import flat, make
from collective_rules.testing.world import has_cpu_kernel
from tests.leaks import held

SHORT = 0.3
FAULTY = str(Path(__file__).with_name("faulty.py"))

OPS = [op for op in cr.ops() if has_cpu_kernel(cr.lookup(op))]
C10D = [op for op in OPS if op.startswith("c10d::")]
BEYOND_PYTHON = {
    "_c10d_functional::all_gather_into_tensor_out",  # all_gather_single is the one that PyProcessGroup.hpp leaves out
    "_c10d_functional::batch_p2p_ops",  # startCoalescing asks the C++ backend
    "c10d_functional::batch_p2p_ops",
}
"""Ops that torch 2.13 puts to no ProcessGroup written in Python."""

first = settings(phases=[Phase.generate], database=None, derandomize=True)
few = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
Group = tuple[cr.Call, ...]


def faulty(name: str) -> str:
    return f"{FAULTY}:{name}"


def judged(group: Group, backend: Any, timeout: float = 5.0) -> str:
    """The outcome of the group, with the details."""
    result = carry_out(world(group[0].group.size, timeout, backend=backend), group)
    return "\n  ".join([result.outcome, *result.details])


def always_ok(op: str, most_ranks: int, backend: Any, fits: Callable[[Group], bool] = lambda group: True) -> None:
    """Whatever legal group is drawn of those that fit, the backend gives what the oracle computes."""

    @few
    @given(calls(op, most_ranks=most_ranks).filter(fits))
    def holds(group: Group) -> None:
        assert judged(group, backend) == "ok"

    holds()


def sums(size: int, **arguments: Any) -> Group:
    """Everybody's all-reduce."""
    given = {"tensors": [(2, 3)], **arguments}
    return tuple(cr.call("c10d::allreduce_", group=cr.Group(size, rank), **given) for rank in range(size))


# -- the table of methods, against real gloo


def gloo(store: Any, rank: int, size: int, timeout: timedelta) -> dist.ProcessGroup:
    """A real gloo group, in torch's own class."""
    group = dist.ProcessGroup(store, rank, size)
    group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
    backend = dist.ProcessGroupGloo(store, rank, size, timeout)
    group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, backend)
    return group


def forwarding(names: dict[str, str]) -> type[dist.ProcessGroup]:
    """A class of Python groups that pass each method on to a real gloo group."""

    class Forwarding(dist.ProcessGroup):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            super().__init__(rank, size)
            self.inner = gloo(store, rank, size, timeout)

    for name in names.values():

        def forward(self: Any, *arguments: Any, name: str = name) -> Any:
            return getattr(self.inner, name)(*arguments)

        setattr(Forwarding, name, forward)
    return Forwarding


NEW = forwarding({op: method.names[0] for op, method in METHODS.items()})
OLD = forwarding({op: method.names[-1] for op, method in METHODS.items()})


def test_the_table_has_a_method_for_each_op() -> None:
    """All c10d ops with a CPU kernel, and no other."""
    assert C10D == sorted(METHODS, key=C10D.index)
    assert len(METHODS) == 20


@pytest.mark.parametrize("op", METHODS)
def test_a_methods_arguments_are_the_schemas(op: str) -> None:
    """Each goes by position or into one field of the options, but for those that Python cannot pass on."""
    method, row = METHODS[op], cr.lookup(op)
    taken = [*method.positional, *method.fields]
    unused = {
        "c10d::allreduce_": ["sparse_indices"],
        "c10d::barrier": ["tensor"],
        "c10d::monitored_barrier_": ["tensor", "device_ids"],
    }
    assert sorted(a.name for a in row.arguments if not a.is_group) == sorted([*taken, *unused.get(op, [])])
    if method.options:
        options = getattr(dist.distributed_c10d, method.options)()
        assert all(hasattr(options, field) for field in method.fields.values())


@pytest.mark.parametrize("group_class", [NEW, OLD], ids=["new names", "old names"])
@pytest.mark.parametrize("op", METHODS)
def test_a_method_does_what_the_op_does(op: str, group_class: type) -> None:
    """Real gloo's methods, called by the table, give what the oracle computes."""
    always_ok(op, 3, group_class)


@pytest.mark.parametrize("op", METHODS)
def test_a_method_as_source_does_what_the_op_does(op: str) -> None:
    """What is rendered can be run: its last line is an expression, a Work or None."""

    @few
    @given(calls(op, most_ranks=3))
    def holds(group: Group) -> None:
        made = {call.group.rank: make(call) for call in group}
        ranks = world(group[0].group.size, 5.0)

        def by_source(rank: int) -> Any:
            if rank not in made:
                return None
            text = {name: made[rank].arguments[name] if name == "reduce_op" else name for name in made[rank].arguments}
            run(
                method_source(METHODS[made[rank].call.op], text, "ranks.groups[rank]"),
                ranks,
                rank,
                made[rank].arguments,
            )
            names = [each.name for each in made[rank].call.row.returns if each.kind == "argument"]
            return tuple(made[rank].arguments[name] for name in names)

        returned = ranks.each(by_source)
        assert [each.error for each in returned] == [None] * ranks.size
        assert differences(made, {rank: returned[rank].values[0] for rank in made}) == ()

    holds()


def run(source: str, ranks: World, rank: int, arguments: dict[str, Any]) -> None:
    """Execute a method's source, and wait for its Work."""
    names = {"torch": torch, "dist": dist, "timedelta": timedelta, "ranks": ranks, "rank": rank, **arguments}
    *lines, last = source.splitlines()
    exec("\n".join(lines), names)
    work = eval(last, names)
    if work is not None:
        work.wait()


def test_source_names_what_it_sets() -> None:
    """Options appear only where something is set; a reduce op goes by its name, a timeout in milliseconds."""
    text = {"output_tensor": "out", "input_tensor": "x"}
    expected = "group.all_gather_single(out, x, dist.distributed_c10d.AllgatherOptions())"
    assert expected == method_source(METHODS["c10d::_allgather_base_"], text, "group")
    expected = "pg._reduce_scatter_base(out, x, options)"
    lines = method_source(
        METHODS["c10d::_reduce_scatter_base_"],
        {**text, "reduce_op": "premul_sum", "timeout": "500"},
        name="_reduce_scatter_base",
    ).splitlines()
    assert lines == [
        "options = dist.ReduceScatterOptions()",
        "options.reduceOp = dist._make_nccl_premul_sum(2.0)",
        "options.timeout = timedelta(milliseconds=500)",
        expected,
    ]
    with pytest.raises(cr.CallError, match="c10d::send: dst is missing"):
        method_source(METHODS["c10d::send"], {"tensors": "[x]"})
    with pytest.raises(cr.CallError, match="reduce_op='mean', but should be one of sum"):
        method_source(METHODS["c10d::allreduce_"], {"tensors": "[x]", "reduce_op": "mean"})


def test_a_method_is_called_by_the_name_that_the_class_knows() -> None:
    """New names know nothing of a Python class's old ones."""
    method = METHODS["c10d::alltoall_base_"]
    assert method_name(world(1).groups[0], method) == "all_to_all_single"
    assert method_name(NEW(dist.HashStore(), 0, 1, timedelta(seconds=1)), method) == "all_to_all_single"
    assert method_name(OLD(dist.HashStore(), 0, 1, timedelta(seconds=1)), method) == "alltoall_base"


def test_options_that_are_left_out_keep_torchs_default() -> None:
    """Only what is given is set; a number of milliseconds becomes a timedelta."""
    seen = []

    class Group(dist.ProcessGroup):
        def broadcast(self, tensors: Any, options: Any) -> None:
            seen.append((options.rootRank, options.rootTensor, options.asyncOp, options.timeout))

    group, default = Group(0, 1), dist.BroadcastOptions()
    call_method(group, METHODS["c10d::broadcast_"], {"tensors": []})
    call_method(group, METHODS["c10d::broadcast_"], {"tensors": [], "root_rank": 2, "async_op": False, "timeout": 1500})
    assert seen == [(0, 0, True, default.timeout), (2, 0, False, timedelta(seconds=1.5))]


# -- backends without a fault


@pytest.mark.parametrize("op", [op for op in OPS if op not in BEYOND_PYTHON])
def test_a_right_backend_is_found_right(op: str) -> None:
    """Methods for c10d's ops, the dispatcher for the others, whose kernels call the same methods."""
    always_ok(op, 4, faulty("right"))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("backend", ["gloo", "threaded", faulty("right")], ids=["gloo", "threaded", "right"])
def test_a_world_of_any_size(backend: str, size: int) -> None:
    """Each rank gets its own outcome."""
    inputs = [{"input": torch.tensor([rank])} for rank in range(size)]
    outcomes = world(size, backend=backend).run("_c10d_functional::all_gather_into_tensor", inputs)
    assert [list(range(size))] * size == [outcome.values[0].tolist() for outcome in outcomes]
    assert judged(sums(size), backend) == "ok"


UNKNOWN_TO_THREADS = {"reduce_", "allgather_coalesced_", "send", "recv_", "recv_any_source_", "monitored_barrier_"}
THREADED = [op for op in C10D if op.partition("::")[2] not in UNKNOWN_TO_THREADS]


def threads_are_right(group: Group) -> bool:
    """Whether torch's threaded group takes such a call, and copies nothing in the wrong order.

    Its lists of tensors are reduced one by one, and their root tensor is not asked for; it reads what it has written
    already; its reduce-scatter sums or averages. The sum of one -0 is 0 there (`torch.sum`), as in no other backend.
    """
    row = group[0].row
    specs = [spec for call in group for value in call.arguments.values() for spec in flat(value)]
    alone = all(spec.memory is None for spec in specs if isinstance(spec, cr.Spec))
    zeros = group[0].row.reduce_op and any(spec.dtype.is_complex for spec in specs if isinstance(spec, cr.Spec))
    lists = not row.entry.one_tensor or len(group[0].arguments["tensors"]) == 1
    reduces = row.rule.name not in ("reduce_scatter", "reduce_scatter_tensor")
    return alone and lists and not zeros and (reduces or group[0].attribute("reduce_op") in ("sum", "avg"))


@pytest.mark.parametrize("op", [*THREADED, "_c10d_functional::all_reduce", "_c10d_functional::all_to_all_single"])
def test_torchs_threads_are_right_where_they_know_the_op(op: str) -> None:
    """ProcessLocalGroup gives what the oracle computes."""
    always_ok(op, 4, "threaded", threads_are_right)


@pytest.mark.parametrize(
    "group",
    [
        pytest.param(sums(2, tensors=[(2,), (2,)]), id="two tensors are not reduced with each other"),
        pytest.param(
            tuple(
                cr.call("c10d::broadcast_", group=cr.Group(2, rank), tensors=[(2,), (2,)], root_rank=0, root_tensor=1)
                for rank in range(2)
            ),
            id="the root tensor is not asked for",
        ),
    ],
)
def test_torchs_threads_are_wrong_with_several_tensors(group: Group) -> None:
    """What gloo does right is found wrong here: the filter above is needed."""
    assert judged(group, "gloo") == "ok"
    assert judged(group, "threaded").startswith("silently wrong")


@pytest.mark.parametrize(
    ("op", "backend"),
    [(f"c10d::{name}", "threaded") for name in sorted(UNKNOWN_TO_THREADS)]
    + [(op, faulty("right")) for op in sorted(BEYOND_PYTHON)],
)
def test_what_a_group_does_not_implement_raises(op: str, backend: str) -> None:
    """The error is torch's, and an outcome like any other. An op that torch learns to pass on leaves its list."""
    group = find(calls(op), lambda group: True, settings=first)
    assert re.match("raises\n.*No backend type associated with device type cpu", judged(group, backend))


def test_a_fake_backend_sends_nothing() -> None:
    """Right alone, and silently wrong in company: it reduces nothing, and gathers its own tensor W times."""
    assert judged(sums(1), "fake") == "ok"
    assert judged(sums(2), "fake").startswith("silently wrong\n  rank 0: tensors holds [1.0, 2.0")
    outcomes = world(2, backend="fake").run(
        "_c10d_functional::all_gather_into_tensor", [{"input": torch.tensor([rank])} for rank in range(2)]
    )
    assert [outcome.values[0].tolist() for outcome in outcomes] == [[0, 0], [1, 1]]


# -- backends with a fault

GATHER = [op for op in OPS if "gather" in op or "alltoall" in op or "all_to_all" in op]
REDUCE = [op for op in OPS if "reduce" in op]
OVERWRITE = [op for op in C10D if cr.lookup(op).writes]

FAULTS = {
    "wrong_order": GATHER,
    "ignores_reduce_op": REDUCE,
    "forgets_a_rank": GATHER + REDUCE,
    "writes_beyond": OVERWRITE,
}


@pytest.mark.parametrize(
    ("fault", "op"),
    [
        pytest.param(fault, op, id=f"{fault}, {op}")
        for fault, ops in FAULTS.items()
        for op in dict.fromkeys(ops)
        if op not in BEYOND_PYTHON
    ],
)
def test_a_fault_is_found(fault: str, op: str) -> None:
    """Some drawn legal call shows it, and no call raises or hangs for it."""
    seen = set()

    def shows(group: Group) -> bool:
        outcome = judged(group, faulty(fault)).partition("\n")[0]
        seen.add(outcome)
        return outcome == "silently wrong"

    search = settings(max_examples=200, phases=[Phase.generate], database=None, derandomize=True)
    find(calls(op, most_ranks=3), shows, settings=search)
    assert seen <= {"ok", "silently wrong"}


@pytest.mark.parametrize(
    ("fault", "outcome", "line"),
    [
        ("writes_beyond", "silently wrong", "1 elements changed that the op does not write"),
        ("raises", "raises", "RuntimeError: rank {} will not have it"),
    ],
)
def test_each_rank_has_a_line(fault: str, outcome: str, line: str) -> None:
    """The elements that changed beside an output are counted; an error is shown in its own words."""
    lines = [f"  rank {rank}: {line.format(rank)}" for rank in range(2)]
    assert [outcome, *lines] == judged(sums(2), faulty(fault)).splitlines()


@pytest.mark.parametrize("op", ["c10d::allreduce_", "_c10d_functional::all_reduce"])
def test_a_work_that_never_ends_hangs(op: str) -> None:
    """Within the deadline, and the threads that wait are let go when the world is closed."""
    name = cr.lookup(op).reads[0]
    tensor = [(2,)] if name == "tensors" else (2,)
    group = tuple(cr.call(op, group=cr.Group(2, rank), **{name: tensor, "reduce_op": "sum"}) for rank in range(2))
    before, start = threading.active_count(), time.monotonic()
    with World(2, SHORT, backend=faulty("hangs")) as ranks:
        result = carry_out(ranks, group)
    assert result == Result("hangs", [f"rank {rank}: no answer within 0.3 s" for rank in range(2)])
    assert time.monotonic() - start < 10 * SHORT
    assert before == threading.active_count()


def test_a_backend_that_cannot_be_ended_is_left_behind() -> None:
    """close() has a deadline, too."""
    released = threading.Event()

    class Stubborn(dist.ProcessGroup):
        def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
            super().__init__(rank, size)

        def barrier(self, options: Any) -> None:
            released.wait()

        def shutdown(self) -> None:
            released.wait()

    ranks = World(2, 0.1, backend=Stubborn)
    with pytest.raises(WorldTimeout, match="c10d::barrier: no answer"):
        ranks.run("c10d::barrier", [{}, {}])
    assert ranks.closed
    released.set()


def test_a_rank_that_ends_its_thread_has_an_outcome() -> None:
    """SystemExit is no Exception, and ends nothing but the call."""

    def leave(rank: int) -> None:
        sys.exit(f"rank {rank} leaves")

    with World(2, backend=faulty("right")) as ranks:
        assert [repr(outcome.error) for outcome in ranks.each(leave)] == [
            "SystemExit('rank 0 leaves')",
            "SystemExit('rank 1 leaves')",
        ]


# -- names

RAISING = "def factory(*_):\n    raise OSError('no such device')\n"
WRONG = "def factory(*_):\n    return 3\n\nclass Near:\n    pass\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glooo", "backend='glooo', but should be 'gloo', 'fake', 'threaded', a name registered by"),
        ("", "backend='', but should be 'gloo'"),
        (":factory", "backend=':factory', but should be 'gloo'"),
        (3, "backend=3, but should be a factory, 'gloo'"),
        ("no_such_module:factory", "no_such_module cannot be imported: ModuleNotFoundError: No module named"),
        ("/no/such/file.py:factory", "backend='/no/such/file.py:factory', but there is no file /no/such/file.py$"),
        ("{folder}/wrong.py:factor", "wrong.py has no factor; it has factory, Near$"),
        ("{folder}/wrong.py:Near.by", r"wrong.py has no Near\.by; it has"),
        ("{folder}/broken.py:factory", "broken.py cannot be imported: ZeroDivisionError: division by zero$"),
        ("{folder}/script.py:factory", "script.py cannot be imported: SystemExit: 1$"),
        ("math:pi", r"backend='math:pi', but math\.pi is 3\.14\d+, which cannot be called$"),
    ],
)
def test_a_backend_that_is_not_there_is_named(name: Any, message: str, tmp_path: Path) -> None:
    """Before any rank is started."""
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "script.py").write_text("raise SystemExit(1)\n")
    with pytest.raises(cr.CallError, match=message):
        resolve(name.format(folder=tmp_path) if isinstance(name, str) else name)
    assert not [module for module in sys.modules if "broken.py" in module or "script.py" in module]


def test_what_a_factory_raises_is_told(tmp_path: Path) -> None:
    """With the rank, the error's type and its text; the other ranks are not waited for."""
    (tmp_path / "raising.py").write_text(RAISING)
    (tmp_path / "wrong.py").write_text(WRONG)
    with pytest.raises(cr.CallError, match=r"raising\.py:factory': its factory raised for rank \d: OSError: no such"):
        World(3, backend=f"{tmp_path}/raising.py:factory")
    with pytest.raises(cr.CallError, match=r"returned 3 for rank \d, but should return a torch.distributed Backend"):
        World(3, backend=f"{tmp_path}/wrong.py:factory")


def test_a_factory_that_raises_on_one_rank_is_told_at_once() -> None:
    """The others wait in vain only until their own timeout ends them."""

    def one_fails(store: Any, rank: int, size: int, timeout: timedelta) -> Any:
        if rank == 1:
            raise OSError("no such device")
        return gloo(store, rank, size, timeout)

    before = threading.active_count()
    with pytest.raises(cr.CallError, match="raised for rank 1: OSError: no such device"):
        World(2, SHORT, backend=one_fails)
    assert before == threading.active_count()


def test_a_factory_that_never_returns_is_a_timeout() -> None:
    """Named as what does not answer while connecting."""
    released = threading.Event()

    def waits(*_: Any) -> None:
        released.wait()

    with pytest.raises(WorldTimeout, match=r"connecting: no answer within 0.1 s from ranks? 0"):
        World(1, 0.1, backend=waits)
    released.set()


def right_class() -> Callable[..., Any]:
    """The factory itself."""
    return resolve(faulty("right")).start()


@pytest.mark.parametrize("extended", [False, True])
def test_a_registered_name_is_a_backend(extended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `register_backend` keeps it, with the plain arguments or the extended ones."""

    def create(*arguments: Any) -> Any:
        if not extended:
            return right_class()(*arguments)
        options, _ = arguments
        return right_class()(options.store, options.group_rank, options.group_size, options.timeout)

    monkeypatch.setitem(dist.Backend._plugins, "MINE", dist.Backend._BackendPlugin(create, extended))
    with World(2, backend="mine") as ranks:
        assert repr(ranks) == "<World of 2 mine ranks>"
        assert carry_out(ranks, sums(2)).outcome == "ok"


def test_a_module_or_a_factory_itself_is_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """By "package.module:factory" or as an object: a class, or a function."""
    monkeypatch.syspath_prepend(str(Path(FAULTY).parent))
    for backend in ("faulty:Right", gloo):
        with World(2, backend=backend) as ranks:
            assert carry_out(ranks, sums(2)).outcome == "ok"
    monkeypatch.delitem(sys.modules, "faulty")


def test_a_file_is_loaded_once() -> None:
    """All worlds of one file share its module, in which its ranks may meet."""
    assert resolve(faulty("right")).start() is resolve(faulty("Right")).start()


def test_a_world_is_kept_by_its_backend() -> None:
    """`world` caches by size, timeout and backend."""
    assert world(2, backend="fake") is world(2, backend="fake")
    assert len({id(world(2, backend=backend)) for backend in ("gloo", "fake", "threaded", faulty("right"))}) == 4
    assert world(2) is not world(2, timeout=5.0)
    world(2, backend="fake").close()
    assert not world(2, backend="fake").closed


# -- closing


@pytest.mark.parametrize(
    "backend",
    ["gloo", "fake", "threaded", faulty("right"), gloo, NEW],
    ids=["gloo", "fake", "threaded", "right", "a", "b"],
)
def test_a_closed_world_of_any_backend_leaves_nothing_behind(backend: Any) -> None:
    """No thread, no socket, no registered group, no tag; and torch's world is the one that it was."""
    close_worlds()
    World(2, backend=backend).close()
    patched = dist.distributed_c10d._world
    before = held()
    with World(2, backend=backend) as ranks:
        carry_out(ranks, sums(2))
        names = [ranked.name for ranked in ranks._ranked]
        assert [torch._C._distributed_c10d._resolve_process_group(name) for name in names] == ranks.groups
    assert before == held(before)
    for name in names:
        with pytest.raises(RuntimeError, match="Could not resolve"):
            torch._C._distributed_c10d._resolve_process_group(name)
    assert patched is dist.distributed_c10d._world
    assert torch._C._is_multithreading_enabled()
    assert dict(patched.pg_group_ranks) == {}
    assert patched.tags_to_pg == {}


@pytest.mark.parametrize("backend", ["gloo", "threaded", faulty("right")], ids=["gloo", "threaded", "right"])
def test_ranks_that_wait_in_vain_are_let_go(backend: str) -> None:
    """Closing ends their waits: the connections break, or the group's shutdown says so."""
    close_worlds()
    World(1).close()
    before = threading.active_count()
    with pytest.raises(WorldTimeout, match="from rank 0"):
        World(3, 2.0, backend=backend).run("c10d::allreduce_", [{"tensors": [torch.ones(2)]}, None, None])
    assert before == threading.active_count()


# -- Ctrl-C


class Watched(dist.ProcessGroup):
    """Its barrier never ends, and says when it has begun."""

    begun, ended = threading.Event(), threading.Event()

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self.begun.clear()
        self.ended.clear()

    def barrier(self, options: Any) -> None:
        self.begun.set()
        self.ended.wait()

    def shutdown(self) -> None:
        self.ended.set()


def test_ctrl_c_ends_a_world_of_threads() -> None:
    """The signal may reach any thread; the world is closed, and the interrupt goes on."""
    before = threading.active_count()
    ranks = World(2, 60.0, backend=Watched)

    def interrupt() -> None:
        Watched.begun.wait()
        signal.raise_signal(signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        ranks.run("c10d::barrier", [{}, {}])
    other.join()
    assert ranks.closed
    assert before == threading.active_count()
