"""``known=``: corrected labels of new images. They replace those of the folder, and count as complete."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np

from ciod.core.errors import DataError, did_you_mean
from ciod.core.files import exists, expanded, is_file, is_folder, nfc
from ciod.core.reading import Unreadable, read_json
from ciod.core.types import KNOWN, TASK
from ciod.data import formats
from ciod.data.index import Index
from ciod.data.mixture import Mixture
from ciod.data.text_files import read_text
from ciod.extension import auto

if TYPE_CHECKING:
    from ciod.core.types import Detections
    from ciod.data.scenarios.scenario import Task
    from ciod.detectors.base import Detector
    from ciod.extension.names import Names
    from ciod.extension.settings import Extend

Boxes = tuple[np.ndarray, list[str]]
"""[n, 4] xyxy in pixels of the picture, and the name of each one's class."""


@dataclass(frozen=True)
class Known:
    """The task with the corrected labels, and which of its images have them."""

    task: Task
    rows: np.ndarray  # of task.train, ascending
    changed: int  # images whose boxes of learnt classes differ from the folder's
    old: int  # boxes of old classes
    left_out: list[str]  # names of pictures that are not among the training images
    trains_old: bool  # the method trains old classes

    @property
    def images(self) -> Index:
        """The training images with checked labels."""
        return self.task.train.select(self.rows)

    def without(self, detections: Sequence[Detections]) -> list[Detections]:
        """Detections on the training images, without those on checked ones: their objects are known."""
        rows = set(self.rows.tolist())
        return [d[:0] if i in rows else d for i, d in enumerate(detections)]

    def row(self) -> dict[str, int]:
        """For results.json."""
        return {"images": len(self.rows), "changed": self.changed, "old_boxes": self.old}

    def sentences(self) -> list[str]:
        """What is used of them."""
        lines = [
            f"known: {len(self.rows)} images have checked labels, with {self.old} boxes of old classes; in "
            f"{self.changed} of them boxes of the learnt classes differ from the folder's"
        ]
        if self.old and not self.trains_old:
            lines.append("known: this method leaves the old classes as they are, so their boxes are not trained on")
        if self.left_out:
            shown = ", ".join(self.left_out[:4]) + (", …" if self.left_out[4:] else "")
            lines.append(f"known: {len(self.left_out)} pictures are not among the training images, left out: {shown}")
        return lines


def open_checked(settings: Extend, detector: Detector, task: Task, names: Names) -> Known | None:
    """Those of the setting ``known``; None: there are none. Raises DataError as ``take``."""
    if settings.known is None:
        return None
    name = str(settings.method.get("name", "auto"))
    name = auto.method_for(detector)[0] if name == "auto" else name
    return take(settings.known, task, names, trains_old=name != "freeze_branch")


def take(path: str, task: Task, names: Names, *, trains_old: bool) -> Known:
    """The task with the corrected labels of some of its training images.

    Args:
        path: a data set in any format, its pictures there or only in the task's folders; a YOLO folder of labels alone;
            or an export of Label Studio (JSON).
        trains_old: False: boxes of old classes are dropped, because the method does not train them.

    Raises:
        DataError: no labels, a class that neither the model nor the folder has, or no picture of the task.
    """
    train = task.train
    rows = {nfc(f.name): i for i, f in enumerate(train.files)}
    often = Counter(nfc(f.name) for f in train.files)
    labels = _read(expanded(path), train)
    where = dict(zip(names.kept, names.old, strict=True))
    unknown = sorted(
        {m for _, found in labels.values() for n in found if (m := _named(n, where, names)) not in names.all}
    )
    if unknown:
        raise DataError(
            f"known: {path} has the class '{unknown[0]}', which neither the model nor the folder has; "
            f"{did_you_mean(unknown[0], names.all)}"
        )
    used = {rows[n]: boxes for n, boxes in labels.items() if n in rows and often[n] == 1}
    if not used:
        example = next(iter(labels), "none at all")
        raise DataError(
            f"known: none of the {len(labels)} pictures of {path} is among the training images of {train.source}; they "
            f"are matched by file name, such as {example}."
        )
    kept = ~np.isin(train.image, list(used))
    index, old, changed = train.select(boxes=kept), 0, 0
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for row in sorted(used):
        boxes, found = used[row]
        label = np.array([names.all.index(_named(n, where, names)) for n in found], np.int64)
        learnt = np.isin(label, [names.all.index(n) for n in names.learnt])
        old += int((~learnt).sum())
        changed += _differ(train, row, boxes[learnt], label[learnt])
        keep = learnt | trains_old
        columns.append((np.full(int(keep.sum()), row), boxes[keep], label[keep]))
    image, boxes, label = (np.concatenate(c) for c in zip(*columns, strict=True))
    index = index.with_boxes(image, boxes.reshape(-1, 4), label)
    left_out = sorted(n for n in labels if n not in rows or often[n] > 1)
    return Known(replace(task, train=index), np.array(sorted(used)), changed, old, left_out, trains_old)


def mixture(known: Known, mixed: Mixture | None, classes: int, batch: int) -> Mixture:
    """What the task is trained on, its checked images marked as completely labelled.

    Args:
        mixed: the task's images with others after them; None: they are alone.
        classes: channels of the detector.
    """
    train = known.task.train
    if mixed is None:
        n = len(train)
        sources, complete = np.full(n, TASK), np.ones((n, classes), bool)
        mixed = Mixture(train, sources, complete, np.ones(n, bool), [np.arange(n)], [batch])
    source = mixed.source.copy()
    source[known.rows] = KNOWN  # the task's images come first
    return replace(mixed, source=source)


def _named(name: str, where: dict[str, str], names: Names) -> str:
    """The name that the extended model has for a class of the model as it was, or of the folder."""
    name = nfc(name)
    return name if name in names.all else where.get(name, names.data.get(name, name))


def _differ(train: Index, row: int, boxes: np.ndarray, labels: np.ndarray) -> bool:
    """Whether an image's boxes in the folder differ by more than the rounding of a file."""
    own = train.of_image(row)
    before = np.column_stack([train.labels[own], train.boxes[own]])
    after = np.column_stack([labels, boxes]) if len(labels) else np.zeros((0, 5))
    if before.shape != after.shape:
        return True
    order = [np.lexsort(np.round(t, 0).T[::-1]) for t in (before, after)]
    return not np.allclose(before[order[0]], after[order[1]], atol=0.51)


def _read(path: Path, train: Index) -> dict[str, Boxes]:
    """File name of a picture → its boxes. Raises DataError."""
    if not exists(path):
        raise DataError(f"known: there is no file or folder {path}.")
    if is_file(path) and path.suffix.lower() == ".json" and (tasks := _studio_tasks(path)) is not None:
        return _studio(path, tasks)
    labels, classes = path / "labels", path / "classes.txt"
    if is_folder(path) and is_folder(labels) and is_file(classes) and not exists(path / "images"):
        return _yolo(labels, classes, train)
    return _data_set(path, train)


def _data_set(path: Path, train: Index) -> dict[str, Boxes]:
    """Every split of a data set; pictures that it lacks are looked for among those of the task."""
    layout = formats.recognise(path)
    folders = tuple(dict.fromkeys(f.parent for f in train.files))
    found: dict[str, Boxes] = {}
    for split, parts in layout.splits.items():
        there = tuple(replace(p, images=(*p.images, *folders)) for p in parts) if layout.kind == "coco" else parts
        index = formats.open_split(replace(layout, splits={split: there}), split)
        for i, file in enumerate(index.files):
            own = index.of_image(i)
            found[nfc(file.name)] = index.boxes[own], [index.class_names[y] for y in index.labels[own]]
    return found


def _yolo(labels: Path, classes: Path, train: Index) -> dict[str, Boxes]:
    """Labels without pictures, by the names of the task's."""
    names = [line.strip() for line in read_text(classes).splitlines() if line.strip()]
    stems = {nfc(f.stem): i for i, f in enumerate(train.files)}
    found: dict[str, Boxes] = {}
    for file in sorted(labels.glob("*.txt")):
        row = stems.get(nfc(file.stem))
        if row is None:
            found[f"{file.stem}.txt"] = np.zeros((0, 4)), []
            continue
        height, width = train.sizes[row].tolist()
        boxes, own = [], []
        for number, line in enumerate(read_text(file).splitlines(), 1):
            words = line.split()
            if not words:
                continue
            try:
                label, (x, y, w, h) = int(words[0]), map(float, words[1:5])
                own.append(names[label])
            except (ValueError, IndexError):
                raise DataError(
                    f"known: {file}, line {number}, is not a class of classes.txt and four numbers."
                ) from None
            boxes.append([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height])
        found[nfc(train.files[row].name)] = np.array(boxes, np.float32).reshape(-1, 4), own
    return found


def _studio_tasks(path: Path) -> list[dict[str, Any]] | None:
    """The tasks of an export of Label Studio; None: the file is of another kind."""
    try:
        content = read_json(path)
    except Unreadable as e:
        raise DataError(f"known: {e}") from e
    tasks = content if isinstance(content, list) else None
    return tasks if tasks and all(isinstance(t, dict) and isinstance(t.get("data"), dict) for t in tasks) else None


def _studio(path: Path, tasks: Sequence[dict[str, Any]]) -> dict[str, Boxes]:
    """Annotations of an export; tasks without an annotation are left out."""
    found: dict[str, Boxes] = {}
    for task in tasks:
        done = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
        if not done:
            continue
        address = unquote(str(task["data"].get("image", "")))
        name = nfc(address.replace("?d=", "/").rpartition("/")[2])
        boxes, names = [], []
        for result in done[-1].get("result") or []:
            value = result.get("value") or {}
            if not value.get("rectanglelabels"):
                continue
            try:
                sides = result["original_width"], result["original_height"]
                x, y, w, h = (float(value[k]) / 100 for k in ("x", "y", "width", "height"))
            except (KeyError, TypeError, ValueError):
                text = json.dumps(value)[:80]
                raise DataError(
                    f"known: {path} has a box of {name} that lacks x, y, width, height or the size of its "
                    f"image: {text}."
                ) from None
            boxes.append([x * sides[0], y * sides[1], (x + w) * sides[0], (y + h) * sides[1]])
            names.append(str(value["rectanglelabels"][0]))
        found[name] = np.array(boxes, np.float32).reshape(-1, 4), names
    if not found:
        raise DataError(f"known: no task of {path} is annotated; submit some in Label Studio, and export them as JSON.")
    return found
