"""Distillation of query detectors on top of pseudo-labels."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from ciod.core.types import Batch, Outputs
from ciod.methods.base.distillation import Fraction
from ciod.methods.pseudo_label import PseudoLabel


class QueryDistillation(PseudoLabel):
    """Pseudo-labels, and terms between the outputs of student and teacher. Subclasses implement ``distill``."""

    nms_iou: Fraction = 1.0
    """NMS among pseudo boxes of a class; 1 keeps all, as one query finds one object."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if self.teacher is None:
            return super().loss(batch)
        outputs = self.student(batch.images)
        knowledge = self.teach(batch)
        return self.supervised(outputs, knowledge, batch) | self.distill(outputs, knowledge, batch)

    @abstractmethod
    def distill(self, outputs: Outputs, knowledge: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The terms of a batch.

        Args:
            outputs: the student's.
            knowledge: the teacher's, for the same images.
        """
