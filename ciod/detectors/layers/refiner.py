"""A second stage of a branch: it reads the finest map in and around a box, corrects the box, and judges its classes.

A branch reads the maps of a trunk that never learnt its classes, so its boxes are less exact than those of a network
that is trained as a whole, and it takes similar classes for each other. The edges of an object and its small marks are
still in the backbone's finest map. Reading it at detections only, as the second stage of Faster R-CNN does (Ren et al.,
NeurIPS 2015), costs 0.4 % of a small network. What it is worth: docs/results/extend-cards6.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.types import Outputs
from ciod.detectors.layers.blocks import ConvBN
from ciod.detectors.layers.class_layers import ClassLinear
from ciod.detectors.layers.modules import bias_of
from ciod.detectors.layers.sampling import samples

WIDTH = 8  # channels that are read at each point
SIDE = 7  # points per side
AROUND = 1.25  # of the box, so that its edges are inside
HIDDEN = 16
FIRST_HIDDEN = 32  # of models whose file only says that there is a second stage
STEP = 0.1  # unit of the corrections, in sides of the box
CLASS_POWER = 0.5  # of the probability by which a class score is multiplied; 1 is worse where few images taught it
CANDIDATES = 100  # best positions of a branch in an image that are corrected
FADE = 0.1  # whole corrections for scores this share above that of the last of them,
FLOOR = 1e-3  # and this much more: far below it rounding would decide
MOVES, MOVED, GROWN = 64, 0.06, 0.08  # of boxes in training: kinds, and standard deviations in sides, and of log sides
WEIGHT = 0.1  # of the loss: only the refiner learns from it, and its gradients should not dominate when all are clipped
SUREST = -1e-7  # log of a probability, so that its logit is finite


class Refiner(nn.Module):
    """Corrections of boxes, which are 0 before training, and of the scores of several classes.

    Args:
        channels: those of the map.
        stride: pixels per cell of the map.
        hidden: units of its hidden layer.
        blocks: sizes of the blocks of class rows; (): only boxes are corrected.
        boxes: False: boxes stay as they are.
        side: points per side of a box.
        candidates: best positions in an image that are corrected.
    """

    change: nn.Linear | None

    def __init__(
        self,
        channels: int,
        stride: int,
        hidden: int = HIDDEN,
        blocks: Sequence[int] = (),
        *,
        boxes: bool = True,
        side: int = SIDE,
        candidates: int = CANDIDATES,
    ):
        super().__init__()
        self.stride, self.side, self.candidates = stride, side, candidates
        self.read = ConvBN(channels, WIDTH, 1)
        self.hidden = nn.Linear(WIDTH * side * side, hidden)
        self.change = nn.Linear(hidden, 4) if boxes else None
        self.cls = ClassLinear(hidden, 0)
        for rows in blocks:
            self.cls.grow(rows)
        for p in self.cls.parameters():
            nn.init.zeros_(p)
        size = torch.tensor([MOVED, MOVED, GROWN, GROWN])
        moves = torch.randn(MOVES, 4, generator=torch.Generator().manual_seed(0)) * size
        self.register_buffer("moves", moves, persistent=False)
        if self.change is not None:
            nn.init.zeros_(self.change.weight)
            nn.init.zeros_(bias_of(self.change))

    moves: Tensor

    def forward(self, near: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Corrected boxes [B, n, 4], and class logits [B, n, k], k 0 if only boxes are corrected. The given boxes get
        no gradient.

        Args:
            near: [B, WIDTH, h, w], of ``read``.
            boxes: [B, n, 4] xyxy in pixels of the batch image.
        """
        with torch.autocast(near.device.type, enabled=False):
            boxes = boxes.detach()
            x = samples(near.float(), boxes, self.stride, self.side, AROUND)
            x = nn.functional.silu(self.hidden(x.permute(0, 2, 3, 1).reshape(*boxes.shape[:2], -1)))
            return boxes if self.change is None else moved(boxes, STEP * self.change(x)), self.cls(x)

    def answer(self, outputs: Outputs, early: Tensor) -> Outputs:
        """The positions of a branch, the best of them corrected; ``early``: the map that ``read`` takes.

        Corrections fade out towards the last of the best. Else rounding would decide about whole corrections where
        scores are nearly equal, and an exported graph would differ from the model.
        """
        place, share = chosen(outputs.scores().amax(2), self.candidates)
        of_boxes = torch.stack([place] * 4, -1)
        before = outputs.boxes.gather(1, of_boxes)
        boxes, class_logits = self(self.read(early), before)
        if self.change is not None:
            outputs = replace(outputs, boxes=outputs.boxes.scatter(1, of_boxes, before + share * (boxes - before)))
        if not class_logits.shape[2]:
            return outputs
        of_classes = place[..., None].expand_as(class_logits)
        logits = lowered(outputs.logits.gather(1, of_classes), log_factor(class_logits, share))
        return replace(outputs, logits=outputs.logits.scatter(1, of_classes, logits))

    def loss(
        self,
        near: Tensor,
        boxes: Tensor,
        targets: Tensor,
        position: Tensor,
        counted: Tensor,
        channel: Tensor,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """``WEIGHT`` × the distance of the corrected box's edges from those of the object, in its sides, 1 - IoU, and
        the binary cross-entropy of the classes: mean over counted boxes, and over the same ones moved a little. How a
        box is moved depends only on its position, so that a resumed run and one on several processes see the same.

        Args:
            near: see ``forward``.
            boxes, targets: [B, K, 4].
            position: [B, K] int64 of the boxes.
            counted: [B, K] bool.
            channel: [B, K] int64, the class row of the object; k: it has none.
            class_weights: [B, K, k] weights of the classes; None: 1.
        """
        boxes = torch.cat([boxes, moved(boxes.detach(), self.moves[position % MOVES])], 1)
        targets, twice = torch.cat([targets, targets], 1), torch.cat([counted, counted], 1)
        found, class_logits = self(near, boxes)
        each = torch.zeros_like(found[..., 0])
        if self.change is not None:
            side = (targets[..., 2:] - targets[..., :2]).clamp(min=1)
            apart = ((found - targets).abs() / torch.cat([side, side], -1)).sum(-1)
            each = apart + 1 - bx.iou(found, targets)
        if classes := class_logits.shape[2]:
            right = class_logits.new_zeros(*class_logits.shape[:2], classes + 1)
            right = right.scatter(2, torch.cat([channel, channel], 1)[..., None], 1)[..., :classes]
            wrong = L.bce(class_logits, right)
            if class_weights is not None:
                wrong = wrong * torch.cat([class_weights, class_weights], 1)
            each = each + wrong.sum(-1)
        return WEIGHT * L.masked_sum(each, twice) / L.count(twice)


def corrected(refiner: Refiner | None, part: Outputs, early: Tensor, *, training: bool, learns: bool = True) -> Outputs:
    """The positions of a branch. Its second stage, if it has one, corrects them in eval mode. In train mode it does
    not; the outputs then carry the map from which it learns.

    Args:
        early: [B, F, h, w], the map that ``Refiner.read`` takes.
        learns: whether it is trained; in train mode only.
    """
    if refiner is None:
        return part
    if not training:
        return refiner.answer(part, early)
    return replace(part, near=refiner.read(early)) if learns else part


def chosen(best: Tensor, candidates: int = CANDIDATES) -> tuple[Tensor, Tensor]:
    """From the best score of each position [..., P] the k positions that are corrected, [..., k] int64, and the share
    of each correction, [..., k, 1]."""
    scores, place = best.topk(min(candidates, best.shape[-1]), -1)
    last = scores[..., -1:]
    share = ((scores - last) / (FADE * last + FLOOR)).clamp(0, 1)
    return place, share[..., None]


def log_factor(class_logits: Tensor, share: Tensor) -> Tensor:
    """Class logits of the second stage [..., k] → the logarithm of what the first stage's probability is multiplied
    by; ``share``: [..., 1] of the correction."""
    return CLASS_POWER * share * nn.functional.logsigmoid(class_logits)


def lowered(logits: Tensor, log_factor: Tensor) -> Tensor:
    """Logits of probabilities that are multiplied by ``exp(log_factor)``, at most 1."""
    log = (nn.functional.logsigmoid(logits) + log_factor).clamp(max=SUREST)
    return torch.where(log_factor < 0, log - torch.log1p(-log.exp()), logits)


def moved(boxes: Tensor, change: Tensor) -> Tensor:
    """Boxes [..., 4] shifted by the first two columns of ``change`` [..., 4], in sides of the box, and resized by the
    exponentials of the others, which are limited to -1..1."""
    side = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 + change[..., :2] * side
    half = side * change[..., 2:].clamp(-1, 1).exp() / 2
    return torch.cat([centre - half, centre + half], -1)
