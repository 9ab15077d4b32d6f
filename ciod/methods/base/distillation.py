"""Shared by the response-distillation methods: one step, the supervised part, and small formulas."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ciod.core import losses as L
from ciod.core.types import Batch, Matches, Outputs
from ciod.methods.base.method import Channels, Method

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Temperature = Annotated[float, Field(gt=0)]


class Distillation(Method):
    """Base of methods that distil the student's old outputs per position.

    A subclass implements ``distill``. The real boxes supervise the new classes; ``distill`` preserves the old ones.
    """

    needs = frozenset({"dense"})
    distillation_terms = frozenset({"distill_cls", "distill_box", "distill_obj"})

    supervise: Channels = "auto"
    """Class channels that the real boxes supervise (``method.Channels``). ``new``: old channels are not trained,
    because the images contain unlabelled old objects; the rule of the papers. ``matched``: old channels are trained
    only at positions matched with a real box, which show no old object. ``all``: as in fine-tuning. ``auto``:
    ``matched`` on a detector with objectness, else ``new``."""
    objectness: Literal["teacher", "spare", "plain"] = "teacher"
    """Objectness has no class, so it cannot be masked per class. ``teacher``: where the teacher is sure of an old
    object, the target is 1, too. ``spare``: where the student scores an old class 0.3 or more, the position is not a
    negative. ``plain``: unlabelled old objects are background."""
    objectness_score: Fraction = 0.3
    """Score (class × objectness) from which the teacher is sure."""
    unseen: Literal["zero", "ignore"] = "zero"
    """New class channels at positions without a real box where the teacher is sure of an old object, on a detector with
    objectness. ``zero``: their target is 0, as on detectors with a class loss at all positions. ``ignore``: they are
    not trained there."""
    reduction: Literal["image_mean", "image_sum"] = "image_mean"
    """How the distillation terms of the images are combined; ``image_sum`` grows with the batch."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if self.teacher is None:
            return super().loss(batch)
        outputs = self.student(batch.images)
        knowledge = self.teach(batch)
        matches = self.detector.match(outputs, batch.targets)
        supervised = self.supervised(outputs, knowledge, batch, matches)
        return supervised | self.distill(outputs, knowledge, matches)

    def supervised(self, outputs: Outputs, knowledge: Outputs, batch: Batch, matches: Matches) -> dict[str, Tensor]:
        """The detector's own losses for the real boxes."""
        channels = self.channels(self.supervise, batch, outputs, matches)
        targets = batch.targets
        if "objectness" not in self.detector.traits:
            return self.detector.loss(outputs, targets, matches, channels=channels)
        sure = old_scores(knowledge, self.old).amax(2) >= self.objectness_score
        losses = {}
        if self.unseen == "zero":
            losses["unseen"] = self.absent(outputs, sure & ~matches.positive)
        if self.objectness == "teacher":
            matches = replace(matches, positive=matches.positive | sure)
        if self.objectness == "spare":
            targets = self.spared(batch, outputs)
        return self.detector.loss(outputs, targets, matches, channels=channels) | losses

    def absent(self, outputs: Outputs, where: Tensor) -> Tensor:
        """No new class at these positions [B, P]: BCE summed over the new classes, mean over the positions."""
        logits = outputs.logits[..., self.old :]
        return L.masked_sum(L.bce(logits, torch.zeros_like(logits)).sum(2), where) / L.count(where)

    @abstractmethod
    def distill(self, outputs: Outputs, knowledge: Outputs, matches: Matches) -> dict[str, Tensor]:
        """Named distillation terms; each is 0 if the outputs of student and teacher are equal."""

    def over_images(self, values: Tensor) -> Tensor:
        """One value per image [B] → the term."""
        return L.over_images(values, self.reduction)


def old_logits(outputs: Outputs, old: int) -> Tensor:
    """[B, P, old]: logits of the classes the teacher was taught.

    Contiguous: kernels may round strided and dense tensors differently, and equal outputs must give exactly 0.
    """
    return outputs.logits[..., :old].contiguous()


def old_scores(outputs: Outputs, old: int) -> Tensor:
    """[B, P, old]: scores of the classes the teacher was taught."""
    return replace(outputs, logits=old_logits(outputs, old)).scores()


def box_code(outputs: Outputs) -> Tensor:
    """[B, P, 4]: what YOLOX regresses — the centre's offset and the log size, in strides — for any detector.

    Differences of it are differences of YOLOX's raw channels.
    """
    stride = outputs.strides[:, None]
    low, high = outputs.boxes[..., :2], outputs.boxes[..., 2:]
    centre = ((low + high) / 2 - outputs.points) / stride
    size = ((high - low) / stride).clamp(min=1e-4).log()
    return torch.cat([centre, size], 2)


def regression(outputs: Outputs) -> Tensor:
    """[B, P, R]: the raw box channels: logits of the distribution if there is one, else ``box_code``."""
    return box_code(outputs) if outputs.distribution is None else outputs.distribution.flatten(2)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """[B, P] where ``mask`` → [B]; an image without any gives 0."""
    zero = torch.zeros((), dtype=values.dtype, device=values.device)
    return torch.where(mask, values, zero).sum(1) / mask.sum(1).clamp(min=1)


def feature_error(student: list[Tensor], teacher: list[Tensor], distance: Callable[..., Tensor]) -> list[Tensor]:
    """One [B] per level: ``distance`` of the maps [B, F, h, w], mean over the map; float32 also under AMP."""
    return [
        distance(s.float(), t.float(), reduction="none").mean((1, 2, 3)) for s, t in zip(student, teacher, strict=True)
    ]


def categorical_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) of softmax(logits / T) over the last axis: [..., R], [..., R] → [...]."""
    mine, theirs = (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1)
    return (theirs.exp() * (theirs - mine)).sum(-1)
