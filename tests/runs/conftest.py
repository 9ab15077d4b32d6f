"""Runs that several files look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciod.config import load as config
from ciod.data.shapes.scenes import write_shapes
from ciod.runs import run as engine
from ciod.training.progress import Reporter
from tests.runs.commands import WORDS, go


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", train=12, val=6, size=64)


@pytest.fixture(scope="session")
def whole(data, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    return go(data, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="session")
def joint(data, tmp_path_factory) -> Path:
    words = [*(w for w in WORDS if not w.startswith("method")), "method=joint", f"data={data}"]
    run = config.load(None, [*words, f"out={tmp_path_factory.mktemp('joint') / 'run'}", "device=cpu"])
    return engine.train(run, reporter=Reporter(quiet=True))
