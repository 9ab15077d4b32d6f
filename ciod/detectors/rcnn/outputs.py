"""``Outputs`` of a detector with two stages: a position is a region that the first stage proposes."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ciod.core.types import Outputs
from ciod.detectors.torchvision_models import correct

WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # the deltas of the second stage are corrections times these


def _nothing() -> Tensor:
    return torch.zeros(0)


@dataclass
class RoIOutputs(Outputs):
    """The regions, K of each image, and the first stage.

    ``boxes`` are those of the best class of each region, within the image. ``points``, ``strides`` and ``levels`` are
    empty. Regions differ between teacher and student; ``FasterRCNN.judge`` gives outputs for the regions of the other.
    A anchors: those of the first stage.
    """

    background: Tensor = field(default_factory=_nothing)  # [B, K] logit of no object, next to ``logits``
    class_deltas: Tensor = field(default_factory=_nothing)  # [B, K, C, 4] corrections × 10, 10, 5, 5, of each class
    proposals: Tensor = field(default_factory=_nothing)  # [B, K, 4] the regions, no gradient
    real: Tensor = field(default_factory=_nothing)  # [B, K] bool; False = padding, whose scores are 0
    rpn_logits: Tensor = field(default_factory=_nothing)  # [B, A] objectness of the first stage, before its sigmoid
    rpn_deltas: Tensor = field(default_factory=_nothing)  # [B, A, 4] corrections of the anchors
    rpn_anchors: Tensor = field(default_factory=_nothing)  # [A, 4]
    rpn_levels: tuple[int, ...] = ()  # anchors of each level; their sum is A
    keys: Tensor = field(default_factory=_nothing)  # [B] int64, see ``sampling.keys``

    def probability(self) -> Tensor:
        """[B, K, C]: softmax over background and classes, without that of background."""
        return torch.cat([self.background[..., None], self.logits], 2).softmax(2)[..., 1:]

    def box_of(self, image: int, positions: Tensor, labels: Tensor) -> Tensor:
        """Every class has boxes of its own."""
        if not self.logits.shape[2]:
            return self.boxes[image, positions]
        return within(move(self.proposals[image, positions], self.class_deltas[image, positions, labels]), self.frame)


def move(proposals: Tensor, deltas: Tensor) -> Tensor:
    """Regions [..., 4] and deltas [..., 4] → boxes [..., 4]."""
    return correct(proposals, deltas / deltas.new_tensor(WEIGHTS))


def within(boxes: Tensor, frame: tuple[int, int] | None) -> Tensor:
    """Cut at the border of a batch image of this width and height."""
    assert frame is not None
    x, y = boxes[..., 0::2].clamp(0, frame[0]), boxes[..., 1::2].clamp(0, frame[1])
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)
