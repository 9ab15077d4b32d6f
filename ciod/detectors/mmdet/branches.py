"""Branches of MMDetection's dense detectors: they read the maps of the backbone and the neck, which any config has."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ciod.core.boxes import suppress
from ciod.core.errors import CiodError
from ciod.core.types import Detections, Outputs
from ciod.detectors.layers.maps_branch import Channels, MapsBranch
from ciod.detectors.layers.refiner import Refiner
from ciod.detectors.maps_branches import MapsBranches
from ciod.detectors.staged_branches import STRIDES

PROBE = 128  # side of the picture whose maps show the strides


@dataclass(frozen=True)
class Taps:
    """Where the maps of strides 8, 16 and 32 are among those of the backbone and of the neck, and their channels."""

    early: tuple[int, ...]
    late: tuple[int | None, ...]  # None: the neck has no map of this stride
    channels: tuple[Channels, ...]


class MMDetBranches(MapsBranches):
    """The branches of ``MMDet``. The heads have no common place for their towers, so a branch has small ones of its
    own.

    Attributes:
        model: MMDetection's.
    """

    model: Any
    _taps: Taps | None = None

    @property
    def backbone(self) -> Any:
        return self.model.backbone

    @property
    def neck(self) -> Any:
        return getattr(self.model, "neck", None) or nn.Identity()

    @property
    def taps(self) -> Taps:
        """See ``Taps``.

        Raises:
            CiodError: the backbone does not have these maps.
        """
        if self._taps is None:
            self._taps = self._look()
        return self._taps

    @torch.no_grad()
    def _look(self) -> Taps:
        mode = self.training
        self.eval()
        try:
            maps = list(self.model.backbone(torch.zeros(1, 3, PROBE, PROBE, device=self.device)))
            features = list(self.neck(tuple(maps)))
        finally:
            self.train(mode)
        early, late = ({PROBE // m.shape[-1]: i for i, m in enumerate(found)} for found in (maps, features))
        if lacking := [s for s in STRIDES if s not in early]:
            raise CiodError(
                f"{self.settings['name']}: a branch reads maps of strides 8, 16 and 32, and the backbone of this "
                f"config has none of {', '.join(map(str, lacking))}. Use another method, such as method=pseudo_label."
            )
        channels = tuple(
            Channels(s, maps[early[s]].shape[1], features[late[s]].shape[1] if s in late else 0) for s in STRIDES
        )
        return Taps(tuple(early[s] for s in STRIDES), tuple(late.get(s) for s in STRIDES), channels)

    def judged_maps(self) -> tuple[Sequence[int], Sequence[int]]:
        return [c.early for c in self.taps.channels], STRIDES

    def make_branch(
        self, columns: Sequence[int], new: int, inner: Sequence[int], refiner: Refiner | None
    ) -> MapsBranch:
        return MapsBranch(self.taps.channels, columns, new, inner, refiner)

    def extract(
        self, images: Tensor, known: Sequence[Tensor] = (), features: list[Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The backbone's maps of strides 8, 16 and 32, and all maps of the neck. ``known`` is not used."""
        maps = self.model.backbone(self.normalise(images))
        return [maps[i] for i in self.taps.early], list(self.neck(maps)) if features is None else features

    def towers(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """None: they differ too much between heads."""
        return [], []

    def read_maps(
        self, maps: Sequence[Tensor], features: Sequence[Tensor], towers: tuple[Sequence[Tensor], Sequence[Tensor]]
    ) -> list[list[Tensor]]:
        """The backbone's map at each stride, and the neck's where it has one."""
        late = [[] if i is None else [features[i]] for i in self.taps.late]
        return [[x, *more] for x, more in zip(maps, late, strict=True)]

    def decode_with_branches(self, outputs: Outputs, own: list[Detections], **decoding: Any) -> list[Detections]:
        """The detections of the detector itself, and those of its branches. Classes that both have meet in NMS.

        Args:
            own: of the detector itself.
            decoding: see ``Detector.decode``.
        """
        logits = outputs.logits.clone()
        logits[:, : outputs.parts[0]] = -torch.inf
        found = super().decode(replace(outputs, logits=logits), **decoding)
        limit = self.nms_iou if decoding["nms_iou"] is None else decoding["nms_iou"]
        twice = [c for c in self.parts[0] if any(c in columns for columns in self.parts[1:])]
        return [_joined(a, b, twice, limit) for a, b in zip(own, found, strict=True)]


def first_part(outputs: Outputs) -> Outputs:
    """The positions of the detector itself."""
    n = outputs.parts[0]
    levels, left = [], n
    for size in outputs.levels:
        if left <= 0:
            break
        levels.append(size)
        left -= size
    assert outputs.objectness is not None
    return replace(
        outputs,
        logits=outputs.logits[:, :n],
        boxes=outputs.boxes[:, :n],
        points=outputs.points[:n],
        strides=outputs.strides[:n],
        objectness=outputs.objectness[:, :n],
        levels=tuple(levels),
        parts=(),
    )


def _joined(a: Detections, b: Detections, twice: Sequence[int], limit: float) -> Detections:
    """Both, the highest score first; among the classes ``twice`` a box suppresses those that overlap more than
    ``limit``."""
    boxes, scores = np.concatenate([a.boxes, b.boxes]), np.concatenate([a.scores, b.scores])
    labels = np.concatenate([a.labels, b.labels])
    kept = np.ones(len(scores), bool)
    if len(both := np.flatnonzero(np.isin(labels, twice))):
        kept[both] = False
        found, sure, named = (torch.from_numpy(x[both]) for x in (boxes, scores, labels))
        kept[both[suppress(found, sure, named, limit).numpy()]] = True
    order = np.argsort(-scores, kind="stable")
    order = order[kept[order]]
    return Detections(boxes[order], scores[order], labels[order], a.class_names)
