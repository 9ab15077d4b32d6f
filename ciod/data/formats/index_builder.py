"""From what a reader found to an Index: files looked at, boxes clipped, everything left out counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ciod.core.errors import DataError
from ciod.data.images import header_sizes, read_image
from ciod.data.index import Index, Problems

Check = Literal["files", "headers", "pixels"]
_CHUNK = 256  # pictures a thread takes at once: one future a picture costs more than looking at it


@dataclass
class Columns:
    """Images and boxes as the annotations say, unchecked; a reader appends row by row or hands over whole arrays."""

    class_names: tuple[str, ...] = ()
    files: list[str] = field(default_factory=list)  # [I] absolute; "" = not found, counted already
    ids: list[int] = field(default_factory=list)  # [I] unique
    sizes: list[tuple[int, int]] = field(default_factory=list)  # [I] height, width; 0 = the annotations do not say
    image: Any = field(default_factory=list)  # [A] row of the box's image, or -1: left out, counted already
    boxes: Any = field(default_factory=list)  # [A, 4] xyxy
    labels: Any = field(default_factory=list)  # [A] row in class_names, or -1: left out, counted already
    crowd: Any = field(default_factory=list)
    difficult: Any = field(default_factory=list)
    area: Any = field(default_factory=list)  # [A] NaN = width × height
    relative: bool = False  # boxes are fractions of the image, not pixels
    where: Callable[[int], str] | None = None  # names box a in messages; when none: its file and corners

    def add_box(self, box: Sequence[float], label: int, difficult: bool = False) -> None:
        """A box of the image added last."""
        self.image.append(len(self.files) - 1)
        self.boxes.append(box)
        self.labels.append(label)
        self.crowd.append(False)
        self.difficult.append(difficult)
        self.area.append(np.nan)


def to_index(columns: Columns, source: str, check: Check, problems: Problems) -> Index:
    """Looks at the files as far as ``check`` says and keeps the usable images and boxes.

    Raises:
        DataError: no class, or no usable image; with the problems found.
    """
    if not columns.class_names:
        raise DataError(f"{source} names no class{_found(problems)}.")
    sizes, usable = _look(columns, check, problems)
    if not usable.any():
        raise DataError(f"{source} has no usable image (of {len(usable)}){_found(problems)}.")
    image = np.asarray(columns.image, dtype=np.int64)
    labels = np.asarray(columns.labels, dtype=np.int64)
    boxes = np.asarray(columns.boxes, dtype=np.float64).reshape(-1, 4)
    known = (image >= 0) & (labels >= 0)
    known[known] = usable[image[known]]
    image = np.maximum(image, 0)
    if columns.relative:
        boxes = boxes * sizes[image][:, [1, 0, 1, 0]]

    def where(a: int) -> str:
        if columns.where:
            return columns.where(a)
        return f"{_name(columns.files[image[a]])} ({', '.join(f'{v:g}' for v in boxes[a].round(1))})"

    clipped, keep = _clip(boxes, sizes[image], known, problems, where)
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(image[rows], kind="stable")]
    kept = clipped[rows].astype(np.float32)
    area = np.asarray(columns.area, dtype=np.float64)[rows]
    given = (area > 0) & (area < 1e12)  # more is a slip, and overflows float32
    area = np.where(given, area, (kept[:, 2] - kept[:, 0]) * (kept[:, 3] - kept[:, 1])).astype(np.float32)
    index = Index(
        class_names=tuple(columns.class_names),
        files=[Path(f) for f in columns.files],
        sizes=sizes.astype(np.int32),
        image_ids=np.asarray(columns.ids, dtype=np.int64),
        image=image[rows],
        boxes=kept,
        labels=labels[rows],
        crowd=np.asarray(columns.crowd, dtype=bool)[rows],
        difficult=np.asarray(columns.difficult, dtype=bool)[rows],
        area=area,
        source=source,
        problems=problems,
    )
    return index if usable.all() else index.select(images=np.flatnonzero(usable))


def count(problems: Problems, kind: str, rows: Iterable[int], where: Callable[[int], str]) -> None:
    """Counts all rows under ``kind`` but words an example for the first few only."""
    rows = [int(r) for r in rows]
    for row in rows[: problems.limit]:
        problems.add(kind, where(row))
    if len(rows) > problems.limit:
        problems.counts[kind] += len(rows) - problems.limit


def unique_names(names: Sequence[Any], ids: Sequence[Any], source: str) -> tuple[str, ...]:
    """Class names as trimmed text.

    Raises:
        DataError: a name is empty or no text, or two classes have the same one; names their ids.
    """
    first: dict[str, Any] = {}
    for raw, number in zip(names, ids):
        name = "" if raw is None else str(raw).strip()
        if not name:
            raise DataError(f"{source}: class {number} has no name; give it one.")
        if any("\ud800" <= c <= "\udfff" for c in name):  # half a character, which no file of ours could hold
            raise DataError(f"{source}: the name of class {number} is no text ({name!a}); give it another.")
        if name in first:
            raise DataError(
                f"{source}: two classes have the name '{name}': ids {first[name]} and {number}. "
                "Classes are told apart by name; rename one or merge them."
            )
        first[name] = number
    return tuple(first)


def numbered(stems: Sequence[str]) -> list[int]:
    """Image ids from file stems: their own number where every one is a different number, else 1, 2, …"""
    if all(s.isdecimal() and len(s) < 19 for s in stems):
        ids = [int(s) for s in stems]
        if len(set(ids)) == len(ids):
            return ids
    return list(range(1, len(stems) + 1))


def number(value: Any) -> float:
    """A float, or NaN for what is none (text, None, a list)."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


def size_of(height: Any, width: Any) -> tuple[int, int]:
    """(height, width) as whole pixels, or (0, 0) when the annotations say nothing sensible."""
    sides = number(height), number(width)
    return (int(sides[0]), int(sides[1])) if all(1 <= side < 1e7 for side in sides) else (0, 0)


def _found(problems: Problems) -> str:
    return f": {'; '.join(problems.lines())}" if problems else ""


def _name(path: str) -> str:
    return os.path.basename(path)  # noqa: PTH119 (called by the hundred thousand)


def _look(columns: Columns, check: Check, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """[I, 2] sizes and [I] bool usable, after looking at each file as far as needed.

    A header is read when the annotations give no size, and with ``check`` "headers" or "pixels".
    """
    files = columns.files
    sizes = np.array(columns.sizes, dtype=np.int64).reshape(-1, 2)

    def look(i: int) -> tuple[str, str] | tuple[tuple[int, int], tuple[int, int]] | None:
        if not files[i]:
            return ("", "")
        try:
            if os.stat(files[i]).st_size == 0:  # noqa: PTH116 (118,000 Paths take seconds)
                return ("empty image file, left out", _name(files[i]))
        except OSError:
            return ("missing image file, left out", _name(files[i]))
        if check == "files" and sizes[i].all():
            return None
        try:
            found = header_sizes(files[i])
        except DataError as error:
            return ("unreadable picture, left out", f"{_name(files[i])} ({error})")
        if check == "pixels":
            try:
                read_image(files[i])
            except DataError as error:
                return ("picture that cannot be decoded, left out", f"{_name(files[i])} ({error})")
        return found

    usable = np.ones(len(files), dtype=bool)
    for i, result in enumerate(_threaded(look, len(files))):
        if result is None:
            continue
        first, second = result
        if isinstance(first, str):
            usable[i] = False
            if first:
                problems.add(first, str(second))
        elif not sizes[i].all():
            sizes[i] = first
        elif tuple(sizes[i]) not in (first, second):
            # Which of the two the boxes count in cannot be known; training sees the picture.
            said, real = f"{sizes[i, 1]}×{sizes[i, 0]}", f"{first[1]}×{first[0]}"
            problems.add(
                "image size in the annotations is not the picture's, the picture's is used",
                f"{_name(files[i])} ({said} annotated, {real} in the file)",
            )
            sizes[i] = first
    return sizes, usable


def _threaded(function: Callable[[int], Any], n: int) -> Iterable[Any]:
    """``function(0..n)`` in order, on threads: waiting for the disk overlaps, and Pillow decodes without the GIL."""
    chunks = [range(a, min(a + _CHUNK, n)) for a in range(0, n, _CHUNK)]
    with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        for results in pool.map(lambda chunk: [function(i) for i in chunk], chunks):
            yield from results


def _clip(
    boxes: np.ndarray, sizes: np.ndarray, known: np.ndarray, problems: Problems, where: Callable[[int], str]
) -> tuple[np.ndarray, np.ndarray]:
    """[A, 4] boxes inside their images and [A] bool: which are ones at all. ``sizes`` [A, 2] are their images'."""
    limit = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    x0, y0, x1, y1 = boxes.T
    keep = known.copy()
    with np.errstate(invalid="ignore"):
        for kind, wrong in (
            ("box with a number that is NaN or infinite, left out", ~np.isfinite(boxes).all(1)),
            ("box of negative width or height, left out", (x1 < x0) | (y1 < y0)),
            ("box of no area, left out", (x1 == x0) | (y1 == y0)),
            ("box outside its image, left out", (x1 <= 0) | (y1 <= 0) | (x0 >= limit[:, 0]) | (y0 >= limit[:, 1])),
        ):
            count(problems, kind, np.flatnonzero(keep & wrong), where)
            keep &= ~wrong
        inside = np.clip(boxes, 0, limit)
        # A pixel over the edge is a habit of tools (rounding, counting from 1), not a mistake worth a message.
        over = keep & (np.abs(inside - boxes) > 1.001).any(1)
        count(problems, "box sticks out of its image, clipped", np.flatnonzero(over), where)
        thin = inside.astype(np.float32)  # the type that is kept: a sliver may vanish in it
        gone = keep & ((thin[:, 2] <= thin[:, 0]) | (thin[:, 3] <= thin[:, 1]))
    count(problems, "box of no area, left out", np.flatnonzero(gone), where)
    return inside, keep & ~gone
