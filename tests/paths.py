"""Where data that does not ship with the package lies; importable while tests are collected."""

from __future__ import annotations

import os
from pathlib import Path

_BESIDE = Path(__file__).resolve().parents[2] / "shared"


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or _BESIDE / default)


DATASETS = _folder("CIOD_DATASETS", "datasets")
WEIGHTS = _folder("CIOD_WEIGHTS", "weights")
GOLDEN = _folder("CIOD_GOLDEN", "golden")
REFERENCE = _folder("CIOD_REFERENCE", "reference")
