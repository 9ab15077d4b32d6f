"""Index: a data set in memory as columns. Scenarios, loaders and evaluation use only the Index."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ciod.data.federated import Federated


@dataclass
class Problems:
    """Problems of a data set: a count and a few examples per kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    limit: int = 5

    def add(self, kind: str, where: str) -> None:
        """``kind`` is a short description ("box without area, left out"); ``where`` names the file, image or id."""
        self.counts[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < self.limit:
            shown.append(where)

    def merge(self, other: Problems) -> None:
        for kind, n in other.counts.items():
            self.counts[kind] += n
            shown = self.examples.setdefault(kind, [])
            shown.extend(other.examples.get(kind, [])[: self.limit - len(shown)])

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self) -> list[str]:
        """One line per kind: count, what, the first examples."""
        return [
            f"{n} × {kind}: {', '.join(self.examples[kind])}{', …' if n > len(self.examples[kind]) else ''}"
            for kind, n in self.counts.most_common()
        ]


def count(problems: Problems, kind: str, rows: Iterable[int], where: Callable[[int], str]) -> None:
    """Counts all rows under ``kind``, with examples only for the first few."""
    rows = [int(r) for r in rows]
    for row in rows[: problems.limit]:
        problems.add(kind, where(row))
    if len(rows) > problems.limit:
        problems.counts[kind] += len(rows) - problems.limit


def natural(text: str) -> tuple[tuple[bool, int, str], ...]:
    """A key to sort by: numbers by value, so that ``a9`` comes before ``a10``."""
    return tuple((t.isdecimal(), int(t) if t.isdecimal() else 0, t) for t in re.findall(r"\d+|\D+", text))


@dataclass
class Index:
    """Images, boxes and class names of one split, columnar.

    Boxes are clipped to their image and have positive area; ``problems`` counts what was left out.
    Box rows are sorted by image, so ``starts[i]:starts[i + 1]`` are the boxes of image i.
    """

    class_names: tuple[str, ...]  # in data set order (COCO: by category id; YOLO: by number; VOC: alphabetical)
    files: list[Path]  # [I] absolute
    sizes: np.ndarray  # [I, 2] int32 height, width that the boxes refer to (after EXIF rotation if that applies)
    image_ids: np.ndarray  # [I] int64, unique; the data set's own where it has numbers
    image: np.ndarray  # [A] int64 row of the box's image
    boxes: np.ndarray  # [A, 4] float32 xyxy in pixels of the original image
    labels: np.ndarray  # [A] int64 row in class_names
    crowd: np.ndarray  # [A] bool: COCO iscrowd
    difficult: np.ndarray  # [A] bool: VOC difficult
    area: np.ndarray  # [A] float32: the data set's own area if it gives one (COCO's mask area), else width × height
    source: str = ""  # the source, for messages
    # Ids and pixels of the original data set, for result files; empty or None: as in the columns above.
    own_ids: list[tuple[Any, ...]] = field(default_factory=list)  # [I] ids as written; several if listed several times
    category_ids: tuple[Any, ...] = ()  # [C] ids as written
    annotated: np.ndarray | None = None  # [I, 2] int32 height, width that the annotations refer to
    stored: np.ndarray | None = None  # [I] bool: boxes refer to the pixels before EXIF rotation
    federated: Federated | None = None  # LVIS: classes that are known to be absent or incomplete in an image
    problems: Problems = field(default_factory=Problems)
    starts: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.starts = np.searchsorted(self.image, np.arange(len(self.files) + 1))

    def __len__(self) -> int:
        return len(self.files)

    def ids_of(self, i: int) -> tuple[Any, ...]:
        """The data set's own ids of image i, as written there."""
        return self.own_ids[i] if self.own_ids else (int(self.image_ids[i]),)

    def category_id(self, c: int) -> Any:
        """The data set's own id of class c; without one, its position, counted from 1."""
        return self.category_ids[c] if self.category_ids else c + 1

    def written_scale(self, i: int) -> tuple[float, float]:
        """Pixels of the annotations per pixel of image i, along x and y."""
        if self.annotated is None:
            return 1.0, 1.0
        y, x = (self.annotated[i] / self.sizes[i]).tolist()
        return x, y

    def is_stored(self, i: int) -> bool:
        """Whether image i must be read without EXIF rotation, independent of its size."""
        return self.stored is not None and bool(self.stored[i])

    def of_image(self, i: int) -> slice:
        return slice(int(self.starts[i]), int(self.starts[i + 1]))

    def by_name(self) -> np.ndarray:
        """[I] rows of the images, in the order of their file names: neighbours are often frames of one film."""
        return np.array(sorted(range(len(self)), key=lambda i: (natural(self.files[i].name), i)), dtype=np.int64)

    def select(self, images: np.ndarray | None = None, boxes: np.ndarray | None = None) -> Index:
        """A smaller Index: ``images`` rows to keep ([k] ascending row numbers), ``boxes`` [A] bool to keep.

        Raises:
            ValueError: rows that do not ascend; the boxes would go to other images.
        """
        rows = np.arange(len(self)) if images is None else np.asarray(images, dtype=np.int64)
        if (np.diff(rows) <= 0).any():
            raise ValueError("the rows to keep must ascend; sort them, each once")
        place = np.full(len(self), -1, dtype=np.int64)
        place[rows] = np.arange(len(rows))
        keep = place[self.image] >= 0
        if boxes is not None:
            keep &= boxes
        return replace(
            self,
            files=[self.files[i] for i in rows],
            sizes=self.sizes[rows],
            image_ids=self.image_ids[rows],
            own_ids=[self.own_ids[i] for i in rows] if self.own_ids else [],
            annotated=None if self.annotated is None else self.annotated[rows],
            stored=None if self.stored is None else self.stored[rows],
            federated=None if self.federated is None else self.federated.select(place),
            image=place[self.image[keep]],
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            crowd=self.crowd[keep],
            difficult=self.difficult[keep],
            area=self.area[keep],
        )

    def relabel(self, names: tuple[str, ...]) -> Index:
        """The same boxes with labels as positions in ``names``; boxes of other classes are dropped."""
        where = {n: i for i, n in enumerate(names)}
        where_from = {n: i for i, n in enumerate(self.class_names)}
        table = np.array([where.get(n, -1) for n in self.class_names] or [0], dtype=np.int64)
        labels = table[self.labels] if len(self.labels) else self.labels
        ids = tuple(self.category_id(where_from[n]) if n in where_from else None for n in names)
        federated = self.federated
        if federated is not None:
            federated = federated.relabel(table, [where_from.get(n) for n in names])
        category_ids = ids if self.category_ids else ()
        kept = replace(self, class_names=names, labels=labels, category_ids=category_ids, federated=federated)
        return kept.select(boxes=labels >= 0)

    def with_boxes(self, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray) -> Index:
        """The same images with more boxes, each after the existing boxes of its image.

        Args:
            image, boxes, labels: [m] row of the image, [m, 4] in its pixels, [m].
        """
        rows = np.concatenate([self.image, image])
        order = np.argsort(rows, kind="stable")
        no = np.zeros(len(image), bool)
        more = {"boxes": boxes, "labels": labels, "crowd": no, "difficult": no,
                "area": (boxes[:, 2:] - boxes[:, :2]).prod(1)}  # fmt: skip
        columns = {k: np.concatenate([(had := getattr(self, k)), v.astype(had.dtype)])[order] for k, v in more.items()}
        return replace(self, image=rows[order], **columns)

    def boxes_per_class(self) -> np.ndarray:
        """[C] counts."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    def images_per_class(self) -> np.ndarray:
        """[C] counts of images with at least one box of the class."""
        pairs = np.unique(self.image * len(self.class_names) + self.labels) if len(self.labels) else self.labels
        return np.bincount(pairs % max(1, len(self.class_names)), minlength=len(self.class_names))


def empty_columns() -> dict[str, Any]:
    """Box columns of an Index without boxes, with the right types."""
    return {
        "image": np.zeros(0, np.int64),
        "boxes": np.zeros((0, 4), np.float32),
        "labels": np.zeros(0, np.int64),
        "crowd": np.zeros(0, bool),
        "difficult": np.zeros(0, bool),
        "area": np.zeros(0, np.float32),
    }
