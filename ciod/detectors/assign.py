"""Which positions learn which box. SimOTA (YOLOX, Ge et al. 2021, §2.3) for a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

from ciod import boxes as bx
from ciod.types import Matches, Outputs, Targets

_FAR = 1e8  # the published penalty of a candidate that is not both in the box and near its centre
_NEVER = float("inf")


def class_cost(outputs: Outputs, labels: Tensor) -> Tensor:
    """[B, N, P]: BCE of q = sqrt(class × objectness probability) with one-hot labels, summed over classes.

    Closed form: Σ_c BCE = -Σ_c log(1 - q_c) + log(1 - q_y) - log q_y, so memory is B × P × C + B × N × P, never
    B × N × P × C. Logarithms are clamped at -100 as in the published cost.
    """
    q = outputs.scores().sqrt()
    yes, no = q.log().clamp(min=-100), torch.log1p(-q).clamp(min=-100)
    base = no.sum(2)[:, None, :]  # [B, 1, P]
    rows = labels[:, :, None].expand(-1, -1, q.shape[1])
    return (no - yes).transpose(1, 2).gather(1, rows) - base


@torch.no_grad()
def sim_ota(
    outputs: Outputs, targets: Targets, *, radius: float = 2.5, top: int = 10, iou_weight: float = 3
) -> Matches:
    """Dynamic-k assignment.

    Args:
        outputs: with objectness. Not changed; no gradient is taken.
        targets: padded boxes; padding is never assigned.
        radius: a position is near a box when it is within ``radius`` cells of its centre.
        top: k of a box is the rounded-down sum of its ``top`` best IoUs, at least 1.
        iou_weight: weight of -log IoU beside the class cost.

    Returns:
        Matches with at most ``top`` positions a box. Of boxes that claim one position the cheapest gets it.
    """
    boxes, valid = targets.boxes, targets.valid
    x, y = outputs.points[:, 0], outputs.points[:, 1]  # [P]
    left, up, right, down = (boxes[:, :, None, i] for i in range(4))  # [B, N, 1]
    inside = (x > left) & (x < right) & (y > up) & (y < down) & valid[:, :, None]
    reach = radius * outputs.strides
    near = ((x - (left + right) / 2).abs() < reach) & ((y - (up + down) / 2).abs() < reach) & valid[:, :, None]
    candidate = (inside | near).any(1, keepdim=True) & valid[:, :, None]  # [B, N, P]

    overlap = bx.pairwise_iou(boxes, outputs.boxes.detach())
    overlap = overlap.masked_fill(~candidate, 0)
    cost = class_cost(outputs, targets.labels) + iou_weight * -(overlap + 1e-7).log() + _FAR * ~(inside & near)
    cost = torch.where(candidate & cost.isfinite(), cost, _NEVER)

    best = min(top, cost.shape[2])
    k = overlap.topk(best, dim=2).values.sum(2).int().clamp(min=1)  # [B, N]
    price, place = cost.topk(best, dim=2, largest=False)
    taken = (torch.arange(best, device=k.device) < k[:, :, None]) & price.isfinite()
    claims = torch.zeros_like(candidate).scatter(2, place, taken)

    claimants = claims.sum(1)  # [B, P]
    single = claims.int().argmax(1)
    # The published rule: a contested position goes to the box for which it costs least, of all boxes.
    target = torch.where(claimants > 1, cost.argmin(1), single)
    positive = claimants > 0

    achieved = overlap.gather(1, target[:, None]).squeeze(1)
    position, ok = bx.compact(positive, achieved, limit=min(cost.shape[2], top * boxes.shape[1]))
    return Matches(position, target.gather(1, position), achieved.gather(1, position), ok, positive)
