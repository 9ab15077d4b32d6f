"""Memory, files and processes do not grow with steps and tasks."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
import torch

from ciod.data.shapes.scenes import CLASSES, write_shapes
from ciod.training.hooks import Hooks
from tests.runs.commands import go


def resident() -> float:
    """MB of this process now (not at its peak)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc on this system")
def test_ten_tasks(tmp_path, monkeypatch):
    """CIOD_GROWTH_EPOCHS=100 makes it about 2,000 steps."""
    epochs = int(os.environ.get("CIOD_GROWTH_EPOCHS", "2"))
    data = write_shapes(tmp_path / "data", train=16, val=2, size=64)
    seen: dict[int, list[tuple[float, int, int]]] = {}
    steps = []

    class Measures(Hooks):
        def on_step(self, at, row):
            steps.append(row.step)
            if row.step + 1 == at.total:
                gc.collect()
                tensors = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
                seen.setdefault(at.task, []).append((resident(), len(list(Path("/proc/self/fd").iterdir())), tensors))

    monkeypatch.setattr(os, "fsync", lambda _: None)
    split = "+".join("1" * len(CLASSES))
    go(data, tmp_path / "run", f"split={split}", f"epochs={epochs}", "batch=4", "log_every=5", hooks=[Measures()])
    assert sorted(seen) == list(range(10))
    memory, files, tensors = zip(*(seen[t][0] for t in range(10)), strict=True)
    print(f"{len(steps)} steps; MB {[round(m) for m in memory]}; open files {files}; tensors {tensors}")
    assert files[9] <= files[2] + 1, "open files"
    # a task adds a block of rows a level: weight and bias, each with its gradient, moments, average and teacher's copy
    assert tensors[9] - tensors[2] <= 60 * 7, "tensors"
    assert memory[9] - memory[2] < 60, "MB"
