"""``ciod train … --dry-run``: what a run would do, from the settings and the available data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciod.core.plural import counted
from ciod.methods import DEFAULT
from ciod.training import optim

if TYPE_CHECKING:
    from ciod.config.load import Run
    from ciod.data.scenarios.scenario import Scenario


@dataclass(frozen=True)
class Step:
    """One task of a plan; counts are None if the data is missing."""

    classes: tuple[str, ...]
    epochs: int | None  # None: they are chosen from the data, which is missing
    lr: float | None
    images: int | None = None
    boxes: int | None = None
    hidden: int | None = None
    test_images: int | None = None
    steps: int | None = None  # of the complete task
    warmup: int | None = None
    changes: tuple[tuple[int, int, float], ...] = ()  # epoch (from 1), step, learning rate from there on


def plan(settings: Run) -> list[Step]:
    """The tasks of a run. Nothing is written or trained; only the annotations of the data are read.

    Raises:
        CiodError: settings that do not fit the scenario.
    """
    return chosen(settings)[1]


def chosen(settings: Run) -> tuple[Run, list[Step], list[str]]:
    """The settings with what ``effort`` chooses, if the data is available; the tasks; the reasons for the choices."""
    from ciod.config.checks import data_folder, known_classes
    from ciod.core.distributed import World, pick_device
    from ciod.data.scenarios.scenario import Scenario, groups_of
    from ciod.runs import choices
    from ciod.runs.start import epochs_of, open_data

    folder = data_folder(settings.data or settings.protocol.data) or ""
    if folder != "shapes" and Path(folder).exists():
        scenario, lines = Scenario(settings.protocol, *open_data(settings)), []
        if choices.open_keys(settings):
            world = World(device=pick_device(settings.device))
            start = choices.start_of(settings, scenario.task(0).taught_classes)
            settings, lines = choices.complete(settings, scenario, world, start)
        return settings, [_counted(settings, scenario, i) for i in range(len(scenario))], lines
    unknown = choices.open_keys(settings)
    names = known_classes("shapes" if folder == "shapes" else settings.protocol.data)
    parts = groups_of(settings.protocol, names) if names else []
    groups = [tuple(n for g in parts for n in g)] if settings.protocol.joint and parts else parts
    epochs, lr = "train.epochs" not in unknown, "train.lr" not in unknown
    steps = [
        Step(g, epochs_of(settings, i, len(parts)) if epochs else None, _lr(settings, i) if lr else None)
        for i, g in enumerate(groups)
    ]
    return settings, steps, [_later(settings, unknown)] if unknown else []


def _later(settings: Run, keys: Sequence[str]) -> str:
    names = ", ".join(k.partition(".")[2] for k in keys)
    return f"effort={settings.effort} chooses when the data is available: {names}"


def _lr(settings: Run, task: int) -> float:
    return settings.train.lr_later if task and settings.train.lr_later else settings.train.lr


def _counted(settings: Run, scenario: Scenario, i: int) -> Step:
    from ciod.runs.start import epochs_of, steps_per_epoch

    task, t = scenario.task(i), settings.train
    epochs, lr = epochs_of(settings, i, len(scenario.parts)), _lr(settings, i)
    each = steps_per_epoch(settings, scenario, i)
    total = epochs * each
    changes = []
    if t.schedule == "step":
        rates = [optim.rate(step, total, t, lr) for step in range(total)]
        first = optim.warmup_steps(total, t)
        changes = [(s // each + 1, s, rates[s]) for s in range(max(1, first + 1), total) if rates[s] != rates[s - 1]]
    return Step(
        task.taught_classes,
        epochs,
        lr,
        len(task.train),
        len(task.train.labels),
        task.hidden_boxes,
        len(task.test),
        total,
        optim.warmup_steps(total, t),
        tuple(changes),
    )


def show(settings: Run, absent: list[str]) -> dict[str, Any]:
    """Prints the plan and what is missing for it, and returns it as JSON-ready values."""
    settings, steps, why = chosen(settings)
    _print(settings, steps, why, absent)
    return {"tasks": [asdict(step) for step in steps], "why": why, "missing": absent}


def _print(settings: Run, steps: list[Step], why: list[str], absent: list[str]) -> None:
    from rich import box
    from rich.table import Table

    from ciod.core.terminal import console as natural

    console, t, d = natural(), settings.train, settings.detector

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    method = str(settings.method.get("name", DEFAULT))
    size = f", {d.size} px" if d.size else ""
    say(f"{settings.protocol.name or settings.data}: {method} on {d.name}{size}, head={d.head}, seed {settings.seed}")
    for sentence in settings.protocol.sentences():
        say(f"- {sentence}")
    for i, step in enumerate(steps, 1):
        say(f"task {i}, {counted(len(step.classes), 'class')}: {', '.join(step.classes)}")
    columns = ("task", "images", "boxes", "hidden", "test", "epochs", "steps", "lr", "warm-up")
    table = Table(*columns, box=box.SIMPLE_HEAD)
    for i, step in enumerate(steps, 1):
        counts = (step.images, step.boxes, step.hidden, step.test_images)
        cells = [_number(n) for n in (*counts, step.epochs, step.steps)]
        cells.append("?" if step.lr is None else f"{step.lr:g}")
        table.add_row(str(i), *cells, f"≤ {t.warmup}" if step.warmup is None else str(step.warmup))
    console.print(table)
    for line in [*why, *_schedule(settings, steps), *_interim(settings, steps)]:
        say(line)
    batch = f"batch {t.batch} " if "batch" in t.model_fields_set else ""
    say(f"{batch}({t.optimizer}); nothing was trained and {settings.out} was not created")
    for sentence in absent:
        say(f"missing: {sentence}")


def _schedule(settings: Run, steps: list[Step]) -> list[str]:
    t = settings.train
    if t.schedule == "cosine":
        return ["schedule: cosine to 1 % of the learning rate"]
    return [f"task {i}: {_changes(settings, step)}" for i, step in enumerate(steps, 1)]


def _interim(settings: Run, steps: list[Step]) -> list[str]:
    from ciod import methods
    from ciod.runs import interim

    if len(steps) < 2 or not interim.wanted(methods.make(settings.method)):
        return []
    which = "task 2" if len(steps) == 2 else "each later task"
    return [f"before {which}, an interim model of its classes is trained for as many steps"]


def _changes(settings: Run, step: Step) -> str:
    t = settings.train
    if step.epochs is None or step.lr is None:
        return f"a tenth of the learning rate after {', '.join(f'{m:.0%}' for m in sorted(t.milestones))} of the steps"
    if step.steps is None:  # the steps are not known, the epochs are
        marks = [int(m * step.epochs + 1e-3) + 1 for m in sorted(t.milestones)]
        return ", ".join(f"lr {step.lr * 0.1 ** (k + 1):g} from epoch {epoch}" for k, epoch in enumerate(marks))
    if not step.changes:
        return "all of it is warm-up; lower train.warmup or train.warmup_share"
    return ", ".join(f"lr {rate:g} from epoch {epoch} (step {at:,})" for epoch, at, rate in step.changes)


def _number(n: int | None) -> str:
    return "?" if n is None else f"{n:,}"
