"""Small detectors, pictures and boxes for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import nn

from ciod import detectors
from ciod.core.types import Targets
from ciod.detectors.base import Detector
from tests import fixed

SIZE = 64
REASON = "transformers or scipy is absent: pip install 'ciod[detr]'"
NAMES = ("ant", "bee", "cow")


def marked(names: Iterable[str]) -> list:
    """Names of detectors as parameters of a test; those whose packages are absent are skipped, with the reason."""
    return [pytest.param(n, marks=pytest.mark.skipif(absent(n), reason=REASON)) for n in names]


def absent(name: str) -> bool:
    return detectors.lacking(name) is not None


def make(name: str = "yolox-nano", names=NAMES, seed: int = 0) -> Detector:
    torch.manual_seed(seed)
    return detectors.build(names, name=name, size=SIZE)


def pictures(n: int = 2, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, SIZE, SIZE), generator=g, dtype=torch.uint8)


def some_boxes(classes: int = len(NAMES)) -> Targets:
    return fixed.boxes_at_random(1, [3, 1], classes=classes, size=SIZE)


def train_step(detector: Detector, targets: Targets | None = None, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD(detector.parameters(), lr=lr)
    outputs = detector.train()(pictures())
    targets = some_boxes(detector.num_classes) if targets is None else targets
    losses = detector.loss(outputs, targets, detector.match(outputs, targets))
    optimizer.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()


def bn_eval(detector: Detector) -> Detector:
    for m in detector.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    return detector


def silent(detector):
    """Its second stages give every class a probability of 1: which positions are the best then changes no score."""
    with torch.no_grad():
        for branch in detector.branches:
            for block in branch.refiner.cls.blocks:
                block.bias.fill_(40.0)
    return detector


def confident(detector):
    """Its branches have scores as of trained ones, which differ from place to place."""
    with torch.no_grad():
        for branch in detector.branches:
            for level in branch.levels:
                level.obj.bias.fill_(1.0)
                for rows in level.cls.blocks:
                    rows.weight.normal_(std=0.3)
                    rows.bias.fill_(0.5)
    return detector
