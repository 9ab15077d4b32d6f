"""The confusion matrix of a detector: what stands on each object, and what the other detections stand on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ciod.core.boxes import iou_table
from ciod.core.types import Detections
from ciod.data.index import Index

SHOWN = 0.3  # score from which a detection counts
SAME = 0.5  # IoU from which it stands on an object


@dataclass(frozen=True)
class Confusion:
    """Counts of objects and detections."""

    names: tuple[str, ...]
    counts: np.ndarray
    """[C + 1, C + 1] int64: rows are the classes of objects, columns those of detections. The last column: objects
    without a detection. The last row: detections without an object."""

    def most(self, n: int = 12) -> list[tuple[str, str, int, int]]:
        """The most frequent confusions of two classes: the true one, the detected one, how often, of how many."""
        table = self.counts[:-1, :-1].copy()
        np.fill_diagonal(table, 0)
        order = np.argsort(-table, axis=None, kind="stable")[:n]
        rows, columns = np.unravel_index(order, table.shape)
        objects = self.counts[:-1].sum(1)
        return [
            (self.names[r], self.names[c], int(table[r, c]), int(objects[r]))
            for r, c in zip(rows, columns, strict=True)
            if table[r, c]
        ]


def confusion(
    detections: Sequence[Detections], truth: Index, classes: Sequence[str], *, score: float = SHOWN, iou: float = SAME
) -> Confusion:
    """Each object takes the detection of the highest score among those with an IoU of ``iou`` or more, of its own
    class if there is one; each detection belongs to one object.

    Detections that stand only on a crowd, on a difficult object or on one of another class than ``classes`` are not
    counted.

    Args:
        detections: one per image of ``truth``.
        classes: rows and columns.
        score: detections below it are left out.
    """
    names = tuple(classes)
    counts = np.zeros((len(names) + 1, len(names) + 1), np.int64)
    where = {n: i for i, n in enumerate(names)}
    of_truth = np.array([where.get(n, -1) for n in truth.class_names] or [0])
    for i, found in enumerate(detections):
        own = truth.of_image(i)
        objects = of_truth[truth.labels[own]] if own.stop > own.start else np.zeros(0, np.int64)
        counted = (objects >= 0) & ~truth.crowd[own] & ~truth.difficult[own]
        of_found = np.array([where.get(n, -1) for n in found.class_names] or [0])
        found = found.keep(found.scores >= score)
        labels = of_found[found.labels] if len(found) else np.zeros(0, np.int64)
        found, labels = found.keep(labels >= 0), labels[labels >= 0]
        on = iou_table(truth.boxes[own], found.boxes) >= iou  # [objects, detections]
        free = np.ones(len(labels), bool)
        same = on & (objects[:, None] == labels[None])
        left = _take(counts, same, objects, labels, counted, free)
        left = _take(counts, on, objects, labels, left, free)
        counts[:, -1] += np.bincount(objects[left], minlength=len(counts))
        free &= ~on[~counted].any(0)
        counts[-1] += np.bincount(labels[free], minlength=len(counts))
    return Confusion(names, counts)


def _take(
    counts: np.ndarray, on: np.ndarray, objects: np.ndarray, labels: np.ndarray, wanting: np.ndarray, free: np.ndarray
) -> np.ndarray:
    """Pairs objects with free detections, the best detection first; returns the objects that still want one."""
    wanting = wanting.copy()
    for d in range(len(labels)):  # detections come with the highest score first
        takers = np.flatnonzero(on[:, d] & wanting & free[d])
        if len(takers):
            counts[objects[takers[0]], labels[d]] += 1
            wanting[takers[0]] = free[d] = False
    return wanting
