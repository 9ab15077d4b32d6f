"""LwF: the student's old outputs are distilled at every position, without selection.

Paper: Li & Hoiem, "Learning without Forgetting", ECCV 2016, adapted to dense detectors as in the tables of ERD and
of YOLO LwF (docs/methods/lwf.md).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ciod.core import losses as L
from ciod.core.types import Matches, Outputs
from ciod.methods.base.distillation import Distillation, Temperature, Weight, old_logits, regression


class LwF(Distillation):
    """Distils every old class logit, objectness and raw box channel at all positions."""

    paper: ClassVar[str] = "Learning without Forgetting, ECCV 2016"

    cls_weight: Weight = 1.0
    """λ_c, the weight of the old class logits."""
    box_weight: Weight = 1.0
    """λ_b, the weight of the raw box channels: logits of the distribution, or centre offset and log size in strides."""
    obj_weight: Weight = 1.0
    """Weight of the objectness logit, if there is one."""
    form: Literal["mse", "kl"] = "mse"
    """Form of the class and objectness terms. ``mse`` of logits; ``kl`` of the sigmoids at ``temperature``, for a
    sigmoid head the closest equivalent of the original paper's soft cross-entropy."""
    temperature: Temperature = 2.0
    """T of ``kl``."""
    over: Literal["positions", "levels", "sum"] = "positions"
    """Mean over all positions; ``levels``: mean over each level's positions, then over levels; ``sum``: no mean."""

    def distill(self, outputs: Outputs, knowledge: Outputs, matches: Matches) -> dict[str, Tensor]:
        cls = self.error(old_logits(outputs, self.old), old_logits(knowledge, self.old))
        box = (regression(outputs) - regression(knowledge)).square()
        losses = {"distill_cls": self.cls_weight * self.pool(cls, outputs.levels),
                  "distill_box": self.box_weight * self.pool(box, outputs.levels)}  # fmt: skip
        if outputs.objectness is not None and knowledge.objectness is not None:
            obj = self.error(outputs.objectness[..., None], knowledge.objectness[..., None])
            losses["distill_obj"] = self.obj_weight * self.pool(obj, outputs.levels)
        return losses

    def error(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Elementwise, of logits."""
        if self.form == "mse":
            return (student - teacher).square()
        t = self.temperature
        return t * t * L.bernoulli_kl(student / t, teacher / t)  # T² keeps the gradient's size (Hinton et al. 2015)

    def pool(self, errors: Tensor, levels: tuple[int, ...]) -> Tensor:
        """[B, P, R] → the term."""
        if self.over == "sum":
            return self.over_images(errors.sum((1, 2)))
        if self.over == "positions":
            return self.over_images(errors.mean((1, 2)))
        means = [level.mean((1, 2)) for level in errors.split(levels, 1)]
        return self.over_images(torch.stack(means).mean(0))
