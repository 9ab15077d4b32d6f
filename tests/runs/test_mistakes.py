"""The messages when something goes wrong during a run."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from ciod.config import load as config
from ciod.core.distributed import World
from ciod.core.errors import CiodError
from ciod.data.shapes.scenes import write_shapes
from ciod.runs import run as engine
from ciod.training import checkpoint
from ciod.training.loop import NotFinite
from ciod.training.progress import Reporter
from tests.runs.commands import WORDS, go, weights_of

BURST = """
import torch
from ciod.methods.finetune import Finetune

class Burst(Finetune):
    "A loss that bursts in the second step of the second task."
    def loss(self, batch):
        losses = super().loss(batch)
        if self.old:
            self.__dict__["_n"] = self.__dict__.get("_n", 0) + 1
            if self.__dict__["_n"] == 2:
                return {**losses, "box": losses["box"] * float("VALUE")}
        return losses
"""


def test_a_number_of_another_process(data, tmp_path, monkeypatch):
    monkeypatch.setattr(World, "all", lambda self, yes: False)
    with pytest.raises(NotFinite, match=r"^Another rank got a NaN or infinite loss in task 1\.$"):
        go(data, tmp_path / "run")
    assert not (tmp_path / "run" / "task-1").exists(), "nothing of it is kept"


def test_a_disk_with_little_free_space(data, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=150e6))
    with pytest.raises(CiodError, match=r"out: .*run has only 150 MB of free space; a run needs a few hundred\."):
        go(data, tmp_path / "run")
    assert not (tmp_path / "run" / "run.yaml").exists()


@pytest.mark.parametrize("name", ["report.html", "metrics.jsonl", "run.yaml", "task-1/model.safetensors"])
def test_files_of_the_user_in_the_place_of_a_runs(data, tmp_path, name):
    file = tmp_path / "run" / name
    file.parent.mkdir(parents=True)
    file.write_text("data: mine\n")
    with pytest.raises(
        CiodError, match=rf"^out: .*run holds {name}, but no run that can be resumed; choose another out="
    ):
        go(data, tmp_path / "run")
    assert file.read_text() == "data: mine\n"


def test_settings_made_without_data(tmp_path):
    """Those of the command line were checked before."""
    with pytest.raises(CiodError, match=r"^data: no data set is given; write data=FOLDER, or scenario=NAME\.$"):
        engine.train(config.Run(out=str(tmp_path / "run")), reporter=Reporter(quiet=True))


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("every", [1, 10])
def test_a_loss_that_is_not_a_number(data, tmp_path, value, every):
    (tmp_path / "burst.py").write_text(BURST.replace("VALUE", value))
    words = [w for w in WORDS if not w.startswith("method")]
    run = config.load(None, [*words, f"data={data}", f"out={tmp_path / 'run'}", f"log_every={every}", "ema=0",
                             f"method={tmp_path / 'burst.py'}:Burst"])  # fmt: skip
    with pytest.raises(NotFinite, match=rf"^box became {value} in task 2, step 2, images .*train_.*\.jpg") as caught:
        engine.train(run, reporter=Reporter(quiet=True))
    assert "lower train.lr" in str(caught.value) and "checkpoint is intact" in str(caught.value)
    state = checkpoint.load_state(tmp_path / "run" / "last" / "state.pt")
    assert state is not None and state["task"] == 1
    tensors = weights_of(tmp_path / "run", 1).values()
    assert all(t.isfinite().all() for t in tensors)


def test_too_few_epochs_for_the_tasks(data, tmp_path):
    with pytest.raises(CiodError, match=r"train\.epochs has 1 entry, but the scenario 2 tasks"):
        go(data, tmp_path / "run", "epochs=[1]")


def test_images_broken_during_the_run_are_named(tmp_path):
    own = write_shapes(tmp_path / "data", train=12, val=6, size=64)
    sick = sorted((own / "images").glob("train_*.jpg"))[3]
    sick.write_bytes(sick.read_bytes()[:200])
    out = go(own, tmp_path / "run", "epochs=1", "split=6")
    warnings = json.loads((out / "results.json").read_text())["warnings"]
    assert any(sick.name in w for w in warnings)
