"""The callbacks for Lightning and transformers, tried on the real packages with two gloo ranks where they are there."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import collective_rules as cr
from collective_rules.guarding.process import AtExit
from collective_rules.integrations.training import GuardedTraining
from collective_rules.mode import kernels
from tests.commands import ROOT, run_python, torchrun

LIGHTNING = """
import sys, torch
import {package} as pl
from collective_rules.integrations.lightning import GuardCallback

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def training_step(self, batch, index):
        if fails and index == 2:
            raise KeyError("the program's own")
        loss = self.layer(batch).sum()
        self.log("loss", loss, sync_dist=True)
        return loss
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

fails = len(sys.argv) > 1
callback = GuardCallback(agree=5, deadline=60)
loader = torch.utils.data.DataLoader(torch.randn(16, 4), batch_size=2)
quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer = pl.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, callbacks=[callback], log_every_n_steps=1, **quiet
)
try:
    trainer.fit(Model(), loader)
except KeyError:
    assert fails
from collective_rules.mode import kernels
print("calls", len(callback.guard.ledger) > 4, callback.findings, kernels._state.listening)
"""

TRANSFORMERS = """
import sys, tempfile, torch
from transformers import Trainer, TrainingArguments
from collective_rules.integrations.transformers import GuardCallback

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
    def forward(self, x, labels=None):
        if fails and self.training:
            raise KeyError("the program's own")
        out = self.layer(x)
        return {"loss": (out - labels).square().mean(), "logits": out}

fails = len(sys.argv) > 1
data = [{"x": torch.randn(4), "labels": torch.zeros(1)} for _ in range(16)]
callback = GuardCallback(agree=5, deadline=60)
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=2, num_train_epochs=2, use_cpu=True, report_to=[], save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(Model(), arguments, train_dataset=data, callbacks=[callback])
    try:
        trainer.train()
    except KeyError:
        assert fails
from collective_rules.mode import kernels
print("calls", len(callback.guard.ledger) > 4 or fails, callback.findings, () if fails else kernels._state.listening)
"""


def run(tmp_path: Path, text: str, *arguments: str) -> str:
    script = tmp_path / "train.py"
    script.write_text(text)
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = torchrun(2, str(script), *arguments)
    done = run_python(*command, cwd=tmp_path, PYTHONPATH=paths, TORCH_CPP_LOG_LEVEL="ERROR", within=240)
    assert 0 == done.returncode, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("arguments", [(), ("fails",)], ids=["ends", "fails"])
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning(tmp_path: Path, package: str, arguments: tuple[str, ...]) -> None:
    if importlib.util.find_spec(package.partition(".")[0]) is None:
        pytest.skip(f"{package} is not installed")
    assert 2 == run(tmp_path, LIGHTNING.format(package=package), *arguments).count("calls True () ()")


@pytest.mark.parametrize("arguments", [(), ("fails",)], ids=["ends", "fails"])
def test_transformers(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    for package in ("transformers", "accelerate"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    assert 2 == run(tmp_path, TRANSFORMERS, *arguments).count("calls True () ()")


# -- without the packages: in what order they call


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch, group: dist.ProcessGroup) -> Iterator[None]:
    """Modules that have the base classes of callbacks, and nothing else."""
    names = {
        "pytorch_lightning": "Callback",
        "lightning": "",
        "lightning.pytorch": "",
        "transformers": "TrainerCallback",
    }
    for name, base in names.items():
        monkeypatch.delitem(sys.modules, name, raising=False)
        if base:
            module = types.ModuleType(name)
            setattr(module, base, type(base, (), {}))
            monkeypatch.setitem(sys.modules, name, module)
    for name in ("lightning", "transformers"):
        monkeypatch.delitem(sys.modules, f"collective_rules.integrations.{name}", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", sys.modules.get)
    yield
    for name in ("lightning", "transformers"):
        sys.modules.pop(f"collective_rules.integrations.{name}", None)
    assert () == kernels._state.listening


def callback(name: str) -> Any:
    module = importlib.import_module(f"collective_rules.integrations.{name}")
    return module.GuardCallback(agree=False)


def train() -> None:
    dist.all_reduce(torch.ones(2))


def test_lightning_sets_up_and_tears_down_each_run(stand_ins: None) -> None:
    guarding = callback("lightning")
    assert (None, ()) == (guarding.guard, guarding.findings)
    for stage in ("fit", "test"):
        guarding.setup(None, None, stage)
        train()
        guarding.teardown(None, None, stage)
        train()
        assert 1 == len(guarding.guard.ledger)
    guarding.setup(None, None, "fit")
    guarding.on_exception(None, None, KeyError("the program's own"))
    guarding.teardown(None, None, "fit")


def test_transformers_begins_and_ends_each_training(stand_ins: None) -> None:
    guarding, hook = callback("transformers"), sys.excepthook
    guarding.on_train_begin(None, None, None)  # it fails, and nobody is told
    train()
    for _ in range(2):
        guarding.on_train_begin(None, None, None, model=None)
        train()
        guarding.on_train_end(None, None, None, model=None)
        train()
        assert 1 == len(guarding.guard.ledger)
    assert hook is sys.excepthook


def test_without_lightning_its_callback_says_so(stand_ins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    with pytest.raises(ImportError, match="pip install lightning"):
        callback("lightning")


def test_findings_of_all_trainings_are_kept(group: dist.ProcessGroup) -> None:
    training = GuardedTraining({"agree": False, "check": "record", "backend": "gloo"})
    for count in (1, 2):
        training.begin()
        dist.all_reduce(torch.ones(2, dtype=torch.int16))
        training.end()
        assert count == len([found for found in training.findings if found.id == "GLOO1"])


def test_settings_that_do_not_fit_are_refused_as_the_training_begins() -> None:
    with pytest.raises(cr.CallError, match="unheard"):
        GuardedTraining({"agree": "unheard"}).begin()


def test_an_end_that_was_cancelled_is_not_called() -> None:
    ends: list[BaseException | None] = []
    before = sys.excepthook
    first, second = AtExit(ends.append), AtExit(ends.append)
    second.cancel()
    first.cancel()
    assert before is sys.excepthook
    assert [] == ends
