"""Old objects that an extension found in the new images, as labels to be corrected: COCO, YOLO and Label Studio.

A person corrects one of the three, and ``known=`` brings it back (``extension.known``). Each has the labelled boxes of
the folder and the found ones, for every picture in which an old object was found or is doubtful.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from ciod.core.boxes import iou_table
from ciod.core.files import exists
from ciod.core.label_studio import results
from ciod.core.plural import counted
from ciod.core.run_log import atomic_write
from ciod.core.types import Detections
from ciod.data.index import Index
from ciod.extension.old_objects import GUARD, MARGIN, Found

FOLDER = "old_objects"
COCO, STUDIO, STUDIO_LABELS = "coco.json", "label_studio.json", "label_studio.xml"


@dataclass(frozen=True)
class Picture:
    """Boxes of one picture: the labelled ones first."""

    row: int  # in the index
    boxes: np.ndarray  # [n, 4] xyxy in pixels of the picture
    names: list[str]
    scores: list[float | None]  # None: labelled
    doubtful: list[bool]


def pictures(found: Found, detections: Sequence[Detections], index: Index) -> list[Picture]:
    """The pictures with old objects, those with most doubtful ones first."""
    counts = dict(found.doubtful)
    rows = sorted((i for i, d in enumerate(found.boxes) if len(d) or i in counts), key=lambda i: (-counts.get(i, 0), i))
    return [_picture(i, found, detections[i], index) for i in rows]


def _picture(i: int, found: Found, seen: Detections, index: Index) -> Picture:
    own = index.of_image(i)
    real = index.boxes[own]
    limit = np.array([found.thresholds.get(n, 9.0) for n in seen.class_names] or [9.0])
    near = seen.keep(seen.scores >= limit[seen.labels] - MARGIN)
    if len(real) and len(near):
        near = near.keep(iou_table(near.boxes, real).max(1) < GUARD)
    unsure = np.abs(near.scores - limit[near.labels]) <= MARGIN
    return Picture(
        i,
        np.concatenate([real, near.boxes]),
        [index.class_names[y] for y in index.labels[own]] + [near.class_names[y] for y in near.labels],
        [None] * len(real) + [round(float(s), 4) for s in near.scores],
        [False] * len(real) + unsure.tolist(),
    )


def write(folder: Path, found: Found, detections: Sequence[Detections], index: Index) -> list[str]:
    """Writes the three kinds of files into ``folder``, and says so. Files that are there are left as they are: somebody
    may be correcting them.

    Args:
        detections: of the model as it was, one per image of ``index``.
        index: the new images, labelled in the order of the model's classes.
    """
    listed = pictures(found, detections, index)
    if not listed or exists(folder):
        return []
    atomic_write(folder / COCO, json.dumps(coco(listed, index), ensure_ascii=False))
    atomic_write(folder / STUDIO, json.dumps(studio(listed, index), ensure_ascii=False, indent=1))
    atomic_write(folder / STUDIO_LABELS, studio_labels(index.class_names))
    for name, text in yolo(listed, index).items():
        atomic_write(folder / "yolo" / name, text)
    return [
        f"{counted(len(listed), 'picture')} with old objects can be corrected, and given back with known=: {folder}"
    ]


def coco(listed: Sequence[Picture], index: Index) -> dict[str, Any]:
    """A COCO data set; boxes of the model have ``score`` and ``doubtful``. Category ids are positions from 1."""
    images, annotations = [], []
    for p in listed:
        height, width = index.sizes[p.row].tolist()
        images.append({"id": p.row + 1, "file_name": index.files[p.row].name, "width": width, "height": height})
        for box, name, score, doubtful in zip(p.boxes.tolist(), p.names, p.scores, p.doubtful, strict=True):
            x1, y1, x2, y2 = box
            more = {} if score is None else {"score": score, "doubtful": doubtful}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": p.row + 1,
                    "category_id": index.class_names.index(name) + 1,
                    "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
                    "area": round((x2 - x1) * (y2 - y1), 2),
                    "iscrowd": 0,
                    **more,
                }
            )
    categories = [{"id": c, "name": n} for c, n in enumerate(index.class_names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def yolo(listed: Sequence[Picture], index: Index) -> dict[str, str]:
    """``classes.txt`` and ``labels/STEM.txt``: class, centre and size as shares of the picture."""
    files = {"classes.txt": "\n".join(index.class_names) + "\n"}
    for p in listed:
        height, width = index.sizes[p.row].tolist()
        lines = []
        for (x1, y1, x2, y2), name in zip(p.boxes.tolist(), p.names, strict=True):
            centre = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            lines.append(" ".join([str(index.class_names.index(name)), *(f"{v:.6f}" for v in centre)]))
        files[f"labels/{index.files[p.row].stem}.txt"] = "".join(f"{line}\n" for line in lines)
    return files


def studio(listed: Sequence[Picture], index: Index) -> list[dict[str, Any]]:
    """Tasks of Label Studio with predictions. The pictures are served from the disk: docs/labelling.md says how."""
    tasks = []
    for p in listed:
        height, width = index.sizes[p.row].tolist()
        result = results(p.boxes.tolist(), p.names, p.scores, width, height)
        sure = [s for s, d in zip(p.scores, p.doubtful, strict=True) if s is not None and not d]
        address = f"/data/local-files/?d={str(index.files[p.row]).lstrip('/')}"
        prediction = {"model_version": "ciod", "score": min(sure, default=0.0), "result": result}
        tasks.append({"data": {"image": address}, "predictions": [prediction]})
    return tasks


def studio_labels(names: Sequence[str]) -> str:
    """The labelling interface of a Label Studio project with these classes."""
    labels = "\n".join(f"    <Label value={quoteattr(n)}/>" for n in names)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n  <RectangleLabels name="label" toName="image">\n'
        f"{labels}\n  </RectangleLabels>\n</View>\n"
    )
