"""Whether the outputs of the old classes are those of the model as it was, to the bit, looked at on real pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ciod.config.settings import Evaluation
from ciod.core.plural import counted
from ciod.core.types import Detections, Outputs
from ciod.data.index import Index
from ciod.data.loader import batches, eval_loader
from ciod.detectors.base import Detector
from ciod.evaluation.detect import PER_IMAGE
from ciod.extension.tradeoff import moved

MOST = 64  # pictures


@dataclass
class Unchanged:
    """What was compared, and what was found."""

    images: int
    identical: int  # pictures whose old logits, boxes and objectness have the bits of before
    boxes: int  # detections of old classes that were not taught further, before
    listed: int  # of these, how many are in the new model's list

    def sentences(self) -> list[str]:
        """What may be promised, in words."""
        if self.identical == self.images:
            first = f"Old outputs bit-identical, checked on {counted(self.images, 'picture')}."
        else:
            first = f"Old outputs are bit-identical on {self.identical} of {self.images} pictures only."
        if not self.boxes:
            return [first]
        if self.listed == self.boxes:
            return [first, f"All {self.boxes} old detections on them are in the new model's list."]
        return [
            first,
            f"{self.listed} of {self.boxes} old detections on them are in the new model's list; the arbiter between "
            "the branches removes the others (arbiter=off shows them).",
        ]


@torch.no_grad()
def look(
    before: Detector, after: Detector, indexes: Sequence[Index], settings: Evaluation, taught: Sequence[str]
) -> Unchanged | None:
    """Compares both models on up to 64 pictures. None: the method moves old weights, so nothing is promised.

    Args:
        taught: old classes that were taught further; their detections may change.
    """
    if moved(before.state_dict(), after.state_dict()):
        return None
    found = Unchanged(0, 0, 0, 0)
    for index in indexes:
        share = index.select(np.arange(min(len(index), -(-MOST // len(indexes)))))
        spec = before.input
        loader = eval_loader(share, spec.size, spec.fill, batch=settings.batch, workers=0, pin=False, place=spec.place)
        for batch in batches(loader):
            images = batch.images.to(before.device)
            old, new = before(images), after(images)
            found.images += len(images)
            found.identical += sum(same(old, new, i) for i in range(len(images)))
            decoding = {
                "score_threshold": settings.score_threshold,
                "nms_iou": settings.nms_iou,
                "max_detections": max(PER_IMAGE, settings.max_detections),
            }
            pairs = zip(before.decode(old, **decoding), after.decode(new, **decoding), strict=True)
            for a, b in pairs:
                boxes = keys(a, taught)
                found.boxes += len(boxes)
                found.listed += len(boxes & keys(b, taught))
    return found


def same(old: Outputs, new: Outputs, i: int) -> bool:
    """Whether picture ``i`` has the old positions' logits of the old classes, boxes and objectness to the bit."""
    old, new = old.answer(), new.answer()
    positions, classes = old.logits.shape[1:]
    pairs = [(old.logits[i], new.logits[i, :positions, :classes]), (old.boxes[i], new.boxes[i, :positions])]
    if old.objectness is not None and new.objectness is not None:
        pairs.append((old.objectness[i], new.objectness[i, :positions]))
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def keys(found: Detections, taught: Sequence[str]) -> set[tuple[str, bytes]]:
    """Class and box of each detection of another class than ``taught``."""
    names = [found.class_names[y] for y in found.labels]
    return {(n, b.tobytes()) for n, b in zip(names, found.boxes, strict=True) if n not in taught}
