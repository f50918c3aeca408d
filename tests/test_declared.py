"""A backend that declares what it takes conforms within that; one that claims more does not, with a program for it."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import attrs
import pytest
import torch

import collective_rules as cr
from collective_rules.backends import BackendTable, Limit, table_of
from collective_rules.backends.declared import declared
from collective_rules.cli import main
from collective_rules.conformance import Conformance, Failure, OpResult, WayResult, measure
from collective_rules.conformance.examples import ExamplePlan
from collective_rules.conformance.junit import junit
from collective_rules.conformance.measure import unsupported
from collective_rules.conformance.report import write
from collective_rules.conformance.results import LegalResults
from collective_rules.conformance.selection import expectations_of, expected_failures_in, selection_of
from collective_rules.errors import CallError
from collective_rules.sandbox import HANGS, OK, RAISES, SILENTLY_WRONG, Result, Sandbox
from tests import toy_backend
from tests.commands import run_python, torchrun

TOY = str(Path(toy_backend.__file__))


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(workers=4, warm=["collective_rules.conformance.jobs"]) as made:
        yield made


def measured(box: Sandbox, table: str | None, *select: str, **more: Any) -> Conformance:
    """Measure some ops of the toy by one of its tables."""
    limits = None if table is None else f"{TOY}:{table}"
    settings: dict[str, Any] = {"world_sizes": [2], "examples": 3, "box": box, "limits": limits, **more}
    return measure(f"{TOY}:Toy", select=select, **settings)


# -- a declaration


def test_a_backend_that_declares_what_it_takes_conforms_within_it(tmp_path: Path) -> None:
    """Also by JUnit XML, and a badge; what it declares missing is no failure."""
    files = [str(tmp_path / name) for name in ("report.md", "junit.xml")]
    options = ["--backend", f"{TOY}:Toy", "--limits", f"{TOY}:TABLE", "--select", "c10d::all*,c10d::b*,TOY1,TOY2,TOY3"]
    settings = ["--world-size", "2", "--examples", "3", "--json", "--report", files[0], "--junit", files[1]]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = main(["conformance", *options, *settings])
    data = json.loads(out.getvalue())

    assert (0, "conforms within what it declares", True) == (status, data["verdict"], data["conforms"])
    verdicts = {one["op"]: one["verdict"] for one in data["ops"]}
    assert {*toy_backend.OPS} == {op for op, verdict in verdicts.items() if verdict == "conforms"}
    assert {"conforms", "not supported"} == {*verdicts.values()}
    assert all(kind["agrees"] for one in data["ops"] for kind in one["kinds"])
    assert {"TOY2", "TOY3"} == {id for one in data["ops"] for way in one["ways"] for id in way["ids"]}
    assert "badge/collective--rules-conforms_within_what_it_declares-brightgreen" in Path(files[0]).read_text()
    assert "0" == ElementTree.parse(files[1]).getroot().get("failures")


@pytest.mark.parametrize(
    ("table", "op", "outcome", "claim", "program"),
    [
        ("CLAIMS_AN_OP", "c10d::scatter_", RAISES, "float32", "pg.scatter("),
        ("CLAIMS_A_BARRIER", "c10d::monitored_barrier_", RAISES, "", "pg.monitored_barrier("),
        ("CLAIMS_A_DTYPE", "c10d::broadcast_", RAISES, "int8", "dtype=torch.int8"),
        ("CLAIMS_A_REDUCE_OP", "c10d::allreduce_", RAISES, "avg float32", "dist.ReduceOp.AVG"),
        ("CLAIMS_A_FORM", "c10d::allgather_", RAISES, "", "pg.allgather("),
        ("CLAIMS_LISTS", "c10d::broadcast_", SILENTLY_WRONG, "", "pg.broadcast("),
    ],
)
def test_a_lie_is_found_with_a_program_that_reproduces_it(
    box: Sandbox, table: str, op: str, outcome: str, claim: str, program: str
) -> None:
    found = measured(box, table, op, examples=6, deadline=0.5)

    assert ("does not conform", "fails") == (found.verdict, found.ops[0].verdict)
    failure = found.failures[0]
    assert (op, outcome) == (failure.op, failure.outcome)
    assert claim in failure.claim
    assert program in failure.reproducer
    compile(failure.reproducer, "reproducer.py", "exec")


@pytest.mark.parametrize(
    ("table", "op", "note"),
    [("CLAIMS_LESS", "c10d::broadcast_", "int64"), ("LACKS_A_BARRIER", "c10d::barrier", "the op itself")],
)
def test_a_limit_that_is_none_is_a_note(box: Sandbox, table: str, op: str, note: str) -> None:
    found = measured(box, table, op)

    assert (f"{op}: the table declares less than it takes: {note}",) == found.notes
    assert "fails" not in {each.verdict for each in found.ops}


def test_what_goes_well_beyond_a_limit_is_a_note() -> None:
    """Only where every call does: one that is refused shows that the limit is there."""
    ways = [WayResult("beyond TOY4, forms", ("TOY4",), {"accepted": 2}, right) for right in (2, 1)]
    notes = [OpResult("c10d::allgather_", "all_gather", {OK: 1}, ways=(way,)).notes for way in ways]
    assert [("c10d::allgather_: the table declares less than it takes: all goes well beyond TOY4, forms",), ()] == notes


# -- without a table


def test_an_op_that_is_not_there_is_not_supported_whatever_the_op(box: Sandbox) -> None:
    """Also one that moves no tensors; and a list of two tensors is no failure."""
    found = measured(box, None, "c10d::monitored_barrier_", "c10d::scatter_", "c10d::broadcast_", "BC3")
    by_op = {op.op: op for op in measured(box, None, "c10d::monitored_barrier_", "c10d::scatter_").ops}

    assert {"not supported"} == {op.verdict for op in by_op.values()}
    (broadcast,) = found.ops
    assert ("conforms", {SILENTLY_WRONG: 1}) == (broadcast.verdict, dict(broadcast.optional))


def test_only_a_backend_that_says_so_lacks_an_op() -> None:
    """All legal calls have to."""
    no, other = Result(RAISES, ["rank 0: RuntimeError: x does not support barrier"]), Result(RAISES, ["no memory"])
    assert "RuntimeError: x does not support barrier" == unsupported((), LegalResults({0: ((), no), 1: ((), no)}))
    assert "" == unsupported((), LegalResults({0: ((), no), 1: ((), other)})) == unsupported((), LegalResults())


@pytest.mark.parametrize(("table", "most"), [(None, {1}), ("gloo", {1, 2, 3}), (f"{TOY}:TABLE", {1})])
def test_lists_of_several_tensors_are_legal_where_a_table_says_so(table: str | None, most: set[int]) -> None:
    """torch.distributed never sends one; elsewhere they are tried as optional."""
    row = cr.lookup("c10d::broadcast_")
    plan = ExamplePlan((2,), 20, 0, table)

    assert most == {len(each.calls[0].arguments["tensors"]) for each in plan.legal(row, None)}
    assert (most == {1}) == bool(plan.optional(row, None))
    assert all(len(each.calls[0].arguments["tensors"]) > 1 for each in plan.optional(row, None))


# -- a table that cannot be meant


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"ops": ("c10d::allreduce",)}, r"X1: ops=.* there is no 'c10d::allreduce'; did you mean 'c10d::allreduce_'\?"),
        ({"ops": "c10d::allreduce_"}, "X1: ops='c10d::allreduce_', but should be a tuple of names"),
        ({"rules": ("allreduce",)}, "did you mean 'all_reduce'"),
        ({"namespaces": ("c10",)}, "there is no 'c10'"),
        ({"ops": ()}, "X1: it holds for no op: say which by "),
        ({"nonempty": False}, "X1: it demands nothing: set one of "),
        ({"dtypes": frozenset({"float32"})}, "but should be a set of torch dtypes"),
        ({"reduces": {"SUM": frozenset()}}, "there is no 'SUM'"),
        ({"reduces": {"sum": {"float32"}}}, "but should be a set of torch dtypes"),
        ({"reduces": 5}, "but should map reduce ops to sets"),
        ({"forms": ("evn",)}, "there is no 'evn'; did you mean 'even'"),
        ({"from_size": 0}, "from_size=0, but should be a number of ranks"),
        ({"severity": "fatal"}, "severity='fatal', but should be 'error', 'warning' or 'undecidable'"),
        ({"id": ""}, r"limits\[0\] has id=''"),
        ({"id": "AG7"}, r"limits\[0\] has id='AG7', which a constraint of a rule has, too"),
    ],
)
def test_a_limit_that_cannot_be_meant_is_refused(
    limit: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to write instead, where that can be guessed."""
    columns: dict[str, Any] = {"id": "X1", "says": "", "advice": "", "ops": ("c10d::allreduce_",), "nonempty": True}
    monkeypatch.setattr(toy_backend, "WRONG", BackendTable("x", "", (Limit(**{**columns, **limit}),)), raising=False)
    declared.cache_clear()
    with pytest.raises(CallError, match=message):
        table_of("tests.toy_backend:WRONG")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (f"{TOY}:TABEL", "has no TABEL; it has TABLE"),
        (f"{TOY}:OTHERS", "that is of type tuple, and should be a "),
        ("no.such:TABLE", "cannot be imported: ModuleNotFoundError"),
        ("/no/such.py:TABLE", "there is no file /no/such.py"),
        ("ncl", "limits='ncl', but should be one of 'gloo'"),
    ],
)
def test_a_place_without_a_table_is_refused(limits: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main(["conformance", "--limits", limits, "--select", "c10d::barrier"])
    assert message in capsys.readouterr().err


def test_a_table_with_a_limit_twice_or_of_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = toy_backend.TABLE.limits[0]
    for limits, message in (
        ((limit, limit), r"limits\[1\] has id='TOY1', which another limit has, too"),
        ((5,), r"limits\[0\] is 5, but should be a Limit"),
        (limit, "but should be a tuple of Limit"),
    ):
        wrong = attrs.evolve(toy_backend.TABLE, limits=limits)
        monkeypatch.setattr(toy_backend, "WRONG", wrong, raising=False)
        declared.cache_clear()
        with pytest.raises(CallError, match=message):
            table_of("tests.toy_backend:WRONG")


def test_a_declared_table_judges_calls() -> None:
    """As the built-in ones do."""
    call = cr.call("c10d::broadcast_", group=cr.Group(2), tensors=[cr.Spec((2,), torch.int8)], root_rank=0)
    assert ["TOY2"] == [found.id for found in cr.check(call, backend=f"{TOY}:TABLE")]


# -- what is chosen, and what is expected


def test_ops_and_ids_are_told_apart() -> None:
    """An op has to match by its name and by its ids."""
    chosen = selection_of(["c10d::*gather*", "AG7"], ["c10d::allgather_coalesced_", "AG1"], "gloo")

    assert ({"AG7"}, {"AG1"}) == (chosen.ids, chosen.spared)
    assert chosen.selects("c10d::allgather_")
    assert not chosen.selects("c10d::gather_")
    assert chosen.ignores("c10d::allgather_coalesced_")
    with pytest.raises(CallError, match="no op matches 'AG77'; did you mean 'AG7'"):
        selection_of([], ["AG77"], None)


def test_only_the_chosen_constraints_are_broken() -> None:
    row = cr.lookup("c10d::broadcast_")
    assert {"BC3"} == {each.id for each in ExamplePlan((2,), 10, 0, "gloo", ids=frozenset({"BC3"})).broken(row, None)}
    spared = ExamplePlan((2,), 10, 0, "gloo", spared=frozenset({"BC3"})).broken(row, None)
    assert spared
    assert "BC3" not in {each.id for each in spared}


def test_an_expected_failure_is_none(box: Sandbox) -> None:
    """Its reason is in the report."""
    reasons = {"c10d::scat*": "no kernel yet"}
    found = measured(box, "CLAIMS_AN_OP", "c10d::scatter_", "c10d::barrier", expect_failures=reasons)

    assert ("conforms within what it declares", "fails as expected") == (found.verdict, found.ops[0].verdict)
    assert "expected failure: no kernel yet" in junit(found)
    assert "fails as expected: no kernel yet" in write.text(found, ".md")


def test_an_expected_failure_that_passes_is_a_note() -> None:
    op = OpResult("c10d::barrier", "barrier", {OK: 3}, expected="no kernel yet")
    assert ("c10d::barrier: expected to fail (no kernel yet), but it does not",) == op.notes


def test_expected_failures_have_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line and from a file."""
    assert {"c10d::gather_": "later"} == dict(expected_failures_in(["", "# no", " c10d::gather_ = later "]))
    with pytest.raises(CallError, match="has no reason"):
        expectations_of({"c10d::barrier": " "})
    with pytest.raises(CallError, match="no op matches 'barrier'"):
        expectations_of({"barrier": "x"})
    for wrong, message in (
        (["--expect-failure", "c10d::barrier"], "'c10d::barrier' should be ID=REASON"),
        (["--expected-failures", str(tmp_path / "none")], "none cannot be read: No such file"),
        (["--junit", "/no/such/folder/junit.xml"], "there is no folder /no/such/folder"),
    ):
        assert 2 == main(["conformance", "--select", "c10d::barrier", *wrong])
        assert message in capsys.readouterr().err


# -- JUnit XML


def test_every_outcome_is_a_case_of_junit() -> None:
    """Also with characters that XML cannot hold."""
    failure = Failure("c10d::reduce_", HANGS, "\x00<&>", (), True, 3, True, 'print("]]>")\n')
    ops = (
        OpResult("c10d::reduce_", "reduce", {OK: 3, HANGS: 1}, failure=failure),
        OpResult("c10d::broadcast_", "broadcast", {OK: 3}),
        OpResult("c10d::scatter_", "scatter", {}, unsupported="RuntimeError: no"),
        OpResult("c10d::send", "send", {}),
    )
    run = Conformance("a <b>", None, "2.13.0", (2,), 5, 0, 1.0, 2.5, ops, {"x::a": "why"}, ended="It ended.")
    suite = ElementTree.fromstring(junit(run).encode())
    cases = {
        case.get("name"): [child.tag for child in case if child.tag != "properties"] for case in suite.iter("testcase")
    }

    assert {
        "c10d::reduce_ legal calls": ["failure"],
        "c10d::broadcast_ legal calls": [],
        "c10d::scatter_ legal calls": ["skipped"],
        "c10d::send legal calls": ["skipped"],
        "x::a legal calls": ["skipped"],
        "the whole run": ["error"],
    } == cases
    assert ("6", "1", "1", "3") == tuple(suite.get(name) for name in ("tests", "failures", "errors", "skipped"))
    shown = next(suite.iter("failure"))
    assert ("1 of 4 legal calls fail", True) == (shown.get("message"), 'print("]]>")' in (shown.text or ""))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything runs."""
    assert 2 == main(["conformance", "--device", "cuda", "--backend", "nccl"])
    err = capsys.readouterr().err
    assert "device='cuda', but torch " in err
    assert "found: none; " in err


# -- a table beside the backend itself, under torchrun


@pytest.mark.parametrize(
    ("limits", "status", "line"),
    [
        ("gloo", 0, "the table is wrong about 0."),
        (f"{TOY}:TABLE", 1, "c10d::broadcast_: the table says that it refuses float64: ok"),
    ],
    ids=["right", "wrong"],
)
def test_the_truth_about_a_table_is_told_by_real_ranks(limits: str, status: int, line: str) -> None:
    """On gloo here; the script is for NCCL, where there are GPUs."""
    options = ["--backend=gloo", "--device=cpu", "--limits", limits, "--select=c10d::broadcast_", "--examples=2"]
    ran = run_python(*torchrun(2, "benchmarks/nccl_truth.py", *options), within=150)

    assert (status, True) == (ran.returncode, line in ran.stdout), ran.stdout + ran.stderr
