"""``ciod list FILE`` where a file says little."""

from __future__ import annotations

from pathlib import Path

from ciod.detectors.files import weights
from ciod.listing import model_files


def test_a_checkpoint_of_mmdetection_without_classes(monkeypatch):
    parsed = weights.Parsed(Path("a.pth"), "mmdet", {}, {})
    monkeypatch.setattr(weights, "parse", lambda _: parsed)
    lines = model_files.checkpoint(Path("a.pth")).lines
    assert "a checkpoint of MMDetection (docs/mmdetection.md)" in str(lines[0])
    assert str(lines[0]).endswith("classes not named")
