"""SID: distils head features, class logits and the distances between instances, but no regression outputs.

Paper: Peng et al., "SID: Incremental learning for anchor-free object detection via Selective and Inter-related
Distillation", CVIU 2021 (FCOS, CenterNet). docs/methods/sid.md has the terms; we have not seen the paper's code.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ciod.core import boxes as bx
from ciod.core.types import Matches, Outputs
from ciod.methods.base.distillation import Distillation, Weight, feature_error, old_logits, old_scores


class SID(Distillation):
    """Distils head features, old class logits (L2) and distances between the teacher's best instances; no boxes."""

    needs = frozenset({"dense", "features"})
    distillation_terms = frozenset({"distill_feature", "distill_cls", "distill_relation", "distill_obj"})
    paper: ClassVar[str] = "Selective and Inter-related Distillation, CVIU 2021"

    weight: Weight = 1.0
    """λ, the weight of all terms."""
    feature_weight: Weight = 1.0
    """Weight of the class tower's features (of the neck's if a detector has no tower)."""
    cls_weight: Weight = 1.0
    """Weight of the old class logits at all positions."""
    obj_weight: Weight = 1.0
    """Weight of the objectness logits, which are not regression either, if there are any (ported)."""
    relation_weight: Weight = 1.0
    """Weight of the squared differences between instance distances, mean over pairs."""
    instances: Literal["positions", "images"] = "positions"
    """Which instances are compared: ``positions``: the best positions of each image; ``images``: the images in the
    batch of a process, by their pooled features."""
    top: Annotated[int, Field(ge=2)] = 10
    """Number of ``positions`` per image."""

    def distill(self, outputs: Outputs, knowledge: Outputs, matches: Matches) -> dict[str, Tensor]:
        mine, theirs = (o.towers or o.features for o in (outputs, knowledge))
        feature = feature_error(mine, theirs, F.mse_loss)
        cls = (old_logits(outputs, self.old) - old_logits(knowledge, self.old)).square().mean((1, 2))
        terms = {
            "distill_feature": self.feature_weight * self.over_images(torch.stack(feature).mean(0)),
            "distill_cls": self.cls_weight * self.over_images(cls),
            "distill_relation": self.relation_weight * self.relation(mine, theirs, knowledge),
        }
        if outputs.objectness is not None and knowledge.objectness is not None:
            obj = (outputs.objectness - knowledge.objectness).square().mean(1)
            terms["distill_obj"] = self.obj_weight * self.over_images(obj)
        return {name: self.weight * term for name, term in terms.items()}

    def relation(self, mine: list[Tensor], theirs: list[Tensor], knowledge: Outputs) -> Tensor:
        """Inter-related term: keeps the distances between instances as in the teacher."""
        if self.instances == "images":
            pooled = (torch.cat([m.float().mean((2, 3)) for m in maps], 1)[None] for maps in (mine, theirs))
            return self.over_images(distance_error(*pooled))
        score = old_scores(knowledge, self.old).amax(2)
        position = score.topk(min(self.top, score.shape[1]), dim=1).indices
        cells = sum(m.shape[2] * m.shape[3] for m in mine)
        cell = position // (score.shape[1] // cells)  # several anchors may share a cell
        rows = (bx.gather_rows(torch.cat([m.float().flatten(2) for m in maps], 2).transpose(1, 2), cell)
                for maps in (mine, theirs))  # fmt: skip
        return self.over_images(distance_error(*rows))


def distance_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over pairs of (‖t_i − t_j‖ − ‖s_i − s_j‖)²: [B, N, F], [B, N, F] → [B]; one instance alone gives 0."""
    n = student.shape[1]
    pair = torch.ones(n, n, dtype=torch.bool, device=student.device).triu(1)
    apart = [(x[:, :, None] - x[:, None]).square().sum(3).clamp(min=1e-12).sqrt() for x in (student, teacher)]
    return ((apart[0] - apart[1]).square() * pair).sum((1, 2)) / max(1, n * (n - 1) // 2)
