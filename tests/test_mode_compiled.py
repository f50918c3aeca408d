"""What compiled code communicates is seen as it runs, and is what the same program says without being compiled."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

import collective_rules as cr
from collective_rules.dryrun import run_script
from tests.example_runs import with_ledgers
from tests.ledger_of import described

# torch's functional collectives call some of themselves deprecated, and its compiler warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore")

PROGRAM = Path(__file__).with_name("compiled_program.py")


class Shared(torch.nn.Module):
    """A layer whose results are added up over the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.all_reduce(self.layer(rows), "sum", dist.group.WORLD) * 2


class Own(TorchFunctionMode):
    """Changes nothing; it is there while torch.compile compiles."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A gloo group of one, and a compiler that has compiled nothing."""
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    torch._dynamo.reset()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch._dynamo.reset()


def told(ledger: cr.Ledger, rule: str) -> list[tuple[str, str]]:
    """Module and phase of the calls of one rule."""
    return [(entry.module, entry.phase) for entry in ledger.entries if entry.call.row.rule.name == rule]


def train(model: torch.nn.Module) -> None:
    for _ in range(2):
        model(torch.ones(8, 4)).sum().backward()


@pytest.mark.usefixtures("alone")
def test_a_compiled_module_is_seen_at_its_own_path() -> None:
    """As a whole, and as a part of one that is not compiled; each call once, although compiling dispatches it too."""
    whole = torch.compile(torch.nn.Sequential(Shared(), Shared()), backend="aot_eager", fullgraph=True)
    part = torch.nn.Sequential(Shared(), torch.compile(Shared(), backend="aot_eager", fullgraph=True))
    with cr.RuleMode(check=True) as ledger:
        train(whole)
    once = [("Sequential", "forward")] * 2 + [("Sequential", "backward")] * 2
    assert once * 2 == told(ledger, "all_reduce")
    with cr.RuleMode(check=True) as ledger:
        train(part)
    # The backward pass of one that is compiled is of the module at work when it was called.
    assert [("0", "forward"), ("1", "forward"), ("1", "backward"), ("0", "backward")] * 2 == told(ledger, "all_reduce")
    assert [] == ledger.findings


@pytest.mark.usefixtures("alone")
def test_a_module_that_compiles_itself_is_seen_as_a_part_of_what_is_around_it() -> None:
    """`module.compile()` compiles what follows modules too: it is not told apart itself."""
    model = torch.nn.Sequential(torch.nn.Sequential(Shared()))
    model[0][0].compile(backend="aot_eager", fullgraph=True)
    with cr.RuleMode(check=True) as ledger:
        train(model)
    assert [("0", "forward"), ("0", "backward")] * 2 == told(ledger, "all_reduce")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("execute", [True, False], ids=["sent", "not sent"])
def test_compiled_data_parallel_is_seen(execute: bool) -> None:
    """Torch leaves the modes on while it compiles a DDP module; what it dispatches then is no call of the program."""
    with cr.RuleMode(check=True, execute=execute) as ledger, Own():
        train(torch.compile(DistributedDataParallel(Shared()), backend="aot_eager"))
    own = [("DistributedDataParallel", "forward"), ("DistributedDataParallel", "backward")]
    assert [*own, ("", "backward")] * 2 == told(ledger, "all_reduce")  # the last are DDP's gradients
    assert [] == ledger.findings


def normal(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls by their rule, without lines: compiled code may choose another op of the rule, and has lines of its own."""
    return [{**call, "op": cr.lookup(call["op"]).rule.name, "source": None} for call in calls]


def test_by_their_rules_compiled_code_calls_what_eager_code_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks on gloo, compiled by inductor, against a dry run, which compiles nothing."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    ranks, _ = with_ledgers(PROGRAM, 2)
    for rank, real in enumerate(ranks):
        dry = run_script(str(PROGRAM), [], world_size=2, rank=rank)
        eager = json.loads(json.dumps(described(dry.ledger)))
        assert ("finished", []) == (dry.reason, real["findings"])
        assert "_c10d_functional::all_reduce_" in {call["op"] for call in real["calls"]}
        assert normal(eager) == normal(real["calls"])
