"""Where the tests find real photographs, weights and golden cases; absent ones skip with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared"


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or _BESIDE / default)


def _require(path: Path, variable: str) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is absent; set {variable} to run this test")
    return path


@pytest.fixture(scope="session")
def datasets() -> Path:
    """Folder of real photographs: tiny, cards6, coco671, fod31, voc07, each in COCO format."""
    return _require(_folder("CIOD_DATASETS", "datasets"), "CIOD_DATASETS")


@pytest.fixture(scope="session")
def weights() -> Path:
    """Folder of real weights: yolox_nano_coco.pth, yolox_nano_416.onnx, …"""
    return _require(_folder("CIOD_WEIGHTS", "weights"), "CIOD_WEIGHTS")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of outputs of the published implementations."""
    return _require(_folder("CIOD_GOLDEN", "golden"), "CIOD_GOLDEN")
