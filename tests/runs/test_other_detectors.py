"""Every family of detectors goes through a run of two tasks: train, evaluate, save, load, predict, report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ciod
from ciod.config import load as config
from ciod.data.shapes.scenes import write_shapes
from ciod.runs import run as engine
from ciod.training.progress import Reporter


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=8, val=4, size=64)


@pytest.mark.parametrize("detector", ["gfl-pico", "retinanet-nano", "fcos-nano"])
def test_a_run_of_two_tasks(detector, data, tmp_path):
    words = ["split=6+4", "size=64", "epochs=1", "batch=4", "method=ilyolox", "method.center_score=0", "device=cpu"]
    words += ["method.other_score=0", f"detector={detector}", f"data={data}", f"out={tmp_path / 'run'}"]
    out = engine.train(config.load(None, words), command="a test", reporter=Reporter(quiet=True))
    results = json.loads((out / "results.json").read_text())
    assert [t["steps"] > 0 for t in results["tasks"]] == [True, True] and (out / "report.html").is_file()
    model = ciod.load(out / "task-2" / "model.safetensors")
    assert model.settings["name"] == detector and model.num_classes == 10
    found = model.predict(np.zeros((48, 64, 3), np.uint8), score_threshold=0.0, max_detections=3)
    assert 0 < len(found) <= 3
