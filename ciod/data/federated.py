"""Federated annotations (LVIS): per image, only some classes are known to be complete or absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FREQUENCIES = ("r", "c", "f")
"""LVIS: classes that are rare (at most 10 training images), common (11 to 100) and frequent."""


@dataclass(frozen=True)
class Federated:
    """What is known about the classes of images, in addition to the boxes.

    A class that an image neither shows nor lists as absent is not known there: detections of it do not count.
    """

    absent: np.ndarray
    """[n, 2] int64 (row of the image, label): the class was looked for and is not in the image."""
    partial: np.ndarray
    """[m, 2] int64: the class is in the image, but not all of its objects have a box."""
    frequency: tuple[str, ...]
    """[C] ``r``, ``c`` or ``f`` of each class; "" if it is not known."""

    def select(self, place: np.ndarray) -> Federated:
        """Args: place: [I] new row of each image, -1 for those that are left out."""
        pairs = ((place[p[:, 0]], p[:, 1]) for p in (self.absent, self.partial))
        absent, partial = (np.stack(p, 1)[p[0] >= 0] for p in pairs)
        return Federated(absent, partial, self.frequency)

    def relabel(self, table: np.ndarray, source: Sequence[int | None]) -> Federated:
        """Args:
        table: [C] new label of each class, -1 for those that are left out.
        source: [new C] old label of each new class, None without one.
        """
        pairs = ((p[:, 0], table[p[:, 1]]) for p in (self.absent, self.partial))
        absent, partial = (np.stack(p, 1)[p[1] >= 0] for p in pairs)
        frequency = tuple("" if c is None else self.frequency[c] for c in source)
        return Federated(absent, partial, frequency)


def read(
    images: Sequence[Any],
    categories: Sequence[Any],
    ids: Sequence[Sequence[Any]],
    label_of: Mapping[Any, int],
    key: Callable[[Any], Any],
) -> Federated | None:
    """What a JSON of LVIS adds to COCO's; None if it is not one.

    Args:
        images, categories: the lists of the JSON.
        ids: ids of each image that is kept.
        label_of: id → label of each class that is kept.
        key: makes an id comparable.
    """
    images = [i for i in images if isinstance(i, dict)]
    if not any("neg_category_ids" in i or "not_exhaustive_category_ids" in i for i in images):
        return None
    row_of = {key(own): i for i, each in enumerate(ids) for own in each}

    def pairs(name: str) -> np.ndarray:
        found = [
            (row_of[key(i.get("id"))], label_of[key(c)])
            for i in images
            if key(i.get("id")) in row_of and isinstance(i.get(name), list)
            for c in i[name]
            if key(c) in label_of
        ]
        return np.array(sorted({*found}), np.int64).reshape(-1, 2)

    frequency = [""] * len(label_of)
    for c in categories:
        if isinstance(c, dict) and key(c.get("id")) in label_of and c.get("frequency") in FREQUENCIES:
            frequency[label_of[key(c["id"])]] = c["frequency"]
    return Federated(pairs("neg_category_ids"), pairs("not_exhaustive_category_ids"), tuple(frequency))


def of_address(url: Any) -> str | None:
    """LVIS names an image by its address: http://…/val2017/000000397133.jpg is val2017/000000397133.jpg."""
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else None
