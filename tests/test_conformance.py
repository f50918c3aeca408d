"""A conformance run tells right backends from faulty ones, reports what it saw, and leaves nothing behind."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import attrs
import pytest

import collective_rules as cr
from collective_rules.cli import main
from collective_rules.conformance import Conformance, Failure, KindResult, OpResult, WayResult, measure
from collective_rules.conformance.examples import Calls, ExamplePlan, key_of, smallest
from collective_rules.conformance.measure import plan_of
from collective_rules.conformance.report import kind_tables, matrix, write
from collective_rules.conformance.results import BROKEN_OUTCOMES
from collective_rules.conformance.runner import Runner
from collective_rules.conformance.suite import conformance_suite, place_of
from collective_rules.conformance.summary import headline, left_out
from collective_rules.errors import CallError
from collective_rules.pages.markdown import escaped
from collective_rules.sandbox import DIES, HANGS, OK, RAISES, SILENTLY_WRONG, Sandbox

ROOT = Path(__file__).parents[1]
FAULTY = ROOT / "tests" / "faulty.py"
GLOO_OPS = ("c10d::scatter_", "_c10d_functional::broadcast", "c10d::barrier")
VOID = {"meta", "br", "hr", "img", "input", "link"}


# -- what takes some seconds in other processes, while the tests run

AUTHORS_TESTS = """
from collective_rules.conformance import conformance_suite

TestGloo = conformance_suite("gloo", select="c10d::barrier", examples=2, world_sizes=[2])
TestWrong = conformance_suite(FAULTY, select=["c10d::allgather_"], examples=4, world_sizes=[2], broken_may=["raises"])


def test_a_world(gloo_world):
    import torch

    tensors = [torch.ones(2) for _ in range(4)]
    gloo_world(4).run("c10d::allreduce_", [{"tensors": [each]} for each in tensors])
    assert tensors[0].tolist() == [4.0, 4.0]
    assert gloo_world(4) is gloo_world(4)


def test_nothing_of_it_is_needed():
    pass
"""

MARK = "COLLECTIVE_RULES_TEST_CONFORMANCE"
PIPES: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


@attrs.frozen
class Background:
    """An author's tests, with what they leave in `folder`, and a command line with its mark."""

    folder: Path
    authors: subprocess.Popen[str]
    command: tuple[subprocess.Popen[str], str]


@pytest.fixture(scope="module", autouse=True)
def background(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("author")
    (folder / "test_mine.py").write_text(AUTHORS_TESTS.replace("FAULTY", repr(f"{FAULTY}:wrong_order")))
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "pytest",
        "-p",
        "collective_rules.testing.pytest_plugin",
        "-rA",
        "-q",
        str(folder),
    ]
    command += ["-p", "no:cacheprovider", f"--junit-xml={folder}/junit.xml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    authors = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **PIPES)
    asked = ("--backend", f"{FAULTY}:wrong_order", "--select", "c10d::allgather_,c10d::barrier")
    made = Background(folder, authors, started(*asked, "--world-size", "2", "--examples", "4"))
    yield made
    for process in (made.authors, made.command[0]):
        process.kill()
        process.communicate()


def started(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    """A command line in a process whose descendants carry a mark."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-W", "ignore", "-m", "collective_rules", "conformance", *arguments]
    environment = {**os.environ, MARK: mark}
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **PIPES), mark


# -- gloo


@attrs.frozen
class Run:
    """A command line that was carried out in this process."""

    status: int
    out: str
    reports: dict[str, str]


@pytest.fixture(scope="module")
def gloo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Real gloo, with a report of each kind."""
    folder = tmp_path_factory.mktemp("reports")
    files = [str(folder / f"report{suffix}") for suffix in (".md", ".json", ".html")]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        arguments = ["--world-size", "3", "--examples", "6", "--seed", "5", "--json"]
        arguments += [part for op in GLOO_OPS for part in ("--select", op)]
        arguments += [part for file in files for part in ("--report", file)]
        status = main(["conformance", *arguments])
    return Run(status, out.getvalue(), {Path(file).suffix: Path(file).read_text() for file in files})


@pytest.fixture(scope="module")
def data(gloo: Run) -> dict[str, Any]:
    return dict(json.loads(gloo.out))


def test_gloo_conforms(gloo: Run, data: dict[str, Any]) -> None:
    """Every legal call passes."""
    assert 0 == gloo.status
    assert ("gloo", "gloo", True, [1, 2, 3]) == tuple(data[name] for name in ("backend", "table", "conforms", "sizes"))
    assert (3 * 6, 0) == (data["totals"]["passed"], data["totals"]["failed"])
    assert [(op, "conforms", 6) for op in sorted(GLOO_OPS)] == sorted(
        (one["op"], one["verdict"], one["legal"]["passed"]) for one in data["ops"]
    )


def test_every_way_to_break_a_call_is_tried(data: dict[str, Any]) -> None:
    """What becomes of it is what gloo does: it refuses, hangs, dies, or accepts."""
    by_op = {one["op"]: {way["way"]: way for way in one["ways"]} for one in data["ops"]}
    scatter = by_op["c10d::scatter_"]

    assert {"another collective", "a missing rank"} == by_op["c10d::barrier"].keys()
    assert {"hangs": 1, "raises": 0, "dies": 0, "accepted": 0}.items() <= scatter["a missing rank"].items()
    assert 1 == scatter["no such root"]["raises"]
    assert ["SC4"] == scatter["no such root"]["ids"]
    assert 0 < sum(way["accepted"] for way in scatter.values())
    for one in data["ops"]:
        assert {each: sum(way[each] for way in one["ways"]) for each in BROKEN_OUTCOMES} == one["broken"]


def test_each_dtype_is_measured_beside_the_table(data: dict[str, Any]) -> None:
    """What gloo takes, its table says; a barrier moves nothing."""
    by_op = {one["op"]: {kind["dtype"]: kind for kind in one["kinds"]} for one in data["ops"]}
    scatter = by_op["c10d::scatter_"]

    assert {} == by_op["c10d::barrier"]
    assert (OK, True, True) == tuple(scatter["float32"][name] for name in ("outcome", "table", "agrees"))
    assert (RAISES, False, True) == tuple(scatter["complex64"][name] for name in ("outcome", "table", "agrees"))
    assert (OK, True) == tuple(by_op["_c10d_functional::broadcast"]["complex64"][name] for name in ("outcome", "table"))
    assert all(kind["agrees"] for kinds in by_op.values() for kind in kinds.values())


def test_the_report_in_json_is_what_is_printed(gloo: Run, data: dict[str, Any]) -> None:
    """One object."""
    assert data == json.loads(gloo.reports[".json"])


class Page(HTMLParser):
    """What a page holds: its text, the tags that are open, those that were used, and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.used: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.used.add(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, text: str) -> None:
        self.text += text


def test_the_page_stands_by_itself(gloo: Run) -> None:
    """Every tag is closed, nothing is fetched, nothing runs, and both colour schemes are there."""
    page = Page(gloo.reports[".html"])

    assert [] == page.open
    assert {"table", "style", "details"} <= page.used
    assert set() == page.used & {"script", "link", "img", "iframe"}
    assert set() == {name for name, _ in page.attributes} & {"src", "href", "onclick"}
    assert "prefers-color-scheme: dark" in page.text
    assert [] == [op for op in GLOO_OPS if op not in page.text]


def test_the_markdown_has_a_row_for_each_op(gloo: Run) -> None:
    """All of a table's rows have as many cells."""
    rows = ["|".join(line.split("|")[:4]) + "|" for line in gloo.reports[".md"].splitlines() if "| conforms" in line]
    tables = re.findall(r"(?:^\|.*\|\n)+", gloo.reports[".md"], re.MULTILINE)

    assert {f"| {escaped(op)} | conforms | 6/6 |" for op in GLOO_OPS} == set(rows)
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)


# -- faulty backends


@attrs.frozen
class Exposed:
    """What is found of one op of a faulty backend."""

    outcomes: dict[str, int]
    failure: Failure | None


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """Starting one takes longer than what most tests do in it."""
    with Sandbox(workers=4, warm=["collective_rules.conformance.jobs"]) as made:
        yield made


def exposed(
    box: Sandbox,
    name: str,
    op: str,
    *,
    sizes: tuple[int, ...] = (2,),
    examples: int = 8,
    deadline: float = 1.0,
    seconds: float = 5,
) -> Exposed:
    """Try legal calls of an op on a backend of faulty.py."""
    row = cr.lookup(op)
    with Runner(f"{FAULTY}:{name}", ExamplePlan(sizes, examples, 0, None), deadline=deadline, box=box) as runner:
        kinds = {op: runner.legal_kinds(runner.kinds([row])[op], row)}
        legal = runner.legal([row], kinds)[op]
        failure = runner.failure(row, kinds[op], legal, seconds=seconds) if legal.failed else None
    return Exposed(legal.outcomes, failure)


def test_a_right_backend_conforms(box: Sandbox) -> None:
    """Written in Python, with methods of old names."""
    assert {OK: 8} == exposed(box, "right", "c10d::_allgather_base_").outcomes


def test_one_that_ignores_the_reduce_op_is_exposed(box: Sandbox) -> None:
    """The smallest call that shows it: no sum, and as few elements as can be."""
    failure = exposed(box, "ignores_reduce_op", "c10d::reduce_scatter_", seconds=60).failure

    assert failure is not None
    assert (SILENTLY_WRONG, True, True) == (failure.outcome, failure.shrunk, failure.alone)
    assert "sum" != failure.calls[0]["arguments"]["reduce_op"]
    assert "options.reduceOp = dist.ReduceOp." in failure.reproducer
    assert "pg.reduce_scatter(output_tensors, input_tensors, options).wait()" in failure.reproducer
    assert 2 == len(failure.calls)


def test_one_that_hangs_is_exposed(box: Sandbox) -> None:
    """After a few calls, no more are made: each takes all of its time."""
    found = exposed(box, "hangs", "c10d::allreduce_", sizes=(1,), examples=20, deadline=0.25)

    assert {HANGS} == found.outcomes.keys()
    assert found.outcomes[HANGS] < 20
    assert found.failure is not None
    assert (HANGS, "rank 0: no answer within 0.25 s") == (found.failure.outcome, found.failure.message)


def test_one_that_dies_is_exposed(box: Sandbox) -> None:
    """It takes a process with it, and not this one."""
    found = exposed(box, "dies", "c10d::broadcast_", sizes=(1,), examples=20)

    assert {DIES} == found.outcomes.keys()
    assert found.failure is not None
    assert "# c10d::broadcast_ on 1 rank of " in found.failure.reproducer
    assert "dies by signal 6 (SIGABRT)" in found.failure.reproducer


def test_one_that_writes_beside_a_tensor_is_exposed(box: Sandbox) -> None:
    """The program shows the memory around it."""
    failure = exposed(box, "writes_beyond", "c10d::broadcast_").failure

    assert failure is not None
    assert "elements changed that the op does not write" in failure.message
    assert 'return {"tensors": tensors, "memory": memory}' in failure.reproducer


def marked(mark: str) -> list[int]:
    """The processes that carry the mark."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(int(pid))
    return found


def test_the_command_names_the_faulty_op_and_leaves_nothing_behind(background: Background) -> None:
    """Status 1, the op that fails and not the one that does not, and a program to reproduce it."""
    process, mark = background.command
    out, err = process.communicate(timeout=100)

    assert (1, "") == (process.returncode, err)
    assert re.search(r"c10d::allgather_ +fails +[0-3]/4 ", out)
    assert re.search(r"c10d::barrier +conforms +4/4 ", out)
    assert "c10d::allgather_ fails. To reproduce it without this library:" in out
    assert "# c10d::allgather_ on 2 ranks of " in out
    assert "pg.allgather(output_tensors, input_tensors, dist.distributed_c10d.AllgatherOptions()).wait()" in out
    assert [] == marked(mark)


def test_an_interrupt_leaves_nothing_behind() -> None:
    """Status 130, while children hang."""
    process, mark = started("--backend", f"{FAULTY}:hangs", "--select", "c10d::allreduce_", "--deadline", "60")
    deadline = time.monotonic() + 150
    while len(marked(mark)) < 4 and time.monotonic() < deadline:  # this, the fork server, two children
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert (130, "", "") == (process.returncode, out, err)
    assert [] == marked(mark)


# -- torch's other backends


def test_the_fake_backend_moves_nothing(box: Sandbox) -> None:
    """It is not refused, and it is silently wrong."""
    found = measure("fake", select=["c10d::allgather_", "c10d::barrier"], world_sizes=[2], examples=4, box=box)
    by_op = {op.op: op for op in found.ops}

    assert not found.conforms
    assert ("fake", 4) == (found.table, by_op["c10d::barrier"].passed)
    assert {SILENTLY_WRONG} == {kind.outcome for kind in by_op["c10d::allgather_"].kinds if kind.dtype != "bool"}
    assert 0 < by_op["c10d::barrier"].broken["accepted"]


def test_the_threaded_backend_lacks_an_op(box: Sandbox) -> None:
    """What its table says that it has not is no failure, and nothing is tried of it."""
    ops = ["c10d::allgather_coalesced_", "c10d::barrier"]
    found = measure("threaded", select=ops, world_sizes=[2], examples=4, box=box)
    without, barrier = found.ops

    assert ("not supported", {}, ()) == (without.verdict, without.legal, without.ways)
    assert "threaded has no kernel for it" == without.unsupported
    assert ("conforms", True) == (barrier.verdict, found.conforms)


def test_a_backend_may_borrow_a_table() -> None:
    """Legal is then what that table admits, and it is what the measurement is held against."""
    row = cr.lookup("c10d::allgather_")
    tables = [plan_of(f"{FAULTY}:right", [2], 1, 0, limits).table for limits in ("gloo", None)]

    assert ["gloo", None, "gloo"] == [*tables, plan_of("gloo", [2], 1, 0, None).table]
    assert [{True, False}, {None}] == [
        {table for _, table, _ in ExamplePlan((2,), 1, 0, each).kinds(row)} for each in tables
    ]


# -- the same examples


DIGEST = """
import hashlib
from collective_rules.ops import lookup
from collective_rules.conformance.examples import ExamplePlan, key_of
def digest(seed):
    plan = ExamplePlan((1, 2, 3), 12, seed, "gloo")
    rows = [lookup(op) for op in ("c10d::allreduce_", "_c10d_functional::batch_p2p_ops", "c10d::alltoall_base_")]
    drawn = [each for row in rows for each in plan.legal(row, None) + plan.broken(row, None)]
    return hashlib.sha256("".join(key_of(each.calls) + each.way for each in drawn).encode()).hexdigest()
"""


def test_the_same_seed_draws_the_same_examples() -> None:
    """In another process, too, whose hashes differ."""
    names: dict[str, Any] = {}
    exec(DIGEST, names)
    command = [sys.executable, "-W", "ignore", "-c", f"{DIGEST}\nprint(digest(3))"]
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    other = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=100)

    assert names["digest"](3) == names["digest"](3) == other.stdout.strip()
    assert names["digest"](4) != names["digest"](3)


def test_groups_have_the_sizes_that_were_asked_for() -> None:
    """Legal ones no other; broken ones two ranks at least."""
    plan = ExamplePlan((1, 4), 20, 0, "gloo")
    row = cr.lookup("c10d::gather_")

    assert {1, 4} == {each.calls[0].group.size for each in plan.legal(row, None)}
    assert {4} == {each.calls[0].group.size for each in plan.broken(row, None)}
    assert {2} == {each.calls[0].group.size for each in ExamplePlan((1,), 20, 0).broken(row, None)}
    assert (4,) == plan.sizes_for(cr.lookup("c10d::send"))


def test_only_kinds_that_were_measured_are_drawn() -> None:
    """Of a backend without a table."""
    row = cr.lookup("c10d::reduce_")
    kind = next(
        kind for kind, *_ in ExamplePlan((2,), 1, 0).kinds(row) if str(kind[1]) == "torch.int16" and kind[0] == "max"
    )
    plan = ExamplePlan((2,), 20, 0)
    drawn = [*plan.legal(row, (kind,)), *plan.broken(row, (kind,))]
    others = {
        "another dtype",
        "another dtype on one rank",
        "another reduce op on one rank",
        "a negative view",
        "sparse",
    }
    calls = [one for each in drawn if each.way not in others for one in each.calls if one.row is row]
    dtypes = {str(tensor.dtype) for one in calls for tensor in one.arguments["tensors"]}

    assert ({"max"}, {"torch.int16"}) == ({one.attribute("reduce_op") for one in calls}, dtypes)


def test_the_smallest_failing_example_is_found() -> None:
    """One rank where that will do, and two where it takes two."""
    plan = ExamplePlan((1, 2, 3), 40, 0, "gloo")
    strategy = plan.strategy(cr.lookup("c10d::reduce_"), None)

    def fails(calls: Calls) -> bool:
        return len(calls) > 1 and calls[0].attribute("reduce_op") == "max"

    found = smallest(strategy, fails, 40, "a seed")
    assert found is not None
    assert (2, (), 0) == (len(found), found[0].arguments["tensors"][0].shape, found[0].attribute("root"))
    assert smallest(strategy, lambda calls: False, 10, "a seed") is None
    assert key_of(found) == key_of(smallest(strategy, fails, 40, "a seed") or ())


# -- bad arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "glo"], "backend='glo', but should be 'gloo', 'fake', 'threaded'"),
        (["--backend", "no.such:factory"], "'no.such' cannot be imported: ModuleNotFoundError"),
        (["--backend", "builtins:print", "--deadline", "5"], "its factory returned None for rank "),
        (["--select", "c10d::no*such"], "no op matches 'c10d::no*such'\n"),
        (["--select", "c10d::allreduce"], "no op matches 'c10d::allreduce'; did you mean 'c10d::allreduce_'?"),
        (["--select", "symm_mem::*"], "nothing to measure: symm_mem::one_shot_all_reduce: it has no CPU kernel"),
        (["--select", "c10d::send", "--world-size", "1"], "nothing to measure: c10d::send: it takes two ranks"),
        (["--world-size", "0"], "'--world-size'"),
        (["--examples", "0"], "'--examples'"),
        (["--seed", "x"], "'--seed'"),
        (["--deadline", "0"], "deadline=0.0, but should be a number of seconds"),
        (["--deadline", "nan"], "deadline=nan, but should be a number of seconds"),
        (["--limits", "mccl"], "limits='mccl', but should be one of 'gloo'"),
        (["--report", "report.pdf"], "report.pdf: a report ends in .html, .md or .json"),
        (["--report", "/no/such/folder/report.md"], "/no/such/folder/report.md: there is no folder /no/such/folder"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on standard error, and nothing on standard output."""
    status = main(["conformance", *arguments])
    out, err = capsys.readouterr()

    assert (2, "", 1) == (status, out, err.count("\n"))
    assert err.startswith("collective-rules: ")
    assert message in err


def test_a_report_that_cannot_be_written_in_the_end_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured is printed all the same, and the status says that something is missing."""
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    path = tmp_path / "full.md"

    assert 2 == main(["conformance", "--select", "c10d::barrier", "--examples", "1", "--report", str(path)])
    out, err = capsys.readouterr()
    assert "gloo conforms" in out
    assert f"Not written: {path} cannot be written: No space left" in out
    assert f"collective-rules: {path} cannot be written: No space left" in err


# -- reports


@pytest.fixture
def invented() -> Conformance:
    """A run in which everything happens."""
    failure = Failure("c10d::reduce_", "raises", "a < b & c", ({"op": "x"},), True, 3, False, 'print("<&>")\n')
    kinds = (
        KindResult("sum", "float32", OK, table=True),
        KindResult("sum", "int8", RAISES, "rank 0: <no>", True),
        KindResult("max", "float32", SILENTLY_WRONG, "wrong", False),
        KindResult("max", "int8", "not tried", "", True),
    )
    ways = (WayResult("a | b", ("RE1",), {RAISES: 2, "accepted": 1}),)
    ops = (
        OpResult("c10d::reduce_", "reduce", {OK: 3, RAISES: 1, "undefined": 1}, 2, kinds, ways, failure),
        OpResult("c10d::allreduce_", "all_reduce", {OK: 3}, kinds=kinds),
        OpResult("c10d::scatter_", "scatter", {}, unsupported="RuntimeError: no"),
        OpResult("c10d::send", "send", {}),
    )
    return Conformance("a <b>", "gloo", "2.13.0", (1, 2, 3), 5, 0, 1.0, 2.5, ops, {"x::a": "why", "x::b": "why"})


def test_a_summary_counts_what_matters(invented: Conformance) -> None:
    """A call to which torch has no answer has neither passed nor failed."""
    assert (
        "a <b> does not conform: 6 legal calls passed, 1 failed, in 1 op. Of 3 broken calls, 2 raised, 0 hung, "
        "0 killed the process, and 1 were accepted. 1 op not supported. The table of limits is wrong about 2 dtypes."
    ) == headline(invented)
    assert ["2 ops: why (x::a, x::b)"] == left_out(invented)
    assert ["fails", "conforms", "not supported", "not tried"] == [op.verdict for op in invented.ops]
    assert not invented.conforms


def test_the_tables_show_it(invented: Conformance) -> None:
    """What was measured alike stands in one table."""
    rows = matrix(invented).rows
    (table,) = kind_tables(invented)

    assert ("c10d::reduce_", "fails", "3/4 (2 given up)", "2", "–", "–", "1") == rows[0]
    assert ("c10d::scatter_", "not supported", "–", "–", "–", "–", "–") == rows[2]
    assert "dtypes of c10d::reduce_, c10d::allreduce_" == table.title
    assert (("sum", "float32", "–", "int8"), ("max", "–", "float32", "–")) == table.rows


def test_every_form_shows_what_fails(invented: Conformance) -> None:
    """With the program, and with nothing that the form would take for its own."""
    page = Page(write.text(invented, ".html"))
    data = json.loads(write.text(invented, ".json"))

    assert [] == page.open
    assert 'print("<&>")' in page.text
    assert ("title", "rank 0: <no>") in page.attributes
    assert "no, table: yes" in page.text
    assert 'print("<&>")\n```' in write.text(invented, ".md")
    assert 'print("<&>")\n' == data["ops"][0]["failures"][0]["reproducer"]
    assert {"way": "a | b", "ids": ["RE1"], "raises": 2, "hangs": 0, "dies": 0, "accepted": 1, "right": 0} == (
        data["ops"][0]["ways"][0]
    )
    assert "RuntimeError: no" == data["ops"][2]["unsupported"]


# -- pytest


@pytest.fixture(scope="module")
def authors(background: Background) -> str:
    """What pytest says to an author's tests, in a process of its own that has the plugin."""
    out, err = background.authors.communicate(timeout=100)
    assert 1 == background.authors.returncode, out + err
    return out + (background.folder / "junit.xml").read_text()


def test_a_suite_has_three_tests_of_each_op(authors: str) -> None:
    """Of a right backend they pass."""
    for test in ("test_legal_calls", "test_broken_calls", "test_dtypes"):
        assert f"PASSED test_mine.py::TestGloo::{test}[c10d::barrier]" in authors
    assert "<property name=\"broken\" value=\"{'raises': 0, 'hangs': 2" in authors


def test_a_suite_exposes_a_wrong_backend(authors: str) -> None:
    """Each test says what it found, the first with a program."""
    for test in ("test_legal_calls", "test_broken_calls", "test_dtypes"):
        assert f"FAILED test_mine.py::TestWrong::{test}[c10d::allgather_]" in authors
    assert re.search(r"c10d::allgather_: \d of 4 legal calls fail, the smallest: ", authors)
    assert "pg.allgather(output_tensors, input_tensors" in authors
    assert "a missing rank (AG7): 1 hangs" in authors
    assert "float32: silently wrong; rank 0: output_tensors" in authors


def test_anyone_has_real_ranks(authors: str) -> None:
    """By the fixture of the plugin."""
    assert "PASSED test_mine.py::test_a_world" in authors
    assert "3 failed, 5 passed" in authors


def here(store: Any, rank: int, size: int, timeout: Any) -> Any:
    """A factory in a test's own file, which no other process can import by name."""


def test_a_function_is_found_by_its_place() -> None:
    """Its module where that can be imported, or else its file."""
    assert "collective_rules.conformance.measure:measure" == place_of(measure)
    assert place_of(here) in (f"tests.test_conformance:{here.__name__}", f"{__file__}:{here.__name__}")
    for wrong in (lambda *_: None, 5, print):
        with pytest.raises(CallError, match="should be a function that stands in a module by itself"):
            place_of(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{"select": "no::op"}, {"world_sizes": [0]}, {"examples": 0}, {"broken_may": ["explodes"]}, {"limits": "x"}],
)
def test_a_suite_of_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    """When the tests are collected."""
    with pytest.raises(CallError):
        conformance_suite("gloo", **wrong)
