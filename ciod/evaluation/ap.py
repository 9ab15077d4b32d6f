"""COCO average precision per class: faster-coco-eval does the matching, and one precision array gives every number.

Data set ids appear only here and in ``data.formats``: detections and ground truth are matched by class *name*.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ciod.core.gc_pause import uncollected
from ciod.core.types import Detections
from ciod.data.index import Index

PER_CLASS = ("AP", "AP50", "AP75")
OVERALL = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass
class APTable:
    """Average precisions 0..1; None where there is no ground truth to find."""

    per_class: dict[str, dict[str, float | None]]  # name → AP, AP50, AP75, and metrics added by ``include``
    overall: dict[str, float | None]  # AP, AP50, AP75, APs, APm, APl: means over the classes with ground truth
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    """For each class with ground truth: [101] precision at IoU 0.5 and recall 0, 0.01, …, 1."""

    def mean(self, names: Iterable[str], key: str = "AP") -> float | None:
        """Mean of ``key`` over those of ``names`` that have ground truth; None if none has.

        Raises:
            KeyError: a name or key that was not evaluated.
        """
        values = [v for n in names if (v := self.per_class[n][key]) is not None]
        return float(np.mean(values)) if values else None

    def include(self, key: str, values: dict[str, float | None]) -> None:
        """Adds another metric of the same classes, under its own name."""
        for name, row in self.per_class.items():
            row[key] = values[name]
        self.overall[key] = self.mean(self.per_class, key)

    def line(self) -> str:
        """``AP 0.272  AP50 0.426  AP75 0.281  APs 0.096  APm 0.314  APl 0.430``; — for None. An added metric first."""
        shown = {k: self.overall[k] for k in (*(k for k in self.overall if k not in OVERALL), *OVERALL)}
        return "  ".join(f"{k} {'—' if v is None else f'{v:.3f}'}" for k, v in shown.items())


def coco_ap(
    detections: Sequence[Detections],
    truth: Index,
    *,
    classes: Sequence[str] | None = None,
    max_detections: int = 100,
) -> APTable:
    """COCO AP of ``detections`` against ``truth``: IoU 0.50:0.95, 101 recall points, as pycocotools computes it.

    Crowd boxes are ignored as in COCO: detections inside one are neither right nor wrong. Difficult boxes (VOC) are
    treated in the same way, also with the overlap relative to the area of the detection. Objects count as small,
    medium or large by ``truth.area`` (below 32², up to 96², above).

    Args:
        detections: one per image; ``detections[i]`` belongs to ``truth.files[i]``, boxes in pixels of that image.
            Their class_names may differ from image to image and from ``truth.class_names``.
        classes: evaluated classes; by default all of ``truth.class_names``. Other classes are left out.
        max_detections: number of best detections per class *and* image that count (COCO's maxDets works per class).

    Raises:
        ValueError: not one Detections per image, or detections without class names.

    Source: Lin et al., Microsoft COCO (ECCV 2014), and cocodataset.org/#detection-eval.
    """
    if len(detections) != len(truth):
        raise ValueError(f"{len(detections)} detections for {len(truth)} images; give one Detections per image")
    names = tuple(dict.fromkeys(truth.class_names if classes is None else classes))
    if not names or not len(truth):  # the evaluator fails without images or classes
        return _table(names, np.full((10, 101, len(names), 4), -1.0))
    with uncollected():
        precision = _precision(detections, truth, names, max_detections)
    return _table(names, precision)


def _positions(have: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """[len(have)] int64: category id (1-based position in ``names``) of each class; 0 = not evaluated."""
    where = {n: i for i, n in enumerate(names, 1)}
    return np.array([where.get(n, 0) for n in have], dtype=np.int64)


def _rows(
    image: np.ndarray,
    category: np.ndarray,
    boxes: np.ndarray,
    *,
    score: np.ndarray | None = None,
    area: np.ndarray | None = None,
    ignored: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """COCO annotations of [n, 4] xyxy boxes and [n] columns; ids from 1 (the evaluator reads id 0 as "unmatched")."""
    b = boxes.astype(np.float64)
    b[:, 2:] -= b[:, :2]
    area = b[:, 2] * b[:, 3] if area is None else area.astype(np.float64)
    score = np.ones(len(b)) if score is None else score.astype(np.float64)
    ignored = np.zeros(len(b), np.int64) if ignored is None else ignored.astype(np.int64)
    columns = (image, category, b, area, score, ignored)
    return [
        {"id": k, "image_id": i, "category_id": c, "bbox": box, "area": a, "score": s, "iscrowd": g}
        for k, (i, c, box, a, s, g) in enumerate(zip(*(column.tolist() for column in columns)), 1)
    ]


def _truth_rows(truth: Index, names: Sequence[str]) -> list[dict[str, Any]]:
    category = _positions(truth.class_names, names)[truth.labels] if len(truth.labels) else truth.labels
    keep = category > 0
    ignored = (truth.crowd | truth.difficult)[keep]
    return _rows(truth.image[keep] + 1, category[keep], truth.boxes[keep], area=truth.area[keep], ignored=ignored)


def _detection_rows(detections: Sequence[Detections], names: Sequence[str]) -> list[dict[str, Any]]:
    """Raises ValueError for detections without class names."""
    tables: dict[tuple[str, ...], np.ndarray] = {}
    category = [np.zeros(0, np.int64)]
    for i, d in enumerate(detections):
        if not len(d):
            category.append(d.labels)
            continue
        if not d.class_names:
            raise ValueError(f"the detections of image {i} have no class_names; they are matched by name")
        have = tuple(d.class_names)
        if have not in tables:
            tables[have] = _positions(have, names)
        category.append(tables[have][d.labels])
    image = np.repeat(np.arange(1, len(detections) + 1), [len(d) for d in detections])
    every = np.concatenate(category)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(d.boxes for d in detections)])
    scores = np.concatenate([np.zeros(0, np.float32), *(d.scores for d in detections)])
    keep = every > 0
    return _rows(image[keep], every[keep], boxes[keep], score=scores[keep])


def _precision(detections: Sequence[Detections], truth: Index, names: Sequence[str], max_detections: int) -> np.ndarray:
    """[10 IoU, 101 recalls, C, 4 areas (all, small, medium, large)] precision; -1 if there is no ground truth."""
    from faster_coco_eval import COCO, COCOeval_faster  # here, because importing it is slow

    def quiet(*_: object) -> None: ...

    def dataset(annotations: list[dict[str, Any]]) -> COCO:
        images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(truth.sizes.tolist(), 1)]
        categories = [{"id": i, "name": n} for i, n in enumerate(names, 1)]
        content = {"images": images, "categories": categories, "annotations": annotations}
        return COCO(content, print_function=quiet)

    given, found = dataset(_truth_rows(truth, names)), dataset(_detection_rows(detections, names))
    run = COCOeval_faster(given, found, "bbox", print_function=quiet)
    run.params.maxDets = [max_detections]
    run.evaluate()
    run.accumulate()
    return np.asarray(run.eval["precision"])[..., -1]


def _table(names: Sequence[str], precision: np.ndarray) -> APTable:
    def mean(part: np.ndarray) -> float | None:
        known = part[part > -1]
        return float(known.mean()) if known.size else None

    def three(part: np.ndarray) -> dict[str, float | None]:  # IoU thresholds 0.50, 0.55, …: 0.75 is the sixth
        return dict(zip(PER_CLASS, (mean(part), mean(part[0]), mean(part[5]))))

    sizes = {k: mean(precision[..., a]) for a, k in enumerate(OVERALL[3:], 1)}
    per_class = {n: three(precision[:, :, k, 0]) for k, n in enumerate(names)}
    curves = {n: precision[0, :, k, 0] for k, n in enumerate(names) if (precision[0, :, k, 0] > -1).any()}
    return APTable(per_class, three(precision[..., 0]) | sizes, curves)
