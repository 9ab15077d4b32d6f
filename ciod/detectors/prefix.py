"""Frozen first layers that a teacher has in common with its student: what they give for a batch is computed once.

The student lends its maps, the teacher takes them over for the very same images and goes on from there. No method knows
of it; one that asks the teacher first, or on other pixels, gets what the teacher computes by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ciod.detectors.base import Detector
    from ciod.detectors.layers.backbones import Backbone


class Prefix:
    """What passes from student to teacher within a step.

    Args:
        depth: how many of ``parts`` are shared, at least 1.
    """

    def __init__(self, depth: int):
        self.depth = depth
        self._held: tuple[Tensor, int, list[Tensor], list[Tensor] | None] | None = None
        self._ready: torch.cuda.Event | None = None

    def lend(self, images: Tensor, maps: list[Tensor], features: list[Tensor] | None) -> None:
        """Keeps what the shared layers gave for ``images``, until it is taken or the next batch comes.

        Args:
            maps: of the first stages of the backbone, stage 1 first; features: the neck's, where it is shared too.
        """
        self._held = (images, images._version, maps, features)
        if images.is_cuda:
            self._ready = torch.cuda.Event()
            self._ready.record()

    def take(self, images: Tensor) -> tuple[list[Tensor], list[Tensor] | None]:
        """The maps that were lent for this very tensor, unchanged since; else none."""
        held, self._held = self._held, None
        if held is None or held[0] is not images or held[1] != images._version:
            return [], None
        if self._ready is not None:  # the teacher may be on a stream of its own
            here = torch.cuda.current_stream()
            here.wait_event(self._ready)
            for t in [*held[2], *(held[3] or [])]:
                t.record_stream(here)
        return held[2], held[3]


def parts(detector: Detector) -> list[tuple[nn.Module, ...]]:
    """Backbone and neck in the order of execution, in pieces that can be shared; [] for a detector of other parts."""
    from ciod.detectors.layers.backbones import Backbone

    b, neck = getattr(detector, "backbone", None), getattr(detector, "neck", None)
    if not isinstance(b, Backbone) or not isinstance(neck, nn.Module):
        return []
    return [(b.stem, b.stage1), (b.stage2,), (b.stage3,), (b.stage4,), (neck,)]


def extract(detector: Detector, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """[B, 3, H, W] RGB 0..255 → the maps of the detector's ``backbone`` and of its ``neck``."""
    backbone: Backbone = detector.backbone  # type: ignore[assignment]
    neck: nn.Module = detector.neck  # type: ignore[assignment]
    if detector.borrows is not None:
        lent, features = detector.borrows.take(images)
        if lent:
            maps = backbone.stages(None, lent)
            return maps[1:], neck(maps[1:]) if features is None else features
    if detector.lends is None or not detector.training:
        maps = backbone(detector.normalise(images))
        return maps, neck(maps)
    maps = backbone.stages(detector.normalise(images))
    depth = detector.lends.depth
    if depth < 5:  # lent before the rest is computed: a teacher beside the student need not wait for it
        detector.lends.lend(images, maps[:depth], None)
        return maps[1:], neck(maps[1:])
    features = neck(maps[1:])
    detector.lends.lend(images, maps, features)
    return maps[1:], features
