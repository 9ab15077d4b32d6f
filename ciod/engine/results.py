"""results.json: the task × class table and everything that is a pure function of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciod.engine import machine
from ciod.errors import CiodError
from ciod.evaluate import continual
from ciod.report.log import write_json

if TYPE_CHECKING:
    from ciod.config import Run
    from ciod.data.scenario import Scenario, Task
    from ciod.evaluate.ap import APTable

FORMAT = 1
METRICS = ("AP", "AP50")


class Results:
    """The content of results.json while a run fills it."""

    def __init__(self, content: dict[str, Any]):
        self.content = content

    @classmethod
    def begin(cls, settings: Run, scenario: Scenario) -> Results:
        p = settings.protocol
        method = dict(settings.method)
        groups = [list(g) for g in scenario.groups]
        return cls(
            {
                "format": FORMAT,
                "scenario": {
                    "name": p.name or Path(str(settings.data)).name,
                    "classes": list(scenario.classes),
                    "split": [len(g) for g in groups],
                    "order": p.order,
                    "images": p.images,
                    "boxes": p.boxes,
                    "eval_images": p.eval_images,
                    "joint": p.joint,
                    "metric": p.metric,
                    "data": str(settings.data or p.data),
                    "protocol": p.sentences(),
                },
                "detector": {"name": settings.detector.name, "head": settings.detector.head},
                "method": {"name": method.pop("name", "ilyolox"), "settings": method},
                "seed": settings.seed,
                "tasks": [],
                "ap": {m: [] for m in METRICS},
                "continual": {m: {} for m in METRICS},
                "warnings": [],
            }
        )

    def load(self, content: dict[str, Any]) -> None:
        """Continues with what an earlier process had found."""
        self.content.update({k: content[k] for k in ("tasks", "ap", "continual", "warnings")})

    def add(self, task: Task, table: APTable, **facts: Any) -> None:
        """One finished task."""
        for m in METRICS:
            rows = self.content["ap"][m][: task.index]
            self.content["ap"][m] = [*rows, {n: table.per_class[n][m] for n in task.seen_classes}]

        def group(names: tuple[str, ...]) -> dict[str, float | None] | None:
            return {m: table.mean(names, m) for m in METRICS} if names else None

        entry = {
            "index": task.index,
            "new_classes": list(task.new_classes),
            "old_classes": list(task.old_classes),
            "train_images": len(task.train),
            "train_boxes": len(task.train.labels),
            "hidden_boxes": task.hidden_boxes,
            "future_boxes": task.future_boxes,
            "test_images": len(task.test),
            "peak_memory_mb": round(machine.peak_memory_mb(), 1),
            **facts,
            "old": group(task.old_classes),
            "new": group(task.new_classes),
            "all": dict(table.overall),
        }
        self.content["tasks"] = [*self.content["tasks"][: task.index], entry]
        self._continual(None)

    def warn(self, sentences: list[str]) -> None:
        self.content["warnings"] = list(dict.fromkeys([*self.content["warnings"], *sentences]))

    def finish(self, upper_bound: Path | None) -> None:
        """The continual metrics, with gaps if a joint run is known."""
        self._continual(upper_bound)

    def _continual(self, upper_bound: Path | None) -> None:
        upper = None
        if upper_bound is not None:
            upper = json.loads((upper_bound / "results.json").read_text(encoding="utf-8"))
            if set(upper["scenario"]["classes"]) != set(self.content["scenario"]["classes"]) or not upper["tasks"]:
                raise CiodError(f"upper_bound: {upper_bound} is not a finished joint run of the same classes.")
        groups = [t["new_classes"] for t in self.content["tasks"]]
        for m in METRICS:
            bounds = [None] * (len(groups) - 1) + [upper["tasks"][-1]["all"][m]] if upper and groups else None
            self.content["continual"][m] = continual.summary(self.content["ap"][m], groups, bounds)

    def write(self, folder: Path) -> None:
        write_json(folder / "results.json", self.content)
