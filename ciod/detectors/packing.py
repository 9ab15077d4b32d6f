"""The maps that a branch reads, one row of half precision per image, so that a frozen trunk is computed once."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

LARGEST_HALF = 65504.0

Shape = tuple[int, int, int]  # height, width and channels of a map


class Packer(Protocol):
    """What computes the maps of images. See ``Packs``."""

    @property
    def packed_width(self) -> int: ...

    def packed(self, images: Tensor) -> Tensor: ...


class Packs:
    """A detector whose newest branch can be trained from rows of ``packed``: in train mode ``forward`` takes them in
    place of images."""

    @abstractmethod
    def branch_maps(self, images: Tensor) -> list[Tensor]:
        """The maps that branches read, [B, F, h, w] each on the detector's device, for images as in ``forward`` on any
        device; nothing else is computed."""

    @abstractmethod
    def map_shapes(self) -> Sequence[Shape]:
        """Those of ``branch_maps`` for images of the detector's own size."""

    @torch.no_grad()
    def packed(self, images: Tensor) -> Tensor:
        """[B, ``packed_width``] float16 on the CPU: the maps of each image in one row.

        Images are computed ``at_once`` at a time. Rounding would make a row depend on the number of images beside it,
        and a resumed run packs other images together.
        """
        return torch.cat([self.rows(part) for part in images.split(self.at_once)])

    @property
    def at_once(self) -> int:
        """How many images ``packed`` computes together."""
        return 1

    def rows(self, images: Tensor) -> Tensor:
        """As ``packed``, of images that are computed together."""
        maps = [m.permute(0, 2, 3, 1).flatten(1) for m in self.branch_maps(images)]
        return torch.cat([m.clamp(-LARGEST_HALF, LARGEST_HALF).half() for m in maps], 1).cpu()

    @property
    def packed_width(self) -> int:
        return sum(math.prod(shape) for shape in self.map_shapes())

    def unpacked(self, rows: Tensor) -> list[Tensor]:
        """The maps in rows from ``packed``."""
        shapes = self.map_shapes()
        parts = rows.split([math.prod(shape) for shape in shapes], 1)
        return [p.float().unflatten(1, shape).permute(0, 3, 1, 2) for p, shape in zip(parts, shapes, strict=True)]
