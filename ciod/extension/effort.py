"""One dial: ``effort`` sizes epochs, batch, learning rate and resolution from the data and the machine."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ciod.data.loader import batches
from ciod.detectors.branched import has_branches
from ciod.training import checkpoint
from ciod.training.method_checks import MethodChecks
from ciod.training.progress import clock

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ciod.core.distributed import World
    from ciod.data.index import Index
    from ciod.detectors.base import Detector
    from ciod.extension.settings import Extend
    from ciod.methods.base.method import Method

# Images that a class should be seen in, over all epochs, and the least and most images in total.
SEEN = {"quick": (400, 1_500, 12_000), "normal": (1_500, 6_000, 60_000), "thorough": (6_000, 24_000, 300_000)}
EPOCHS = {"quick": (3, 40), "normal": (8, 120), "thorough": (20, 300)}
# Learning rates: a branch starts from nothing; a whole trained network must not be thrown off what it knows.
LR_BRANCH, LR_WHOLE = 1e-2, 1e-3


@dataclass(frozen=True)
class Plan:
    """What was chosen, and why."""

    epochs: int
    batch: int
    lr: float
    size: int
    why: list[str]


def choose(settings: Extend, train: Index, classes: int, detector: Detector, method: str, world: World) -> Plan:
    """Sizes the work. What ``settings`` gives is taken as it is.

    Args:
        train: the images to learn from.
        classes: how many classes they teach.
        method: its name.
    """
    gpu = world.device.type == "cuda"
    batch = settings.batch or min(16 if gpu else 8, max(2, len(train) // 4))
    if not settings.batch:
        batch = -(-batch // world.size) * world.size  # each process has the same share
    each, least, most = SEEN[settings.effort]
    cheap = 3 if method == "freeze_branch" else 1  # a step costs half, and a branch starts from nothing
    wanted = cheap * min(max(each * classes, least), most)
    low, high = EPOCHS[settings.effort]
    epochs = settings.epochs or min(max(round(wanted / len(train)), low), high)
    lr = settings.lr or (LR_BRANCH if method == "freeze_branch" else LR_WHOLE)
    size = settings.size or detector.input.size
    machine = torch.cuda.get_device_name() if gpu else f"{_cores()} CPU cores"
    seen = epochs * len(train)
    why = [
        f"effort={settings.effort}: {epochs} epochs of {len(train)} images"
        + (" (as asked)" if settings.epochs else f", so that {classes} classes are learnt from {seen:,} views"),
        f"batch {batch}" + (" (as asked)" if settings.batch else f", for {machine}"),
        f"learning rate {lr:g}" + (" (as asked)" if settings.lr else f", for method {method}"),
        f"{size} px"
        + (" (as asked)" if settings.size else ", what the model was made for: its old classes are seen as before"),
    ]
    return Plan(epochs, batch, lr, size, why)


def branch_widths(train: Index, detector: Detector) -> tuple[int, int, int] | None:
    """Channels of a branch's bottleneck, put where the new objects are: none at stride 8, which is half of the cost,
    where fewer than a tenth of the boxes are below 64 pixels; None: the usual ones."""
    size = train.sizes[train.image].max(1) if len(train.image) else np.ones(0)
    side = np.sqrt(np.prod(train.boxes[:, 2:] - train.boxes[:, :2], 1)) / size * detector.input.size
    if np.mean(side < 64) >= 0.1:
        return None
    assert has_branches(detector)
    width = detector.width
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
    return f"about {clock(seconds)} of training ({seconds_a_step:.2f} s a step, {steps} steps, as measured just now)"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
