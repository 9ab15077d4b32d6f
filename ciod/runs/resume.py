"""Resuming where an earlier process stopped, or after the first task of another run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ciod import methods
from ciod.config import outputs
from ciod.core.errors import CiodError
from ciod.core.files import exists
from ciod.core.reading import Unreadable, read_yaml
from ciod.core.run_log import METRICS, atomic_write, read_metrics
from ciod.detectors.files import model_file, weights
from ciod.detectors.onnx import file as onnx_file
from ciod.methods.base import first_task
from ciod.methods.base.method import Method
from ciod.report import results_file
from ciod.runs import choices, environment, fingerprints, state_shape
from ciod.training import checkpoint

if TYPE_CHECKING:
    from ciod.config.load import Run
    from ciod.core.distributed import World
    from ciod.data.scenarios.scenario import Scenario
    from ciod.detectors.base import Detector
    from ciod.memory.rehearsal import Extra
    from ciod.training.progress import Reporter

FORMAT = 2  # of the state
ModelOf = Callable[[Path, "dict[str, Any]"], "Path | None"]
Compared = Callable[["dict[str, Any]"], "tuple[dict[str, Any], dict[str, Any]]"]


class Resumable(Protocol):
    """Settings of a command that can be resumed."""

    out: str
    resume: Literal["auto", "never"]
    allow: list[Literal["data", "code", "settings"]]


def task_model(out: Path, state: dict[str, Any]) -> Path | None:
    """The model of the last finished task, which belongs to the state; None before the first."""
    return out / f"task-{state['task']}" / "model.safetensors" if state.get("task") else None


@dataclass(frozen=True)
class Beginning:
    """What a run starts with."""

    settings: Run
    """With the choices for the run, or for the first task that it takes over, unless they are set by hand."""
    state: dict[str, Any] | None
    """The state of an earlier process in the run's folder."""
    notes: list[str]
    first_epochs: int | None = None
    """The choices for the first task that is taken over."""


def beginning(settings: Run) -> Beginning:
    """Reads the state in the run's folder, or of the run whose first task is taken over (``first=``).

    Raises:
        CiodError: see ``saved_state``.
    """
    state, notes = saved_state(settings, partial(choices.compared, settings), "train")
    if state is not None:
        return Beginning(choices.adopt(settings, state), state, notes)
    theirs = intact_state(Path(settings.first))[0] if settings.first else None
    if theirs is None or command_of(theirs) != "train":
        return Beginning(settings, None, [])  # take_over reports the problem
    epochs = choices.chosen_in(theirs).get("train.epochs")
    return Beginning(
        choices.adopt(settings, theirs, first_task=True), None, [], epochs[0] if isinstance(epochs, list) else epochs
    )


def saved_state(
    settings: Resumable, compared: Compared, command: str, *, model_of: ModelOf = task_model
) -> tuple[dict[str, Any] | None, list[str]]:
    """State of an earlier process in this folder, if the settings allow resuming it, and the problems of newer states.

    Args:
        compared: returns the present fingerprint of the settings and that of the state.
        command: the command of ciod that must have written the state.
        model_of: returns the model that belongs to a state.

    Raises:
        CiodError: the folder holds a run that cannot be resumed; says why.
    """
    out = Path(settings.out)
    state, damaged = intact_state(out, command, model_of)
    if state is None:
        if damaged:
            raise CiodError(f"{' '.join(damaged)} No intact checkpoint is left: choose another out=, or remove {out}.")
        if (out / "results.json").exists():
            raise CiodError(f"out: {out} holds a run without its last/ folder; choose another out=.")
        if outputs.of_comparison(out):
            raise CiodError(f"out: {out} holds a comparison (ciod compare), no single run; choose another out=.")
        if name := _foreign(out):
            raise CiodError(f"out: {out} holds {name}, but no run that can be resumed; choose another out=.")
        return None, []
    if settings.resume == "never":
        raise CiodError(f"out: {out} already holds a run; choose another out=, or resume=auto to resume it.")
    theirs = command_of(state)
    if theirs != command:
        raise CiodError(f"out: {out} holds a run of ciod {theirs}; choose another out=.")
    if state.get("format") != FORMAT:
        raise CiodError(f"out: {out} holds a run of another version of ciod; choose another out=.")
    differ = environment.differences(*compared(state))
    notes = [f"{sentence} The checkpoint before it was used." for sentence in damaged]
    if differ:
        notes += _refuse(settings, "settings", f"out: {out} holds a run with other settings", differ)
    return state, notes


def command_of(state: dict[str, Any]) -> str:
    """The command of ciod that wrote a state. Before format 2, ``extend`` kept its settings under its name."""
    return state.get("command") or ("extend" if "extend" in state else "train")


def intact_state(
    out: Path, command: str = "train", model_of: ModelOf = task_model
) -> tuple[dict[str, Any] | None, list[str]]:
    """The newest state whose checksum and model's checksum are right, and a sentence for each newer state. Models of
    other commands are not checked."""
    damaged = []
    for path, state in checkpoint.states(out / "last"):
        if isinstance(state, checkpoint.Damaged):
            damaged.append(str(state))
            continue
        try:
            if command_of(state) == command and state.get("format") == FORMAT:
                if wrong := state_shape.fault(state, command):
                    raise CiodError(f"{path} is not the state of a run: {wrong}.")
                if model := model_of(out, state):
                    _check_model(model)
        except CiodError as e:
            damaged.append(str(e))
            continue
        return state, damaged
    return None, damaged


def _check_model(path: Path) -> None:
    """Raises CiodError if a model file is damaged."""
    if path.suffix == ".onnx":
        onnx_file.parse(path, onnx_file.contents(path))
    else:
        model_file.read(path)


def check_identity(
    saved: Mapping[str, Any], settings: Resumable, mine: Mapping[str, Any], images: fingerprints.Listing, tasks: int
) -> list[str]:
    """Compares data and code of a saved state with the present ones. Returns notes about permitted differences.

    Args:
        mine: present fingerprints; ``model`` is that of a model file, which counts as data.
        tasks: number of tasks of a finished run, for which code no longer matters.

    Raises:
        CiodError: says exactly what differs.
    """
    out, theirs, notes = Path(settings.out), saved["identity"], []
    holds = f"out: {out} holds a run with other"
    differ = fingerprints.data_differences(out / "last", theirs["data"], mine["data"], images)
    if theirs.get("model") != mine.get("model"):
        differ.append(f"the model {mine['model']['name']} has other content")
    if differ:
        notes += _refuse(settings, "data", f"{holds} data", "; ".join(differ))
    if saved["task"] < tasks and theirs["code"] != mine["code"]:  # a finished run is not computed again
        differ = "; ".join(fingerprints.code_differences(theirs["code"], mine["code"]))
        notes += _refuse(settings, "code", f"{holds} code", differ)
    return notes


def _refuse(settings: Resumable, what: Any, holds: str, differ: str) -> list[str]:
    if what not in settings.allow:
        raise CiodError(f"{holds} ({differ}). Choose another out=, or allow it with allow={what}.")
    return [f"Resumed with different {what} ({differ})."]


def check_first_task(settings: Run) -> None:
    """Raises CiodError if ``first=`` is given to a method that needs a first task of its own."""
    if not settings.first:
        return
    method, name = methods.make(settings.method), settings.method.get("name", methods.DEFAULT)
    reason = first_task.why(method)
    if reason is None:
        return
    if type(method).needs_first_task is not Method.needs_first_task:
        raise CiodError(f"first: {name} needs a first task of its own with these settings; leave first= out.")
    raise CiodError(
        f"first: {settings.first} was trained without {name}, though {reason}. Leave first= out, or write "
        "needs_first_task: ClassVar[bool] = False in its class if any first task can be used."
    )


def take_over(settings: Run, world: World, chosen: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """The state after another run's first task (``first=``), put into this run's folder.

    Args:
        chosen: the settings that are not set by hand, by full key.
    """
    if not settings.first:
        return None
    source, out = Path(settings.first), Path(settings.out)
    theirs, damaged = intact_state(source)
    if theirs is None or command_of(theirs) != "train" or theirs["task"] < 1 or theirs.get("format") != FORMAT:
        raise CiodError(f"first: {source} has not finished its first task.{''.join(f' {d}' for d in damaged)}")
    mine = environment.fingerprint(settings)
    differ = environment.differences(environment.first_task(mine), environment.first_task(theirs["settings"]))
    if differ:
        raise CiodError(
            f"first: {source} was trained with other settings ({differ}); only method, memory, pool, and "
            "settings of later tasks may differ."
        )
    results = results_file.read(source / results_file.NAME, needs=results_file.Finished)
    results["tasks"], results["continual"] = results["tasks"][:1], {}
    results["ap"] = {m: rows[:1] for m, rows in results["ap"].items()}
    results["warnings"] = results["tasks"][0].get("warnings", [])
    own = fingerprints.of_code(str(settings.method.get("name", methods.DEFAULT)))["method"]
    state = {
        "format": FORMAT,
        "task": 1,
        "seconds": 0.0,
        "settings": mine,
        "effort": settings.effort,
        "chosen": dict(chosen or {}),
        "identity": {**theirs["identity"], "code": {**theirs["identity"]["code"], "method": own}},
        "results": results,
        "warnings": results["warnings"],
    }
    if world.main:
        shutil.copytree(source / "task-1", out / "task-1", dirs_exist_ok=True)
        logged = [m for m in read_metrics(source) if m.get("task") == 0]
        atomic_write(out / METRICS, "".join(json.dumps(m) + "\n" for m in logged))
        checkpoint.save_state(out / "last" / checkpoint.NEWEST, state)
    world.barrier()
    return state


def restore(
    saved: Mapping[str, Any], settings: Run, world: World, scenario: Scenario, detector: Detector, reporter: Reporter
) -> int:
    """Brings the detector and the log to the saved state. Returns the task to resume at."""
    out, task = Path(settings.out), saved["task"]
    if world.main:
        environment.trim_log(out, task, saved.get("fit"))
    if task >= len(scenario):
        reporter.say(f"{out} is finished; nothing is left to train.")
        return task
    if task:
        model = weights.load(out / f"task-{task}" / "model.safetensors")
        full = settings.detector.head == "full"
        wanted = scenario.classes if full else tuple(n for g in scenario.groups[:task] for n in g)
        if model.class_names != wanted:
            raise CiodError(
                f"{out / f'task-{task}'} has the classes {', '.join(model.class_names)}, but the scenario has "
                f"{', '.join(wanted)} up to this task. Class names and their order must be equal."
            )
        if not full:
            weights.regrow(detector, model.class_names, model.growth)
        detector.load_state_dict(model.state_dict())
        detector.lineage = model.lineage
    where = f", step {saved['fit']['done'] + 1}" if "fit" in saved else ""
    reporter.say(f"resuming at task {task + 1} of {len(scenario)}{where} in {out}")
    return task


def restore_method(saved: Mapping[str, Any], method: Method, scenario: Scenario, extra: Extra, world: World) -> None:
    """Restores the state of method and memory after the finished tasks.

    They have no state after a first task that another run trained (``first=``): then ``end_task`` and ``update`` are
    called here, on the restored detector, to which the method was attached before.
    """
    extra.load_state(saved.get("memory", {}))
    if "fit" in saved and "method" not in saved:  # not while an interim model was trained, which has another method
        method.load_state(saved["fit"]["method"])
    elif "method" in saved:
        method.load_state(saved["method"])
    elif saved["task"] == 1:
        method.end_task(scenario.task(0))
        extra.update(0, method.detector, world)


def _foreign(out: Path) -> str | None:
    """A file that a run would overwrite, if no run of ciod started here (a run first writes run.yaml)."""
    try:
        content = read_yaml(out / "run.yaml")
    except Unreadable:
        content = None
    names = ("run.yaml", METRICS, "report.html", "task-1/model.safetensors")
    if isinstance(content, dict) and "versions" in content:
        return None
    return next((name for name in names if exists(out / name)), None)
