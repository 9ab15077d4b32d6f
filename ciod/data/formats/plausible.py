"""Data sets that can be read and mean something else: ids counted from another number, percent, nothing usable."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ciod.core.errors import DataError
from ciod.data.index import Problems

EQUAL = "box of the same class and corners as another one, kept"
FEW = 4  # boxes; fewer show nothing
_MANY = 10
_LARGE = 200  # pixels: in pictures of this side, boxes within 0..100 leave three quarters empty
_KEYS = (b'"images"', b'"annotations"', b'"categories"')


def check_keys(raw: bytes, source: str) -> None:
    """Refuses a COCO file that gives one of its lists twice: Python's reader would keep the last.

    Raises:
        DataError: it does.
    """
    if all(raw.count(key) < 2 for key in _KEYS):
        return

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, value in found if isinstance(value, list) and f'"{name}"'.encode() in _KEYS]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise DataError(f"{source} has the key '{twice}' twice; join the two lists into one.")
        return dict(found)

    json.loads(raw, object_pairs_hook=pairs)


def check_categories(used: Sequence[Any], known: Collection[Any], source: str) -> None:
    """Refuses annotations that count the categories from another number than the list of categories does.

    Args:
        used: category id of every annotation.
        known: ids of the categories.

    Raises:
        DataError: all ids are off by one, and some belong to no category.
    """
    numbers = {k for k in known if isinstance(k, int)}
    ids = set(used)
    strange = sum(k not in known for k in used)
    if strange < 0.01 * len(used) or not strange or len(used) < FEW:
        return
    for by in (-1, 1):
        if ids <= {k + by for k in numbers}:
            raise DataError(
                f"{source}: the annotations have the class numbers {min(ids):g} to {max(ids):g}, the list of "
                f"classes has {min(numbers)} to {max(numbers)}: they seem to be moved by one, and every box would have "
                "the class of its neighbour. Make them agree."
            )


def check_usable(count: int, keep: np.ndarray, crowd: np.ndarray, source: str, problems: Problems) -> None:
    """Refuses a data set of which no box is left, and says where all are crowd.

    Args:
        count: number of boxes as annotated.
        keep, crowd: [A] bool: usable boxes, and crowd regions.

    Raises:
        DataError: none is usable.
    """
    if count >= FEW and not keep.any():
        raise DataError(f"{source}: none of its {count} boxes can be used: {'; '.join(problems.lines())}.")
    if keep.sum() >= FEW and crowd[keep].all():
        problems.add("data set of crowd regions alone (iscrowd), which are neither trained on nor scored", source)


def check_percent(boxes: np.ndarray, sizes: np.ndarray, source: str) -> None:
    """Refuses boxes in percent of the picture, as Label Studio has them, where pixels are needed.

    Args:
        boxes: [A, 4] xyxy as annotated.
        sizes: [A, 2] of their pictures.

    Raises:
        DataError: all lie within 0..100 of much larger pictures, and reach nearly to 100.
    """
    if len(boxes) < _MANY or sizes.min() < _LARGE:
        return
    if boxes.min() >= 0 and 80 < boxes.max() <= 100.001:
        raise DataError(
            f"{source}: all {len(boxes)} boxes lie within 0..100, as percent of the picture do; this format counts in "
            "pixels. Multiply them by width or height of the picture, and divide by 100."
        )


def equal_to_another(image: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[A] bool: rows that repeat an earlier one."""
    numbers = boxes.astype(np.float64) @ np.array([1.0, 1.4142135, 1.7320508, 2.2360679])  # equal where boxes are equal
    _, first, times = np.unique(numbers, return_index=True, return_counts=True)
    again = np.zeros(len(boxes), dtype=bool)
    if len(first) == len(boxes):  # nearly always; the exact comparison would take seconds for COCO
        return again
    some = np.flatnonzero(np.isin(numbers, numbers[first[times > 1]]))
    columns = np.column_stack([image[some], labels[some], boxes[some].astype(np.float64)])
    again[some] = True
    again[some[np.unique(columns, axis=0, return_index=True)[1]]] = False
    return again
