"""A tiny comparison, trained once in this process: two methods, one seed, two tasks, the upper bound."""

from __future__ import annotations

from pathlib import Path

import pytest

import ciod
from ciod.comparison import schedule, worker
from ciod.data.shapes.scenes import write_shapes

# Every teacher position is kept, so that the teacher matters although nothing is learnt in a few steps.
ILYOLOX = {"name": "ilyolox", "center_score": 0, "other_score": 0}
SETTINGS = {
    "split": "6+4",
    "detector": "yolox-pico",
    "size": 64,
    "epochs": 1,
    "batch": 4,
    "warmup": 1,
    "device": "cpu",
}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("compare") / "data", train=12, val=6, size=64)


def in_this_process(cells, **_) -> dict[str, str]:
    for cell in cells:
        if not worker.finished(cell.folder, cell.key):
            worker.work(cell.job())
    return {}


@pytest.fixture(scope="session")
def compared(scenes, tmp_path_factory) -> Path:
    """Folder of a finished comparison."""
    out = tmp_path_factory.mktemp("compare") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "run", in_this_process)
        ciod.compare(methods=["finetune", ILYOLOX], seeds=1, out=out, data=str(scenes), **SETTINGS)
    return out
