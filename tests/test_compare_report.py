"""The command line of compare: its files, its report, and public traces."""

from __future__ import annotations

import doctest
import functools
import gzip
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import attrs
import pytest

import collective_rules as cr
from collective_rules.comparison import as_json, blocks, compare, markdown, page, read_all
from collective_rules.recordings import LedgerWriter, read
from tests.browser import BROWSER, NO_BROWSER, measured
from tests.compare_programs import compared, compared_calls, recording, write_ledgers

_ROOT = Path(__file__).resolve().parents[1]
_HOSTILE = "a<script>alert(1)</script>|`b`.py:1"
_SEED = 20_260


@pytest.fixture
def run(run):
    """Carry out a command line of compare in this process; return its status, standard output and standard error."""
    return functools.partial(run, "compare")


# files


def test_a_folder_means_its_files_each_once_and_in_the_order_of_numbers(tmp_path, run):
    write_ledgers(tmp_path, size=12)
    status, out, err = run(tmp_path, tmp_path / "rank3.jsonl")
    assert (0, "") == (status, err)
    assert list(range(12)) == [int(number) for number in re.findall(r"rank(\d+)\.jsonl", out)]


def test_a_file_that_cannot_be_read_is_an_error_and_the_others_are_compared(tmp_path, run):
    paths = write_ledgers(tmp_path, "size")
    bad = tmp_path / "bad.json"
    bad.write_bytes(b"\x00\xff{{{")
    status, out, _ = run(*paths, bad, tmp_path / "nowhere", "--json")
    data = json.loads(out)
    assert (1, 3, [0, 1, 2, 3]) == (status, data["errors"], data["ranks"])
    assert {"FILE1", "AR1"} == {found["id"] for found in data["findings"]}


def test_what_is_no_recording_in_a_folder_is_left_out_with_a_warning(tmp_path, run):
    write_ledgers(tmp_path)
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
    paths = write_ledgers(tmp_path)
    for options in (["--backend", "smoke"], ["--report", "x.pdf"], ["--report", str(tmp_path / "no" / "x.md")]):
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
    paths = [Path(path) for path in write_ledgers(tmp_path, "half")]
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
    found = compared("half")
    data = json.loads(json.dumps(as_json(found)))
    assert (1, 0, 0, found.calls) == (data["errors"], data["warnings"], data["undecidable"], data["calls"])
    assert [[2, 3]] == [each["ranks"] for each in data["findings"]]
    (parted,) = data["divergences"]
    assert {"group", "ranks", "index", "verdict", "rows", "columns", "contexts"} == parted.keys()
    assert "allreduce_ float32[2, 7] sum" in json.dumps(parted["columns"])


def test_a_terminal_shows_findings_first_then_where_ranks_part_then_the_files():
    texts = [block if isinstance(block, str) else block.title for block in blocks(compared("skip"))]
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
    recordings = [recording(rank, fault="size", path=_HOSTILE + str(rank)) for rank in range(4)]
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

    found = compared_calls(made, 1000)
    assert 1000 == len(found.divergences[0].columns)
    assert 100 > _Page(page(found)).tags.count("th")


_MEASURE = """
const shown = [...document.querySelectorAll("td.odd, pre.finding, h2")].map(e => e.getBoundingClientRect().width > 50);
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const measured = {shown: shown.length, all: shown.every(x => x), wide};
"""


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_a_browser_shows_the_page_within_its_width(tmp_path):
    found = measured(page(compared("skip")), _MEASURE, tmp_path)
    assert (True, True, 0) == (found["shown"] > 3, found["all"], found["wide"])


def test_reports_are_written_in_every_kind(tmp_path, run):
    paths = write_ledgers(tmp_path, "skip")
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
