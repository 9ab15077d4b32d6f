"""How far a graph is from its model: scores, and the boxes that anybody would look at."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ciod.core.boxes import gather_rows

TOLERANCE = 1e-3
"""Largest difference of scores, and of boxes as a fraction of their longer side."""
MATTERS = 0.01  # a score below which no box is looked at, as long as there are enough above it
POSITIONS = 100  # with the highest scores, which are looked at in any case
SPARED = 20  # of positions that are chosen by score one in so many may be another: at the end rounding chooses
SHORTEST = 16.0  # pixels; smaller boxes count as so large: of them a share would mean less than float32 has


@dataclass(frozen=True)
class Distance:
    """Between two outputs for the same pictures."""

    score: float
    """Largest difference of a score, over every class at every position."""
    box: float
    """Largest difference of a box in pixels of the batch image, where a score matters."""
    share: float
    """The same as a fraction of the box's longer side."""

    def within(self, tolerance: float) -> bool:
        """Written so that NaN is not."""
        return self.score <= tolerance and self.share <= tolerance

    def larger(self, other: Distance) -> Distance:
        return Distance(max(self.score, other.score), max(self.box, other.box), max(self.share, other.share))


def distance(
    boxes: Tensor,
    scores: Tensor,
    true_boxes: Tensor,
    true_scores: Tensor,
    looked: int = POSITIONS,
    spared: int | None = None,
) -> Distance:
    """Distance of a graph's boxes [B, P, 4] xyxy and scores [B, P, C] from those of its model.

    Args:
        looked: number of boxes with the highest scores that matter in any case.
        spared: number of boxes of an image that may be wrong among those that do not matter; None: all of them.
    """
    off = (boxes - true_boxes).abs().amax(2)
    side = (true_boxes[..., 2:] - true_boxes[..., :2]).amax(2).clamp(min=SHORTEST)
    best = torch.maximum(scores, true_scores).amax(2)
    least = best.topk(min(looked, best.shape[1]), dim=1).values[:, -1:].clamp(max=MATTERS)
    matters = ~(best < least)  # NaN matters
    if spared is not None:
        matters = matters | ~(off / side >= _largest(off / side, ~matters, spared))  # the same for NaN
    score = (scores - true_scores).abs().max()
    return Distance(score.item(), off[matters].max().item(), (off / side)[matters].max().item())


def _largest(values: Tensor, mask: Tensor, count: int) -> Tensor:
    """[B, 1]: of the values [B, P] under ``mask`` the ``count``-th largest."""
    return values.masked_fill(~mask, 0.0).topk(min(count, values.shape[1]), dim=1).values[:, -1:]


def distance_of_sets(boxes: Tensor, scores: Tensor, true_boxes: Tensor, true_scores: Tensor) -> Distance:
    """``distance`` of outputs whose positions are chosen by score: rounding may change their order, and which comes
    last. So each position of one side is compared with the nearest of the other, and one in ``SPARED`` need have none
    there, if its score is below ``MATTERS`` and not in the best quarter."""
    positions = boxes.shape[1]
    looked, spared = max(1, min(POSITIONS, positions // 4)), max(1, positions // SPARED)
    mine, theirs = (torch.cat([b / SHORTEST, s], 2) for b, s in ((boxes, scores), (true_boxes, true_scores)))
    apart = torch.cdist(mine, theirs, p=float("inf"))
    of_theirs, of_mine = apart.argmin(1), apart.argmin(2)  # the nearest of the other side
    chosen = gather_rows(boxes, of_theirs), gather_rows(scores, of_theirs)
    one = distance(*chosen, true_boxes, true_scores, looked, spared)
    other = gather_rows(true_boxes, of_mine), gather_rows(true_scores, of_mine)
    return one.larger(distance(boxes, scores, *other, looked, spared))
