"""Going on where an earlier process stopped, or where another run's first task ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciod.detectors import weights
from ciod.engine import checkpoint, machine
from ciod.errors import CiodError
from ciod.report.log import METRICS, atomic_write, read_metrics

if TYPE_CHECKING:
    from ciod.config import Run
    from ciod.data.extra import Extra
    from ciod.data.scenario import Scenario
    from ciod.detectors.detector import Detector
    from ciod.engine.distributed import World
    from ciod.engine.progress import Reporter
    from ciod.methods.method import Method


def earlier(settings: Run, world: World) -> dict[str, Any] | None:
    """State of an earlier process in this folder, if the settings allow to go on with it."""
    out = Path(settings.out)
    path = out / "last" / "state.pt"
    state = checkpoint.load_state(path)
    if state is None:
        if (out / "results.json").exists():
            raise CiodError(f"out: {out} holds a run without its last/ folder; choose another out=.")
        return take_over(settings, world)
    if settings.resume == "never":
        raise CiodError(f"out: {out} already holds a run; choose another out=, or resume=auto to go on with it.")
    differ = machine.differences(machine.fingerprint(settings), state["settings"])
    if differ:
        raise CiodError(f"out: {out} holds a run with other settings ({differ}). Choose another out=.")
    return state


def take_over(settings: Run, world: World) -> dict[str, Any] | None:
    """The state after another run's first task (``first=``), put into this run's folder."""
    if not settings.first:
        return None
    source, out = Path(settings.first), Path(settings.out)
    theirs = checkpoint.load_state(source / "last" / "state.pt")
    if theirs is None or theirs["task"] < 1:
        raise CiodError(f"first: {source} has not finished its first task.")
    mine = machine.fingerprint(settings)
    differ = machine.differences(machine.first_task(mine), machine.first_task(theirs["settings"]))
    if differ:
        raise CiodError(
            f"first: {source} was trained with other settings ({differ}); only method, memory and pool may differ, "
            "and what later tasks alone depend on."
        )
    results = json.loads((source / "results.json").read_text(encoding="utf-8"))
    results["tasks"], results["continual"] = results["tasks"][:1], {}
    results["ap"] = {m: rows[:1] for m, rows in results["ap"].items()}
    state = {"task": 1, "seconds": 0.0, "settings": mine, "results": results, "warnings": theirs["warnings"]}
    if world.main:
        shutil.copytree(source / "task-1", out / "task-1", dirs_exist_ok=True)
        logged = [m for m in read_metrics(source) if m.get("task") == 0]
        atomic_write(out / METRICS, "".join(json.dumps(m) + "\n" for m in logged))
        checkpoint.save_state(out / "last" / "state.pt", state)
    world.barrier()
    return state


def restore(
    saved: dict[str, Any], settings: Run, world: World, scenario: Scenario, detector: Detector, reporter: Reporter
) -> int:
    """Brings the detector and the log to where the saved state is. Returns the task to go on with."""
    out, task = Path(settings.out), saved["task"]
    machine.trim_log(out, task, saved["fit"]["epoch"] if "fit" in saved else 0, world.main)
    if task == 0:
        return 0
    if task >= len(scenario):
        reporter.say(f"{out} is finished; nothing is left to train.")
        return task
    model = weights.load(out / f"task-{task}" / "model.safetensors")
    if settings.detector.head == "grow":
        weights.regrow(detector, model.class_names, model.growth)
    detector.load_state_dict(model.state_dict())
    detector.lineage = model.lineage
    reporter.say(f"going on with task {task + 1} of {len(scenario)} in {out}")
    return task


def recall(saved: dict[str, Any], method: Method, scenario: Scenario, extra: Extra, world: World) -> None:
    """Gives method and memory back what they knew after the finished tasks.

    Of a first task that another run trained (``first=``) they know nothing: it is ended for them here, on the restored
    detector, which the method was attached to before.
    """
    extra.load_state(saved.get("memory", {}))
    if "fit" in saved:
        method.load_state(saved["fit"]["method"])
    elif "method" in saved:
        method.load_state(saved["method"])
    elif saved["task"] == 1:
        method.end_task(scenario.task(0))
        extra.update(0, method.detector, world)
