"""The interface of detectors with the trait ``branches``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeGuard

from torch import nn

from ciod.core.types import Outputs
from ciod.detectors.base import Detector
from ciod.detectors.layers.modules import Layers


class Branched(Detector):
    """The type of a detector whose trait is ``branches``. It need not be a subclass: ``has_branches`` reads the trait.

    Attributes:
        branches: in order of arrival.
        width: channels from which the widths of a branch are derived.
        parts: classes of each part of the outputs: the detector itself, then each branch.
    """

    second_stage: bool = False
    """Whether a new branch gets a second stage."""

    branches: Layers[nn.Module]
    width: int
    parts: list[list[int]]

    @abstractmethod
    def add_branch(
        self, names: Sequence[str], *, taught: Sequence[str] = (), inner: Sequence[int] | None = None
    ) -> nn.Module:
        """Adds classes on a branch: all existing outputs stay bit-identical. See ``YOLOX.add_branch``."""

    @abstractmethod
    def newest(self, outputs: Outputs) -> Outputs:
        """The positions of the branch added last."""


def has_branches(detector: Detector) -> TypeGuard[Branched]:
    """Whether new classes can get a branch."""
    return "branches" in detector.traits
