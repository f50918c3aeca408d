"""What communicates elsewhere than in torch's own ops: custom ops, also in C++, and groups written in Python."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import settings
from torch.distributed import distributed_c10d as c10d

import collective_rules as cr
from collective_rules.errors import SimulationError
from tests.commands import run_python, torchrun

ADDS_IN_CPP = """
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/library.h>
void adds(at::Tensor x, std::string group) {
  std::vector<at::Tensor> tensors{x};
  c10d::resolve_process_group(group)->allreduce(tensors)->wait();
}
TORCH_LIBRARY(collective_rules_cpp, m) { m.def("adds(Tensor(a!) x, str group) -> ()", &adds); }
"""

LIBRARY = torch.library.Library("collective_rules_kernels", "FRAGMENT")
LIBRARY.define("impl_adds(Tensor(a!) x) -> ()")
LIBRARY.impl("impl_adds", dist.all_reduce, "CPU")


@torch.library.custom_op("collective_rules_kernels::custom_adds", mutates_args=("x",))
def custom_adds(x: torch.Tensor) -> None:
    dist.all_reduce(x)


OPS: dict[str, Callable[[torch.Tensor], Any]] = {
    "custom_op": custom_adds,
    "Library.impl": torch.ops.collective_rules_kernels.impl_adds,
    "C++": lambda x: torch.ops.collective_rules_cpp.adds(x, dist.group.WORLD.group_name),  # type: ignore[union-attr]
}


@pytest.fixture(scope="module")
def extension(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the op in C++, which this process has loaded."""
    if settings.get_current_profile_name() != "thorough":
        pytest.skip("runs with --hypothesis-profile=thorough: to compile against torch takes half a minute")
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("extension")
    source, library, of_torch = folder / "adds.cpp", folder / "adds.so", Path(torch.__file__).parent
    source.write_text(ADDS_IN_CPP)
    includes = [f"-I{of_torch / 'include'}", f"-I{of_torch / 'include/torch/csrc/api/include'}", "-DUSE_DISTRIBUTED"]
    links = [f"-L{of_torch / 'lib'}", "-ltorch_cpu", "-lc10"]
    start = [compiler, "-O0", "-std=c++20", "-shared", "-fPIC", *includes, str(source), "-o", str(library), *links]
    compiled = subprocess.run(start, capture_output=True, text=True, timeout=400, check=False)
    assert 0 == compiled.returncode, compiled.stderr[-3000:]
    torch.ops.load_library(str(library))
    return library


@pytest.fixture(params=OPS)
def op(request: pytest.FixtureRequest) -> Callable[[torch.Tensor], Any]:
    if request.param == "C++":
        request.getfixturevalue("extension")
    return OPS[request.param]


WAYS: dict[str, Callable[..., Any]] = {"guard": lambda **of: cr.guard(agree=False, **of), "RuleMode": cr.RuleMode}


@pytest.mark.parametrize("way", WAYS)
def test_a_kernel_of_ones_own_is_seen_and_checked(
    group: dist.ProcessGroup, op: Callable[[torch.Tensor], Any], way: str
) -> None:
    with WAYS[way](check=True, backend="gloo") as entered:
        op(torch.ones(2))
        with pytest.raises(cr.CallError, match="GLOO"):
            op(torch.ones(2, dtype=torch.int16))  # gloo has no kernel for it
    ledger = getattr(entered, "ledger", entered)
    assert [("c10d::allreduce_", False), ("c10d::allreduce_", True)] == [
        (entry.call.op, bool(entry.findings)) for entry in ledger.entries
    ]


def test_a_kernel_of_ones_own_sends_nothing_with_execute_false(
    silent: dist.ProcessGroup, op: Callable[[torch.Tensor], Any]
) -> None:
    x = torch.ones(2)
    with cr.RuleMode(execute=False) as ledger:
        op(x)
    assert (1, [4.0, 4.0]) == (len(ledger), x.tolist())


PROGRAM = """
import sys, torch, torch.distributed as dist
import collective_rules as cr
torch.ops.load_library(sys.argv[1])
dist.init_process_group("gloo")
with cr.guard():
    torch.ops.collective_rules_cpp.adds(torch.ones(2 + dist.get_rank()), dist.group.WORLD.group_name)
"""


def test_a_kernel_in_cpp_is_compared_across_ranks(extension: Path, tmp_path: Path) -> None:
    script = tmp_path / "adds.py"
    script.write_text(PROGRAM)
    ended = run_python(*torchrun(2, str(script), str(extension)))
    assert ended.returncode != 0
    assert "DisagreementError" in ended.stderr
    assert "AR1" in ended.stderr


# -- groups whose collectives are written in Python


class Done(dist._Work):  # type: ignore[name-defined,misc]  # not in torch's stubs
    def wait(self, timeout: Any = None) -> bool:
        return True


class PythonGroup(dist.ProcessGroup):
    """Counts what it sends."""

    sent = 0

    def allreduce(self, *_: Any) -> Done:
        PythonGroup.sent += 1
        return Done()


@pytest.fixture
def python_backend() -> Iterator[str]:
    dist.Backend.register_backend(
        "python_group", lambda store, rank, size, limit: PythonGroup(rank, size), devices=["cpu"]
    )
    before = c10d._register_process_group
    yield "python_group"
    assert before is c10d._register_process_group
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.Backend.backend_list.remove("python_group")
    for table in (dist.Backend._plugins, dist.Backend.backend_capability, dist.Backend.backend_type_map):
        for name in ("python_group", "PYTHON_GROUP"):
            table.pop(name, None)
    delattr(dist.Backend, "PYTHON_GROUP")


def begin(backend: str) -> None:
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


def test_a_group_written_in_python_is_refused_where_nothing_may_be_sent(python_backend: str) -> None:
    begin(python_backend)
    with pytest.raises(SimulationError, match="PythonGroup has methods of its own, such as allreduce"):
        cr.RuleMode(execute=False).__enter__()
    assert 0 == PythonGroup.sent


def test_a_group_that_is_made_inside_the_block_is_refused(python_backend: str) -> None:
    with cr.RuleMode(execute=False), pytest.raises(SimulationError, match="PythonGroup"):
        begin(python_backend)
    c10d._world.pg_map.clear()


def test_where_calls_are_sent_such_a_group_is_left_alone(python_backend: str) -> None:
    begin(python_backend)
    sent = PythonGroup.sent
    with cr.guard(agree=False) as guard, cr.RuleMode() as ledger:
        dist.all_reduce(torch.ones(2))
    assert (1, 0, 0) == (PythonGroup.sent - sent, len(guard.ledger), len(ledger))
    PythonGroup.sent = sent
