"""Boxes of objects that have only a polygon or a mask, in COCO's formats."""

from __future__ import annotations

from typing import Any

import numpy as np


def box_of(segmentation: Any) -> list[float] | None:
    """[x, y, width, height] in pixels around COCO's polygons or run-length mask; None if there is none.

    A polygon's box goes through its outermost points; a mask's covers its pixels.
    """
    if isinstance(segmentation, dict):
        return _box_of_runs(segmentation.get("counts"), segmentation.get("size"))
    if not isinstance(segmentation, list) or not segmentation:
        return None
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    try:
        points = np.concatenate([np.array(p, dtype=np.float64).reshape(-1, 2) for p in polygons])
    except (TypeError, ValueError, OverflowError):
        return None
    if len(points) < 2 or not np.isfinite(points).all():
        return None
    low, high = points.min(0), points.max(0)
    return [*low.tolist(), *(high - low).tolist()]


def _box_of_runs(counts: Any, size: Any) -> list[float] | None:
    """Box of alternating runs of 0 and 1, down the columns of a mask of ``size`` (height, width)."""
    try:
        height, width = (int(v) for v in size)
        runs = np.array(_decompressed(counts) if isinstance(counts, str) else counts, dtype=np.int64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        return None
    ends = np.cumsum(runs)
    if height < 1 or width < 1 or (runs < 0).any() or not len(runs) or ends[-1] > height * width:
        return None
    first, last = (ends - runs)[1::2], ends[1::2] - 1  # pixels of the runs of 1, counted down the columns
    filled = runs[1::2] > 0
    first, last = first[filled], last[filled]
    if not len(first):
        return None
    left, right = first.min() // height, last.max() // height
    wraps = (first // height != last // height).any()  # a run over the end of a column touches both edges
    top = 0 if wraps else int((first % height).min())
    bottom = height - 1 if wraps else int((last % height).max())
    return [float(left), float(top), float(right - left + 1), float(bottom - top + 1)]


def _decompressed(text: str) -> list[int]:
    """COCO's compressed counts: five bits per character, starting at 48; the sixth bit means that more follow. From the
    third number on, each is the difference to the number two before it.

    Raises:
        ValueError: the text ends in the middle of a number, or has another character.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(character)
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    if shift:
        raise ValueError(text)
    return counts
