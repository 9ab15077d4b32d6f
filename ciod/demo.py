"""ciod demo

Trains on six shapes, then on four more: fine-tuning forgets, ilYOLOX does not, and joint training is the upper bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ciod.core import terminal
from ciod.core.errors import CiodError

METHODS = ("finetune", "ilyolox", "joint")
WHAT = {
    "finetune": "the lower bound: only the new classes' boxes, nothing against forgetting",
    "ilyolox": "the teacher's knowledge is re-sampled and distilled; no old data",
    "joint": "the upper bound: all boxes of all classes at once, in the epochs of both tasks together",
}

# Small enough for two cores and a few minutes; the same for every method.
SETTINGS: dict[str, Any] = {
    "scenario": "shapes-6+4",
    "detector.name": "yolox-pico",
    "detector.size": 128,
    "train.epochs": 10,
    "train.joint_epochs": 20,
    "train.batch": 8,
    "train.lr": 3e-3,
    "train.trunk_lr": 1.0,
    "train.ema": 0.998,
    "train.warmup": 50,
    "augment.flip": 0.5,
    "augment.mosaic": 0.0,
    "augment.scale": [0.9, 1.1],
    "augment.photometric": 0.0,
}
# New shapes look like old ones to the teacher (a ring is nearly a circle), so its boxes on real boxes are dropped.
METHOD_SETTINGS: dict[str, dict[str, Any]] = {"ilyolox": {"guard_iou": 0.5}}


def run(out: Path, *, seed: int = 0, device: str = "auto") -> dict[str, Path]:
    """Compares three methods below ``out`` and writes ``out/report.html``.

    Finished runs in ``out`` are kept and unfinished ones are resumed.

    Returns:
        Run folder of each method.

    Raises:
        CiodError: a run failed.
    """
    from ciod.comparison import outcome, plan, schedule
    from ciod.report.compared import comparison_table
    from ciod.report.page import read_results

    console = terminal.console()
    for method in METHODS:
        console.print(f"[bold]{method}[/bold]: {WHAT[method]}", soft_wrap=True)
    entries = [{"name": m, **METHOD_SETTINGS.get(m, {})} for m in METHODS]
    settings = {**SETTINGS, "device": device}
    made = plan.build(methods=entries, seeds=[seed], upper="final", out=out, settings=settings, command="ciod demo")

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    # Two at a time: a small network on one core each is twice as fast as on two cores together.
    failed = schedule.run(made.cells, jobs=2, logs=out / "logs", say=say)
    if failed:
        raise CiodError("demo: a run failed (see above). Repeat the command to resume.")
    outcome.write(made, failed, page="report.html")
    folders = {e.label: c.folder for e, _, c in plan.pairs(made)}
    console.print(comparison_table([(m, read_results(f)) for m, f in folders.items()]))
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
    return folders
