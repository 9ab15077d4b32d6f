"""Detectors by name. ``build`` makes one with random weights; ``weights.load`` reads one from a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ciod.errors import CiodError, did_you_mean

if TYPE_CHECKING:
    from ciod.detectors.detector import Detector


def available() -> list[str]:
    """Names that ``build`` takes."""
    from ciod.detectors.yolox import VARIANTS

    return list(VARIANTS)


def traits(name: str) -> frozenset[str]:
    """What a detector offers, without building it."""
    from ciod.detectors.yolox import YOLOX

    del name  # every detector so far is a YOLOX
    return YOLOX.traits


def default_backbone(name: str) -> str | None:
    """What the backbone of a new detector starts from when nothing is asked for: ResNets from ImageNet weights."""
    from ciod.detectors.yolox import VARIANTS

    return "imagenet" if isinstance(VARIANTS[name], int) else None


def build(class_names: Sequence[str], *, name: str, **settings: Any) -> Detector:
    """A detector with random weights (backbone weights as its settings say).

    Raises:
        CiodError: no detector has that name.
    """
    from ciod.detectors.yolox import VARIANTS, YOLOX

    if name not in VARIANTS:
        raise CiodError(f"There is no detector '{name}'; {did_you_mean(name, VARIANTS)}")
    return YOLOX(class_names, name=name, **settings)
