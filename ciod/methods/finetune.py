"""Fine-tuning: the lower bound. Nothing is done against forgetting."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from torch import Tensor

from ciod.methods.method import Method
from ciod.types import Batch, Outputs


class Finetune(Method):
    """Trains on the new classes' boxes alone. What it forgets is what there is to save."""

    uses_teacher: ClassVar[bool] = False

    mask: Literal["all", "new"] = "all"
    """``new``: class channels of old classes are neither rewarded nor punished. The fairer lower bound: what is still
    forgotten is drift of the shared weights, not training old objects as background (methods.md §1.5, §5)."""
    spare: bool = True
    """With ``mask=new`` on a detector with objectness: positions the student scores 0.3 or more for an old class are no
    negatives of objectness, which knows no classes and would unlearn old objects. False: they are."""

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return self.supervised(self.student(batch.images), batch)

    def supervised(self, outputs: Outputs, batch: Batch) -> dict[str, Tensor]:
        """The detector's loss with the channels ``mask`` leaves."""
        if self.mask == "all" or not self.old:
            return self.detector.loss(outputs, batch.targets, self.detector.match(outputs, batch.targets))
        taught = self.taught(batch, outputs.logits.shape[2])
        targets = batch.targets
        if self.spare:
            known = taught if targets.known is None else targets.known & taught
            targets = replace(targets, known=known)
        matches = self.detector.match(outputs, targets)
        return self.detector.loss(outputs, targets, matches, channels=taught)
