"""What a task's loader shows: its images and what is mixed into them, with the boxes a method draws in them once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ciod.data.extra import Mixture
    from ciod.data.index import Index
    from ciod.engine.progress import Reporter
    from ciod.methods.method import Method


def with_drawn(
    train: Index, mixture: Mixture | None, method: Method, *, workers: int, reporter: Reporter
) -> tuple[Index, Mixture | None]:
    """``index`` and ``mixture`` of ``train_loader``, after ``Method.draw``."""
    before = train if mixture is None else mixture.index
    after = method.draw(before, workers)
    if after is None:
        return train, mixture
    n = len(after.labels) - len(before.labels)
    reporter.say(f"the teacher drew {n} boxes of old classes in {len(before)} images, once for all steps")
    if mixture is None:
        return after, None
    old = np.arange(mixture.known.shape[1]) < method.old
    return train, replace(mixture, index=after, known=mixture.known | old)
