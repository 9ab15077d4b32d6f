"""Layouts with one row per detection or query, without an order of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ciod.core.errors import CiodError
from ciod.detectors.onnx.layout import Arrays, Facts, Found, Layout, in_unit, ordered, sigmoid, softmax, xyxy


@dataclass
class Rows(Layout):
    """One row per detection after suppression: box, score, label; or label, score, box (PaddleDetection)."""

    name: ClassVar[str] = "rows"
    size: int
    classes: int | None
    label_first: bool
    unit: bool
    seen: bool

    @classmethod
    def of(cls, pictures: Sequence[Arrays], facts: Facts) -> Rows | None:
        rows = [o[0].reshape(-1, 6) for o in pictures if o[0].ndim <= 2 and o[0].shape[-1:] == (6,)]
        if len(rows) < len(pictures) or any(len(o) > 1 and o[1].dtype.kind not in "iu" for o in pictures):
            return None
        found = np.concatenate(rows)
        found = found[np.abs(found).sum(1) > 0]
        if found.dtype.kind != "f":
            return None
        for first in (False, True):
            boxes, score, label = cls._parts(found, first)
            if ordered(boxes) and in_unit(score) and (label == label.round()).all() and (label >= -1).all():
                unit = bool(len(found)) and float(np.abs(boxes).max()) <= 2
                return cls(facts.size, facts.named, first, unit, bool(len(found)))
        return None

    @staticmethod
    def _parts(rows: np.ndarray, label_first: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if label_first:
            return rows[:, 2:], rows[:, 1], rows[:, 0]
        return rows[:, :4], rows[:, 4], rows[:, 5]

    @property
    def words(self) -> str:
        order = "label, score, corners" if self.label_first else "corners, score, label"
        unsure = "" if self.seen else " (by shape alone: nothing was found in the pictures)"
        return f"one row per detection after suppression: {order}{' in 0..1' * self.unit}{unsure}"

    def decode(self, outputs: Arrays) -> Found:
        boxes, score, label = self._parts(outputs[0].reshape(-1, 6).astype(np.float32), self.label_first)
        return one_hot(boxes * (self.size if self.unit else 1), score, label, self.classes or 0)


def one_hot(boxes: np.ndarray, score: np.ndarray, label: np.ndarray, classes: int) -> Found:
    """Boxes with one label each → boxes, and scores for every class; rows without a label are left out.

    Raises:
        CiodError: a label beyond the known classes.
    """
    label = label.astype(np.int64)
    real = (label >= 0) & (score > 0)
    boxes, score, label = boxes[real], score[real], label[real]
    if len(label) and label.max() >= classes:
        raise CiodError(
            f"The detector returned the label {label.max()}, but only {classes} classes are known; give all names: "
            "names=a,b,c."
        )
    scores = np.zeros((len(boxes), classes), np.float32)
    scores[np.arange(len(boxes)), label] = score
    return boxes, scores


@dataclass
class Pair(Layout):
    """Boxes [n, 4] and a score per class [n, C]."""

    name: ClassVar[str] = "boxes-scores"
    size: int
    boxes: int  # index of the output
    transposed: bool  # of the scores
    unit: bool
    centres: bool
    kind: str  # sigmoid, logits, softmax, softmax logits
    background: int | None
    classes: int

    @classmethod
    def of(cls, pictures: Sequence[Arrays], facts: Facts) -> Pair | None:
        if any(len(o) != 2 or any(a.ndim != 2 or a.dtype.kind != "f" for a in o) for o in pictures):
            return None
        both = [np.concatenate([o[i].reshape(-1, o[i].shape[-1]) for o in pictures]) for i in (0, 1)]
        for which in (0, 1) if _boxlike(both[0]) >= _boxlike(both[1]) else (1, 0):
            place, other = (np.concatenate([o[i] for o in pictures]) for i in (which, 1 - which))
            rows, shape = pictures[0][which].shape[0], pictures[0][1 - which].shape
            if place.shape[1] != 4 or rows not in shape or not len(place):
                continue
            transposed = shape[0] != rows
            if transposed:
                other = np.concatenate([o[1 - which].T for o in pictures])
            if not ordered(place) and place[:, 2:].min() < 0:
                return None  # sizes are not negative: offsets from anchors, which are not in the file
            kind, background = cls._scores(other, facts.named)
            classes = other.shape[1] - (background is not None)
            unit, centres = float(np.abs(place).max()) <= 2, not ordered(place)
            return cls(facts.size, which, transposed, unit, centres, kind, background, classes)
        return None

    @staticmethod
    def _scores(scores: np.ndarray, named: int | None) -> tuple[str, int | None]:
        """The kind of the scores, and the column of the background."""
        background = int(scores.mean(0).argmax())
        if scores.shape[1] > 1 and in_unit(scores) and np.allclose(scores.sum(1), 1, atol=1e-3):
            return "softmax", background
        if in_unit(scores):
            return "sigmoid", None
        if named is not None and scores.shape[1] == named + 1:
            return "softmax logits", background
        return "logits", None

    @property
    def words(self) -> str:
        shape = "centre and size" if self.centres else "corners"
        note = "" if self.background is None else f", background in column {self.background}"
        return f"boxes ({shape} in {'0..1' if self.unit else 'pixels'}) and {self.kind} of {self.classes} classes{note}"

    def decode(self, outputs: Arrays) -> Found:
        boxes, scores = (outputs[i].astype(np.float32) for i in (self.boxes, 1 - self.boxes))
        scores = scores.T if self.transposed else scores
        if "logits" in self.kind:
            scores = sigmoid(scores) if self.kind == "logits" else softmax(scores)
        if self.background is not None:
            scores = np.delete(scores, self.background, 1)
        boxes = boxes * (self.size if self.unit else 1)
        return xyxy(boxes) if self.centres else boxes, scores


def _boxlike(values: np.ndarray) -> float:
    """How likely the values are boxes: of two outputs with four columns the one with the larger result has them. Scores
    sum to 1 or are small, logits are negative."""
    if not values.size or values.shape[1] != 4:
        return -np.inf
    return 0.0 if np.allclose(values.sum(1), 1, atol=1e-3) else float(values.mean())


@dataclass
class Triple(Layout):
    """Boxes [n, 4], scores [n] and labels [n]; there may also be a count of detections."""

    name: ClassVar[str] = "boxes-scores-labels"
    size: int
    classes: int | None
    places: tuple[int, int, int]
    unit: bool

    @classmethod
    def of(cls, pictures: Sequence[Arrays], facts: Facts) -> Triple | None:
        if any(len(o) not in (3, 4) for o in pictures):
            return None
        first = pictures[0]
        boxes = [i for i, a in enumerate(first) if a.dtype.kind == "f" and a.shape[-1:] == (4,) and a.ndim == 2]
        boxes = boxes or [i for i, a in enumerate(first) if a.dtype.kind == "f" and a.shape == (4,) and len(first) == 3]
        if len(boxes) != 1:
            return None
        count = first[boxes[0]].reshape(-1, 4).shape[0]
        rest = [i for i, a in enumerate(first) if i != boxes[0] and a.size == count and a.ndim <= 1]
        scores = [i for i in rest if first[i].dtype.kind == "f" and all(in_unit(o[i]) for o in pictures)]
        labels = [i for i in rest if first[i].dtype.kind in "iu"]
        if len(scores) != 1 or not labels:
            return None
        place = np.concatenate([o[boxes[0]].reshape(-1, 4) for o in pictures])
        if not ordered(place):
            return None
        unit = bool(len(place)) and 0 < float(np.abs(place).max()) <= 2
        return cls(facts.size, facts.named, (boxes[0], scores[0], labels[0]), unit)

    @property
    def words(self) -> str:
        return f"boxes (corners in {'0..1' if self.unit else 'pixels'}), score and label, after suppression"

    def decode(self, outputs: Arrays) -> Found:
        boxes, score, label = (outputs[i] for i in self.places)
        boxes = boxes.reshape(-1, 4).astype(np.float32) * (self.size if self.unit else 1)
        return one_hot(boxes, score.reshape(-1).astype(np.float32), label.reshape(-1), self.classes or 0)
