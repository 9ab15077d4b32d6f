"""ciod demo

Learn six shapes, then four more: fine-tuning forgets, ilYOLOX does not, joint training shows what is possible.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from ciod.errors import CiodError

# Two lanes run side by side: a small network on one core each is twice as fast as on two cores together.
LANES = (("finetune",), ("joint", "ilyolox"))
METHODS = ("finetune", "ilyolox", "joint")
WHAT = {
    "finetune": "the lower bound: only the new classes' boxes, nothing against forgetting",
    "ilyolox": "the teacher's knowledge is re-sampled and distilled; no old data",
    "joint": "the upper bound: all boxes of all classes at once, in as many epochs as a task has",
}

# Small enough for two cores and a few minutes; the same for every method.
SETTINGS: dict[str, Any] = {
    "scenario": "shapes-6+4",
    "detector.name": "yolox-pico",
    "detector.size": 128,
    "train.epochs": 8,
    "train.batch": 8,
    "train.lr": 3e-3,
    "train.warmup": 50,
    "augment.scale": [0.9, 1.1],
    "augment.photometric": 0.0,
}
# New shapes look like old ones to the teacher (a ring is nearly a circle): its boxes on real ones are dropped.
METHOD_SETTINGS: dict[str, dict[str, Any]] = {"ilyolox": {"method.guard_iou": 0.5, "method.nms_iou": 0.65}}


def run(out: Path, *, seed: int = 0, device: str = "auto") -> dict[str, Path]:
    """Trains three methods below ``out`` and writes ``out/report.html``, which compares them.

    Finished runs in ``out`` are kept and unfinished ones go on.

    Returns:
        Run folder of each method.

    Raises:
        CiodError: a lane failed; its own message has been printed.
    """
    from ciod.data.shapes import write_shapes
    from ciod.engine.start import SHAPES
    from ciod.report.page import read_results, write_comparison
    from ciod.report.summary import comparison_table

    console = Console(highlight=False)
    for method in METHODS:
        console.print(f"[bold]{method}[/bold]: {WHAT[method]}", soft_wrap=True)
    write_shapes(out.resolve() / "shapes-data", **SHAPES)
    _side_by_side([[str(out), str(seed), device, *lane] for lane in LANES], console)
    folders = {m: out / m for m in METHODS}
    console.print(comparison_table([(m, read_results(f)) for m, f in folders.items()]))
    page = write_comparison(folders, out / "report.html")
    console.print(f"report: {page}", soft_wrap=True)
    return folders


def _side_by_side(lanes: list[list[str]], console: Console) -> None:
    """Runs lanes as processes that share the cores, and prints their lines as they come."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // len(lanes))), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "ciod.demo"]
    running = [
        subprocess.Popen([*command, *lane], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for lane in lanes
    ]

    def follow(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            console.print(line.rstrip(), markup=False, soft_wrap=True)

    threads = [threading.Thread(target=follow, args=(p,), daemon=True) for p in running]
    for t in threads:
        t.start()
    try:
        while any(p.poll() is None for p in running):
            if any(p.poll() for p in running):  # one failed: the others would wait for it
                break
            time.sleep(0.2)
    finally:
        for p in running:
            if p.poll() is None:
                p.terminate()
            p.wait()
        for t in threads:
            t.join()
    if any(p.returncode for p in running):
        raise CiodError("demo: a run stopped; its message is above. The same command goes on with it.")


def lane(out: Path, seed: int, device: str, methods: list[str]) -> None:
    """Trains ``methods`` one after another; prints a line now and then, and each result."""
    from ciod import config
    from ciod.engine import run as engine
    from ciod.engine.progress import Reporter

    for method in methods:
        words = {**SETTINGS, **METHOD_SETTINGS.get(method, {}), "seed": seed, "device": device}
        words |= {"method.name": method, "out": str(out / method)}
        if method == "ilyolox" and not (out / method).exists():
            words["first"] = str(out / "finetune")  # without old classes every method trains the first task alike
            _wait_for_first_task(out / "finetune")
        reporter = Reporter(console=Console(highlight=False, width=1000, force_terminal=False), prefix=f"{method}: ")
        engine.train(config.load(None, words), command=f"ciod demo (method {method})", reporter=reporter)


def _wait_for_first_task(folder: Path) -> None:
    """Until the other lane has saved the end of its first task."""
    from ciod.engine import checkpoint

    while (checkpoint.load_state(folder / "last" / "state.pt") or {"task": 0})["task"] < 1:
        time.sleep(0.5)


if __name__ == "__main__":
    try:
        lane(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
    except CiodError as e:
        sys.exit(f"ciod: {e}")
    except KeyboardInterrupt:
        sys.exit(130)
