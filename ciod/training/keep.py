"""The best epoch of a task (``train.best``, ``train.patience``), chosen on pictures that are not trained on.

They are part of the training pictures: a choice on test pictures would make their scores too good.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ciod.core.errors import CiodError
from ciod.core.plural import counted

if TYPE_CHECKING:
    from ciod.data.index import Index
    from ciod.data.scenarios.scenario import Task
    from ciod.detectors.base import Detector
    from ciod.training.optim import EMA

Score = Callable[["Detector", "Index"], "float | None"]
"""AP of the task's classes on pictures, from 0 to 1; None without boxes. The same on every rank."""


def cut(task: Task, share: float, seed: int) -> tuple[Task, Index]:
    """The task without a share of its training pictures, drawn by seed and task; and these pictures.

    Raises:
        CiodError: nothing is left to train on, or nothing to choose on.
    """
    many = len(task.train)
    held = round(many * share)
    if not 0 < held < many:
        raise CiodError(
            f"train.best={share:g}: of {counted(many, 'training picture')} of task {task.index + 1} this is "
            f"{'none' if not held else 'all'}; choose another share, or leave best= out."
        )
    rows = np.random.default_rng([seed, 2, task.index]).permutation(many)
    chosen = task.train.select(np.sort(rows[:held]))
    if not len(chosen.labels):
        raise CiodError(
            f"train.best={share:g}: {counted(held, 'picture')} of task {task.index + 1} held out, and no box is on "
            "them; choose a larger share, or leave best= out."
        )
    return replace(task, train=task.train.select(np.sort(rows[held:]))), chosen


@dataclass(slots=True)
class Keeper:
    """Scores the weights after each epoch and keeps the best; of equal ones the last."""

    score: Score
    pictures: Index
    patience: int | None = None
    """Training ends after so many epochs without a higher score; they count from the first score above 0."""

    scores: list[float] = field(default_factory=list)
    epoch: int = 0  # of the best weights
    since: int = 0  # epoch of the last rise
    weights: dict[str, Tensor] = field(default_factory=dict)

    def look(self, detector: Detector, ema: EMA | None) -> None:
        """After an epoch. The weights that count are the averaged ones, if there are any."""
        own: dict[str, Tensor] = {}
        if ema is not None:
            own = {k: v.clone() for k, v in detector.state_dict().items()}
            ema.copy_to(detector)
        detector.eval()
        found = self.score(detector, self.pictures) or 0.0
        best = max(self.scores, default=0.0)
        if found > best:
            self.since = len(self.scores)
        if found >= best:
            self.epoch = len(self.scores)
            self.weights = {k: v.detach().clone() for k, v in detector.state_dict().items()}
        self.scores.append(found)
        if own:
            detector.load_state_dict(own)

    @property
    def stops(self) -> bool:
        late = len(self.scores) - 1 - self.since
        return self.patience is not None and late >= self.patience and max(self.scores) > 0

    def finish(self, detector: Detector) -> None:
        """Gives the detector the best weights."""
        detector.load_state_dict(self.weights)

    def result(self, epochs: int) -> dict[str, Any]:
        """The entry in results.json: the epoch that was kept, of how many, the AP of every epoch, and why.

        Args:
            epochs: planned ones.
        """
        done = len(self.scores)
        why = f"highest AP ({100 * self.scores[self.epoch]:.1f}) on {counted(len(self.pictures), 'held-out picture')}"
        if done < epochs:
            why += f"; {counted(epochs - done, 'further epoch')} left out after {self.patience} without a higher AP"
        return {"epoch": self.epoch + 1, "epochs": done, "planned": epochs, "scores": self.scores, "why": why}

    def state(self) -> dict[str, Any]:
        return {"scores": self.scores, "epoch": self.epoch, "since": self.since, "weights": self.weights}

    def load_state(self, saved: Mapping[str, Any], device: torch.device) -> None:
        self.scores, self.epoch, self.since = [*saved["scores"]], saved["epoch"], saved["since"]
        self.weights = {k: v.to(device) for k, v in saved["weights"].items()}


def sentence(kept: Mapping[str, Any]) -> str:
    """The sentence about it in the terminal and on the page."""
    return f"epoch {kept['epoch']} of {kept['planned']} is kept: {kept['why']}"
