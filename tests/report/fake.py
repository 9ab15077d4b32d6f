"""Invented runs for the report's tests: any number of tasks and classes, gaps where asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

METRICS = ("AP", "AP50")


def results(
    split: tuple[int, ...] = (6, 4),
    *,
    names: list[str] | None = None,
    joint: bool = False,
    tasks: int | None = None,
    keep: float = 0.9,
    method: str = "ilyolox",
    nulls: tuple[str, ...] = (),
    seed: int = 0,
    warnings: tuple[str, ...] = (),
) -> dict[str, Any]:
    """``results.json`` of a run. ``keep``: what an old class keeps of its AP a task; ``nulls``: classes without AP."""
    rng = np.random.default_rng(seed)
    classes = names or [f"class {i}" for i in range(sum(split))]
    steps = [classes] if joint else [classes[sum(split[:i]) : sum(split[: i + 1])] for i in range(len(split))]
    rows: list[dict[str, float | None]] = []
    for new in steps[:tasks]:
        last = rows[-1] if rows else {}
        row = {n: v if v is None else v * min(1.2, keep + 0.1 * rng.standard_normal()) for n, v in last.items()}
        rows.append(row | {n: None if n in nulls else float(rng.uniform(0.35, 0.95)) for n in new})
    ap = {"AP50": rows, "AP": [{n: v if v is None else 0.6 * v for n, v in r.items()} for r in rows]}
    done = [_task(i, steps, ap) for i in range(len(rows))]
    one: dict[str, float | None] = {
        "omega": 0.93,
        "abs_gap": 0.04,
        "rel_gap": 0.08,
        "forgetting": 0.06,
        "retention": keep,
    }
    if len(rows) < 2:
        one = dict.fromkeys(one)
    return {
        "format": 1,
        "scenario": {
            "name": "shapes-" + "+".join(map(str, split)),
            "classes": classes,
            "split": list(split),
            "order": "alphabetical",
            "images": "any-new",
            "boxes": "new",
            "eval_images": "all",
            "joint": joint,
            "metric": "coco",
            "data": "built-in",
            "protocol": [
                "Training images: every one with an object of a new class.",
                "Only boxes of new classes are shown.",
            ],
        },
        "detector": {"name": "yolox-nano", "head": "grow"},
        "method": {"name": method, "settings": {"temperature": 1.0}},
        "seed": seed,
        "tasks": done,
        "ap": ap,
        "continual": {m: dict(one) for m in METRICS},
        "warnings": list(warnings),
    }


def _task(i: int, steps: list[list[str]], ap: dict[str, list[dict[str, float | None]]]) -> dict[str, Any]:
    old = [n for names in steps[:i] for n in names]

    def scores(names: list[str]) -> dict[str, float | None] | None:
        if not names:
            return None
        known = {m: [ap[m][i][n] for n in names if ap[m][i][n] is not None] for m in METRICS}
        return {m: float(np.mean(v)) if v else None for m, v in known.items()}

    everything = scores(old + steps[i]) or {}
    return {
        "index": i,
        "new_classes": steps[i],
        "old_classes": old,
        "train_images": 312,
        "train_boxes": 900,
        "test_images": 120,
        "hidden_boxes": 44 * i,
        "future_boxes": 5,
        "epochs": 12,
        "steps": 480,
        "seconds": 83.0,
        "peak_memory_mb": 812.4,
        "old": scores(old),
        "new": scores(steps[i]),
        "all": everything | {"AP75": 0.3, "APs": None, "APm": 0.2, "APl": 0.5},
    }


def metrics(tasks: int = 2, steps: int = 60) -> list[dict[str, Any]]:
    """Step and epoch lines; distillation losses from the second task on; one loss is null once."""
    lines: list[dict[str, Any]] = []
    rng = np.random.default_rng(0)
    for task in range(tasks):
        for step in range(steps):
            fall = math.exp(-3 * step / steps) + 0.05 * rng.random()
            losses: dict[str, Any] = {"cls": 2 * fall, "box": 3 * fall, "obj": 1.5 * fall if step != 3 else None}
            if task:
                losses |= {"distill_cls": 0.4 * fall, "distill_box": 0.2 * fall}
            lines.append(
                {"kind": "step", "task": task, "epoch": step // 10, "step": step, "losses": losses, "lr": 0.01}
            )
        lines.append({"kind": "epoch", "task": task, "epoch": 0, "AP": None, "AP50": None, "seconds": 3.0})
    return lines


RUN = {
    "scenario": {"name": "shapes-6+4"},
    "optim": {"lr": 0.01, "epochs": 12},
    "versions": {"ciod": "0.1.0", "torch": "2.6.0", "python": "3.12.1"},
    "command": "ciod train scenario=shapes-6+4 method=ilyolox 'name=a & b'",
    "commit": None,
    "machine": "2 cores, no GPU",
    "seed": 0,
}


def write_run(folder: Path, found: dict[str, Any], lines: list[dict[str, Any]] | None = None) -> Path:
    """A run folder of these results and metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(found), encoding="utf-8")
    text = "".join(json.dumps(m) + "\n" for m in (metrics(len(found["tasks"])) if lines is None else lines))
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder


def extension() -> dict[str, Any]:
    """``results.json`` of an extension without old pictures."""
    content = results((2, 1))
    names = content["scenario"]["classes"]
    for task in content["tasks"]:
        task |= {"old": None, "all": {"AP": None, "AP50": None}}
    content["tasks"][0]["new"] = None
    content["ap"] = {m: [dict.fromkeys(names[:2]), {**dict.fromkeys(names[:2]), names[2]: 0.5}] for m in ("AP", "AP50")}
    content["continual"] = {}
    rows = [{"class": n, "before": 4, "after": 3 + i, "kept": 0.875 + i / 8} for i, n in enumerate(names[:2])]
    found = {"class": names[0], "boxes": 3, "images": 2, "doubtful": 1, "threshold": 0.4}
    content["extension"] = {
        "retention": {"kind": "agreement", "value": 0.9375, "rows": rows, "images": 7},
        "found": {"total": 3, "classes": [found]},
        "plan": {"why": ["batch 8, for 2 CPU cores"]},
        "cost": "+1,000 parameters",
        "tradeoff": [{"share": 0.5, "kept": 0.9, "learnt": None}],
        "false_alarms": {
            "score": 0.3,
            "allowed": 0.05,
            "measured": True,
            "sources": [{"source": "old_data", "images": 40, "classes": {names[2]: 0.125}}],
            "thresholds": {names[2]: 0.41},
            "together": {"AP": 0.3, "AP50": 0.45},
        },
        "confusion": [{"class": names[2], "objects": 9, "found": 5, "taken": {names[0]: 3}, "beside": {}}],
    }
    return content
