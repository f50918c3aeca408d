"""Unchanged programs under a guard: by `collective-rules run`, and by an environment variable."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import run_python, torchrun

PROGRAM = """
import sys, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()
for _ in range(3):
    dist.all_reduce(torch.ones(4))
if "differ" in sys.argv:
    dist.all_reduce(torch.ones(4 + rank))
print(f"rank {rank}: {sys.argv[1:]} {__name__} {__file__.rpartition('/')[2]}")
if "destroy" in sys.argv:
    dist.destroy_process_group()
if "exit" in sys.argv:
    sys.exit(7)
if "raise" in sys.argv:
    raise KeyError("mine")
"""
ONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOCAL_RANK": "0"}
RUN = ("-m", "collective_rules", "run")


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "train.py"
    path.write_text(PROGRAM)
    return str(path)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("--lr", "1", "destroy"), 0, ""),
        (("exit",), 7, "the last calls of this rank"),
        (("raise",), 1, "KeyError: 'mine'"),
    ],
)
def test_run_ends_as_the_script_does(words: tuple[str, ...], status: int, says: str, script: str) -> None:
    ended = run_python(*RUN, "--check", "yes", script, *words, **ONE)
    assert (status, f"rank 0: {[*words]} __main__ train.py\n") == (ended.returncode, ended.stdout)
    assert says in ended.stderr if says else not ended.stderr


def test_run_takes_modules_ledgers_and_reports(script: str, tmp_path: Path) -> None:
    report, calls = tmp_path / "report-{rank}.json", tmp_path / "calls"
    options = ("--ledger", str(calls), "--report", str(report))
    ended = run_python(*RUN, *options, "-m", "train", "destroy", cwd=tmp_path, **ONE)
    assert 0 == ended.returncode, ended.stderr
    assert 4 == len((calls / "rank0.jsonl").read_text().splitlines())
    assert (tmp_path / "report-0.json").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("gone.py",), "gone.py: no such script"),
        (("--agree", "never", "x.py"), "agree='never', but should be"),
        (("--check", "maybe", "x.py"), "check='maybe', but should be"),
        ((), "Missing argument"),
    ],
)
def test_run_refuses_in_one_line(words: tuple[str, ...], says: str, run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = run("run", *words)
    assert (2, "", 1) == (status, out, err.count("\n"))
    assert says in err


def test_ranks_that_differ_are_told_with_their_lines(script: str) -> None:
    ended = run_python(
        *torchrun(2, "--no-python", sys.executable, *RUN, "--agree", "always", "--deadline", "60", script, "differ"),
        within=300,
    )
    assert 0 != ended.returncode
    assert "c10d::allreduce_: ranks disagree on s   [AR1]" in ended.stderr
    assert "train.py:8" in ended.stderr


LOADED = "from collective_rules.guarding import autoload; autoload.start(); import runpy, sys; del sys.argv[0]; "
LOADED += "runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [(("destroy",), 0, ""), ((), 0, ""), (("exit",), 7, ""), (("raise",), 1, "KeyError: 'mine'")],
)
def test_a_variable_guards_an_unchanged_program(
    words: tuple[str, ...], status: int, says: str, script: str, tmp_path: Path
) -> None:
    settings = f"agree=2 ledger='{tmp_path}/calls of {{rank}}'"
    ended = run_python("-c", LOADED, script, *words, COLLECTIVE_RULES=settings, **ONE)
    assert status == ended.returncode, ended.stderr
    assert says in ended.stderr
    assert 4 == len((tmp_path / "calls of 0").read_text().splitlines())


def test_without_the_variable_nothing_is_imported() -> None:
    source = Path(__file__).parents[1] / "collective_rules" / "guarding" / "autoload.py"
    code = f"import runpy, sys; runpy.run_path({str(source)!r})['start']()"
    code += "; sys.exit(any(name.startswith(('torch', 'collective_rules')) for name in sys.modules))"
    assert 0 == run_python("-c", code, COLLECTIVE_RULES="").returncode


def test_a_setting_that_does_not_fit_is_named() -> None:
    ended = run_python("-c", LOADED, "x.py", COLLECTIVE_RULES="agre=1")
    assert "did you mean agree=?" in ended.stderr


def test_torch_finds_the_entry_point_of_an_installed_library() -> None:
    found = [
        each for each in importlib.metadata.entry_points(group="torch.backends") if each.name == "collective_rules"
    ]
    if not found:
        pytest.skip("the library is not installed here, or before it had this entry point")
    assert {"_collective_rules_autoload:start"} == {each.value for each in found}
    assert callable(found[0].load())
