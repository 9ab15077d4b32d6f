"""A method that acts in its first task trains it itself: this is reported, and the task is not shared or taken over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ciod
from ciod import methods
from ciod.comparison import plan, schedule, worker
from ciod.config import load as config
from ciod.core.errors import CiodError
from ciod.data.shapes.scenes import write_shapes
from ciod.methods.base import first_task
from ciod.runs.run import train
from ciod.training.progress import Reporter

HEAD = """\
from typing import Any, ClassVar
from pydantic import PrivateAttr
from ciod import Method

class Mine(Method):
    weight: float = 1.0
"""
COUNTS = """\
_boxes: list = PrivateAttr(default_factory=list)
def loss(self, batch):
    self._boxes.append(batch.targets.valid.sum())
    return super().loss(batch)
def end_task(self, task):
    print(f"COUNTED task {task.index}: {int(sum(self._boxes))}")
"""
SMALL = {"split": "6+4", "detector": "yolox-pico", "size": 64, "epochs": 1, "batch": 4, "warmup": 1, "device": "cpu"}


def write(folder: Path, body: str) -> str:
    (folder / "mine.py").write_text(HEAD + "".join(f"    {line}\n" for line in body.splitlines()))
    return f"{folder / 'mine.py'}:Mine"


LOSS = "def loss(self, batch):\n    {}\n    return {{k: self.weight * v for k, v in super().loss(batch).items()}}"
ALONE = {
    LOSS.format("pass"): ["loss"],
    LOSS.format("x = self.teacher"): ["loss"],
    LOSS.format("if self.teacher is None:\n        return {}"): ["loss"],
    LOSS.format("if self.teacher is not None:\n        return super().loss(batch)"): ["loss"],
    COUNTS: ["loss", "end_task"],
    "def begin_task(self, task):\n    super().begin_task(task)\n    self.detector.backbone.requires_grad_(False)": [
        "begin_task"
    ],
    "def before_step(self):\n    pass": ["before_step"],
    "def grow(self, detector, names, taught=()):\n    detector.grow(names)": ["grow"],
}
ANY = [
    "pass",
    LOSS.format("if self.teacher is None:\n        return super().loss(batch)"),
    LOSS.format("'''Half.'''\n    if not self.old or self.weight == 1:\n        return super().loss(batch)"),
    LOSS.format("if self.old == 0: return super().loss(batch)"),
    "def begin_task(self, task):\n    super().begin_task(task)\n    if not self.old:\n        return\n    self.x = 1",
    "def begin_task(self, task):\n    '''Nothing.'''\n    super().begin_task(task)",
    "def state(self):\n    return {}",
]


@pytest.mark.parametrize("body", ALONE)
def test_what_acts_in_the_first_task(tmp_path, body):
    method = methods.find(write(tmp_path, body))()
    assert method.needs_first_task and first_task.hooks(type(method)) == ALONE[body]
    named = methods.find(write(tmp_path, body + "\nneeds_first_task: ClassVar[bool] = False"))()
    assert not named.needs_first_task and first_task.why(named) is None


@pytest.mark.parametrize("body", ANY)
def test_hooks_that_do_nothing_in_the_first_task(tmp_path, body):
    method = methods.find(write(tmp_path, body))()
    assert not method.needs_first_task
    assert first_task.why(methods.find(write(tmp_path, body + "\nneeds_first_task: ClassVar[bool] = True"))()) == (
        "it says so"
    )


def test_of_ciods_own_only_merging_by_moves_needs_it():
    assert [n for n in methods.available() if methods.find(n)().needs_first_task] == []
    merge = methods.find("merge")
    assert merge(rule="duet").needs_first_task and merge(direction=0.1).needs_first_task


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data"), train=8, val=4, size=64)


def run(data: Path, out: Path, **more) -> Path:
    settings = config.load(None, {"data": str(data), "out": str(out), **SMALL, **more})
    return train(settings, command="a test", reporter=Reporter(quiet=True))


def counted(text: str) -> list[str]:
    return [line.partition("COUNTED ")[2] for line in text.splitlines() if "COUNTED " in line]


def test_compare_counts_what_train_counts(tmp_path, data, monkeypatch, capsys):
    name = write(tmp_path, COUNTS)
    run(data, tmp_path / "alone", method=name)
    alone = counted(capsys.readouterr().out)
    assert len(alone) == 2 and not alone[0].endswith(": 0")

    def in_this_process(cells, **_):
        for cell in cells:
            worker.work(cell.job())
        return {}

    monkeypatch.setattr(schedule, "run", in_this_process)
    content = ciod.compare(methods=[name], out=tmp_path / "compared", upper="none", data=str(data), **SMALL)
    assert counted(capsys.readouterr().out) == alone
    assert "Mine: its first task is not shared with the other methods: its loss, end_task may act in it." in (
        json.dumps(content, default=str)
    )


GATHERS = """
def loss(self, batch):
    self._seen += len(batch.images)
    return super().loss(batch)

def state(self):
    return {"seen": self._seen}

def load_state(self, state):
    self._seen = state.get("seen", 0)

_seen: int = PrivateAttr(default=0)
"""


@pytest.mark.parametrize("kind", ["gathers in loss", "ewc", "feature_replay"])
def test_a_method_has_the_same_state_under_train_and_compare(tmp_path, data, monkeypatch, kind):
    """What it gathers in the first task: pictures that it counts, Fisher information, or feature vectors."""
    name = write(tmp_path, GATHERS) if kind == "gathers in loss" else kind
    run(data, tmp_path / "alone", method=name)

    def in_this_process(cells, **_):
        for cell in cells:
            worker.work(cell.job())
        return {}

    monkeypatch.setattr(schedule, "run", in_this_process)
    content = ciod.compare(methods=["finetune", name], out=tmp_path / "c", upper="none", data=str(data), **SMALL)
    (folder,) = [r["folder"] for r in content["runs"] if r["label"] != "finetune"]
    places = (tmp_path / "alone", tmp_path / "c" / folder)
    one, other = (torch.load(p / "last" / "state.pt", weights_only=True) for p in places)
    assert list(one["method"]) == list(other["method"]) != []
    if kind != "gathers in loss":
        key = "fisher" if kind == "ewc" else "vectors"
        assert all(torch.equal(v, other["method"][key][k]) for k, v in one["method"][key].items())
        assert one["method"][key]
    else:
        assert one["method"] == other["method"] and one["method"]["seen"] > 0


def test_a_comparison_shares_the_first_task_of_the_others(tmp_path, data):
    own = write(tmp_path, COUNTS)
    made = plan.build(None, methods=f"finetune,{own}", out=tmp_path / "out", settings={"data": str(data), **SMALL})
    starts = {c.label: c.starts_from for c in made.cells if c.kind == "run"}
    assert starts == {"finetune": "first-seed0", "Mine": None} and len(made.warnings) == 1
    alone = plan.build(None, methods=own, out=tmp_path / "out", settings={"data": str(data), **SMALL})
    assert not any(c.kind == "first" for c in alone.cells)


def test_first_is_refused_where_it_would_be_another_method(tmp_path, data):
    run(data, tmp_path / "first", method="finetune")
    given = {"first": str(tmp_path / "first")}
    with pytest.raises(
        CiodError, match=r"first: merge needs a first task of its own with these settings; leave first="
    ):
        run(data, tmp_path / "merged", method={"name": "merge", "rule": "duet"}, **given)
    name = write(tmp_path, COUNTS)
    message = r"first: .*first was trained without .*Mine, though its loss, end_task may act in it\. Leave first= out"
    with pytest.raises(CiodError, match=message):
        run(data, tmp_path / "counted", method=name, **given)
    assert not (tmp_path / "counted" / "last" / "state.pt").exists()
    run(data, tmp_path / "averaged", method="merge", **given)
