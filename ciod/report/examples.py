"""Example images for the report: teacher and student on test images, with the ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ciod.core.errors import DataError
from ciod.data.images import read_image, save_image
from ciod.report.draw import draw_boxes, side_by_side

if TYPE_CHECKING:
    from ciod.core.types import Detections
    from ciod.data.scenarios.scenario import Task
    from ciod.detectors.base import Detector

SCORE = 0.3  # minimum score of drawn boxes


def choose(task: Task, count: int) -> list[int]:
    """Rows of test images with old and new objects, those with most objects first; then others with objects."""
    test, first = task.test, len(task.old_classes)
    old = np.bincount(test.image[test.labels < first], minlength=len(test))
    new = np.bincount(test.image[test.labels >= first], minlength=len(test))
    value = 1000 * ((old > 0) & (new > 0)) + np.minimum(old, 4) + np.minimum(new, 4)
    order = np.argsort(-value, kind="stable")
    return [int(i) for i in order[:count] if value[i] > 0]


def write_examples(
    folder: Path,
    task: Task,
    teacher: Detector,
    found: list[Detections],
    device: torch.device,
    count: int = 6,
    titles: tuple[str, str] | None = None,
) -> None:
    """Writes ``folder/NN.jpg``: the detector before this task, the detector after it; ``titles`` are over the two."""
    teacher = teacher.to(device)
    from ciod.core.types import Detections as D

    for place, row in enumerate(choose(task, count)):
        height, width = (int(v) for v in task.test.sizes[row])
        try:
            picture = read_image(task.test.files[row], (height, width), stored=task.test.is_stored(row))
        except DataError:
            continue
        before = teacher.predict(picture, score_threshold=SCORE)
        own = task.test.of_image(row)
        truth = D(task.test.boxes[own], np.ones(own.stop - own.start), task.test.labels[own], task.seen_classes)
        after = found[row]
        panels = [draw_boxes(picture, d, new=task.new_classes, truth=truth, min_score=SCORE) for d in (before, after)]
        above = titles or ("before: the teacher", f"after task {task.index + 1}: the student")
        save_image(folder / f"{place:02d}.jpg", side_by_side(panels, [*above]))
