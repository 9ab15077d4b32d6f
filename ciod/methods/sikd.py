"""SIKD's two distillation terms for detectors with learnt queries (ICML 2026).

docs/methods/sikd.md has the formulas, and says what of the paper is here and what is not.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ciod.core import losses as L
from ciod.core.types import Batch, Outputs
from ciod.detectors.query.deformable import DeformableDETR
from ciod.methods.base import queries
from ciod.methods.base.distillation import Fraction, Weight
from ciod.methods.base.query_distillation import QueryDistillation


class SIKD(QueryDistillation):
    """Pseudo-labels; the new decoder answers the old queries as the old one, and ranks old classes alike."""

    needs = frozenset({"learnt_queries", "given_queries"})
    paper: ClassVar[str] = "Symbiosis-Inspired Knowledge Distillation, ICML 2026"
    distillation_terms = frozenset({"distill_spsd", "distill_sesd"})

    spsd_weight: Weight = 1.0
    """Weight of the spatial term: anchors and, times ``id_weight``, all queries of all layers."""
    id_weight: Weight = 1.0
    """α of the class logits of all queries, within the spatial term."""
    sesd_weight: Weight = 6.0
    """β of the semantic term."""
    anchor_score: Fraction = 0.4
    """γ: a query of the teacher with this score of an old class is an anchor,"""
    anchor_iou: Annotated[float, Field(gt=0, le=1)] = 0.7
    """τ: if its overlap with every real box is below this."""

    def distill(self, outputs: Outputs, knowledge: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Named terms; the spatial one is 0 if student and teacher are equal, and so is the semantic one."""
        nothing = outputs.boxes.new_zeros(())
        spsd, sesd = nothing, nothing
        if self.spsd_weight:
            spsd = self.spsd_weight * self.spatial(queries.ask(self.detector, outputs, knowledge), knowledge, batch)
        if self.sesd_weight:
            sesd = self.sesd_weight * self.semantic(outputs, knowledge)
        return {"distill_spsd": spsd, "distill_sesd": sesd}

    def spatial(self, asked: Outputs, knowledge: Outputs, batch: Batch) -> Tensor:
        """L_A + α L_ID: classes and boxes of anchors, and class logits of every query of every layer."""
        chosen, _ = queries.anchors(knowledge, batch.targets, self.old, self.anchor_score, self.anchor_iou)
        mine, theirs = (o.answer().logits[..., : self.old] for o in (asked, knowledge))
        error = L.bernoulli_kl(mine, theirs).sum(2) + queries.box_error(asked, knowledge)
        same = L.over_images(queries.logit_error(asked, knowledge, self.old), "image_mean")
        return queries.mean_of(error, chosen) + self.id_weight * same

    def semantic(self, outputs: Outputs, knowledge: Outputs) -> Tensor:
        """Differences of the soft ranks of old classes, seen by the prototype of each."""
        assert self.teacher is not None
        with torch.autocast(outputs.boxes.device.type, enabled=False):  # ranks differ by less than bf16 can say
            with torch.no_grad():
                theirs = ranks(self.teacher.detector, knowledge, self.old)
            return (ranks(self.detector, outputs, self.old) - theirs).abs().sum() / self.old**2


def ranks(detector: object, outputs: Outputs, old: int) -> Tensor:
    """[old, old]: the soft rank of every old class for the prototype of each one.

    A prototype is the mean of the last layer's queries of the batch, weighted by their scores of its class, with length
    1; its scores of all old classes are divided by the largest.
    """
    assert isinstance(detector, DeformableDETR) and outputs.states is not None
    score = outputs.answer().logits[..., :old].sigmoid().flatten(0, 1)  # [B × Q, old]
    mean = score.T @ outputs.states.flatten(0, 1) / score.sum(0).clamp(min=1e-6)[:, None]
    seen = detector.classify(F.normalize(mean, dim=1))[:, :old].sigmoid()
    seen = seen / seen.amax(1, keepdim=True).clamp(min=1e-6)
    return (seen[:, None, :] - seen[:, :, None]).sigmoid().sum(2)
