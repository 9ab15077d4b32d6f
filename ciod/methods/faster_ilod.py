"""Faster-ILOD: centred logits and boxes of regions, features and first stage stay where the teacher has more.

Paper: Peng et al., "Faster ILOD: Incremental learning for object detectors based on Faster RCNN", Pattern Recognition
Letters 2020. docs/methods/faster_ilod.md has the formulas and says what is certain and what is inferred.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ciod.core.types import Batch
from ciod.detectors.rcnn.outputs import RoIOutputs
from ciod.methods.base.distillation import Weight
from ciod.methods.base.regions import Judged, RegionDistillation, box_error, first_stage_error, mean


class FasterILOD(RegionDistillation):
    """ILOD's distillation of regions (L2), and one-sided terms for features and first stage."""

    distillation_terms = frozenset({"distill_cls", "distill_box", "distill_feature", "distill_rpn"})
    paper: ClassVar[str] = "Faster ILOD, PRL 2020"

    cls_weight: Weight = 1.0
    """Weight of the centred logits of background and old classes."""
    box_weight: Weight = 1.0
    """Weight of the deltas of the old classes."""
    feature_weight: Weight = 1.0
    """Weight of the maps of the pyramid: only activation that the teacher has more is punished."""
    rpn_weight: Weight = 1.0
    """Weight of the first stage: only objectness that is lost is punished."""

    def supervised(self, outputs: RoIOutputs, knowledge: RoIOutputs, batch: Batch) -> dict[str, Tensor]:
        return self.detector.loss(outputs, batch.targets, self.detector.match(outputs, batch.targets))

    def distill(
        self, outputs: RoIOutputs, knowledge: RoIOutputs, mine: Judged, theirs: Judged, valid: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        return {
            "distill_cls": self.cls_weight * centred_error(mine.logits, theirs.logits, valid),
            "distill_box": self.box_weight * box_error(mine, theirs, valid, self.old),
            "distill_feature": self.feature_weight * feature_error(outputs.features, knowledge.features),
            "distill_rpn": self.rpn_weight * first_stage_error(outputs, knowledge),
        }


def centred_error(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Mean squared difference of logits less their mean over all classes of the same detector, over the teacher's.

    Args:
        student: [B, R, 1 + C], background first.
        teacher: [B, R, 1 + old].
        valid: [B, R] bool.
    """
    mine, theirs = (z - z.mean(2, keepdim=True) for z in (student, teacher))
    return mean((mine[..., : theirs.shape[2]] - theirs).square().mean(2), valid)


def feature_error(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """Mean over each map, less its mean, of what the teacher has more than the student; then over levels."""
    errors = []
    for mine, theirs in zip(student, teacher, strict=True):
        a, b = (m.float() - m.float().mean((1, 2, 3), keepdim=True) for m in (mine, theirs))
        errors.append((b - a).clamp(min=0).mean())
    return torch.stack(errors).mean()
