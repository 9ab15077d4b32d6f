"""ciod demo

Learn six shapes, then four more: fine-tuning forgets, ilYOLOX does not, joint training shows what is possible.
"""

from __future__ import annotations

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
    "detector.name": "yolox-pico",
    "detector.size": 128,
    "train.epochs": [8, 5],  # from scratch, then from a trained detector; joint training has 13
    "train.batch": 8,
    "train.lr": 3e-3,
    "train.warmup": 50,
    "augment.scale": [0.9, 1.1],
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
        words = {**SETTINGS, "seed": seed, "device": device, "method.name": method, "out": str(folder)}
        if method == "ilyolox":  # without old classes every method trains the first task alike
            words["first"] = str(folders["finetune"])
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
