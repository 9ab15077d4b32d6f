"""Fine-tuning: the lower bound. Nothing is done against forgetting."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ciod.core.types import Batch, Outputs
from ciod.methods.base.method import Channels, Method


class Finetune(Method):
    """Trains on the new classes' boxes alone. What it forgets is what there is to save."""

    uses_teacher: ClassVar[bool] = False

    mask: Channels = "all"
    """Class channels that are supervised (``method.Channels``). ``new``: those of old classes are neither rewarded nor
    punished; ``matched``: they are at matched positions alone, which hold new objects; ``auto``: ``matched`` on a
    detector with objectness, else ``new``. Each is a fairer lower bound: what is still forgotten is drift of the shared
    weights, not training old objects as background (methods.md .1.5, .5)."""
    spare: bool = True
    """With another ``mask`` than ``all``, on a detector with objectness: positions the student scores 0.3 or more for
    an old class are no negatives of objectness, which knows no classes and would unlearn old objects. False: they
    are."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.supervised(self.student(batch.images), batch)

    def supervised(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The detector's loss with the channels ``mask`` leaves."""
        targets = batch.targets
        matches = self.detector.match(outputs, targets)
        if self.mask == "all" or not self.old:
            return self.detector.loss(outputs, targets, matches)
        channels = self.channels(self.mask, batch, outputs, matches)
        if self.spare and "objectness" in self.detector.traits:
            targets = self.spared(batch, outputs)
        return self.detector.loss(outputs, targets, matches, channels=channels)
