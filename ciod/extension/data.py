"""The folder of an extension: its images for training and for validation, labelled in the model's order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ciod.config.load import data_folder
from ciod.core.errors import DataError
from ciod.core.files import exists
from ciod.core.plural import counted
from ciod.data import formats
from ciod.data.index import Index
from ciod.data.scenarios import subsets
from ciod.data.scenarios.scenario import Task
from ciod.extension.names import Names


@dataclass
class Folder:
    """Both splits as they were read, labels in the folder's own order."""

    train: Index
    val: Index
    held_out: bool  # the validation images were taken from the training images
    notes: list[str]  # for the user
    whole: int = 0  # number of training images before a subset was taken

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that have a box to learn from, in the folder's order."""
        boxes = self.train.boxes_per_class()
        return tuple(n for n, k in zip(self.train.class_names, boxes, strict=True) if k)


def open_folder(path: str, *, holdout: float, seed: int, subset: str | None = None) -> Folder:
    """Reads a folder; without a validation split one is held out.

    Args:
        subset: only this part of the images of both splits, for a smoke test (``scenarios.subsets``).

    Raises:
        DataError: no data set, no image, no box, or a single image where two splits are needed.
    """
    folder = _open(path, holdout, seed)
    if subset is None:
        return folder
    train, val = subsets.part(folder.train, subset), subsets.part(folder.val, subset)
    sizes = f"training on {len(train)} of {len(folder.train)} images, testing on {len(val)} of {len(folder.val)}"
    notes = [*folder.notes, subsets.sentence(subset), f"Subset ({subset}): {sizes}."]
    return Folder(train, val, folder.held_out, notes, len(folder.train))


def _open(path: str, holdout: float, seed: int) -> Folder:
    layout = formats.recognise(data_folder(path) or path)
    train = _usable(formats.open_split(layout, "train"))
    notes = [f"{train.source}: {line}" for line in train.problems.lines()]
    boxes = train.boxes_per_class()
    without = [n for n, k in zip(train.class_names, boxes, strict=True) if not k]
    if not boxes.any():
        raise DataError(
            f"{train.source} has {counted(len(train), 'image')} and not one box: there is nothing to learn."
        )
    if without:
        notes.append(f"no box in the training images, left out: {', '.join(without[:8])}{', …' if without[8:] else ''}")
    if {"val", "test"} & layout.splits.keys():
        val = _usable(formats.open_split(layout, "val"))
        notes += [f"{val.source}: {line}" for line in val.problems.lines()]
        return Folder(train, val.relabel(train.class_names), False, notes, len(train))
    rows = hold_out(train, holdout, seed)
    val = train.select(rows)
    rest = train.select(np.setdiff1d(np.arange(len(train)), rows))
    lacking = [n for n, k, v in zip(train.class_names, boxes, val.boxes_per_class(), strict=True) if k and not v]
    note = f"; in too few images to hold one out, so not measured: {', '.join(lacking)}" if lacking else ""
    notes.append(f"no validation split: {len(val)} of {len(train)} images are held out (seed {seed}){note}")
    return Folder(rest, val, True, notes, len(rest))


def hold_out(index: Index, share: float, seed: int) -> np.ndarray:
    """Rows of the images to hold out, ascending: about ``share`` of them, and of each class about the same share.

    Images are taken per class, the rarest first; a class keeps at least one image to learn from and, when it has two,
    gives at least one to measure by.

    Raises:
        DataError: there is only one image.
    """
    if len(index) < 2:
        raise DataError(
            f"{index.source} has one image; two are needed, one to learn from and one to measure by. Add some."
        )
    rng = np.random.default_rng([seed, 11])
    place = rng.permutation(len(index))  # the order in which images are taken
    images = [np.unique(index.image[index.labels == c]) for c in range(len(index.class_names))]
    held, kept = np.zeros(len(index), bool), np.zeros(len(index), bool)
    for c in sorted(range(len(images)), key=lambda c: len(images[c])):
        own = images[c][np.argsort(place[images[c]])]
        wanted = 0 if len(own) < 2 else max(1, round(share * len(own)))
        free = [i for i in own if not held[i] and not kept[i]]
        take = max(0, wanted - int(held[own].sum()))
        held[free[:take]] = True
        kept[free[take : take + 1]] = True
    background = np.setdiff1d(np.arange(len(index)), np.unique(index.image))
    held[background[np.argsort(place[background])][: round(share * len(background))]] = True
    if not held.any():
        held[int(np.argmin(place))] = True
    return np.flatnonzero(held)


def task_of(folder: Folder, names: Names) -> Task:
    """The extension as the second task of a scenario whose first task is the model as it was."""

    def named(index: Index) -> Index:
        renamed = _rename(index, names.data)
        return renamed.relabel(names.all)

    train = named(folder.train)
    usable = ~train.crowd & ~train.difficult
    if names.ignored:
        usable &= ~np.isin(train.labels, [names.all.index(n) for n in names.ignored])
    return Task(
        index=1,
        new_classes=names.new,
        old_classes=names.old,
        train=train.select(boxes=usable),
        test=named(folder.val),
        hidden_boxes=0,
        future_boxes=0,
    )


def old_validation(path: str, names: Names) -> Index:
    """Validation images of the old classes, labelled in the extended model's order.

    Raises:
        DataError: none of the old classes is in it.
    """
    index = formats.read(data_folder(path) or path, "val")
    known = _under_model_names(index, names)
    if not len(known.relabel(names.old).labels):
        raise DataError(
            f"old_data: {index.source} has no box of an old class; it names {', '.join(index.class_names[:6])}, the "
            f"model {', '.join(names.old[:6])}."
        )
    return known


def old_training(path: str, names: Names) -> Index | None:
    """Training images of the old data, labelled in the extended model's order; None: there is no such split beside the
    one for validation."""
    layout = formats.recognise(data_folder(path) or path)
    if "train" not in layout.splits or not {"val", "test"} & layout.splits.keys():
        return None
    return _under_model_names(formats.open_split(layout, "train"), names)


def _under_model_names(index: Index, names: Names) -> Index:
    where = dict(zip(names.kept, names.old, strict=True))
    return _rename(index, {n: where.get(n, names.data.get(n, n)) for n in index.class_names}).relabel(names.all)


def _rename(index: Index, where: dict[str, str]) -> Index:
    """Labels under the model's names; two classes of the folder under one name become one."""
    from dataclasses import replace

    renamed = [where.get(n, n) for n in index.class_names]
    names = tuple(dict.fromkeys(renamed))
    table = np.array([names.index(n) for n in renamed] or [0], dtype=np.int64)
    labels = table[index.labels] if len(index.labels) else index.labels
    return replace(index, class_names=names, labels=labels, category_ids=())


def _usable(index: Index) -> Index:
    if not len(index):
        raise DataError(f"{index.source} has no image.")
    return index


def free_of(path: Path) -> float:
    """Bytes of room where ``path`` will be."""
    import shutil

    place = path.absolute()
    while not exists(place):
        place = place.parent
    return float(shutil.disk_usage(place).free)
