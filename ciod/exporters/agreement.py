"""How far a graph is from its model: scores, and the boxes that anybody would look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ciod.core.boxes import gather_rows

TOLERANCE = 1e-3
"""Of scores; of boxes as a share of their longer side."""
MATTERS = 0.01  # a score below which no box is looked at, as long as there are enough above it
POSITIONS = 100  # with the highest scores, which are looked at in any case
SHORTEST = 16.0  # pixels; smaller boxes count as so large: of them a share would mean less than float32 has


@dataclass(frozen=True)
class Distance:
    """Between two outputs for the same pictures."""

    score: float
    """Largest difference of a score, over every class at every position."""
    box: float
    """Largest difference of a box in pixels of the batch image, where a score matters."""
    share: float
    """The same as a share of the box's longer side."""

    def within(self, tolerance: float) -> bool:
        """Written so that NaN is not."""
        return self.score <= tolerance and self.share <= tolerance

    def larger(self, other: Distance) -> Distance:
        return Distance(max(self.score, other.score), max(self.box, other.box), max(self.share, other.share))


def distance(
    boxes: Tensor, scores: Tensor, true_boxes: Tensor, true_scores: Tensor, looked: int = POSITIONS
) -> Distance:
    """Of a graph's boxes [B, P, 4] xyxy and scores [B, P, C] from those of its model.

    Args:
        looked: number of boxes with the highest scores that matter in any case.
    """
    off = (boxes - true_boxes).abs().amax(2)
    side = (true_boxes[..., 2:] - true_boxes[..., :2]).amax(2).clamp(min=SHORTEST)
    best = torch.maximum(scores, true_scores).amax(2)
    least = best.topk(min(looked, best.shape[1]), dim=1).values[:, -1:].clamp(max=MATTERS)
    matters = ~(best < least)  # NaN matters
    score = (scores - true_scores).abs().max()
    return Distance(score.item(), off[matters].max().item(), (off / side)[matters].max().item())


def distance_of_sets(boxes: Tensor, scores: Tensor, true_boxes: Tensor, true_scores: Tensor) -> Distance:
    """``distance`` of outputs whose positions are chosen by score: rounding may change their order, and which comes
    last; so of scores below ``MATTERS`` only the best quarter is looked at. Each position of one side is compared with
    the nearest of the other."""
    looked = max(1, min(POSITIONS, boxes.shape[1] // 4))
    mine, theirs = (torch.cat([b / SHORTEST, s], 2) for b, s in ((boxes, scores), (true_boxes, true_scores)))
    apart = torch.cdist(mine, theirs, p=float("inf"))
    of_theirs, of_mine = apart.argmin(1), apart.argmin(2)  # the nearest of the other side
    one = distance(gather_rows(boxes, of_theirs), gather_rows(scores, of_theirs), true_boxes, true_scores, looked)
    other = gather_rows(true_boxes, of_mine), gather_rows(true_scores, of_mine)
    return one.larger(distance(boxes, scores, *other, looked))
