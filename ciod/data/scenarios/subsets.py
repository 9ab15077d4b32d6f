"""Smoke tests: a small part of every task (``subset=1%``), so that a run goes through all of its stages quickly."""

from __future__ import annotations

import math
import re

import numpy as np

from ciod.data.index import Index

LEAST = 16
"""A share is never less than this number of images, if there are as many."""
SEED = 20  # of the order in which images are taken; the same for all runs, so that they have the same images
_WRITTEN = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)\s*%|(\d{1,9})")


def parse(text: str) -> tuple[float | None, int]:
    """``1%`` → (0.01, 0); ``200`` → (None, 200).

    Raises:
        ValueError: neither a share above 0 % and up to 100 % nor a number of images from 1.
    """
    found = _WRITTEN.fullmatch(text.strip())
    share, number = (float(found[1] or 0), int(found[2] or 0)) if found else (0.0, 0)
    if not found or share > 100 or not (share or number):
        raise ValueError("should be a share of the images of a task, such as 1%, or a number of them, such as 200")
    return (share / 100, 0) if found[1] else (None, number)


def checked(value: object) -> object:
    """A setting as text: a number of images may be written without quotes.

    Raises:
        ValueError: see ``parse``.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str):
        parse(text)
    return text


def amount(subset: str, images: int) -> int:
    """The number of images that are taken from ``images``, before those that a class needs are added."""
    share, number = parse(subset)
    return min(images, number if share is None else max(LEAST, math.ceil(images * share - 1e-9)))


def choose(index: Index, rows: np.ndarray, counts: np.ndarray, subset: str) -> np.ndarray:
    """Rows of the chosen images, ascending. They depend only on images, boxes and ``subset``.

    Every class with a box keeps an image: the classes are served from the rarest to the most frequent, each with the
    first of its images in a shuffled order unless it has one already. Then the order fills up the number. There are
    more images than that number only if the classes need them.

    Args:
        rows: [k] the images of the task.
        counts: [A] bool: boxes whose classes must be covered.
        subset: the setting.
    """
    order = np.random.default_rng(SEED).permutation(len(index))
    order = order[np.isin(order, rows)]
    place = np.full(len(index), len(index))
    place[order] = np.arange(len(order))
    counts = counts & (place[index.image] < len(index))
    pairs = np.unique(np.stack([index.labels[counts], place[index.image[counts]]]), axis=1)  # label, place in the order
    shown = {int(c): pairs[1, pairs[0] == c] for c in np.unique(pairs[0])}
    taken = np.zeros(len(order), bool)
    for c in sorted(shown, key=lambda c: (len(shown[c]), c)):
        if not taken[shown[c]].any():
            taken[shown[c].min()] = True
    free = np.flatnonzero(~taken)
    taken[free[: max(0, amount(subset, len(order)) - int(taken.sum()))]] = True
    return np.sort(order[taken])


def part(index: Index, subset: str | None) -> Index:
    """The chosen images of a whole split, which cover all of its classes; all images if ``subset`` is None."""
    if subset is None:
        return index
    every = np.arange(len(index))
    return index.select(choose(index, every, ~index.crowd & ~index.difficult, subset))


def sentence(subset: str) -> str:
    """The warning of a run with a subset."""
    return (
        f"Smoke test with a subset of the images (subset={subset}): its numbers say nothing about the method and "
        "cannot be compared with those of a full run."
    )
