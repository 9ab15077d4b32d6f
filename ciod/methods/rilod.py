"""RILOD: distils class responses, boxes and features of the old model.

Paper: Li et al., "RILOD: Near Real-Time Incremental Learning for Object Detection at the Edge", SEC 2019 (RetinaNet).
The abstract names the three terms; their form (docs/methods/rilod.md) is not verified against the paper.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ciod.core.types import Matches, Outputs
from ciod.methods.base.distillation import Distillation, Weight, box_code, feature_error, masked_mean, old_scores


class RILOD(Distillation):
    """Distils old class probabilities (L2), boxes outside new objects (smooth L1) and features (smooth L1)."""

    needs = frozenset({"dense", "features"})
    distillation_terms = frozenset({"distill_cls", "distill_box", "distill_feature"})
    paper: ClassVar[str] = "RILOD, SEC 2019"

    cls_weight: Weight = 1.0
    """λ1, the weight of the old classes' probabilities (times objectness, if there is one)."""
    box_weight: Weight = 1.0
    """λ2, the weight of the boxes: centre offset and log size in strides."""
    feature_weight: Weight = 1.0
    """λ3, the weight of the feature maps that enter the head."""

    def distill(self, outputs: Outputs, knowledge: Outputs, matches: Matches) -> dict[str, Tensor]:
        cls = (old_scores(outputs, self.old) - old_scores(knowledge, self.old)).square().mean(2)
        box = F.smooth_l1_loss(box_code(outputs), box_code(knowledge), reduction="none").mean(2)
        feature = feature_error(outputs.features, knowledge.features, F.smooth_l1_loss)
        return {
            "distill_cls": self.cls_weight * self.over_images(cls.mean(1)),
            # At positions of a new object, the teacher's box is not the object's box.
            "distill_box": self.box_weight * self.over_images(masked_mean(box, ~matches.positive)),
            "distill_feature": self.feature_weight * self.over_images(torch.stack(feature).mean(0)),
        }
