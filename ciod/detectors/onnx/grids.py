"""Layouts with one row per position of a grid of cells on several strides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ciod.core.plural import counted
from ciod.data.names import COCO
from ciod.detectors.onnx.layout import (
    STRIDES,
    Arrays,
    Facts,
    Found,
    Layout,
    corners,
    grid_of,
    in_unit,
    ordered,
    sigmoid,
    softmax,
    xyxy,
)


@dataclass
class Grid(Layout):
    """One row per position: box, objectness or none, one score per class; or the same transposed."""

    name: ClassVar[str] = "grid"
    size: int
    strides: tuple[int, ...]
    anchors: int
    transposed: bool
    objectness: bool
    classes: int
    box: str  # cell: offset and log size; pixels or unit: centre and size; corners
    logits: bool
    further: int = 0  # columns after the classes that are not read

    @classmethod
    def of(cls, pictures: Sequence[Arrays], facts: Facts) -> Grid | None:
        values = [[a for a in outputs if a.ndim == 2 and a.dtype.kind == "f"] for outputs in pictures]
        if not all(len(v) >= 1 for v in values) or len({v[0].shape for v in values}) != 1:
            return None
        if len(pictures[0]) > 1 and pictures[0][1].ndim < 3:  # there may be masks; other rows are another layout
            return None
        shape = values[0][0].shape
        fitting = [(t, grid_of(shape[1 if t else 0], facts.size)) for t in (False, True)]
        fitting = [(t, g) for t, g in fitting if g is not None and shape[0 if t else 1] < shape[1 if t else 0]]
        if not fitting or (features := shape[0 if fitting[0][0] else 1]) < 5:
            return None
        transposed, grid = fitting[0]
        assert grid is not None
        rows = [v[0].T if transposed else v[0] for v in values]
        objectness = features > 5 and not transposed
        if facts.named in (features - 4, features - 5):
            objectness = facts.named == features - 5
        classes = features - 4 - objectness
        further = classes - facts.named if facts.named and transposed and facts.named < classes else 0
        box = cls._boxes(rows, facts.size, *grid)
        scores = np.concatenate([r[:, 4 : features - further] for r in rows])
        if box is None:
            return None
        return cls(facts.size, *grid, transposed, objectness, classes - further, box, not in_unit(scores), further)

    @staticmethod
    def _boxes(rows: Sequence[np.ndarray], size: int, strides: tuple[int, ...], anchors: int) -> str | None:
        """The kind of the boxes. In absolute ones the centre depends on the cell, in relative ones it does not."""
        boxes = np.concatenate([r[:, :4] for r in rows])
        if ordered(boxes) and not (anchors == 1 and _around_cells(boxes, size, strides)):
            return "corners" if np.abs(boxes).max() > 2 else None
        if anchors == 1:
            corner = np.tile(corners(size, strides)[0][:, 0], len(rows))
            together = np.corrcoef(corner, boxes[:, 0])[0, 1]
            if not together > 0.5:  # also if all boxes are equal
                return "cell"
        if boxes[:, 2:].min() < 0:
            return None
        return "unit" if np.abs(boxes).max() <= 2 else "pixels"

    @property
    def words(self) -> str:
        per_cell = f", {self.anchors} anchors" if self.anchors > 1 else ""
        boxes = {
            "cell": "box relative to its cell",
            "pixels": "box as centre and size in pixels",
            "unit": "box as centre and size in 0..1",
            "corners": "box as corners in pixels",
        }
        return (
            f"one {'column' if self.transposed else 'row'} per position (strides {', '.join(map(str, self.strides))}"
            f"{per_cell}), {boxes[self.box]}, {'objectness' if self.objectness else 'no objectness'}, {self.classes} "
            f"classes{' as logits' * self.logits}{f', {self.further} columns more, not read' * bool(self.further)}"
        )

    def decode(self, outputs: Arrays) -> Found:
        rows = next(a for a in outputs if a.ndim == 2).astype(np.float32)
        rows = rows.T if self.transposed else rows
        boxes, scores = rows[:, :4], rows[:, 4 : 4 + self.objectness + self.classes]
        scores = sigmoid(scores) if self.logits else scores
        if self.objectness:
            scores = scores[:, 1:] * scores[:, :1]
        if self.box == "cell":
            corner, stride = corners(self.size, self.strides)
            centre = corner + boxes[:, :2] * stride
            boxes = np.concatenate([centre, np.exp(boxes[:, 2:].clip(max=10)) * stride], 1)
        if self.box != "corners":
            boxes = xyxy(boxes * (self.size if self.box == "unit" else 1))
        return boxes, scores


@dataclass
class LevelPairs(Layout):
    """For each stride a score per class [cells, C], and per side of the box a distribution over distances."""

    name: ClassVar[str] = "level-pairs"
    size: int
    levels: tuple[tuple[int, int, int], ...]  # stride, output with the classes, output with the distances
    bins: int
    classes: int
    logits: bool

    @classmethod
    def of(cls, pictures: Sequence[Arrays], facts: Facts) -> LevelPairs | None:
        if any(a.dtype.kind != "f" for o in pictures for a in o):
            return None
        by_stride: dict[int, list[int]] = {}
        for stride in STRIDES:
            cells = (-(-facts.size // stride)) ** 2
            own = [i for i, a in enumerate(pictures[0]) if a.ndim in (2, 3) and _positions(a, cells) is not None]
            if own:
                by_stride[stride] = own
        if len(by_stride) < 2 or any(len(v) != 2 for v in by_stride.values()):
            return None
        if sum(map(len, by_stride.values())) != len(pictures[0]):
            return None
        for order in (0, 1):
            pairs = tuple((s, v[order], v[1 - order]) for s, v in by_stride.items())
            widths = [[_width(pictures[0][i], facts.size, s) for i in (c, d)] for s, c, d in pairs]
            classes, distances = widths[0]
            if any(w != widths[0] for w in widths) or distances % 4 or distances < 8:
                continue
            scores = np.concatenate([o[c].ravel() for o in pictures for _, c, _ in pairs])
            offsets = np.concatenate([o[d].ravel() for o in pictures for _, _, d in pairs])
            if facts.named not in (None, classes) or in_unit(offsets) or (facts.named is None and not in_unit(scores)):
                continue
            return cls(facts.size, pairs, distances // 4, classes, not in_unit(scores))
        return None

    @property
    def words(self) -> str:
        strides = ", ".join(str(s) for s, _, _ in self.levels)
        return (
            f"classes and distances of each stride ({strides}), {counted(self.bins, 'bin')}, "
            f"{counted(self.classes, 'class')}"
        )

    def decode(self, outputs: Arrays) -> Found:
        boxes, scores = [], []
        for stride, c, d in self.levels:
            cells = (-(-self.size // stride)) ** 2
            score, distance = (_positions(outputs[i], cells) for i in (c, d))
            assert score is not None and distance is not None
            centre = corners(self.size, (stride,))[0] + stride / 2
            boxes.append(_of_distances(distance, centre, np.float32(stride)))
            scores.append(sigmoid(score) if self.logits else score)
        return np.concatenate(boxes), np.concatenate(scores).astype(np.float32)


def _of_distances(distances: np.ndarray, centres: np.ndarray, strides: Any) -> np.ndarray:
    """Boxes [P, 4] from distributions [P, 4 · bins] over the distances to their sides, in cells."""
    share = softmax(distances.reshape(len(distances), 4, -1).astype(np.float32))
    side = share @ np.arange(share.shape[2], dtype=np.float32) * strides
    return np.concatenate([centres - side[:, :2], centres + side[:, 2:]], 1)


@dataclass
class GridDistances(Layout):
    """One row per position: a score per class, then per side of the box a distribution over distances."""

    name: ClassVar[str] = "grid-distances"
    size: int
    strides: tuple[int, ...]
    transposed: bool
    bins: int
    classes: int

    @classmethod
    def of(cls, pictures: Sequence[Arrays], facts: Facts) -> GridDistances | None:
        if any(len(o) != 1 or o[0].ndim != 2 or o[0].dtype.kind != "f" for o in pictures):
            return None
        classes = len(COCO) if facts.named is None else facts.named
        for transposed in (False, True):
            rows = np.concatenate([o[0].T if transposed else o[0] for o in pictures])
            grid = grid_of(len(rows) // len(pictures), facts.size)
            bins, rest = divmod(rows.shape[1] - classes, 4)
            if grid is None or grid[1] > 1 or rest or bins < 2:
                continue
            if in_unit(rows[:, :classes]) and not in_unit(rows[:, classes:]) and classes:
                return cls(facts.size, grid[0], transposed, bins, classes)
        return None

    @property
    def words(self) -> str:
        return (
            f"classes and distances, one {'column' if self.transposed else 'row'} per position (strides "
            f"{', '.join(map(str, self.strides))}), {counted(self.bins, 'bin')}, {counted(self.classes, 'class')}"
        )

    @property
    def centres(self) -> tuple[np.ndarray, np.ndarray]:
        """Where distances begin [P, 2], and the stride of each position [P, 1]: in the middle of the cells (GFL), or
        in their corners, as NanoDet-Plus counts on its four strides."""
        corner, stride = corners(self.size, self.strides)
        return corner + stride * (0.5 if len(self.strides) < 4 else 0), stride

    def decode(self, outputs: Arrays) -> Found:
        rows = outputs[0].T if self.transposed else outputs[0]
        boxes = _of_distances(rows[:, self.classes :], *self.centres)
        return boxes, rows[:, : self.classes].astype(np.float32)


def _around_cells(boxes: np.ndarray, size: int, strides: Sequence[int]) -> bool:
    """Whether the first two columns are nearer to their cells than the middle of the four as corners: then they are
    centres. Large boxes near the upper left corner have sizes above their centres, which looks like corners."""
    corner, stride = corners(size, strides)
    cells = np.tile(corner + stride / 2, (len(boxes) // len(corner), 1))
    near, middle = (float(np.abs(x - cells).mean()) for x in (boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2))
    return near < middle


def _positions(array: np.ndarray, cells: int) -> np.ndarray | None:
    """[cells, F] from [cells, F], [F, cells] or [F, h, w]."""
    flat = array.reshape(len(array), -1) if array.ndim == 3 else array
    if array.ndim == 2 and flat.shape[0] == cells:
        return flat
    return flat.T if flat.shape[1] == cells else None


def _width(array: np.ndarray, size: int, stride: int) -> int:
    found = _positions(array, (-(-size // stride)) ** 2)
    return 0 if found is None else found.shape[1]
