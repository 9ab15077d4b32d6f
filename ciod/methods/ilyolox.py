"""ilYOLOX: Center Re-Sampling (CRS) chooses what to teach, Collaborative Knowledge Distillation (CKD) weighs it.

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
    """Student and teacher at every match; what is said of matches with real boxes is not used."""

    logits: Tensor  # [B, K, C]
    soft: Tensor  # [B, K, C] the teacher's probabilities
    box: Tensor  # [B, K, 4]
    teacher_box: Tensor  # [B, K, 4]
    cls_error: Tensor  # [B, K] summed BCE, or KL
    loc_error: Tensor  # [B, K] 1 - GIoU, in 0..2


class ILYOLOX(Method):
    """Teaches where the teacher is sure, and what overlaps that well (CRS); of a position's class and box loss the one
    with the larger error weighs more (CKD).

    Without objectness a position's score is its class probability.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"dense"})
    distillation_terms: ClassVar[frozenset[str]] = frozenset({"distill_cls", "distill_box"})
    paper: ClassVar[str] = "Center Resampling and Collaborative Knowledge Distillation (ilYOLOX), 2022"

    select: Literal["crs", "threshold", "all_mean_std", "class_mean_std"] = "crs"
    """Which teacher positions are taught: CRS, or the rules the paper compares it with."""
    center_score: Fraction = 0.3
    """CRS: class probability (without objectness) from which a position is a center."""
    other_score: Fraction = 0.1
    """CRS: score every kept position must reach, centers too."""
    other_iou: Fraction = 0.65
    """CRS: overlap with a center of the same class that lets a neighbour in."""
    score: Fraction = 0.3
    """threshold: lowest score. class_mean_std: the same for classes with fewer than two positions."""
    deviations: Weight = 2.0
    """mean_std rules: how many standard deviations above the mean (published: 2 for all, 1 for class)."""
    nms_iou: Fraction = 0.65
    """NMS among kept positions. The paper's recipes have 0.95 with crs, which lets nearly all re-sampled neighbours
    live; 0.65 kept more in the ablation (docs/results/ilyolox-ablation.md)."""
    only_old: bool = True
    """Keep only labels the teacher was taught (False: parity with the published rules)."""
    guard_iou: Fraction | None = None
    """Drop a pseudo box that overlaps a real one by this (a deviation; the paper keeps all)."""

    weighted: bool = True
    """CKD: weigh each position by classification against localisation error; False: all weights 1."""
    detach_weights: bool = True
    """CKD: no gradient through the weights. False: as published, where a small class error is pushed up."""
    error: Literal["bce", "kl"] = "bce"
    """CKD: class error as summed BCE (published; never below the target's entropy) or as KL (reaches 0)."""
    target: Literal["soft", "hy1", "hy2", "hy3", "onehot"] = "soft"
    """Class target: the teacher's sigmoids, or the published variants of them."""
    unseen: Literal["zero", "ignore"] = "zero"
    """Target of the classes a grown student has and the teacher lacks."""
    cls_weight: Weight = 1.0
    """alpha_cls × lambda_cd."""
    box_weight: Weight = 1.0
    """alpha_loc; the IoU loss's own factor 5 comes on top."""
    old_in_ordinary_loss: bool = False
    """Old positives enter the ordinary losses with their hard label as well."""
    teacher_norm: Literal["stored", "batch"] = "stored"
    """A control, not for use: ``batch`` normalises the teacher by the statistics of the batch, as the published code
    did by mistake in its second task; what is taught then depends on the neighbours in the batch. Needs
    train.teacher=exact."""

    @property
    def exact_teacher(self) -> bool:
        return self.teacher_norm == "batch"

    def begin_task(self, task: Task) -> None:
        """Raises CiodError: batch statistics are asked of a teacher without batch normalisation."""
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
            norm.momentum = 0.0  # the statistics of the batch are used and not gathered: the weights stay the teacher's
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
        """The teacher's positions worth teaching (.4)."""
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
        """Pseudo boxes first, real boxes after: a match below their number is old (.4.4)."""
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
        """CKD (.5) over the positions matched with a pseudo box."""
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
        """Each match with the row of its pseudo box's source position: one teacher position to many of the student."""
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
        """CKD's weights: each in 0..2, sum 2; more to what is worse. [B, K] each."""
        if not self.weighted:
            return torch.ones_like(cls_error), torch.ones_like(loc_error)
        if self.detach_weights:
            cls_error, loc_error = cls_error.detach(), loc_error.detach()
        total = (cls_error + loc_error).clamp(min=1e-12)
        return 2 * cls_error / total, 2 * loc_error / total

    def harden(self, soft: Tensor) -> Tensor:
        """The published variants of the class target (.5.2). [B, K, C]."""
        best, where = soft.max(2, keepdim=True)
        if self.target == "hy2":
            return soft + 1 - best
        base = soft if self.target == "hy1" else torch.zeros_like(soft)
        return base.scatter(2, where, 1.0)

    def check(self) -> list[str]:
        problems = []
        if self.cls_weight == 0 and self.box_weight == 0 and not self.old_in_ordinary_loss:
            problems.append(
                "method.cls_weight and method.box_weight are both 0: nothing would hold the old classes. "
                "Use method=pseudo_label, or old_in_ordinary_loss=true."
            )
        if self.target == "hy3" and not self.weighted:
            problems.append("method.target=hy3 is a weighting of its own and has no effect with weighted=false.")
        if self.error == "kl" and self.target not in ("soft", "hy3"):
            problems.append(f"method.error=kl needs a soft target; method.target is {self.target}.")
        return problems
