"""Scenarios of an index of COCO's size: bounded memory, and the counts pycocotools gives."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scenario import coco_sized
from ciod.data.scenarios.scenario import Protocol, Scenario

BOUND = 2e9  # bytes beside the index itself
PROTOCOLS = {
    "40+40": Protocol(split="40+40"),
    "10x8": Protocol(split="10x8", order="coco_id"),
    "loco": Protocol(split="40+40", images="loco"),
}


@pytest.fixture(scope="module")
def index():
    return coco_sized()


@pytest.fixture(scope="module")
def oracle(index):
    """pycocotools over the same boxes, fed row by row; category ids count in the index's own order."""
    from pycocotools.coco import COCO

    coco = COCO()
    rows = zip(index.image.tolist(), index.labels.tolist())
    coco.dataset = {
        "images": [{"id": i} for i in range(len(index))],
        "categories": [{"id": c, "name": n} for c, n in enumerate(index.class_names)],
        "annotations": [{"id": a, "image_id": i, "category_id": c} for a, (i, c) in enumerate(rows, 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTOCOLS)
def test_counts_are_pycocotools_and_memory_is_bounded(index, oracle, name):
    assert (len(index), len(index.class_names)) == (118_000, 80) and len(index.labels) > 850_000
    tracemalloc.start()
    scenario = Scenario(PROTOCOLS[name], index, index)
    found = [(t.new_classes, {int(Path(f).stem) for f in t.train.files}, len(t.train.labels)) for t in scenario]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BOUND
    where = {n: c for c, n in enumerate(index.class_names)}
    taken: set[int] = set()
    for names, images, boxes in found:
        ids = [where[n] for n in names]
        showing = set().union(*(oracle.getImgIds(catIds=[c]) for c in ids))  # a list of catIds would be intersected
        if name != "loco":
            assert images == showing and boxes == len(oracle.getAnnIds(catIds=ids))
        else:
            assert images <= showing and not images & taken
            assert boxes == len(oracle.getAnnIds(imgIds=sorted(images), catIds=ids))
        taken |= images
    if name == "loco":
        assert len(taken) == len(np.unique(index.image))
