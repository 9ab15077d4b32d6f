"""The interface of detectors with the trait ``head_inputs``: their prediction layers answer stored features, too."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeGuard

from torch import Tensor

from ciod.detectors.base import Detector


class HeadInputs(Detector):
    """The type of a detector whose trait is ``head_inputs``. It need not be a subclass: ``has_head_inputs`` reads the
    trait. Its outputs have ``towers`` and ``box_towers``, the maps that its prediction layers take.

    Attributes:
        window: width k of the kernels of its prediction layers, 1 or 3; an answer depends on k × k cells.
    """

    window: int = 1

    @abstractmethod
    def answer_at(self, level: int, cls: Tensor, box: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction layers of a level at single cells.

        Args:
            cls, box: [n, F, k, k], windows of ``towers`` and ``box_towers``; outside of a map they are 0.

        Returns:
            Class logits [n, A, C] for A anchors per cell, and objectness (or centre-ness) [n, A] if there is one.
        """


def has_head_inputs(detector: Detector) -> TypeGuard[HeadInputs]:
    """Whether stored features can be replayed through the prediction layers."""
    return "head_inputs" in detector.traits
