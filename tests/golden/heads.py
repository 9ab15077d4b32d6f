"""Reading the golden cases of GFL heads (``gfl``, ``erd``): maps, targets and the comparison of gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ciod.core.types import Outputs, Targets
from ciod.detectors.gfl import assemble
from tests import paths

STRIDES = (8, 16, 32, 64, 128)
Maps = dict[str, list[torch.Tensor]]


def files(case: str) -> list:
    """Parameters of a test: every file of a case, or one that skips."""
    found = sorted(paths.GOLDEN.glob(f"{case}.seed*.npz"))
    absent = pytest.mark.skip(f"no golden case in {paths.GOLDEN}; set CIOD_GOLDEN")
    return [pytest.param(f, id=f.name) for f in found] or [pytest.param(Path(), marks=absent, id="absent")]


def read(case, who: str, grad: bool = False) -> tuple[Outputs, Maps]:
    maps = {
        kind: [torch.from_numpy(case[f"{who}.{kind}.{level}"]).requires_grad_(grad) for level in range(len(STRIDES))]
        for kind in ("cls", "dist")
    }
    return assemble(maps["cls"], maps["dist"], STRIDES), maps


def targets(case) -> Targets:
    images = range(len(case["student.cls.0"]))
    return Targets.pad(
        [torch.from_numpy(case[f"gt_boxes.{b}"]) for b in images],
        [torch.from_numpy(case[f"gt_labels.{b}"]) for b in images],
    )


def assert_gradients(case, maps: Maps, share: float = 1e-4) -> None:
    """To ``share`` of the largest gradient of the map; an empty array in the case means none."""
    for kind, levels in maps.items():
        for level, leaf in enumerate(levels):
            expected = case[f"grad.student.{kind}.{level}"]
            found = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            if not expected.size:
                assert not found.any(), f"{kind} of level {level} should have no gradient"
                continue
            error = np.abs(found.numpy() - expected).max()
            assert error <= share * np.abs(expected).max() + 1e-12, f"{kind} of level {level}: off by {error}"
