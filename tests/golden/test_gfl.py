"""MMDetection's GFL head against ours on its own outputs: losses and gradients, which fix the assignment too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ciod.detectors.gfl import GFL
from tests.golden import heads

NAMES = tuple(f"class {i}" for i in range(10))


@pytest.mark.parametrize("file", heads.files("gfl"))
def test_agrees_with_the_published_head(file):
    case = np.load(file)
    detector = GFL(NAMES, name="gfl-pico", size=128)
    outputs, maps = heads.read(case, "student", grad=True)
    targets = heads.targets(case)
    losses = detector.loss(outputs, targets, detector.match(outputs, targets))
    for ours, theirs in {"cls": "loss_cls", "box": "loss_bbox", "dfl": "loss_dfl"}.items():
        assert losses[ours].item() == pytest.approx(float(case[f"loss.{theirs}"]), rel=1e-4), ours
    torch.stack(list(losses.values())).sum().backward()
    heads.assert_gradients(case, maps)


@pytest.mark.parametrize("file", heads.files("erd"))
def test_loss_of_only_new_classes(file):
    """ERD's detection losses act on the channels of the new classes and weigh boxes by their probabilities."""
    case = np.load(file)
    detector = GFL(NAMES, name="gfl-pico", size=128)
    outputs, _ = heads.read(case, "student")
    targets = heads.targets(case)
    losses = detector.loss(outputs, targets, detector.match(outputs, targets), channels=torch.arange(len(NAMES)) >= 6)
    for ours, theirs in {"cls": "loss_cls", "box": "loss_bbox", "dfl": "loss_dfl"}.items():
        assert losses[ours].item() == pytest.approx(float(case[f"loss.{theirs}"]), rel=1e-4), ours
