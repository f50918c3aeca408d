"""Recordings of several ranks side by side: what is found, on which ranks, where, and how it is shown."""

from __future__ import annotations

import contextlib
import doctest
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import attrs
import pytest
import torch

import collective_rules as cr
from collective_rules.cli import main
from collective_rules.comparison import as_json, blocks, compare, markdown, page, read_all
from collective_rules.sources import LedgerWriter, Recording, read

_ROOT = Path(__file__).resolve().parents[1]
_HOSTILE = "a<script>alert(1)</script>|`b`.py:1"
_SEED = 20_260


def _program(rank, size=4, fault=""):
    """One rank's calls: of the world, of one half of it, and from rank 0 to rank 1, for three steps."""
    world = cr.Group(size, rank, "0", tuple(range(size)))
    lower = rank < size // 2
    members = tuple(range(size // 2)) if lower else tuple(range(size // 2, size))
    half = cr.Group(size // 2, members.index(rank), "low" if lower else "high", members)
    made, counts = [], {}

    def make(op, group, line, **arguments):
        call = cr.call(op, group=group, **arguments)
        index = None
        if not call.row.rule.point_to_point:
            index = counts.get(group.name, 0)
            counts[group.name] = index + 1
        made.append(attrs.evolve(call, source=f"train.py:{line}", index=index, blocking=True))

    for step in range(3):
        odd = rank == 2 and step == 1
        make("c10d::broadcast_", world, 10, tensors=[(8,)], root_rank=1 if odd and fault == "root" else 0)
        if not (odd and fault == "skip"):
            make("c10d::allreduce_", world, 11, tensors=[(9,) if odd and fault == "size" else (8,)])
        if odd and fault == "illegal":
            make("c10d::_allgather_base_", world, 12, input_tensor=(4,), output_tensor=(13,))
        elif odd and fault == "swap":
            make("c10d::barrier", world, 14)
            make("c10d::_allgather_base_", world, 12, input_tensor=(4,), output_tensor=(4 * size,))
        else:
            make("c10d::_allgather_base_", world, 12, input_tensor=(4,), output_tensor=(4 * size,))
            make("c10d::barrier", world, 14)
        make("c10d::allreduce_", half, 15, tensors=[(2, 7 if odd and fault == "half" else 3)])
        if rank == 0:
            make("c10d::send", world, 16, tensors=[(5,)], dst=1)
        if rank == 1 and not (fault == "send" and step == 1):
            make("c10d::recv_", world, 17, tensors=[(6 if fault == "message" and step == 1 else 5,)], src=0)
    if rank == 2 and fault == "extra":
        make("c10d::barrier", world, 18)
    return made


def _recording(rank, size=4, fault="", **changes):
    made = Recording(f"rank{rank}.jsonl", "ledger", rank, size, tuple(_program(rank, size, fault)))
    return attrs.evolve(made, **changes)


def _compared(fault="", size=4, **options):
    return compare([_recording(rank, size, fault) for rank in range(size)], **options)


def _write(folder, fault="", size=4):
    """Write a ledger for each rank, and return their paths."""
    paths = []
    for rank in range(size):
        with LedgerWriter(folder / f"rank{rank}.jsonl", rank=rank, world_size=size) as write:
            for call in _program(rank, size, fault):
                write(call)
        paths.append(str(write.path))
    return paths


def _severities(found):
    return [each.severity for each in found.findings]


@pytest.fixture
def run(capsys):
    """Carry out a command line in this process; return its status, standard output and standard error."""

    def carry_out(*arguments):
        status = main(["compare", *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return carry_out


# what is found


def test_ranks_whose_calls_belong_together_have_no_finding():
    found = _compared()
    assert ((), (), (0, 1, 2, 3), 4) == (found.findings, found.divergences, found.ranks, found.world_size)
    assert sum(len(_program(rank)) for rank in range(4)) == found.calls


@pytest.mark.parametrize(
    ("fault", "ids", "ranks", "group", "index", "line"),
    [
        ("skip", ["AR11"], (2,), "0", 5, "train.py:11"),
        ("size", ["AR1"], (2,), "0", 5, "train.py:11"),
        ("swap", ["BA1"], (2,), "0", 6, "train.py:14"),
        ("root", ["BC3"], (2,), "0", 4, "train.py:10"),
        ("extra", ["BA2"], (2,), "0", 12, "train.py:18"),
        ("half", ["AR1"], (2, 3), "high", 1, "train.py:15"),
    ],
)
def test_a_fault_of_one_rank_is_one_error_that_names_the_global_rank_the_call_and_the_line(
    fault, ids, ranks, group, index, line
):
    found = _compared(fault)
    errors = [each for each in found.findings if each.severity == "error"]
    assert ids == [each.id for each in errors]
    assert (ranks, group, index) == (errors[0].ranks, errors[0].group, errors[0].index)
    assert line in errors[0].message
    assert [(group, index)] == [(each.group, each.index) for each in found.divergences]


def test_ranks_of_a_group_are_translated_into_those_of_the_world():
    message = _compared("half").findings[0].message
    assert "Ranks are counted in group high, which is ranks 2, 3 of the world: 0 is 2, 1 is 3." in message
    assert "of the world" not in _compared("size").findings[0].message


def test_a_circle_of_waiting_ranks_names_global_ranks():
    def made(rank):
        groups = [cr.Group(2, rank - 4, name, (4, 5)) for name in ("", "b")]
        calls = [attrs.evolve(cr.call("c10d::barrier", group=group), blocking=True) for group in groups]
        return tuple(calls if rank == 4 else calls[::-1])

    found = compare([Recording(f"{rank}.jsonl", "ledger", rank, None, made(rank)) for rank in (4, 5)], expected=())
    assert [("WAIT1", (4, 5))] == [(each.id, each.ranks) for each in found.findings]


def test_groups_of_one_name_and_other_ranks_are_told_apart():
    def made(rank, numel):
        ranks = (0, 1) if rank < 2 else (2, 3)
        return (cr.call("c10d::allreduce_", group=cr.Group(2, rank % 2, "tp", ranks), tensors=[(numel,)]),)

    numels = {0: 4, 1: 4, 2: 5, 3: 6}
    found = compare([Recording(f"{rank}", "ledger", rank, 4, made(rank, n)) for rank, n in numels.items()])
    assert [("error", (2, 3), "tp of ranks 2, 3")] == [
        (each.severity, each.ranks, each.group) for each in found.findings
    ]


def test_what_many_calls_have_wrong_alike_is_said_once_with_how_many():
    call = cr.call("c10d::_allgather_base_", group=cr.Group(2), input_tensor=(4,), output_tensor=(9,))

    def made(rank):
        group = cr.Group(2, rank, "0", (0, 1))
        return tuple(attrs.evolve(call, group=group, index=i, source="a.py:3") for i in range(50))

    found = compare([Recording(f"{rank}", "ledger", rank, 2, made(rank)) for rank in range(2)])
    alone = cr.check(call)[0]
    assert [(alone.id, (0, 1), 0, 100)] == [(each.id, each.ranks, each.index, each.count) for each in found.findings]
    assert "ranks 0, 1, 100 calls   a.py:3" in found.findings[0].message


def test_a_call_that_is_illegal_on_one_rank_is_that_ranks():
    errors = [each for each in _compared("illegal").findings if each.severity == "error"]
    assert ("AGT1", (2,), 6) == (errors[0].id, errors[0].ranks, errors[0].index)


def test_what_is_legal_on_one_rank_may_be_illegal_on_another():
    """Nobody passes outputs of a gather: its root must."""

    def made(rank):
        group = cr.Group(2, rank, "0", (0, 1))
        return (cr.call("c10d::gather_", group=group, output_tensors=[], input_tensors=[(3,)], root_rank=1),)

    found = compare([Recording(f"{rank}", "ledger", rank, 2, made(rank)) for rank in range(2)])
    assert ["error"] == [each.severity for call in made(1) for each in cr.check(call)]
    assert [("error", (1,))] == [(each.severity, each.ranks) for each in found.findings]


def test_a_backends_own_limits_are_checked_where_it_is_named():
    call = cr.call("c10d::allreduce_", group=cr.Group(1, 0, "0", (0,)), tensors=[cr.Spec((2,), torch.complex128)])
    recording = Recording("0", "ledger", 0, 1, (call,))
    assert [] == _severities(compare([recording]))
    assert [each.id for each in cr.check(call, "gloo")] == [each.id for each in compare([recording], "gloo").findings]


# what is not there


def test_ranks_without_a_record_are_said_once_and_are_no_error():
    found = compare([_recording(rank, 8) for rank in (0, 2, 3)])
    assert [("COMPARE1", "undecidable", (1, 4, 5, 6, 7))] == [(e.id, e.severity, e.ranks) for e in found.findings]


def test_of_two_records_of_one_rank_the_first_is_compared_and_the_other_is_named():
    found = compare([_recording(0), _recording(1), _recording(2), _recording(3), _recording(2, fault="size", path="x")])
    assert [("READ8", "warning")] == [(each.id, each.severity) for each in found.findings]
    assert [True] * 4 + [False] == [file.compared for file in found.files]
    assert "x" in found.findings[0].message


def test_a_record_that_ends_early_makes_what_follows_undecidable(tmp_path):
    paths = _write(tmp_path)
    text = Path(paths[3]).read_text()
    Path(paths[3]).write_text(text[: text.rindex('{"op"') + 20])
    found = compare([read(path) for path in paths])
    assert {"undecidable"} == set(_severities(found))
    assert "READ1" in [each.id for each in found.findings]
    whole = text.splitlines(keepends=True)
    Path(paths[3]).write_text("".join(whole[:-1]))
    found = compare([read(path) for path in paths])
    assert [("error", (2, 3))] == [(each.severity, each.ranks) for each in found.findings]


def test_recordings_of_runs_of_different_sizes_are_warned_of():
    found = compare([_recording(0), _recording(1), _recording(2), _recording(3, world_size=8)], expected=())
    assert [("COMPARE2", "warning", (0, 1, 2, 3))] == [(e.id, e.severity, e.ranks) for e in found.findings]


def _flight(rank, names):
    """A Flight Recorder dump of collectives on 8 floats."""
    entries = [
        {
            "pg_name": ["0", "default_pg"],
            "collective_seq_id": place + 1,
            "p2p_seq_id": 0,
            "op_id": place + 1,
            "profiling_name": f"gloo:{name}",
            "input_sizes": [[8]],
            "input_dtypes": ["Float"],
            "output_sizes": [[8]],
            "output_dtypes": ["Float"],
            "state": "completed",
            "is_p2p": False,
        }
        for place, name in enumerate(names)
    ]
    return {"version": "2.10", "rank": rank, "world_size": 2, "entries": entries}


@pytest.mark.parametrize(("name", "severities"), [("all_reduce", {"undecidable"}), ("broadcast", {"undecidable"})])
def test_formats_may_be_mixed_and_one_that_tells_less_brings_about_no_error(tmp_path, name, severities):
    (tmp_path / "rank1.json").write_text(json.dumps(_flight(1, [name])))
    with LedgerWriter(tmp_path / "rank0.jsonl", rank=0, world_size=2) as write:
        call = cr.call("c10d::allreduce_", group=cr.Group(2, 0, "0", (0, 1)), tensors=[(8,)])
        write(attrs.evolve(call, index=0))
    recordings, findings, _ = read_all([tmp_path], world_size=2)
    found = compare(recordings, findings=findings)
    assert ["ledger", "flight recorder"] == [file.format for file in found.files]
    assert severities == set(_severities(found))
    told = [each for each in found.findings if "different collectives" in each.message]
    assert (name != "all_reduce") == bool(told)


# where ranks part


def test_columns_and_contexts_share_out_the_ranks_and_the_odd_one_is_marked():
    (parted,) = _compared("skip").divergences
    assert [(0, 1, 3), (2,)] == [column.ranks for column in parted.columns]
    assert [False, True] == [column.odd for column in parted.columns]
    assert (2,) == parted.contexts[0].ranks
    assert [0, 1, 2, 3] == sorted(rank for context in parted.contexts for rank in context.ranks)
    here = [column.calls[parted.rows.index(5)] for column in parted.columns]
    assert ["allreduce_ float32[8] sum", "_allgather_base_ float32[4]"] == [line.call for line in here]
    assert ["train.py:11", "train.py:12"] == [line.source for line in here]


def test_where_there_is_no_majority_all_that_differ_are_marked():
    (parted,) = _compared("half").divergences
    assert [((2,), True), ((3,), True)] == [(column.ranks, column.odd) for column in parted.columns]


def test_the_context_is_as_wide_as_asked_for():
    for width in (0, 1, 4):
        (parted,) = _compared("skip", context=width).divergences
        assert tuple(range(5 - width, 5 + width + 1)) == parted.rows
        assert 2 * width + 1 == len(parted.contexts[0].lines)
        assert [width] == [place for place, line in enumerate(parted.contexts[0].lines) if line.here]


def test_a_rank_that_calls_nothing_more_is_shown_at_its_end():
    (parted,) = _compared("extra").divergences
    columns = {column.ranks: column for column in parted.columns}
    assert columns[0, 1, 3].calls[-1] is None
    lines = next(context.lines for context in parted.contexts if 3 in context.ranks)
    assert [("(nothing more in this group)", None)] == [(line.call, line.place) for line in lines if line.here]


@pytest.mark.parametrize(("fault", "ranks"), [("send", [(0,)]), ("message", [(0,), (1,)])])
def test_a_message_that_is_amiss_is_shown_where_it_stands_in_the_program(fault, ranks):
    (parted,) = _compared(fault).divergences
    assert (None, ()) == (parted.index, parted.columns)
    assert ranks == sorted(context.ranks for context in parted.contexts)
    marked = [line for context in parted.contexts for line in context.lines if line.here]
    expected = {"train.py:16", "train.py:17"} if fault == "message" else {"train.py:16"}
    assert expected == {line.source for line in marked}
    sends = [place for place, call in enumerate(_program(0)) if call.op == "c10d::send"]
    assert {sends[1] if fault == "message" else sends[2]} == {each.place for each in marked if each.source[-2:] == "16"}


def test_findings_and_groups_that_part_come_in_the_order_of_the_programs():
    """The group that is seen first parts last."""
    calls = _program(2)
    for place, line in ((4, 15), (len(calls) - 4, 11)):
        assert f"train.py:{line}" == calls[place].source
        calls[place] = attrs.evolve(calls[place], arguments={**calls[place].arguments, "tensors": (cr.Spec((77,)),)})
    recordings = [_recording(rank) for rank in range(4)]
    recordings[2] = attrs.evolve(recordings[2], calls=tuple(calls))
    found = compare(recordings)
    assert [("high", 0), ("0", 9)] == [(each.group, each.index) for each in found.findings]
    assert [("high", 0), ("0", 9)] == [(each.group, each.index) for each in found.divergences]


def test_indices_that_begin_later_are_put_side_by_side():
    recordings = [_recording(rank, fault="size") for rank in range(4)]
    recordings[1] = attrs.evolve(recordings[1], calls=recordings[1].calls[2:])
    found = compare(recordings)
    assert [5] == [each.index for each in found.divergences if each.group == "0"]
    parted = next(each for each in found.divergences if each.group == "0")
    column = next(column for column in parted.columns if 1 in column.ranks)
    assert "allreduce_ float32[8] sum" == column.calls[parted.rows.index(5)].call


# files


def test_a_folder_means_its_files_each_once_and_in_the_order_of_numbers(tmp_path, run):
    _write(tmp_path, size=12)
    status, out, err = run(tmp_path, tmp_path / "rank3.jsonl")
    assert (0, "") == (status, err)
    assert list(range(12)) == [int(number) for number in re.findall(r"rank(\d+)\.jsonl", out)]


def test_a_file_that_cannot_be_read_is_an_error_and_the_others_are_compared(tmp_path, run):
    paths = _write(tmp_path, "size")
    bad = tmp_path / "bad.json"
    bad.write_bytes(b"\x00\xff{{{")
    status, out, _ = run(*paths, bad, tmp_path / "nowhere", "--json")
    data = json.loads(out)
    assert (1, 3, [0, 1, 2, 3]) == (status, data["errors"], data["ranks"])
    assert {"FILE1", "AR1"} == {found["id"] for found in data["findings"]}


def test_what_is_no_recording_in_a_folder_is_left_out_with_a_warning(tmp_path, run):
    _write(tmp_path)
    (tmp_path / "README.md").write_text("# what these are\n")
    (tmp_path / ".hidden").write_text("{}")
    (tmp_path / "inner").mkdir()
    status, out, _ = run(tmp_path, "--json")
    data = json.loads(out)
    assert (0, ["FILE2"], ["warning"]) == (
        status,
        [found["id"] for found in data["findings"]],
        [found["severity"] for found in data["findings"]],
    )


@pytest.mark.parametrize("arguments", [["nowhere.json"], ["empty"], ["bad.json", "nowhere.json"], ["x\0y"], []])
def test_nothing_to_compare_is_one_line_and_status_2(tmp_path, run, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("bad.json").write_text("[1, 2")
    status, out, err = run(*arguments)
    assert (2, "") == (status, out)
    assert re.fullmatch(r"collective-rules: .+\n", err)


def test_a_backend_or_a_report_that_cannot_be_is_refused_before_anything_is_read(tmp_path, run):
    paths = _write(tmp_path)
    for options in (["--backend", "mpi"], ["--report", "x.pdf"], ["--report", str(tmp_path / "no" / "x.md")]):
        status, out, err = run(*paths, *options)
        assert (2, "", 1) == (status, out, err.count("\n"))


def test_a_rank_that_the_file_does_not_tell_is_taken_from_its_name_else_its_place_and_a_note_says_so(tmp_path):
    for name, rank in (("node0.part1", 0), ("second", 1)):
        call = cr.call("c10d::barrier", group=cr.Group(2, rank))
        with LedgerWriter(tmp_path / name, rank=rank, world_size=2) as write:
            write(call)
        text = (tmp_path / name).read_text().replace(f'"rank": {rank}, "world', '"rank": null, "world')
        (tmp_path / name).write_text(text)
    recordings, findings, notes = read_all([tmp_path / "node0.part1", tmp_path / "second"])
    assert ([0, 1], ()) == ([each.rank for each in recordings], findings)
    assert ["after the digits at the end of its name.", "after its place in the list."] == [
        note.rpartition(", ")[2] for note in notes
    ]


def test_damaged_files_never_end_in_a_traceback(tmp_path, run):
    """Bytes are changed, left out and doubled, and files are cut; also behind gzip."""
    paths = [Path(path) for path in _write(tmp_path, "half")]
    whole = [path.read_bytes() for path in paths]
    drawn = random.Random(_SEED)
    seen = set()
    for _ in range(60):
        for path, data in zip(paths, whole, strict=True):
            path.write_bytes(_damaged(data, drawn))
        status, out, err = run(*paths, *drawn.sample([["--json"], [], ["--backend", "gloo"]], 1)[0])
        seen.add(status)
        assert "Traceback" not in err
        assert (status == 2) == (out == "")
        assert status in (0, 1, 2)
    assert {1} <= seen


def _damaged(data, drawn):
    kind = drawn.randrange(6)
    if kind == 0:
        return data
    if kind == 1:
        return data[: drawn.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(drawn.randrange(1, 8)):
        place = drawn.randrange(len(changed))
        if kind == 2:
            changed[place] = drawn.randrange(256)
        elif kind == 3:
            changed[place : place + drawn.randrange(1, 30)] = b""
        elif kind == 4:
            number = re.search(rb"\d+", bytes(changed[place:]))
            if number:
                new = drawn.choice([b"-1", b"NaN", b"null", b'"x"', b"1e400", b"99999999999999999999", b"[]", b"0"])
                changed[place + number.start() : place + number.end()] = new
        else:
            changed[place:place] = changed[place : place + 200]
    return gzip.compress(bytes(changed), 1) if drawn.random() < 0.2 else bytes(changed)


# the report


def test_the_object_tells_all_that_was_found():
    found = _compared("half")
    data = json.loads(json.dumps(as_json(found)))
    assert (1, 0, 0, found.calls) == (data["errors"], data["warnings"], data["undecidable"], data["calls"])
    assert [[2, 3]] == [each["ranks"] for each in data["findings"]]
    (parted,) = data["divergences"]
    assert {"group", "ranks", "index", "verdict", "rows", "columns", "contexts"} == parted.keys()
    assert "allreduce_ float32[2, 7] sum" in json.dumps(parted["columns"])


def test_a_terminal_shows_findings_first_then_where_ranks_part_then_the_files():
    texts = [block if isinstance(block, str) else block.title for block in blocks(_compared("skip"))]
    assert texts[0].startswith("Compared ")
    assert texts[1].startswith("error: ")
    assert texts[2].startswith("Group 0 (ranks 0-3) first parts at collective 5")
    assert texts[3].startswith("What rank 2 does then")
    assert "Files" == texts[-1]


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.odd = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        self.odd += tag == "td" and named.get("class") == "odd"


def _hostile():
    recordings = [_recording(rank, fault="size", path=_HOSTILE + str(rank)) for rank in range(4)]
    calls = tuple(attrs.evolve(call, source=_HOSTILE) for call in recordings[2].calls)
    return compare([*recordings[:2], attrs.evolve(recordings[2], calls=calls), recordings[3]], notes=[_HOSTILE])


def test_a_page_is_whole_by_itself_and_what_files_hold_is_text():
    read_page = _Page(page(_hostile()))
    assert ([], 0) == (read_page.links, read_page.tags.count("script"))
    assert read_page.odd
    assert "<script>" not in markdown(_hostile()).replace("```text", "").split("## ", 1)[1].split("```")[-1]


def test_a_page_of_a_thousand_ranks_that_all_differ_has_a_bound():
    def made(rank):
        group = cr.Group(1000, rank, "0", tuple(range(1000)))
        return tuple(
            attrs.evolve(cr.call("c10d::allreduce_", group=group, tensors=[(rank + 1,)]), index=i) for i in range(9)
        )

    found = compare([Recording(f"rank{rank}.jsonl", "ledger", rank, 1000, made(rank)) for rank in range(1000)])
    assert 1000 == len(found.divergences[0].columns)
    assert 100 > _Page(page(found)).tags.count("th")


_BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=600,900 --dump-dom"
)
_MEASURE = """<script>
const shown = [...document.querySelectorAll("td.odd, pre.finding, h2")].map(e => e.getBoundingClientRect().width > 50);
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
document.title = "measured " + JSON.stringify({shown: shown.length, all: shown.every(x => x), wide});
</script>"""


@pytest.mark.skipif(_BROWSER is None, reason="no chromium to draw the page in")
def test_a_browser_shows_the_page_within_its_width(tmp_path):
    (tmp_path / "page.html").write_text(page(_compared("skip")).replace("</body>", _MEASURE + "</body>"))
    dom = _run([_BROWSER, *_FLAGS.split(), f"--user-data-dir={tmp_path / 'p'}", (tmp_path / "page.html").as_uri()])
    measured = json.loads(dom.partition("<title>measured ")[2].partition("</title>")[0])
    assert (True, 0) == (measured["shown"] > 3, measured["wide"])


def _run(command):
    """Return what the browser prints; it and its children are gone afterwards, whatever happens."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        return process.communicate(timeout=60)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_reports_are_written_in_every_kind(tmp_path, run):
    paths = _write(tmp_path, "skip")
    targets = [tmp_path / f"out.{suffix}" for suffix in ("html", "md", "json")]
    status, *_ = run(*paths, *(f"--report={target}" for target in targets))
    assert 1 == status
    assert all("AR11" in target.read_text() for target in targets)
    assert 1 == json.loads(targets[2].read_text())["errors"]


# public traces


def test_the_dlrm_ranks_agree_and_one_changed_number_is_found(shared, tmp_path, run):
    paths = sorted((shared / "traces").glob("param_dlrm_w8_rank*.json"))
    status, out, _ = run(*paths, "--json")
    assert (0, 0, [0, 1, 2, 3]) == (status, json.loads(out)["errors"], json.loads(out)["ranks"])
    calls = [read(path).calls for path in paths]
    (place,) = [
        place
        for place, call in enumerate(calls[1])
        if call.row.rule.name == "all_reduce" and calls[0][place].arguments == call.arguments
    ][:1]
    changed = calls[1][place]
    spec = changed.arguments["tensors"][0]
    wrong = attrs.evolve(changed, arguments={**changed.arguments, "tensors": (cr.Spec((spec.numel + 1,), spec.dtype),)})
    recordings = [read(path) for path in paths]
    recordings[1] = attrs.evolve(recordings[1], calls=(*calls[1][:place], wrong, *calls[1][place + 1 :]))
    errors = [each for each in compare(recordings).findings if each.severity == "error"]
    assert [(1,)] == [each.ranks for each in errors]


@pytest.mark.skipif(not (_ROOT / "docs" / "agreement.md").exists(), reason="no docs beside the tests")
def test_the_examples_of_the_page_on_agreement_run():
    failed, tried = doctest.testfile(str(_ROOT / "docs" / "agreement.md"), module_relative=False)
    assert 0 == failed
    assert tried > 3
