"""One task from start to end: teacher, growth, student, data, training. Runs and extensions both train with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ciod.core.results_schema import FitState, TaskState
from ciod.data.augment import TrainTransform
from ciod.data.image_cache import presize_hint
from ciod.data.loader import train_loader
from ciod.data.views import Schedule, ViewLoader
from ciod.detectors.files import transfer
from ciod.detectors.packing import Packer
from ciod.training import checkpoint, keep, speed, watch
from ciod.training.hooks import Hooks
from ciod.training.loop import Fit, FitResult
from ciod.training.offline_labels import with_offline_labels
from ciod.training.progress import LogLosses, ShowProgress
from ciod.training.sync_norm import synchronise

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ciod.config.settings import Train
    from ciod.core.distributed import World
    from ciod.core.run_log import RunLog
    from ciod.data.augment import Augment
    from ciod.data.mixture import Mixture
    from ciod.data.scenarios.scenario import Task
    from ciod.detectors.base import Detector
    from ciod.detectors.teacher import Teacher
    from ciod.methods.base.method import Method
    from ciod.training.progress import Reporter, Warnings


@dataclass(frozen=True, kw_only=True)
class TaskInputs:
    """The inputs of the training of a task."""

    task: Task
    tasks: int
    """Number of tasks of the run."""
    detector: Detector
    """The detector after the previous task, on its device; it grows and is trained in place."""
    before: Detector | None
    """The detector that the teacher copies: that after the previous task. None: there is none, or no teacher is
    used."""
    method: Method
    new: Sequence[str] | None
    """Classes that get their rows now; None: the detector has them already (``detector.head=full``)."""
    taught: Sequence[str] = ()
    """Known classes that the task teaches further."""
    donor: Detector | None = None
    """A detector whose class rows the new classes take by name."""
    growth_seed: int
    """New rows are drawn from it, so that every rank and a resumed run draw the same."""
    start_seed: int | None = None
    """Seed of PyTorch's generators at the first step; None: all generators are seeded from seed, task and rank."""
    mixture: Callable[[Detector], Mixture | None] = field(default=lambda detector: None)
    """Returns the images that are mixed into the task's, for the grown detector."""

    train: Train
    augment: Augment
    epochs: int
    batch: int
    lr: float
    seed: int
    workers: int
    packer: Packer | None = None
    """What computes the maps that the detector takes in place of images; None: it takes images."""
    views: int = 0
    """With a packer: views per image whose maps are kept; 0: every epoch has new views."""

    score: keep.Score | None = None
    """With ``train.best``: the score by which an epoch is chosen."""

    world: World
    reporter: Reporter
    warnings: Warnings
    log: RunLog | None
    """None on all ranks but the first."""
    bad_batch: Path | None = None
    """Folder for the batch of a step whose numbers are not finite."""
    hint: bool = False
    """Whether ``train.presize`` is recommended where it would help."""
    before_fit: Callable[[DataLoader], None] | None = None
    """Called when everything is ready, unless the task is resumed."""
    title: str = ""
    """Title of its progress; "": the number of the task."""


@dataclass(frozen=True)
class TaskResult:
    """A trained task. The detector holds the new weights."""

    fit: FitResult
    teacher: Teacher | None
    seconds: float  # of training, in all consecutive processes that worked on it


def train_task(
    *,
    inputs: TaskInputs,
    save: Callable[[TaskState], None],
    saved: TaskState | None = None,
    hooks: Sequence[Hooks] = (),
) -> TaskResult:
    """Trains a task, or the rest of it.

    Args:
        save: called on every rank with the state to resume from.
        saved: the state of an earlier process; ``inputs.detector`` must still be as before the task.
        hooks: called after those of log and progress.

    Raises:
        CiodError: an error that the user can fix, such as losses that are not finite.
        KeyboardInterrupt, RunAgain: a signal asked for it; the state is saved.
    """
    i, keeper = _held_out(inputs)
    teacher = None
    if i.before is not None and i.method.uses_teacher:
        teacher = speed.make_teacher(i.before, i.train, student=i.detector)
    _grow(i)
    i.method.attach(i.detector, i.detector, teacher)
    i.method.begin_task(i.task)
    # after begin_task, which may freeze parts
    student = speed.student(i.detector, i.train, i.world)
    i.method.attach(student if teacher is None else teacher.beside(student), i.detector, teacher)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    _seed(i)  # random numbers before the first step are the same in a resumed run
    loader = _loader(i)
    if saved:
        done = saved["fit"]["done"]
        checkpoint.restore_random(saved["random"], i.world.rank, seed=i.seed, task=i.task.index, done=done)
    elif i.before_fit is not None:
        i.before_fit(loader)
    before = saved["seconds"] if saved else 0.0
    fit = _fit(i, loader, save, before, hooks, keeper)
    with speed.shared(i.detector, None if i.method.exact_teacher else teacher, i.train):
        result = fit.run(saved["fit"] if saved else None)
    if result.kept is not None:
        i.reporter.say(f"  {keep.sentence(result.kept)}")
    i.method.end_task(i.task)
    return TaskResult(result, teacher, before + result.seconds)


def _held_out(i: TaskInputs) -> tuple[TaskInputs, keep.Keeper | None]:
    """With ``train.best``: the task without the held-out pictures that choose an epoch; neither losses nor method see
    them."""
    if i.train.best is None or i.score is None:
        return i, None
    task, held = keep.cut(i.task, i.train.best, i.seed)
    return replace(i, task=task), keep.Keeper(i.score, held, i.train.patience)


def _grow(i: TaskInputs) -> None:
    if i.new is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(i.growth_seed)
            if i.taught:
                i.method.grow(i.detector, i.new, i.taught)
            else:
                i.method.grow(i.detector, i.new)
        i.detector.to(i.world.device)
        if i.train.sync_norm and i.world.size > 1:
            synchronise(i.detector)  # its new layers
    taken = {} if i.donor is None else transfer.take_class_rows(i.detector, i.donor)
    if taken:
        named = [n if n == theirs else f"{n} ({theirs})" for n, theirs in taken.items()]
        i.reporter.say(f"weights: class rows taken by name: {', '.join(named)}")


def _seed(i: TaskInputs) -> None:
    """Seeds every generator of this rank, for a new task."""
    checkpoint.seed_all(i.seed, i.task.index, i.world.rank, 0)
    if i.start_seed is not None:
        torch.manual_seed(i.start_seed + i.world.rank)


def _loader(i: TaskInputs) -> DataLoader:
    transform = TrainTransform(i.augment, *(getattr(i.detector.input, k) for k in ("size", "fill", "place")))
    cache, presize = i.train.picture_cache, i.train.presize
    if i.hint and (line := presize_hint(i.task.train, transform, presize=presize, cache=cache)):
        i.reporter.say(line)
    mixture = i.mixture(i.detector)
    index, mixture, warnings = with_offline_labels(
        i.task.train, mixture, i.method, workers=i.workers, reporter=i.reporter
    )
    i.warnings.add(*warnings)
    loader = train_loader(
        index,
        transform,
        batch=i.batch,
        seed=i.seed,
        task=i.task.index,
        workers=i.workers,
        pin=i.world.device.type == "cuda",
        rank=i.world.rank,
        world=i.world.size,
        mixture=mixture,
        cache=cache,
        presize=presize,
    )
    if i.packer is None:
        return loader
    return ViewLoader(loader, Schedule(i.views), i.packer.packed, i.packer.packed_width)


def _fit(
    i: TaskInputs,
    loader: DataLoader,
    save: Callable[[TaskState], None],
    before: float,
    hooks: Sequence[Hooks],
    keeper: keep.Keeper | None,
) -> Fit:
    began = time.monotonic()

    def save_task(state: FitState) -> None:
        elapsed = before + time.monotonic() - began
        save({"fit": state, "random": i.world.gather([checkpoint.random_state()]), "seconds": elapsed})

    own: list[Hooks] = [LogLosses(i.log)] if i.log is not None else []
    return Fit(
        detector=i.detector,
        method=i.method,
        loader=loader,
        settings=i.train,
        epochs=i.epochs,
        lr=i.lr,
        task=i.task.index,
        tasks=i.tasks,
        world=i.world,
        save=save_task,
        warn=i.warnings.add,
        rescue=partial(watch.keep_batch, folder=i.bad_batch) if i.bad_batch is not None and i.world.main else None,
        keeper=keeper,
        hooks=[*own, ShowProgress(i.reporter, i.title), *hooks],
    )
