"""What a tracker is, and the four there are."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

EXTRAS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Tracker → the module it needs. The extra of the package has the tracker's name."""


def absent(names: Sequence[str]) -> list[str]:
    """A sentence for each tracker whose package is not installed."""
    return [
        f"log: {n} is not installed: pip install 'ciod[{n}]'" for n in names if n in EXTRAS and not find_spec(EXTRAS[n])
    ]


@dataclass(frozen=True)
class Run:
    """What is tracked."""

    name: str
    group: str
    """Runs of one comparison have the same."""
    folder: Path
    """The run folder; TensorBoard writes below it."""
    config: Mapping[str, Any]
    """The settings, nested, as JSON types."""
    id: str | None = None
    """What ``open`` returned in an earlier process; None: a new run."""


class Tracker(Protocol):
    """One tracker. All calls come from one thread. An exception in a call ends the tracker and is reported."""

    keeps_all: bool
    """Whether what was logged survives a killed process. Where it may not, all is logged again, and the tracker leaves
    out the steps that it has."""

    def open(self, run: Run) -> str:
        """Starts or continues a run. Returns what continues it."""
        ...

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at a step; ``step`` never decreases."""
        ...

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path], pictures: Sequence[Path]) -> None:
        """The run is complete: ``summary`` as JSON types, files to keep, pictures to show."""
        ...

    def close(self) -> None:
        """The process ends, whether the run is complete or not."""
        ...


@dataclass(frozen=True)
class Follow:
    """How a run is followed: which trackers, and the run's side of it."""

    names: Sequence[str]
    run: Run


def make(name: str) -> Tracker:
    """A tracker of ``EXTRAS``, whose package is imported here."""
    return importlib.import_module(f"ciod.trackers.{name}_tracker").make()


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings → dotted key and value.

    >>> flat({"train": {"lr": 0.1}, "seed": 0})
    {'train.lr': 0.1, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
