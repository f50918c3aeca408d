"""The command line: what it answers, how it ends, and what it makes of bad input."""

import json
import os
import re
import signal
import subprocess
import sys

import attrs
import pytest
import torch

import collective_rules as cr
from collective_rules.backends import BACKENDS, limits_of
from collective_rules.cli import infer, listing, show
from collective_rules.cli.argument_values import DTYPES, parse_value
from collective_rules.cli.output import CommandError, Report
from collective_rules.cli.render import render
from collective_rules.text_table import Table

_GATHER = "_c10d_functional::all_gather_into_tensor"
_REDUCE_SCATTER = "_c10d_functional::reduce_scatter_tensor"
_ENDLESS = "x".join(["9" * 18] * 20)
_TO_ALL = "_c10d_functional::all_to_all_single"


@pytest.fixture
def answer(run):
    """Carry out a command line with --json, and return its status and the object that it printed."""

    def carry_out(*arguments):
        status, out, err = run(*arguments, "--json")
        assert "" == err
        return status, json.loads(out)

    return carry_out


def _process(*arguments, **options):
    command = [sys.executable, "-m", "collective_rules", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


# list


def test_list_names_every_op_once_with_its_rule_and_notation(run):
    """The ops of the tables, in their order."""
    status, out, err = run("list")
    rows = [re.split(r"  +", line) for line in out.splitlines()[1:]]

    assert (0, "") == (status, err)
    assert [[op, cr.lookup(op).rule.name, cr.lookup(op).notation] for op in cr.ops()] == [row[:3] for row in rows]


def test_list_filters_by_namespace_and_rule(answer):
    """Both filters hold at once."""
    _, data = answer("list", "--namespace", "_c10d_functional", "--rule", "all_gather_into_tensor")

    assert [op for op in cr.ops() if op.startswith(_GATHER)] == [one["op"] for one in data["ops"]]


def test_a_filter_that_nothing_passes_is_no_failure(run):
    """Two known names may have no op in common."""
    assert (0, "no op of the namespace _dtensor follows the rule send\n", "") == run(
        "list", "--namespace", "_dtensor", "--rule", "send"
    )


@pytest.mark.parametrize(
    ("option", "wrong", "meant", "known"),
    [("--namespace", "c10", "c10d", "symm_mem"), ("--rule", "all_gathr", "all_gather", "barrier")],
)
def test_an_unknown_filter_is_refused_with_the_known_ones(run, option, wrong, meant, known):
    """The nearest name is suggested, and all are listed."""
    status, out, err = run("list", option, wrong)

    assert (2, "") == (status, out)
    assert f"{wrong!r}; did you mean {meant!r}?" in err
    assert known in err


# show


@pytest.mark.parametrize("op", cr.ops())
def test_show_tells_all_that_the_tables_say(op, run, answer):
    """Every form, constraint, argument and limit, for people and for programs."""
    row = cr.lookup(op)
    _, data = answer("show", op)
    status, out, err = run("show", op)
    told = [str(spelling.statement) for spelling in row.spellings] + list(row.rule.constraints)
    told += [row.rule.title, row.rule.source] + [argument.name for argument in row.arguments]
    told += [limit.says for backend in BACKENDS for limit in limits_of(backend, row)]

    assert (0, "") == (status, err)
    assert [] == [text for text in told if text not in out]
    assert [str(spelling.statement) for spelling in row.spellings] == [form["notation"] for form in data["forms"]]
    assert dict(row.rule.constraints) == {one["id"]: one["kind"] for one in data["constraints"]}
    assert [row.reads, row.writes] == [tuple(data["reads"]), tuple(data["writes"])]
    assert [(one.name, one.kind) for one in row.returns] == [(one["name"], one["kind"]) for one in data["returns"]]
    assert [row.group or None, row.root or None, row.peer or None] == [data["group"], data["root"], data["peer"]]
    assert (row.available, row.entry.since) == (data["available"], data["since"])


def test_show_gives_each_argument_its_role():
    """What the op's row says of an argument stands beside it."""
    data = show.show_op("c10d::alltoall_base_").data

    assert [
        ("output", "Tensor", "written", "dense"),
        ("input", "Tensor", "read", "format"),
        ("process_group", "ProcessGroup", "group", None),
        ("output_split_sizes", "int[]", "split sizes of the output", None),
        ("input_split_sizes", "int[]", "split sizes of the input", None),
    ] == [tuple(one.values()) for one in data["arguments"]][:5]


def test_show_suggests_ops_for_a_misspelt_one(run):
    """The library's own suggestions, in one line."""
    status, out, err = run("show", "c10d::allreduce")

    assert (2, "") == (status, out)
    assert err.startswith("collective-rules: no rule for 'c10d::allreduce'; did you mean 'c10d::allreduce_'")
    assert 1 == err.count("\n")


@pytest.mark.parametrize(("op", "reason"), cr.exclusions().items())
def test_show_says_why_an_excluded_op_has_no_rule(run, op, reason):
    """There is nothing to show, and the reason is on standard error."""
    assert (2, "", f"collective-rules: {op} has no rule. {reason}\n") == run("show", op)


# infer


def test_infer_answers_as_the_library_does(answer):
    """Results, findings and traffic are those of the functions."""
    group = cr.Group(size=8, rank=3)
    call = cr.call(_GATHER, group=group, input=cr.Spec((16, 4), torch.bfloat16))
    status, data = answer("infer", _GATHER, "--group-size", "8", "--rank", "3", "input=16x4:bfloat16")
    moved = cr.traffic(call)

    assert 0 == status
    assert {"size": 8, "rank": 3} == data["group"]
    assert {"output": {"shape": [128, 4], "dtype": "bfloat16", "stride": [4, 1], "alias": None, "bytes": 1024}} == data[
        "results"
    ]
    assert [] == data["findings"]
    assert [moved.read, moved.written, moved.sent, moved.buffer, moved.bus_factor] == list(data["traffic"].values())


def test_infer_tabulates_every_tensor_of_a_nested_list(run):
    """One line for each, with what it is and whose memory."""
    status, out, _ = run("infer", "c10d::allgather_", "--group-size", "2", "input_tensors=4x3")
    rows = [re.split(r"  +", line) for line in out.splitlines() if line.startswith("output_tensors")]

    assert 0 == status
    assert [
        [f"output_tensors[0][{rank}]", "written, returned", "4x3", "float32", "3,1", "the argument", "48"]
        for rank in (0, 1)
    ] == rows


def test_sizes_without_a_solution_are_findings_and_no_results(run, answer):
    """13 elements cannot be scattered over 4 ranks: status 1, with the message of check."""
    command = ("infer", _REDUCE_SCATTER, "--group-size", "4", "input=13", "reduce_op=sum")
    call = cr.call(_REDUCE_SCATTER, group=cr.Group(size=4), input=(13,), reduce_op="sum")
    (found,) = cr.check(call)
    status, out, err = run(*command)
    _, data = answer(*command)

    assert (1, "") == (status, err)
    assert f"error: {found.message}\n" in out
    assert (None, None) == (data["results"], data["traffic"])
    assert [("RST1", "error", {"W": 4, "input.shape": [13]})] == [
        (one["id"], one["severity"], one["names"]) for one in data["findings"]
    ]


def test_a_wrong_written_argument_is_a_finding_beside_the_right_sizes(answer):
    """The right sizes are told all the same."""
    status, data = answer(
        "infer", "c10d::_allgather_base_", "--group-size", "2", "input_tensor=3x4", "output_tensor=7x4"
    )

    assert 1 == status
    assert [6, 4] == data["results"]["output_tensor"]["shape"]
    assert ["error"] == [one["severity"] for one in data["findings"]]


def test_a_warning_alone_leaves_the_status_0(answer):
    """Only errors count."""
    op = "_c10d_functional::all_gather_into_tensor_out"
    status, data = answer("infer", op, "--group-size", "2", "input=3", "group_size=3", "out=6")

    assert (0, ["warning"]) == (status, [one["severity"] for one in data["findings"]])


def test_a_backend_adds_its_limits(answer):
    """No kernel of gloo takes float8."""
    command = ("infer", "c10d::allreduce_", "--group-size", "2", "tensors=4:float8_e4m3fn")

    assert [0, 1] == [answer(*command)[0], answer(*command, "--backend", "gloo")[0]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "--bogus"], "No such option: --bogus"),
        (["lst"], "No such command 'lst'"),
        ([], "Missing command"),
        (["show"], "Missing argument 'OP'"),
        (["show", "c10d::allreduce_", "surplus"], "unexpected extra argument"),
        (["infer", _GATHER, "input=4"], "Missing option '--group-size'"),
        (["infer", _GATHER, "--group-size", "two", "input=4"], "'--group-size'"),
        (["infer", _GATHER, "--group-size", "0", "input=4"], "a group has at least one rank"),
        (["infer", _GATHER, "--group-size", "1000001", "input=4"], "less than or equal to 1000000"),
        (["infer", "c10d::allreduce_", "--group-size", "2", f"tensors={_ENDLESS}"], "bytes cannot be counted"),
        (["infer", _GATHER, "--group-size", "2", "--rank", "2", "input=4"], "rank=2, but should be 0 to 1"),
        (["infer", _GATHER, "--group-size", "2", "--rank", "-1", "input=4"], "rank=-1, but should be 0 to 1"),
        (["infer", "c10d::nothing", "--group-size", "2"], "no rule for 'c10d::nothing'"),
        (["infer", _GATHER, "--group-size", "2", "--backend", "glo", "input=4"], "backend='glo'"),
        (["infer", _GATHER, "--group-size", "2"], "input is missing"),
        (["infer", _GATHER, "--group-size", "2", "input"], "'input' is no name=value, such as input=16x4:bfloat16"),
        (["infer", _GATHER, "--group-size", "2", "input=4", "input=4"], "input is given twice"),
        (["infer", _GATHER, "--group-size", "2", "inptu=4"], "no argument 'inptu'; did you mean 'input'?"),
        (["infer", _GATHER, "--group-size", "2", "=4"], "no argument ''"),
        (["infer", _GATHER, "--group-size", "2", "input=4", "group_name=x"], "--group-size and --rank describe"),
        (["infer", _GATHER, "--group-size", "2", "input=4:bfloat61"], "did you mean 'bfloat16'?"),
        (["infer", _GATHER, "--group-size", "2", "input=4\n4"], "found '\\n4' at 2"),
        (["infer", _GATHER, "--group-size", "2", "input=\x1b[31m"], "expected a tensor"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_carried_out_ends_with_status_2_and_one_line(run, arguments, says):
    """At every door: nothing on standard output, one printable line on standard error."""
    status, out, err = run(*arguments)

    assert (2, "") == (status, out)
    assert says in err
    assert err.startswith("collective-rules: ")
    assert err.removesuffix("\n").isprintable()


# values


def _argument(kind, depth=0, *, optional=False, gaps=False):
    known = cr.lookup("c10d::allreduce_").arguments[0]
    return attrs.evolve(known, name="value", kind=kind, depth=depth, optional=optional, gaps=gaps)


_SPEC, _OTHER = cr.Spec((4, 3)), cr.Spec((2, 3), torch.int64)


@pytest.mark.parametrize(
    ("argument", "text", "value"),
    [
        (_argument("Tensor"), "16x4:bfloat16", cr.Spec((16, 4), torch.bfloat16)),
        (_argument("Tensor"), "16x4", cr.Spec((16, 4))),
        (_argument("Tensor"), "16:torch.half", cr.Spec((16,), torch.float16)),
        (_argument("Tensor"), "0d", cr.Spec(())),
        (_argument("Tensor"), "0d:int64", cr.Spec((), torch.int64)),
        (_argument("Tensor"), "0", cr.Spec((0,))),
        (_argument("Tensor"), "0x3", cr.Spec((0, 3))),
        (_argument("Tensor"), "16x4:bfloat16@1,16", cr.Spec((16, 4), torch.bfloat16, (1, 16))),
        (_argument("Tensor"), "16x4@1,16", cr.Spec((16, 4), torch.float32, (1, 16))),
        (_argument("Tensor", optional=True), "none", None),
        (_argument("Tensor", 1), "4x3", (_SPEC,)),
        (_argument("Tensor", 1), "4x3,2x3:int64", (_SPEC, _OTHER)),
        (_argument("Tensor", 1), "4x3; 2x3:int64", (_SPEC, _OTHER)),
        (_argument("Tensor", 1), "[4x3, 2x3:int64]", (_SPEC, _OTHER)),
        (_argument("Tensor", 1), "4x3@1,4,2x3:int64", (cr.Spec((4, 3), torch.float32, (1, 4)), _OTHER)),
        (_argument("Tensor", 1), "", ()),
        (_argument("Tensor", 1), "[]", ()),
        (_argument("Tensor", 1, gaps=True), "none,4x3", (None, _SPEC)),
        (_argument("Tensor", 2), "4x3,4x3", ((_SPEC, _SPEC),)),
        (_argument("Tensor", 2), "4x3;4x3", ((_SPEC,), (_SPEC,))),
        (_argument("Tensor", 2), "4x3,4x3;2x3:int64", ((_SPEC, _SPEC), (_OTHER,))),
        (_argument("Tensor", 2), "[[4x3,4x3],[2x3:int64]]", ((_SPEC, _SPEC), (_OTHER,))),
        (_argument("Tensor", 2), "[[]]", ((),)),
        (_argument("Tensor", 2), "", ()),
        (_argument("int"), "-3", -3),
        (_argument("int", optional=True), "none", None),
        (_argument("int", optional=True), "bfloat16", torch.bfloat16),
        (_argument("int", 1), "1,3", (1, 3)),
        (_argument("int", 1), "", ()),
        (_argument("int", 1, optional=True), "none", None),
        (_argument("bool"), "true", True),
        (_argument("bool"), "False", False),
        (_argument("bool", 1), "true,false", (True, False)),
        (_argument("str"), "sum", "sum"),
        (_argument("str"), "none", "none"),
        (_argument("str", 1), "isend,irecv", ("isend", "irecv")),
        (_argument("__torch__.torch.classes.c10d.ReduceOp"), "max", "max"),
    ],
    ids=str,
)
def test_a_value_is_read_by_its_argument_s_type(argument, text, value):
    """The grammar of `values`, line by line."""
    assert value == parse_value(argument, text)


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        *((_argument("Tensor"), text) for text in ("", "x", "4x", "x4", "4 x 4", "-4", "4.5", "0dx3", "1d", "٣")),
        *((_argument("Tensor"), text) for text in ("4:", "4:floot32", "4:nn", "4:__name__", "4:int64:int64")),
        *((_argument("Tensor"), text) for text in ("4@", "4@1,1", "4x3@1", "4@-1", "0d@1", "4@1@1", "4,4", "[4]")),
        *((_argument("Tensor"), text) for text in ("none", "9" * 19, "9" * 5000, "__import__('os')")),
        *(
            (_argument("Tensor", 1), text)
            for text in (",", "4,", ",4", "4,,4", "[4", "4]", "[[4]]", "4x3@1,4x3", "none")
        ),
        *((_argument("Tensor", 2), text) for text in ("[4x3]", "[[4x3]", "[4],[4]", "[[4],4]", "[[[4]]]", ";")),
        *(
            (_argument("int"), text)
            for text in ("", "1.5", "1e3", "0x10", "1,2", "--1", "none", "9" * 19, "-9" + "9" * 19)
        ),
        *((_argument("int", 1), text) for text in ("1,,2", "1 2", "[1", "a", "none")),
        *((_argument("bool"), text) for text in ("", "1", "yes", "trueish")),
        (_argument("str", 1), "isend,,irecv"),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, str) else f"{value.kind}{'[]' * value.depth}",
)
def test_a_malformed_value_is_refused_and_never_evaluated(argument, text):
    """The message names the argument and shows what was written."""
    with pytest.raises(CommandError, match=r"^value=") as caught:
        parse_value(argument, text)

    assert str(caught.value).isprintable()


def test_every_dtype_of_torch_has_a_name_and_nothing_else_has():
    """The table is torch's own namespace."""
    assert {torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool} <= set(DTYPES.values())
    assert all(getattr(torch, name) is dtype for name, dtype in DTYPES.items())


# --json


_CALL = ("_c10d_functional::all_to_all_single", "--group-size", "2", "input=4x4", "input_split_sizes=1,3")


@pytest.mark.parametrize(
    ("module", "arguments"),
    [(listing, ["list"]), (show, ["show", _TO_ALL]), (infer, ["infer", *_CALL, "output_split_sizes=1,1"])],
    ids=["list", "show", "infer"],
)
def test_every_key_of_the_json_object_is_documented(answer, module, arguments):
    """The module's docstring names each key; what lies under a name of the user's or of a row does not count."""
    _, data = answer(*arguments)
    documented = module.__doc__

    def keys(value):
        if isinstance(value, list):
            return {key for item in value for key in keys(item)}
        if not isinstance(value, dict):
            return set()
        return set(value) | {key for item in value.values() for key in keys(item)}

    assert set() == {key for key in keys(data) - {"output", "input"} if not re.search(rf"\b{key}\b", documented)}


@pytest.mark.parametrize("command", [["list"], ["show", "c10d::scatter_"], ["infer", *_CALL]], ids=lambda c: c[0])
def test_json_is_ascii_and_the_same_every_time(run, command):
    """So that any terminal takes it, and two runs can be compared."""
    first, second = run(*command, "--json"), run(*command, "--json")

    assert first == second
    assert first[1].isascii()


# how it is written


def test_a_terminal_shows_all_that_a_pipe_gets(run, monkeypatch):
    """Long cells are folded, none is cut, and `[p]` is not taken for a colour."""
    _, piped, _ = run("show", "c10d::allgather_")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    _, shown, _ = run("show", "c10d::allgather_")

    assert len(shown.splitlines()) > len(piped.splitlines())
    assert sorted(re.sub(r"\s", "", piped)) == sorted(re.sub(r"\x1b\[\d+m|\s", "", shown))


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_terminal_would_obey_is_escaped(capsys, monkeypatch, terminal):
    """In text and in cells, which show names of the user's program."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    render(Report({}, ("a\x1b[2Jb\nc", Table(("name",), (("d\x07\n\u202ee",),)))))
    out = re.sub(r"\x1b\[\d+m", "", capsys.readouterr().out)

    assert ["a\\x1b[2Jb", "c", "", "name", "d\\x07\\n\\u202ee"] == [line.strip() for line in out.splitlines()]


def test_an_interrupt_ends_with_130_and_without_a_traceback(run, monkeypatch):
    """As a shell reports it."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, "lookup", interrupted)

    assert (128 + signal.SIGINT, "", "") == run("list")


def test_help_names_every_command(run):
    """With status 0, on standard output."""
    status, out, err = run("--help")

    assert (0, "") == (status, err)
    assert [] == [name for name in ("list", "show", "infer") if name not in out]


def test_version_names_the_package_s_and_torch_s(run):
    """Both decide what is shown."""
    assert (0, f"collective-rules {cr.__version__}, torch {torch.__version__}\n", "") == run("--version")


# as a process of its own


def test_python_m_ends_with_the_status_of_its_findings():
    """`python -m collective_rules` is the command, and a pipe gets no colour."""
    done = _process("infer", _REDUCE_SCATTER, "--group-size", "4", "input=13", "reduce_op=sum")

    assert (1, "") == (done.returncode, done.stderr)
    assert "[RST1]" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_pipe_gets_long_lines_whole_and_any_encoding_will_do():
    """Neither 80 columns nor an ASCII locale loses anything."""
    environment = os.environ | {"COLUMNS": "80", "PYTHONIOENCODING": "ascii", "TERM": "xterm"}
    done = _process("list", env=environment)
    longest = max((cr.lookup(op).notation for op in cr.ops()), key=len)

    assert 0 == done.returncode
    assert longest in done.stdout


def test_a_bad_command_line_leaves_no_traceback():
    """One line, and status 2."""
    done = _process("infer", "c10d::allreduce_", "--group-size", "2", "tensors=4:floot32")

    assert (2, "") == (done.returncode, done.stdout)
    assert ["collective-rules: tensors=4:floot32: torch has no dtype 'floot32'; did you mean 'float32'?"] == (
        done.stderr.splitlines()
    )


@pytest.mark.parametrize(("closed", "told"), [([1], True), ([2], False), ([1, 2], False)], ids=str)
def test_a_stream_that_is_closed_from_the_start_ends_the_command_with_status_2(closed, told):
    """As `collective-rules show x >&-` does; a reason is told where there is somewhere to write it."""
    shut = " ".join(f"{number}>&-" for number in closed)
    command = f'exec "$0" -m collective_rules {"list" if 1 in closed else "show nothing"} {shut}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable], capture_output=True, text=True, timeout=120, check=False
    )

    assert (2, "") == (done.returncode, done.stdout)
    assert (
        done.stderr == "collective-rules: standard output is closed, so there is nowhere to write the answer\n" * told
    )


@pytest.mark.parametrize("arguments", [["list"], ["list", "--rule", "send"]], ids=["long", "short"])
def test_a_closed_pipe_ends_the_command_in_silence(arguments):
    """As `collective-rules list | true` does; what is still buffered is not tried again when the process exits."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "collective_rules", *arguments]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False, env=environment
    )
    os.close(writer)

    assert (128 + signal.SIGPIPE, "") == (done.returncode, done.stderr)


# dry-run


@pytest.fixture
def script(tmp_path):
    """Write a script, and return its path."""

    def write(text):
        (tmp_path / "train.py").write_text(text)
        return str(tmp_path / "train.py")

    return write


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("", "--steps 0", "Invalid value for '--steps': Input should be greater than or equal to 1"),
        (
            "",
            "--local-world-size 0",
            "Invalid value for '--local-world-size': Input should be greater than or equal to 1",
        ),
        ("", "--steps", "Option '--steps' requires an argument"),
        ("--rank 3", "--rank -1", "Invalid value for '--rank': Input should be greater than or equal to 0"),
    ],
)
def test_a_zero_after_the_script_is_not_passed_over(run, script, before, after, says):
    """It is refused as before it."""
    status, out, err = run("dry-run", *before.split(), script(""), "--world-size", "4", *after.split())

    assert (2, "", f"collective-rules: {says}") == (status, out, err[: len(says) + 18])


def test_an_option_after_the_script_is_the_one_that_counts(answer, script):
    """A rank of 0 too."""
    assert 0 == answer("dry-run", "--rank", "3", script(""), "--world-size", "4", "--rank", "0")[1]["rank"]


def test_what_a_script_says_as_it_exits_is_told(run, script):
    """Python itself would write it to standard error."""
    path = script("import sys\nsys.exit('no data')")
    status, out, err = run("dry-run", "--world-size", "4", path)

    assert (2, "") == (status, err)
    assert out.startswith(f"{path} as rank 0 of 4: {path}:2: it ended itself with status 1: no data\n")
    assert "no data" == json.loads(run("dry-run", "--json", "--world-size", "4", path)[1])["message"]


def test_an_error_of_a_script_is_told_whatever_its_text(run, script):
    """One printable line."""
    path = script("raise ValueError('\\x1b[2J\\udcff')")
    assert (2, "", f"collective-rules: {path}:1: ValueError: \\x1b[2J\\udcff\n") == run(
        "dry-run", "--world-size", "4", path
    )
    path = script("class E(Exception):\n    def __str__(self):\n        return 1 / 0\nraise E")
    told = f"collective-rules: {path}:4: E: (no text: its __str__ raised ZeroDivisionError)\n"
    assert (2, "", told) == run("dry-run", "--world-size", "4", path)
