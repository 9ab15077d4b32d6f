"""What a run starts from: its data and the detector before the first task."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ciod import detectors, methods
from ciod.config.load import data_folder
from ciod.core.errors import CiodError, ConfigError
from ciod.core.plural import counted
from ciod.data import formats
from ciod.data.index import Index
from ciod.data.scenarios import folds
from ciod.detectors.files import transfer, weights
from ciod.memory import rehearsal

if TYPE_CHECKING:
    from ciod.config.load import Run
    from ciod.data.scenarios.scenario import Scenario, Task
    from ciod.detectors.base import Detector
    from ciod.training.progress import Reporter

SHAPES = {"train": 800, "val": 200}  # images of the built-in scenes


def open_data(settings: Run) -> tuple[Index, Index]:
    """Training and test Index of a run; the built-in scenes are drawn when first needed."""
    folder = data_folder(settings.data or settings.protocol.data)
    if folder is None:
        raise CiodError("data: no data set is given; write data=FOLDER, or scenario=NAME.")
    if folder == "shapes":
        from ciod.data.shapes.scenes import write_shapes

        folder = str(write_shapes(Path(settings.out).resolve().parent / "shapes-data", **SHAPES))
    p, have = settings.protocol, formats.recognise(folder).splits
    # Not every copy of VOC has trainval and test; then train and val are used.
    train = formats.read(folder, p.train_split if p.train_split in have else "train")
    test = settings.eval.split or (p.test_split if p.test_split in have else "val")
    held = None
    if p.folds:
        train, held = folds.cut(folds.pool(train, formats.read(folder, test)) if test in have else train, p)
    if settings.eval.holdout:
        chosen = np.random.default_rng([settings.seed, 1]).permutation(len(train))
        cut = round(len(train) * settings.eval.holdout)
        return train.select(np.sort(chosen[cut:])), train.select(np.sort(chosen[:cut]))
    return train, formats.read(folder, test) if held is None else held


def epochs_of(settings: Run, task: int, tasks: int) -> int:
    """Epochs of a task.

    Raises:
        CiodError: the list of epochs is shorter than the scenario.
    """
    t = settings.train
    each = per_task("train.epochs", t.epochs, tasks)
    return t.joint_epochs or max(each) if settings.protocol.joint else each[task]


def beside(settings: Run, scenario: Scenario, task: int, batch: int) -> int:
    """How many images of a batch are not the task's own, but of the memory or the pool."""
    if not task:
        return 0
    seen = scenario.seen(task)
    return sum(rehearsal.shares(settings, batch, old=seen - len(scenario.new(task)), seen=seen))


def steps_per_epoch(settings: Run, scenario: Scenario, task: int) -> int:
    """Optimiser steps in which each image of a task is seen once, without those of a merged memory."""
    batch = settings.train.batch
    own = max(1, batch - beside(settings, scenario, task, batch))
    return max(1, -(-len(scenario.rows(task)) // own))


def per_task(key: str, value: int | list[int], tasks: int) -> list[int]:
    """One value for each task.

    Raises:
        CiodError: a list that is shorter than the scenario.
    """
    each = value if isinstance(value, list) else [value] * tasks
    if len(each) < tasks:
        raise CiodError(
            f"{key} has {counted(len(each), 'entry')}, but the scenario {counted(tasks, 'task')}; give one "
            f"value, or one per task."
        )
    return each


def check_repeats(settings: Run, scenario: Scenario) -> None:
    """Raises CiodError if classes come again in a later task and method or memory cannot handle that."""
    if not scenario.repeats:
        return
    again = next(t for t in scenario if t.repeated_classes)
    problems, what = [], f"task {again.index + 1} teaches {', '.join(again.repeated_classes[:5])} again"
    if reason := methods.make(settings.method).cannot_repeat:
        problems.append(f"method: {what}, but {settings.method.get('name', methods.DEFAULT)} with {reason}.")
    if settings.memory.size and settings.memory.select == "herding":
        problems.append(
            f"memory.select: {what}, but herding ranks the images of a class once; write random, calibrated or ocdm."
        )
    if problems:
        raise ConfigError(problems)


def start(settings: Run, scenario: Scenario, reporter: Reporter) -> tuple[Detector, list[str], Detector | None]:
    """The detector before the first task, warnings about what it starts from, and the model from which the first task's
    classes take their rows (``transfer.take_class_rows``).
    """
    check_repeats(settings, scenario)
    torch.manual_seed(settings.seed)
    d = settings.detector
    reporter.say(f"{settings.method.get('name', methods.DEFAULT)} on {d.name}")
    names = scenario.classes if d.head == "full" else ()
    backbone = (
        None
        if d.weights or (d.backbone_weights == "random" and not d.name.startswith(detectors.HF))
        else d.backbone_weights or detectors.default_backbone(d.name)
    )
    path = Path(d.weights) if d.weights else None
    if path is None and d.name.startswith(detectors.HF) and d.backbone_weights != "random":
        path = Path(d.name)  # the checkpoint that gives the network gives its weights too
    other = None if path is None or d.name.startswith("mmdet:") else weights.donor(path)
    more: dict[str, Any] = {}
    if other is not None and other.settings.get("frozen"):  # layers that were frozen in training stay frozen
        more = {"frozen": True} if "frozen" in signature(detectors.find(d.name)).parameters else {}
    detector = detectors.build(names, name=d.name, size=d.size, backbone_weights=backbone, **more)
    if path is None:
        return detector, [], None
    taken = weights.load_fitting(detector, other or path, trunk_only=d.weights_from == "trunk", source=path)
    donor = None if d.weights_from == "trunk" else other
    reporter.say(taken.sentence(str(path)))
    known = () if donor is None else transfer.same_classes(scenario.classes, donor.class_names)
    about = (
        f"which already knows {', '.join(known)}: these classes are not new to it"
        if known
        else "which may have been trained on classes of this scenario; they would not be new to it"
    )
    warning = f"The weights come from {path.name}, {about}. To be fair, compare only runs with the same start."
    return detector, [warning], donor


def task_title(task: Task, tasks: int) -> str:
    """The first line of a task on the terminal."""
    names = ", ".join(task.taught_classes[:8]) + (", …" if len(task.taught_classes) > 8 else "")
    names += f" ({len(task.repeated_classes)} of them again)" if task.repeated_classes else ""
    hidden = f", {counted(task.hidden_boxes, 'box')} of old classes hidden" if task.hidden_boxes else ""
    return (
        f"task {task.index + 1}/{tasks}: {names} — {counted(len(task.train), 'image')}, "
        f"{counted(len(task.train.labels), 'box')}{hidden}"
    )
