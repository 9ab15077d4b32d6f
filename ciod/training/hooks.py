"""Hooks observe a run. Progress, log, watch, tests and the callbacks of a user are hooks; there are no other callbacks.

>>> class Stop(ciod.Hooks):
...     def on_evaluation(self, task, results):
...         print(task, results["tasks"][task]["all"]["AP50"])
>>> ciod.train(data="folder", split="3+3", callbacks=[Stop()])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ciod.core.results_schema import ResultsFile
    from ciod.detectors.base import Detector
    from ciod.methods.base.method import Method


@dataclass
class Row:
    """One step, kept until the losses are read."""

    step: int  # from 0
    epoch: int
    losses: dict[str, Tensor]  # scalars on the device
    norm: Tensor | None  # norm of the gradient before clipping; None: unknown (fp16 skips steps that are not finite)
    names: list[str]  # files of the batch


@dataclass
class Reading:
    """The losses since the last reading, on the CPU and finite."""

    rows: Sequence[Row]
    values: Tensor  # [rows, losses]
    mean: dict[str, float]
    lr: float
    images_per_second: float


@dataclass
class Position:
    """The position of the training in a task."""

    task: int  # from 0
    tasks: int
    epochs: int
    steps: int  # per epoch
    done: int  # steps of the task that are done
    method: Method
    detector: Detector

    @property
    def total(self) -> int:
        """Steps of the task."""
        return self.epochs * self.steps


class Hooks:
    """The events of a run, on every rank unless stated otherwise; each does nothing by default.

    Hooks observe: they must not change weights or draw random numbers. An exception in a hook ends the run; the same
    command resumes it.
    """

    def on_task(self, at: Position) -> None:
        """Before the first step of the task or, when resumed, of its remaining steps (``at.done`` steps are done)."""

    def on_step(self, at: Position, row: Row) -> None:
        """After each step. Its losses are tensors on the device: reading one waits for the device."""

    def on_read(self, at: Position, reading: Reading) -> None:
        """Every ``train.log_every`` steps, when the losses are read."""

    def on_epoch(self, at: Position, epoch: int) -> None:
        """After each epoch (from 0), when its state is saved; called again if the run is resumed there."""

    def on_end(self, at: Position) -> None:
        """After the last step, or after the error or signal that ends the training."""

    def on_evaluation(self, task: int, results: ResultsFile) -> None:
        """On rank 0, after a task (from 0) was trained and evaluated. ``results``: ``results.json`` so far."""

    def on_finish(self, out: Path, results: ResultsFile) -> None:
        """On rank 0, when model, results and report are in the run folder ``out``."""


@dataclass
class EvaluateInside(Hooks):
    """Evaluates every ``every`` epochs (0: never), but not after the last one, which is evaluated anyway."""

    evaluate: Callable[[Position, int], None]
    every: int

    def on_epoch(self, at: Position, epoch: int) -> None:
        if self.every and (epoch + 1) % self.every == 0 and epoch + 1 < at.epochs:
            self.evaluate(at, epoch)
