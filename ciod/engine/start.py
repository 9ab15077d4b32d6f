"""What a run starts from: its data and the detector before the first task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ciod import detectors
from ciod.config import data_folder
from ciod.data import formats
from ciod.data.index import Index
from ciod.detectors import weights
from ciod.errors import CiodError

if TYPE_CHECKING:
    from ciod.config import Run
    from ciod.data.scenario import Scenario
    from ciod.detectors.detector import Detector
    from ciod.engine.progress import Reporter

SHAPES = {"train": 800, "val": 200}  # images of the built-in scenes


def open_data(settings: Run) -> tuple[Index, Index]:
    """Training and test Index of a run; the built-in scenes are drawn when first needed."""
    folder = data_folder(settings.data or settings.protocol.data)
    if folder is None:
        raise CiodError("data: no data set is given; write data=FOLDER, or scenario=NAME.")
    if folder == "shapes":
        from ciod.data.shapes import write_shapes

        folder = str(write_shapes(Path(settings.out).resolve().parent / "shapes-data", **SHAPES))
    p, have = settings.protocol, formats.recognise(folder).splits
    # Not every copy of VOC has trainval and test; train and val are what is meant then.
    train = formats.read(folder, p.train_split if p.train_split in have else "train")
    if settings.eval.holdout:
        chosen = np.random.default_rng([settings.seed, 1]).permutation(len(train))
        cut = round(len(train) * settings.eval.holdout)
        return train.select(np.sort(chosen[cut:])), train.select(np.sort(chosen[:cut]))
    test = p.test_split if p.test_split in have else "val"
    return train, formats.read(folder, settings.eval.split or test)


def epochs_of(settings: Run, task: int, tasks: int) -> int:
    """Epochs of a task.

    Raises:
        CiodError: the list of epochs is shorter than the scenario.
    """
    t = settings.train
    listed = t.epochs if isinstance(t.epochs, list) else [t.epochs] * tasks
    if len(listed) < tasks:
        raise CiodError(f"train.epochs has {len(listed)} entries, but the scenario {tasks} tasks.")
    return t.joint_epochs or max(listed) if settings.protocol.joint else listed[task]


def start(settings: Run, scenario: Scenario, reporter: Reporter) -> tuple[Detector, list[str]]:
    """The detector before the first task, and warnings about what it starts from."""
    torch.manual_seed(settings.seed)
    d = settings.detector
    names = scenario.classes if d.head == "full" else ()
    backbone = (
        None
        if d.weights or d.backbone_weights == "random"
        else d.backbone_weights or detectors.default_backbone(d.name)
    )
    detector = detectors.build(names, name=d.name, size=d.size, backbone_weights=backbone)
    warnings = []
    if d.weights:
        taken = weights.load_trunk(detector, Path(d.weights))
        reporter.say(f"{taken} tensors of backbone and neck from {d.weights}; the head is new")
        warnings.append(
            f"Backbone and neck come from {Path(d.weights).name}. If it was trained on the classes of this scenario, "
            "new classes are not new to it: compare only runs with the same start."
        )
    return detector, warnings
