"""The report of a run: one self-contained HTML file.

It reads only the files of a run folder, so it also works for unfinished, copied and old runs.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ciod.core.errors import CiodError
from ciod.core.files import exists
from ciod.core.plural import counted
from ciod.core.reading import read_yaml
from ciod.core.run_log import METRICS, atomic_write, read_metrics
from ciod.evaluation import open_world
from ciod.report import extended, plots, results_file
from ciod.report.summary import (
    Results,
    agreement,
    beside,
    changes,
    done,
    duration,
    headline,
    percent,
    planned,
    retention,
    score,
    subset,
    summary_table,
    verdict,
)
from ciod.training import keep

__all__ = ["read_results", "summary_table", "verdict", "write_report"]

_ABOUT_RUN = ("versions", "command", "commit", "machine", "seed")
_MOST_EXAMPLES = 12  # images per task: a report must be small enough to send by e-mail
_CONTINUAL = (
    ("retention", "Retention", "AP of the old classes now ÷ when they were learnt (%); 100 = nothing forgotten"),
    ("forgetting", "Forgetting", "mean loss of the old classes relative to their best previous task (AP points)"),
    ("forgetting_points", "FPP", "loss of the classes of task 1 since task 1 (AP points)"),
    ("harmonic_mean", "Harmonic mean", "of old and new AP (%): high only if both are"),
    ("omega", "Ω", "mean over tasks of AP ÷ the joint model's AP; 1 = as good as training on everything at once"),
    ("abs_gap", "AbsGap", "AP points below joint training after the last task"),
    ("rel_gap", "RelGap", "the same gap relative to joint training (%)"),
    (
        "stability_deficiency",
        "RSD",
        "mean over the old classes of the gap to joint training, relative to it (%)",
    ),
    ("plasticity_deficiency", "RPD", "the same over the new classes (%)"),
    ("retention_adaptability", "RAI", "mean of retention and of new AP ÷ joint AP, over the tasks (%)"),
)


def write_report(folder: Path | str) -> Path:
    """Writes ``report.html`` into a run folder from its files: settings, metrics, results, example images.

    Missing parts are left out; a run with fewer tasks than its scenario is called unfinished.

    Raises:
        CiodError: the folder has no files of a run, or one of them cannot be read.
    """
    folder = Path(folder)
    run, results, metrics = read_run(folder), read_results(folder), read_metrics(folder)
    if not (run or results or metrics):
        raise CiodError(f"{folder} is not a run folder: it has no run.yaml, {METRICS} or results.json.")
    name = "extension.html.j2" if results.get("extension") else "page.html.j2"
    text = environment().get_template(name).render(_report(folder, run, results, metrics))
    return atomic_write(folder / "report.html", text)


def read_results(folder: Path | str) -> dict[str, Any]:
    """``results.json`` of a run; {} before its first task has finished.

    Raises:
        CiodError: the file exists but has no valid results.
    """
    path = Path(folder) / results_file.NAME
    return results_file.read(path) if exists(path) else {}


def read_run(folder: Path | str) -> dict[str, Any]:
    """``run.yaml`` of a run: its settings, versions, command, seed; {} without the file.

    Raises:
        CiodError: the file exists but is not a YAML mapping.
    """
    path = Path(folder) / "run.yaml"
    if not exists(path):
        return {}
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise CiodError(f"{path} is not a mapping of settings.")
    return found


def _report(folder: Path, run: Mapping[str, Any], results: Results, metrics: list[dict[str, Any]]) -> dict[str, Any]:
    """The content of page.html.j2."""
    scenario = results.get("scenario") or {}
    method, detector = results.get("method") or {}, results.get("detector") or {}
    lost, kept = changes(results), {c.name: c for c in changes(results, "AP")}
    if all(c.before is c.after is None for c in lost):  # an extension without old pictures
        lost = []
    versions = {k: v for k, v in (run.get("versions") or {}).items() if v is not None}
    settings = {k: v for k, v in run.items() if k not in _ABOUT_RUN}
    return {
        "title": " · ".join(str(v) for v in (scenario.get("name"), method.get("name"), detector.get("name")) if v)
        or folder.resolve().name,
        "verdict": unbroken(extended.verdict(results) if results.get("extension") else verdict(results)),
        "subset": subset(results),
        "unfinished": len(done(results)) < max(planned(results), 1),
        "warnings": results.get("warnings") or [],
        "tiles": _tiles(results),
        "tasks": _task_rows(results),
        "continual": _continual(results),
        "protocol": _protocol(results),
        "options": {
            k: scenario[k]
            for k in ("order", "images", "boxes", "eval_images", "metric", "max_detections", "data")
            if scenario.get(k)
        },
        "matrices": [(m, svg(plots.ap_matrix(results, metric=m))) for m in (headline(results), "AP")],
        "headline": headline(results),
        "task_curves": svg(plots.task_curves(results)),
        "changes": [
            {
                "name": c.name,
                "task": c.task + 1,
                "cells": _change_cells(c),
                "ap": _change_cells(kept.get(c.name)),
                "bad": _bad(c),
            }
            for c in lost
        ],
        "class_change": svg(plots.class_change(results)),
        "losses": svg(plots.losses(metrics, method.get("distillation_terms"))),
        "examples": [(i, _data_urls(p)) for i, p in examples(folder)],
        "settings": yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100) if settings else "",
        "method_settings": method.get("settings") or {},
        "facts": _facts(run, results, versions),
        "command": run.get("command") or "",
        "has_run": bool(run),
        "extension": extended.content(results),
        "doubtful": _data_urls(sorted((folder / "doubtful").glob("*.jpg"))[:_MOST_EXAMPLES]),
        "confused": _data_urls(sorted((folder / "confused").glob("*.jpg"))[:_MOST_EXAMPLES]),
    }


def _tiles(results: Results) -> list[tuple[str, str, str]]:
    """(number, description, detail): the most important numbers."""
    tasks = done(results)
    if not tasks:
        return []

    def ap50(group: str, what: str) -> tuple[str, str, str]:
        return (
            percent(score(results, -1, group, headline(results))),
            f"{headline(results)}, {what}",
            f"AP {percent(score(results, -1, group, 'AP'))}",
        )

    tiles = [ap50("all", "all classes")]
    if len(tasks) > 1:
        n_old, n_new = (len(tasks[-1].get(k) or []) for k in ("old_classes", "new_classes"))
        kept = (percent(retention(results), " %"), f"of the old {headline(results)} kept", counted(n_old, "old class"))
        new = f"{'new' if len(tasks) == 2 else 'newest'} class{'es' * (n_new != 1)}"
        agreed = agreement(results)
        if agreed is not None:
            same = percent(agreed, " %"), "agreement on old objects", f"{counted(n_old, 'old class')}; not accuracy"
            return [ap50("new", new), same]
        tiles = [kept, ap50("old", "old classes"), ap50("new", new), *tiles]
    return tiles


def _task_rows(results: Results) -> list[dict[str, Any]]:
    rows = []
    for i, task in enumerate(done(results)):
        group = task.get("all") or {}
        memory = task.get("peak_memory_mb")
        rows.append(
            {
                "number": i + 1,
                "new": task.get("new_classes") or [],
                "n_old": len(task.get("old_classes") or []),
                "hidden": _count(task.get("hidden_boxes")),
                "scores": [
                    percent(score(results, i, g, m)) for g in ("old", "new", "all") for m in ("AP", headline(results))
                ],
                "more": [percent(group.get(k)) for k in ("AP75", "APs", "APm", "APl")],
                "counts": [
                    _count(task.get(k)) for k in ("train_images", "train_boxes", "test_images", "epochs", "steps")
                ],
                "kept": keep.sentence(task["kept"]) if task.get("kept") else "",
                "seconds": duration(task.get("seconds")),
                "memory": "–" if memory is None else f"{memory:,.0f} MB",
            }
        )
    return rows


def _continual(results: Results) -> list[tuple[str, str, str, str]]:
    """(name, AP, headline metric, meaning) of each known metric."""
    found = []
    for key, name, meaning in _CONTINUAL:
        values = [((results.get("continual") or {}).get(m) or {}).get(key) for m in ("AP", headline(results))]
        if any(v is not None for v in values):
            shown = ["–" if v is None else f"{v:.3f}" if key == "omega" else percent(v) for v in values]
            found.append((name, *shown, meaning))
    return found


def _protocol(results: Results) -> list[str]:
    """The sentences of the scenario, then the counts of the run."""
    scenario = results.get("scenario") or {}
    lines = list(scenario.get("protocol") or [])
    split = scenario.get("split") or []
    if scenario.get("joint"):
        lines.append(f"Joint training: all {counted(sum(split), 'class')} at once, the upper bound of the scenario.")
    elif len(split) > 1:
        steps = " + ".join(map(str, split))
        lines.append(f"{counted(sum(split), 'class')} arrive in {len(split)} tasks: {steps}.")
    lines += [
        f"After task {i}: {open_world.line(entry)}."
        for i, t in enumerate(done(results), 1)
        if (entry := t.get("open_world"))
    ]
    if len(done(results)) > 4:
        hidden = sum(t.get("hidden_boxes") or 0 for t in done(results))
        lines.append(f"{counted(hidden, 'box')} of old classes stayed hidden in the training images, as listed above.")
        return [*lines, *(f"The last task also saw {also}." for also in [beside(results)] if also)]
    for i, task in enumerate(done(results), 1):
        if task.get("train_images") is None or task.get("train_boxes") is None:
            continue
        seen = f"{counted(task['train_images'], 'image')} with {counted(task['train_boxes'], 'box')}"
        kinds = (("old", task.get("hidden_boxes")), ("future", task.get("future_boxes")))
        hidden = [f"{counted(n, 'box')} of {kind} classes" for kind, n in kinds if n]
        other = f"; {' and '.join(hidden)} in them stayed hidden" if hidden else ""
        lines.append(f"Task {i} trained on {seen}{other}.")
        if also := beside(results, i - 1):
            lines.append(f"It also saw {also}.")
    return lines


def _facts(run: Mapping[str, Any], results: Results, versions: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("Versions", ", ".join(f"{k} {v}" for k, v in versions.items())),
        ("Seed", run.get("seed", results.get("seed"))),
        ("Commit", run.get("commit")),
        ("Machine", run.get("machine")),
    ]
    return [(k, str(v)) for k, v in facts if v not in (None, "")]


def _change_cells(change: Any) -> list[str]:
    if change is None:
        return ["–"] * 3
    delta = (
        "–"
        if change.loss is None
        else f"{-100 * change.loss:+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0").replace("-", "−")
    )
    return [percent(change.before), percent(change.after), delta]


def _bad(change: Any) -> bool:
    """Whether a class lost more than a quarter of its AP, which is highlighted."""
    return change.loss is not None and change.before > 0 and change.loss > 0.25 * change.before


def examples(folder: Path) -> list[tuple[int, list[Path]]]:
    """(task number from 1, its images) in the order of tasks."""
    found = []
    for path in folder.glob("task-*/examples"):
        number = re.fullmatch(r"task-(\d+)", path.parent.name)
        pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if number and pictures:
            found.append((int(number[1]), pictures[:_MOST_EXAMPLES]))
    return sorted(found)


def _data_urls(paths: list[Path]) -> list[tuple[str, str]]:
    """(name, image as a data: address)."""
    return [(p.stem, data_url(p)) for p in paths]


def data_url(path: Path) -> str:
    kind = "png" if path.suffix.lower() == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def svg(element: str) -> Any:
    """Marks a figure of ``plots`` as safe HTML: matplotlib has escaped its text."""
    from markupsafe import Markup

    return Markup(element)


def unbroken(sentence: str) -> str:
    """No line break between a number and its sign."""
    return sentence.replace(" %", "\u00a0%").replace(" → ", "\u00a0→\u00a0")


def _count(n: int | None) -> str:
    return "–" if n is None else f"{n:,}"


def environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("ciod", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
