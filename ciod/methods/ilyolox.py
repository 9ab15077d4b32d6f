"""ilYOLOX: Center Re-Sampling (CRS) selects positions, Collaborative Knowledge Distillation (CKD) weights their losses.

Paper: "Center Resampling and Collaborative Knowledge Distillation Strategies for Class Incremental Object Detection".
The formulas follow the published implementation; docs/methods/ilyolox.md says what is certain and what is inferred.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.errors import CiodError
from ciod.core.types import Batch, Matches, Outputs, Targets
from ciod.methods.base import selection
from ciod.methods.base.method import Method

if TYPE_CHECKING:
    from ciod.data.scenarios.scenario import Task

Fraction = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class Pairs(NamedTuple):
    """Student and teacher at every match; the values at matches with real boxes are not used."""

    logits: Tensor  # [B, K, C]
    soft: Tensor  # [B, K, C] the teacher's probabilities
    box: Tensor  # [B, K, 4]
    teacher_box: Tensor  # [B, K, 4]
    cls_error: Tensor  # [B, K] summed BCE, or KL
    loc_error: Tensor  # [B, K] 1 - GIoU, in 0..2


class ILYOLOX(Method):
    """Distils positions where the teacher is confident, and their overlapping neighbours (CRS). At each position, the
    class or box loss with the larger error weighs more (CKD).

    Without objectness, the score of a position is its class probability.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    distillation_terms: ClassVar[frozenset[str]] = frozenset({"distill_cls", "distill_box"})
    paper: ClassVar[str] = "Center Resampling and Collaborative Knowledge Distillation (ilYOLOX), 2022"

    select: Literal["crs", "threshold", "all_mean_std", "class_mean_std"] = "crs"
    """Which positions of the teacher are distilled: CRS, or one of the rules that the paper compares it with."""
    center_score: Fraction = 0.3
    """CRS: minimum class probability (without objectness) of a center."""
    other_score: Fraction = 0.1
    """CRS: minimum score of every kept position, including centers."""
    other_iou: Fraction = 0.65
    """CRS: minimum overlap of a neighbour with a center of the same class."""
    score: Fraction = 0.3
    """threshold: minimum score. class_mean_std: minimum score for classes with fewer than two positions."""
    deviations: Weight = 2.0
    """mean_std rules: number of standard deviations above the mean (published: 2 for all, 1 for class)."""
    nms_iou: Fraction = 0.65
    """NMS among kept positions. The paper's recipes have 0.95 with crs, which keeps nearly all re-sampled neighbours;
    0.65 gave better results in the ablation (docs/results/ilyolox-ablation.md)."""
    only_old: bool = True
    """Keep only classes that the teacher was taught (False: as in the published rules)."""
    guard_iou: Fraction | None = None
    """Drop a pseudo box that overlaps a real one by at least this (a deviation; the paper keeps all)."""

    weighted: bool = True
    """CKD: weight each position by its class error relative to its box error; False: all weights are 1."""
    detach_weights: bool = True
    """CKD: no gradient through the weights. False: as published, where a small class error is increased."""
    error: Literal["bce", "kl"] = "bce"
    """CKD: class error as summed BCE (published; never below the target's entropy) or as KL (reaches 0)."""
    target: Literal["soft", "hy1", "hy2", "hy3", "onehot"] = "soft"
    """Class target: the teacher's sigmoids, or the published variants of them."""
    unseen: Literal["zero", "ignore"] = "zero"
    """Target of the new classes, which the teacher lacks."""
    cls_weight: Weight = 1.0
    """alpha_cls × lambda_cd."""
    box_weight: Weight = 1.0
    """alpha_loc; the IoU loss's own factor 5 is applied in addition."""
    old_in_ordinary_loss: bool = False
    """Include old positives in the ordinary losses, too, with their hard label."""
    teacher_norm: Literal["stored", "batch"] = "stored"
    """A control, not for normal use: ``batch`` normalises the teacher by the statistics of the batch, as the published
    code did by mistake in its second task. Its outputs then depend on the other images in the batch. Needs
    train.teacher=exact."""

    @property
    def exact_teacher(self) -> bool:
        return self.teacher_norm == "batch"

    def begin_task(self, task: Task) -> None:
        """Raises CiodError: batch statistics are requested from a teacher without batch normalisation."""
        super().begin_task(task)
        if self.teacher_norm == "stored" or self.teacher is None:
            return
        norms = [m for m in self.teacher.detector.modules() if isinstance(m, nn.BatchNorm2d)]
        if not norms:
            raise CiodError(
                "method.teacher_norm=batch: the teacher has no batch normalisation, or it was folded into the "
                "convolutions; write train.teacher=exact, or leave teacher_norm out."
            )
        for norm in norms:
            norm.momentum = 0.0  # batch statistics are used but not stored: the teacher does not change
        warnings.warn(
            "method.teacher_norm=batch is a control that repeats a mistake of the published code (trap T1); do not "
            "report its results as ilyolox.",
            stacklevel=2,
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if self.teacher is None:
            return super().loss(batch)
        outputs = self.student(batch.images)
        knowledge = self.teach(batch)
        kept = self.choose(knowledge)
        if self.guard_iou is not None:
            kept = selection.without_real(kept, batch.targets, self.guard_iou)
        return self.losses(outputs, knowledge, kept, batch.targets)

    @torch.no_grad()
    def teach(self, batch: Batch) -> Outputs:
        if self.teacher_norm == "stored":
            return super().teach(batch)
        assert self.teacher is not None
        detector = self.teacher.detector
        detector.train()
        try:
            return detector(batch.images)
        finally:
            detector.eval()

    def choose(self, knowledge: Outputs) -> selection.Kept:
        """The positions where the teacher teaches."""
        nms, classes = self.nms_iou, self.old if self.only_old else None
        if self.select == "crs":
            return selection.center_resampling(
                knowledge,
                center_score=self.center_score,
                other_score=self.other_score,
                other_iou=self.other_iou,
                nms_iou=nms,
                classes=classes,
            )
        if self.select == "threshold":
            return selection.by_threshold(knowledge, score=self.score, nms_iou=nms, classes=classes)
        if self.select == "all_mean_std":
            return selection.by_mean_std(knowledge, deviations=self.deviations, nms_iou=nms, classes=classes)
        return selection.by_class_mean_std(
            knowledge, deviations=self.deviations, floor=self.score, nms_iou=nms, classes=classes
        )

    def losses(self, outputs: Outputs, knowledge: Outputs, kept: selection.Kept, real: Targets) -> dict[str, Tensor]:
        """Pseudo boxes first, real boxes after: a match with an index below their number is old."""
        targets = kept.targets + real
        matches = self.detector.match(outputs, targets)
        old = matches.valid & (matches.target < kept.position.shape[1])
        new = matches.valid & ~old
        counted = matches.valid if self.old_in_ordinary_loss else new
        losses = self.detector.loss(outputs, targets, matches, counted=counted)
        return losses | self.distill(outputs, knowledge, kept, matches, old)

    def distill(
        self, outputs: Outputs, knowledge: Outputs, kept: selection.Kept, matches: Matches, old: Tensor
    ) -> dict[str, Tensor]:
        """CKD over the positions matched with a pseudo box."""
        p = self.pair(outputs, knowledge, kept, matches)
        weight_cls, weight_loc = self.collaborate(p.cls_error, p.loc_error)
        if self.target == "hy3":
            weight_cls = (1 - p.soft.amax(2)).square()

        n = L.count(old)
        cls = p.cls_error if self.target in ("soft", "hy3") else L.bce(p.logits, self.harden(p.soft)).sum(2)
        box = L.iou_square(p.box, p.teacher_box)
        return {
            "distill_cls": self.cls_weight * L.masked_sum(weight_cls * cls, old) / n,
            "distill_box": 5 * self.box_weight * L.masked_sum(weight_loc * box, old) / n,
        }

    def pair(self, outputs: Outputs, knowledge: Outputs, kept: selection.Kept, matches: Matches) -> Pairs:
        """Each match with the source position of its pseudo box: one teacher position to many of the student."""
        source = matches.target.clamp(max=kept.position.shape[1] - 1)
        teacher_logits = bx.gather_rows(knowledge.logits, kept.position.gather(1, source))
        teacher_box = bx.gather_rows(kept.boxes, source)
        logits = bx.gather_rows(outputs.logits, matches.position)
        box = bx.gather_rows(outputs.boxes, matches.position)
        soft = teacher_logits.sigmoid()
        grown = logits.shape[2] - soft.shape[2]
        if grown and self.unseen == "zero":
            soft = torch.nn.functional.pad(soft, (0, grown))
        else:
            logits = logits[..., : soft.shape[2]]
        cls_error = L.bce(logits, soft).sum(2)
        if self.error == "kl":
            cls_error = cls_error - L.entropy(soft).sum(2)
        return Pairs(logits, soft, box, teacher_box, cls_error, 1 - bx.giou(box, teacher_box))

    def collaborate(self, cls_error: Tensor, loc_error: Tensor) -> tuple[Tensor, Tensor]:
        """CKD's weights [B, K]: each in 0..2, sum 2; the larger error gets the larger weight."""
        if not self.weighted:
            return torch.ones_like(cls_error), torch.ones_like(loc_error)
        if self.detach_weights:
            cls_error, loc_error = cls_error.detach(), loc_error.detach()
        total = (cls_error + loc_error).clamp(min=1e-12)
        return 2 * cls_error / total, 2 * loc_error / total

    def harden(self, soft: Tensor) -> Tensor:
        """The published variants of the class target [B, K, C]."""
        best, where = soft.max(2, keepdim=True)
        if self.target == "hy2":
            return soft + 1 - best
        base = soft if self.target == "hy1" else torch.zeros_like(soft)
        return base.scatter(2, where, 1.0)

    def check(self) -> list[str]:
        problems = []
        if self.cls_weight == 0 and self.box_weight == 0 and not self.old_in_ordinary_loss:
            problems.append(
                "method.cls_weight and method.box_weight are both 0, so nothing preserves the old classes. "
                "Use method=pseudo_label, or old_in_ordinary_loss=true."
            )
        if self.target == "hy3" and not self.weighted:
            problems.append("method.target=hy3 only changes the weights, so it has no effect with weighted=false.")
        if self.error == "kl" and self.target not in ("soft", "hy3"):
            problems.append(f"method.error=kl needs a soft target; method.target is {self.target}.")
        return problems
