"""The files of an extension: the run folder's, and what only an extension has."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from ciod.config.load import data_folder
from ciod.core.errors import CiodError
from ciod.core.files import exists
from ciod.core.plural import counted
from ciod.core.run_log import atomic_write, write_json
from ciod.data.scenarios.scenario import Task
from ciod.detectors.files import weights
from ciod.evaluation import continual
from ciod.runs import environment
from ciod.runs.results import FORMAT, METRICS

if TYPE_CHECKING:
    from rich.table import Table

    from ciod.core.results_schema import Group, ResultsFile, TaskEntry
    from ciod.core.types import Detections
    from ciod.detectors.base import Detector
    from ciod.extension.effort import Plan
    from ciod.extension.measure import Judged
    from ciod.extension.names import Names
    from ciod.extension.settings import Extend
    from ciod.methods.base.method import Method
    from ciod.training.progress import Reporter
    from ciod.training.task import TaskResult

TASKS = 2  # the model as it was, and the extension


def model_of(out: Path, state: dict[str, Any]) -> Path | None:
    """The model that a state goes with: of a finished extension, if it kept enough."""
    return written(out) if state.get("task") == TASKS and not state.get("not_kept") else None


def written(out: Path) -> Path:
    """The model of a finished extension: of an ONNX file again one."""
    file = out / "model.onnx"
    return file if exists(file) else out / "model.safetensors"


def refuse_result(out: Path) -> None:
    """Raises CiodError if a model already exists."""
    if any(exists(out / name) for name in ("model.safetensors", "model.onnx")):
        raise CiodError(f"out: {out} already holds a result, which is never overwritten; choose another out=.")


def settings(out: Path, s: Extend, plan: Plan, command: str) -> None:
    """``run.yaml``: what was asked, what was chosen, and what it runs on."""
    content = {
        "command": command or machine_command(),
        "seed": s.seed,
        "commit": environment.commit(),
        "machine": environment.describe(),
        "versions": environment.versions(),
        **s.model_dump(mode="json"),
        "chosen": {"epochs": plan.epochs, "batch": plan.batch, "lr": plan.lr, "size": plan.size, "why": plan.why},
    }
    atomic_write(out / "run.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def machine_command() -> str:
    import sys

    return " ".join(["ciod", *sys.argv[1:]])


def lineage(s: Extend, task: Task, names: Names, method: str, epochs: int, share: float) -> dict[str, Any]:
    """What the model remembers of its extension.

    Args:
        share: of the trained weights, the rest being those of the model as it was.
    """
    return {
        "classes": list(names.new),
        "taught": list(names.taught),
        "dropped": list(names.dropped),
        "data": task.train.source,
        "images": len(task.train),
        "boxes": len(task.train.labels),
        "method": {**s.method, "name": method},
        "epochs": epochs,
        "share": share,
        "seed": s.seed,
        **provenance(s, task),
    }


def provenance(s: Extend, task: Task) -> dict[str, Any]:
    """What the lineage remembers beyond settings: when, and hashes of what went in."""
    listing = "\n".join(f"{f.name} {h}x{w}" for f, (h, w) in zip(task.train.files, task.train.sizes.tolist()))
    boxes = task.train.boxes.tobytes() + task.train.labels.tobytes()
    return {
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "effort": s.effort,
        "from": weights.file_of(s.model).name,
        "model_sha256": sha256(weights.file_of(data_folder(s.model) or s.model)),
        "data_sha256": hashlib.sha256(listing.encode() + boxes).hexdigest(),
        "ciod": environment.versions()["ciod"],
    }


def sha256(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    found = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def results(
    s: Extend,
    task: Task,
    name: str,
    method: Method,
    judged: Judged,
    result: TaskResult,
    extra: dict[str, Any],
    warnings: list[str],
    detector: Detector,
) -> ResultsFile:
    """``results.json``: the model as it was is task 1, the extension task 2, so every tool that reads runs reads it."""
    before = [{n: _before(judged, n, m) for n in task.old_classes} for m in METRICS]
    after = [{n: _after(judged, n, m) for n in task.seen_classes} for m in METRICS]
    groups = [list(task.old_classes), list(task.new_classes)]
    tables = {m: [before[i], after[i]] for i, m in enumerate(METRICS)}
    return {
        "format": FORMAT,
        "scenario": {
            "name": f"{weights.file_of(s.model).name} + {Path(s.data).name}",
            "classes": list(task.seen_classes),
            "split": [len(g) for g in groups],
            "joint": False,
            "metric": "coco",
            "data": s.data,
            "subset": s.subset,
            "protocol": _protocol(s, task, extra),
        },
        "detector": {"name": detector.settings["name"], "head": "grow"},
        "method": {
            "name": name,
            "settings": {k: v for k, v in s.method.items() if k != "name"},
            "distillation_terms": sorted(method.distillation_terms),
        },
        "seed": s.seed,
        "tasks": _tasks(task, before, after, judged, result),
        "ap": tables,
        "continual": {m: continual.summary(tables[m], groups) for m in METRICS},
        "warnings": list(dict.fromkeys([*warnings, *result.fit.broken])),
        "extension": extra,
    }


def _tasks(task: Task, before: list[Group], after: list[Group], judged: Judged, result: TaskResult) -> list[TaskEntry]:
    """The model as it was, and the extension. ``before`` and ``after``: class → AP, for each of ``METRICS``."""

    def mean(rows: list[Group], names: tuple[str, ...]) -> Group | None:
        return {m: continual.group_mean(r, names) for m, r in zip(METRICS, rows)} if names else None

    groups = [list(task.old_classes), list(task.new_classes)]
    rows: list[TaskEntry] = [
        {
            "index": 0,
            "new_classes": groups[0],
            "old_classes": [],
            "old": None,
            "new": mean(before, task.old_classes),
            "all": mean(before, task.old_classes),
            "test_images": len(task.test),
            "future_boxes": 0,
        },
        {
            "index": 1,
            "new_classes": groups[1],
            "old_classes": groups[0],
            "train_images": len(task.train),
            "train_boxes": len(task.train.labels),
            "hidden_boxes": 0,
            "peak_memory_mb": round(environment.peak_memory_mb(), 1),
            "steps": result.fit.steps,
            "epochs": result.fit.epochs,
            "seconds": result.seconds,
            "old": mean(after, task.old_classes),
            "new": mean(after, task.new_classes),
            # of new classes alone it would be a mean over all that says nothing of the old
            "all": mean(after, task.seen_classes) if judged.old_after else dict.fromkeys(METRICS),
            "test_images": len(task.test),
            "future_boxes": 0,
        },
    ]
    if result.fit.kept:
        rows[1]["kept"] = result.fit.kept
    return rows


def _before(judged: Judged, name: str, metric: str) -> float | None:
    """On old data where there is some; a class that was taught further else on the folder's validation images."""
    for table in (judged.old_before, judged.taught_before):
        if table is not None and (value := table.per_class.get(name, {}).get(metric)) is not None:
            return value
    return None


def _after(judged: Judged, name: str, metric: str) -> float | None:
    if judged.old_before is not None and (judged.old_before.per_class.get(name) or {}).get(metric) is not None:
        assert judged.old_after is not None
        return judged.old_after.per_class[name][metric]
    return judged.learnt.per_class.get(name, {}).get(metric)


def _protocol(s: Extend, task: Task, extra: dict[str, Any]) -> list[str]:
    notes = ["Task 1 is the model as it was, task 2 the extension."]
    silent = extra["negatives"]
    notes.append(
        f"{counted(silent, 'picture')} without new objects were used in training, their old boxes were not."
        if silent
        else "No old image was used in training."
    )
    notes.append(
        "New classes are measured on images held out from the folder."
        if extra["held_out"]
        else "New classes are measured on the folder's validation images."
    )
    if "onnx" in extra:
        notes.append(extra["onnx"]["sentence"])
    if s.old_data:
        notes.append(f"Old classes are measured on {s.old_data}.")
    else:
        notes.append("Old classes have no AP: there was no old validation data (old_data=FOLDER).")
    return notes


def examples(
    out: Path, task: Task, before: Detector, after: list[Detections], device: torch.device, count: int = 6
) -> None:
    """Pictures of the folder's validation images: the model as it was beside the new one."""
    from ciod.report.examples import write_examples

    titles = "before: the model as it was", "after: the extended model"
    write_examples(out / "task-2" / "examples", task, before, after, device, count, titles)


def finish(out: Path, content: ResultsFile, reporter: Reporter) -> None:
    """results.json, report.html, and what a person sees in the terminal."""
    from ciod.extension import confusion, further
    from ciod.extension.false_alarms import FalseAlarms
    from ciod.extension.retention import Retention
    from ciod.extension.unchanged import Unchanged
    from ciod.report import extended
    from ciod.report.page import write_report

    write_json(out / "results.json", content)
    write_report(out)
    extension = content.get("extension", {})
    kept = Retention(**extension["retention"])
    new = content["tasks"][1]["new"]
    reporter.show(extended.table(content))
    if new and new["AP50"] is not None:
        reporter.say(f"new classes: AP50 {100 * new['AP50']:.1f} %, AP {100 * (new['AP'] or 0):.1f} %")
    for line in Unchanged(**extension["unchanged"]).sentences() if extension["unchanged"] else []:
        reporter.say(line)
    reporter.say(kept.sentence())
    if kept.rows and not extended.nothing_changed(kept.rows):
        reporter.show(old_table(kept))
    alarms = FalseAlarms(**{k: extension["false_alarms"][k] for k in ("sources", "thresholds", "together")})
    for line in [*alarms.sentences(), *confusion.sentences(extension["confusion"])]:
        reporter.say(line)
    for line in further.sentences(extension["further"]):
        reporter.say(line)
    reporter.say(f"cost: {extension['cost']}")
    reporter.say(f"report: {out / 'report.html'}")


def old_table(kept: Any, most: int = 12) -> Table:
    """The old classes, the worst first, for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    what = "AP (%)" if kept.kind == "AP" else "boxes found"
    table = Table(box=box.SIMPLE_HEAD, title=f"old classes, worst first: {what}", title_justify="left")
    table.add_column("class")
    for name in ("before", "after", "kept" if kept.kind == "AP" else "agreement"):
        table.add_column(name, justify="right")
    for row in kept.rows[:most]:
        ap = kept.kind == "AP"
        cells = [f"{100 * row[k]:.1f}" if ap else str(row[k]) for k in ("before", "after")]
        share = "–" if row["kept"] is None else f"{100 * row['kept']:.1f} %"
        table.add_row(Text(row["class"]), *cells, share)
    if len(kept.rows) > most:
        table.caption = f"{len(kept.rows) - most} more in report.html"
    return table
