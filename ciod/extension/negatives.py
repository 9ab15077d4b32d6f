"""Pictures without an object of the new classes: most train the branch to be silent, the rest show whether it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ciod.core.plural import counted
from ciod.core.types import POOL, TASK
from ciod.data.index import Index
from ciod.data.mixture import Mixture, concatenate
from ciod.data.scenarios.scenario import Task
from ciod.extension import data
from ciod.extension.names import Names
from ciod.extension.settings import Extend

SHARE = 0.25  # of a batch
HELD_OUT = 0.15  # of the pool, for measuring
MOST = 300  # pictures of the pool for measuring


@dataclass
class Negatives:
    """Where such pictures come from, labelled in the order of the extended model's classes."""

    train: list[Index] = field(default_factory=list)
    """Boxes in them are of classes that the branch learns."""
    measured: dict[str, Index] = field(default_factory=dict)
    """Setting → pictures that no training sees. They may have boxes of any class."""
    old: Index | None = None
    """Those of ``train`` that are training pictures of the old data."""
    used: int = 0
    """How many were mixed into the training."""

    def sentences(self, learns: bool) -> list[str]:
        """Sentences about how they are used.

        Args:
            learns: whether the method learns from such pictures.
        """
        count = sum(map(len, self.train))
        if count and learns:
            return [f"{counted(count, 'picture')} without new objects train the branch to be silent there"]
        if not self.measured:
            taught = ", and the branch was not taught to be silent there" if learns else ""
            return [
                "No picture without new objects was given: how often the new classes fire on other pictures is not "
                f"measured{taught}. pool=FOLDER or old_data=FOLDER gives some."
            ]
        return []


def find(settings: Extend, names: Names, pool: Index | None, old: Index | None) -> Negatives:
    """The pictures that the settings give.

    Args:
        pool: unlabelled pictures.
        old: validation pictures of the old data, labelled in the order of the extended model.
    """
    found = Negatives()
    if names.parent is not None:  # whatever shows the parent shows one of its kinds; what a pool shows is unknown
        parent = names.all.index(names.parent)
        if old is not None:
            rest = np.setdiff1d(np.arange(len(old)), old.image[old.labels == parent])
            found.measured = {"old_data": old.select(rest)} if len(rest) else {}
        return found
    if old is not None:
        found.measured["old_data"] = old
    if pool is not None:
        rest, held = _parted(pool, settings.seed)
        found.measured["pool"] = held
        # The known classes are not labelled in the pool; a branch that learns one must not take them for background.
        if not names.taught and len(rest):
            found.train.append(rest)
    if settings.old_data is not None:
        training = data.old_training(settings.old_data, names)
        if training is not None:
            learnt = np.isin(training.labels, [names.all.index(n) for n in names.learnt])
            found.old = training.select(boxes=learnt & ~training.crowd & ~training.difficult)
            found.train.append(found.old)
    if not settings.negatives:
        found.train, found.old = [], None
    return found


def _parted(pool: Index, seed: int) -> tuple[Index, Index]:
    """The pool in two: for training, and for measuring."""
    order = np.random.default_rng([seed, 14]).permutation(len(pool))
    held = min(MOST, max(1, round(HELD_OUT * len(pool))))
    return pool.select(np.sort(order[held:])), pool.select(np.sort(order[:held]))


def mixture(task: Task, negatives: Negatives, classes: int, batch: int) -> Mixture | None:
    """The task's pictures with a share of such pictures in every batch; None: there are none, or no room for them.

    Args:
        classes: channels of the detector.
    """
    own = batch - count(batch)
    if not negatives.train or own == batch:
        return None
    sizes = [len(task.train), sum(map(len, negatives.train))]
    negatives.used = sizes[1]
    return Mixture(
        concatenate([task.train, *negatives.train]),
        np.repeat([TASK, POOL], sizes),
        np.ones((sum(sizes), classes), bool),
        np.ones(sum(sizes), bool),
        [np.arange(sizes[0]), np.arange(sizes[0], sum(sizes))],
        [own, batch - own],
    )


def count(batch: int) -> int:
    """How many of the images of a batch are such pictures; 0: there is no room for one."""
    return max(1, round(SHARE * batch)) if batch > 1 else 0
