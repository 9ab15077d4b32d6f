"""What an extension does to the model before it is trained: classes, size and method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ciod import methods
from ciod.core.errors import CiodError
from ciod.detectors.parted import Parted
from ciod.extension import auto, data, effort, kept_views, known, measure, mixing, names, onnx_model
from ciod.methods.base.interim import TakesInterim
from ciod.methods.base.split_class import SplitClass
from ciod.training import effort as training_effort
from ciod.training import speed

if TYPE_CHECKING:
    from ciod.core.distributed import World
    from ciod.data.index import Index
    from ciod.detectors.base import Detector
    from ciod.extension.settings import Extend
    from ciod.methods.base.method import Method
    from ciod.training.progress import Reporter

ROOM = 100e6  # bytes beyond eight times the model: states, pictures, report


@dataclass(frozen=True)
class Read:
    """The data of an extension, under the names that the extended model will have."""

    folder: data.Folder
    names: names.Names
    known: known.Known | None  # corrected labels of some images
    measured: measure.Measure  # also the task, the pool and the old data


def read(settings: Extend, detector: Detector, world: World, reporter: Reporter | None = None) -> Read:
    """Reads the data, and matches the classes of folder and model.

    Raises:
        CiodError: data that cannot be used, or names that do not fit.
    """
    s = settings
    folder = data.open_folder(s.data, holdout=s.holdout, seed=s.seed, subset=s.subset)
    matched = names.of_settings(s, detector.class_names, folder.classes)
    task = data.task_of(folder, matched)
    checked = known.open_checked(s, detector, task, matched)
    measured = measure.Measure(s, world, checked.task if checked else task, matched, reporter)
    return Read(folder, matched, checked, measured)


def plan(
    detector: Detector, method: tuple[str, Method], measured: measure.Measure, *, whole: int | None
) -> effort.Plan:
    """How it is trained.

    Args:
        method: its name and itself.
        whole: with a subset, number of images that it was taken from.

    Raises:
        ConfigError: ``views=`` where maps cannot be kept.
    """
    s, world = measured.settings, measured.world
    beside = partial(mixing.beside, measured, method[1])
    learnt = len(measured.names.learnt)
    chosen = effort.choose(s, measured.task.train, learnt, detector, method[0], world, whole, beside)
    return kept_views.planned(chosen, s, detector, method, measured, world)


def resumed(plan: effort.Plan, settings: Extend, world: World) -> effort.Plan:
    """The plan of an earlier process, which is kept because it was made for its machine, with what is set by hand now
    (``allow=settings``). No maps are kept where that is not possible now."""
    keys = ("epochs", "batch", "lr", "views")
    given = {k: v for k in keys if (v := getattr(settings, k)) not in (None, getattr(plan, k))}
    if given:
        given_values = ", ".join(f"{k}={v:g}" for k, v in given.items())
        plan = replace(plan, **given, why=[*plan.why, f"resumed with {given_values}{training_effort.BY_HAND}"])
    if plan.views and not kept_views.possible(settings, world):
        plan = replace(plan, views=0)
    return plan


def check_room(out: Path, detector: Detector) -> None:
    """Raises CiodError when the disk has too little room for models and states."""
    size = onnx_model.size(detector) + sum(p.numel() * p.element_size() for p in detector.parameters())
    free, needed = data.free_of(out), 8 * size + ROOM
    if free < needed:
        raise CiodError(f"out: there is {free / 1e6:.0f} MB of room for {out}; about {needed / 1e6:.0f} MB are needed.")


def adapt(detector: Detector, names: names.Names, settings: Extend, world: World) -> None:
    """keep, drop, rename and size, on the model as it was: everything after compares with the result."""
    detector.to(world.device)
    speed.prepare(detector, settings.train, world)
    if names.dropped:
        detector.select(names.kept)
    renamed = {a: b for a, b in zip(names.kept, names.old, strict=True) if a != b}
    if renamed:
        detector.rename(renamed)
    if settings.size:
        detector.input = replace(detector.input, size=settings.size)
        detector.settings["size"] = settings.size


def choose_method(
    settings: Extend, detector: Detector, reporter: Reporter | None = None, parent: str | None = None
) -> tuple[str, Method]:
    """The method and its name: the named one, or the tested default, a branch where the detector can have one.

    Args:
        reporter: says what was chosen by ``auto``.
        parent: the class that becomes several, if one does.

    Raises:
        CiodError: the detector lacks a trait that the method needs, or has branches that it cannot train.
    """
    given = dict(settings.method)
    name = str(given.pop("name", "auto"))
    if parent is not None:
        name, given = "split_class", {**given, "parent": parent}
    elif name == "auto":
        name, why = auto.method_for(detector)
        if reporter is not None:
            reporter.say(f"method: {name} (chosen by auto{', ' + why if why else ''})")
    if parent is not None and "children" not in detector.traits:
        raise CiodError(
            f"split: a class of a {detector.settings['name']} cannot become several; that needs a YOLOX as a model of "
            "ciod or a checkpoint. Extend by the kinds as new classes, without split."
        )
    onnx_model.check(detector, name, settings)
    cls = methods.find(name) if parent is None else SplitClass
    lacking = cls.needs - detector.traits
    if lacking:
        raise CiodError(
            f"method: {name} needs a detector with {', '.join(sorted(lacking))}, which {detector.settings['name']} "
            "does not have."
        )
    if (
        isinstance(detector, Parted)
        and detector.branches_only
        and len(detector.branches)
        and "branches" not in cls.needs
    ):
        raise CiodError(
            f"method: {name} trains the whole model, and of a {detector.settings['name']} that was extended only "
            "further branches can be trained; use method=freeze_branch."
        )
    method = cls.model_validate(given)
    if isinstance(method, TakesInterim) and method.trains_interim:
        raise CiodError(
            f"method: {name} learns from an interim model of the new classes, which only ciod train trains; give the "
            "file of one (method.interim=[MODEL]), or method.interim=none."
        )
    return name, method


def fill_in(method: Method, thresholds: dict[str, float], train: Index, detector: Detector) -> None:
    """Settings that are not given come from the data: thresholds of pseudo-labels and widths of a branch."""
    fields = type(method).model_fields
    given: Any = method  # of any class with these fields
    if "class_scores" in fields and not given.class_scores:
        given.class_scores = dict(thresholds)
    if "inner" in fields and given.inner is None:
        given.inner = effort.branch_widths(train, detector)
