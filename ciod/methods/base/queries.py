"""Shared by the methods that compare each query of the student with the same query of the teacher.

The student's decoder is asked the teacher's queries (``decode_at``), so query i is the same query in both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.types import Outputs, Targets
from ciod.detectors.query.detector import QueryDetector
from ciod.detectors.query.matching import shares

L1_WEIGHT, GIOU_WEIGHT = 5.0, 2.0  # λ1 and λ2 of SIKD


def ask(detector: object, outputs: Outputs, knowledge: Outputs) -> Outputs:
    """The student's answers to the teacher's queries: all sets of its decoder, the last layer first."""
    assert isinstance(detector, QueryDetector) and knowledge.asked is not None and knowledge.starts is not None
    return detector.decode_at(outputs, knowledge.asked, knowledge.starts)


@torch.no_grad()
def anchors(knowledge: Outputs, targets: Targets, old: int, score: float, iou: float) -> tuple[Tensor, Tensor]:
    """The teacher's queries that show an old object: best score of an old class of at least ``score``, and an overlap
    below ``iou`` with every real box (SIKD, section 3).

    Returns:
        [B, Q] bool, and the scores [B, Q].
    """
    answers = knowledge.answer()
    best = answers.logits[..., :old].sigmoid().amax(2)
    overlap = bx.pairwise_iou(answers.boxes, targets.boxes).masked_fill(~targets.valid[:, None, :], 0).amax(2)
    return (best >= score) & (overlap < iou), best


def logit_error(asked: Outputs, knowledge: Outputs, old: int) -> Tensor:
    """[B]: Σ over layers and queries of w ‖z_teacher - z_student‖², over old classes; w: the share of a query's best
    score in the sum of its layer (SIKD, equations 8 and 9)."""
    size = asked.logits.shape[1]
    queries = asked.answers or size
    sets = (len(asked.logits), size // queries, queries, old)
    mine = asked.logits[:, :, :old].reshape(sets)
    theirs = knowledge.logits[:, :size, :old].reshape(sets)
    best = theirs.sigmoid().amax(3)
    weight = best / best.sum(2, keepdim=True).clamp(min=1e-6)
    return (weight * (theirs - mine).square().sum(3)).sum((1, 2))


def box_error(asked: Outputs, knowledge: Outputs) -> Tensor:
    """[B, Q]: 5 × L1 of shares of the image + 2 × (1 - GIoU) of the last layer's boxes (SIKD, equation 7)."""
    assert asked.frame is not None
    mine, theirs = asked.answer().boxes, knowledge.answer().boxes
    apart = (shares(mine, asked.frame) - shares(theirs, asked.frame)).abs().sum(2)
    return L1_WEIGHT * apart + GIOU_WEIGHT * (1 - bx.giou(mine, theirs))


def mean_of(values: Tensor, mask: Tensor) -> Tensor:
    """[B, Q] where ``mask`` → their mean over all processes; 0 where there is none."""
    return L.masked_sum(values, mask) / L.count(mask)
