"""Maps the pixels of annotations to those of the image file: boxes belong to the image on which they were drawn."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ciod.data.index import Problems, count

SCALED = "picture whose size differs from its annotation, its boxes are scaled"
OTHER_SHAPE = "picture whose shape differs from its annotation, left out: its boxes may belong to another picture"
JOINED = "picture listed twice, its boxes are joined"
OTHER_ENTRY = "picture listed again with another size, left out: those boxes belong to another picture"
TURN_UNSTATED = "picture that EXIF rotates, without a stated size, its boxes are taken as drawn on the rotated picture"
TURN_UNKNOWN = "picture that EXIF rotates with an equal size, its boxes are taken as drawn on the rotated picture"


@dataclass
class Frames:
    """The pixel grid of the boxes of each annotation row.

    Several rows can name the same file; ``row`` gives the row that keeps it.
    """

    sizes: np.ndarray  # [I, 2] height, width of the picture, rotated or as stored, whichever the boxes are drawn on
    annotated: np.ndarray  # [I, 2] height, width that the annotations refer to; equal to sizes where they agree
    usable: np.ndarray  # [I] bool
    stored: np.ndarray  # [I] bool: EXIF rotation must be left out though the size does not show it
    row: np.ndarray  # [I] the row that has the boxes; -1: left out
    scaled: bool  # whether any row has boxes to scale

    def joined_ids(self, own: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The ids of every row as a tuple, including those of merged rows."""
        ids: list[tuple[Any, ...]] = [(i,) for i in own]
        for i in np.flatnonzero(self.row != np.arange(len(self.row))) if own else ():
            if (first := int(self.row[i])) >= 0:
                ids[first] += ids[i]
        return ids


def match_sizes(
    files: Sequence[str], stated: np.ndarray, headers: np.ndarray, usable: np.ndarray, problems: Problems
) -> Frames:
    """Decides for each row whether the boxes were drawn on this image, and in which pixels.

    If the stated size is that of the image, rotated by EXIF or as stored, nothing is changed. If it has the same shape,
    the image was resized after it was labelled. Otherwise it is another image.

    Args:
        stated: [I, 2] height, width of the annotations; 0 = not stated.
        headers: [I, 5] height, width after EXIF rotation, as stored, and the orientation.
    """
    turned, plain, orientation = headers[:, :2], headers[:, 2:4], headers[:, 4]
    says = (stated > 0).all(1) & usable
    as_turned, as_stored = (stated == turned).all(1), (stated == plain).all(1)
    alike_turned, alike_stored = _same_shape(stated, turned), _same_shape(stated, plain)
    on_stored = says & ~as_turned & (as_stored | (~alike_turned & alike_stored))
    fits = ~says | as_turned | as_stored | alike_turned | alike_stored
    sizes = np.where(on_stored[:, None], plain, turned)
    annotated = np.where(says[:, None], stated, sizes)
    scale = says & fits & (annotated != sizes).any(1)

    def where(i: int) -> str:
        height, width = sizes[i]
        return f"{_name(files[int(i)])} ({stated[i, 1]}×{stated[i, 0]} annotated, {width}×{height} in the file)"

    row = _first_rows(files, annotated, says, scale, fits & usable, problems, where)
    own = row == np.arange(len(row))
    count(problems, OTHER_SHAPE, np.flatnonzero(usable & ~fits & (row != -1)), where)
    count(problems, SCALED, np.flatnonzero(own & scale & usable), where)
    usable = usable & fits & own
    count(problems, TURN_UNSTATED, np.flatnonzero(~says & usable & (orientation > 1)), lambda i: _name(files[int(i)]))
    unturned = _unturned(says & usable, orientation, turned, plain, on_stored, problems, lambda i: _name(files[int(i)]))
    return Frames(sizes, np.where(annotated > 0, annotated, 1), usable, unturned, row, bool((scale & usable).any()))


def twice_in_joined(
    frames: Frames, image: np.ndarray, labels: np.ndarray, boxes: np.ndarray, known: np.ndarray
) -> np.ndarray:
    """[k] duplicate boxes of an image that is listed several times."""
    joined = np.unique(frames.row[(frames.row >= 0) & (frames.row != np.arange(len(frames.row)))])
    rows = np.flatnonzero(known & np.isin(image, joined))
    if not len(rows):
        return rows
    keys = np.concatenate([np.stack([image[rows], labels[rows]], 1), boxes[rows]], 1)
    first = np.unique(keys, axis=0, return_index=True)[1]
    return np.delete(rows, first)


def _same_shape(stated: np.ndarray, real: np.ndarray) -> np.ndarray:
    """[I] bool: whether one size is the other resized, with sides rounded to integers (by at most a 20th)."""
    a, b = stated.astype(np.float64), real.astype(np.float64)
    small, large = np.where((a.prod(1) < b.prod(1))[:, None], a, b), np.where((a.prod(1) < b.prod(1))[:, None], b, a)
    longer = large.argmax(1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.take_along_axis(small, longer, 1) / np.take_along_axis(large, longer, 1)
        near = np.abs(large * scale - small) <= np.minimum(1, small / 20)
    return np.asarray(near.all(1) & (a > 0).all(1) & (b > 0).all(1))


def _first_rows(
    files: Sequence[str],
    annotated: np.ndarray,
    says: np.ndarray,
    scale: np.ndarray,
    fits: np.ndarray,
    problems: Problems,
    where: Any,
) -> np.ndarray:
    """[I] for each row the first row with the same file and the same pixel grid; -1 for other rows of a file.

    A row with the image's exact size is preferred to rows that would have to be scaled. If all rows would have to be
    scaled differently, none is used.
    """
    row = np.arange(len(files))
    of_file: dict[str, list[int]] = defaultdict(list)
    for i, file in enumerate(files):
        if file:
            of_file[file].append(i)
    for rows in of_file.values() if len(of_file) < len(files) else ():
        if len(rows) == 1:
            continue
        good = [i for i in rows if fits[i]]
        exact = [i for i in good if not scale[i]]
        candidates = exact or good
        sizes = {tuple(annotated[i]) for i in candidates}
        if not candidates:
            continue
        first = next((i for i in candidates if says[i]), candidates[0]) if exact or len(sizes) == 1 else -1
        for i in rows:
            same = first >= 0 and i in candidates and tuple(annotated[i]) == tuple(annotated[first])
            row[i] = first if same else -1
            if row[i] == -1:
                problems.add(OTHER_ENTRY, where(i))
            elif i != first:
                problems.add(JOINED, _name(files[int(i)]))
    return row


def _unturned(
    says: np.ndarray,
    orientation: np.ndarray,
    turned: np.ndarray,
    plain: np.ndarray,
    on_stored: np.ndarray,
    problems: Problems,
    where: Any,
) -> np.ndarray:
    """[I] bool: images to be read as stored although EXIF rotation does not change their size.

    For upside-down, mirrored and square images the size does not tell which pixels the annotations refer to. The other
    images of the data set do, because the same tool wrote all of them.
    """
    open_ = says & (orientation > 1) & (turned == plain).all(1)
    clear = says & (turned != plain).any(1)
    if clear.any() and on_stored[clear].all():
        return open_
    if not clear.any():
        count(problems, TURN_UNKNOWN, np.flatnonzero(open_), where)
    return np.zeros(len(says), dtype=bool)


def _name(path: str) -> str:
    return os.path.basename(path)  # noqa: PTH119 (called by the hundred thousand)
