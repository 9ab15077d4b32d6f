"""Additional images of a task, mixed into its batches: exemplars and a pool."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ciod.core.types import MEMORY, POOL, TASK
from ciod.data.index import Index
from ciod.data.mixture import Mixture, concatenate
from ciod.memory import pools as pool
from ciod.memory.exemplars import Memory

if TYPE_CHECKING:
    from ciod.config.load import Run
    from ciod.core.distributed import World
    from ciod.data.scenarios.scenario import Scenario, Task
    from ciod.detectors.base import Detector


@dataclass
class Extra:
    """Memory and pool of a run; without either, a task trains on its own images."""

    settings: Run
    memory: Memory | None
    pool: Index | None

    @classmethod
    def begin(cls, settings: Run, scenario: Scenario) -> Extra:
        """Raises CiodError if the pool has no readable image."""
        memory = Memory(settings.memory, scenario, settings.seed) if settings.memory.size else None
        folder = settings.pool.folder
        return cls(settings, memory, pool.read(Path(folder), scenario.classes) if folder else None)

    def problems(self) -> list[str]:
        """Problems of the pool, one line per kind."""
        return self.pool.problems.lines() if self.pool is not None else []

    def images(self, task: Task) -> dict[str, int]:
        """Numbers of images in addition to the task's own, for ``results.json``."""
        sources = {"memory_images": self.memory, "pool_images": self.pool}
        return {k: len(v) if task.index and v is not None else 0 for k, v in sources.items()}

    def mixture(self, task: Task, classes: int) -> Mixture | None:
        """The training images of ``task``; None: only its own images.

        Args:
            classes: number of classes of the detector.
        """
        batch, s = self.settings.train.batch, self.settings.memory
        from_memory, from_pool = shares(self.settings, batch, old=len(task.old_classes), seen=len(task.seen_classes))
        indices, known, source, counts = [task.train], [np.ones((len(task.train), classes), bool)], [TASK], [batch]
        background = [np.ones(len(task.train), bool)]
        merged = np.arange(len(task.train))
        if task.index and self.memory is not None and len(self.memory):
            index, labelled = self.memory.index()
            labelled = np.pad(labelled, ((0, 0), (0, max(0, classes - labelled.shape[1]))))[:, :classes]
            if s.labels == "none":
                index, labelled = index.select(boxes=np.zeros(len(index.labels), bool)), np.zeros_like(labelled)
            indices.append(index)
            known.append(np.ones_like(labelled) if s.labels == "as_is" else labelled)
            background.append(np.full(len(index), s.labels != "none"))
            source.append(MEMORY)
            if s.batches == "merged":
                merged = np.arange(len(task.train) + len(index))
            counts.append(from_memory)
        if task.index and self.pool is not None:
            indices.append(self.pool)
            known.append(np.zeros((len(self.pool), classes), bool))
            background.append(np.zeros(len(self.pool), bool))
            source.append(POOL)
            counts.append(from_pool or _count(batch, self.settings.pool.share))  # a pool need not be a folder
        if len(indices) == 1:
            return None
        ends = np.cumsum([0, *(len(i) for i in indices)])
        parts = [merged, *(np.arange(a, b) for a, b in pairwise(ends[1:]))]
        counts[0] = max(1, batch - sum(counts[1:]))
        used = [i for i, n in enumerate(counts) if n]
        return Mixture(
            concatenate(indices),
            np.repeat(source, [len(i) for i in indices]),
            np.concatenate(known),
            np.concatenate(background),
            [parts[i] for i in used],
            [counts[i] for i in used],
        )

    def update(self, task: int, detector: Detector, world: World) -> None:
        """After a task: every process takes the exemplars that the first process chose."""
        if self.memory is None:
            return
        self.memory.update(task, detector)
        if world.size > 1:
            self.memory.load_state(world.gather([self.memory.state()])[0])

    def state(self) -> dict[str, Any]:
        return {} if self.memory is None else self.memory.state()

    def load_state(self, state: dict[str, Any]) -> None:
        if self.memory is not None and state:
            self.memory.load_state(state)


def shares(settings: Run, batch: int, *, old: int, seen: int) -> tuple[int, int]:
    """How many images of a later task's batch come from the memory and from the pool; 0: none, or the memory is merged.

    Args:
        batch: its images.
        old, seen: classes of earlier tasks, and with those of the task.
    """
    memory, pool = settings.memory, settings.pool
    count = 0
    if memory.size and memory.batches != "merged":
        count = _count(batch, memory.share if memory.batches == "share" else old / seen)
    return count, _count(batch, pool.share) if pool.folder else 0


def _count(batch: int, share: float) -> int:
    return min(batch - 1, max(1, round(batch * share)))
