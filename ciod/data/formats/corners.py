"""Boxes whose four numbers mean something other than their format says: corners where COCO has a corner and sides.

Read the wrong way most of them still are boxes, clipped at the edge of the picture, and a detector learns nonsense.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ciod.core.errors import DataError
from ciod.data.index import Problems

Form = Literal["corner and sides", "two corners", "centre and sides"]

# On COCO, VOC and three other data sets, at least 25% of the boxes leave their picture under any wrong reading and none
# under the right one. Boxes of small objects fit a wrong reading by chance; every wrong one needs more of them.
_LEAVE, _FIT = 0.2, 0.98
_ENOUGH = {"two corners": 4, "corner and sides": 10, "centre and sides": 10}
_FEWEST = 3
_EDGE = 2.0  # pixels: tools round, or count from 1
_NUMBERS = {
    "corner and sides": "x, y, width, height",
    "two corners": "x1, y1, x2, y2",
    "centre and sides": "centre x, centre y, width, height",
}
_CHANGE = {
    ("corner and sides", "two corners"): "subtract x1 and y1 from x2 and y2",
    ("corner and sides", "centre and sides"): "subtract half of width and height from x and y",
    ("two corners", "corner and sides"): "add x and y to width and height",
    ("two corners", "centre and sides"): "subtract half of width and height for x1 and y1, add it for x2 and y2",
    ("centre and sides", "two corners"): "write the centre, x2 - x1 and y2 - y1",
    ("centre and sides", "corner and sides"): "add half of width and height to x and y",
}


def check_form(boxes: np.ndarray, limit: np.ndarray, form: Form, source: str, problems: Problems) -> None:
    """Refuses boxes that leave their pictures as ``form`` says and all lie inside as another form.

    Args:
        boxes: [A, 4] float64 xyxy in pixels, as read by ``form``.
        limit: [A, 2] width and height of their pictures.

    Raises:
        DataError: they are written as another form. A few boxes, which may be so by chance, are a problem only.
    """
    finite = np.isfinite(boxes).all(1)
    boxes, limit = boxes[finite], limit[finite]
    if len(boxes) < _FEWEST:
        return
    leave = 1 - _inside(boxes, limit).mean()
    if leave < _LEAVE:
        return
    written = _numbers(boxes, form)
    for other in _NUMBERS:
        if other == form or _inside(_corners(written, other), limit).mean() < _FIT:
            continue
        text = (
            f"{leave:.0%} of the {len(boxes)} boxes reach outside their pictures as {_NUMBERS[form]}, which "
            f"this format "
            f"has, and all lie inside as {_NUMBERS[other]}"
        )
        if len(boxes) >= _ENOUGH[other]:
            raise DataError(f"{source}: {text}. They seem to be written so: {_CHANGE[form, other]}.")
        problems.add(f"data set whose boxes may be written in another form, read as {_NUMBERS[form]}", text)
        return


def _inside(boxes: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """[A] bool: boxes with an area that lie in their pictures."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return np.all((low < high) & (low >= -_EDGE) & (high <= limit + _EDGE), axis=1)


def _numbers(boxes: np.ndarray, form: str) -> np.ndarray:
    """The four numbers that ``form`` writes for boxes of two corners."""
    low, high = boxes[:, :2], boxes[:, 2:]
    if form == "two corners":
        return boxes
    return np.concatenate([(low + high) / 2 if form == "centre and sides" else low, high - low], 1)


def _corners(numbers: np.ndarray, form: str) -> np.ndarray:
    """The inverse of ``_numbers``."""
    first, second = numbers[:, :2], numbers[:, 2:]
    if form == "two corners":
        return numbers
    low = first - second / 2 if form == "centre and sides" else first
    return np.concatenate([low, low + second], 1)
