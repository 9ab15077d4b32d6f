"""These tests run where the extra ``mmdet`` is installed; ``make test-mmdet`` makes such an environment."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

INSTALLED = all(importlib.util.find_spec(name) for name in ("mmdet", "mmcv", "mmengine"))
WHY = "the extra mmdet is not installed; make test-mmdet makes an environment with it and runs these tests"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not INSTALLED:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=WHY))
