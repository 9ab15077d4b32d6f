"""The inputs of a foreign graph: the pictures, and numbers for the size of the original picture."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ciod.core.errors import CiodError

_PICTURES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_NUMBERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32} | _PICTURES

Run: TypeAlias = Callable[[Mapping[str, np.ndarray]], Iterable[Any]]
"""One run of the graph: inputs → values of its outputs."""


@dataclass(frozen=True)
class Picture:
    """The input that takes the pictures."""

    name: str
    dtype: Any  # float32, float16 or uint8
    channels_last: bool
    single: bool  # one picture [3, h, w] without a batch, as torchvision exports
    batch: int | None  # pictures per run, if the file fixes it
    side: int | None  # pixels, if the file fixes it

    def shape(self, size: int) -> tuple[int, ...]:
        spatial = (size, size, 3) if self.channels_last else (3, size, size)
        return spatial if self.single else (self.batch or 1, *spatial)

    @property
    def words(self) -> str:
        spatial = [self.side or "h", self.side or "w"]
        shape = [*spatial, 3] if self.channels_last else [3, *spatial]
        return f"{self.name} [{', '.join(map(str, shape if self.single else [self.batch or 'n', *shape]))}]"

    def given(self, images: np.ndarray) -> np.ndarray:
        """Images [n, 3, H, W] float32, with values as the graph expects them, as this input takes them."""
        x = images.transpose(0, 2, 3, 1) if self.channels_last else images
        if self.dtype == np.uint8:
            x = x.round().clip(0, 255)
        return np.ascontiguousarray((x[0] if self.single else x).astype(self.dtype))


@dataclass(frozen=True)
class Size:
    """A further input [n, 2] or [2]: height and width of the original picture (RT-DETR), or by how much it was
    enlarged (PaddleDetection), which is 1."""

    dtype: Any
    batched: bool
    factor: bool

    def value(self, count: int, height: int, width: int) -> np.ndarray:
        two = np.array([1, 1] if self.factor else [height, width], self.dtype)
        return np.tile(two, (count, 1)) if self.batched else two


def of_session(path: Path, given: Sequence[Any]) -> tuple[Picture, dict[str, Size]]:
    """The input for the pictures, and by name those for sizes, of which whole numbers are never factors.

    Args:
        given: inputs as onnxruntime describes them.

    Raises:
        CiodError: pictures cannot be given, or there are inputs of another kind.
    """
    images = [i for i in given if len(i.shape) in (3, 4) and i.type in _PICTURES and 3 in (i.shape[-3], i.shape[-1])]
    listed = ", ".join(f"{i.name} {i.shape}" for i in given) or "none"
    if len(images) != 1:
        raise CiodError(f"{path} does not take one picture [n, 3, h, w]; its inputs: {listed}.")
    others = [i for i in given if i is not images[0]]
    if any(i.type not in _NUMBERS or len(i.shape) not in (1, 2) or i.shape[-1] != 2 for i in others):
        raise CiodError(
            f"{path} also has other inputs ({listed}). Export the detector so that pictures are its only input."
        )
    sizes = {i.name: Size(_NUMBERS[i.type], len(i.shape) == 2, factor=False) for i in others}
    image = images[0]
    last = image.shape[-3] != 3
    fixed = [d if isinstance(d, int) and d > 0 else None for d in image.shape]
    height, width = fixed[-3:-1] if last else fixed[-2:]
    if height != width and height and width:
        raise CiodError(
            f"{path} takes pictures of {width} × {height} pixels; ciod gives square ones. Export it square."
        )
    single = len(fixed) == 3
    batch = 1 if single else fixed[0]
    return Picture(image.name, _PICTURES[image.type], last, single, batch, height or width), sizes


def settled(picture: Picture, sizes: dict[str, Size], run: Run) -> dict[str, Size]:
    """Sizes, of which each that is not a whole number is the picture's size or a factor: boxes should be in pixels of
    the input, so the choice with the largest outputs is right. The first of equal ones: factors."""
    unsure = [name for name, size in sizes.items() if size.dtype not in (np.int64, np.int32)]
    if not unsure:
        return sizes
    side = picture.side or 320
    noise = np.random.default_rng(0).random((picture.batch or 1, 3, side, side), np.float32)
    found: tuple[float, dict[str, Size]] = (-1.0, sizes)
    for choice in itertools.product((True, False), repeat=len(unsure)):
        tried = sizes | {n: replace(sizes[n], factor=c) for n, c in zip(unsure, choice, strict=True)}
        feed = {picture.name: picture.given(noise)}
        feed |= {n: s.value(len(noise), side, side) for n, s in tried.items()}
        largest = sum(_largest(run(feed)))  # a sum, because boxes of branches are the same for every choice
        if largest > found[0]:
            found = (largest, tried)
    return found[1]


def _largest(outputs: Iterable[Any]) -> Iterator[float]:
    for values in outputs:
        if isinstance(values, np.ndarray) and values.dtype.kind == "f" and np.isfinite(values).any():
            yield float(np.abs(values[np.isfinite(values)]).max())
