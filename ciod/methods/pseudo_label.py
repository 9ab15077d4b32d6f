"""Pseudo-labels: the teacher's confident boxes of old classes are added to the real ones. Simple and hard to beat.

Thresholds: SIKD, GCD (fixed), CL-DETR (top 10), SDDGR (top 30 above 0.3), PseDet (per class, 2-means).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor

from ciod.core.two_means import two_means
from ciod.core.types import KNOWN, Batch, Detections, Outputs, Targets, in_original
from ciod.methods.base import selection
from ciod.methods.base.method import Method

if TYPE_CHECKING:
    from ciod.data.index import Index
    from ciod.data.scenarios.scenario import Task

Fraction = Annotated[float, Field(ge=0, le=1)]


class PseudoLabel(Method):
    """The teacher labels the old objects in new images; its boxes are added to the real ones."""

    threshold: Literal["fixed", "adaptive"] = "fixed"
    """``adaptive``: one threshold per class, between the two clusters of the teacher's scores in the task's images
    (PseDet); ``score`` for classes with fewer than four detections."""
    score: Fraction = 0.4
    """Minimum score of a pseudo box (0.4: SIKD, GCD)."""
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Keep only this many boxes per image, the best. CL-DETR: score=0 top_k=10. SDDGR: score=0.3 top_k=30."""
    buffer: Fraction = 0.0
    """``adaptive``: distance of the threshold below the smallest score of the upper cluster."""
    floor: Fraction = 0.05
    """``adaptive``: scores below this are not clustered."""
    images: Annotated[int, Field(ge=1)] = 500
    """``adaptive``: number of the task's images whose detections are clustered, evenly spaced."""
    doubt: Fraction | None = None
    """Ignore band: boxes from this score up to the threshold are neither object nor background. None: no band."""
    class_scores: dict[str, Fraction] | None = None
    """Minimum score per class, by name; other classes use ``score``. ``ciod extend`` fills it in."""
    nms_iou: Fraction = 0.65
    """NMS among pseudo boxes of a class."""
    guard_iou: Fraction | None = 0.7
    """Drop a pseudo box that overlaps a real one by at least this; None keeps all."""
    offline: bool = False
    """The teacher labels each image once, before the first step, without augmentation. Its boxes are then flipped,
    zoomed and cropped like the real ones. A step costs as much as one of fine-tuning. Not with ``doubt``."""
    only_old: bool = True
    """Keep only classes that the teacher was taught (False: as in the published ``pseudo_hard``)."""

    _limits: Tensor | None = PrivateAttr(default=None)  # [C_old] thresholds

    def begin_task(self, task: Task) -> None:
        super().begin_task(task)
        self._limits = None
        if self.teacher is not None and self.threshold == "adaptive":
            self._limits = self.adapt(task)
        elif self.teacher is not None and self.class_scores:
            limits = [self.class_scores.get(n, self.score) for n in self.teacher.class_names]
            self._limits = torch.tensor(limits, device=self.teacher.detector.device)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if self.teacher is None or self.offline:
            return super().loss(batch)
        outputs = self.student(batch.images)
        return self.supervised(outputs, self.teach(batch), batch)

    def supervised(self, outputs: Outputs, knowledge: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The detector's own losses for the real boxes and the teacher's."""
        if self.offline:  # they are boxes of the batch already
            return self.detector.loss(outputs, batch.targets, self.detector.match(outputs, batch.targets))
        kept = self.choose(knowledge.logits.shape[2], knowledge)
        if self.guard_iou is not None:
            kept = selection.without_real(kept, batch.targets, self.guard_iou)
        if batch.source is not None:  # what is labelled completely has no other object
            kept = replace(kept, valid=kept.valid & (batch.source != KNOWN)[:, None])
        targets = self.pseudo(kept, batch, outputs.logits.shape[2]) + batch.targets
        matches = self.detector.match(outputs, targets)
        return self.detector.loss(outputs, targets, matches)

    def choose(self, classes: int, knowledge: Any) -> selection.Kept:
        """The teacher's boxes, including doubtful ones."""
        sure = self.score if self._limits is None else min(self.score, self.floor)
        lowest = sure if self.doubt is None else min(sure, self.doubt)
        kept = selection.by_threshold(
            knowledge, score=lowest, nms_iou=self.nms_iou, classes=self.old if self.only_old else None
        )
        if self.top_k is not None:
            ranked = kept.scores.masked_fill(~kept.valid, -1)
            best = ranked.topk(min(self.top_k, ranked.shape[1]), dim=1).values[:, -1:]
            kept = replace(kept, valid=kept.valid & (ranked >= best))
        if self.doubt is None:
            kept = replace(kept, valid=kept.valid & (kept.scores >= self.limit(kept)))
        return kept

    def limit(self, kept: selection.Kept) -> Tensor | float:
        """Threshold of each box: [B, M], or one for all."""
        if self._limits is None:
            return self.score
        limits = torch.nn.functional.pad(self._limits, (0, 1), value=self.score)  # one place for labels beyond old
        return limits[kept.labels.clamp(max=len(self._limits))]

    def pseudo(self, kept: selection.Kept, batch: Batch, classes: int) -> Targets:
        """Kept boxes as targets; in images with incomplete labels they are the labels of the old classes."""
        targets = kept.targets
        if self.doubt is not None:
            targets = replace(targets, doubtful=kept.scores < self.limit(kept))
        if batch.targets.known is not None:
            old = torch.arange(classes, device=kept.scores.device) < self.old
            targets = replace(targets, known=old.expand(len(kept.scores), -1))
        return targets

    @torch.no_grad()
    def draw(self, images: Index, workers: int = 0) -> Index | None:
        if self.teacher is None or not self.offline:
            return None
        found = [(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64))]  # row, boxes, labels
        for batch, outputs in self._teach_plain(images, workers=workers):
            kept = self.choose(outputs.logits.shape[2], outputs)
            if self.guard_iou is not None:
                kept = selection.without_real(kept, batch.targets, self.guard_iou)
            for i, ok in enumerate(kept.valid):
                boxes, scores, labels = (v[i, ok].cpu().numpy() for v in (kept.boxes, kept.scores, kept.labels))
                d = Detections(boxes, scores, labels, self.teacher.class_names)
                assert batch.frames is not None
                d = in_original(d, batch.frames[i].tolist(), *batch.sizes[i].tolist())
                inside = (d.boxes[:, 2:] > d.boxes[:, :2]).all(1)
                found.append((np.full(inside.sum(), int(batch.index[i])), d.boxes[inside], d.labels[inside]))
        rows, boxes, labels = (np.concatenate(column) for column in zip(*found, strict=True))
        return images.with_boxes(rows, boxes, labels)

    def _teach_plain(
        self, images: Index, rows: range | None = None, workers: int = 0
    ) -> Iterator[tuple[Batch, Outputs]]:
        """The teacher on images without augmentation, in order."""
        from ciod.data.loader import batches, eval_loader

        assert self.teacher is not None
        teacher, device = self.teacher.detector, self.detector.device  # in full precision
        input_spec = teacher.input
        how = {"batch": 8, "workers": workers, "pin": False, "rows": rows, "place": input_spec.place}
        loader = eval_loader(images, input_spec.size, input_spec.fill, **how)
        for batch in batches(loader):
            batch = batch.to(device)
            yield batch, teacher(batch.images)

    def check(self) -> list[str]:
        if self.offline and self.doubt is not None:
            return ["method.offline=true cannot be combined with method.doubt: remove one of them."]
        return []

    @torch.no_grad()
    def adapt(self, task: Task) -> Tensor:
        """[C_old] thresholds: the smallest score of the upper of two clusters, less ``buffer``."""
        device = self.detector.device
        rows = range(0, len(task.train), max(1, len(task.train) // self.images))[: self.images]
        scores, labels = [torch.zeros(0)], [torch.zeros(0, dtype=torch.long)]
        for _, outputs in self._teach_plain(task.train, rows):
            kept = selection.by_threshold(outputs, score=self.floor, nms_iou=self.nms_iou, classes=self.old)
            scores.append(kept.scores[kept.valid].cpu())
            labels.append(kept.labels[kept.valid].cpu())
        s, y = torch.cat(scores), torch.cat(labels)
        each = [upper_cluster(s[y == c]) for c in range(self.old)]
        limits = [self.score if v is None else max(self.floor, v - self.buffer) for v in each]
        return torch.tensor(limits, device=device)


def upper_cluster(scores: Tensor) -> float | None:
    """The smallest score of the upper of two clusters; None with fewer than four scores, which make no clusters."""
    found = two_means(scores.numpy()) if len(scores) >= 4 else None
    return None if found is None else found.first_high
