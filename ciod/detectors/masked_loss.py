"""The loss of a detector under masks: which matches count, which channels are trained, what is not labelled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from ciod.core.losses import Supervision, supervise
from ciod.core.types import Matches, Outputs, Targets


class MaskedLoss(ABC):
    """``loss`` makes the masks once, so that no detector can forget them; ``losses`` is the detector's own."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "loss" in cls.__dict__ and getattr(cls.losses, "__isabstractmethod__", False):
            cls.losses = _unused  # it calls ``supervise`` itself, as every detector once did

    def loss(
        self,
        outputs: Outputs,
        targets: Targets,
        matches: Matches,
        *,
        counted: Tensor | None = None,
        channels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The detector's own losses as a dict of float32 scalars: ``losses`` under the masks of ``supervise``.

        Args:
            counted: [B, K] bool, matches that enter the class and box losses (default: all valid ones). Objectness,
                if there is one, always uses every match.
            channels: [C], [B, C] or [B, P, C] bool, class channels with supervision (default: all).
        """
        outputs, matches, channels = self.in_loss(outputs, matches, channels)
        return self.losses(outputs, targets, matches, supervise(outputs, targets, matches, counted, channels))

    @abstractmethod
    def losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, supervision: Supervision
    ) -> dict[str, Tensor]:
        """The losses, multiplied with masks, which come from the arguments of ``loss`` and from incomplete targets
        (unlabelled classes, doubtful boxes, images without labels)."""

    def in_loss(
        self, outputs: Outputs, matches: Matches, channels: Tensor | None
    ) -> tuple[Outputs, Matches, Tensor | None]:
        """The part of the outputs that is trained, with its matches and channels; here all of it."""
        return outputs, matches, channels


def _unused(
    self: MaskedLoss, outputs: Outputs, targets: Targets, matches: Matches, supervision: Supervision
) -> dict[str, Tensor]:
    raise NotImplementedError(f"{type(self).__name__} has a loss of its own.")
