"""Calls as programs of plain PyTorch: they run, they make the same calls, and they say what should come back."""

import itertools
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import collective_rules as cr
from collective_rules.conformance.examples import Calls, ExamplePlan
from collective_rules.conformance.launch import launch
from collective_rules.conformance.literals import Writer, alike, literal
from collective_rules.conformance.reproducer import reproducer
from collective_rules.sandbox import RAISES, SILENTLY_WRONG, Result
from collective_rules.testing import Returned, World, world
from collective_rules.testing.dispatch import has_cpu_kernel
from collective_rules.testing.drawing import DTYPES, drawable
from collective_rules.testing.layouts import CHANNELS_LAST, EXPANDED, SLICED, STRAIGHT, TRANSPOSED, strides
from collective_rules.testing.methods import METHODS, method_name
from collective_rules.testing.process_groups import resolve
from collective_rules.testing.tensors import flat

OPS = [op for op in cr.ops() if has_cpu_kernel(cr.lookup(op)) and not drawable(cr.lookup(op))]
WRONG = Result(SILENTLY_WRONG, ["rank 0: it is wrong"])
STRAY = Result(SILENTLY_WRONG, ["rank 0: 1 elements changed that the op does not write"])
FAULTY = Path(__file__).with_name("faulty.py")
GATHERS = [
    cr.call("c10d::_allgather_base_", group=cr.Group(2, rank), output_tensor=(4,), input_tensor=(2,))
    for rank in range(2)
]


def same(wanted: torch.Tensor, got: torch.Tensor) -> bool:
    """Whether values, shape and dtype are the same, an average's but for rounding."""
    if (wanted.shape, wanted.dtype) != (got.shape, got.dtype):
        return False
    if wanted.dtype.is_floating_point or wanted.dtype.is_complex:
        wide = torch.complex128 if wanted.dtype.is_complex else torch.float64
        return torch.allclose(wanted.to(wide), got.to(wide), rtol=1e-2, equal_nan=True)
    return torch.equal(wanted, got)


def program(text: str) -> dict[str, Any]:
    """The names that a program defines, in a process where a legacy op finds its group by its name."""
    assert "collective_rules" not in text
    names: dict[str, Any] = {"__name__": "reproducer"}
    exec(text.replace('tag=""', "tag=pg.group_name"), names)
    return names


def carried_out(names: dict[str, Any], ranks: World) -> list[dict[str, Any]]:
    """What each rank's `run` returns."""

    def run(rank: int) -> Any:
        return names["run"](rank, ranks.groups[rank])

    outcomes: tuple[Returned, ...] = ranks.each(run)
    assert [None] * ranks.size == [outcome.error for outcome in outcomes]
    return [outcome.values[0] for outcome in outcomes]


def compared(names: dict[str, Any], returned: list[dict[str, Any]]) -> int:
    """Compare what came back with what the program says; return how many tensors were."""
    count = 0
    for wanted, got in zip(names.get("EXPECTED", ()), returned, strict=False):
        assert wanted.keys() <= got.keys()
        for name, value in wanted.items():
            for one, other in zip(flat(value), flat(got[name]), strict=True):
                if one is not None:
                    assert same(one, other), (name, one, other)
                    count += 1
    return count


def legal(op: str, count: int, seed: int = 0, sizes: tuple[int, ...] = (1, 2, 3, 4)) -> list[Calls]:
    return [example.calls for example in ExamplePlan(sizes, count, seed, "gloo").legal(cr.lookup(op), None)]


# -- legal calls


@pytest.mark.parametrize("op", OPS)
def test_a_program_makes_the_calls_and_says_what_comes_back(op: str) -> None:
    """Carried out on gloo, every rank gets what the program expects."""
    count = 0
    for calls in legal(op, 5):
        names = program(reproducer(calls, "gloo", WRONG))
        count += compared(names, carried_out(names, world(calls[0].group.size)))
    assert (cr.lookup(op).rule.name != "barrier") == (count > 0)


@pytest.mark.parametrize("op", OPS[::4])
def test_a_program_shows_the_memory_around_a_tensor_where_that_changed(op: str) -> None:
    """On gloo nothing around it changes, so that the program's expectation holds for all of the memory."""
    for calls in legal(op, 3, seed=1):
        names = program(reproducer(calls, "gloo", STRAY))
        compared(names, carried_out(names, world(calls[0].group.size)))


def test_memory_that_an_op_should_not_write_is_expected_as_it_was() -> None:
    """Eight elements before the tensor, eight after it."""
    calls = [cr.call("c10d::broadcast_", group=cr.Group(2, rank), tensors=[(2,)], root_rank=0) for rank in range(2)]
    names = program(reproducer(calls, "gloo", STRAY))
    returned = carried_out(names, world(2))

    assert 4 == compared(names, returned)
    assert [18, 18] == [len(each["memory"]) for each in returned]
    assert [77.0, 1.0, 2.0, 77.0] == names["EXPECTED"][1]["memory"][7:11].tolist()


def test_a_program_of_a_group_written_in_python_calls_its_methods() -> None:
    """By the names that it has, which may be the old ones."""
    backend = f"{FAULTY}:right"
    with World(2, backend=backend) as ranks:
        methods = {op: method_name(ranks.groups[0], method) for op, method in METHODS.items()}
        text = reproducer(GATHERS, backend, WRONG, methods=methods)
        names = program(text.replace(f"sys.path.insert(0, {str(FAULTY.parent)!r})", "").replace("factory =", "0 and"))
        assert "pg._allgather_base(" in text
        assert 2 == compared(names, carried_out(names, ranks))


def test_ranks_that_differ_have_a_branch_each() -> None:
    """A send meets a receive; who takes no part does nothing."""
    send = cr.call("c10d::send", group=cr.Group(3, 0), tensors=[(2,)], dst=2)
    receive = cr.call("c10d::recv_", group=cr.Group(3, 2), tensors=[(2,)], src=0)
    names = program(reproducer([send, receive], "gloo", WRONG))
    returned = carried_out(names, world(3))

    assert [{}, {}] == returned[:2]
    assert [1.0, 2.0] == returned[2]["tensors"][0].tolist()
    assert 1 == compared(names, returned)


def test_ranks_that_count_alike_have_one_line() -> None:
    """What differs by rank alone is written with `rank`."""
    calls = [cr.call("c10d::allreduce_", group=cr.Group(3, rank), tensors=[(3, 4)]) for rank in range(3)]

    assert "tensors = [torch.arange(1.0, 13.0).reshape((3, 4)) + 10000 * rank]" in reproducer(calls, "gloo", WRONG)


def test_the_head_says_what_happened() -> None:
    """No more than a few lines of it, whatever was raised."""
    calls = [cr.call("c10d::barrier", group=cr.Group(1))]
    text = reproducer(calls, "gloo", Result(RAISES, [f"line {n}: {'x' * 1000}" for n in range(50)]))
    head = list(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines()))

    assert "# c10d::barrier on 1 rank of gloo: raises" == head[0]
    assert ["#   … and 44 lines more", "# Run it with: torchrun --nproc-per-node 1 reproducer.py"] == head[-2:]
    assert max(map(len, head)) < 320


# -- broken calls


@pytest.mark.parametrize("op", OPS[::5])
def test_broken_calls_are_programs_too(op: str) -> None:
    """What has no right answer is made all the same, and nothing is expected of it."""
    for example in ExamplePlan((2, 3), 1, 0, "gloo").broken(cr.lookup(op), None):
        compile(reproducer(example.calls, "gloo", WRONG), "reproducer.py", "exec")


# -- literals


tensors = st.builds(
    lambda values, dtype: torch.tensor(values).to(dtype),
    st.lists(st.integers(0, 5), max_size=12) | st.integers(0, 9).map(lambda n: list(range(n, n + 10))),
    st.sampled_from(DTYPES),
)


def bits(tensor: torch.Tensor) -> list[int]:
    return list(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


@given(tensors, st.booleans())
def test_a_literal_is_the_tensor(tensor: torch.Tensor, folded: bool) -> None:
    """Its values, its dtype and its shape, bit by bit."""
    if folded and tensor.numel() % 2 == 0:
        tensor = tensor.reshape(2, -1)
    found = eval(literal(tensor))

    assert (tensor.shape, tensor.dtype) == (found.shape, found.dtype)
    assert bits(tensor) == bits(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64])
def test_infinite_values_have_literals(dtype: torch.dtype) -> None:
    """A sum of float16 may overflow."""
    tensor = torch.tensor([1.0, math.inf, -math.inf, math.nan]).to(dtype)

    assert bits(tensor) == bits(eval(literal(tensor)))


@pytest.mark.parametrize("layout", [STRAIGHT, TRANSPOSED, CHANNELS_LAST, SLICED, EXPANDED])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3, 2), (2, 0, 3)])
def test_a_layout_is_written(shape: tuple[int, ...], layout: str) -> None:
    """Strides come back, where they count."""
    steps = strides(shape, layout)
    reach = sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) + 1
    tensor = torch.arange(float(max(reach, 1))).as_strided(shape, steps)
    found = eval(Writer([tensor])(tensor))

    assert torch.equal(tensor, found)
    assert 0 in shape or [s for n, s in zip(shape, steps, strict=True) if n > 1] == [
        s for n, s in zip(shape, found.stride(), strict=True) if n > 1
    ]


def test_views_that_conjugate_and_negate_are_written() -> None:
    """They stay views: what lies in memory is another value."""
    conjugated = torch.tensor([1 + 2j]).conj()
    negated = torch._neg_view(torch.tensor([1.0]))
    found = [eval(Writer([tensor])(tensor)) for tensor in (conjugated, negated)]

    assert [True, True] == [found[0].is_conj(), found[1].is_neg()]
    assert [[1 - 2j], [-1.0]] == [each.tolist() for each in found]


def test_only_what_counts_alike_is_one_expression() -> None:
    """Steps that differ, few values and other shapes are not."""
    rows = [torch.arange(10) + start for start in (0, 5, 11)]

    assert "torch.arange(0, 10) + 5 * rank" == alike(rows[:2])
    assert [None, None, None] == [alike(rows), alike([row[:2] for row in rows]), alike([rows[0], rows[1][:9]])]


# -- programs by themselves


OWN_FACTORY = """
import torch.distributed as dist

def factory(store, rank, size, timeout):
    return dist.ProcessGroupGloo(store, rank, size, timeout)
"""


@pytest.fixture(scope="module", autouse=True)
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Programs that take some seconds to start, while the other tests run."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "own.py").write_text(OWN_FACTORY)
    processes = {}
    for backend in ("gloo", f"{folder}/own.py:factory", "fake", "threaded"):
        file = folder / f"run_{backend.rpartition(':')[2]}.py"
        file.write_text(reproducer(GATHERS, backend, WRONG))
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
        command = [sys.executable, "-W", "ignore", *(torchrun if backend != "threaded" else []), str(file)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes[file.stem] = subprocess.Popen(command, cwd=folder, start_new_session=True, **pipes)
    yield processes
    for process in processes.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("name", ["run_gloo", "run_factory", "run_threaded"])
def test_a_program_runs_by_itself(name: str, started: dict[str, subprocess.Popen[str]]) -> None:
    """With torchrun, or with python alone, in a process that never heard of this library."""
    out, err = started[name].communicate(timeout=100)
    gathered = "{'output_tensor': tensor([ 1001.,  1002., 11001., 11002.])}"

    assert 0 == started[name].returncode, err
    # Two processes write to one pipe: their lines may come in any order.
    assert ["0", "1"] == sorted(re.findall(r"rank (\d+):", out))
    assert [2, 2] == [out.count(f"{what} {gathered}") for what in ("got     ", "expected")]


def test_a_program_shows_what_a_backend_gets_wrong(started: dict[str, subprocess.Popen[str]]) -> None:
    """The fake one moves nothing."""
    out, err = started["run_fake"].communicate(timeout=100)
    gathered = "{'output_tensor': tensor([ 1001.,  1002., 11001., 11002.])}"

    assert 0 == started["run_fake"].returncode, err
    assert [0, 2] == [out.count(f"{what} {gathered}") for what in ("got     ", "expected")]


def test_a_module_is_imported_by_its_name() -> None:
    """Not by its file: it may be part of a package."""
    started = launch("some.package:Class.factory", 2, True)

    assert ("import some.package",) == started.imports
    assert 'register_backend("under_test", some.package.Class.factory, devices=["cpu"])' in "\n".join(started.main)
    assert "gloo" == resolve("gloo").name
