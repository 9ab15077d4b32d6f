"""Equal effort: the optimiser steps of every row of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ciod.config.load import Run
from ciod.core.errors import CiodError
from ciod.data.scenarios.scenario import Scenario
from ciod.runs.start import epochs_of, steps_per_epoch


def of_tasks(run: Run, scenario: Scenario) -> list[int]:
    """Optimiser steps of each task, without images of a merged memory."""
    tasks = len(scenario.parts)
    return [epochs_of(run, i, tasks) * steps_per_epoch(run, scenario, i) for i in range(len(scenario))]


def joint_epochs(steps: Sequence[int], run: Run, scenario: Scenario) -> int:
    """Epochs after which joint training has taken at least as many steps as the tasks together.

    Args:
        steps: steps of the tasks whose classes it is trained on.
        run, scenario: those of joint training, with its batch.
    """
    return max(1, -(-sum(steps) // steps_per_epoch(run, scenario, 0)))


def excluded(settings: Mapping[str, Any]) -> list[str]:
    """What is wrong with the settings of all runs, by full key, if their steps must be equal."""
    problems = []
    if settings.get("train.joint_epochs") is not None:
        problems.append("joint_epochs: equal_steps=true chooses them; leave one of them out.")
    if settings.get("train.patience") is not None:
        problems.append("patience: with equal_steps=true no row may end earlier than others; leave one of them out.")
    return problems


def check(rows: Mapping[str, tuple[Run, Sequence[int]]]) -> None:
    """Raises CiodError if rows of a block differ in steps in any task.

    Args:
        rows: label → settings and steps of each task.
    """
    merged = [n for n, (run, _) in rows.items() if run.memory.size and run.memory.batches == "merged"]
    if merged:
        raise CiodError(
            f"equal_steps: {', '.join(merged)} adds its memory to every epoch (memory.batches=merged), which takes a "
            "number of steps that is not known yet; write memory.batches=share or balanced, and fewer epochs."
        )
    reference, (_, wanted) = next(iter(rows.items()))
    for name, (_, steps) in rows.items():
        if list(steps) != list(wanted):
            mine, theirs = ("+".join(map(str, s)) for s in (steps, wanted))
            raise CiodError(
                f"equal_steps: {name} takes {mine} steps but {reference} takes {theirs}; give all methods the same "
                "images of its own task per step (epochs=, batch=, memory.share= and pool.share=)."
            )
