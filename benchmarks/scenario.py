"""python -m benchmarks.scenario: seconds and megabytes for building scenarios of an index of COCO's size.

The index is drawn: 80 classes of very unequal frequency, 118,000 images, about 860,000 boxes.
"""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np

from ciod.data.index import Index
from ciod.data.names import COCO
from ciod.data.scenarios.scenario import Protocol, Scenario

IMAGES = 118_000


def coco_sized(seed: int = 0) -> Index:
    """An Index without pictures; classes come in bunches, as in real scenes."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, len(COCO) + 1)
    counts = rng.geometric(1 / 7.3, IMAGES)
    image = np.repeat(np.arange(IMAGES), counts)
    scene = rng.integers(0, 8, IMAGES)[image]
    common = rng.choice(len(COCO), len(image), p=share / share.sum())
    own = scene * 10 + rng.integers(0, 10, len(image))
    labels = np.where(rng.random(len(image)) < 0.4, common, own)
    corner = rng.uniform(0, 400, (len(image), 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.uniform(5, 200, corner.shape).astype(np.float32)], 1)
    no = np.zeros(len(image), dtype=bool)
    return Index(
        COCO,
        [Path(f"{i}.jpg") for i in range(IMAGES)],
        np.full((IMAGES, 2), 640, np.int32),
        np.arange(IMAGES, dtype=np.int64),
        image=image,
        boxes=boxes,
        labels=labels,
        crowd=no,
        difficult=no,
        area=(boxes[:, 2:] - boxes[:, :2]).prod(1),
        source="drawn at COCO's size",
    )


def main() -> None:
    index = coco_sized()
    print(f"{len(index):,} images, {len(index.labels):,} boxes, {len(index.class_names)} classes")
    for name, protocol in (
        ("40+40", Protocol(split="40+40")),
        ("10x8", Protocol(split="10x8", order="coco_id")),
        ("40+40 loco", Protocol(split="40+40", images="loco")),
    ):
        began = time.perf_counter()
        tasks = list(Scenario(protocol, index, index))
        seconds = time.perf_counter() - began
        del tasks
        tracemalloc.start()
        list(Scenario(protocol, index, index))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        print(f"{name:>10}: {seconds:.1f} s, {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
