"""A script run as every rank before it is launched: what would hang is found, on which rank and line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import attrs
import pytest

from collective_rules.cli import main, precheck
from collective_rules.cli.output import CommandError
from collective_rules.comparison import blocks
from collective_rules.comparison.options import PrecheckOptions
from collective_rules.comparison.rehearsal import rehearse
from collective_rules.errors import CallError, CollectiveRulesError
from collective_rules.sandbox import Sandbox
from tests.commands import run_python

_EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
_SIZE = 4

_SCRIPT = """
import os, signal, sys
import torch, torch.distributed as dist
fault = sys.argv[1]
dist.init_process_group("nccl")
rank, size = dist.get_rank(), dist.get_world_size()
here = torch.zeros(8)
pairs = [dist.new_group([i, i + 1]) for i in range(0, size, 2)]
own, wide = pairs[rank // 2], dist.new_group(list(range(size)))
for step in range(4):
    odd = rank == 1 and step == 2
    dist.broadcast(here, src=0)
    if not (fault == "skipped" and odd):
        dist.all_reduce(here)  # skipped
    dist.all_reduce(torch.zeros(9 if fault == "size" and odd else 8))  # size
    if fault == "crossed" and odd:
        dist.all_reduce(here, group=own)  # crossed
        dist.barrier(group=wide)
    else:
        dist.barrier(group=wide)  # crossed
        dist.all_reduce(here, group=own)
    if fault == "swapped" and odd:
        dist.all_gather_into_tensor(torch.zeros(8 * size), here)  # swapped
        dist.all_reduce(here)
    else:
        dist.all_reduce(here)  # swapped
        dist.all_gather_into_tensor(torch.zeros(8 * size), here)
    if rank == 0:
        dist.send(here, dst=1)  # unreceived
    if rank == 1 and not (fault == "unreceived" and odd):
        dist.recv(here, src=0)
    if fault == "barrier" and rank != 3 and step == 3:
        dist.barrier()  # barrier
    if odd and fault == "raises":
        raise ValueError("no data")  # raises
    if odd and fault == "exits":
        sys.exit(5)  # exits
    if odd and fault == "loops":
        while True: pass  # loops
    if odd and fault == "stuck":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        while True: pass
    if odd and fault == "illegal":
        dist.all_gather_into_tensor(torch.zeros(3), here)  # illegal
    if odd and fault == "value":
        here.sum().item()  # value
    if odd and fault == "dies":
        os.abort()
    if fault == "all raise" and step == 1:
        raise ValueError("no data")
    if fault == "all exit" and step == 1:
        print("usage: script.py\\nscript.py: error: no --data", file=sys.stderr)
        sys.exit(3)
print("done as", rank)
"""


def _line(word):
    """Return the lines of the script that a comment marks with a word."""
    return [f"script.py:{n}" for n, text in enumerate(_SCRIPT.split("\n"), 1) if text.endswith(f"# {word}")]


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "script.py"
    path.write_text(_SCRIPT)
    return str(path)


@pytest.fixture(scope="module")
def box():
    """One sandbox for all the module's runs: its process imports torch once."""
    with Sandbox(workers=2, warm=["collective_rules.comparison.worker:run_rank"]) as opened:
        yield opened


@pytest.fixture
def run(script, box):
    """Run the script as four ranks, with a fault of rank 1 unless it says otherwise."""

    def carry_out(fault, **options):
        watch = options.pop("watch", lambda done, of: None)
        chosen = PrecheckOptions(**{"world_size": _SIZE, "deadline": 60.0, **options})
        return rehearse(script, [fault], chosen, watch=watch, box=box)

    return carry_out


def _told(found):
    return [(each.id, each.severity, each.ranks) for each in found.comparison.findings]


# what is found


def test_a_program_whose_ranks_agree_has_no_finding_and_puts_out_what_its_first_rank_does(run):
    found = run("")
    assert [] == _told(found)
    assert "done as 0\n" == found.output
    assert [(rank, "finished") for rank in range(_SIZE)] == [(each.rank, each.ended) for each in found.results]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("skipped", ("AR11", "error", (1,))),
        ("size", ("AR1", "error", (1,))),
        ("crossed", ("WAIT1", "error", (0, 1))),
        ("swapped", ("AGT12", "error", (1,))),
        ("unreceived", ("SE8", "error", (0,))),
        ("barrier", ("BA2", "error", (3,))),
    ],
)
def test_what_would_hang_is_one_error_with_its_rank_and_line(run, fault, expected):
    found = run(fault)
    assert [expected] == _told(found)
    shown = "\n".join(str(block) for block in blocks(found.comparison))
    assert all(line in shown for line in _line(fault))


@pytest.mark.parametrize(
    ("fault", "expected", "ended"),
    [
        ("raises", ("RUN1", "error", (1,)), "raised"),
        ("exits", ("RUN2", "error", (1,)), "exited"),
        ("illegal", ("AGT1", "error", (1,)), "illegal"),
    ],
)
def test_a_rank_that_ends_early_is_named_and_what_the_others_wait_for_is_an_error(run, fault, expected, ended):
    found = run(fault)
    assert expected in _told(found)
    first = next(each for each in found.comparison.findings if each.id == expected[0])
    assert _line(fault)[0] in first.message
    assert ["finished", ended, "finished", "finished"] == [each.ended for each in found.results]
    others = [each for each in found.comparison.findings if each.id[:3] not in ("RUN", "AGT")]
    assert {"error"} == {each.severity for each in others}
    assert any(1 in each.ranks for each in others)


@pytest.mark.parametrize(
    ("fault", "id_", "severity", "ended"),
    [("loops", "RUN3", "error", "late"), ("value", "RUN5", "undecidable", "unknown value")],
)
def test_a_rank_whose_end_is_not_known_is_named_and_what_it_did_not_do_is_undecidable(run, fault, id_, severity, ended):
    found = run(fault, deadline=15.0 if fault == "loops" else 60.0)
    told = _told(found)
    assert (id_, severity, (1,)) == told[0]
    assert _line(fault)[0] in found.comparison.findings[0].message
    assert {"undecidable"} == {each[1] for each in told[1:]}
    assert ended == found.results[1].ended


def test_a_rank_that_cannot_be_stopped_is_killed_and_one_that_dies_is_named(run, monkeypatch):
    monkeypatch.setattr("collective_rules.comparison.rehearsal._PATIENCE", 0.5)
    for fault, id_, ended in (("stuck", "RUN3", "killed"), ("dies", "RUN4", "died")):
        found = run(fault, deadline=15.0 if fault == "stuck" else 60.0)
        assert (id_, "error", (1,)) == _told(found)[0]
        assert (ended, (0, 2, 3)) == (found.results[1].ended, found.comparison.ranks)


def test_a_script_that_fails_on_every_rank_is_refused_with_its_line(run, script):
    with pytest.raises(CollectiveRulesError, match=r"script\.py:\d+: ValueError: no data"):
        run("all raise")
    with pytest.raises(
        CollectiveRulesError, match=r"script\.py:\d+: it ends with status 3, and put out last: script\.py: error: no"
    ):
        run("all exit")


# which ranks


def test_only_the_ranks_asked_for_are_run_and_of_the_others_nothing_is_said(run):
    found = run("skipped", ranks=[0, 3])
    assert ([], (0, 3)) == (_told(found), found.comparison.ranks)
    assert any("2 ranks of 4 that you did not ask for" in note for note in found.comparison.notes)
    assert [("AR11", "error", (0, 1))] == [
        (e.id, e.severity, e.ranks) for e in run("skipped", ranks=[1, 0]).comparison.findings
    ]


def test_of_ranks_that_the_user_vouches_for_the_first_is_run(run):
    found = run("", alike=[[0], [1], [2, 3]])
    assert ([], (0, 1, 2)) == (_told(found), found.comparison.ranks)
    assert "Not run, as you say that they do the same as rank 2: rank 3." in found.comparison.notes


@pytest.mark.parametrize(
    "options", [{"ranks": [4]}, {"ranks": []}, {"ranks": [-1]}, {"alike": [[0, 1], [1, 2]]}, {"alike": [[9]]}], ids=str
)
def test_ranks_that_cannot_be_are_refused(run, options):
    with pytest.raises(CallError, match=r"^(ranks|alike)"):
        run("", **options)


def test_progress_is_told_for_each_rank(run):
    told = []
    run("", watch=lambda done, of: told.append((done, of)))
    assert [(done, _SIZE) for done in range(_SIZE + 1)] == told


# examples


@pytest.mark.parametrize("name", ["pipeline", "expert_parallel"])
def test_examples_whose_ranks_do_different_things_agree(box, name):
    found = rehearse(str(_EXAMPLES / f"{name}.py"), [], PrecheckOptions(world_size=_SIZE, steps=1), box=box)
    assert [] == _told(found)
    assert found.comparison.calls > 40


# the command


def test_the_command_writes_reports_and_an_object_and_ends_with_1(script, tmp_path, monkeypatch):
    """In a process of its own, as a person starts it; the options may also follow the script."""
    report = tmp_path / "out.html"
    command = ["-m", "collective_rules", "precheck", script, "size", "--world-size", "2", "--json", "--jobs", "2"]
    done = run_python(*command, "--report", str(report), cwd=tmp_path)
    data = json.loads(done.stdout)
    assert (1, "done as 0\n") == (done.returncode, done.stderr)
    assert (["size"], [0, 1], 1) == (data["arguments"], data["ranks"], data["errors"])
    assert ["finished"] * 2 == [each["ended"] for each in data["endings"]]
    assert "first parts at collective" in report.read_text()


def test_a_script_that_is_not_there_is_one_line_and_status_2(capsys):
    assert 2 == main(["precheck", "--world-size", "2", "nowhere.py"])
    captured = capsys.readouterr()
    assert ("", 1) == (captured.out, captured.err.count("\n"))
    assert "nowhere.py" in captured.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["script.py"],
        ["script.py", "--world-size", "0"],
        ["script.py", "--world-size", "x"],
        ["--world-size", "4", "--ranks", "5", "script.py"],
        ["--world-size", "4", "--ranks", "a-b", "script.py"],
        ["--world-size", "4", "--alike", "3-1", "script.py"],
        ["--world-size", "4", "--report", "out.pdf", "script.py"],
        ["--world-size", "4", "--backend", "smoke", "script.py"],
        ["--world-size", "4", "--jobs", "0", "script.py"],
    ],
    ids=" ".join,
)
def test_options_that_cannot_be_are_refused_before_anything_runs(capsys, arguments):
    assert 2 == main(["precheck", *arguments])
    captured = capsys.readouterr()
    assert "" == captured.out
    assert re.fullmatch(r"collective-rules: .+\n", captured.err)


@pytest.mark.parametrize(
    ("text", "ranks"),
    [("0,1,7", [[0], [1], [7]]), ("0-3", [[0, 1, 2, 3]]), ("0-6:2, 1-7:2", [[0, 2, 4, 6], [1, 3, 5, 7]]), ("", [])],
)
def test_ranks_are_written_as_numbers_ranges_and_every_nth(text, ranks):
    assert ranks == precheck.parse_ranks(text)


@pytest.mark.parametrize("text", ["x", "1-", "-1", "0-3:0", "3-1", "0--1", "1.5", "0-99999999999", "²"])
def test_what_names_no_ranks_is_refused_with_the_text(text):
    with pytest.raises(CommandError, match=re.escape(repr(text))):
        precheck.parse_ranks(text)


def test_options_behind_the_script_count_where_they_are_zero(monkeypatch, capsys):
    """A zero is no option that was left out."""
    told = {}

    def rehearsed(script, arguments, options, **_):
        told.update(attrs.asdict(options), arguments=arguments)
        raise CollectiveRulesError("enough")

    monkeypatch.setattr("collective_rules.comparison.rehearsal.rehearse", rehearsed)
    line = "precheck train.py --world-size 2 --item 0 --context 0 --deadline 0.5 --alike 0-1 --lr 0"
    assert 2 == main(line.split())
    assert (2, 0.0, 0, 0.5, ((0, 1),)) == tuple(
        told[name] for name in ("world_size", "item", "context", "deadline", "alike")
    )
    assert ["--lr", "0"] == told["arguments"]
    assert "enough" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--deadline 0", "--deadline nan", "--deadline inf", "--context -1", "--jobs 0"])
@pytest.mark.parametrize("first", [True, False])
def test_options_that_are_out_of_range_are_refused_wherever_they_stand(capsys, option, first):
    ours = ["--world-size", "2", *option.split()]
    assert 2 == main(["precheck", *(ours if first else []), "train.py", *([] if first else ours)])
    assert option.split()[0].lstrip("-") in capsys.readouterr().err
