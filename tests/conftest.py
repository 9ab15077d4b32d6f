"""Where the tests find real photographs, weights and golden cases; absent ones skip with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import paths


def _require(path: Path, variable: str) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is absent; set {variable} to run this test")
    return path


@pytest.fixture(scope="session")
def datasets() -> Path:
    """Folder of real photographs: tiny, cards6, coco671, fod31, voc07, each in COCO format."""
    return _require(paths.DATASETS, "CIOD_DATASETS")


@pytest.fixture(scope="session")
def weights() -> Path:
    """Folder of real weights: yolox_nano_coco.pth, yolox_nano_416.onnx, …"""
    return _require(paths.WEIGHTS, "CIOD_WEIGHTS")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of outputs of the published implementations."""
    return _require(paths.GOLDEN, "CIOD_GOLDEN")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of published numbers: ilyolox_published.json, …"""
    return _require(paths.REFERENCE, "CIOD_REFERENCE")
