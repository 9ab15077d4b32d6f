"""LVIS's average precision, for data in which only some classes of an image are known to be complete."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ciod.core.boxes import iou_table
from ciod.core.errors import CiodError
from ciod.core.types import Detections
from ciod.data.federated import FREQUENCIES
from ciod.data.index import Index
from ciod.evaluation.ap import APTable, _table

PER_IMAGE = 300
"""Number of best detections of an image that count, of all classes together."""
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = ((0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10))  # all, small, medium, large

State = tuple[np.ndarray, np.ndarray]
"""[D] scores, and [4 areas, 10 thresholds, D] states of detections: 1 right, 0 wrong, -1 does not count."""


def lvis_ap(
    detections: Sequence[Detections],
    truth: Index,
    *,
    classes: Sequence[str] | None = None,
    max_detections: int = PER_IMAGE,
) -> APTable:
    """AP of LVIS: COCO's thresholds and recall points, and ``APr``, ``APc`` and ``APf`` over rare, common and frequent
    classes in ``overall``.

    In an image only those classes count that have a box there or are listed as absent (``neg_category_ids``). A
    detection of a class whose boxes are not complete there (``not_exhaustive_category_ids``) is right or does not
    count, but is never wrong. There are no crowds; difficult and crowd boxes of other formats are ignored.

    Args:
        detections: one per image of ``truth``, boxes in pixels of that image.
        truth: with ``federated``.
        classes: evaluated classes; by default all.
        max_detections: number of best detections per image, of all classes together, also of those that do not count.

    Raises:
        ValueError: not one Detections per image.
        CiodError: the data has no federated annotations.

    Source: Gupta, Dollar and Girshick, LVIS (CVPR 2019), section 3 and its evaluation (lvisdataset.org).
    """
    if len(detections) != len(truth):
        raise ValueError(f"{len(detections)} detections for {len(truth)} images; give one Detections per image")
    if truth.federated is None:
        raise CiodError(
            f"metric: lvis needs annotations of LVIS, whose images have neg_category_ids and "
            f"not_exhaustive_category_ids; {truth.source or 'the data'} has none. Write metric=coco."
        )
    names = tuple(dict.fromkeys(truth.class_names if classes is None else classes))
    truth = truth.relabel(names)
    precision = np.full((len(THRESHOLDS), len(RECALLS), len(names), len(AREAS)), -1.0)
    objects, states = _judge(detections, truth, max_detections)
    for c in range(len(names)):
        for a in np.flatnonzero(objects[c]):
            precision[:, :, c, a] = _precision(states[c], int(a), int(objects[c, a]))
    table = _table(names, precision)
    assert truth.federated is not None
    frequency = np.array(truth.federated.frequency, dtype=object)
    for f in FREQUENCIES:
        part = precision[:, :, frequency == f, 0]
        table.overall[f"AP{f}"] = float(part[part > -1].mean()) if (part > -1).any() else None
    return table


def metric_warnings(metric: str, truth: Index, *, other: bool = True) -> list[str]:
    """A warning about another metric on annotations of LVIS; [] if there is none.

    Args:
        other: the metric can be chosen; otherwise the model can be scored afterwards.
    """
    if metric == "lvis" or truth.federated is None:
        return []
    advice = "Write metric=lvis." if other else "ciod eval with metric=lvis scores the extended model without them."
    return [
        f"Not every class is labelled in every image of {truth.source or 'the data'} (its images have neg_category_ids "
        f"or not_exhaustive_category_ids, as in LVIS), and metric={metric} counts detections of the unlabelled objects "
        f"as false. {advice}"
    ]


def _judge(
    detections: Sequence[Detections], truth: Index, max_detections: int
) -> tuple[np.ndarray, dict[int, list[State]]]:
    """[C, 4] objects of each class and area, and the states of its detections, per image."""
    federated = truth.federated
    assert federated is not None
    classes = len(truth.class_names)
    where = {n: i for i, n in enumerate(truth.class_names)}
    absent, partial = ({(i, c) for i, c in p.tolist()} for p in (federated.absent, federated.partial))
    objects = np.zeros((classes, len(AREAS)), np.int64)
    states: dict[int, list[State]] = {c: [] for c in range(classes)}
    for i, d in enumerate(detections):
        best = np.argsort(-d.scores, kind="stable")[:max_detections]
        labels = np.array([where.get(n, -1) for n in d.class_names] or [-1])[d.labels[best]]
        boxes, scores = d.boxes[best].astype(np.float64), d.scores[best].astype(np.float64)
        own = truth.of_image(i)
        shown = truth.labels[own]
        for c in sorted({*labels[labels >= 0].tolist(), *shown.tolist()}):
            mine, theirs = labels == c, np.flatnonzero(shown == c) + own.start
            if not len(theirs) and (i, c) not in absent:
                continue
            ignored = truth.crowd[theirs] | truth.difficult[theirs]
            of_truth = _outside(truth.area[theirs].astype(np.float64)) | ignored
            objects[c] += (~of_truth).sum(1)
            side = boxes[mine][:, 2:] - boxes[mine][:, :2]
            spared = _outside(side.prod(1)) | ((i, c) in partial)
            overlap = iou_table(boxes[mine], truth.boxes[theirs].astype(np.float64))
            states[c].append((scores[mine], np.stack([_match(overlap, g, s) for g, s in zip(of_truth, spared)])))
    return objects, states


def _outside(area: np.ndarray) -> np.ndarray:
    """[4, n] bool: not in the range."""
    return np.stack([(area < low) | (area > high) for low, high in AREAS])


def _match(overlap: np.ndarray, ignored: np.ndarray, spared: np.ndarray) -> np.ndarray:
    """[10, D] states of detections of one class in one image, at every threshold.

    Each detection takes the free object with the largest overlap, the last of equal ones; ignored objects only if no
    other is left.

    Args:
        overlap: [D, G], detections by descending score.
        ignored: [G] objects outside the range of areas.
        spared: [D] detections that do not count unless they have an object.
    """
    state = np.repeat(np.where(spared, -1, 0)[None], len(THRESHOLDS), 0)
    free = np.ones((len(THRESHOLDS), len(ignored)), bool)
    order = np.argsort(ignored, kind="stable")  # so that "the last of equal ones" means the same as in the original
    limit = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    rows = np.arange(len(THRESHOLDS))
    for k in np.flatnonzero((overlap >= THRESHOLDS[0]).any(1)):
        fits = free & (overlap[k] >= limit)
        regular = fits & ~ignored
        fits = np.where(regular.any(1)[:, None], regular, fits)
        value = np.where(fits, overlap[k], -1.0)[:, order[::-1]]
        taken = order[::-1][value.argmax(1)]
        hit = fits.any(1)
        state[hit, k] = np.where(ignored[taken[hit]], -1, 1)
        free[rows[hit], taken[hit]] = False
    return state


def _precision(states: Sequence[State], area: int, objects: int) -> np.ndarray:
    """[10, 101] precision of one class at each threshold and recall."""
    found = np.zeros((len(THRESHOLDS), len(RECALLS)))
    if not states:
        return found
    score = np.concatenate([s for s, _ in states])
    state = np.concatenate([m[area] for _, m in states], axis=1)[:, np.argsort(-score, kind="stable")]
    right, wrong = np.cumsum(state == 1, 1), np.cumsum(state == 0, 1)
    recall, precision = right / objects, right / (right + wrong + np.spacing(1))
    for t in range(len(THRESHOLDS)):
        envelope = np.maximum.accumulate(precision[t][::-1])[::-1]
        place = np.searchsorted(recall[t], RECALLS, side="left")
        inside = place < len(envelope)
        found[t, inside] = envelope[place[inside]]
    return found
