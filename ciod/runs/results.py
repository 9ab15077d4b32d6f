"""results.json: the task × class table and everything that is a pure function of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ciod import methods
from ciod.core.errors import CiodError
from ciod.core.run_log import write_json
from ciod.data.scenarios import subsets
from ciod.evaluation import continual
from ciod.evaluation.detect import limit_of
from ciod.evaluation.voc import NAMES
from ciod.report import results_file
from ciod.runs import environment, sanity_checks

if TYPE_CHECKING:
    from ciod.config.load import Run
    from ciod.core.results_schema import ResultsFile, TaskEntry
    from ciod.data.scenarios.scenario import Scenario, Task
    from ciod.evaluation.ap import APTable

FORMAT = results_file.FORMAT
METRICS = ("AP", "AP50")
SIX = (*METRICS, "AP75", "APs", "APm", "APl")  # COCO's six: Ω and the gaps are computed for each


@dataclass(frozen=True)
class Upper:
    """What joint training reaches: the bounds of Ω, the gaps, RSD, RPD and RAI.

    Args:
        tasks: per task, COCO's six APs of the model trained jointly on the classes seen up to it; None where there is
            no such model. The first task is its own joint training and needs none.
        classes: metric → class → AP of the model trained jointly on all classes; empty without one.
    """

    tasks: list[dict[str, float | None] | None]
    classes: dict[str, dict[str, float | None]]

    @classmethod
    def read(cls, folders: Sequence[Path], groups: Sequence[Sequence[str]], subset: str | None = None) -> Upper:
        """Finds for each class prefix of ``groups`` the folder of the joint run that was trained on exactly these
        classes.

        Args:
            subset: that of the run, which the joint runs must have too.

        Raises:
            CiodError: a folder is not a finished joint run, or its classes are not a prefix of the scenario, or one of
                the runs is a smoke test with a subset of the images and the other is not.
        """
        seen = [{n for names in groups[: t + 1] for n in names} for t in range(len(groups))]
        tasks: list[dict[str, float | None] | None] = [None] * len(groups)
        classes: dict[str, dict[str, float | None]] = {}
        for folder in folders:
            theirs = results_file.read(folder / results_file.NAME, needs=results_file.Finished)
            names = set(theirs["scenario"]["classes"])
            if names not in seen or len(theirs["tasks"]) != 1:
                raise CiodError(f"upper_bound: {folder} is not a finished joint run of the same classes.")
            if (other := theirs["scenario"].get("subset")) != subset:
                have, has = (f"subset={s}" if s else "all images" for s in (other, subset))
                raise CiodError(
                    f"upper_bound: {folder} was trained with {have}, this run with {has}; a subset cannot be measured "
                    "against other images."
                )
            last = max(t for t, have in enumerate(seen) if have == names)  # tasks may repeat classes
            tasks[last] = theirs["tasks"][0]["all"]
            if names == seen[-1]:
                classes = {m: rows[0] for m, rows in theirs["ap"].items()}
        return cls(tasks, classes)


def bounds_of(settings: Run) -> list[Path]:
    """Folders of the joint runs that a run is measured against."""
    given = settings.upper_bound or []
    return [Path(f) for f in ([given] if isinstance(given, str) else given)]


def metrics_of(metric: str) -> tuple[str, ...]:
    """The metrics that are kept per class: COCO's AP and AP50, and VOC's under its own name."""
    return (*METRICS, *([NAMES[metric]] if metric in NAMES else []))


class Results:
    """The content of results.json while a run fills it."""

    def __init__(self, content: ResultsFile):
        self.content = content

    @classmethod
    def begin(cls, settings: Run, scenario: Scenario) -> Results:
        """Results without any task.

        Raises:
            CiodError: an upper bound that cannot be used once the run is finished.
        """
        p = settings.protocol
        Upper.read(bounds_of(settings), scenario.groups, p.subset)
        given = dict(settings.method)
        name = given.pop("name", methods.DEFAULT)
        metrics = metrics_of(p.metric)
        groups = [list(g) for g in scenario.groups]
        return cls(
            {
                "format": results_file.FORMAT,
                "scenario": {
                    "name": p.name or Path(str(settings.data)).name,
                    "classes": list(scenario.classes),
                    "split": [len(g) for g in groups],
                    "order": p.order,
                    "images": p.images,
                    "boxes": p.boxes,
                    "eval_images": p.eval_images,
                    "joint": p.joint,
                    "reverse": p.reverse,
                    "difficult": p.difficult,
                    "image_seed": p.image_seed,
                    "shots": p.shots,
                    "subset": p.subset,
                    "folds": p.folds,
                    "fold": p.fold,
                    "group": p.group,
                    "metric": p.metric,
                    "max_detections": limit_of(settings.eval, p.metric),
                    "data": str(settings.data or p.data),
                    "protocol": scenario.sentences(),
                },
                "detector": {"name": settings.detector.name, "head": settings.detector.head},
                "method": {
                    "name": name,
                    "settings": given,
                    "distillation_terms": sorted(methods.find(name).distillation_terms),
                },
                "seed": settings.seed,
                "tasks": [],
                "ap": {m: [] for m in metrics},
                "continual": {m: {} for m in dict.fromkeys((*SIX, *metrics))},
                "upper_bounds": None,
                "warnings": [subsets.sentence(p.subset)] if p.subset else [],
            }
        )

    def load(self, content: Mapping[str, Any]) -> None:
        """Loads the results of an earlier process."""
        mine = self.content
        mine["tasks"], mine["ap"] = content["tasks"], content["ap"]
        mine["continual"], mine["warnings"] = content["continual"], content["warnings"]

    def add(self, task: Task, table: APTable, **facts: Any) -> None:
        """Adds a finished task."""
        metrics = tuple(self.content["ap"])
        for m in metrics:
            rows = self.content["ap"][m][: task.index]
            self.content["ap"][m] = [*rows, {n: table.per_class[n][m] for n in task.seen_classes}]

        def group(names: tuple[str, ...]) -> dict[str, float | None] | None:
            return {m: table.mean(names, m) for m in metrics} if names else None

        entry: dict[str, Any] = {
            "index": task.index,
            "new_classes": list(task.new_classes),
            "old_classes": list(task.old_classes),
            **({"repeated_classes": list(task.repeated_classes)} if task.repeated_classes else {}),
            "train_images": len(task.train),
            "train_boxes": len(task.train.labels),
            "hidden_boxes": task.hidden_boxes,
            "future_boxes": task.future_boxes,
            "test_images": len(task.test),
            "peak_memory_mb": round(environment.peak_memory_mb(), 1),
            **facts,
            "old": group(tuple(n for n in task.old_classes if n not in task.repeated_classes)),
            "new": group(task.taught_classes),
            "all": dict(table.overall),
        }
        self.content["tasks"] = [*self.content["tasks"][: task.index], cast("TaskEntry", entry)]
        self._continual(None)

    def warn(self, sentences: list[str]) -> None:
        self.content["warnings"] = list(dict.fromkeys([*self.content["warnings"], *sentences]))

    def finish(self, upper_bounds: Sequence[Path]) -> None:
        """Adds the continual metrics, with gaps and Ω if joint runs of the class prefixes are known."""
        groups = [t["new_classes"] for t in self.content["tasks"]]
        subset = self.content["scenario"].get("subset")
        upper = Upper.read(upper_bounds, groups, subset) if upper_bounds and groups else None
        self.content["upper_bounds"] = None if upper is None else upper.tasks
        self.warn(sanity_checks.about_bounds(self.content["tasks"], self.content["upper_bounds"]))
        self._continual(upper)

    def _continual(self, upper: Upper | None) -> None:
        tasks = self.content["tasks"]
        taught = [[*t.get("repeated_classes", ()), *t["new_classes"]] for t in tasks]
        for m in dict.fromkeys((*SIX, *self.content["ap"])):
            bounds = None if upper is None else [None if b is None else b.get(m) for b in upper.tasks]
            if m in self.content["ap"]:
                joint = None if upper is None else upper.classes.get(m)
                found = continual.summary(self.content["ap"][m], taught, bounds, joint)
            else:
                found = continual.against_upper([(t["all"] or {}).get(m) for t in tasks], bounds)
            self.content["continual"][m] = found

    def write(self, folder: Path) -> None:
        write_json(folder / results_file.NAME, self.content)
