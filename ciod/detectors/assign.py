"""Which positions learn which box, for a whole batch at once: SimOTA (YOLOX), ATSS (GFL)."""

from __future__ import annotations

import torch
from torch import Tensor

from ciod import boxes as bx
from ciod.types import Matches, Outputs, Targets

_FAR = 1e8  # the published penalty of a candidate that is not both in the box and near its centre
_NEVER = float("inf")


def class_cost(q: Tensor, labels: Tensor) -> Tensor:
    """[B, N, P]: BCE of ``q`` [B, P, C], the root of class × objectness probability, with one-hot labels.

    Summed over C, in closed form: Σ_c BCE = -Σ_c log(1 - q_c) + log(1 - q_y) - log q_y, so memory is B × P × C +
    B × N × P, never B × N × P × C. Logarithms are clamped at -100 as in the published cost.
    """
    no = (1 - q).log_().clamp_(min=-100)  # log1p is seven times slower; its last digits are lost in the sum
    base = no.sum(2)[:, None, :]  # [B, 1, P]
    rest = no.sub_(q.log().clamp_(min=-100)).transpose(1, 2)
    return rest.gather(1, labels[:, :, None].expand(-1, -1, q.shape[1])).sub_(base)


@torch.no_grad()
def sim_ota(
    outputs: Outputs, targets: Targets, *, radius: float = 2.5, top: int = 10, iou_weight: float = 3
) -> Matches:
    """Dynamic-k assignment (YOLOX, Ge et al. 2021, arXiv 2107.08430, §2.3).

    Args:
        outputs: with objectness. Not changed; no gradient is taken.
        targets: padded boxes; padding is never assigned.
        radius: a position is near a box when it is within ``radius`` cells of its centre.
        top: k of a box is the rounded-down sum of its ``top`` best IoUs, at least 1.
        iou_weight: weight of -log IoU beside the class cost.

    Returns:
        Matches with at most ``top`` positions a box. Of boxes that claim one position the cheapest gets it.
    """
    inside, near = _reach(outputs, targets, radius)
    candidate = (inside | near).any(1)  # [B, P]
    prime = inside & near
    place = None
    if candidate.device.type == "cpu":
        # Most positions are nowhere near a box. On a CPU, where a length is free to read, they are left out.
        place, some = bx.compact(candidate, candidate.float(), candidate.shape[1])
        prime = prime.gather(2, place[:, None, :].expand(-1, prime.shape[1], -1))
    else:
        some = candidate
    ok = some[:, None, :] & targets.valid[:, :, None]  # [B, N, P'], as everything below

    overlap = bx.pairwise_iou(targets.boxes, _at(outputs.boxes.detach(), place)).masked_fill_(~ok, 0)
    cost = class_cost(_at(outputs.scores(), place).sqrt(), targets.labels)
    cost.sub_((overlap + 1e-7).log_(), alpha=iou_weight).add_(~prime, alpha=_FAR)
    cost.masked_fill_(~ok | ~cost.isfinite(), _NEVER)
    positive, target = _cheapest(overlap, cost, top)

    achieved = overlap.gather(1, target[:, None]).squeeze(1)
    row, valid = bx.compact(positive, achieved, limit=min(cost.shape[2], top * cost.shape[1]))
    position = row if place is None else place.gather(1, row)
    taken = bx.marked(position, valid, candidate.shape[1])
    return Matches(position, target.gather(1, row), achieved.gather(1, row), valid, taken)


def _reach(outputs: Outputs, targets: Targets, radius: float) -> tuple[Tensor, Tensor]:
    """[B, N, P] bool: positions inside a box, and positions within ``radius`` cells of its centre."""
    x, y = outputs.points[:, 0], outputs.points[:, 1]  # [P]
    left, up, right, down = (targets.boxes[:, :, None, i] for i in range(4))  # [B, N, 1]
    valid = targets.valid[:, :, None]
    inside = ((x > left) & (x < right)).logical_and_(y > up).logical_and_(y < down).logical_and_(valid)
    far = radius * outputs.strides
    middle, centre = (left + right) / 2, (up + down) / 2
    near = ((x + far > middle) & (x - far < middle)).logical_and_(y + far > centre).logical_and_(y - far < centre)
    return inside, near.logical_and_(valid)


def _at(values: Tensor, place: Tensor | None) -> Tensor:
    return values if place is None else bx.gather_rows(values, place)


def _cheapest(overlap: Tensor, cost: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Which positions are taken [B, P'], and the box each goes to [B, P']."""
    best = min(top, cost.shape[2])
    k = overlap.topk(best, dim=2).values.sum(2).int().clamp(min=1)  # [B, N]
    price, place = cost.topk(best, dim=2, largest=False)
    taken = ((torch.arange(best, device=k.device) < k[:, :, None]) & price.isfinite()).flatten(1).long()
    box = torch.arange(cost.shape[1], device=k.device).repeat_interleave(best).expand_as(taken)
    place = place.flatten(1)
    claimants = cost.new_zeros(cost.shape[0], cost.shape[2], dtype=torch.long).scatter_add(1, place, taken)
    single = torch.zeros_like(claimants).scatter_add(1, place, taken * box)  # the sum of one number is the number
    # The published rule: a contested position goes to the box for which it costs least, of all boxes.
    contested = claimants > 1
    if cost.device.type == "cpu":
        few, some = bx.compact(contested, contested.float(), contested.shape[1])
        winner = cost.gather(2, few[:, None, :].expand(-1, cost.shape[1], -1)).argmin(1).masked_fill(~some, 0)
        winner = torch.zeros_like(single).scatter_reduce(1, few, winner, "amax", include_self=True)
    else:
        winner = cost.argmin(1)
    return claimants > 0, torch.where(contested, winner, single.clamp(max=cost.shape[1] - 1))


@torch.no_grad()
def atss(outputs: Outputs, targets: Targets, *, k: int = 9, scale: float = 8) -> Matches:
    """Adaptive training sample selection (Zhang et al., CVPR 2020, arXiv 1912.02424, algorithm 1).

    Candidates of a box are the ``k`` nearest positions of every level; those whose anchor overlaps it by the mean
    plus the standard deviation of its candidates, and whose point lies in it, learn it.

    Args:
        outputs: with ``levels``. Anchors are squares of ``scale`` strides around the points.
        targets: padded boxes; padding is never assigned.

    Returns:
        Matches. Of boxes that claim one position the one whose overlap with its anchor is largest gets it.
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
