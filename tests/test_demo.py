"""The demo from end to end, made very small; its real figures are in the README."""

from __future__ import annotations

import json

import pytest

from ciod import demo
from ciod.comparison import schedule, worker
from ciod.core.errors import CiodError
from ciod.runs import start


def small(monkeypatch, run):
    tiny = {"train.epochs": 1, "train.joint_epochs": 2, "detector.size": 64, "train.batch": 4}
    monkeypatch.setattr(demo, "SETTINGS", {**demo.SETTINGS, **tiny})
    monkeypatch.setattr(start, "SHAPES", {"train": 12, "val": 6})
    monkeypatch.setattr(schedule, "run", run)


def test_the_demo_compares_three_methods(tmp_path, monkeypatch, capsys):
    trained = []

    def one_after_the_other(cells, **_):
        for cell in cells:
            trained.append(cell.name)
            worker.work(cell.job())
        return {}

    small(monkeypatch, one_after_the_other)
    folders = demo.run(tmp_path / "demo", device="cpu")
    assert trained == ["first-seed0", "joint-seed0", "finetune-seed0", "ilyolox-seed0"]
    assert list(folders) == list(demo.METHODS)
    assert (tmp_path / "demo" / "report.html").is_file()
    results = {m: json.loads((f / "results.json").read_text()) for m, f in folders.items()}
    assert len(results["joint"]["tasks"]) == 1 and len(results["ilyolox"]["tasks"]) == 2
    assert results["ilyolox"]["ap"]["AP"][0] == results["finetune"]["ap"]["AP"][0], "the first task is shared"
    assert results["ilyolox"]["method"]["settings"] == {"guard_iou": 0.5}
    assert results["ilyolox"]["upper_bounds"] == [None, results["joint"]["tasks"][0]["all"]]
    printed = capsys.readouterr().out
    assert all(m in printed for m in demo.METHODS) and "RelGap" in printed


def test_a_run_that_fails_is_reported(tmp_path, monkeypatch):
    small(monkeypatch, lambda cells, **_: {cells[0].name: "no room"})
    with pytest.raises(CiodError, match=r"a run failed \(see above\)"):
        demo.run(tmp_path / "demo", device="cpu")
