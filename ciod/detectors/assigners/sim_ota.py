"""SimOTA, YOLOX's matching, for a batch at once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ciod.core import boxes as bx
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.assigners import point_lattice

FAR = 1e8  # the published penalty of a candidate that is not both in the box and near its centre
_NEVER = float("inf")


@torch.no_grad()
def sim_ota(
    outputs: Outputs, targets: Targets, *, radius: float = 2.5, top: int = 10, iou_weight: float = 3
) -> Matches:
    """Dynamic-k assignment (YOLOX, Ge et al. 2021, arXiv 2107.08430, section 2.3).

    Args:
        outputs: with objectness. Not changed; no gradient is taken.
        targets: padded boxes; padding is never assigned.
        radius: a position is near a box if it is within ``radius`` cells of its centre.
        top: k of a box is the rounded-down sum of its ``top`` best IoUs, at least 1.
        iou_weight: weight of -log IoU relative to the class cost.

    Returns:
        Matches with at most ``top`` positions per box. If several boxes claim a position, the one with the lowest cost
        gets it.
    """
    outputs = replace(outputs, boxes=outputs.boxes.detach())
    search = _Search(outputs, targets, radius, iou_weight)
    # On a CPU, where reading a length is free, costs are computed only where they can matter.
    levels = point_lattice.levels_of(outputs.points, outputs.strides) if outputs.boxes.device.type == "cpu" else None
    claimed, target = _among_few(search, levels, top) if levels else _among_all(search, top)

    limit = min(claimed.shape[1], top * targets.boxes.shape[1])
    position, valid = bx.compact(claimed, claimed.float(), limit)
    target = target.gather(1, position)
    achieved = bx.iou(bx.gather_rows(outputs.boxes, position), bx.gather_rows(targets.boxes, target))
    return Matches(position, target, achieved, valid, bx.marked(position, valid, claimed.shape[1]))


def class_cost(q: Tensor, labels: Tensor) -> Tensor:
    """[B, N, P]: BCE of ``q`` [B, P, C], the root of class × objectness probability, with one-hot labels.

    Summed over C, in closed form: Σ_c BCE = -Σ_c log(1 - q_c) + log(1 - q_y) - log q_y, so memory is B × P × C +
    B × N × P, never B × N × P × C. Logarithms are clamped at -100 as in the published cost.
    """
    no = (1 - q).log_().clamp_(min=-100)  # log1p is seven times as slow; its extra digits are lost in the sum
    base = no.sum(2)[:, None, :]  # [B, 1, P]
    rest = no.sub_(q.log().clamp_(min=-100)).transpose(1, 2)
    return rest.gather(1, labels[:, :, None].expand(-1, -1, q.shape[1])).sub_(base)


class _Search:
    """Costs between the positions and boxes of a batch."""

    def __init__(self, outputs: Outputs, targets: Targets, radius: float, iou_weight: float):
        self.outputs, self.targets, self.radius, self.iou_weight = outputs, targets, radius, iou_weight

    def reach(self, targets: Targets, place: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, N, P] bool: positions inside a box, and positions within ``radius`` cells of its centre."""
        points, far = self.outputs.points, self.radius * self.outputs.strides  # [P, 2], [P]
        if place is not None:  # [B, 1, P']
            points, far = points[place[:, None]], far[place[:, None]]
        x, y = points[..., 0], points[..., 1]
        left, up, right, down = (targets.boxes[:, :, None, i] for i in range(4))  # [B, N, 1]
        valid = targets.valid[:, :, None]
        inside = ((x > left) & (x < right)).logical_and_(y > up).logical_and_(y < down).logical_and_(valid)
        middle, centre = (left + right) / 2, (up + down) / 2
        near = ((x + far > middle) & (x - far < middle)).logical_and_(y + far > centre).logical_and_(y - far < centre)
        return inside, near.logical_and_(valid)

    def roots(self, place: Tensor) -> Tensor:
        """[B, P', C]: the square roots of class × objectness probability."""
        rows = {k: bx.gather_rows(getattr(self.outputs, k), place) for k in ("logits", "objectness")}
        return replace(self.outputs, **rows).scores().sqrt_()

    def costs(self, targets: Targets, overlap: Tensor, q: Tensor, prime: Tensor, ok: Tensor) -> Tensor:
        """[B, N, P]: cost of each position for each box, infinite where not ``ok``."""
        cost = class_cost(q, targets.labels)
        cost.sub_((overlap + 1e-7).log_(), alpha=self.iou_weight).add_(~prime, alpha=FAR)
        return cost.masked_fill_(~ok | ~cost.isfinite(), _NEVER)

    def costs_at(self, targets: Targets, place: Tensor, some: Tensor) -> Tensor:
        """[B, N, P']: costs of all boxes with the positions ``place`` [B, P'] where ``some`` [B, P'] is set."""
        overlap = bx.pairwise_iou(targets.boxes, bx.gather_rows(self.outputs.boxes, place))
        ok = some[:, None, :] & targets.valid[:, :, None]
        inside, near = self.reach(targets, place)
        return self.costs(targets, overlap.masked_fill_(~ok, 0), self.roots(place), inside & near, ok)


# ------------------------------------------------------------------------------------------------------- every pair


def _among_all(search: _Search, top: int) -> tuple[Tensor, Tensor]:
    """Which positions are matched [B, P], and with which box [B, P], from all pairs; nothing is read back."""
    targets, outputs = search.targets, search.outputs
    inside, near = search.reach(targets)
    ok = (inside | near).any(1)[:, None, :] & targets.valid[:, :, None]  # [B, N, P], as everything below
    overlap = bx.pairwise_iou(targets.boxes, outputs.boxes).masked_fill_(~ok, 0)
    cost = search.costs(targets, overlap, outputs.scores().sqrt(), inside & near, ok)
    best = min(top, cost.shape[2])
    price, place = cost.topk(best, dim=2, largest=False)
    claims = _Claims(price, place, _wanted(overlap, best), cost.shape[2])
    return claims.taken, torch.where(claims.contested, cost.argmin(1), claims.single)


def _wanted(overlap: Tensor, best: int) -> Tensor:
    """[B, N]: number of positions per box."""
    return overlap.topk(best, dim=2).values.sum(2).int().clamp(min=1)


class _Claims:
    """Positions that boxes claim: the ``k`` [B, N] cheapest of ``place`` [B, N, M] by ``price``, ascending."""

    def __init__(self, price: Tensor, place: Tensor, k: Tensor, positions: int):
        batch, boxes, best = price.shape
        order = torch.arange(best, device=k.device)
        claimed = ((order < k[:, :, None]) & price.isfinite()).flatten(1).long()
        box = torch.arange(boxes, device=k.device).repeat_interleave(best).expand_as(claimed)
        place = place.flatten(1)
        claimants = torch.zeros(batch, positions, dtype=torch.long, device=k.device).scatter_add_(1, place, claimed)
        # the sum of one number is the number
        self.single = torch.zeros_like(claimants).scatter_add_(1, place, claimed * box).clamp_(max=boxes - 1)
        self.taken = claimants > 0
        # The published rule: a contested position goes to the box with the lowest cost, of all boxes.
        self.contested = claimants > 1


# -------------------------------------------------------------------------------------------------- pairs that matter


def _among_few(search: _Search, levels: list[point_lattice.Level], top: int) -> tuple[Tensor, Tensor]:
    """The same as ``_among_all``, with costs only where they matter.

    A box has at most about 25 positions per level that are inside it and near its centre; all others cost 1e8 more.
    The others are considered only for boxes that need more positions, and for positions that several boxes claim. IoUs
    of all pairs are still needed, because they determine the number of positions per box.
    """
    targets, outputs = search.targets, search.outputs
    found = point_lattice.reach(levels, targets.boxes, targets.valid, search.radius)
    positions = found.candidate.shape[1]
    place, some = bx.compact(found.candidate, found.candidate.float(), positions)
    predicted = bx.gather_rows(outputs.boxes, place).masked_fill_(~some[..., None], 0)
    k = _wanted(bx.pairwise_iou(targets.boxes, predicted), min(top, place.shape[1]))

    cost = _prime_costs(search, found)
    price, nearest = cost.topk(min(top, cost.shape[2]), dim=2, largest=False)
    where = found.prime.gather(2, nearest)
    lacking = targets.valid & (price.isfinite().sum(2) < k)
    if lacking.numpy().any():
        price, where = _fill(search, lacking, (place, some), (price, where), top)
    claims = _Claims(price, where, k, positions)
    target = claims.single
    if claims.contested.numpy().any():
        few, ok = bx.compact(claims.contested, claims.contested.float(), positions)
        winner = search.costs_at(targets, few, ok).argmin(1).masked_fill_(~ok, 0)
        won = torch.zeros_like(target).scatter_reduce_(1, few, winner, "amax")
        target = torch.where(claims.contested, won, target)
    return claims.taken, target


def _prime_costs(search: _Search, found: point_lattice.Reach) -> Tensor:
    """[B, N, K]: costs of the positions of ``found.prime``, infinite where they are not ok."""
    targets, outputs = search.targets, search.outputs
    index, ok = found.prime.flatten(1), found.ok.flatten(1)  # [B, N K]
    used = bx.marked(index, ok, found.candidate.shape[1])
    place, _ = bx.compact(used, used.float(), used.shape[1])
    rank = torch.zeros_like(used, dtype=torch.long).scatter_(1, place, torch.arange(place.shape[1]).expand_as(place))
    rank = rank.gather(1, index)  # index into ``place``; 0 where not ok
    q = search.roots(place)
    classes = q.shape[2]
    labels = targets.labels[:, :, None].expand_as(found.prime).flatten(1)
    own = q.flatten(1).gather(1, rank * classes + labels)
    base = (1 - q).log_().clamp_(min=-100).sum(2)
    cost = (1 - own).log_().clamp_(min=-100).sub_(own.log_().clamp_(min=-100)).sub_(base.gather(1, rank))
    achieved = bx.iou(bx.gather_rows(outputs.boxes, index).view(*found.prime.shape, 4), targets.boxes[:, :, None])
    cost = cost.view_as(achieved).sub_((achieved + 1e-7).log_(), alpha=search.iou_weight)
    return cost.masked_fill_(~found.ok | ~cost.isfinite(), _NEVER)


def _fill(
    search: _Search, lacking: Tensor, candidates: tuple[Tensor, Tensor], best: tuple[Tensor, Tensor], top: int
) -> tuple[Tensor, Tensor]:
    """``best``, prices and positions [B, N, M]; boxes that are ``lacking`` [B, N] positions search everywhere."""
    targets, (place, some), (price, where) = search.targets, candidates, best
    row, ok = bx.compact(lacking, lacking.float(), lacking.shape[1])
    few = Targets(bx.gather_rows(targets.boxes, row), targets.labels.gather(1, row), ok)
    more, nearest = search.costs_at(few, place, some).topk(min(top, place.shape[1]), dim=2, largest=False)
    more_where = place[:, None, :].expand(-1, row.shape[1], -1).gather(2, nearest)
    width = max(price.shape[2], more.shape[2])
    row = row.masked_fill(~ok, lacking.shape[1])[:, :, None].expand(-1, -1, width)  # padding goes to a separate row

    def placed(into: Tensor, values: Tensor, nothing: float) -> Tensor:
        into = F.pad(into, (0, width - into.shape[2], 0, 1), value=nothing)
        return into.scatter_(1, row, F.pad(values, (0, width - values.shape[2]), value=nothing))[:, :-1]

    return placed(price, more, _NEVER), placed(where, more_where, 0)
