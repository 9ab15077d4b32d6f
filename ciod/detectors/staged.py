"""Detectors whose trunk is computed in five parts, whose maps a student can pass to its teacher."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from ciod.core.types import Outputs
from ciod.detectors.base import Detector
from ciod.detectors.layers.backbones import Backbone


class StagedDetector(Detector):
    """A detector with a ``Backbone``, a neck and a head. Subclasses implement ``respond`` instead of ``forward``."""

    backbone: Backbone
    neck: nn.Module

    @abstractmethod
    def respond(self, images: Tensor, maps: list[Tensor], features: list[Tensor]) -> Outputs:
        """The head's outputs, in float32.

        Args:
            images: [B, 3, H, W], only for their shape and device.
            maps: the backbone's at strides 8, 16 and 32: [B, F, h, w] each.
            features: the neck's: [B, F, h, w] each.
        """

    def forward(self, images: Tensor) -> Outputs:
        """[B, 3, H, W] RGB 0..255 → Outputs in float32."""
        return self.respond(images, *self.extract(images))

    def extract(
        self, images: Tensor, known: Sequence[Tensor] = (), features: list[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The maps of the backbone and of the neck.

        Args:
            known: maps of the first stages, stage 1 first; these stages are not computed again.
            features: the neck's maps, if they are known, too.
        """
        maps = self.backbone.stages(None if known else self.normalise(images), known)[1:]
        return maps, self.neck(maps) if features is None else features

    def trunk(self) -> list[nn.Module]:
        return [self.backbone, self.neck]


def parts(detector: Detector) -> list[tuple[nn.Module, ...]]:
    """Backbone and neck as parts that can be shared, in order of execution; [] for other detectors."""
    if not isinstance(detector, StagedDetector) or not isinstance(detector.backbone, Backbone):
        return []
    b = detector.backbone
    return [(b.stem, b.stage1), (b.stage2,), (b.stage3,), (b.stage4,), (detector.neck,)]
