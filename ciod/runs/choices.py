"""What ``effort`` chooses for a run: the values of settings that are not set by hand, per task.

A resumed run keeps its choices. Run folders of versions without choices keep the defaults of those versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from ciod import detectors, methods
from ciod.config.settings import Augment, Run, Train
from ciod.core.files import is_file
from ciod.detectors.files import transfer, weights
from ciod.runs import environment
from ciod.runs.start import beside, epochs_of, per_task
from ciod.training import effort
from ciod.training.effort import KEYS, Facts, Start

if TYPE_CHECKING:
    from ciod.core.distributed import World
    from ciod.data.scenarios.scenario import Scenario
    from ciod.detectors.base import Detector

Sections = TypeVar("Sections", bound=BaseModel)
_SECTIONS = {"train": Train, "augment": Augment}


def open_keys(settings: BaseModel) -> list[str]:
    """Settings that are neither set by hand nor chosen yet."""
    keys = [k for k in KEYS if not is_set(settings, k)]
    if is_set(settings, "train.lr"):
        keys = [k for k in keys if k != "train.lr_later"]  # later tasks use the same rate
    if is_set(settings, "train.trunk_lr"):
        keys = [k for k in keys if k != "train.backbone_lr"]
    return keys


def adopted(before: Run, after: Run) -> list[str]:
    """Settings that are not set in ``before`` but are in ``after``."""
    return [k for k in open_keys(before) if is_set(after, k)]


def is_set(settings: BaseModel, key: str) -> bool:
    """Whether a setting by full key has a value that was given or chosen."""
    section, leaf = key.split(".")
    return leaf in getattr(settings, section).model_fields_set


def value_of(settings: BaseModel, key: str) -> Any:
    """The value of a setting by its full key: ``train.lr``."""
    section, leaf = key.split(".")
    return getattr(getattr(settings, section), leaf)


def with_values(settings: Sections, values: Mapping[str, Any]) -> Sections:
    """A copy with ``values``, by full key, as if they were set by hand."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, leaf = key.split(".")
        sections.setdefault(section, {})[leaf] = tuple(value) if leaf == "scale" else value
    return settings.model_copy(
        update={name: getattr(settings, name).model_copy(update=new) for name, new in sections.items()}
    )


def chosen_in(state: Mapping[str, Any]) -> dict[str, Any]:
    """The choices for the run of a saved state, by full key. Before ``effort`` they were the defaults."""
    if "chosen" in state:
        return dict(state["chosen"])
    return defaults_in(state["settings"]) if state.get("command", "train") == "train" else {}


def defaults_in(saved: Mapping[str, Any], keys: Sequence[str] = KEYS) -> dict[str, Any]:
    """Those of ``keys`` that have their default in a fingerprint, if a version without choices wrote it."""
    if "train.steps" in saved:
        return {}
    found = {}
    for key in keys:
        section, leaf = key.split(".")
        default = _SECTIONS[section].model_fields[leaf].default
        if saved.get(key) == (list(default) if isinstance(default, tuple) else default):
            found[key] = default
    return found


def adopt(settings: Run, state: Mapping[str, Any], *, first_task: bool = False) -> Run:
    """``settings`` with the choices for the run of a saved state, for those that are not set by hand.

    Args:
        first_task: only the choices for its first task. Otherwise a different ``effort`` chooses again.
    """
    if not first_task and state.get("effort", settings.effort) != settings.effort:
        return settings
    wanted = [k for k in open_keys(settings) if not first_task or k not in ("train.epochs", "train.lr_later")]
    return with_values(settings, {k: v for k, v in chosen_in(state).items() if k in wanted})


def compared(settings: Run, state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fingerprints of ``settings`` and of the run of a saved state, for ``environment.differences``."""
    mine, theirs = environment.fingerprint(adopt(settings, state)), dict(state["settings"])
    if state.get("effort", settings.effort) != settings.effort and set(open_keys(settings)) & chosen_in(state).keys():
        keys = [k for k in KEYS if k in mine]
        mine = {k: v for k, v in mine.items() if k not in keys} | {"effort": settings.effort}
        theirs = {k: v for k, v in theirs.items() if k not in keys} | {"effort": state["effort"]}
    return mine, theirs


def start_of(settings: Run, classes: Sequence[str], donor: Detector | None = None) -> Start:
    """What is trained already when a run starts.

    Args:
        classes: those of the first task.
        donor: the model of ``detector.weights``; None: the file is inspected if it can be read quickly.
    """
    d = settings.detector
    if d.name.startswith(detectors.HF) and not d.weights and d.backbone_weights != "random":
        return "trunk" if d.weights_from == "trunk" else "detector"
    if not d.weights:
        pretrained = d.backbone_weights or detectors.default_backbone(d.name)
        return "nothing" if pretrained in (None, "random") else "backbone"
    if d.weights_from == "trunk":
        return "trunk"
    if d.name.startswith("mmdet:"):
        return "detector"
    if donor is None and is_file(d.weights):
        donor = weights.donor(Path(d.weights))
    if donor is not None and type(donor) is not detectors.find(d.name):
        return "trunk"
    known = () if donor is None else transfer.same_classes(classes, donor.class_names)
    return "known" if 2 * len(known) > len(classes) else "detector"


def complete(
    settings: Run,
    scenario: Scenario,
    world: World,
    start: Start,
    *,
    adopted: Sequence[str] = (),
    first: int | None = None,
) -> tuple[Run, list[str]]:
    """Gives a value to every setting that is not set by hand, and says why.

    Batch, rates of the trunk, averaging and augmentation are chosen for the first task and hold for all; every task has
    its own epochs, and the tasks after the first have their own learning rate.

    Args:
        adopted: settings that another run chose for a first task that it trained.
        first: epochs of the first task that another run trained.

    Returns:
        The settings, and one sentence per choice; no sentences if every setting was set.

    Raises:
        CiodError: a list of epochs or steps is shorter than the scenario.
    """
    still = [k for k in KEYS if k in open_keys(settings) or (k == "train.lr_later" and "train.lr" in adopted)]
    if not still:
        return settings, []
    hand = [k for k in KEYS if k not in (*still, *adopted)]
    values: dict[str, Any] = {k: value_of(settings, k) for k in adopted}
    sentences, epochs = [], []
    for i in range(len(scenario)):
        facts = _facts(settings, scenario, i, world, start)
        shared = {k: v for k, v in values.items() if k not in ("train.epochs", "train.lr", "train.lr_later")}
        choices = effort.choose(facts, _by_hand(settings, i, len(scenario.parts), hand, values), shared)
        epochs.append(choices["train.epochs"].value)
        if i == 0:
            values = {k: c.value for k, c in choices.items()} | values
        else:
            values["train.lr_later"] = choices["train.lr"].value
        lines = effort.sentences(facts, choices)
        sentences += [f"task {i + 1}: {line}" for line in (lines[0], lines[2])] if i else [] if adopted else lines
    epochs[:1] = epochs[:1] if first is None else [first]
    values["train.epochs"] = epochs[0] if len({*epochs}) == 1 else epochs
    return with_values(settings, {k: v for k, v in values.items() if k in still}), sentences


def _by_hand(settings: Run, task: int, tasks: int, keys: Sequence[str], first: Mapping[str, Any]) -> dict[str, Any]:
    """What is set by hand for a task.

    Args:
        keys: settings that are set by hand.
        first: what was chosen for the first task.
    """
    t, joint = settings.train, settings.protocol.joint
    fixed = {k: value_of(settings, k) for k in keys}
    if "train.epochs" in fixed or (joint and t.joint_epochs):
        fixed["train.epochs"] = epochs_of(settings, task, tasks)
    elif t.steps is not None:
        each = per_task("train.steps", t.steps, tasks)
        fixed["train.steps"] = max(each) if joint else each[task]
    fixed.pop("train.lr_later", None)
    if task and ("train.lr" in keys or "train.lr_later" in keys):
        fixed["train.lr"] = t.lr_later or first["train.lr"]
    return fixed


def _facts(settings: Run, scenario: Scenario, i: int, world: World, start: Start) -> Facts:
    task = scenario.task(i)
    name = str(settings.method.get("name", methods.DEFAULT))
    return Facts(
        effort=settings.effort,
        images=max(1, scenario.images_without_subset(i)),
        taken=len(task.train) if settings.protocol.subset else None,
        classes=len(task.taught_classes),
        start=start,
        later=i > 0,
        branch=i > 0 and "branches" in methods.find(name).needs,
        query="query" in detectors.traits(settings.detector.name),
        checkpoint=settings.detector.name.startswith(detectors.HF),
        sgd=settings.train.optimizer == "sgd",
        device=world.device.type,
        processes=world.size,
        parts=settings.train.accumulate,
        machine=effort.machine(world),
        beside=partial(beside, settings, scenario, i),
    )


def values(settings: Run, keys: Sequence[str]) -> dict[str, Any]:
    """Settings by full key, for the state file."""
    return {k: value_of(settings, k) for k in keys}
