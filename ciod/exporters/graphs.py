"""The graphs that are exported: a detector's outputs, and its detections after non-maximum suppression."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ciod.exporters.parts import NonMaxSuppression, Part, Parts, dense, linked

if TYPE_CHECKING:
    from ciod.detectors.base import Detector

ALL = 1 << 20  # more boxes than any detector has


class Raw(nn.Module):
    """images [B, 3, H, W] RGB 0..255 → boxes [B, P, 4] xyxy in pixels of the batch image, scores [B, P, C] in 0..1."""

    names = ("boxes", "scores")

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector, self.parts = detector, Parts(detector)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return dense(self.parts(images), self.detector.num_classes)

    def wanted(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Boxes and scores of the detector itself, and the number of positions of each of its parts."""
        outputs = self.detector(images).answer()
        return outputs.boxes, self.detector.scores(outputs), outputs.parts


class Suppressed(Raw):
    """``Raw`` followed by ``Detector.decode``: detections [B, max_detections × parts, 6], sorted by score.

    The detector itself and each of its branches is a part with room for ``max_detections``.
    A row is x1, y1, x2, y2, score, label; unused rows are 0, 0, 0, 0, 0, -1. The graph is traced with boxes and scores
    as further outputs, so that both halves can be compared; the file only has detections.
    """

    names = ("boxes", "scores", "detections")

    def __init__(self, detector: Detector, *, score_threshold: float, nms_iou: float, max_detections: int):
        super().__init__(detector)
        self.floor, self.iou, self.limit = score_threshold, nms_iou, max_detections

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        parts = self.parts(images)
        return *dense(parts, self.detector.num_classes), self.suppress(parts)

    def suppress(self, parts: Sequence[Part]) -> Tensor:
        """Parts → detections [B, max_detections × parts, 6]."""
        best, local = zip(*(p.scores.max(1) for p in parts), strict=True)
        labels = [torch.tensor(p.columns)[i] for p, i in zip(parts, local, strict=True)]  # one label per position
        score, place = self._best(self.ranked(parts, best, labels))
        boxes = torch.cat([p.boxes for p in parts], 1).gather(1, place[..., None].expand(-1, -1, 4))
        label = torch.cat(labels, 1).to(boxes.dtype).gather(1, place)
        rows = torch.cat([boxes, score[..., None], label[..., None]], 2)
        unused = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, -1.0])
        return torch.where((score < 0)[..., None], unused, rows)

    def ranked(self, parts: Sequence[Part], best: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """[B, P] for each part: the scores, -1 where a better box of its class overlaps."""
        found: dict[int, Tensor] = {}
        for group in linked(parts):
            classes = sorted({c for i in group for c in parts[i].columns})
            score, label = torch.cat([best[i] for i in group], 1), torch.cat([labels[i] for i in group], 1)
            single = torch.where(label[:, None] == torch.tensor(classes)[:, None], score[:, None], torch.tensor(-1.0))
            boxes = torch.cat([parts[i].boxes for i in group], 1)
            # Boxes of one part must not take the room of another's, so there is none to take where they compete.
            room = self.limit if len(group) == 1 else ALL
            kept = NonMaxSuppression.apply(boxes, single, room, self.iou, self.floor)
            mark = torch.zeros_like(score).index_put((kept[:, 0], kept[:, 2]), torch.ones((), dtype=score.dtype))
            ranked = torch.where(mark > 0, score, torch.tensor(-1.0))
            found |= dict(zip(group, ranked.split([parts[i].boxes.shape[1] for i in group], 1), strict=True))
        return [found[i] for i in range(len(parts))]

    def _best(self, ranked: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores [B, P] per part → score and position [B, max_detections × parts] of the best of each, the best first.

        Positions count over all parts. Score -1: there is no further one, and the position means nothing.
        """
        if not self.parts.even:
            score, place = (torch.cat(x, 1) for x in zip(*self._each(ranked), strict=True))
            score, order = score.topk(self.limit * len(ranked), dim=1)
            return score, place.gather(1, order)
        of_part = torch.stack(list(ranked), 1)
        # Enough empty rows at the end to fill the list for any number of detections.
        score, place = nn.functional.pad(of_part, (0, self.limit), value=-1.0).topk(self.limit, dim=2)
        first = torch.arange(len(ranked))[:, None] * of_part.shape[2]
        place = torch.where(score < 0, torch.zeros_like(place), place + first).flatten(1)
        score, order = score.flatten(1).topk(self.limit * len(ranked), dim=1)
        return score, place.gather(1, order)

    def _each(self, ranked: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Score and position [B, max_detections] of the best of each part."""
        first = 0
        for of_part in ranked:
            score, place = nn.functional.pad(of_part, (0, self.limit), value=-1.0).topk(self.limit, dim=1)
            yield score, torch.where(score < 0, torch.zeros_like(place), place + first)
            first = first + of_part.shape[1]
