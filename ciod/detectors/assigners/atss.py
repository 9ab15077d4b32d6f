"""Matching of positions and boxes for a batch at once: ATSS (GFL). For SimOTA (YOLOX) see ``sim_ota``."""

from __future__ import annotations

import torch

from ciod.core import boxes as bx
from ciod.core.types import Matches, Outputs, Targets


@torch.no_grad()
def atss(outputs: Outputs, targets: Targets, *, k: int = 9, scale: float = 8) -> Matches:
    """Adaptive training sample selection (Zhang et al., CVPR 2020, arXiv 1912.02424, algorithm 1).

    Candidates of a box are the ``k`` nearest positions of every level. A candidate is matched if its anchor overlaps
    the box by at least the mean plus the standard deviation over the candidates, and if its point is inside the box.

    Args:
        outputs: with ``levels``. Anchors are squares of ``scale`` strides around the points.
        targets: padded boxes; padding is never assigned.

    Returns:
        Matches. If several boxes claim a position, the one with the largest overlap with its anchor gets it.
    """
    boxes, points = targets.boxes, outputs.points
    reach = outputs.strides[:, None] * scale / 2
    overlap = bx.pairwise_iou(boxes, torch.cat([points - reach, points + reach], 1))  # [B, N, P]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    distance = (centre[:, :, None] - points).square().sum(3).sqrt()
    nearest, first = [], 0
    for n in outputs.levels or (len(points),):
        nearest.append(distance[..., first : first + n].topk(min(k, n), largest=False).indices + first)
        first += n
    candidate = torch.cat(nearest, 2)  # [B, N, M]
    reached = overlap.gather(2, candidate)
    threshold = reached.mean(2) + (reached.std(2) if candidate.shape[2] > 1 else 0)
    x, y = points[candidate].unbind(3)
    left, up, right, down = (boxes[:, :, None, i] for i in range(4))
    inside = torch.stack([x - left, y - up, right - x, down - y]).amin(0) > 0.01
    chosen = (reached >= threshold[..., None]) & inside & targets.valid[:, :, None]

    claim = torch.full_like(overlap, -1).scatter(2, candidate, reached.masked_fill(~chosen, -1))
    best, target = claim.max(1)  # [B, P]
    positive = best >= 0
    position, ok = bx.compact(positive, best, limit=candidate.shape[1] * candidate.shape[2])
    target = target.gather(1, position)
    achieved = bx.iou(bx.gather_rows(outputs.boxes, position), bx.gather_rows(boxes, target))
    return Matches(position, target, achieved, ok, positive)
