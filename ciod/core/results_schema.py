"""What a run saves: the state it is resumed from. Written and read in ``training`` and ``runs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


class WatchState(TypedDict):
    """What is known about the losses of a task so far."""

    first: float | None  # sum of losses at the first reading
    epoch: int
    largest: dict[str, float]  # |loss| in this epoch, of the distillation terms
    sentences: list[str]
    said: list[str]


class AverageState(TypedDict):
    """The averaged weights."""

    steps: int
    state: dict[str, Tensor]


class FitState(TypedDict):
    """Inside a task: ``done`` of its steps are through."""

    done: int
    epoch: int
    steps: int  # per epoch
    window: list[list[Any]]  # steps whose losses are not read yet: step, epoch, losses, norm, names
    watch: WatchState
    detector: dict[str, Tensor]
    optimizer: dict[str, Any]
    ema: AverageState | None
    scaler: dict[str, Any]
    method: dict[str, Any]
    broken: list[str]  # images that could not be read


class TaskState(TypedDict):
    """What ``train_task`` is resumed from."""

    fit: FitState
    random: list[dict[str, Any]]  # per rank, the states of all generators
    seconds: float  # of training so far


class ExtensionState(TaskState):
    """What ``ciod extend`` is resumed from. Once it is finished, ``fit`` and ``random`` are absent."""

    format: int
    command: str
    identity: dict[str, Any]  # fingerprints of data, model and code
    task: int  # how many of the two tasks are finished
    settings: dict[str, Any]
    warnings: list[str]
    plan: dict[str, Any]
    not_kept: str | None  # why there is no model; only once it is finished
