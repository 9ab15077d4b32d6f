"""docs/adding-a-method.md: its code is a method that trains, resumes, is reported and whose mistakes are explained."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from ciod import methods
from ciod.config import load as config
from ciod.core.errors import ConfigError
from ciod.core.run_log import read_metrics
from ciod.data.shapes.scenes import write_shapes
from ciod.runs import run as engine
from ciod.training.hooks import Hooks
from ciod.training.progress import Reporter
from tests.runs.commands import Killed, kill_after

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-method.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the page's file and a data set."""
    root = tmp_path_factory.mktemp("adding")
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert code
    (root / "feature_distill.py").write_text(code[1], encoding="utf-8")
    write_shapes(root / "coco", train=6, val=2, size=64)
    return root


def words(*more: str) -> list[str]:
    """The page's command, made small."""
    command = re.search(r"^ciod train (.*)$", PAGE.read_text(encoding="utf-8"), re.M)
    assert command
    small = ["detector=yolox-pico", "size=64", "epochs=2", "batch=6", "log_every=1", "warmup=0", "device=cpu"]
    return [*command[1].split(), *small, "split=6+4", *more]


def go(*more: str, hooks: Sequence[Hooks] = ()) -> Path:
    return engine.train(config.load(None, words(*more)), command="a test", reporter=Reporter(quiet=True), hooks=hooks)


def test_it_trains_resumes_and_is_reported(place, monkeypatch):
    monkeypatch.chdir(place)
    with pytest.raises(Killed):
        go(hooks=kill_after(1, 0))
    out = go()

    steps = [m["losses"] for m in read_metrics(out) if m["kind"] == "step"]
    assert "distill_feature" not in steps[0] and steps[-1]["distill_feature"] > 0
    results = json.loads((out / "results.json").read_text())
    name = "feature_distill.py:FeatureDistill"
    marks = ["distill_feature"]
    assert results["method"] == {"name": name, "settings": {"weight": 2}, "distillation_terms": marks}
    assert len(results["tasks"]) == 2
    assert "FeatureDistill" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("word", "match"),
    [
        ("method.weight=-1", "method.weight: should be greater than or equal to 0"),
        ("method.wieght=1", r"method.wieght: there is no such setting; did you mean 'method\.weight'"),
        ("method=feature_distill.py:Feature", "has no Method 'Feature'; did you mean 'FeatureDistill'"),
        ("method=feature.py:FeatureDistill", "there is no file feature.py"),
    ],
)
def test_mistakes_are_explained(place, monkeypatch, word, match):
    monkeypatch.chdir(place)
    with pytest.raises(ConfigError, match=match):
        config.load(None, words(word))


def test_a_file_written_for_the_old_places_of_modules_loads(place, monkeypatch):
    """In 0.1 ``Method`` was in ciod.methods.method, and types, boxes and losses lay in ciod itself."""
    monkeypatch.chdir(place)
    text = (place / "feature_distill.py").read_text(encoding="utf-8")
    old = text.replace(
        "from ciod import Method", "from ciod import boxes, losses\nfrom ciod.methods.method import Method"
    )
    old = old.replace("ciod.core.types", "ciod.types")
    (place / "older.py").write_text(
        old.replace("class FeatureDistill", "assert boxes.giou and losses.count\n\n\nclass Older")
    )
    assert methods.find("older.py:Older")().weight == 1
