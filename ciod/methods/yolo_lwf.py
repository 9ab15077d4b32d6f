"""YOLO LwF: LwF weighted per position, by box agreement (class term) or the teacher's class certainty (box term).

Paper: De Monte et al., CoLLAs (PMLR v330, 2026), arXiv 2503.04688 (YOLOv8). Written only from its formulas.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.types import Matches, Outputs
from ciod.methods.base.distillation import Distillation, Temperature, Weight, categorical_kl, old_logits, old_scores


class YOLOLwF(Distillation):
    """Class cross-entropy weighted by box agreement, and box distributions weighted by the teacher's certainty."""

    paper: ClassVar[str] = "YOLO LwF, arXiv 2503.04688"

    c1: Weight = 4000.0
    """Weight of the class term, a mean over all positions and old classes."""
    c2: Weight = 500.0
    """Weight of the box term, a mean over all positions and sides."""
    temperature: Temperature = 2.0
    """Temperature of the box distributions."""
    separate_means: bool = False
    """As in the released code: the mean weight times the mean error, so positions have no individual weight."""

    def distill(self, outputs: Outputs, knowledge: Outputs, matches: Matches) -> dict[str, Tensor]:
        error = L.bernoulli_kl(old_logits(outputs, self.old), old_logits(knowledge, self.old))
        agreement = (1 + bx.diou(outputs.boxes.detach(), knowledge.boxes)) / 2
        losses = {"distill_cls": self.c1 * self.weigh(agreement, error.mean(2))}
        if outputs.objectness is not None and knowledge.objectness is not None:
            losses["distill_obj"] = self.c1 * self.weigh(
                agreement, L.bernoulli_kl(outputs.objectness, knowledge.objectness)
            )
        certain = old_scores(knowledge, self.old).amax(2)
        losses["distill_box"] = self.c2 * self.over_images((certain * self.box_error(outputs, knowledge)).mean(1))
        return losses

    def weigh(self, weight: Tensor, error: Tensor) -> Tensor:
        """[B, P], [B, P] → the term."""
        if self.separate_means:
            return self.over_images(weight.mean(1) * error.mean(1))
        return self.over_images((weight * error).mean(1))

    def box_error(self, outputs: Outputs, knowledge: Outputs) -> Tensor:
        """[B, P], mean over the sides; 1 - GIoU if there is no distribution (ported)."""
        if outputs.distribution is None or knowledge.distribution is None:
            return 1 - bx.giou(outputs.boxes, knowledge.boxes)
        return categorical_kl(outputs.distribution, knowledge.distribution, self.temperature).mean(2)
