"""MMA: what is not labelled counts as background, in the loss of the boxes and in the distillation.

Paper: Cermelli et al., "Modeling Missing Annotations for Incremental Learning in Object Detection", CVPR Workshops 2022
(Faster R-CNN). docs/methods/mma.md has the formulas and says what is certain and what is inferred.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ciod.core.types import Batch
from ciod.detectors.rcnn.outputs import RoIOutputs
from ciod.methods.base.distillation import Weight
from ciod.methods.base.regions import Judged, RegionDistillation, box_error, first_stage_error, mean


class MMA(RegionDistillation):
    """Unbiased cross-entropy and unbiased distillation for Faster R-CNN."""

    paper: ClassVar[str] = "Modeling Missing Annotations, CVPRW 2022"

    weight: Annotated[float, Field(ge=0)] | None = None
    """λ of the distillation of classes and boxes. None: by the number of new classes, as in the paper: 1 for one or
    two, 0.5 for up to five, 0.1 for more."""
    rpn_weight: Weight = 0.0
    """Weight of Faster-ILOD's term of the first stage, which the paper leaves out of its main results."""
    unbiased: bool = True
    """Unbiased cross-entropy: of a region without a real box, the probability of background or any old class is
    trained. False: cross-entropy, as in fine-tuning."""

    def supervised(self, outputs: RoIOutputs, knowledge: RoIOutputs, batch: Batch) -> dict[str, Tensor]:
        matches = self.detector.match(outputs, batch.targets)
        channels = self.taught(batch, outputs.logits.shape[2]) if self.unbiased else None
        return self.detector.loss(outputs, batch.targets, matches, channels=channels)

    def distill(
        self, outputs: RoIOutputs, knowledge: RoIOutputs, mine: Judged, theirs: Judged, valid: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        weight = self.factor(outputs.logits.shape[2] - self.old)
        losses = {
            "distill_cls": weight * unbiased_distillation(mine.logits, theirs.logits, valid),
            "distill_box": weight * box_error(mine, theirs, valid, self.old),
        }
        if self.rpn_weight:
            losses["distill_rpn"] = self.rpn_weight * first_stage_error(outputs, knowledge)
        return losses

    def factor(self, new: int) -> float:
        """λ for a task with this number of new classes."""
        if self.weight is not None:
            return self.weight
        return 1.0 if new <= 2 else 0.5 if new <= 5 else 0.1


def unbiased_distillation(student: Tensor, teacher: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy with the teacher's softmax; the student's background is background or any new class. Sum over
    background and old classes ÷ their number, mean over regions.

    Args:
        student: [B, R, 1 + C] logits, background first.
        teacher: [B, R, 1 + old].
        valid: [B, R] bool.
    """
    known = teacher.shape[2]
    none = torch.cat([student[..., :1], student[..., known:]], 2).logsumexp(2, keepdim=True)
    log_p = torch.cat([none, student[..., 1:known]], 2) - student.logsumexp(2, keepdim=True)
    return mean(-(teacher.softmax(2) * log_p).sum(2) / known, valid)
