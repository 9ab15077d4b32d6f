"""The proposals of the first stage: its best boxes per level after non-maximum suppression, as a padded list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ciod.core import boxes as bx

SMALLEST = 1e-3  # pixels; a proposal with a shorter side is dropped, as in torchvision


@dataclass(frozen=True)
class Limits:
    """How many proposals an image gets; torchvision has other numbers in training, ciod the same."""

    before: int = 1000  # boxes of a level before suppression
    after: int = 1000  # proposals of an image
    score: float = 0.0  # least objectness
    nms_iou: float = 0.7


@torch.no_grad()
def propose(objectness: Tensor, boxes: Tensor, levels: Sequence[int], limits: Limits) -> tuple[Tensor, Tensor]:
    """The proposals [B, K, 4] of each image, the best first, and which of them are real [B, K].

    Args:
        objectness: [B, A] logits.
        boxes: [B, A, 4], within the image.
        levels: number of anchors of each level.
    """
    found, ranks = [], []
    for logit, box in zip(objectness.split(list(levels), 1), boxes.split(list(levels), 1), strict=True):
        value, at = logit.topk(min(limits.before, logit.shape[1]), dim=1)
        near, score = bx.gather_rows(box, at), value.sigmoid()
        sound = (near[..., 2:] - near[..., :2] >= SMALLEST).all(2) & (score >= limits.score)
        found.append(near)
        ranks.append(torch.where(_kept(near, score, sound, limits.nms_iou), score, -1.0))
    rank, at = torch.cat(ranks, 1).topk(min(limits.after, sum(r.shape[1] for r in ranks)), dim=1)
    real = rank >= 0
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0], device=boxes.device)  # padding, with sides that can be divided by
    return torch.where(real[..., None], bx.gather_rows(torch.cat(found, 1), at), unit), real


def _kept(boxes: Tensor, scores: Tensor, sound: Tensor, iou: float) -> Tensor:
    """[B, K] bool: the boxes that no better one suppresses."""
    if not torch.onnx.is_in_onnx_export():
        return bx.nms_keep(boxes, scores, torch.zeros_like(scores, dtype=torch.long), sound, iou)
    kept = NonMaxSuppression.apply(boxes, torch.where(sound, scores, -1.0)[:, None], int(boxes.shape[1]), iou, -0.5)
    mark = torch.zeros_like(scores).index_put((kept[:, 0], kept[:, 2]), torch.ones((), dtype=scores.dtype))
    return mark > 0


class NonMaxSuppression(torch.autograd.Function):
    """The ONNX operator of that name, and the same in torch for tracing the example."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, limit: int, iou: float, floor: float) -> Tensor:
        """boxes [B, P, 4], scores [B, C, P] → [n, 3] int64: image, class and position of the kept boxes."""
        from torchvision.ops import batched_nms

        image, label, place = torch.nonzero(scores > floor, as_tuple=True)
        group = image * scores.shape[1] + label
        kept = batched_nms(boxes[image, place], scores[image, label, place], group, iou)
        return torch.stack([image, label, place], 1)[kept]

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, limit: int, iou: float, floor: float) -> Any:
        most = g.op("Constant", value_t=torch.tensor([limit]))
        limits = [g.op("Constant", value_t=torch.tensor([v], dtype=torch.float32)) for v in (iou, floor)]
        return g.op("NonMaxSuppression", boxes, scores, most, *limits)
