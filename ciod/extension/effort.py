"""One dial: ``effort`` sizes an extension from the data and the machine (``ciod.training.effort`` chooses)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ciod.core.plural import counted
from ciod.data.loader import batches
from ciod.detectors import HF
from ciod.detectors.branched import has_branches
from ciod.runs.choices import is_set, open_keys, value_of
from ciod.runs.start import per_task
from ciod.training import checkpoint, effort
from ciod.training.method_checks import MethodChecks
from ciod.training.progress import clock

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ciod.core.distributed import World
    from ciod.data.index import Index
    from ciod.detectors.base import Detector
    from ciod.extension.settings import Extend
    from ciod.methods.base.method import Method


@dataclass(frozen=True)
class Plan:
    """What was chosen, and why."""

    epochs: int
    batch: int
    lr: float
    size: int
    why: list[str]
    views: int = 0
    """Views per image whose maps are kept; 0: none."""
    more: dict[str, Any] = field(default_factory=dict)
    """Values of the sections ``train`` and ``augment`` that are not set by hand, by full key."""


def choose(
    settings: Extend,
    train: Index,
    classes: int,
    detector: Detector,
    method: str,
    world: World,
    whole: int | None = None,
    beside: Callable[[int], int] | None = None,
) -> Plan:
    """Sizes the work, as ``training.effort`` does for a later task. What ``settings`` gives is taken as it is.

    Args:
        train: the images to learn from.
        classes: how many classes they teach.
        method: its name.
        whole: with ``settings.subset``, number of images of which ``train`` is a part.
        beside: size of a batch → how many of its images are not those of ``train``.
    """
    whole = whole if settings.subset else None
    own = {"train.epochs": settings.epochs, "train.batch": settings.batch, "train.lr": settings.lr}
    given = {k: v for k, v in own.items() if v is not None}
    still = [k for k in open_keys(settings) if k not in own]
    given |= {k: value_of(settings, k) for k in effort.KEYS if k not in (*own, *still)}
    if settings.train.steps is not None:
        given["train.steps"] = max(per_task("train.steps", settings.train.steps, 1))
    facts = effort.Facts(
        effort=settings.effort,
        images=len(train) if whole is None else whole,
        taken=None if whole is None else len(train),
        classes=classes,
        start="detector",
        later=True,
        branch=method in ("freeze_branch", "split_class"),
        query="query" in detector.traits,
        checkpoint=detector.settings["name"].startswith(HF),
        device=world.device.type,
        processes=world.size,
        machine=effort.machine(world),
        beside=beside,
    )
    choices = effort.choose(facts, given)
    brought = {k: v for k, v in detector.run_defaults.items() if k.startswith("train.") and not is_set(settings, k)}
    size = settings.size or detector.input.size
    as_made = ", what the model was made for: its old classes are seen as before"
    why = [*effort.sentences(facts, choices), f"{size} px{effort.BY_HAND if settings.size else as_made}"]
    if brought:
        brought_values = ", ".join(f"{k.removeprefix('train.')} {v:g}" for k, v in brought.items())
        why.append(f"{brought_values}, as the detector brings it along")
    return Plan(
        choices["train.epochs"].value,
        choices["train.batch"].value,
        choices["train.lr"].value,
        size,
        why,
        more=brought | {k: choices[k].value for k in still if k in choices},
    )


def branch_widths(train: Index, detector: Detector) -> tuple[int, int, int] | None:
    """Channels of a branch's bottleneck, put where the new objects are: none at stride 8, which is half of the cost,
    where fewer than a tenth of the boxes are below 64 pixels; None: the usual ones, or a branch that has none."""
    if "query" in detector.traits:
        return None
    size = train.sizes[train.image].max(1) if len(train.image) else np.ones(0)
    side = np.sqrt(np.prod(train.boxes[:, 2:] - train.boxes[:, :2], 1)) / size * detector.input.size
    if np.mean(side < 64) >= 0.1:
        return None
    assert has_branches(detector)
    width = detector.width
    if getattr(detector, "second_stage", False):  # which costs as much as this saves
        return 0, 11 * width // 32, 5 * width // 8
    return 0, 7 * width // 16, 3 * width // 4


def measure(detector: Detector, method: Method, loader: DataLoader, world: World, steps: int = 3) -> float:
    """Seconds a training step, from ``steps`` of them without an update; the first one warms up and is not counted.

    Weights, statistics and the generators of random numbers are afterwards as they were.
    """
    state = checkpoint.random_state()
    training = detector.training
    detector.train()
    for m in detector.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
    began, counted, checks = time.monotonic(), 0, MethodChecks(method, 1)
    for i, batch in enumerate(batches(loader)):
        if i == 1:
            began = time.monotonic()
        losses = checks.loss(batch.to(world.device))
        torch.stack(list(losses.values())).sum().backward()
        checks.after_backward()
        counted = i
        if i == steps:
            break
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    detector.zero_grad(set_to_none=True)
    detector.train(training)
    checkpoint.set_random_state(state)
    return (time.monotonic() - began) / max(1, counted)


def estimate(seconds_a_step: float, steps: int) -> str:
    """The time of the training in words."""
    seconds = seconds_a_step * steps
    return (
        f"about {clock(seconds)} of training ({seconds_a_step:.2f} s a step, {counted(steps, 'step')}, as "
        f"measured just now)"
    )
