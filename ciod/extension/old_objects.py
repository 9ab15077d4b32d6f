"""Old objects in the new images: what the model as it was finds there, and what a person should look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ciod.core.boxes import iou_table
from ciod.core.two_means import two_means
from ciod.core.types import Detections
from ciod.data.index import Index
from ciod.extension.drawing import save_drawn

LOWEST, HIGHEST, USUAL = 0.3, 0.6, 0.4  # range of the thresholds, and the one where too little is known
ENOUGH = 12  # detections (or objects) of a class from which its own threshold is estimated
MARGIN = 0.1  # this near to its threshold a box is doubtful
GUARD = 0.7  # a box that overlaps a labelled one by this is that object, not another


@dataclass
class Found:
    """Boxes of old classes per image, with the thresholds they passed."""

    boxes: list[Detections]  # one per image
    thresholds: dict[str, float]
    doubtful: list[tuple[int, float]]  # image, how many doubtful boxes; the most first
    table: list[dict[str, Any]]  # one row per class that was found: class, boxes, images, doubtful, threshold

    @property
    def total(self) -> int:
        return sum(len(d) for d in self.boxes)

    def sentence(self) -> str:
        """For the terminal: how many, and the most frequent classes."""
        top = ", ".join(f"{r['boxes']} {r['class']}" for r in self.table[:8] if r["boxes"])
        return f"old objects in the new images, unlabelled: {self.total} found by the old model" + (
            f" ({top})" * bool(top)
        )


def thresholds(
    detections: Sequence[Detections],
    names: Sequence[str],
    truth: Index | None = None,
    judged: Sequence[Detections] = (),
) -> dict[str, float]:
    """Lowest score of a pseudo-label, per class.

    With validation data of the old classes: the score of best F1 there. Without: where the class's scores on the new
    images part into two groups (the midpoint of two means). Always within 0.3..0.6; 0.4 where too little is known.

    Args:
        detections: on the new images, from score 0.1 on.
        truth, judged: old validation data and the detections on it.
    """
    chosen = {}
    for name in names:
        score = None
        if truth is not None:
            score = best_f1(judged, truth, name)
        if score is None:
            own = [d.scores[d.labels == d.class_names.index(name)] for d in detections if name in d.class_names]
            score = _between_clusters(np.concatenate([np.zeros(0, np.float32), *own]))
        chosen[name] = round(float(np.clip(USUAL if score is None else score, LOWEST, HIGHEST)), 3)
    return chosen


def _between_clusters(scores: np.ndarray) -> float | None:
    """Midpoint of the means of low and high scores; None for too few scores, or scores that are all equal."""
    scores = scores[scores >= 0.1]
    found = two_means(scores) if len(scores) >= ENOUGH else None
    return None if found is None or scores.min() == scores.max() else (found.low + found.high) / 2


def best_f1(detections: Sequence[Detections], truth: Index, name: str) -> float | None:
    """The score from which detections of a class have the best F1; None: fewer than 12 objects, or no detection."""
    label = truth.class_names.index(name) if name in truth.class_names else -1
    objects = int((truth.labels == label).sum())
    if objects < ENOUGH:
        return None
    scores, right = [], []
    for i, found in enumerate(detections):
        if name not in found.class_names:
            continue
        mine = found.keep(found.labels == found.class_names.index(name))
        own = truth.of_image(i)
        there = truth.boxes[own][truth.labels[own] == label]
        hit, _ = pairs(mine.boxes, there, 0.5)
        scores.append(mine.scores)
        right.append(hit)
    score, hit = np.concatenate(scores), np.concatenate(right)
    if not len(score):
        return None
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(hit[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + objects)
    return float(score[order][int(np.argmax(f1))])


def pairs(a: np.ndarray, b: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes of ``a`` ([n, 4], best first) and of ``b`` ([m, 4]) find each other at IoU ``least``; each once."""
    hit_a, hit_b = np.zeros(len(a), bool), np.zeros(len(b), bool)
    overlap = iou_table(a, b)
    for i in range(len(a)):
        free = np.where(hit_b, -1.0, overlap[i])
        if len(b) and free.max() >= least:
            hit_a[i] = hit_b[int(free.argmax())] = True
    return hit_a, hit_b


def look(detections: Sequence[Detections], index: Index, old: Sequence[str], limits: dict[str, float]) -> Found:
    """The old objects among ``detections`` (one per image of ``index``), those on labelled boxes left out."""
    kept, doubtful = [], []
    counts = {n: [0, 0, 0] for n in old}
    for i, found in enumerate(detections):
        known = np.array([n in counts for n in found.class_names] or [False])
        limit = np.array([limits.get(n, 1.0) for n in found.class_names] or [1.0])
        near = found.keep(known[found.labels] & (found.scores >= limit[found.labels] - MARGIN))
        real = index.boxes[index.of_image(i)]
        if len(real) and len(near):
            near = near.keep(iou_table(near.boxes, real).max(1) < GUARD)
        sure = near.scores >= limit[near.labels]
        unsure = np.abs(near.scores - limit[near.labels]) <= MARGIN
        kept.append(near.keep(sure))
        if unsure.any():
            doubtful.append((i, float(unsure.sum())))
        for label in np.unique(near.labels):
            own = near.labels == label
            row = counts[near.class_names[label]]
            row[0] += int((own & sure).sum())
            row[1] += int((own & sure).any())
            row[2] += int((own & unsure).sum())
    table = [
        {"class": n, "boxes": b, "images": i, "doubtful": d, "threshold": limits[n]}
        for n, (b, i, d) in counts.items()
        if b or d
    ]
    table.sort(key=lambda row: -row["boxes"])
    return Found(kept, limits, sorted(doubtful, key=lambda pair: -pair[1]), table)


def draw_doubtful(folder: Path, found: Found, detections: Sequence[Detections], index: Index, count: int = 6) -> int:
    """Writes ``folder/NN.jpg``: the doubtful boxes of the images that have most; labelled boxes dashed."""
    written = 0
    for i, _ in found.doubtful[:count]:
        d = detections[i]
        limit = np.array([found.thresholds.get(n, 9.0) for n in d.class_names])
        unsure = d.keep(np.abs(d.scores - limit[d.labels]) <= MARGIN)
        own = index.of_image(i)
        written += save_drawn(folder / f"{written:02d}.jpg", index, i, unsure, np.arange(own.start, own.stop))
    return written
