"""Images → batch images with torchvision transforms v2, once per step: teacher and student see the same pixels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ciod.core.types import Frame

Probability = Annotated[float, Field(ge=0, le=1)]
Placement = Literal["corner", "letterbox", "stretch"]
"""Where a test image is put into the square: at the top left, in the middle, or stretched to fill it."""


class Augment(BaseModel):
    """Augmentation of training images. Sizes are relative to the detector's input size."""

    model_config = ConfigDict(extra="forbid")

    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    photometric: Probability = 0.5
    """Probability of changed brightness, contrast, saturation and hue."""
    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.7, 1.3)
    """Range of the zoom around "longest side fits"; [1, 1] is plain resizing."""
    mosaic: Probability = 0.0
    """Probability of a mosaic of four images."""
    multiscale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] | None = None
    """Range of the sizes of batches, as factors of the detector's size, in steps of 32 pixels: [0.75, 1.25]. None: one
    size. Test images keep the detector's size."""
    multiscale_every: Annotated[int, Field(ge=1)] = 10
    """Number of steps before another size is drawn."""

    @field_validator("multiscale")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("the smaller factor comes first")
        return value

    def sizes(self, size: int) -> list[int]:
        """Possible batch sizes in pixels for a detector of ``size``: multiples of 32 in the range, and ``size``."""
        if self.multiscale is None:
            return [size]
        low, high = (round(f * size / 32, 6) for f in self.multiscale)
        return sorted({size, *(32 * n for n in range(max(1, math.ceil(low)), math.floor(high) + 1))})


def _as_image(picture: np.ndarray) -> tv_tensors.Image:
    return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1))


def letterbox(picture: np.ndarray, size: int, fill: float) -> tuple[Tensor, float]:
    """The full image at the top left of a square: uint8 [3, size, size] and batch pixels per original pixel."""
    image, frame = put(picture, size, fill)
    return image, frame.across


def frame_of(height: int, width: int, size: int, place: Placement = "corner") -> Frame:
    """Where a picture of this size is placed in a square of ``size`` pixels."""
    if place == "stretch":
        return Frame(size / width, size / height)
    scale = min(size / height, size / width)
    if place == "corner":
        return Frame(scale, scale)
    return Frame(scale, scale, (size - max(1, int(width * scale))) // 2, (size - max(1, int(height * scale))) // 2)


def put(picture: np.ndarray, size: int, fill: float, place: Placement = "corner") -> tuple[Tensor, Frame]:
    """The complete picture in a square, uint8 [3, size, size], and where it is placed there."""
    height, width = picture.shape[:2]
    frame = frame_of(height, width, size, place)
    new = max(1, int(height * frame.down)), max(1, int(width * frame.across))
    if place == "stretch":
        new = size, size
    image = F.resize(_as_image(picture), list(new), antialias=True)
    left, top = int(frame.left), int(frame.top)
    image = F.pad(image, [left, top, size - new[1] - left, size - new[0] - top], fill=fill)
    return image.as_subclass(Tensor), frame


class TrainTransform:
    """Image and boxes → a square uint8 image and its boxes. Random; uses only torch's generator.

    Args:
        settings: the kinds of augmentation.
        size: side of the batch image in pixels.
        fill: border value, 0..255.
        place: of test images; training images are zoomed from the same shape, stretched or not, and put anywhere.
    """

    MIN_SIDE = 2.0  # pixels of the batch image; thinner remains of cropped boxes are useless
    MIN_VISIBLE = 0.2  # share of a box that must remain in the image

    def __init__(self, settings: Augment, size: int, fill: float, place: Placement = "corner"):
        self.settings, self.size, self.fill = settings, size, fill
        self.stretch = place == "stretch"
        self.photometric = v2.RandomPhotometricDistort(
            brightness=(0.75, 1.25), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.05, 0.05)
        )

    def longest_side(self) -> int:
        """Longest side in pixels that an image needs for the largest zoom.

        It is twice the size that the zoom needs, so that resizing twice looks like resizing once.
        """
        largest = max(self.settings.sizes(self.size)) * max(1.0, *self.settings.scale)
        return 2 * math.ceil(largest)

    def at(self, size: int) -> TrainTransform:
        """The same for another size of the batch image."""
        other = copy.copy(self)
        other.size = size
        return other

    def __call__(
        self, picture: np.ndarray, boxes: np.ndarray, labels: np.ndarray, another: Callable[[], tuple[Any, Any, Any]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One training image.

        Args:
            picture: [H, W, 3] uint8.
            boxes, labels: [n, 4] xyxy pixels, [n].
            another: returns one more random (picture, boxes, labels), for a mosaic.
        """
        if self.settings.mosaic and _uniform(0, 1) < self.settings.mosaic:
            image, xyxy, y = self._mosaic([(picture, boxes, labels), another(), another(), another()])
        else:
            image, xyxy, y = self._place(picture, boxes, labels, self.size, self.size, None)
        if _uniform(0, 1) < self.settings.flip:
            image, xyxy = F.horizontal_flip(image), F.horizontal_flip(xyxy)
        if _uniform(0, 1) < self.settings.photometric:
            image = self.photometric(image)
        return image.as_subclass(Tensor), xyxy.as_subclass(Tensor), y

    def _place(
        self, picture: np.ndarray, boxes: np.ndarray, labels: np.ndarray, height: int, width: int, corner: int | None
    ) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes, Tensor]:
        """Zooms an image and puts it into height × width: cropped where larger, filled where smaller.

        ``corner``: None places at random; 0..3 puts it into that corner of a mosaic cell (top-left first).
        """
        h, w = picture.shape[:2]
        down, across = self.size / h, self.size / w
        if not self.stretch:
            down = across = min(down, across)
        zoom, part = _uniform(*self.settings.scale), 1.0 if corner is None else 0.6  # a mosaic cell: about half as wide
        new = max(1, round(h * (down * zoom * part))), max(1, round(w * (across * zoom * part)))
        image = F.resize(_as_image(picture), list(new), antialias=True)
        xyxy = torch.from_numpy(boxes).float().reshape(-1, 4) * torch.tensor([new[1] / w, new[0] / h]).repeat(2)
        if corner is None:
            top, left = (_offset(height - new[0]), _offset(width - new[1]))
        else:  # the edge of the image is at the centre of the mosaic
            top, left = (height - new[0] if corner < 2 else 0), (width - new[1] if corner % 2 == 0 else 0)
        image = F.pad(image, [max(0, left), max(0, top), max(0, width - new[1] - left), max(0, height - new[0] - top)],
                      fill=self.fill)  # fmt: skip
        image = F.crop(image, max(0, -top), max(0, -left), height, width)
        moved = xyxy + torch.tensor([left, top, left, top])
        clipped = torch.stack(
            [moved[:, 0].clamp(0, width), moved[:, 1].clamp(0, height),
             moved[:, 2].clamp(0, width), moved[:, 3].clamp(0, height)], 1
        )  # fmt: skip
        side = clipped[:, 2:] - clipped[:, :2]
        share = side.prod(1) / (moved[:, 2:] - moved[:, :2]).prod(1).clamp(min=1e-6)
        keep = (side.amin(1) >= self.MIN_SIDE) & (share >= self.MIN_VISIBLE)
        framed = _boxes(clipped[keep], height, width)
        return tv_tensors.Image(image), framed, torch.from_numpy(labels).long()[keep]

    def _mosaic(self, four: list[tuple[Any, Any, Any]]) -> tuple[tv_tensors.Image, tv_tensors.BoundingBoxes, Tensor]:
        cx, cy = (round(self.size * _uniform(0.35, 0.65)) for _ in range(2))
        cells = [(0, 0, cy, cx), (0, cx, cy, self.size - cx), (cy, 0, self.size - cy, cx),
                 (cy, cx, self.size - cy, self.size - cx)]  # fmt: skip
        canvas = torch.empty(3, self.size, self.size, dtype=torch.uint8)
        boxes, labels = [], []
        for i, (top, left, height, width) in enumerate(cells):
            image, xyxy, y = self._place(*four[i], height, width, i)
            canvas[:, top : top + height, left : left + width] = image
            boxes.append(xyxy.as_subclass(Tensor) + torch.tensor([left, top, left, top]))
            labels.append(y)
        framed = _boxes(torch.cat(boxes), self.size, self.size)
        return tv_tensors.Image(canvas), framed, torch.cat(labels)


def _boxes(xyxy: Tensor, height: int, width: int) -> tv_tensors.BoundingBoxes:
    """Boxes on a canvas of this size."""
    return tv_tensors.BoundingBoxes(xyxy, format="XYXY", canvas_size=(height, width))  # type: ignore[call-overload]


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _offset(room: int) -> int:
    """Offset of an image, given the free space (negative: it is larger than the canvas)."""
    return round(_uniform(0, 1) * room)
