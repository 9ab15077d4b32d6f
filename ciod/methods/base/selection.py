"""Knowledge selection: at which positions the teacher teaches (ilYOLOX; pseudo-labels).

Every rule works on the teacher's raw Outputs for the whole batch and ends with class-aware NMS. Scores: s is the best
class probability of a position, f is s times objectness, k its best class.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ciod.core import boxes as bx
from ciod.core.types import Outputs, Targets

LIMIT = 512  # largest number of candidates per image; only the best are kept


@dataclass
class Kept:
    """The teacher's kept positions as padded lists, in ascending position order."""

    position: Tensor  # [B, M] int64
    valid: Tensor  # [B, M] bool
    boxes: Tensor  # [B, M, 4]
    labels: Tensor  # [B, M]
    scores: Tensor  # [B, M] f

    @property
    def targets(self) -> Targets:
        """The kept positions as (hard) pseudo boxes."""
        return Targets(self.boxes, self.labels, self.valid)

    def mask(self, positions: int) -> Tensor:
        """[B, P] bool."""
        return bx.marked(self.position, self.valid, positions)


@dataclass
class Responses:
    """The input of every rule."""

    class_score: Tensor  # [B, P] s
    score: Tensor  # [B, P] f
    label: Tensor  # [B, P] k
    old: Tensor  # [B, P] bool: k is a class the rule may keep


def respond(outputs: Outputs, classes: int | None) -> Responses:
    """s, f and k of the outputs; ``classes``: only labels below it may be kept (None: any)."""
    outputs = outputs.answer()
    s, k = outputs.probability().max(2)
    f = outputs.combine(s)
    old = torch.ones_like(k, dtype=torch.bool) if classes is None else k < classes
    return Responses(s, f, k, old)


def suppress(outputs: Outputs, r: Responses, candidates: Tensor, nms_iou: float) -> Kept:
    """NMS over ``candidates`` [B, P] bool, ranked by f."""
    position, valid = bx.compact(candidates, r.score, LIMIT)
    boxes = bx.gather_rows(outputs.boxes, position)
    labels, scores = r.label.gather(1, position), r.score.gather(1, position)
    keep = bx.nms_keep(boxes, scores, labels, valid, nms_iou)
    place, ok = bx.compact(keep, scores, LIMIT)
    return Kept(
        position.gather(1, place), ok, bx.gather_rows(boxes, place), labels.gather(1, place), scores.gather(1, place)
    )


@torch.no_grad()
def above_spread(values: Tensor, deviations: float) -> Tensor:
    """[B, P] → [B, P] bool: above mean + ``deviations`` × (unbiased) standard deviation of that image (ERD)."""
    return values > values.mean(1, keepdim=True) + deviations * values.std(1, keepdim=True)


@torch.no_grad()
def by_threshold(outputs: Outputs, *, score: float, nms_iou: float, classes: int | None) -> Kept:
    """``all_by_one``: f ≥ ``score``."""
    r = respond(outputs, classes)
    return suppress(outputs, r, r.old & (r.score >= score), nms_iou)


@torch.no_grad()
def by_mean_std(outputs: Outputs, *, deviations: float, nms_iou: float, classes: int | None) -> Kept:
    """``all_mean_std``: f ≥ mean + ``deviations`` × std of s over the positions of that image."""
    r = respond(outputs, classes)
    limit = r.class_score.mean(1, keepdim=True) + deviations * r.class_score.std(1, keepdim=True)
    return suppress(outputs, r, r.old & (r.score >= limit), nms_iou)


@torch.no_grad()
def by_class_mean_std(
    outputs: Outputs, *, deviations: float, floor: float, nms_iou: float, classes: int | None
) -> Kept:
    """``cls_mean_std``: as ``by_mean_std``, with statistics of the positions that share the best class.

    A class with fewer than two positions uses ``floor`` (the published rule gave NaN there and kept nothing).
    """
    r = respond(outputs, classes)
    classes_of = torch.arange(outputs.logits.shape[2], device=r.label.device)  # one_hot would read its largest label
    member = (r.label[..., None] == classes_of).to(r.class_score.dtype)  # [B, P, C]
    n = member.sum(1)
    mean = (member * r.class_score[..., None]).sum(1) / n.clamp(min=1)
    deviation = (member * (r.class_score[..., None] - mean[:, None]).square()).sum(1) / (n - 1).clamp(min=1)
    limit = torch.where(n > 1, mean + deviations * deviation.sqrt(), torch.full_like(mean, floor))
    return suppress(outputs, r, r.old & (r.score >= limit.gather(1, r.label)), nms_iou)


@torch.no_grad()
def center_resampling(
    outputs: Outputs, *, center_score: float, other_score: float, other_iou: float, nms_iou: float, classes: int | None
) -> Kept:
    """Center Re-Sampling (ilYOLOX): quality from confident centers, quantity from their neighbours.

    Centers have s ≥ ``center_score``. Any position of the same class whose box overlaps a center's by
    ``other_iou`` joins. All must have f ≥ ``other_score``; a center that fails this still adds its neighbours.
    """
    r = respond(outputs, classes)
    center = r.old & (r.class_score >= center_score)
    gated = r.old & (r.score >= other_score)
    # Only positions that pass the gate can stay, and only centers add neighbours: two short lists instead of all pairs.
    q, q_ok = bx.compact(gated, r.score, LIMIT)
    c, c_ok = bx.compact(center, r.class_score, outputs.boxes.shape[1])
    close = bx.pairwise_iou(bx.gather_rows(outputs.boxes, q), bx.gather_rows(outputs.boxes, c)) >= other_iou
    close &= r.label.gather(1, q)[:, :, None] == r.label.gather(1, c)[:, None, :]
    stays = q_ok & (close & c_ok[:, None, :]).any(2)
    candidates = bx.marked(q, stays, gated.shape[1])
    return suppress(outputs, r, candidates, nms_iou)


def without_real(kept: Kept, real: Targets, limit: float) -> Kept:
    """Drops pseudo boxes whose IoU with a real box is at least ``limit``: one object, one label."""
    overlap = bx.pairwise_iou(kept.boxes, real.boxes) >= limit
    clash = (overlap & real.valid[:, None, :]).any(2)
    return Kept(kept.position, kept.valid & ~clash, kept.boxes, kept.labels, kept.scores)
