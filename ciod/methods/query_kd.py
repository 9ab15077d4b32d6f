"""Distillation of query detectors: what the encoder ranks, and what the decoder answers to the teacher's queries.

Ours, of parts of published methods; docs/methods/query_kd.md has the formulas.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from ciod.core import losses as L
from ciod.core.types import Batch, Outputs
from ciod.methods.base import queries, selection
from ciod.methods.base.distillation import Fraction, Temperature, Weight, categorical_kl, masked_mean
from ciod.methods.base.query_distillation import QueryDistillation


class QueryKD(QueryDistillation):
    """Pseudo-labels, and the student's decoder answers the teacher's queries as the teacher does."""

    needs = frozenset({"given_queries"})
    distillation_terms = frozenset({"distill_enc", "distill_dec", "distill_box"})

    enc_weight: Weight = 1.0
    """λ1 of the encoder's class logits at all tokens, where an encoder chooses the queries."""
    dec_weight: Weight = 1.0
    """λ2 of the decoder's class logits, of all layers."""
    box_weight: Weight = 1.0
    """λ3 of the boxes, and of their distributions where there are any."""
    deviations: Weight = 2.0
    """Tokens are distilled whose best old score is this number of standard deviations above the image's mean (ERD)."""
    box_score: Fraction = 0.4
    """Boxes are distilled of queries with at least this score of an old class."""
    box_iou: Annotated[float, Field(gt=0, le=1)] = 0.7
    """A query is only used if it overlaps every real box by less than this."""
    temperature: Temperature = 5.0
    """Temperature of the distributions of box sides (D-FINE)."""

    def distill(self, outputs: Outputs, knowledge: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Named terms; each is 0 if student and teacher are equal, and none is computed whose weight is 0."""
        losses = {}
        if outputs.first is not None and knowledge.first is not None:
            losses["distill_enc"] = self.encoder_term(outputs.first, knowledge.first) if self.enc_weight else None
        both = bool(self.dec_weight or self.box_weight)
        asked = queries.ask(self.detector, outputs, knowledge) if both else None
        losses["distill_dec"] = losses["distill_box"] = None
        if asked is not None and self.dec_weight:
            error = queries.logit_error(asked, knowledge, self.old)
            losses["distill_dec"] = self.dec_weight * L.over_images(error, "image_mean")
        if asked is not None and self.box_weight:
            losses["distill_box"] = self.box_weight * self.box_term(asked, knowledge, batch)
        nothing = outputs.boxes.new_zeros(())
        return {k: nothing if v is None else v for k, v in losses.items()}

    def encoder_term(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """Squared difference of old class logits, mean over classes and over the tokens that stand out."""
        mine, theirs = mine[..., : self.old], theirs[..., : self.old]
        chosen = selection.above_spread(theirs.sigmoid().amax(2), self.deviations)
        error = masked_mean((mine - theirs).square().mean(2), chosen)
        return self.enc_weight * L.over_images(error, "image_mean")

    def box_term(self, asked: Outputs, knowledge: Outputs, batch: Batch) -> Tensor:
        """Mean over the queries that show an old object, over all processes."""
        chosen, score = queries.anchors(knowledge, batch.targets, self.old, self.box_score, self.box_iou)
        error = queries.box_error(asked, knowledge)
        if asked.distribution is not None and knowledge.distribution is not None:
            mine, theirs = (
                o.distribution[:, : error.shape[1]] for o in (asked, knowledge) if o.distribution is not None
            )
            kl = categorical_kl(mine, theirs, self.temperature).sum(2)
            error = error + self.temperature**2 * score * kl
        return queries.mean_of(error, chosen)
