"""The examples in four real processes on gloo, run once for all tests here.

Each computes the losses that one process computes, and communicates what a dry run of the same script says; gloo's own
Flight Recorder is a second witness: what the ledger says was sent is what gloo was given.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from collective_rules.dryrun import run_script
from collective_rules.ops import GROUP_OPS
from collective_rules.records import from_record
from tests.example_runs import EXAMPLES, SIZE, run_example, what_is_printed
from tests.flight_recorded import expected_dump, read_dump, recorded
from tests.forked_ranks import fork_ranks
from tests.ledger_of import described

_EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"

POINT_TO_POINT = {"c10d::send", "c10d::recv_"}
SILENT = "pipeline"
"""The example that has nothing but point-to-point calls, of which the recorder says nothing."""

# Runs the script's main, and saves the weights that its ranks begin with. The CPU draws the same parts of a DTensor on
# every rank, so the parts are made different first.
_SAVE_WEIGHTS = """
import sys
sys.path.insert(0, {examples!r})
import fsdp2_tp, torch, torch.distributed as dist
build = fsdp2_tp.build
def build_and_save(*args):
    model = build(*args)
    for p in model.parameters():
        if not p.placements[-1].is_replicate():
            p.to_local().detach().mul_(1 + 0.5 * dist.get_rank())
    full = {{name: p.full_tensor().detach() for name, p in model.named_parameters()}}
    if dist.get_rank() == 0:
        torch.save(full, {path!r})
    return model
fsdp2_tp.build = build_and_save
fsdp2_tp.main()
"""


def _losses(printed):
    return [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]


def _lost_by(name):
    """The losses of the run under the mode, of which other tests look at the ledgers."""
    return _losses(what_is_printed(_EXAMPLES / f"{name}.py"))


@pytest.fixture(scope="module")
def llama():
    spec = importlib.util.spec_from_file_location("example_llama", _EXAMPLES / "llama.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def _train_alone(llama, ranks, optimizer, clip=False, weights=None, feed_forward=None):
    """The losses of two steps in this process, on the batches of `ranks` data-parallel ranks."""
    config = llama.CONFIGS["tiny"]
    with torch.random.fork_rng(devices=[]):
        model = llama.Llama(config, feed_forward=feed_forward or llama.FeedForward)
        model.init_weights()
        for number, layer in model.layers.items() if feed_forward else ():
            layer.ffn.init_experts(int(number))
    if weights is not None:
        model.load_state_dict(weights)
    optimizer, losses = optimizer(model.parameters()), []
    for step in range(2):
        batches = [llama.draw_batch(config, size=4, length=32, rank=rank, step=step) for rank in range(ranks)]
        tokens, targets = (torch.cat(part) for part in zip(*batches, strict=True))
        loss = llama.measure_loss(model(tokens), targets)
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)


def _sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_data_parallel_ranks_lose_what_one_process_loses_on_all_batches(llama, name):
    expected = _train_alone(llama, SIZE, _adamw, clip=True)
    assert pytest.approx(expected, abs=1e-5) == _lost_by(name)


@pytest.mark.parametrize("name", ["pipeline", "context_parallel"])
def test_a_divided_model_or_sequence_loses_what_the_whole_one_loses(llama, name):
    expected = _train_alone(llama, 1, _sgd)
    assert pytest.approx(expected, abs=1e-5) == _lost_by(name)


def test_two_dimensions_lose_what_the_gathered_weights_lose(llama, tmp_path):
    weights, driver = tmp_path / "weights.pt", tmp_path / "driver.py"
    driver.write_text(_SAVE_WEIGHTS.format(examples=str(_EXAMPLES), path=str(weights)))
    losses = _losses(fork_ranks(4, str(driver), "--tp=2"))
    expected = _train_alone(llama, 2, _adamw, clip=True, weights=torch.load(weights))
    assert pytest.approx(expected, abs=1e-4) == losses


class _AllExperts(torch.nn.Module):
    """The experts of `ranks` ranks in one place, for their batches one after the other."""

    def __init__(self, llama, config, ranks):
        super().__init__()
        self.ranks = ranks
        self.experts = torch.nn.ModuleList(llama.FeedForward(config) for _ in range(2 * ranks))

    def init_experts(self, layer):
        for number, expert in enumerate(self.experts):
            torch.manual_seed(10_000 * (layer + 1) + number)
            for weight in expert.parameters():
                torch.nn.init.normal_(weight, std=0.02)

    def forward(self, x):
        rows = x.flatten(0, 1)
        places = torch.arange(len(rows) // self.ranks)
        chosen = torch.cat([(places * places + rank) % len(self.experts) for rank in range(self.ranks)])
        done = torch.stack([expert(rows) for expert in self.experts])
        return done[chosen, torch.arange(len(rows))].view_as(x)


def test_experts_on_other_ranks_lose_what_all_of_them_lose_in_one_process(llama):
    expected = _train_alone(llama, SIZE, _sgd, feed_forward=lambda config: _AllExperts(llama, config, SIZE))
    assert pytest.approx(expected, abs=1e-5) == _lost_by("expert_parallel")


@pytest.mark.filterwarnings("ignore")  # what torch warns of in the examples is not looked at here
@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_a_dry_run_communicates_what_real_processes_do(script: Path) -> None:
    """Call by call, with sizes, groups, lines, modules and phases, on every rank; and the real run has no finding."""
    for rank, real in enumerate(run_example(script)):
        dry = run_script(str(script), [], world_size=SIZE, rank=rank)
        assert [] == real["findings"]
        assert ("finished", None) == (dry.reason, dry.error)
        assert real["calls"]
        assert real["calls"] == json.loads(json.dumps(described(dry.ledger)))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_the_recorder_holds_what_the_ledger_says(script: Path) -> None:
    """On every rank, by group and in order: the same collectives, sizes and dtypes, and all else counted."""
    for rank in run_example(script):
        calls = [from_record(record) for record in rank["records"]]
        dump = read_dump(rank["recorder"])
        assert expected_dump(calls) == dump
        assert (script.stem == SILENT) == (not dump)
        assert {call.op for call in calls if not list(recorded(call))} <= POINT_TO_POINT | GROUP_OPS.keys()


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_a_guard_holds_what_the_mode_and_the_recorder_hold(script: Path) -> None:
    """The same rules, groups, sizes and lines in the same order, though kernels tell the guard of them."""
    for rank in run_example(script):
        guarded, seen = ([from_record(record) for record in rank[name]] for name in ("guarded", "records"))
        assert expected_dump(guarded) == read_dump(rank["recorder"])
        told = [[(call.row.rule.name, str(call), call.source) for call in calls] for calls in (guarded, seen)]
        assert told[0] == told[1]


@pytest.mark.parametrize("name", ["ddp", "fsdp2_tp"])
def test_another_ledger_is_told_apart(name: str) -> None:
    """One with a call less, or in which a call is of another dtype, or of another group."""
    rank = run_example(next(path for path in EXAMPLES if path.stem == name))[1]
    records = [record for record in rank["records"] if record["op"] not in GROUP_OPS]
    dump = read_dump(rank["recorder"])
    for place in (0, len(records) // 2, len(records) - 1):
        first, record, last = records[:place], json.dumps(records[place]), records[place + 1 :]
        others = [first + last]
        for was, becomes in (
            ('"int32"', '"int8"'),
            ('"float32"', '"float64"'),
            ('"int64"', '"int32"'),
            ('"name": "', '"name": "1'),
        ):
            others += [[*first, json.loads(record.replace(was, becomes)), *last]] if was in record else []
        assert len(others) > 2
        for other in others:
            assert expected_dump(map(from_record, other)) != dump
