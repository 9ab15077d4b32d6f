"""ciod demo

Learn six shapes, then four more: fine-tuning forgets, ilYOLOX does not, joint training shows what is possible.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from ciod import config
from ciod.engine import run as engine
from ciod.engine.progress import Reporter

METHODS = ("finetune", "ilyolox", "joint")

# Small enough for two cores and a few minutes; every method has the same settings.
SETTINGS: dict[str, Any] = {
    "scenario": "shapes-6+4",
    "detector.name": "yolox-nano",
    "detector.size": 128,
    "train.epochs": 12,
    "train.batch": 16,
    "train.lr": 2e-3,
    "train.warmup": 50,
    "augment.scale": [0.8, 1.2],
    "augment.photometric": 0.0,
}


def run(out: Path, *, seed: int = 0, device: str = "auto") -> dict[str, Path]:
    """Trains the three methods below ``out`` and writes ``out/report.html``, which compares them.

    Finished runs in ``out`` are kept and unfinished ones go on.

    Returns:
        Run folder of each method.
    """
    from ciod.report.page import read_results, write_comparison
    from ciod.report.summary import comparison_table

    console = Console(highlight=False)
    folders = {m: out / m for m in METHODS}
    for method, folder in folders.items():
        console.print(f"[bold]{method}[/bold] — {WHAT[method]}")
        if method == "ilyolox":
            share_first_task(folders["finetune"], folder)
        words = {**SETTINGS, "seed": seed, "device": device, "method.name": method, "out": str(folder)}
        settings = config.load(None, words)
        engine.train(settings, command=f"ciod demo (method {method})", reporter=Reporter(console=console))
    runs = [(m, read_results(f)) for m, f in folders.items()]
    console.print(comparison_table(runs))
    page = write_comparison(folders, out / "report.html")
    console.print(f"report: {page}", soft_wrap=True)
    return folders


WHAT = {
    "finetune": "the lower bound: only the new classes' boxes, nothing against forgetting",
    "ilyolox": "the teacher's knowledge is re-sampled and distilled; no old data",
    "joint": "the upper bound: all boxes of all classes at once",
}


def share_first_task(source: Path, folder: Path) -> None:
    """Starts ``folder`` from the end of ``source``'s first task: without old classes every method trains alike."""
    from ciod.engine import checkpoint
    from ciod.report.log import write_json

    state = checkpoint.load_state(source / "last" / "state.pt")
    if folder.exists() or state is None or state["task"] < 1:
        return
    results = json.loads((source / "results.json").read_text(encoding="utf-8"))
    results["method"] = {"name": "ilyolox", "settings": {}}
    results["tasks"] = results["tasks"][:1]
    results["ap"] = {m: rows[:1] for m, rows in results["ap"].items()}
    shutil.copytree(source / "task-1", folder / "task-1")
    settings = {**state["settings"], "method.name": "ilyolox"}
    first = {"task": 1, "seconds": 0.0, "settings": settings, "results": results, "warnings": state["warnings"]}
    checkpoint.save_state(folder / "last" / "state.pt", first)
    write_json(folder / "results.json", results)
    metrics = [m for m in (source / "metrics.jsonl").read_text().splitlines() if json.loads(m).get("task") == 0]
    (folder / "metrics.jsonl").write_text("".join(m + "\n" for m in metrics))
