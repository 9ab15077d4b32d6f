"""The mechanics, with a tracker of the tests: what is sent, once, in order; what fails ends the tracker alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ciod.config import load as config
from ciod.core.errors import ConfigError
from ciod.data.shapes.scenes import write_shapes
from ciod.extension import settings as extension
from ciod.runs import run as engine
from ciod.trackers import EXTRAS, tracking
from ciod.trackers.base import Run, flat
from ciod.training.progress import Reporter
from tests.runs.commands import AtStep, Killed, assert_equal, go, results_of, settings


class Kept:
    """Records its calls; ``broken`` names the call that raises."""

    keeps_all = True

    def __init__(self, broken: str = ""):
        self.broken = broken
        self.opened: list[Run] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished: list[tuple[Any, list[str], list[str]]] = []

    def open(self, run: Run) -> str:
        self.opened.append(run)
        self._break("open")
        return "the-run"

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._break("log")
        self.logged.append((step, dict(values)))

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path], pictures: Sequence[Path]) -> None:
        self._break("finish")
        self.finished.append((summary, [f.name for f in files], [f.name for f in pictures]))

    def close(self) -> None:
        self._break("close")

    def _break(self, call: str) -> None:
        if self.broken == call:
            raise SystemExit("the server said no")


class KeptLines(Reporter):
    """Keeps every sentence."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("data"), train=12, val=4, size=64, seed=1)


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory):
    """The run without a tracker."""
    return go(data, tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture
def kept(monkeypatch):
    """Every tracker is this one, whatever its package."""
    tracker = Kept()
    monkeypatch.setattr(tracking, "make", lambda name: tracker)
    monkeypatch.setattr("ciod.config.checks.absent_trackers", lambda names: [])
    return tracker


def run(data: Path, out: Path, *words: str, hooks=()) -> list[str]:
    """The sentences of a run."""
    reporter = KeptLines()
    engine.train(settings(data, out, "log=mlflow", *words), reporter=reporter, hooks=hooks)
    return reporter.lines


def test_a_run_is_tracked_and_not_changed(data, plain, kept, tmp_path):
    run(data, tmp_path / "run")
    assert_equal(plain, tmp_path / "run")
    (opened,) = kept.opened
    assert (opened.name, opened.group, opened.id) == ("run", tmp_path.name, None)
    assert opened.config["train"]["epochs"] == 2
    steps = [s for s, values in kept.logged if "train/loss" in values]
    assert steps == list(range(1, len(steps) + 1)), "one count over both tasks"
    first = next(values for s, values in kept.logged if s == 1)
    assert first["train/loss"] == pytest.approx(sum(first[f"train/{k}"] for k in ("cls", "box", "obj")))
    assert first["train/task"] == 1 and first["train/epoch"] == 1 and first["train/lr"] > 0
    ((summary, files, pictures),) = kept.finished
    assert files == ["report.html", "results.json", "run.yaml"] and pictures
    assert [entry["classes"] for entry in summary["lineage"]] == [list(g) for g in _groups(tmp_path / "run")]


def _groups(out: Path) -> list[list[str]]:
    return [t["new_classes"] for t in json.loads((out / "results.json").read_text())["tasks"]]


def test_values_of_a_task():
    """AP by hand: old classes kept (0.4 + 0.1) / (0.5 + 0.5) of what they had."""
    content = {
        "tasks": [
            {"index": 0, "old_classes": [], "old": None, "new": {"AP": 0.5}, "all": {"AP": 0.5}},
            {"index": 1, "old_classes": ["cat", "dog"], "old": {"AP": 0.25}, "new": {"AP": None}, "all": {"AP": 0.3}},
        ],
        "ap": {"AP50": [{"cat": 0.5, "dog": 0.5}, {"cat": 0.4, "dog": 0.1, "bird": None}]},
    }
    values = dict(tracking.of_task(content, content["tasks"][1]))
    assert values == pytest.approx(
        {
            "old/AP": 0.25, "all/AP": 0.3, "AP50/cat": 0.4, "AP50/dog": 0.1, "retention/cat": 0.8,
            "retention/dog": 0.2, "old/AP50_retention": 0.5,
        }
    )  # fmt: skip


def test_a_stopped_run_continues_where_the_tracker_was(data, plain, kept, tmp_path):
    out = tmp_path / "run"

    def kill():
        raise Killed

    with pytest.raises(Killed):
        run(data, out, "save_every=2", hooks=[AtStep(1, 3, kill)])
    run(data, out, "save_every=2")
    assert_equal(plain, out)
    assert [r.id for r in kept.opened] == [None, "the-run"]
    steps = [s for s, values in kept.logged if "train/loss" in values]
    assert steps == list(range(1, len(steps) + 1)), "steps that were done again are not sent again"
    assert len(kept.finished) == 1


@pytest.mark.parametrize("call", ["open", "log", "finish", "close"])
def test_a_tracker_that_fails_ends_alone(data, plain, kept, tmp_path, call):
    kept.broken = call
    lines = run(data, tmp_path / "run")
    assert [s for s in lines if "log:" in s] == [
        "warning: log: mlflow stopped, the run does not. SystemExit: the server said no"
    ]
    assert results_of(plain) == results_of(tmp_path / "run")


def test_what_a_tracker_missed_is_sent_by_the_next_process(data, kept, tmp_path):
    out = tmp_path / "run"
    kept.broken = "log"
    run(data, out)
    assert not kept.logged
    kept.broken = ""
    run(data, out)  # a finished run, repeated
    steps = [s for s, values in kept.logged if "train/loss" in values]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > 8
    assert "all/AP" in kept.logged[-1][1]


def test_a_tracker_that_hangs_is_left(data, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "WAIT", 0.01)
    free = threading.Event()
    kept.log = lambda values, step: free.wait()
    lines = run(data, tmp_path / "run")
    free.set()
    assert any("mlflow is still sending after 0 s and is left; results and report are complete" in s for s in lines)


def test_a_damaged_note_starts_a_new_run(data, kept, tmp_path):
    out = tmp_path / "run"
    run(data, out)
    (out / "last" / "tracker-mlflow.json").write_text('{"id": "x"}')
    lines = run(data, out)
    assert any("tracker-mlflow.json is damaged; mlflow starts a new run." in s for s in lines)
    assert kept.opened[-1].id is None


def test_other_settings_are_another_tracker_run(data, kept, tmp_path):
    """A run that died before its first state starts again from the beginning; so do its trackers."""
    out = tmp_path / "run"

    def kill():
        raise Killed

    with pytest.raises(Killed):
        run(data, out, hooks=[AtStep(0, 1, kill)])
    run(data, out, "lr=0.001")
    assert [r.id for r in kept.opened] == [None, None]


@pytest.mark.parametrize("load", [config.load, None])
def test_absent_packages_are_named_before_anything_is_read(monkeypatch, load, tmp_path):
    monkeypatch.setattr("ciod.trackers.base.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log: wandb is not installed: pip install 'ciod\[wandb\]'"):
        if load:
            load(None, ["data=shapes", "split=6+4", "log=wandb"])
        else:
            extension.load({"model": "a.pth", "data": str(tmp_path), "out": str(tmp_path / "o"), "log": "wandb"})


def test_a_tracker_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"log.*wandb"):
        config.load(None, ["data=shapes", "split=6+4", "log=wandbb"])


def test_every_tracker_has_its_module_and_extra():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(EXTRAS) <= set(project["optional-dependencies"])


def test_flat():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
