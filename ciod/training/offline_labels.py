"""Images of a task's loader and its mixture, with pseudo-labels that a method draws in them once."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ciod.core.plural import counted
from ciod.core.types import KNOWN
from ciod.core.user_code import UserCodeError, where
from ciod.data.index import Index

if TYPE_CHECKING:
    from ciod.data.mixture import Mixture
    from ciod.methods.base.method import Method
    from ciod.training.progress import Reporter


def with_offline_labels(
    train: Index, mixture: Mixture | None, method: Method, *, workers: int, reporter: Reporter
) -> tuple[Index, Mixture | None, list[str]]:
    """``index`` and ``mixture`` of ``train_loader``, after ``Method.draw``; and warnings.

    Raises:
        UserCodeError: the method did not return the same images.
    """
    before = train if mixture is None else mixture.index
    after = method.draw(before, workers)
    if after is None:
        return train, mixture, []
    if not isinstance(after, Index) or after.files != before.files:
        raise UserCodeError(
            f"{where(type(method), 'draw')} must return the given images with more boxes (images.with_boxes), or None."
        )
    if mixture is not None:
        after = _without_known(before, after, mixture.source == KNOWN)
    n = len(after.labels) - len(before.labels)
    reporter.say(
        f"the teacher produced {counted(n, 'pseudo-label')} in {counted(len(before), 'image')}, once for all steps"
    )
    warnings = []
    if not n:
        warnings.append(
            f"The teacher produced no pseudo-labels in the {counted(len(before), 'image')} of the task; this "
            f"run is plain "
            "fine-tuning. method.score may be too high for this teacher, or it was trained too little."
        )
    if mixture is None:
        return after, None, warnings
    old = np.arange(mixture.known.shape[1]) < method.old
    return train, replace(mixture, index=after, known=mixture.known | old), warnings


def _without_known(before: Index, after: Index, known: np.ndarray) -> Index:
    """``after`` without the boxes that were added, behind those of ``before``, to completely labelled images."""
    place = np.arange(len(after.image)) - after.starts[after.image]
    added = place >= np.diff(before.starts)[after.image]
    return after.select(boxes=~(added & known[after.image]))
