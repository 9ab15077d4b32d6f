"""A class becomes several: its kinds get a branch that names the class's own detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ciod.core import losses as L
from ciod.core.boxes import gather_rows
from ciod.core.errors import CiodError
from ciod.core.types import Batch
from ciod.detectors.base import Detector
from ciod.detectors.layers.refiner import Refiner
from ciod.detectors.staged_branches import StagedBranches
from ciod.methods.freeze_branch import FreezeBranch


class SplitClass(FreezeBranch):
    """Freezes the detector; the new classes are kinds of a known one, found where it is and in its boxes.

    The score of a kind is the parent's times that of a frozen-trunk branch, which learns only to name: at the positions
    that match an object, 1 for its own kind and 0 for the others; all 0 for an object that is labelled with the
    parent's name. The parent keeps its outputs, and names every object of no kind.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"dense", "branches", "children"})
    learns_background: ClassVar[bool] = False  # kinds are found where their parent is, and nowhere else

    parent: str
    """The known class."""

    def grow(self, detector: Detector, names: Sequence[str], taught: Sequence[str] = ()) -> None:
        """The first task's classes get rows; all later ones become kinds of ``parent``.

        Raises:
            CiodError: the detector does not know the parent.
        """
        if not detector.num_classes:
            detector.grow(names)
            return
        assert isinstance(detector, StagedBranches)
        if self.parent not in detector.class_names:
            raise CiodError(
                f"method.parent: the detector does not know '{self.parent}' when its kinds {', '.join(names)} arrive; "
                "it must be a class of an earlier task."
            )
        detector.add_children(self.parent, names, inner=self.inner)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``cls``: binary cross-entropy of the kinds at matched positions, divided by their number; ``refine``: that of
        the second stage."""
        if not len(self._branched.branches):
            return super().loss(batch)
        outputs = self._branched.newest(self.student(batch.images))
        matches = self.detector.match(outputs, batch.targets)
        supervision = L.supervise(outputs, batch.targets, matches)
        label = batch.targets.labels.gather(1, matches.target)
        first, last = self._branched.parts[-1][0], self._branched.parts[-1][-1]  # kinds arrive together
        kinds = torch.arange(first, last + 1, device=label.device)
        logits = gather_rows(outputs.logits[..., first : last + 1], matches.position)
        each = L.bce(logits, (label[..., None] == kinds).float()).sum(2)
        losses = {"cls": L.masked_sum(each, supervision.counted) / L.count(supervision.counted)}
        refiner = self._branched.branches[-1].refiner
        if outputs.near is not None and isinstance(refiner, Refiner):
            row = torch.where((label >= first) & (label <= last), label - first, len(kinds))
            boxes = gather_rows(outputs.boxes, matches.position), gather_rows(batch.targets.boxes, matches.target)
            losses["refine"] = refiner.loss(outputs.near, *boxes, matches.position, supervision.counted, row)
        return losses
