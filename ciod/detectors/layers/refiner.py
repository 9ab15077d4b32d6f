"""A second stage for the boxes of a branch: it reads the finest map in and around a box, and corrects the box.

A branch reads the maps of a trunk that never learnt its classes, so its boxes are less exact than those of a network
that is trained as a whole. The edges of an object are still in the backbone's finest map. Reading it at detections
only, as the second stage of Faster R-CNN does (Ren et al., NeurIPS 2015), costs 0.4 % of a small network.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.types import Outputs
from ciod.detectors.layers.blocks import ConvBN
from ciod.detectors.layers.modules import bias_of
from ciod.detectors.layers.sampling import samples

WIDTH = 8  # channels that are read at each point
SIDE = 7  # points per side
AROUND = 1.25  # of the box, so that its edges are inside
HIDDEN = 16
FIRST_HIDDEN = 32  # of models whose file only says that there is a second stage
STEP = 0.1  # unit of the corrections, in sides of the box
CANDIDATES = 100  # best positions of a branch in an image whose boxes are corrected
FADE = 0.1  # whole corrections for scores this share above that of the last of them
MOVES, MOVED, GROWN = 64, 0.06, 0.08  # of boxes in training: kinds, and standard deviations in sides, and of log sides
WEIGHT = 0.1  # of the loss: only the refiner learns from it, and its gradients should not dominate when all are clipped


class BoxRefiner(nn.Module):
    """Corrections of boxes. Before training they are 0.

    Args:
        channels: those of the map.
        stride: pixels per cell of the map.
        hidden: units of its hidden layer.
    """

    def __init__(self, channels: int, stride: int, hidden: int = HIDDEN):
        super().__init__()
        self.stride = stride
        self.read = ConvBN(channels, WIDTH, 1)
        self.hidden = nn.Linear(WIDTH * SIDE * SIDE, hidden)
        self.change = nn.Linear(hidden, 4)
        size = torch.tensor([MOVED, MOVED, GROWN, GROWN])
        moves = torch.randn(MOVES, 4, generator=torch.Generator().manual_seed(0)) * size
        self.register_buffer("moves", moves, persistent=False)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(bias_of(self.change))

    moves: Tensor

    def forward(self, near: Tensor, boxes: Tensor) -> Tensor:
        """Corrected boxes. The given ones get no gradient.

        Args:
            near: [B, WIDTH, h, w], of ``read``.
            boxes: [B, n, 4] xyxy in pixels of the batch image.
        """
        with torch.autocast(near.device.type, enabled=False):
            boxes = boxes.detach()
            x = samples(near.float(), boxes, self.stride, SIDE, AROUND)
            x = x.permute(0, 2, 3, 1).reshape(*boxes.shape[:2], -1)
            return moved(boxes, STEP * self.change(nn.functional.silu(self.hidden(x))))

    def best(self, near: Tensor, boxes: Tensor, best: Tensor) -> Tensor:
        """Boxes [B, P, 4] with those of the best positions corrected; ``best``: [B, P] their best scores.

        The correction fades out towards the last of them. Else rounding would decide about whole corrections where
        scores are nearly equal, and an exported graph would differ from the model.
        """
        place, share = chosen(best)
        before = boxes.gather(1, place)
        return boxes.scatter(1, place, before + share * (self(near, before) - before))

    def answer(self, outputs: Outputs, early: Tensor) -> Outputs:
        """The positions of a branch with corrected boxes; ``early``: the map that ``read`` takes."""
        return replace(outputs, boxes=self.best(self.read(early), outputs.boxes, outputs.scores().amax(2)))

    def loss(self, near: Tensor, boxes: Tensor, targets: Tensor, position: Tensor, counted: Tensor) -> Tensor:
        """``WEIGHT`` × the distance of the corrected box's edges from those of the object, in its sides, and 1 - IoU:
        mean over counted boxes, and over the same ones moved a little. How a box is moved depends only on its position,
        so that a resumed run and one on several processes see the same.

        Args:
            near: see ``forward``.
            boxes, targets: [B, K, 4].
            position: [B, K] int64 of the boxes.
            counted: [B, K] bool.
        """
        boxes = torch.cat([boxes, moved(boxes.detach(), self.moves[position % MOVES])], 1)
        targets, twice = torch.cat([targets, targets], 1), torch.cat([counted, counted], 1)
        found = self(near, boxes)
        side = (targets[..., 2:] - targets[..., :2]).clamp(min=1)
        apart = ((found - targets).abs() / torch.cat([side, side], -1)).sum(-1)
        return WEIGHT * L.masked_sum(apart + 1 - bx.iou(found, targets), twice) / L.count(twice)


def chosen(best: Tensor) -> tuple[Tensor, Tensor]:
    """From scores [..., P] the k positions whose boxes are corrected, [..., k, 4] int64 as ``gather`` takes them, and
    the share of each correction, [..., k, 1]."""
    scores, place = best.topk(min(CANDIDATES, best.shape[-1]), -1)
    share = ((scores / scores[..., -1:].clamp(min=1e-30) - 1) / FADE).clamp(0, 1)
    return torch.stack([place] * 4, -1), share[..., None]


def moved(boxes: Tensor, change: Tensor) -> Tensor:
    """Boxes [..., 4] shifted by the first two columns of ``change`` [..., 4], in sides of the box, and resized by the
    exponentials of the others, which are limited to -1..1."""
    side = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 + change[..., :2] * side
    half = side * change[..., 2:].clamp(-1, 1).exp() / 2
    return torch.cat([centre - half, centre + half], -1)
