"""One setting for training and extending: ``effort`` sizes the work from the data, the start and the machine.

``choose`` is the only place where steps, batch, learning rates, averaging and augmentation are chosen. It reads and
trains nothing; docs/results/start.md says where its numbers were measured.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ciod.config.settings import Effort
from ciod.core.distributed import World
from ciod.core.plural import counted
from ciod.data.augment import Augment

Start = Literal["known", "detector", "trunk", "backbone", "nothing"]
"""The pretrained parts: everything, for most of the first task's classes the class layer too; everything except the
class layer; backbone and neck; the backbone; nothing."""

# Images in which each class should be seen, over all epochs, and the minimum and maximum of images in total.
SEEN = {"quick": (400, 1_500, 12_000), "normal": (1_500, 6_000, 60_000), "thorough": (6_000, 24_000, 300_000)}
EPOCHS = {"quick": (3, 40), "normal": (8, 120), "thorough": (20, 300)}
# How much more a task needs if less is trained already.
LONGER = {"known": 1, "detector": 1, "trunk": 2, "backbone": 2, "nothing": 3}
BATCH = {"cpu": 8, "cuda": 16}
# A branch starts from nothing; a network that knows other classes must not lose them: the rate of later tasks, and of
# those of a run that began with a whole detector.
LR_BRANCH, LR_LATER, LR_LATER_WHOLE = 1e-2, 1e-3, 6e-4
LR = {"known": 4e-4, "detector": 1e-3, "trunk": 4e-3, "backbone": 2e-3, "nothing": 2e-3}
# The decoder of a query detector is trained from nothing by one object per query (docs/query-detectors.md).
LR_QUERY = {"known": 5e-4, "detector": 5e-4, "trunk": 1e-3, "backbone": 1e-3, "nothing": 1e-3}
LR_CHECKPOINT = 1e-4  # of a whole query detector that others trained; their recipes have it for batches of 16
# Whole detectors: the rates above hold for this number of steps. Longer training takes smaller ones, which leave more
# of what the detector knows; at least this part of the rate.
LR_STEPS, LR_LEAST = 300, 0.25
LR_SGD = 0.01  # for batches of 16, in proportion to the batch
TRUNK = {"known": 1.0, "detector": 1.0, "trunk": 0.1, "backbone": 1.0, "nothing": 1.0}
FROZEN_BELOW = 5_000  # below this number of steps an ImageNet backbone is better left unchanged
EMA = (0.998, 0.9998)

KEYS = (
    "train.epochs", "train.batch", "train.lr", "train.lr_later", "train.trunk_lr", "train.backbone_lr", "train.ema",
    "augment.flip", "augment.photometric", "augment.scale", "augment.mosaic",
)  # fmt: skip
"""Settings that are chosen unless they are set by hand."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the choices depend on."""

    effort: Effort
    images: int
    """Training images of the task; of the whole task if only a subset of them is used."""
    taken: int | None = None
    """Number of images of a subset; None: all are used."""
    classes: int
    """Number of classes that the task teaches."""
    start: Start
    later: bool = False
    """The network knows classes that it must keep: true from the second task on, and when a model is extended."""
    branch: bool = False
    """Only a new branch is trained, the old network is frozen."""
    size: int | None = None
    """Side of the input in pixels, if it can be chosen."""
    query: bool = False
    """Positions of the detector are queries of a transformer."""
    checkpoint: bool = False
    """The detector came whole from a checkpoint of transformers."""
    sgd: bool = False
    device: str = "cpu"
    processes: int = 1
    parts: int = 1
    """Processes that compute a batch: its minimum size."""
    machine: str = ""
    """A description of the machine."""
    beside: Callable[[int], int] | None = None
    """Size of a batch → how many of its images are not the task's own; None: all are."""

    def per_epoch(self, batch: int, images: int | None = None) -> int:
        """Steps in which each of ``images`` (default: those of the task) is seen once."""
        own = batch - (self.beside(batch) if self.beside else 0)
        return -(-(self.images if images is None else images) // max(1, own))


@dataclass(frozen=True)
class Choice:
    """A value and the reason for it."""

    value: Any
    why: str


Choices = dict[str, Choice]
"""Setting by full key (``train.epochs``) → what is chosen for it."""


def choose(facts: Facts, given: Mapping[str, Any], shared: Mapping[str, Any] | None = None) -> Choices:
    """Chooses for one task every setting of ``KEYS`` except ``train.lr_later``, the learning rate of later tasks.

    Args:
        given: values that are set by hand, by full key, including ``train.steps``; they are not changed.
        shared: values that were chosen for the first task and hold for all tasks.
    """
    fixed = {k: Choice(v, ", as in the first task") for k, v in (shared or {}).items()}
    batch = _given(given, "train.batch") or fixed.get("train.batch") or _batch(facts)
    epochs = _given(given, "train.epochs") or _epochs(facts, batch.value, given.get("train.steps"))
    steps = epochs.value * facts.per_epoch(batch.value)
    lr = _given(given, "train.lr") or _lr(facts, steps, batch.value if "train.batch" in given else None)
    found = {"train.epochs": epochs, "train.batch": batch, "train.lr": lr}
    for key, choice in {**_trunk(facts, steps, given), "train.ema": _ema(steps), **_augment()}.items():
        found[key] = _given(given, key) or fixed.get(key) or choice
    return found


def machine(world: World) -> str:
    """A description of the device."""
    if world.device.type == "cuda":
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{cores} CPU core{'s' if cores > 1 else ''}"


def sentences(facts: Facts, choices: Choices) -> list[str]:
    """What was chosen and why, one line per setting; for a later task only what differs from the first."""
    epochs, batch, lr = choices["train.epochs"], choices["train.batch"], choices["train.lr"]
    images = facts.images if facts.taken is None else facts.taken
    steps = epochs.value * facts.per_epoch(batch.value, images)
    passes = f"{epochs.value} epoch{'s' if epochs.value != 1 else ''}"
    subset = "" if facts.taken is None else f"; the epochs are those of all {facts.images}"
    lines = [
        f"effort={facts.effort}: {steps:,} steps ({passes} of {images} images{subset}){epochs.why}",
        f"batch {batch.value}{batch.why}",
        f"learning rate {lr.value:g}{lr.why}",
    ]
    for key, what in (("train.trunk_lr", "trunk"), ("train.backbone_lr", "backbone")):
        if key in choices and choices[key].value is not None and not facts.branch:  # which trains nothing else
            lines.append(f"{what}: {choices[key].value:g} of the learning rate{choices[key].why}")
    ema = choices["train.ema"]
    lines.append(f"averaged weights: decay {ema.value:g}{ema.why}" if ema.value else f"no averaged weights{ema.why}")
    augment = {k.removeprefix("augment."): c for k, c in choices.items() if k.startswith("augment.")}
    lines.append(f"augmentation: {', '.join(f'{k} {_short(c.value)}{c.why}' for k, c in augment.items())}")
    return lines


BY_HAND = " (as asked)"


def _short(value: Any) -> str:
    return f"{value[0]:g} to {value[1]:g}" if isinstance(value, (tuple, list)) else f"{value:g}"


def _given(given: Mapping[str, Any], key: str) -> Choice | None:
    return Choice(given[key], BY_HAND) if key in given else None


def _batch(facts: Facts) -> Choice:
    standard = BATCH["cuda" if facts.device == "cuda" else "cpu"]
    batch = max(facts.parts, min(standard, max(2, facts.images // 4)))
    few = f", a quarter of {facts.images} images" if batch < standard else ""
    batch = -(-batch // facts.processes) * facts.processes  # each process gets the same share
    return Choice(batch, f", for {facts.machine}{few}")


def _epochs(facts: Facts, batch: int, steps: int | None) -> Choice:
    if steps is not None:
        each = facts.per_epoch(batch)
        rounded = ", rounded up to whole epochs" if steps % each else ""
        return Choice(max(1, -(-steps // each)), f", for steps={steps}{BY_HAND}{rounded}")
    each, least, most = SEEN[facts.effort]
    longer = 3 if facts.branch else LONGER["detector" if facts.later else facts.start]  # a step of a branch costs half
    wanted = longer * min(max(each * facts.classes, least), most)
    low, high = EPOCHS[facts.effort]
    high *= 1 if facts.branch else longer
    epochs = min(max(round(wanted / max(1, facts.images)), low), high)
    why = f", so that {facts.classes} class{'es are' if facts.classes > 1 else ' is'} learnt from "
    why += f"{epochs * facts.images:,} views"
    if longer > 1 and not facts.branch:
        why += f"; {longer} times as many as from a complete detector, as {ABOUT[facts.start]}"
    return Choice(epochs, why)


ABOUT = {
    "known": "most of the classes are known and everything is trained already",
    "detector": "everything except the class layer is trained already",
    "trunk": "the head is new",
    "backbone": "neck and head are new",
    "nothing": "the whole network is new",
}


def _lr(facts: Facts, steps: int, batch: int | None) -> Choice:
    """``batch``: the batch if it was set by hand."""
    standard = BATCH["cuda" if facts.device == "cuda" else "cpu"]
    if facts.sgd:
        return Choice(LR_SGD * (batch or standard) / 16, ", for SGD, in proportion to the batch")
    whole = facts.start in ("known", "detector")
    if facts.checkpoint and (facts.later or whole):
        base, why = LR_CHECKPOINT, ", for a checkpoint of transformers, as in the recipes of its authors"
    elif facts.branch and facts.query:
        base, why = LR_QUERY["trunk"], ", for a branch with queries, whose decoder starts as a copy"
    elif facts.branch:
        base, why = LR_BRANCH, ", for a branch, which starts from nothing"
    elif facts.later:
        base = LR_QUERY["detector"] if facts.query else LR_LATER_WHOLE if whole else LR_LATER
        why = ", for a network that must keep what it knows"
    elif facts.query:
        base, why = LR_QUERY[facts.start], f", for a detector with queries, as {ABOUT[facts.start]}"
    else:
        base, why = LR[facts.start], f", as {ABOUT[facts.start]}"
    if whole and not (facts.branch or facts.query or facts.checkpoint):
        base *= max(LR_LEAST, min(1.0, math.sqrt(LR_STEPS / steps)))
        base, why = float(f"{base:.2g}"), f"{why}; for {counted(steps, 'step')}"
    if batch is None or batch == standard:
        return Choice(base, why)
    return Choice(float(f"{base * math.sqrt(batch / standard):.2g}"), f"{why}; for a batch of {batch}")


def _trunk(facts: Facts, steps: int, given: Mapping[str, Any]) -> Choices:
    if facts.later:
        return {"train.trunk_lr": Choice(1.0, ", as the head: the network was trained as a whole")}
    scale = TRUNK[facts.start]
    why = {
        "known": ", as the head: both are trained",
        "detector": ", as the head: both are trained",
        "trunk": ", as it is trained and the head is new",
        "backbone": ", as the head: the neck is new",
        "nothing": ", as the head: all of it is new",
    }[facts.start]
    found = {"train.trunk_lr": Choice(scale, why)}
    if facts.start == "backbone" and "train.trunk_lr" not in given:
        short = steps < FROZEN_BELOW
        found["train.backbone_lr"] = Choice(
            0.0 if short else 0.1,
            f", frozen: {steps:,} steps are too few to train it" if short else ", as it is trained and the rest is new",
        )
    return found


def _ema(steps: int) -> Choice:
    """Averages over about the last ninth of the steps, as ``optim.EMA`` does on its own in a short task."""
    decay = max(EMA[0], min(EMA[1], 1 - 9 / max(steps, 9)))
    return Choice(float(f"{decay:.5g}"), f", for {counted(steps, 'step')}")


def _augment() -> Choices:
    """The usual zoom and colours for any number of pictures (docs/results/start.md lists what else was tried)."""
    defaults = Augment()
    return {f"augment.{k}": Choice(getattr(defaults, k), "") for k in ("flip", "photometric", "scale", "mosaic")}
