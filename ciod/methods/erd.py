"""ERD: only the teacher's elastic responses are distilled: positions that stand out within their image.

Paper: Feng et al., "Overcoming Catastrophic Forgetting in Incremental Object Detection via Elastic Response
Distillation", CVPR 2022. docs/methods/erd.md has the formulas and says what is certain and what is ported.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ciod.core import boxes as bx
from ciod.core.types import Matches, Outputs
from ciod.methods.base import selection
from ciod.methods.base.distillation import (
    Distillation,
    Fraction,
    Temperature,
    Weight,
    box_code,
    categorical_kl,
    masked_mean,
    old_logits,
    old_scores,
)


class ERD(Distillation):
    """Distils class logits and boxes where the teacher's response is above mean + 2 std of its image."""

    paper: ClassVar[str] = "Elastic Response Distillation, CVPR 2022"

    cls_weight: Weight = 1.0
    """λ of the class term: as one mean over the batch, the form behind the paper's table, it counts once."""
    box_weight: Weight = 2.0
    """λ of the box term: the paper's code sums it over the two images of a GPU."""
    obj_weight: Weight = 1.0
    """Weight of the objectness logits at the class positions, if the detector has objectness (ported)."""
    deviations: Weight = 2.0
    """α: a response is distilled from this number of standard deviations above the mean."""
    nms_iou: Fraction = 0.005
    """Class-wise NMS among the box positions."""
    nms_scale: Literal["pixel", "stride"] = "pixel"
    """``stride``: as published, where NMS sees distances in cells around centres in pixels."""
    box_term: Literal["auto", "ld", "giou", "smooth_l1"] = "auto"
    """``ld``: localisation distillation, which needs a box distribution; ``auto``: that or, without one, ``giou``."""
    temperature: Temperature = 10.0
    """τ of ``ld``."""
    ld_weight: Weight = 0.25
    """The box term's own factor."""

    def distill(self, outputs: Outputs, knowledge: Outputs, matches: Matches) -> dict[str, Tensor]:
        chosen = self.choose_classes(knowledge)
        error = (old_logits(outputs, self.old) - old_logits(knowledge, self.old)).square().mean(2)
        losses = {"distill_cls": self.cls_weight * self.over_images(masked_mean(error, chosen))}

        kept = self.choose_boxes(knowledge)
        weight = old_scores(outputs, self.old).detach().amax(2).gather(1, kept.position)
        error = torch.where(kept.valid, weight * self.box_error(outputs, knowledge, kept.position), 0.0)
        losses["distill_box"] = self.box_weight * self.ld_weight * self.over_images(error.sum(1))

        if outputs.objectness is not None and knowledge.objectness is not None:
            error = (outputs.objectness - knowledge.objectness).square()
            losses["distill_obj"] = self.obj_weight * self.over_images(masked_mean(error, chosen))
        return losses

    def choose_classes(self, knowledge: Outputs) -> Tensor:
        """[B, P] bool: K_c."""
        return selection.above_spread(old_scores(knowledge, self.old).amax(2), self.deviations)

    def candidates(self, knowledge: Outputs) -> Tensor:
        """[B, P] bool: K_r. A peaked distribution has a high largest logit, independent of the class."""
        if knowledge.distribution is None:
            return self.choose_classes(knowledge)
        return selection.above_spread(knowledge.distribution.flatten(2).amax(2), self.deviations)

    def choose_boxes(self, knowledge: Outputs) -> selection.Kept:
        """The candidates that remain after class-wise NMS."""
        score, label = old_scores(knowledge, self.old).max(2)
        boxes = knowledge.boxes
        if self.nms_scale == "stride":
            centre = knowledge.points.repeat(1, 2)
            boxes = centre + (boxes - centre) / knowledge.strides[:, None]
        responses = selection.Responses(score, score, label, torch.ones_like(label, dtype=torch.bool))
        return selection.suppress(replace(knowledge, boxes=boxes), responses, self.candidates(knowledge), self.nms_iou)

    def box_error(self, outputs: Outputs, knowledge: Outputs, position: Tensor) -> Tensor:
        """[B, K] at ``position``: ``ld`` is the mean over the four sides, with the published mean over bins."""
        student, teacher = outputs.distribution, knowledge.distribution
        if student is not None and teacher is not None and self.box_term in ("auto", "ld"):
            kl = categorical_kl(bx.gather_rows(student, position), bx.gather_rows(teacher, position), self.temperature)
            return self.temperature**2 / student.shape[3] * kl.mean(2)
        if self.box_term == "smooth_l1":
            mine, theirs = (bx.gather_rows(box_code(o), position) for o in (outputs, knowledge))
            return F.smooth_l1_loss(mine, theirs, reduction="none").mean(2)
        return 1 - bx.giou(bx.gather_rows(outputs.boxes, position), bx.gather_rows(knowledge.boxes, position))

    def requires(self) -> frozenset[str]:
        return self.needs | ({"box_distribution"} if self.box_term == "ld" else set())
