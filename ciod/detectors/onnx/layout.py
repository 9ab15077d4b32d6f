"""The interface of a layout of outputs, and functions that layouts share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

Arrays: TypeAlias = list[np.ndarray]
"""The outputs for one picture, without the dimension of the batch."""
Found: TypeAlias = tuple[np.ndarray, np.ndarray]
"""boxes [n, 4] xyxy in pixels of the input, scores [n, C] in 0..1; float32."""

STRIDES = (4, 8, 16, 32, 64, 128)
ANCHORS = 9


@dataclass(frozen=True)
class Facts:
    """What is known in addition to the outputs: the side of the input in pixels, and the number of classes with
    names."""

    size: int
    named: int | None


class Layout(ABC):
    """How outputs are laid out."""

    name: ClassVar[str]
    classes: int | None
    """Number of classes; None: it follows from the names, not from the outputs."""

    @classmethod
    @abstractmethod
    def of(cls, pictures: Sequence[Arrays], facts: Facts) -> Layout | None:
        """The layout, if the outputs for these pictures have it."""

    @property
    @abstractmethod
    def words(self) -> str:
        """A description for users."""

    @abstractmethod
    def decode(self, outputs: Arrays) -> Found:
        """Boxes and scores of one picture."""


def grid_of(positions: int, size: int) -> tuple[tuple[int, ...], int] | None:
    """The strides and anchors per cell with this number of positions: the fewest anchors, then the most levels."""
    for anchors in range(1, ANCHORS + 1):
        for first in range(len(STRIDES)):
            for last in range(len(STRIDES), first, -1):
                strides = STRIDES[first:last]
                if not {8, 16, 32} & set(strides):
                    continue
                if anchors * sum((-(-size // s)) ** 2 for s in strides) == positions:
                    return strides, anchors
    return None


def corners(size: int, strides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Upper left corners of all cells [P, 2] in pixels, and the stride of each [P, 1]."""
    points, steps = [], []
    for stride in strides:
        side = -(-size // stride)
        rows, columns = np.divmod(np.arange(side * side), side)
        points.append(np.stack([columns, rows], 1) * stride)
        steps.append(np.full((side * side, 1), stride))
    return np.concatenate(points).astype(np.float32), np.concatenate(steps).astype(np.float32)


def in_unit(values: np.ndarray) -> bool:
    """Whether all values are in 0..1."""
    return not values.size or bool(values.min() >= 0 and values.max() <= 1)


def ordered(boxes: np.ndarray) -> bool:
    """Whether all boxes [n, 4] have their corners in order."""
    return bool((boxes[:, 2:] >= boxes[:, :2]).all())


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values.clip(-80, 80)))


def softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def xyxy(boxes: np.ndarray) -> np.ndarray:
    """Centre and size → corners."""
    half = boxes[:, 2:4] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1)
