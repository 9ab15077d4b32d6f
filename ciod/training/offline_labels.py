"""What a task's loader shows: its images and what is mixed into them, with the boxes a method draws in them once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ciod.data.index import Index
    from ciod.data.mixture import Mixture
    from ciod.methods.base.method import Method
    from ciod.training.progress import Reporter


def with_drawn(
    train: Index, mixture: Mixture | None, method: Method, *, workers: int, reporter: Reporter
) -> tuple[Index, Mixture | None, list[str]]:
    """``index`` and ``mixture`` of ``train_loader``, after ``Method.draw``; and what there is to warn of."""
    before = train if mixture is None else mixture.index
    after = method.draw(before, workers)
    if after is None:
        return train, mixture, []
    n = len(after.labels) - len(before.labels)
    reporter.say(f"the teacher drew {n} boxes of old classes in {len(before)} images, once for all steps")
    said = []
    if not n:
        said.append(
            f"The teacher drew no box of an old class in the {len(before)} images of the task: nothing holds the old "
            "classes. method.score may be too high for it, or it was trained too little."
        )
    if mixture is None:
        return after, None, said
    old = np.arange(mixture.known.shape[1]) < method.old
    return train, replace(mixture, index=after, known=mixture.known | old), said
