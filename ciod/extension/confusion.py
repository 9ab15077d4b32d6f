"""Which classes take each other's objects: detections of one class on objects of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ciod.core.boxes import iou_table
from ciod.core.plural import counted
from ciod.core.types import Detections
from ciod.data.index import Index
from ciod.extension.drawing import save_drawn

SHOWN = 0.3  # score from which a box counts
SAME = 0.5  # IoU from which it stands on an object
ALIKE = 0.3  # share of a new class's objects that a known class takes, from which they are called alike


def table(found: Sequence[Detections], truth: Index, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class of ``names`` that has objects: class, objects, found (objects whose surest box is of their own
    class), taken (other class → objects whose surest box is of it) and beside (other class → objects that also have a
    less sure box of it), the most frequent first.

    Args:
        found: one per picture of ``truth``.
    """
    objects: Counter[str] = Counter()
    own: Counter[str] = Counter()
    taken: dict[str, Counter[str]] = {n: Counter() for n in names}
    beside: dict[str, Counter[str]] = {n: Counter() for n in names}
    for i, d in enumerate(found):
        rows = truth.of_image(i)
        labels = truth.labels[rows]
        sure, _ = _scores(d, truth.boxes[rows])
        surest = np.where(sure.any(1), sure.argmax(1), -1)
        for name in {truth.class_names[y] for y in labels} & taken.keys():
            mine = labels == truth.class_names.index(name)
            objects[name] += int(mine.sum())
            for label in np.flatnonzero(sure[mine].any(0)):
                other, first = d.class_names[label], int((surest[mine] == label).sum())
                if other == name:
                    own[name] += first
                    continue
                taken[name][other] += first
                beside[name][other] += int((sure[mine, label] > 0).sum()) - first
    return [
        {"class": n, "objects": objects[n], "found": own[n], "taken": _sorted(taken[n]), "beside": _sorted(beside[n])}
        for n in names
        if objects[n]
    ]


def _scores(found: Detections, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each object the highest score per class of the shown boxes on it, and which box has it (-1: none).

    Returns:
        Two arrays [objects, classes].
    """
    classes = max(1, len(found.class_names))  # some detectors have no class
    score, place = np.zeros((len(boxes), classes)), np.full((len(boxes), classes), -1)
    on = iou_table(boxes, found.boxes) >= SAME
    for label in np.unique(found.labels[found.scores >= SHOWN]):
        own = np.flatnonzero((found.labels == label) & (found.scores >= SHOWN))
        there = np.where(on[:, own], found.scores[own], 0)
        score[:, label] = there.max(1)
        place[:, label] = np.where(there.any(1), own[there.argmax(1)], -1)
    return score, place


def draw(folder: Path, found: Sequence[Detections], truth: Index, names: Sequence[str], count: int = 4) -> int:
    """Writes ``folder/NN.jpg``, the pictures where most objects of ``names`` are taken for another class.

    The boxes that take them are drawn, and the objects dashed.

    Returns:
        The number of pictures written; those that cannot be read are left out.
    """
    wrong: list[tuple[int, np.ndarray, np.ndarray]] = []  # picture, its objects, the boxes on them
    for i, d in enumerate(found):
        rows = truth.of_image(i)
        score, place = _scores(d, truth.boxes[rows])
        surest = score.argmax(1)
        called = np.array([d.class_names[k] if d.class_names else "" for k in surest])
        own = np.array([truth.class_names[y] for y in truth.labels[rows]])
        at = np.flatnonzero(score.any(1) & (called != own) & np.isin(own, list(names)))
        if len(at):
            wrong.append((i, rows.start + at, place[at, surest[at]]))
    wrong.sort(key=lambda w: -len(w[1]))
    written = 0
    for i, objects, boxes in wrong[:count]:
        shown = np.zeros(len(found[i].scores), bool)
        shown[boxes] = True
        written += save_drawn(folder / f"{written:02d}.jpg", truth, i, found[i].keep(shown), objects)
    return written


def without(rows: Sequence[dict[str, Any]], parent: str | None) -> list[dict[str, Any]]:
    """``rows`` without what the parent of all the classes takes: it is meant to be on their objects."""
    if parent is None:
        return list(rows)
    return [{**r, **{k: {n: v for n, v in r[k].items() if n != parent} for k in ("taken", "beside")}} for r in rows]


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return {n: k for n, k in counts.most_common() if k}


def alike(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Warnings about new classes whose objects the model as it was takes for a known class.

    Args:
        rows: ``table`` of the model as it was, on the new training pictures.
    """
    warnings = []
    for row in rows:
        called = Counter(row["taken"]) + Counter(row.get("beside"))
        for other, count in called.most_common():
            share = count / row["objects"]
            if share >= ALIKE:
                warnings.append(
                    f"{row['class']} looks like the known class {other}: the model as it was takes {count} of "
                    f"{counted(row['objects'], 'object')} for it ({100 * share:.0f} %), and will still do so after the "
                    f"extension. "
                    f"If they are one class, write rename='{{{row['class']}: {other}}}'; if {other} is not needed, "
                    f"drop='[{other}]'."
                )
    return warnings


def sentences(rows: Sequence[dict[str, Any]], most: int = 5) -> list[str]:
    """The worst confusions in words, for the terminal."""
    pairs = [(count, row, other) for row in rows for other, count in row["taken"].items()]
    pairs.sort(key=lambda p: (-p[0] / p[1]["objects"], -p[0]))
    listed = ", ".join(f"{n} of {row['objects']} {row['class']} taken for {other}" for n, row, other in pairs[:most])
    return [f"confused on the new pictures: {listed}"] if listed else []
