"""Evaluates a detector on a test set: detections of every image, shared among processes, then AP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ciod.core.distributed import World
from ciod.core.types import in_original
from ciod.data.loader import batches, eval_loader
from ciod.evaluation.ap import APTable, coco_ap
from ciod.evaluation.confusions import Confusion
from ciod.evaluation.lvis import PER_IMAGE as PER_IMAGE_OF_LVIS
from ciod.evaluation.lvis import lvis_ap
from ciod.evaluation.voc import NAMES, voc_ap

if TYPE_CHECKING:
    from ciod.config.load import Evaluation
    from ciod.core.types import Detections
    from ciod.data.index import Index
    from ciod.detectors.base import Detector

# COCO's maxDets counts per class; a limit of 100 over all classes would remove detections before it is applied.
PER_IMAGE = 1000


@dataclass
class Scored:
    """The result of ``evaluate``."""

    table: APTable
    scored: tuple[str, ...]  # classes of both model and data
    unknown_to_model: tuple[str, ...]  # in the data, not in the model
    absent_from_data: tuple[str, ...]  # in the model, not in the data
    images: int
    broken: list[str]
    problems: list[str] = field(default_factory=list)  # of the data set: what was left out or changed
    confusion: Confusion | None = None  # None: not counted


@torch.no_grad()
def detect(
    detector: Detector,
    index: Index,
    settings: Evaluation,
    world: World | None = None,
    workers: int = 0,
    tick: Callable[[int], None] | None = None,
) -> tuple[list[Detections], list[str]]:
    """Detections in pixels of the original images, one entry per image, on every rank; and unreadable files.

    Args:
        tick: called after each batch with the number of its images.
    """
    world = world or World(device=detector.device)
    training = detector.training
    detector.eval()
    loader = eval_loader(
        index,
        detector.input.size,
        detector.input.fill,
        batch=settings.batch,
        workers=workers,
        pin=world.device.type == "cuda",
        rows=world.share(len(index)) if world.size > 1 else None,
        place=detector.input.place,
    )
    found: list[Any] = []
    broken: list[str] = []
    for batch in batches(loader):
        outputs = detector(batch.images.to(world.device, non_blocking=True))
        decoded = detector.decode(
            outputs,
            score_threshold=settings.score_threshold,
            nms_iou=settings.nms_iou,
            max_detections=max(PER_IMAGE, settings.max_detections),
            multi_label=detector.multi_label if settings.multi_label is None else settings.multi_label,
        )
        assert batch.frames is not None
        rows = zip(decoded, batch.frames.tolist(), batch.sizes.tolist(), strict=True)
        found += [in_original(d, frame, *size) for d, frame, size in rows]
        broken += batch.broken
        if tick is not None:
            tick(len(decoded))
    detector.train(training)
    return world.gather(found), sorted(set(world.gather(broken)))


def limit_of(settings: Evaluation, metric: str) -> int:
    """``eval.max_detections``; LVIS's own number of detections per image if it is not set."""
    lvis = metric == "lvis" and "max_detections" not in settings.model_fields_set
    return PER_IMAGE_OF_LVIS if lvis else settings.max_detections


def ap(
    detector: Detector, pictures: Index, *, settings: Evaluation, classes: Sequence[str], world: World
) -> float | None:
    """COCO AP over ``classes``; None without boxes of them. The same on every rank."""
    return evaluate(detector, pictures, settings, classes=classes, world=world)[0].overall["AP"]


def evaluate(
    detector: Detector,
    index: Index,
    settings: Evaluation,
    *,
    classes: Sequence[str] | None = None,
    world: World | None = None,
    workers: int = 0,
    metric: str = "coco",
    tick: Callable[[int], None] | None = None,
) -> tuple[APTable, list[Detections], list[str]]:
    """COCO AP over ``classes`` (default: the index's), the detections, and unreadable files.

    Args:
        metric: ``voc07`` or ``voc`` adds VOC07 or VOC. ``lvis`` computes LVIS's AP instead of COCO's.
        tick: see ``detect``.
    """
    found, broken = detect(detector, index, settings, world, workers, tick)
    limit = limit_of(settings, metric)
    if metric == "lvis":
        return lvis_ap(found, index, classes=classes, max_detections=limit), found, broken
    table = coco_ap(found, index, classes=classes, max_detections=limit)
    if metric in NAMES:
        table.include(NAMES[metric], voc_ap(found, index, metric=metric, classes=classes))
    return table, found, broken
