"""Pseudo-labels: the teacher's confident boxes of old classes are added to the real ones. Simple and hard to beat."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from ciod.methods import selection
from ciod.methods.method import Method
from ciod.types import Batch

Fraction = Annotated[float, Field(ge=0, le=1)]


class PseudoLabel(Method):
    """Old objects stand unlabelled in new images; the teacher labels them (methods.md §5, ``pseudo``)."""

    needs: ClassVar[frozenset[str]] = frozenset({"dense"})

    score: Fraction = 0.4
    """Lowest score of a pseudo box (0.4: SIKD, GCD)."""
    nms_iou: Fraction = 0.65
    """NMS among pseudo boxes of a class."""
    guard_iou: Fraction | None = 0.7
    """A pseudo box that overlaps a real one by this is dropped; None keeps all."""
    only_old: bool = True
    """Keep only labels the teacher was taught (False: parity with the published ``pseudo_hard``)."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if self.teacher is None:
            return super().loss(batch)
        outputs = self.student(batch.images)
        knowledge = self.teach(batch)
        kept = selection.by_threshold(
            knowledge, score=self.score, nms_iou=self.nms_iou, classes=self.old if self.only_old else None
        )
        if self.guard_iou is not None:
            kept = selection.without_real(kept, batch.targets, self.guard_iou)
        targets = kept.targets + batch.targets
        matches = self.detector.match(outputs, targets)
        return self.detector.loss(outputs, targets, matches)
