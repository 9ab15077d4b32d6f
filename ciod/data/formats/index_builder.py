"""Builds an Index from a reader's annotations: checks files, clips boxes, and counts everything that is left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ciod.core.errors import DataError
from ciod.core.files import nfc
from ciod.data.alike import alike, count_joined, listed
from ciod.data.formats.corners import Form, check_form
from ciod.data.formats.plausible import EQUAL, check_percent, check_usable, equal_to_another
from ciod.data.frames import match_sizes, twice_in_joined
from ciod.data.images import read_header, read_image
from ciod.data.index import Index, Problems, count

Check = Literal["files", "headers", "pixels"]
_CHUNK = 256  # images per future: one each would cost more than the check itself


@dataclass
class Columns:
    """Unchecked images and boxes of the annotations; a reader appends rows or sets complete arrays."""

    class_names: tuple[str, ...] = ()
    files: list[str] = field(default_factory=list)  # [I] absolute; "" = not found, already counted
    ids: list[int] = field(default_factory=list)  # [I] unique
    own_ids: list[Any] = field(default_factory=list)  # [I] as the data set writes them; empty = ``ids``
    category_ids: Sequence[Any] = ()  # [C] the same for the classes; empty = 1, 2, …
    sizes: list[tuple[int, int]] = field(default_factory=list)  # [I] height, width; 0 = not in the annotations
    image: Any = field(default_factory=list)  # [A] row of the box's image, or -1: left out, counted already
    boxes: Any = field(default_factory=list)  # [A, 4] xyxy
    labels: Any = field(default_factory=list)  # [A] row in class_names, or -1: left out, counted already
    crowd: Any = field(default_factory=list)
    difficult: Any = field(default_factory=list)
    area: Any = field(default_factory=list)  # [A] NaN = width × height
    refused: int = 0  # boxes that the reader left out, and counted
    relative: bool = False  # boxes are fractions of the image, not pixels
    form: Form | None = None  # how the format writes a box; None: not to be questioned
    written: dict[str, Counter[str]] = field(default_factory=dict)  # class name → how often it is written in which way
    where: Callable[[int], str] | None = None  # names box a in messages; when none: its file and corners

    def add_box(self, box: Sequence[float], label: int, difficult: bool = False) -> None:
        """Adds a box to the image that was added last."""
        self.image.append(len(self.files) - 1)
        self.boxes.append(box)
        self.labels.append(label)
        self.crowd.append(False)
        self.difficult.append(difficult)
        self.area.append(np.nan)


def to_index(columns: Columns, source: str, check: Check, problems: Problems) -> Index:
    """Checks the files according to ``check`` and keeps the usable images and boxes.

    Raises:
        DataError: no class, or no usable image; the message lists the problems.
    """
    if not columns.class_names:
        raise DataError(f"{source} has no class names{_found(problems)}.")
    _count_names(columns, problems)
    headers, usable = _look(columns, check, problems)
    frames = match_sizes(columns.files, np.array(columns.sizes, np.int64).reshape(-1, 2), headers, usable, problems)
    sizes, usable = frames.sizes, frames.usable
    if not usable.any():
        raise DataError(f"{source} has no usable image (of {len(usable)}){_found(problems)}.")
    image = np.asarray(columns.image, dtype=np.int64)
    labels = np.asarray(columns.labels, dtype=np.int64)
    boxes = np.asarray(columns.boxes, dtype=np.float64).reshape(-1, 4)
    known = (image >= 0) & (labels >= 0)
    image = frames.row[np.maximum(image, 0)]
    known &= (image >= 0) & usable[image]
    image = np.maximum(image, 0)
    scale = sizes[image] / (1 if columns.relative else frames.annotated[image])  # [A, 2] y, x
    boxes = boxes * scale[:, [1, 0, 1, 0]]
    known[twice_in_joined(frames, image, labels, boxes, known)] = False

    def where(a: int) -> str:
        if columns.where:
            return columns.where(a)
        return f"{_name(columns.files[image[a]])} ({', '.join(f'{v:g}' for v in boxes[a].round(1))})"

    _check_units(columns, boxes[known], sizes[image[known]], source, problems)
    clipped, keep = _clip(boxes, sizes[image], known, problems, where)
    crowd = np.asarray(columns.crowd, dtype=bool)
    check_usable(len(boxes) + columns.refused, keep, crowd, source, problems)
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(image[rows], kind="stable")]
    kept = clipped[rows].astype(np.float32)
    count(problems, EQUAL, rows[equal_to_another(image[rows], labels[rows], kept)], where)
    area = np.asarray(columns.area, dtype=np.float64)[rows] * (1 if columns.relative else scale[rows].prod(1))
    given = (area > 0) & (area < 1e12)  # more is a mistake and overflows float32
    area = np.where(given, area, (kept[:, 2] - kept[:, 0]) * (kept[:, 3] - kept[:, 1])).astype(np.float32)
    index = Index(
        class_names=tuple(columns.class_names),
        files=[Path(f) for f in columns.files],
        sizes=sizes.astype(np.int32),
        image_ids=np.asarray(columns.ids, dtype=np.int64),
        own_ids=frames.joined_ids(columns.own_ids),
        category_ids=tuple(columns.category_ids),
        annotated=frames.annotated.astype(np.int32) if frames.scaled else None,
        stored=frames.stored if frames.stored.any() else None,
        image=image[rows],
        boxes=kept,
        labels=labels[rows],
        crowd=crowd[rows],
        difficult=np.asarray(columns.difficult, dtype=bool)[rows],
        area=area,
        source=source,
        problems=problems,
    )
    return index if usable.all() else index.select(images=np.flatnonzero(usable))


def _count_names(columns: Columns, problems: Problems) -> None:
    count_joined(columns.written, problems)
    for group in alike(columns.class_names):
        problems.add("names that look the same and are different classes", listed(group))


def unique_names(names: Sequence[Any], ids: Sequence[Any], source: str) -> tuple[str, ...]:
    """Class names as trimmed text.

    Raises:
        DataError: a name is empty or not text, or two classes have the same name.
    """
    first: dict[str, Any] = {}
    for raw, number in zip(names, ids):
        if isinstance(raw, (dict, list)):
            raise DataError(f"{source}: the name of class {number} is not text ({str(raw)[:40]}); give it another.")
        name = "" if raw is None else nfc(str(raw)).strip()
        if not name:
            raise DataError(f'{source}: class {number} has no name; give it one (a name such as "null" in quotes).')
        if any("\ud800" <= c <= "\udfff" for c in name):  # half a character, which no file can store
            raise DataError(f"{source}: the name of class {number} is not text ({name!a}); give it another.")
        if name in first:
            raise DataError(
                f"{source}: two classes have the name '{name}': ids {first[name]} and {number}. "
                "Classes are matched by name; rename one or merge them."
            )
        first[name] = number
    return tuple(first)


def numbered(stems: Sequence[str]) -> list[int]:
    """Image ids from file stems: their numbers if all stems are different numbers, else 1, 2, …"""
    if all(s.isdecimal() and len(s) < 19 for s in stems):
        ids = [int(s) for s in stems]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(stems) + 1))


def number(value: Any) -> float:
    """A float, or NaN if it is not a number (text, None, a list)."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


def size_of(height: Any, width: Any) -> tuple[int, int]:
    """(height, width) as integers, or (0, 0) if the annotations have no sensible size."""
    sides = number(height), number(width)
    return (int(sides[0]), int(sides[1])) if all(1 <= side < 1e7 for side in sides) else (0, 0)


def _found(problems: Problems) -> str:
    return f": {'; '.join(problems.lines())}" if problems else ""


def _name(path: str) -> str:
    return os.path.basename(path)  # noqa: PTH119 (called by the hundred thousand)


def _look(columns: Columns, check: Check, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """[I, 5] int64 height and width after EXIF rotation, as stored, and the orientation; and [I] bool usable.

    With ``check`` "files" the size in the annotations is trusted. Each file is checked once, even
    with several rows.
    """
    files = columns.files
    rows: dict[str, int] = {}
    for i, file in enumerate(files):
        rows.setdefault(file, i)
    distinct = list(rows.values())
    believed = [check == "files" and all(size) for size in columns.sizes]

    def look(k: int) -> tuple[int, ...] | tuple[str, str]:
        i = distinct[k]
        try:
            if not files[i] or os.stat(files[i]).st_size == 0:  # noqa: PTH116 (118,000 Paths take seconds)
                return ("empty image file, left out" if files[i] else "", _name(files[i]))
        except (OSError, ValueError):
            return ("missing image file, left out", _name(files[i]))
        if believed[i]:
            return (*columns.sizes[i], *columns.sizes[i], 1)
        try:
            turned, plain, orientation = read_header(files[i])
        except DataError as error:
            return ("unreadable picture, left out", f"{_name(files[i])} ({error})")
        if check == "pixels":
            try:
                read_image(files[i])
            except DataError as error:
                return ("picture that cannot be decoded, left out", f"{_name(files[i])} ({error})")
        return (*turned, *plain, orientation)

    found = np.zeros((len(files), 5), dtype=np.int64)
    for i, result in zip(distinct, _threaded(look, len(distinct))):
        if len(result) == 5:
            found[i] = result
        elif result[0]:
            problems.add(*result)
    found = found[[rows[file] for file in files]] if len(distinct) < len(files) else found
    return found, found[:, 0] > 0


def _threaded(function: Callable[[int], Any], n: int) -> Iterable[Any]:
    """``function(0..n)`` in order, on threads: waiting for the disk overlaps, and Pillow decodes without the GIL."""
    chunks = [range(a, min(a + _CHUNK, n)) for a in range(0, n, _CHUNK)]
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        for results in pool.map(lambda chunk: [function(i) for i in chunk], chunks):
            yield from results


def _check_units(columns: Columns, boxes: np.ndarray, sizes: np.ndarray, source: str, problems: Problems) -> None:
    """That numbers of boxes mean what the format says. ``sizes`` [A, 2] are those of the images."""
    if not columns.relative:
        _check_pixels(boxes, source)
        check_percent(boxes, sizes, source)
    if columns.form:
        check_form(boxes, sizes[:, ::-1], columns.form, source, problems)


def _check_pixels(boxes: np.ndarray, source: str) -> None:
    """Refuses a data set whose boxes are all fractions of the picture: they would be boxes of less than a pixel."""
    if len(boxes) and (np.abs(boxes) <= 1).all() and (boxes % 1).any():
        raise DataError(
            f"{source}: all {len(boxes)} boxes are within 0..1, like fractions of the picture; this format needs "
            "pixels. Multiply them by the width and height of the picture."
        )


def _clip(
    boxes: np.ndarray, sizes: np.ndarray, known: np.ndarray, problems: Problems, where: Callable[[int], str]
) -> tuple[np.ndarray, np.ndarray]:
    """[A, 4] boxes clipped to their images, and [A] bool: which are valid. ``sizes`` [A, 2] are those of the images."""
    limit = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    x0, y0, x1, y1 = boxes.T
    keep = known.copy()
    with np.errstate(invalid="ignore"):
        for kind, wrong in (
            ("box with a number that is NaN or infinite, left out", ~np.isfinite(boxes).all(1)),
            ("box with negative width or height, left out", (x1 < x0) | (y1 < y0)),
            ("box without area, left out", (x1 == x0) | (y1 == y0)),
            ("box outside its image, left out", (x1 <= 0) | (y1 <= 0) | (x0 >= limit[:, 0]) | (y0 >= limit[:, 1])),
        ):
            count(problems, kind, np.flatnonzero(keep & wrong), where)
            keep &= ~wrong
        inside = np.clip(boxes, 0, limit)
        # Many tools exceed the edge by one pixel (rounding, counting from 1); this is not worth a message.
        over = keep & (np.abs(inside - boxes) > 1.001).any(1)
        count(problems, "box extends beyond its image, clipped", np.flatnonzero(over), where)
        thin = inside.astype(np.float32)  # the stored type: a very thin box may vanish in it
        gone = keep & ((thin[:, 2] <= thin[:, 0]) | (thin[:, 3] <= thin[:, 1]))
    count(problems, "box without area, left out", np.flatnonzero(gone), where)
    return inside, keep & ~gone
