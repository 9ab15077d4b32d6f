"""Old and new model side by side: AP of the taught classes, and how much of the old classes is kept."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ciod.config.load import data_folder
from ciod.config.settings import Evaluation
from ciod.core.distributed import World
from ciod.core.types import Detections
from ciod.data.index import Index
from ciod.data.scenarios import subsets
from ciod.data.scenarios.scenario import Task
from ciod.detectors.base import Detector
from ciod.evaluation import lvis
from ciod.evaluation.ap import APTable, coco_ap
from ciod.evaluation.detect import detect
from ciod.extension import confusion, data, false_alarms, negatives, retention
from ciod.extension.false_alarms import FalseAlarms
from ciod.extension.names import Names
from ciod.extension.retention import Retention
from ciod.extension.settings import Extend
from ciod.memory import pools
from ciod.runs.choices import is_set
from ciod.training.progress import Reporter

MOST = 300  # images on which agreement is measured, of the folder and of the pool each


@dataclass
class Judged:
    """What is known about two models."""

    taught_before: APTable | None  # of the known classes that were taught further, on the folder's validation images
    learnt: APTable  # of every class that was taught
    after_new: list[Detections]  # the new model on the folder's validation images
    after_old: list[Detections]  # and on old validation data
    old_before: APTable | None  # on old validation data
    old_after: APTable | None
    retention: Retention


def evaluation(settings: Extend, detector: Detector) -> Evaluation:
    """Settings of the evaluation: what is not set by hand is as the detector brings it along."""
    brought = {k: v for k, v in detector.run_defaults.items() if k.startswith("eval.")}
    open_ = {k.removeprefix("eval."): v for k, v in brought.items() if not is_set(settings, k)}
    return settings.eval.model_copy(update=open_)


class Measure:
    """Detections of the old model are kept: it does not change.

    Args:
        reporter: shows the progress; None: nothing is shown.
    """

    def __init__(self, settings: Extend, world: World, task: Task, names: Names, reporter: Reporter | None = None):
        self.reporter = reporter or Reporter(quiet=True)
        self.settings, self.world, self.task, self.names = settings, world, task, names
        everything = None if settings.old_data is None else data.old_validation(settings.old_data, names)
        everything = None if everything is None else subsets.part(everything, settings.subset)
        self.old = None if everything is None else everything.relabel(names.old)
        folder = data_folder(settings.pool)
        self.pool = pools.read(folder, names.all) if folder else None
        self.negatives = negatives.find(settings, names, self.pool, everything)
        self.others = tuple(n for n in names.old if n not in names.taught)
        self._before: dict[tuple[int, str], list[Detections]] = {}
        self._fields: list[Index] | None = None

    def problems(self) -> list[str]:
        """Problems of the old data and the pool, one line per kind."""
        indexes = (("old_data", self.old), ("pool", self.pool))
        return [f"{key}: {line}" for key, i in indexes if i is not None for line in i.problems.lines()]

    def data_warnings(self) -> list[str]:
        """Warnings about what is measured on annotations of LVIS."""
        indexes = (i for i in (self.task.test, self.old) if i is not None)
        return [line for i in indexes for line in lvis.metric_warnings("coco", i, other=False)]

    def detect(self, detector: Detector, index: Index, title: str = "measuring the new model") -> list[Detections]:
        """Detections on every image of ``index``; ``title`` is shown meanwhile."""
        with self.reporter.counting(title, len(index)) as tick:
            return detect(detector, index, evaluation(self.settings, detector), self.world, tick=tick)[0]

    def judge(self, before: Detector, after: Detector) -> Judged:
        """Everything that is measured."""
        test, names = self.task.test, self.names
        found = self.detect(after, test)
        learnt = self._ap(found, test, names.learnt)
        taught = self._ap(self.of_old(before, test), test, names.taught) if names.taught else None
        if self.old is None:
            return Judged(taught, learnt, found, [], None, None, self.agreement(before, after))
        old_before = self._ap(self.of_old(before, self.old), self.old, names.old)
        on_old = self.detect(after, self.old)
        old_after = self._ap(on_old, self.old, names.old)
        kept = retention.by_ap(old_before, old_after, names.old, len(self.old))
        return Judged(taught, learnt, found, on_old, old_before, old_after, kept)

    def false_alarms(self, after: Detector, judged: Judged) -> FalseAlarms:
        """False alarms of the new classes, in every picture that shows none of them."""
        sources = self.negatives.measured.items()
        known = {} if self.names.parent is not None else {"old_data": judged.after_old}
        others = {k: (v, known[k] if k in known else self.detect(after, v)) for k, v in sources}
        new = (self.task.test, judged.after_new)
        return false_alarms.measure(new, others, self.names.new, self.settings.eval.max_detections)

    def confusion(self, judged: Judged) -> list[dict[str, Any]]:
        """Which classes take the objects of the new classes and, with old validation data, those of the old."""
        parent = self.names.parent
        found = (
            judged.after_new
            if parent is None
            else [d.keep(d.labels != self.names.all.index(parent)) for d in judged.after_new]
        )
        rows = confusion.table(found, self.task.test, self.names.learnt)
        if self.old is not None:
            new = set(self.names.new)
            old = confusion.table(judged.after_old, self.old, self.others)
            for row in old:
                by_new = {k: {n: v for n, v in row[k].items() if n in new} for k in ("taken", "beside")}
                if any(by_new.values()):
                    rows.append({**row, **by_new})
        return rows

    def brief(self, before: Detector, after: Detector) -> tuple[float | None, float | None]:
        """Retention, and mean AP50 of the taught classes."""
        judged = self.judge(before, after)
        return judged.retention.value, judged.learnt.overall["AP50"]

    def agreement(self, before: Detector, after: Detector) -> Retention:
        """On the folder's images and the pool: old classes that were not taught further.

        A change of earlier branches' classes by an arbiter is not forgetting: it changes no weight, and whether
        it is right cannot be measured without pictures of those classes. It is reported separately.
        """
        if before.arbiter is None:
            return self._agreement(before, after)
        with _unjudged(before), _unjudged(after):
            kept = self._agreement(before, after, "raw")
        kept.judged = self._agreement(before, after).value
        return kept

    def _agreement(self, before: Detector, after: Detector, way: str = "") -> Retention:
        first: list[Detections] = []
        second: list[Detections] = []
        for index in self.fields():
            first += self.of_old(before, index, way)
            second += self.detect(after, index)
        return retention.by_agreement(first, second, self.others)

    def fields(self) -> list[Index]:
        """Images on which the two are compared: up to 300 of the folder, up to 300 of the pool."""
        if self._fields is None:
            self._fields = [_sample(self.task.train, self.settings.seed), self.task.test]
            if self.pool is not None:
                self._fields.append(_sample(self.pool, self.settings.seed))
        return self._fields

    def compared_on(self, detector: Detector) -> tuple[list[Index], Evaluation]:
        """Every kind of picture there is (``fields``, and old validation data), and how a detector is evaluated."""
        shown = [i for i in (*self.fields(), self.old) if i is not None and len(i)]
        return shown, evaluation(self.settings, detector)

    def of_old(self, before: Detector, index: Index, way: str = "") -> list[Detections]:
        """What the model as it was finds on ``index``, which is computed once.

        Args:
            way: "raw": with its arbiter off.
        """
        if (id(index), way) not in self._before:
            self._before[id(index), way] = self.detect(before, index, "looking with the model as it was")
        return self._before[id(index), way]

    def remember(self, index: Index, found: list[Detections]) -> None:
        """What an earlier process found with the model as it was."""
        self._before[id(index), ""] = found

    def _ap(self, found: list[Detections], index: Index, names: tuple[str, ...]) -> APTable:
        return coco_ap(found, index, classes=names, max_detections=self.settings.eval.max_detections)


@contextmanager
def _unjudged(detector: Detector) -> Generator[None, None, None]:
    """The detector with its arbiter off."""
    arbiter = detector.arbiter
    on = arbiter is not None and arbiter.on
    if arbiter is not None:
        arbiter.on = False
    try:
        yield
    finally:
        if arbiter is not None:
            arbiter.on = on


def _sample(index: Index, seed: int) -> Index:
    if len(index) <= MOST:
        return index
    return index.select(np.sort(np.random.default_rng([seed, 12]).permutation(len(index))[:MOST]))
