"""Shared by the methods for Faster R-CNN: the teacher's regions, on which teacher and student both give outputs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.types import Batch
from ciod.detectors.rcnn import sampling
from ciod.detectors.rcnn.detector import FasterRCNN
from ciod.detectors.rcnn.outputs import RoIOutputs
from ciod.methods.base.method import Method

BEST, DRAWN = 128, 64  # regions of an image: DRAWN at random of the teacher's BEST
MARGIN = 0.1  # an anchor's corrections are distilled where the teacher's objectness exceeds the student's by this


@dataclass
class Judged:
    """The answers of one detector for R regions of each image, with background as class 0."""

    logits: Tensor  # [B, R, 1 + C]
    deltas: Tensor  # [B, R, C, 4]


class RegionDistillation(Method):
    """Base of methods that compare teacher and student on the same regions, those that the teacher proposes.

    A subclass implements ``supervised`` and ``distill``.
    """

    needs = frozenset({"rois"})
    distillation_terms = frozenset({"distill_cls", "distill_box", "distill_rpn"})

    @property
    def rcnn(self) -> FasterRCNN:
        """The detector."""
        assert isinstance(self.detector, FasterRCNN)
        return self.detector

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if self.teacher is None:
            return super().loss(batch)
        outputs, knowledge = self.student(batch.images), self.teach(batch)
        assert isinstance(outputs, RoIOutputs) and isinstance(knowledge, RoIOutputs)
        supervised = self.supervised(outputs, knowledge, batch)
        at, valid = chosen(knowledge)
        regions = bx.gather_rows(knowledge.proposals, at)
        background, logits, deltas = self.rcnn.judge(outputs.features, regions)
        mine = Judged(torch.cat([background[..., None], logits], 2), deltas)
        return supervised | self.distill(outputs, knowledge, mine, answers(knowledge, at), valid, batch)

    @abstractmethod
    def supervised(self, outputs: RoIOutputs, knowledge: RoIOutputs, batch: Batch) -> dict[str, Tensor]:
        """The detector's own losses."""

    @abstractmethod
    def distill(
        self, outputs: RoIOutputs, knowledge: RoIOutputs, mine: Judged, theirs: Judged, valid: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """Named distillation terms.

        Args:
            mine, theirs: student and teacher on the same regions.
            valid: [B, R] bool; False = padding.
        """


def chosen(knowledge: RoIOutputs) -> tuple[Tensor, Tensor]:
    """64 random ones of the teacher's 128 best proposals of each image: positions [B, R], and which are real."""
    best = min(BEST, knowledge.real.shape[1])
    random = sampling.draws(knowledge.keys, best, 3).masked_fill(~knowledge.real[:, :best], -1.0)
    value, at = random.topk(min(DRAWN, best), dim=1)
    return at, value >= 0


def answers(outputs: RoIOutputs, at: Tensor) -> Judged:
    """A detector's outputs for its own regions at these positions [B, R]."""
    every = torch.cat([outputs.background[..., None], outputs.logits], 2)
    return Judged(bx.gather_rows(every, at), bx.gather_rows(outputs.class_deltas, at))


def mean(values: Tensor, valid: Tensor) -> Tensor:
    """[B, R] → the mean over the real regions of all images (of all processes)."""
    return L.masked_sum(values, valid) / L.count(valid)


def box_error(mine: Judged, theirs: Judged, valid: Tensor, old: int) -> Tensor:
    """Squared difference of the deltas of old classes: sum over the four numbers, mean over regions and classes."""
    error = (mine.deltas[:, :, :old] - theirs.deltas[:, :, :old]).square().sum(3).mean(2)
    return mean(error, valid)


def first_stage_error(outputs: RoIOutputs, knowledge: RoIOutputs) -> Tensor:
    """Faster-ILOD's term of the first stage (Peng et al., PRL 2020, eq. 6): lost objectness, squared, and the squared
    difference of the corrections where more than ``MARGIN`` is lost; means over anchors, then over levels."""
    lost = knowledge.rpn_logits - outputs.rpn_logits
    apart = (knowledge.rpn_deltas - outputs.rpn_deltas).square().sum(2)
    error = lost.clamp(min=0).square() + torch.where(lost > MARGIN, apart, 0.0)
    means: list[Tensor] = []
    for level in torch.split(error, list(outputs.rpn_levels), 1):
        means.append(level.mean())
    return torch.stack(means).mean()
