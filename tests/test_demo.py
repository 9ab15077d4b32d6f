"""The demo from end to end, made very small; its real figures are in the README."""

from __future__ import annotations

import json

from ciod import demo
from ciod.engine import start


def test_the_demo_compares_three_methods(tmp_path, monkeypatch, capsys):
    small = {"train.epochs": 1, "detector.size": 64, "train.batch": 4}
    monkeypatch.setattr(demo, "SETTINGS", {**demo.SETTINGS, **small})
    monkeypatch.setattr(start, "SHAPES", {"train": 12, "val": 6})
    lanes = []

    def one_after_the_other(words, console):
        for out, seed, device, *methods in words:
            lanes.append(methods)
            demo.lane(demo.Path(out), int(seed), device, methods)

    monkeypatch.setattr(demo, "_side_by_side", one_after_the_other)
    folders = demo.run(tmp_path / "demo", device="cpu")
    assert sorted(m for lane in lanes for m in lane) == sorted(demo.METHODS)
    assert (tmp_path / "demo" / "report.html").is_file()
    results = {m: json.loads((f / "results.json").read_text()) for m, f in folders.items()}
    assert len(results["joint"]["tasks"]) == 1 and len(results["ilyolox"]["tasks"]) == 2
    assert results["ilyolox"]["ap"]["AP"][0] == results["finetune"]["ap"]["AP"][0], "the first task is shared"
    assert results["ilyolox"]["method"]["settings"] == {"guard_iou": 0.5, "nms_iou": 0.65}
    printed = capsys.readouterr().out
    assert all(m in printed for m in demo.METHODS) and "RelGap" in printed


def test_a_lane_that_fails_is_reported(tmp_path):
    import pytest
    from rich.console import Console

    from ciod.errors import CiodError

    with pytest.raises(CiodError, match="a run stopped; its message is above"):
        demo._side_by_side([[str(tmp_path), "0", "no-such-device", "finetune"]], Console(quiet=True))
