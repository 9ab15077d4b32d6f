"""Every method takes a step of a second task on every head: the table of docs/mmdetection.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ciod import methods
from tests import fixed
from tests.methods.test_contract import NEW, OLD, SIZE, step
from tests.mmdet import common

TRAITS = {"dense", "features"}  # of every head
LEARNERS = [n for n in methods.available() if methods.find(n)().requires() <= TRAITS]


@pytest.mark.parametrize("head", common.HEADS)
def test_a_step_of_every_method(head):
    ran = []
    for name in LEARNERS:
        cls = methods.find(name)
        method = cls()
        detector = common.make(head, OLD, size=SIZE)
        assert method.requires() <= detector.traits, name
        teacher = detector.frozen() if cls.uses_teacher else None
        detector.grow(NEW)
        method.attach(detector, detector, teacher)
        method.begin_task(fixed.task(OLD, NEW))
        before = {k: v.clone() for k, v in detector.state_dict().items()}
        losses = step(method, detector, torch.optim.SGD(detector.parameters(), lr=1e-3), 0, len(OLD + NEW))
        assert all(v.shape == () and v.isfinite() for v in losses.values()), name
        after = detector.state_dict()
        assert any(not torch.equal(v, after[k]) for k, v in before.items()), name
        assert not any("teacher" in n for n, _ in detector.named_modules())
        ran.append(name)
    assert ran == LEARNERS


def test_the_page_has_these_heads_and_methods():
    text = (Path(__file__).parents[2] / "docs" / "mmdetection.md").read_text(encoding="utf-8")
    for name in LEARNERS:
        assert f"`{name}`" in text, name
    for head in ("YOLOXHead", "GFLHead", "RetinaHead", "FCOSHead", "ATSSHead", "VFNetHead", "TOODHead", "PAAHead"):
        assert f"`{head}`" in text
