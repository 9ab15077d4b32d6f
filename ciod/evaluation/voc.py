"""Pascal VOC's average precision in both of its forms, each with its own name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ciod.core.boxes import iou_table
from ciod.core.types import Detections
from ciod.data.index import Index

NAMES: dict[Literal["voc07", "voc"], str] = {"voc07": "VOC07", "voc": "VOC"}
"""Metric of a protocol → the key of its values, in addition to AP and AP50, which are always COCO's."""


def voc_ap(
    detections: Sequence[Detections],
    truth: Index,
    *,
    metric: Literal["voc07", "voc"],
    classes: Sequence[str] | None = None,
    iou: float = 0.5,
) -> dict[str, float | None]:
    """AP of every class at one IoU threshold; None if all ground truth is difficult or there is none.

    The detections of a class are processed by descending score. Each is compared with the ground-truth box of its
    image that it overlaps most. If the overlap is below ``iou``, it is wrong. If the box is difficult (or a COCO
    crowd), it is ignored. If the box was already detected, it is wrong (even if another ground-truth box is free,
    unlike in COCO).

    Args:
        detections: one per image of ``truth``, boxes in pixels of that image. All count: VOC has no maxDets.
        metric: ``voc07``: mean of the best precision at recall ≥ 0, 0.1, … 1. ``voc``: area under the envelope of
            precision over recall.

    Raises:
        ValueError: not one Detections per image.

    Source: Everingham et al., The Pascal Visual Object Classes Challenge (IJCV 2010), section 4.2; development kits of
    2007 and 2010. Their pixel-inclusive widths are kept: the reader of VOC boxes maps x to xmin − 1 … xmax.
    """
    if len(detections) != len(truth):
        raise ValueError(f"{len(detections)} detections for {len(truth)} images; give one Detections per image")
    names = tuple(dict.fromkeys(truth.class_names if classes is None else classes))
    found = _found_by_class(detections, names)
    area = _eleven_points if metric == "voc07" else _area
    out: dict[str, float | None] = {}
    for name in names:
        hits, total = _judge(*found[name], truth, name, iou)
        out[name] = area(*_curve(hits, total)) if total else None
    return out


def _found_by_class(
    detections: Sequence[Detections], names: Sequence[str]
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Class → image [n], boxes [n, 4] and scores [n] of its detections, by descending score (equal ones in order)."""
    image = np.repeat(np.arange(len(detections)), [len(d) for d in detections])
    boxes = np.concatenate([np.zeros((0, 4)), *(d.boxes for d in detections)])
    scores = np.concatenate([np.zeros(0), *(d.scores for d in detections)])
    predicted = np.array([n for d in detections for n in np.asarray(d.class_names, object)[d.labels]] or [""], object)
    predicted = predicted[: len(image)]
    out = {}
    for name in names:
        rows = np.flatnonzero(predicted == name)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        out[name] = image[rows], boxes[rows], scores[rows]
    return out


def _judge(
    image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, truth: Index, name: str, iou: float
) -> tuple[np.ndarray, int]:
    """[n] 1 = right, 0 = wrong, without ignored ones; and the number of ground-truth boxes."""
    del scores
    label = truth.class_names.index(name) if name in truth.class_names else -1
    rows = np.flatnonzero(truth.labels == label)
    ignored = truth.difficult | truth.crowd
    of_image: dict[int, np.ndarray] = {}
    for i, part in zip(*_runs(truth.image[rows]), strict=True):
        of_image[int(i)] = rows[part]
    nearest, overlap = np.zeros(len(image), dtype=np.int64), np.full(len(image), -1.0)
    order = np.argsort(image, kind="stable")
    for i, part in zip(*_runs(image[order]), strict=True):
        own, mine = of_image.get(int(i)), order[part]
        if own is not None:
            table = iou_table(boxes[mine], truth.boxes[own].astype(np.float64))
            nearest[mine], overlap[mine] = own[table.argmax(1)], table.max(1)
    taken = np.zeros(len(truth.labels), dtype=bool)
    hits = []
    for best, largest in zip(nearest.tolist(), overlap.tolist(), strict=True):
        if largest < iou:
            hits.append(0)
        elif not ignored[best]:
            hits.append(int(not taken[best]))
            taken[best] = True
    return np.array(hits, dtype=np.int64), int((~ignored[rows]).sum())


def _runs(values: np.ndarray) -> tuple[np.ndarray, list[slice]]:
    """Distinct values of a sorted array, and where each starts and ends."""
    distinct, starts = np.unique(values, return_index=True)
    return distinct, [slice(a, b) for a, b in zip(starts, [*starts[1:], len(values)])]


def _curve(hits: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection."""
    right = hits.cumsum()
    return right / total, right / np.arange(1, len(hits) + 1)


def _eleven_points(recall: np.ndarray, precision: np.ndarray) -> float:
    # Recall 0.7 must reach the point 0.7, however both were rounded.
    best = [precision[recall >= t - 1e-9].max(initial=0) for t in np.arange(11) / 10]
    return float(np.mean(best))


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * envelope).sum())
