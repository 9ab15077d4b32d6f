"""BPF: pseudo-labels for the past, no background where an object may come, two teachers for the present.

Paper: Mo et al., "Bridge Past and Future: Overcoming Information Asymmetry in Incremental Object Detection", ECCV 2024
(Faster R-CNN). docs/methods/bpf.md has the formulas and says what is certain, inferred and left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import PrivateAttr
from torch import Tensor

from ciod.core import boxes as bx
from ciod.core.errors import ConfigError
from ciod.core.files import is_file
from ciod.core.plural import counted
from ciod.core.types import Batch, Matches, Targets
from ciod.detectors.base import Detector
from ciod.detectors.rcnn.detector import FasterRCNN
from ciod.detectors.rcnn.outputs import RoIOutputs
from ciod.methods.base import selection
from ciod.methods.base.distillation import Fraction, Weight
from ciod.methods.base.interim import TRAIN
from ciod.methods.base.regions import (
    Judged,
    RegionDistillation,
    box_error,
    chosen,
    first_stage_error,
    mean,
)
from ciod.methods.mma import unbiased_distillation

if TYPE_CHECKING:
    from ciod.data.scenarios.scenario import Task

NEAR = 0.5  # IoU with a real box from which a region belongs to the interim model


class BPF(RegionDistillation):
    """Pseudo-labels, no background where a future object may be, and distillation from two teachers."""

    paper: ClassVar[str] = "Bridge Past and Future, ECCV 2024"

    interim: Literal["train", "none"] | list[str] = "train"
    """The interim models, which know the new classes of a task alone. ``train``: before each later task the run
    fine-tunes a copy of the detector on its images and new classes. Or for each later task a model file. ``none``: only
    the teacher teaches, and new classes count as background in the distillation, as in ``mma``."""
    score: Fraction = 0.75
    """Minimum score of a pseudo box."""
    nms_iou: Fraction = 0.5
    """NMS among pseudo boxes of a class."""
    keep_iou: Fraction = 0.4
    """A pseudo box that overlaps a real one by more than this is neither object nor background."""
    drop_iou: Fraction = 0.8
    """A pseudo box that overlaps a real one by more than this is dropped."""
    future: Fraction = 0.2
    """Regions without a box are not background if they belong to this share with the highest objectness and to this
    share with the highest attention of the maps. 0: all are background."""
    weight: Weight = 0.15
    """Weight of the distillation of classes and boxes."""
    rpn_weight: Weight = 0.15
    """Weight of Faster-ILOD's term of the first stage."""

    _trained: Detector | None = PrivateAttr(default=None)  # by the run, for the task that begins
    _other: FasterRCNN | None = PrivateAttr(default=None)
    _columns: list[int] = PrivateAttr(default_factory=list)  # its classes in the order of this task's

    @property
    def trains_interim(self) -> bool:
        return self.interim == TRAIN

    def take_interim(self, model: Detector) -> None:
        self._trained = model

    def check(self) -> list[str]:
        files = self.interim if isinstance(self.interim, list) else []
        lacking = [f"method.interim: there is no file {f}." for f in files if not is_file(f)]
        if self.drop_iou < self.keep_iou:
            lacking.append(f"method.drop_iou={self.drop_iou:g} is below method.keep_iou={self.keep_iou:g}.")
        return lacking

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self._other, trained, self._trained = None, self._trained, None
        if self.teacher is None or (trained is None and not isinstance(self.interim, list)):
            return
        file, other = self._read(task) if trained is None else ("the interim model", trained)
        lacking = [n for n in task.new_classes if n not in other.class_names]
        if not isinstance(other, FasterRCNN) or lacking:
            what = f"does not know {lacking[0]!r}" if lacking else "is not a Faster R-CNN"
            raise ConfigError([f"method.interim: {file} {what}; it must be trained on the task's new classes."])
        self._other = other.frozen().to(self.detector.device)
        self._columns = [other.class_names.index(n) for n in task.new_classes]

    def _read(self, task: Task) -> tuple[str, Detector]:
        """The model file of the task, and the model in it."""
        from ciod.detectors.files.weights import load

        assert isinstance(self.interim, list)
        if task.index > len(self.interim):
            have = counted(len(self.interim), "model file")
            raise ConfigError([f"method.interim: it has {have}, but task {task.index + 1} needs one."])
        file = self.interim[task.index - 1]
        return file, load(file)

    def supervised(self, outputs: RoIOutputs, knowledge: RoIOutputs, batch: Batch) -> dict[str, Tensor]:
        targets = self.past(knowledge, batch.targets, outputs.logits.shape[2]) + batch.targets
        matches = self.detector.match(outputs, targets)
        return self.detector.loss(outputs, targets, self.spare(outputs, matches))

    def past(self, knowledge: RoIOutputs, real: Targets, classes: int) -> Targets:
        """The teacher's boxes as targets; those that overlap a real one are doubtful, or dropped."""
        kept = selection.by_threshold(knowledge, score=self.score, nms_iou=self.nms_iou, classes=self.old)
        overlap = bx.pairwise_iou(kept.boxes, real.boxes).masked_fill(~real.valid[:, None], 0).amax(2)
        targets = replace(kept, valid=kept.valid & (overlap <= self.drop_iou)).targets
        known = None
        if real.known is not None:
            known = (torch.arange(classes, device=overlap.device) < self.old).expand(len(overlap), -1)
        return replace(targets, doubtful=overlap > self.keep_iou, known=known)

    def spare(self, outputs: RoIOutputs, matches: Matches) -> Matches:
        """Matches whose ``ignored`` are the regions that may show a future object."""
        regions = outputs.proposals.shape[1]
        best = int(self.future * regions)
        if not best:
            return matches
        looked = attention(self.rcnn, outputs).masked_fill(~outputs.real, -1.0)
        at = looked.topk(best, dim=1).indices
        high = bx.marked(at, torch.ones_like(at, dtype=torch.bool), regions)
        first = torch.arange(regions, device=at.device) < best  # proposals are ordered by objectness
        return replace(matches, ignored=high & first & ~matches.positive)

    def distill(
        self, outputs: RoIOutputs, knowledge: RoIOutputs, mine: Judged, theirs: Judged, valid: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        rpn = {"distill_rpn": self.rpn_weight * first_stage_error(outputs, knowledge)}
        if self._other is None:
            cls = unbiased_distillation(mine.logits, theirs.logits, valid)
            box = box_error(mine, theirs, valid, self.old)
            return {"distill_cls": self.weight * cls, "distill_box": self.weight * box} | rpn
        interim, near = self.ask_interim(knowledge, batch)
        aim = two_teachers(theirs.logits.softmax(2), interim.logits.softmax(2), near)
        cls = mean(-(aim * mine.logits.log_softmax(2)).sum(2) / aim.shape[2], valid)
        new = replace(mine, deltas=mine.deltas[:, :, self.old :])
        box = box_error(mine, theirs, valid & ~near, self.old)
        box = box + box_error(new, interim, valid & near, interim.deltas.shape[2])
        return {"distill_cls": self.weight * cls, "distill_box": self.weight * box} | rpn

    @torch.no_grad()
    def ask_interim(self, knowledge: RoIOutputs, batch: Batch) -> tuple[Judged, Tensor]:
        """The interim model on the teacher's regions, and which of these [B, R] are near a real box."""
        assert self._other is not None
        at, _ = chosen(knowledge)
        regions = bx.gather_rows(knowledge.proposals, at)
        background, logits, deltas = self._other.judge(self._other(batch.images).features, regions)
        column = torch.tensor(self._columns, device=at.device)
        every = torch.cat([background[..., None], logits.index_select(2, column)], 2)
        overlap = bx.pairwise_iou(regions, batch.targets.boxes).masked_fill(~batch.targets.valid[:, None], 0)
        return Judged(every, deltas.index_select(2, column)), overlap.amax(2) >= NEAR


def two_teachers(old: Tensor, new: Tensor, near: Tensor) -> Tensor:
    """[B, R, 1 + old + new]: what both models say together; it sums to 1.

    Args:
        old: [B, R, 1 + old] probabilities of the teacher, background first.
        new: [B, R, 1 + new] of the interim model.
        near: [B, R] bool: near a real box the interim model decides, elsewhere the teacher.
    """
    none_old, none_new = old[..., :1], new[..., :1]
    far = torch.cat([none_old * none_new, old[..., 1:], none_old * new[..., 1:]], 2)
    close = torch.cat([none_old * none_new, none_new * old[..., 1:], new[..., 1:]], 2)
    return torch.where(near[..., None], close, far)


@torch.no_grad()
def attention(detector: FasterRCNN, outputs: RoIOutputs) -> Tensor:
    """[B, K]: the mean, inside each region, of the softmax over a map's places of its squared activation."""
    maps = []
    for m in outputs.features:
        energy = m.float().square().sum(1)
        share = energy.flatten(1).softmax(1) * energy[0].numel()  # 1 where a map is even
        maps.append(share.view_as(energy)[:, None])
    return detector.pool(maps, outputs.proposals).mean((1, 2, 3)).view_as(outputs.background)
