"""Ranks in processes of their own: what they come to is told in time, and nothing of them is left.

The faulty backend is in this file, too: processes import it by the file's path.
"""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _create_work_from_future

import collective_rules as cr
from collective_rules.cli import main
from collective_rules.conformance import measure
from collective_rules.conformance.process_runner import EndedError, TerminatedError
from collective_rules.conformance.reproducer import reproducer
from collective_rules.conformance.summary import headline
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.sandbox import DIES, FAILS, HANGS, OK, RAISES, REFUSED, SILENTLY_WRONG, UNDEFINED, Result
from collective_rules.testing import world
from collective_rules.testing.device import DeviceTensors
from collective_rules.testing.dispatch import has_cpu_kernel
from collective_rules.testing.drawing import drawable
from collective_rules.testing.expected import differences
from collective_rules.testing.processes import ProcessWorld
from collective_rules.testing.rank import Rank, in_step, merged
from collective_rules.testing.strategies import calls, sample
from collective_rules.testing.tensors import make
from tests.leaks import gone, held

ROOT = Path(__file__).parents[1]

KINDS = (
    "c10d::allreduce_",
    "c10d::barrier",
    "c10d::scatter_",
    "c10d::alltoall_base_",
    "c10d::send",
    "_c10d_functional::reduce_scatter_tensor_coalesced",
    "_c10d_functional::batch_p2p_ops",
    "_c10d_functional_autograd::all_to_all_single",
    "c10d_functional::all_gather_into_tensor",
    "_dtensor::shard_dim_alltoall",
)
"""One op of each kind that is called in a way of its own."""


class Faulty(dist.ProcessGroup):
    """gloo, with a last rank that gets sums wrong and does not come to barriers."""

    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self.gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self.last, self.own_name = rank == size - 1, ""

    # torch has no name for a group without a C++ backend.
    def _set_group_name(self, name: str) -> None:
        self.own_name = name

    @property
    def group_name(self) -> str:
        return self.own_name

    def allreduce(self, tensors: list[torch.Tensor], options: Any) -> Any:
        self.gloo.allreduce(tensors, options).wait()
        if self.last:
            tensors[0].zero_()
        future: Any = torch.futures.Future()
        future.set_result(tensors)
        return _create_work_from_future(future)

    def barrier(self, options: Any) -> Any:
        if self.last:
            select.select([], [], [])
        return self.gloo.barrier(options)


FAULTY = f"{__file__}:Faulty"

KILLED = """
import sys
import collective_rules as cr
from collective_rules.testing.processes import ProcessWorld

class Telling(ProcessWorld):
    def _results(self, ranks, timeout, ends):
        if timeout == self.timeout:
            print(*(worker.process.pid for worker in self._workers), flush=True)
        return super()._results(ranks, timeout, ends)

ranks = Telling(1, timeout=600, backend=sys.argv[1])
hangs = [cr.call("c10d::barrier", group=cr.Group(1))]
for _ in range(2):
    try:
        ranks.carry_out(hangs)
    except KeyboardInterrupt:
        print("interrupted", len(ranks._workers), flush=True)
"""

# -- processes that get ready while other tests run


@attrs.frozen
class Job:
    """A command that runs on its own, and what it puts out."""

    process: subprocess.Popen[str]

    def result(self, within: float = 150.0) -> tuple[int, str, str]:
        out, errors = self.process.communicate(timeout=within)
        return self.process.returncode, out, errors


@attrs.frozen
class Jobs:
    killed: Job
    legal: Job
    hanging: Job


def started(*arguments: str) -> Job:
    command = [sys.executable, "-W", "ignore", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return Job(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True))


def torchrun(ranks: int, *arguments: str) -> Job:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    return started(*launch, "-m", "collective_rules", "conformance", *arguments)


@pytest.fixture(scope="module", autouse=True)
def jobs() -> Iterator[Jobs]:
    made = Jobs(
        started("-c", KILLED, FAULTY),
        torchrun(4, "--select", "c10d::allgather_,c10d::send,_c10d_functional::all_r*_", "--examples=5"),
        torchrun(2, "--backend", FAULTY, "--select", "c10d::allreduce_,c10d::barrier", "--examples=3", "--deadline=5"),
    )
    yield made
    for job in (made.killed, made.legal, made.hanging):
        with job.process:
            if job.process.poll() is None:
                os.killpg(job.process.pid, signal.SIGKILL)


# -- worlds


@pytest.fixture(scope="module")
def two() -> Iterator[ProcessWorld]:
    with ProcessWorld(2) as ranks:
        yield ranks


def drawn(op: str, size: int, count: int) -> list[tuple[cr.Call, ...]]:
    """Some legal groups of calls, for `size` ranks."""
    groups = [group for group in sample(calls(op, most_ranks=size), 8 * count) if group[0].group.size == size]
    assert groups
    return groups[:count]


def sums(size: int, *shapes: tuple[int, ...], **more: Any) -> list[cr.Call]:
    """An allreduce_ on the ranks that there are shapes for."""
    tensors = [[cr.Spec(shape)] for shape in shapes]
    return [cr.call("c10d::allreduce_", group=cr.Group(size, rank), tensors=t) for rank, t in enumerate(tensors)]


@pytest.mark.parametrize("op", KINDS)
def test_legal_calls_pass_on_two_ranks(two: ProcessWorld, op: str) -> None:
    """Whatever its kind: a Work, a functional result, a send that waits, a legacy op that looks for its group."""
    assert {OK} == {two.carry_out(group).outcome for group in drawn(op, 2, 3)}


def test_a_call_that_all_ranks_refuse_leaves_them_as_they_are(two: ProcessWorld) -> None:
    """Nothing has been sent: the same processes go on."""
    before = [worker.process.pid for worker in two._workers]
    group = [cr.call("c10d::broadcast_", group=cr.Group(2, rank), tensors=[(2,)], root_rank=7) for rank in range(2)]
    result = two.carry_out(group)
    assert result.outcome == RAISES
    assert [f"rank {rank}: RuntimeError: ProcessGroupGloo::broadcast: invalid root rank: 7" for rank in range(2)] == [
        *result.details
    ]
    assert two.carry_out(sums(2, (3,), (3,))) == Result(OK)
    assert before == [worker.process.pid for worker in two._workers]


def test_a_call_that_nobody_could_make_is_refused(two: ProcessWorld) -> None:
    """By the rank that finds out, in its process; by this one, where it is the group that does not fit."""
    lacking = [cr.call("c10d::_allgather_base_", group=cr.Group(2, rank), input_tensor=(2,)) for rank in range(2)]
    with pytest.raises(CallError, match="output_tensor is missing"):
        two.carry_out(lacking)
    with pytest.raises(CallError, match=r"ranks \[0, 1\] of \{3\} do not fit <ProcessWorld of 2 gloo ranks>"):
        two.carry_out(sums(3, (1,), (1,)))
    with pytest.raises(CallError, match=r"ranks \[0, 0\] of \{2\} do not fit"):
        two.carry_out(sums(2, (1,)) * 2)
    assert two.carry_out(sums(2, (3,), (3,))) == Result(OK)


def test_a_rank_that_waits_in_vain_hangs_and_the_next_call_works(two: ProcessWorld) -> None:
    """All processes are replaced: those that wait cannot be woken."""
    before = [worker.process.pid for worker in two._workers]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two, "timeout", 0.5)
        assert two.carry_out(sums(2, (3,))) == Result(HANGS, ("rank 0: no answer within 0.5 s",))
    assert gone(before, 0.0)
    assert two.carry_out(sums(2, (3,), (3,))) == Result(OK)


def test_a_rank_that_dies_is_told_from_those_that_suffer_from_it(two: ProcessWorld) -> None:
    """A process that is sent more than it expects is aborted by gloo; its peer finds the connection broken."""
    start = time.monotonic()
    result = two.carry_out(sums(2, (2,), (4000,)))
    assert result.outcome == DIES
    assert "rank 0: died by signal 6 (SIGABRT)" in result.details
    assert any("Received data size doesn't match expected size" in line for line in result.details)
    assert time.monotonic() - start < two.timeout


def test_three_ranks_leave_nothing_behind() -> None:
    """No process, file, socket or thread. At last, a layout that gloo does not heed is seen by every rank."""
    before = held()
    with ProcessWorld(3) as ranks:
        pids = [worker.process.pid for worker in ranks._workers]
        for op in KINDS[::2]:
            assert {OK} == {ranks.carry_out(group).outcome for group in drawn(op, 3, 2)}
        group = list(sums(3, (2, 2), (2, 2), (2, 2)))
        transposed = cr.Spec((2, 2), stride=(1, 2))
        group[1] = cr.call("c10d::allreduce_", group=cr.Group(3, 1), tensors=[transposed])
        result = ranks.carry_out(group)
        assert result.outcome == SILENTLY_WRONG
        assert {"rank 0", "rank 1", "rank 2"} == {line.partition(":")[0] for line in result.details}
        assert result.details[1] == (
            "rank 1: tensors holds [30003.0, 30008.0, 30007.0, 30012.0], "
            "but should hold [30003.0, 30006.0, 30009.0, 30012.0]"
        )
    assert before == held(before)
    assert gone(pids, 0.0)
    assert not [name for name in os.listdir("/dev/shm") for pid in pids if str(pid) in name]
    with pytest.raises(CollectiveRulesError, match="<ProcessWorld of 3 gloo ranks, closed> cannot be used"):
        ranks.carry_out(sums(3, (1,), (1,), (1,)))


def test_an_interrupt_or_a_kill_of_the_parent_ends_the_ranks(jobs: Jobs) -> None:
    """Also of ranks that hang. After Ctrl-C the world can still be used."""
    process = jobs.killed.process
    assert process.stdout is not None
    first = [int(pid) for pid in process.stdout.readline().split()]
    assert len(first) == 1
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().split() == ["interrupted", "0"]
    assert gone(first, 0.0)
    second = [int(pid) for pid in process.stdout.readline().split()]
    assert len(second) == 1
    process.kill()
    assert gone(second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size=0, but a world has at least one rank"),
        ({"timeout": 0}, "timeout=0, but should be a positive number"),
        ({"backend": "golo"}, "backend='golo', but should be 'gloo', "),
        ({"backend": "math:golo"}, "backend='math:golo', but math has no golo"),
        ({"device": "cuda:1"}, "device='cuda:1', but should be .* each rank takes one by its number"),
        ({"device": "gpu"}, "device='gpu', but should be 'cpu' or a type of accelerator such as 'cuda'"),
        ({"device": "xla"}, "device='xla', but torch .* finds no such device here"),
    ],
)
def test_a_world_that_cannot_be_is_refused_before_any_process_starts(arguments: dict[str, Any], message: str) -> None:
    before = held()
    with pytest.raises(CallError, match=message):
        ProcessWorld(**{"size": 2, **arguments})
    assert before == held(before)


# -- one rank, and answers


def test_a_rank_judges_itself() -> None:
    """In this process: its own group is gone when it is closed, and it can be set up afresh."""
    with Rank(0, 1, dist.HashStore()) as rank:
        assert rank.carry_out(sums(1, (2,))) == Result(OK)
        assert rank.carry_out(sums(1, (2,)), afresh=True) == Result(OK)
        refused = rank.carry_out([cr.call("c10d::allgather_", group=cr.Group(1), input_tensors=[(1,)])])
        assert refused == Result(REFUSED, ["c10d::allgather_: output_tensors is missing"], started=False)
    assert not dist.is_initialized()


def test_the_gravest_outcome_is_that_of_all() -> None:
    """What the others say as well, except of wrong values that came of it."""
    answers: dict[int, Result] = {}
    for outcome, line, told in [
        (OK, "", []),
        (UNDEFINED, "no value", ["no value"]),
        (SILENTLY_WRONG, "wrong", ["wrong"]),
        (HANGS, "waited", ["waited"]),
        (RAISES, "raised", ["raised", "waited"]),
        (DIES, "died", ["died", "raised", "waited"]),
    ]:
        answers[len(answers)] = Result(outcome, [line] if line else [])
        assert Result(outcome, told) == merged(answers)


@pytest.mark.parametrize(("kind", "error"), [(REFUSED, CallError), (FAILS, CollectiveRulesError)])
def test_what_is_no_backends_fault_is_raised(kind: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="because"):
        merged({0: Result(OK), 1: Result(kind, ("because",))})


def test_ranks_are_in_step_where_all_or_none_sent_something() -> None:
    raised = Result(RAISES, ("no",), started=False)
    assert in_step([raised, raised])
    assert in_step([Result(OK), Result(UNDEFINED)])
    for other in (Result(OK), Result(RAISES), Result(HANGS), Result(DIES), Result(SILENTLY_WRONG)):
        assert not in_step([raised, other])


OPS = [
    op for op in cr.ops() if cr.lookup(op).available and has_cpu_kernel(cr.lookup(op)) and not drawable(cr.lookup(op))
]


@pytest.mark.parametrize("op", OPS)
def test_tensors_keep_their_layout_and_what_they_share_on_another_device(op: str) -> None:
    """A copy on the CPU stands for another device: what came of the copies is judged as if it were the call's own."""
    for group in drawn(op, 2, 3):
        made = {call.group.rank: make(call) for call in group}
        sent = {rank: DeviceTensors(one, torch.device("cpu")) for rank, one in made.items()}
        arguments = [sent[rank].arguments if rank in sent else None for rank in range(2)]
        ops = {call.group.rank: call.op for call in group}
        outcomes = world(2).run([ops.get(rank, op) for rank in range(2)], arguments)
        assert [None, None] == [outcome.error for outcome in outcomes]
        returned = {rank: sent[rank].carried_back(outcomes[rank].values) for rank in made}
        assert () == differences(made, returned)


# -- the command


def test_torchrun_runs_legal_calls(jobs: Jobs) -> None:
    """Four ranks of a real job: rank 0 reports, and nobody else puts anything out."""
    status, out, errors = jobs.legal.result()
    assert (0, "") == (status, errors)
    assert out.startswith("gloo conforms: 20 legal calls passed, 0 failed.\n")
    assert "; groups of 4 ranks, which are processes, on cpu; 5 legal calls of each op, " in out
    assert re.findall(r"^(\S+::\S+) +conforms +5/5 ", out, re.MULTILINE) == [
        "c10d::allgather_",
        "c10d::send",
        "_c10d_functional::all_reduce_",
        "_c10d_functional::all_reduce_coalesced_",
    ]


def test_a_hang_ends_a_job_of_torchruns(jobs: Jobs) -> None:
    """With a report that names the op. Wrong values before it end nothing."""
    status, out, _ = jobs.hanging.result()
    assert status == 1
    assert re.search(r"^c10d::allreduce_ +fails +\d/3 ", out, re.MULTILINE)
    assert re.search(r"^c10d::barrier +fails +0/1 ", out, re.MULTILINE)
    assert "#   rank 1: tensors holds [0.0" in out
    assert "c10d::barrier on 2 ranks of " in out
    assert "#   rank 0: no answer within 5 s\n#   rank 1: no answer within 5 s\n" in out
    assert "The job ended with c10d::barrier: after a hang, its ranks cannot go on.\n" in out


def test_without_torchrun_the_processes_are_started(capsys: pytest.CaptureFixture[str]) -> None:
    """The first example that fails is shown as a program."""
    arguments = ["--ranks", "processes", "--world-size", "1", "--select", "c10d::allreduce_", "--examples", "1"]
    status = main(["conformance", *arguments, "--backend", FAULTY])
    out = capsys.readouterr().out
    assert status == 1
    assert re.search(r"^c10d::allreduce_ +fails +0/1 ", out, re.MULTILINE)
    assert "#   rank 0: tensors holds [0.0], but should hold [1.0]\n" in out


class Dying:
    """Ranks of which one dies in the second call, so that torchrun ends the job."""

    size = 2

    def __init__(self, error: BaseException) -> None:
        self.error, self.count = error, 0

    def carry_out(self, calls: Sequence[cr.Call]) -> Result:
        self.count += 1
        if self.count == 2:
            raise self.error
        return Result(OK)


@pytest.mark.parametrize("error", [EndedError(Result(HANGS)), TerminatedError()], ids=["hang", "death"])
def test_a_job_that_ends_early_does_not_conform(error: BaseException) -> None:
    """What was measured before is reported; the other ops have not been tried."""
    ops = ["c10d::allgather_", "c10d::barrier"]
    made = measure("gloo", select=ops, world_sizes=[2], ranks=lambda size: contextlib.nullcontext(Dying(error)))
    outcome = HANGS if isinstance(error, EndedError) else DIES
    assert [{OK: 1, outcome: 1}, {}] == [op.legal for op in made.ops]
    assert ["fails", "not tried"] == [op.verdict for op in made.ops]
    assert ops[0] in made.ended
    assert headline(made).endswith(made.ended)
    assert not made.conforms


def test_a_program_for_an_accelerator_makes_its_tensors_there() -> None:
    """Each rank takes a device by its number."""
    program = reproducer(sums(1, (2,)), "nccl", Result(RAISES), device="cuda")
    assert 'torch.set_default_device("cuda")' in program
    assert "torch.accelerator.set_device_index(rank % torch.accelerator.device_count())" in program


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "golo"], "backend='golo', but should be 'gloo'"),
        (["--device", "xla"], "device='xla', but torch"),
        (["--deadline", "0"], "deadline=0.0, but should be a number of seconds"),
        (["--select", "c10d::send", "--world-size", "1"], "nothing to measure: c10d::send: it takes two ranks"),
        (["--ranks", "threads", "--device", "cuda"], "--device cuda is for ranks that are processes"),
        (["--ranks", "torchrun"], "--ranks torchrun: start this with torchrun"),
        (["--ranks", "fibres"], "'--ranks'"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """And nothing on standard output."""
    assert main(["conformance", "--ranks", "processes", *arguments]) == 2
    out, errors = capsys.readouterr()
    assert (out, errors.count("\n")) == ("", 1)
    assert message in errors


def test_torchrun_says_the_world_size(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever says it, too, may mean another."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "two", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    for arguments, message in [
        (["--world-size", "2"], "--world-size is for torchrun to say"),
        ([], "WORLD_SIZE='two' in the environment should be a number"),
    ]:
        assert main(["conformance", *arguments]) == 2
        assert message in capsys.readouterr().err
