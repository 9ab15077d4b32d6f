"""The batches of an extension: the new images, with those of a pool and of the old data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ciod.config.settings import PoolSettings, Run
from ciod.extension import known as checked
from ciod.extension import negatives
from ciod.memory.rehearsal import Extra, shares

if TYPE_CHECKING:
    from ciod.data.mixture import Mixture
    from ciod.detectors.base import Detector
    from ciod.extension.known import Known
    from ciod.extension.measure import Measure
    from ciod.extension.settings import Extend
    from ciod.methods.base.method import Method


def mixture(
    measured: Measure, method: Method, name: str, batch: int, detector: Detector, known: Known | None
) -> Mixture | None:
    """The images of the task and others in every batch; None: its own alone.

    Args:
        name: of the method.
        batch: images per step.
        known: corrected labels of some images, which a method that trains old classes takes as complete.
    """
    mixed = _others(measured, method, name, batch, detector)
    if known is None or method.learns_background:
        return mixed
    return checked.mixture(known, mixed, detector.num_classes, batch)


def _others(measured: Measure, method: Method, name: str, batch: int, detector: Detector) -> Mixture | None:
    """The pool's share of every batch, for methods that learn from what the old model sees there, or that none of
    their objects are there."""
    task, pool, settings = measured.task, measured.pool, measured.settings
    if method.learns_background:
        for images in measured.negatives.train:
            method.learn_background(images)
        return negatives.mixture(task, measured.negatives, detector.num_classes, batch)
    if pool is None:
        return None
    if not method.uses_teacher:
        measured.reporter.say(f"pool: {name} does not learn from it; agreement is measured on it")
        return None
    return Extra(_run(settings, batch), None, pool).mixture(task, detector.num_classes)


def beside(measured: Measure, method: Method, batch: int) -> int:
    """How many images of a batch are not new ones, but of the pool or of the old data."""
    if method.learns_background:
        return negatives.count(batch) if measured.negatives.train else 0
    if measured.pool is None or not method.uses_teacher:
        return 0
    return sum(shares(_run(measured.settings, batch), batch, old=1, seen=2))  # without a memory; only the pool counts


def _run(settings: Extend, batch: int) -> Run:
    train = settings.train.model_copy(update={"batch": batch})
    return Run(train=train, pool=PoolSettings(folder=settings.pool))
