"""The interim model of a task (``TakesInterim``): a copy of the detector, fine-tuned on its new classes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciod.detectors.files import weights
from ciod.methods.base.interim import TakesInterim
from ciod.methods.base.method import Method
from ciod.methods.finetune import Finetune
from ciod.training import speed
from ciod.training.task import TaskInputs, train_task

if TYPE_CHECKING:
    from ciod.core.results_schema import TaskState
    from ciod.detectors.base import Detector

FILE = "interim.safetensors"
KEY = "interim"
"""In a saved state: it was written while an interim model was trained."""
TITLE = "interim model"  # in its progress


def wanted(method: Method) -> bool:
    """Whether the run trains a model for the method before each later task."""
    return isinstance(method, TakesInterim) and method.trains_interim


def give(inputs: TaskInputs, out: Path, save: Callable[[TaskState], None], saved: Mapping[str, Any] | None) -> None:
    """Trains the interim model of a task, or the rest of it, and gives it to the method. If the task itself is resumed,
    the model is read from its file.

    Args:
        inputs: those of the task. Only its own images are used, without those of memory and pool.
        save: called on every rank with the state to resume from.
        saved: the state of an earlier process inside this task.
    """
    method = inputs.method
    assert isinstance(method, TakesInterim)
    file = out / f"task-{inputs.task.index + 1}" / FILE
    if saved is None or saved.get(KEY):
        model = _train(inputs, save, saved)
        if inputs.world.main:
            weights.save_model(file, model)
        inputs.world.barrier()
    model = weights.load(file).to(
        inputs.world.device
    )  # always: the memory layout of a trained model can change the rounding
    speed.lay_out(model, inputs.train)
    method.take_interim(model.frozen())


def _train(inputs: TaskInputs, save: Callable[[TaskState], None], saved: Mapping[str, Any] | None) -> Detector:
    model, task = deepcopy(inputs.detector), inputs.task
    alone = replace(
        inputs,
        detector=model,
        before=None,
        method=Finetune(),
        mixture=lambda grown: None,
        log=None,
        hint=False,
        title=f"task {task.index + 1}/{inputs.tasks}, {TITLE}",
    )
    resumed: Any = saved
    train_task(inputs=alone, save=save, saved=resumed)
    model.select(task.new_classes)
    return model
