"""Small detectors whose outputs differ from place to place, without training."""

from __future__ import annotations

import torch

from ciod import detectors
from ciod.detectors.base import Detector

NAMES = ("cat", "dog", "owl")
SIZE = 64


def settled(name: str = "yolox-pico", names=NAMES) -> Detector:
    """Random weights with the statistics of some noise, without which outputs explode, and scores that differ."""
    torch.manual_seed(0)
    detector = detectors.build(names[:-1], name=name, size=SIZE)
    detector.grow(names[-1:])  # two blocks of classes, as an extended model has
    with torch.no_grad():
        for seed in range(12):
            detector.train()(pictures(4, seed))
    for layer in detector.class_layers():
        torch.nn.init.normal_(layer.tensor)
    return detector.eval()


def pictures(n: int, seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, *size), generator=torch.Generator().manual_seed(seed)).float()
