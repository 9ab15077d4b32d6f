"""The part of a detector that an ONNX graph computes: boxes and scores, of an extended detector per branch.

A branch scores only its own classes. ``Outputs`` has every class at every position, which a graph with five branches
would spend most of its time on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ciod.detectors.dense import grid
from ciod.detectors.layers.arbiter import Arbiter
from ciod.detectors.maps_branches import MapsBranches
from ciod.detectors.parted import Parted
from ciod.detectors.rcnn.proposals import NonMaxSuppression
from ciod.detectors.staged_branches import STRIDES, StagedBranches
from ciod.detectors.yolox import YOLOX, assemble
from ciod.exporters.merged import Merged, MergedRefiners, alike

if TYPE_CHECKING:
    from ciod.core.types import Outputs
    from ciod.detectors.base import Detector

__all__ = ["NonMaxSuppression", "Part", "Parts", "dense", "linked"]


@dataclass
class Part:
    """The outputs of the detector itself, or of a branch."""

    boxes: Tensor  # [B, P, 4] xyxy in pixels of the batch image
    scores: Tensor  # [B, k, P]
    columns: list[int]  # its k classes


class Parts(nn.Module):
    """images [B, 3, H, W] RGB 0..255 → parts."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector
        self.groups: list[list[int]] = []
        self.separate = isinstance(detector, MapsBranches) and len(detector.branches) > 0
        if isinstance(detector, YOLOX) and detector.has_children:
            self.separate = True  # a branch that reads the boxes of another cannot be merged with it
        elif isinstance(detector, YOLOX):
            branches = list(detector.branches)
            self.groups = alike(branches)
            self.merged = nn.ModuleList(Merged([branches[i] for i in group]) for group in self.groups)
            refiners = {i: b.refiner for i, b in enumerate(branches) if b.refiner is not None}
            self.corrected = list(refiners)
            self.refiners = MergedRefiners(list(refiners.values())) if refiners else None

    @property
    def number(self) -> int:
        """Number of parts."""
        return 1 + (len(self.detector.branches) if isinstance(self.detector, Parted) else 0)

    @property
    def even(self) -> bool:
        """Whether all parts have as many positions."""
        return self.number == 1 or isinstance(self.detector, YOLOX)

    def forward(self, images: Tensor) -> list[Part]:
        detector = self.detector
        if self.separate:
            assert isinstance(detector, (MapsBranches, YOLOX))
            separate, maps = detector.separate(images)
            own, *branches = [
                Part(p.boxes, p.scores().transpose(1, 2), columns)
                for p, columns in zip(separate, detector.parts, strict=True)
            ]
            return [_with_class(own), *_weighed(detector, branches, maps)]
        if not isinstance(detector, YOLOX) or not self.groups:
            outputs = detector(images).answer()
            if isinstance(detector, Parted) and outputs.parts:
                return _of_queries(detector, outputs)
            return [Part(outputs.boxes, detector.scores(outputs).transpose(1, 2), list(range(detector.num_classes)))]
        maps, features = detector.extract(images)
        towers = detector.head.towers(features)
        own = assemble(*detector.head.layers(*towers))
        found: dict[int, Part] = {}
        for group, merged in zip(self.groups, self.merged, strict=True):
            columns = [detector.parts[i + 1] for i in group]
            cls, reg = merged(maps, features, *towers)
            found |= dict(zip(group, _split(cls, reg, columns), strict=True))
        if self.refiners is not None:
            chosen = [found[i] for i in self.corrected]
            better = self.refiners(maps[0], [p.boxes for p in chosen], [p.scores for p in chosen])
            for i, (boxes, scores) in zip(self.corrected, better, strict=True):
                found[i] = replace(found[i], boxes=boxes, scores=scores)
        branches = _weighed(detector, [found[i] for i in range(len(found))], maps)
        return [_with_class(Part(own.boxes, own.scores().transpose(1, 2), detector.parts[0])), *branches]


def _of_queries(detector: Parted, outputs: Outputs) -> list[Part]:
    """The parts of outputs that have all classes at every position, with the arbiter's judgement."""
    boxes = outputs.boxes.split(outputs.parts, 1)
    scores = detector.scores(outputs).transpose(1, 2).split(outputs.parts, 2)
    return [
        _with_class(Part(b, s[:, columns], columns))
        for b, s, columns in zip(boxes, scores, detector.parts, strict=True)
    ]


def _with_class(part: Part) -> Part:
    """A part all of whose classes were dropped gets the first class with a score of 0, since a graph needs one."""
    return part if part.columns else Part(part.boxes, part.boxes[..., 0][:, None] * 0, [0])


def _weighed(detector: StagedBranches, branches: list[Part], maps: Sequence[Tensor]) -> list[Part]:
    """Branches with the scores that an arbiter leaves them, if there is one."""
    if detector.arbiter is None or not detector.arbiter.on:
        return branches
    return _judged(detector.arbiter, branches, maps, detector.judged)


def _split(cls: Sequence[Tensor], reg: Sequence[Tensor], columns: Sequence[list[int]]) -> list[Part]:
    """Maps of merged branches per level → the branches' parts. As ``yolox.assemble``."""
    n = len(columns)
    corner, stride, _ = grid(cls, STRIDES)
    logits = torch.cat([x.flatten(2) for x in cls], 2).float()
    raw = torch.cat([x.flatten(2) for x in reg], 2).float()
    around = raw[:, : 4 * n].unflatten(1, (n, 4))  # [B, n, 4, P]
    centre = around[:, :, :2] + (corner / stride[:, None]).T
    half = around[:, :, 2:].clamp(max=10).exp() / 2
    boxes = (torch.cat([centre - half, centre + half], 2) * stride).transpose(2, 3)
    objectness = raw[:, 4 * n :].sigmoid()
    parts, first = [], 0
    for i, own in enumerate(columns):
        p = logits[:, first : first + len(own)].sigmoid() * objectness[:, i : i + 1]
        parts.append(Part(boxes[:, i], p, own))
        first += len(own)
    return parts


def _judged(
    arbiter: Arbiter, branches: Sequence[Part], maps: Sequence[Tensor], columns: Sequence[list[int]]
) -> list[Part]:
    best = torch.stack([b.scores.amax(1) for b in branches], 1)
    boxes = torch.stack([b.boxes for b in branches], 1)
    factor = arbiter.factors(best, boxes, maps, columns)
    return [Part(b.boxes, b.scores * factor[:, i : i + 1], b.columns) for i, b in enumerate(branches)]


def dense(parts: Sequence[Part], classes: int) -> tuple[Tensor, Tensor]:
    """Boxes [B, ΣP, 4] and scores [B, ΣP, classes] of all parts; 0 for a class that a part does not have."""
    scores = []
    for part in parts:
        columns, x = part.columns, part.scores.transpose(1, 2)
        if columns == list(range(columns[0], columns[-1] + 1)):
            scores.append(nn.functional.pad(x, (columns[0], classes - 1 - columns[-1])))
        else:
            row = [columns.index(c) if c in columns else len(columns) for c in range(classes)]
            scores.append(nn.functional.pad(x, (0, 1)).index_select(2, torch.tensor(row)))
    return torch.cat([p.boxes for p in parts], 1), torch.cat(scores, 1)


def linked(parts: Sequence[Part]) -> list[list[int]]:
    """The numbers of the parts in groups that share no class with another group."""
    groups: list[list[int]] = []
    for i, part in enumerate(parts):
        near = [g for g in groups if any(set(parts[j].columns) & set(part.columns) for j in g)]
        groups = [g for g in groups if g not in near] + [[*(j for g in near for j in g), i]]
    return groups
