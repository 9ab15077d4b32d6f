"""Fine-tuning: the lower bound, with no measure against forgetting."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ciod.core.types import Batch, Outputs
from ciod.methods.base.method import Channels, Method


class Finetune(Method):
    """Trains only on the boxes of the new classes. It shows how much is forgotten without a method."""

    uses_teacher: ClassVar[bool] = False

    mask: Channels = "all"
    """Class channels that are supervised (``method.Channels``). ``new``: channels of old classes are not trained;
    ``matched``: they are trained only at matched positions, which show new objects; ``auto``: ``matched`` on a
    detector with objectness, else ``new``. Each is a fairer lower bound: the remaining forgetting comes from drift of
    the shared weights, not from training old objects as background."""
    spare: bool = True
    """For every ``mask`` except ``all``, on a detector with objectness: positions that the student scores 0.3 or more
    for an old class are not negatives of objectness. Objectness has no classes and would unlearn old objects. False:
    they are negatives."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.supervised(self.student(batch.images), batch)

    def supervised(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The detector's loss over the channels that ``mask`` keeps."""
        targets = batch.targets
        matches = self.detector.match(outputs, targets)
        if self.mask == "all" or not self.old:
            return self.detector.loss(outputs, targets, matches)
        channels = self.channels(self.mask, batch, outputs, matches)
        if self.spare and "objectness" in self.detector.traits:
            targets = self.spared(batch, outputs)
        return self.detector.loss(outputs, targets, matches, channels=channels)
