"""Distillation on images without labels: a memory that needs no annotation.

YOLO LwF's published replay (De Monte et al., CoLLAs 2026, arXiv 2503.04688) uses exemplars without their labels. Any
images that show old objects can replace them.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.types import Batch, Outputs
from ciod.methods.base.method import Channels
from ciod.methods.finetune import Finetune

Weight = Annotated[float, Field(ge=0)]


class DistillPool(Finetune):
    """Fine-tuning of the new classes; old outputs are distilled, weighted by the teacher's score."""

    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    distillation_terms: ClassVar[frozenset[str]] = frozenset({"distill_cls", "distill_box", "distill_obj"})
    uses_teacher: ClassVar[bool] = True
    needs_unlabelled: ClassVar[bool] = True
    run_defaults: ClassVar[dict[str, Any]] = {}

    mask: Channels = "auto"
    weight: Weight = 1.0
    """Weight of all distillation terms; 0 is fine-tuning."""
    box_weight: Weight = 5.0
    """Weight of 1 − GIoU relative to the class term."""
    on: Literal["all", "unlabelled"] = "all"
    """Images in which the teacher is distilled: all, or only those without labels."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if self.teacher is None:
            return super().loss(batch)
        outputs = self.student(batch.images)
        knowledge = self.teach(batch)
        return self.supervised(outputs, batch) | self.distill(outputs, knowledge, batch)

    def distill(self, outputs: Outputs, knowledge: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Class: BCE − entropy, which is a KL and reaches 0. Box: 1 − GIoU. Objectness: the same KL. All are weighted
        by the teacher's best old score and divided by the sum of the weights."""
        soft = knowledge.logits[..., : self.old].sigmoid()
        score = knowledge.scores()[..., : self.old].amax(2)
        if self.on == "unlabelled" and batch.targets.known is not None:
            score = score * ~batch.targets.known.any(1, keepdim=True)
        n = L.normaliser(score.sum())
        cls = (L.bce(outputs.logits[..., : self.old], soft) - L.entropy(soft)).sum(2)
        box = 1 - bx.giou(outputs.boxes, knowledge.boxes)
        losses = {
            "distill_cls": self.weight * (score * cls).sum() / n,
            "distill_box": self.weight * self.box_weight * (score * box).sum() / n,
        }
        if outputs.objectness is not None and knowledge.objectness is not None:
            sure = knowledge.objectness.sigmoid()
            obj = score * (L.bce(outputs.objectness, sure) - L.entropy(sure))
            losses["distill_obj"] = self.weight * obj.sum() / n
        return losses
