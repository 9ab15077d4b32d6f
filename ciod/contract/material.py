"""Inputs of the checks: small pictures and boxes, the same each time, and the detector that is checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ciod import detectors
from ciod.core.types import Matches, Outputs, Targets
from ciod.core.user_code import overrides, where
from ciod.detectors.base import Detector

NAMES = ("ant", "bee", "cow")
FIELDS = ("logits", "boxes", "points", "strides", "objectness", "distribution", "anchors")


@dataclass(frozen=True)
class Subject:
    """A detector by name, at a size of the pictures in pixels."""

    name: str
    size: int = 64

    def make(self, names: Sequence[str] = NAMES, seed: int = 0) -> Detector:
        """A new detector with random weights, the same for the same seed."""
        torch.manual_seed(seed)
        return detectors.build(names, name=self.name, size=self.size, backbone_weights=None)

    @property
    def query(self) -> bool:
        return "query" in detectors.traits(self.name)

    @property
    def regions(self) -> bool:
        """Whether positions are regions, of which each class has boxes of its own and a share of one softmax."""
        return "rois" in detectors.traits(self.name)

    def at(self, function: str) -> str:
        """A function of the class, with file and line; ``respond`` and ``losses`` instead of ``forward`` and ``loss``,
        which call them."""
        cls, called = detectors.find(self.name), {"forward": "respond", "loss": "losses"}.get(function, function)
        return where(cls, called if overrides(cls, called) else function)

    def pictures(self, n: int = 2, seed: int = 0) -> Tensor:
        """[n, 3, size, size] uint8 at random."""
        g = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (n, 3, self.size, self.size), generator=g, dtype=torch.uint8)

    def boxes(self, counts: Sequence[int], classes: int = len(NAMES), seed: int = 1) -> Targets:
        """``counts[i]`` boxes in picture i, from an eighth to a half of its side."""
        g = torch.Generator().manual_seed(seed)
        boxes, labels = [], []
        for n in counts:
            side = self.size * (1 / 8 + torch.rand(n, 2, generator=g) * 3 / 8)
            corner = torch.rand(n, 2, generator=g) * (self.size - side)
            boxes.append(torch.cat([corner, corner + side], 1))
            labels.append(torch.randint(0, max(classes, 1), (n,), generator=g))
        return Targets.pad(boxes, labels)

    def matched(self, detector: Detector, counts: Sequence[int] = (3, 1)) -> tuple[Outputs, Targets, Matches]:
        """Outputs of pictures, their boxes, and the matches of both."""
        outputs = detector(self.pictures(len(counts)))
        targets = self.boxes(counts, detector.num_classes)
        return outputs, targets, detector.match(outputs, targets)


def lively(detector: Detector) -> Detector:
    """Gives batch normalisation the statistics of a trained network, so that features of pictures differ."""
    g = torch.Generator().manual_seed(7)
    for m in detector.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None and m.running_var is not None:
            m.running_mean.copy_(torch.randn(m.running_mean.shape, generator=g) * 0.1)
            m.running_var.copy_(torch.rand(m.running_var.shape, generator=g) * 1.5 + 0.5)
    return detector


def still(detector: Detector) -> Detector:
    """Batch normalisation in eval mode, the rest as it is."""
    for m in detector.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
    return detector


def summed(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def step(subject: Subject, detector: Detector, rate: float = 0.1) -> None:
    """One step of SGD."""
    outputs, targets, matches = subject.matched(detector.train())
    summed(detector.loss(outputs, targets, matches)).backward()
    with torch.no_grad():
        for p in detector.parameters():
            if p.grad is not None:
                p -= rate * p.grad
                p.grad = None


def different(a: Outputs, b: Outputs, *, but: Sequence[str] = ()) -> list[str]:
    """The fields in which outputs differ in any bit."""
    found = []
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        same = x is y if x is None or y is None else torch.equal(x, y)
        if name not in but and not same:
            found.append(name)
    return found


class Ranks:
    """Two processes in one: what each of them sums over all ranks is noted first, then added to the other's."""

    def __init__(self) -> None:
        self.said: list[list[Tensor]] = [[], []]
        self.rank, self.knows, self.at = 0, False, 0

    @contextmanager
    def as_rank(self, rank: int, *, knows: bool) -> Iterator[None]:
        """``knows``: what the other rank says is known."""
        self.rank, self.knows, self.at = rank, knows, 0
        stand_ins: dict[str, Any] = {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "get_world_size": lambda *_: 2,
            "get_rank": lambda *_: rank,
            "all_reduce": self._all_reduce,
        }
        with mock.patch.multiple(torch.distributed, **stand_ins):
            yield

    def _all_reduce(self, tensor: Tensor, *_: Any, **__: Any) -> None:
        if not self.knows:
            self.said[self.rank].append(tensor.clone())
        elif self.at < len(self.said[1 - self.rank]):
            tensor += self.said[1 - self.rank][self.at]
        self.at += 1
