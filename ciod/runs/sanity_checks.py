"""Results that are more likely a mistake than a finding: warnings for the log, the report and the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ciod.data.alike import alike, listed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ciod.core.types import Detections
    from ciod.data.index import Index
    from ciod.data.scenarios.scenario import Task
    from ciod.evaluation.ap import APTable

STARVED = 20  # boxes; a class with fewer, and fewer than a fiftieth of the largest class, is reported
SILENT = 0.05  # score that a class must reach somewhere in the test set
PERFECT = 0.995
ABOVE = 1.01  # times its upper bound: more than this is not rounding


def about_names(train: Index, test: Index) -> list[str]:
    """Names of training and test data that look the same and are different classes; those within one are counted as
    its problems."""
    within = {group for index in (train, test) for group in alike(index.class_names)}
    both = dict.fromkeys((*train.class_names, *test.class_names))
    return [
        f"{listed(group)}: names of training and test data that look the same, but count as different classes; rename "
        "one of them."
        for group in alike(both)
        if group not in within
    ]


def about_data(task: Task) -> list[str]:
    """Classes with too few training boxes, and test images that are also training images."""
    warnings = []
    boxes = dict(zip(task.train.class_names, task.train.boxes_per_class().tolist(), strict=True))
    counts = {n: boxes.get(n, 0) for n in task.taught_classes}
    most = max(counts.values(), default=0)
    none = [n for n, c in counts.items() if c == 0]
    few = [f"{c} {'box' if c == 1 else 'boxes'} of {n}" for n, c in counts.items() if 0 < c < min(STARVED, most / 50)]
    if none:
        warnings.append(f"Task {task.index + 1} has no training box of {_some(none)}.")
    if few:
        warnings.append(f"Task {task.index + 1} has only {_some(few)}; its most frequent class has {most}.")
    both = {str(f) for f in task.train.files} & {str(f) for f in task.test.files}
    if both:
        warnings.append(
            f"{len(both)} of the test images of task {task.index + 1} are also training images, for example "
            f"{min(both)}: its AP does not show how well new images are detected."
        )
    return warnings


def about_table(
    task: Task, table: APTable, found: Sequence[Detections], scores: Sequence[Mapping[str, float | None]]
) -> list[str]:
    """AP of exactly 0 or suspiciously near 1, and new classes that are never found.

    Args:
        scores: AP50 of each class after every earlier task. A class that never had any cannot be forgotten.
    """
    ap = {n: table.per_class[n]["AP50"] for n in task.seen_classes}
    highest = best_scores(found, task.seen_classes)
    silent = [n for n in task.taught_classes if ap[n] is not None and highest[n] < SILENT]
    new = [n for n in task.taught_classes if ap[n] == 0 and n not in silent]
    learnt = {n for row in scores for n, v in row.items() if v}
    old = [n for n in task.old_classes if ap[n] == 0 and n in learnt and n not in task.repeated_classes]
    perfect = [n for n, v in ap.items() if v is not None and v >= PERFECT]
    after = f"After task {task.index + 1}"
    warnings = []
    if silent:
        warnings.append(f"{after} the new class rows of {_some(silent)} never fire: no score reaches {SILENT}.")
    if new:
        warnings.append(f"{after} AP50 is exactly 0 for the new classes {_some(new)}.")
    if old:
        warnings.append(f"{after} AP50 is exactly 0 for the old classes {_some(old)}: they are forgotten.")
    if perfect:
        warnings.append(
            f"{after} AP50 is suspiciously near 1 for {_some(perfect)}: are test images, or near copies of them, in "
            "the training data?"
        )
    return warnings


def about_bounds(
    tasks: Sequence[Mapping[str, Any]], bounds: Sequence[Mapping[str, float | None] | None] | None
) -> list[str]:
    """Upper bounds that a run exceeds. ``tasks`` and ``bounds``: of results.json."""
    warnings = []
    for number, (task, bound) in enumerate(zip(tasks, bounds or []), 1):
        reached, joint = task["all"]["AP"], bound["AP"] if bound else None
        if reached is not None and joint is not None and reached > ABOVE * joint:
            epochs = sum(t["epochs"] for t in tasks[:number])
            warnings.append(
                f"After task {number} AP is {100 * reached:.1f}, more than the {100 * joint:.1f} of joint training, "
                "which was too short to be an upper bound, so the gaps and Ω look "
                "better than they are. Train it longer, for example as long as "
                f"all tasks together (joint_epochs={epochs})."
            )
    return warnings


def best_scores(found: Sequence[Detections], names: Sequence[str]) -> dict[str, float]:
    """The highest score of each class in all images; 0 where it was never found."""
    highest = dict.fromkeys(names, 0.0)
    for detections in found:
        for label in np.unique(detections.labels):
            name = detections.class_names[label]
            if name in highest:
                top = float(detections.scores[detections.labels == label].max())
                highest[name] = max(highest[name], top)
    return highest


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
