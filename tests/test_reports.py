"""The report says what the ledger holds, in every format, and its page draws it in a real browser."""

import json
import os
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import attrs
import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import collective_rules as cr
from collective_rules.cli.output import Report
from collective_rules.cli.render import plain
from collective_rules.errors import CollectiveRulesError
from collective_rules.ledger import CallFacts, Ledger
from collective_rules.pages import must_be_writable
from collective_rules.pages.wording import bytes_text, rank_list, share_text
from collective_rules.records import from_record
from collective_rules.reports import as_json, blocks, markdown, page, tree, write
from collective_rules.reports.flows import flows
from tests.browser import BROWSER, NO_BROWSER, measured

_HOSTILE = "a<script>alert(1)</script>|`b`"


def _enter(ledger, call, module="", phase="", source="train.py:1"):
    return ledger.enter(CallFacts.of(call), source, module, phase, 0.0, False)


def _ledger(*calls):
    ledger = Ledger()
    for call in calls:
        _enter(ledger, call)
    return ledger


def _group(size=4, rank=0, name="world", ranks=()):
    return cr.Group(size=size, rank=rank, name=name, ranks=ranks or tuple(range(size)))


def _reduced(group, numel=16):
    return cr.call("c10d::allreduce_", group=group, tensors=[(numel,)])


def _gathered(group, numel=16):
    return cr.call("_c10d_functional::all_gather_into_tensor", group=group, input=(numel,))


def _exchanged(group, input=(6, 8), received=(3, 1, 1, 1), sent=(3, 0, 1, 2)):
    sizes = {"output_split_sizes": list(received), "input_split_sizes": list(sent)}
    return cr.call("_c10d_functional::all_to_all_single", group=group, input=input, **sizes)


def _trained():
    """A ledger of two steps of a model with four equal layers, in two groups."""
    world, pair = _group(), _group(2, 0, "pair", (0, 2))
    ledger = Ledger()
    for _ in range(2):
        for layer in range(4):
            _enter(ledger, _gathered(pair), f"layers.{layer}.attn", "forward")
            _enter(ledger, _exchanged(world), f"layers.{layer}.moe", "forward")
        _enter(ledger, _reduced(world, 1000), "head", "backward", _HOSTILE)
        _enter(ledger, _reduced(world, 3), "", "", _HOSTILE)
        ledger.steps += 1
    return ledger


class _Page(HTMLParser):
    """The data attributes of a page, by what they stand in."""

    def __init__(self, text):
        super().__init__()
        self.by, self.figure = {}, ""
        self.tiles, self.cells, self.marks, self.tags, self.attributes = {}, {}, [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.add(tag)
        self.attributes += given
        self.figure = given.get("data-by", self.figure)
        if "data-name" in given:
            entry = int(given["data-calls"]), float(given["data-bytes"])
            self.by.setdefault(self.figure, {})[given["data-name"]] = entry
        if "data-tile" in given:
            self.tiles[given["data-tile"]] = float(given["data-value"])
        if "data-from" in given:
            self.cells[int(given["data-from"]), int(given["data-to"])] = float(given["data-bytes"])
        elif "mark" in given.get("class", "").split():
            self.marks.append(float(given["data-bytes"]))


def test_the_pages_bars_are_the_ledgers_sums():
    ledger = _trained()
    shown = _Page(page(ledger))
    assert {op: (total.calls, total.sent) for (op,), total in ledger.by("op").items()} == shown.by["op"]
    assert {phase or "(outside)": (t.calls, t.sent) for (phase,), t in ledger.by("phase").items()} == shown.by["phase"]
    sizes = {"world": "world (4 ranks)", "pair": "pair (2 ranks)"}
    assert {sizes[name]: (t.calls, t.sent) for (name,), t in ledger.by("group").items()} == shown.by["group"]
    assert list(shown.by["module"]) == ["head", "layers.*.moe", "layers.*.attn", "(outside modules)"]
    assert (8, 4 * 2 * 16 * 4.0) == shown.by["module"]["layers.*.attn"]


def test_the_pages_tiles_are_the_ledgers_total():
    ledger = _trained()
    total = ledger.total
    expected = {"calls": 20, "sent": total.sent, "read": total.read, "written": total.written}
    assert expected | {"groups": 2, "optimizer steps": 2} == _Page(page(ledger)).tiles


def test_the_timeline_holds_each_call_of_the_last_whole_step():
    ledger = _trained()
    sent = [entry.traffic.sent for entry in ledger.entries if entry.step == 1]
    assert sorted(sent) == sorted(_Page(page(ledger)).marks)


@pytest.mark.usefixtures("group")
def test_a_program_under_the_mode_is_reported_with_its_modules_and_lines():
    class Talks(torch.nn.Module):
        def forward(self, x):
            dist.all_reduce(x)  # this line
            return x

    with cr.RuleMode() as ledger:
        torch.nn.ModuleDict({"inner": Talks()})["inner"](torch.ones(64))
        torch.nn.Sequential(Talks(), Talks())(torch.ones(64))
    text = page(ledger)
    shown = _Page(text)
    (line,) = [n for n, code in enumerate(Path(__file__).read_text().splitlines(), 1) if code.endswith("# this line")]
    assert {"c10d::allreduce_": (3, 3 * 64 * 4 * 2 * 3 / 4)} == shown.by["op"]
    assert {(1, 2): 3 * 64 * 4 * 2 * 3 / 4} == {pair: sent for pair, sent in shown.cells.items() if pair[0] == 1}
    assert 3 == text.count(f"{Path(__file__).name}:{line}</td>")


def test_the_matrix_row_of_this_rank_sums_up_to_what_it_sends():
    ledger = _trained()
    row = [amount for (sender, _), amount in _Page(page(ledger)).cells.items() if sender == 0]
    assert pytest.approx(ledger.total.sent) == sum(row)


_WAYS = {
    "ring": (_reduced(_group(4, 1)), {2: 96.0}),
    "global ranks": (_reduced(_group(2, 1, "pair", (3, 7)), 2), {3: 8.0}),
    "uneven list": (
        cr.call("c10d::alltoall_", group=_group(2, 1), input_tensors=[(5,), (2,)], output_tensors=[(1,), (2,)]),
        {0: 20.0},
    ),
    "split sizes": (_exchanged(_group()), {2: 32.0, 3: 64.0}),
    "even": (_exchanged(_group(2), (4,), (2, 2), (2, 2)), {1: 8.0}),
    "send": (cr.call("c10d::send", group=_group(), tensors=[(3,)], dst=3), {3: 12.0}),
    "batch": (
        cr.call(
            "_c10d_functional::batch_p2p_ops",
            group=_group(4, 1),
            op_list=["isend", "irecv", "isend"],
            peer_list=[2, 0, 3],
            tag_list=[0, 0, 0],
            tensors=[(3,), (4,), (5,)],
        ),
        {2: 12.0, 3: 20.0},
    ),
    "last of a chain": (cr.call("c10d::broadcast_", group=_group(4, 3), tensors=[(3,)], root_rank=0), {}),
    "barrier": (cr.call("c10d::barrier", group=_group()), {}),
}


@pytest.mark.parametrize("name", _WAYS)
def test_bytes_go_to_the_ranks_that_the_call_names(name):
    call, expected = _WAYS[name]
    assert expected == flows(_ledger(call)).sent


@pytest.mark.parametrize(("incoming", "sent"), [([1, 2, 3, 4], 9 * 8 * 4), (cr.UNKNOWN, 10 * 8 * 4)])
def test_bytes_of_unknown_split_sizes_have_no_receiver(incoming, sent):
    splits = {"input_split_sizes": cr.UNKNOWN, "output_split_sizes": incoming}
    ways = flows(_ledger(cr.call("c10d::alltoall_base_", group=_group(), input=(10, 8), output=(10, 8), **splits)))
    assert ({}, sent) == (ways.sent, ways.unplaced)


def _collective(op, **arguments):
    return lambda group: cr.call(op, group=group, **arguments)


_EVERYWHERE = {
    "all_reduce": _reduced,
    "all_gather": _gathered,
    "reduce_scatter": _collective("_c10d_functional::reduce_scatter_tensor", input=(8, 3), reduce_op="sum"),
    "all_to_all_single": _collective(
        "c10d::alltoall_base_", input=(8,), output=(8,), output_split_sizes=[], input_split_sizes=[]
    ),
    "broadcast": _collective("c10d::broadcast_", tensors=[(5,)], root_rank=2),
    "reduce": _collective("c10d::reduce_", tensors=[(5,)], root_rank=2),
    "gather": lambda group: cr.call(
        "c10d::gather_",
        group=group,
        output_tensors=[[(3,)] * 4] if group.rank == 1 else [],
        input_tensors=[(3,)],
        root_rank=1,
    ),
    "scatter": lambda group: cr.call(
        "c10d::scatter_",
        group=group,
        output_tensors=[(3,)],
        input_tensors=[[(3,)] * 4] if group.rank == 1 else [],
        root_rank=1,
    ),
}


@pytest.mark.parametrize("name", _EVERYWHERE)
def test_what_a_rank_implies_of_the_others_is_what_they_count_themselves(name):
    ways = [flows(_ledger(_EVERYWHERE[name](_group(4, rank)))) for rank in range(4)]
    expected = {(way.rank, peer): amount for way in ways for peer, amount in way.sent.items()}
    for way in ways:
        own = {pair: amount for pair, amount in expected.items() if pair[0] != way.rank}
        assert own == way.pairs


def test_a_receive_implies_its_sender():
    assert {(2, 0): 12} == flows(_ledger(cr.call("c10d::recv_", group=_group(), tensors=[(3,)], src=2))).pairs


def test_equal_layers_are_one_line():
    assert [
        "layers.{0..3}      16 calls   1.2 KiB  4 × 320 B",
        "├ attn              8 calls     512 B  4 × 128 B",
        "└ moe               8 calls     768 B  4 × 192 B",
        "head                2 calls  11.7 KiB",
        "(outside modules)   2 calls      36 B",
    ] == tree(_trained()).splitlines()


def test_a_layer_that_differs_has_its_own_line():
    ledger = _trained()
    _enter(ledger, _reduced(_group()), "layers.2.attn")
    names = [line[: len("(outside modules)")].rstrip() for line in tree(ledger).splitlines()]
    expected = ["layers", "├ {0..1,3}", "│ ├ attn", "│ └ moe", "└ 2", "  ├ attn", "  └ moe"]
    assert [*expected, "head", "(outside modules)"] == names


def test_only_plain_numbers_are_numbers():
    """Torch's containers make no other; any text is a module's name."""
    ledger = Ledger()
    for name in ("²", "٣", "01", "9" * 5000, "1", "2", "", "a\nb\x1b[31m"):
        _enter(ledger, _reduced(_group()), f"layers.{name}")
    names = [line.split("  ")[0] for line in tree(ledger).splitlines()]
    nines = "9" * 59
    assert ["layers", "├ ²", "├ ٣", "├ 01", f"├ {nines}…{nines}", "├ {1..2}", "├", "└ a\\nb\\x1b[31m"] == names
    assert (1, 96.0) == _Page(page(ledger)).by["module"]["layers.²"]
    assert (2, 192.0) == _Page(page(ledger)).by["module"]["layers.*"]


def test_modules_of_any_depth_have_a_report():
    ledger = Ledger()
    for depth in (3000, 3001):
        _enter(ledger, _reduced(_group()), ".".join(["0"] * depth))
    assert "2 calls" in tree(ledger).splitlines()[0]
    assert "2 calls" in page(ledger)


def test_the_terminal_has_findings_first_then_each_group_and_op():
    ledger = _trained()
    (found,) = cr.check(
        cr.call("_c10d_functional::reduce_scatter_tensor", group=cr.Group(4), reduce_op="sum", input=(13,))
    )
    ledger.findings += [found, found]
    shown = blocks(ledger)
    assert "2 findings" == shown[0]
    assert f"error ×2: {found.message}" == shown[1]
    sent = {(row[0], row[1]): row[5] for row in shown[3].rows}
    expected = {
        ("world (4 ranks)", "c10d::allreduce_"): bytes_text(ledger.by("op")["c10d::allreduce_",].sent),
        ("world (4 ranks)", "_c10d_functional::all_to_all_single"): "768 B",
        ("pair (2 ranks)", "_c10d_functional::all_gather_into_tensor"): "512 B",
    }
    assert expected == sent
    assert "float32[1000] ×2, float32[3] ×2" in plain(Report({}, shown))
    assert found.message in markdown(ledger)


def test_calls_that_were_not_kept_are_told_in_every_format():
    ledger = Ledger(keep=2)
    for _ in range(5):
        _enter(ledger, _reduced(_group()))
    said = "Of 5 calls the last 2 were kept"
    assert said in plain(Report({}, blocks(ledger)))
    assert said in markdown(ledger)
    assert said in page(ledger)
    assert (5, 2) == (as_json(ledger)["count"], as_json(ledger)["kept"])


def test_calls_whose_bytes_are_unknown_are_told():
    ledger = _ledger(cr.call("c10d::allreduce_", group=_group(), tensors=[cr.Spec(None, None)]))
    assert "The bytes of 1 call are not known" in plain(Report({}, blocks(ledger)))
    assert as_json(ledger)["calls"][0]["traffic"] is None
    assert 1 == _Page(page(ledger)).tiles["calls"]


def test_bytes_of_symbolic_sizes_are_plain_numbers():
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC])
    symbolic = mode.from_tensor(torch.empty(16), symbolic_context=context)
    with mode:
        size = environment.create_unbacked_symint()
        torch._check(size >= 0)
        unknown = torch.empty(size)
    ledger = _ledger(*(cr.call("c10d::allreduce_", group=_group(), tensors=[each]) for each in (symbolic, unknown)))
    numbers = _ledger(_reduced(_group(), 16))
    sent = as_json(numbers)["calls"][0]["traffic"]
    assert [sent, dict.fromkeys(sent, 0) | {"bus_factor": 1.5}] == [
        call["traffic"] for call in json.loads(json.dumps(as_json(ledger)))["calls"]
    ]
    assert flows(numbers).sent == flows(ledger).sent
    assert 2 * [numbers.total.sent] == [_Page(page(ledger)).tiles["sent"], sum(_Page(page(ledger)).marks)]
    n = symbolic.shape[0]
    ledger = _ledger(_exchanged(_group(), (3 + n,), (1, 2, 2, n), (1, n, 0, 2)))
    assert {1: 64.0, 3: 8.0} == flows(ledger).sent


def test_devices_that_stood_in_are_told():
    ledger = _trained()
    ledger.devices = {"cpu": "cuda"}
    assert "Devices: cpu stood in for cuda." == blocks(ledger)[-1]


def test_an_empty_ledger_has_a_report():
    assert ("No collective was called.",) == blocks(Ledger())
    assert "No collective was called." in page(Ledger())
    assert [] == as_json(Ledger())["calls"]


def test_names_of_the_program_are_text_and_not_markup():
    ledger = Ledger()
    group = _group(name=_HOSTILE)
    _enter(ledger, _reduced(group), _HOSTILE, _HOSTILE, _HOSTILE)
    _enter(ledger, _reduced(_group(2, 0, "pair")), _HOSTILE)
    text = page(ledger)
    assert "<script>alert" not in text
    assert {f"{_HOSTILE} (4 ranks)", "pair (2 ranks)"} == set(_Page(text).by["group"])
    table = markdown(ledger).split("## By module")[0]
    assert "<script>" not in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert {4, 6, 7} == {line.replace("\\|", "").count("|") - 1 for line in rows}


def test_the_page_loads_nothing():
    shown, text = _Page(page(_trained())), page(_trained())
    assert not {"link", "img", "iframe", "object"} & shown.tags
    assert not {"src", "href"} & set(shown.attributes)
    assert not [word for word in ("http:", "https:", "url(", "@import", "fetch(") if word in text]


def test_the_page_of_a_huge_job_stays_small():
    world = _group(65_536, 5)
    columns = [_group(8, 5, f"g{place}", tuple(range(place * 8, place * 8 + 8))) for place in range(40)]
    known = [CallFacts.of(_reduced(group, 100 + place)) for place, group in enumerate([world, *columns])]
    ledger = Ledger()
    for number in range(20_000):
        module = f"layers.{number % 400}.{'attention' * 12}"
        ledger.enter(known[number % 41], "some/long/path/of/a/program.py:1234", module, "forward", 0.0, True)
    text = page(ledger)
    assert len(text.encode()) < 2_000_000
    assert ledger.total.sent == sum(sent for _, sent in _Page(text).by["group"].values())


def test_json_reads_back_as_the_calls():
    ledger = _trained()
    data = json.loads(json.dumps(as_json(ledger)))
    fields = ("op", "group", "arguments", "source", "index", "blocking")
    for record, call in zip(data["calls"], ledger.calls, strict=True):
        group = record["group"] | {"ranks": data["groups"][record["group"]["name"]]["ranks"]}
        assert call == from_record({name: record[name] for name in fields if name in record} | {"group": group})
    assert ledger.total.sent == sum(total["sent"] for total in data["totals"])
    assert pytest.approx(ledger.total.sent) == sum(data["sent_to"].values())
    assert attrs.asdict(ledger.entries[3].traffic) == data["calls"][3]["traffic"]


def test_the_suffix_chooses_the_format(tmp_path):
    ledger = _trained()
    assert page(ledger) == write(ledger, tmp_path / "a.html").read_text()
    assert markdown(ledger) == write(ledger, str(tmp_path / "a.md")).read_text()
    assert as_json(ledger) == json.loads(write(ledger, tmp_path / "a.JSON").read_text())


def test_a_path_that_cannot_be_written_is_refused_with_what_to_do(tmp_path):
    for name, said in (
        ("a.pdf", "a report ends in .html, .md or .json"),
        ("no/a.md", "make it first"),
        ("folder.md", "is a folder"),
        (f"{'a' * 300}.md", "cannot be written: File name too long"),
        ("a\0.md", "cannot be written: embedded null byte"),
    ):
        (tmp_path / "folder.md").mkdir(exist_ok=True)
        with pytest.raises(CollectiveRulesError) as caught:
            write(_trained(), tmp_path / name)
        assert said in str(caught.value)


def test_a_path_that_may_not_be_written_is_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name == "free.md")
    for name in ("free.md", "locked.md"):
        (tmp_path / name).write_text("kept")
    assert tmp_path / "free.md" == must_be_writable(tmp_path / "free.md")
    for name in ("locked.md", "new.md"):
        with pytest.raises(CollectiveRulesError, match=f"{name} cannot be written: this user may not"):
            must_be_writable(tmp_path / name)


def test_the_own_rank_and_its_ring_neighbour_can_be_seen():
    """In a matrix no row's name lies on another; in a strip the own mark lies beside the cells."""
    for rank in range(64):
        text = page(_ledger(_reduced(_group(64, rank))))
        found = re.findall(r'y="([0-9.]+)" class="end"><tspan( class="own")?>(\d+)', text)
        places = [float(place) for place, _, _ in found]
        assert [str(rank)] == [name for _, own, name in found if own]
        assert min(b - a for a, b in pairwise(places)) >= 12
    strip = page(_ledger(_reduced(_group(65_536, 12_345))))
    assert re.search(r'y="40" width="3" height="6" class="here"', strip)


def test_numbers_for_people_do_not_jump_at_the_edge_of_a_unit():
    assert ["1023 B", "1.0 KiB", "1023.9 KiB", "1.0 MiB"] == [bytes_text(n) for n in (1023, 1024, 1048500, 1048575)]
    assert ["100.0 %", "0.0 %", "<0.1 %"] == [share_text(n, 10_000) for n in (10_000, 0, 1)]
    assert ["5", "0, 1, 2", "0–3", "1, 4, … 10"] == [rank_list(r) for r in ((5,), range(3), range(4), range(1, 11, 3))]


_MEASURE = """
const plots = [...document.querySelectorAll("svg[role=img]")].map((svg) => {
  const drawn = [...svg.querySelectorAll("rect")].map((rect) => rect.getBBox())
    .filter((own) => own.width && own.height);
  const box = svg.getBoundingClientRect();
  const cut = [...svg.querySelectorAll("text")].map((text) => text.getBBox())
    .filter((own) => own.width && (own.x < -1 || own.y < -1 || own.x + own.width > box.width + 1)).length;
  return { kind: svg.classList[0], width: box.width, height: box.height, drawn: drawn.length, cut };
});
const input = document.getElementById("filter");
input.value = "ALLREDUCE";
input.dispatchEvent(new Event("input"));
const found = [...document.querySelectorAll("#calls tbody tr")].filter((row) => !row.hidden).length;
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const measured = { plots, found, wide, errors: window.errors, ran: document.documentElement.dataset.script };
"""
_CATCH = "<head><script>window.errors = []; addEventListener('error', (e) => errors.push(e.message));</script>"


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
def test_a_browser_draws_every_plot_and_runs_the_script(tmp_path):
    ledger = _trained()
    found = measured(page(ledger).replace("<head>", _CATCH), _MEASURE, tmp_path)
    assert ([], "ran") == (found["errors"], found["ran"])
    assert ["bars"] * 4 + ["timeline", "matrix"] == [plot["kind"] for plot in found["plots"]]
    drawn = {plot["kind"]: plot["drawn"] for plot in found["plots"] if plot["kind"] != "bars"}
    # Ten calls and two phases; of the cells, all but those in a row whose sizes this rank cannot know, track and frame.
    assert {"timeline": 12, "matrix": len(_Page(page(ledger)).cells) + 2} == drawn
    assert all(plot["width"] > 100 and plot["height"] > 60 and plot["drawn"] > 2 for plot in found["plots"])
    assert [0] * 6 == [plot["cut"] for plot in found["plots"]]
    assert (2, 0) == (found["found"], found["wide"])
