"""Hooks: what follows the training of a task. Progress, log, watch and tests are hooks; the loop has no others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ciod.detectors.base import Detector
    from ciod.methods.base.method import Method


@dataclass
class Row:
    """One step as it is kept until the losses are read."""

    step: int  # from 0
    epoch: int
    losses: dict[str, Tensor]  # scalars on the device
    norm: Tensor | None  # of the gradient, before clipping; None: not known (fp16 skips such steps by itself)
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
    """Where the training of a task is."""

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
    """Called by the loop, on every rank; each does nothing by default. They observe: a hook changes no weight and
    draws no random number. What it raises ends the run.
    """

    def on_task(self, at: Position) -> None:
        """Before the first step of the task or, when resumed, of its remaining steps (``at.done`` steps are done)."""

    def on_step(self, at: Position, row: Row) -> None:
        """After each step. Its losses are tensors on the device: to read one is to wait for the device."""

    def on_read(self, at: Position, reading: Reading) -> None:
        """Every ``train.log_every`` steps, where the losses are read."""

    def on_epoch(self, at: Position, epoch: int) -> None:
        """After each epoch (from 0), whose state is saved; again where a run is resumed there."""

    def on_end(self, at: Position) -> None:
        """After the last step, or after the error or signal that ends the training."""
