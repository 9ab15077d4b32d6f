"""Detectors by name. ``build`` makes one with random weights; ``weights.load`` reads one from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ciod.core.errors import CiodError, did_you_mean
from ciod.core.user_code import split

if TYPE_CHECKING:
    from ciod.detectors.base import Detector

HF = "hf:"  # how the name of a checkpoint of transformers begins


def families() -> Sequence[type[Any]]:
    """Every Detector class, each with its ``variants``. Add a new detector here."""
    from ciod.detectors.gfl import GFL
    from ciod.detectors.mobilenet import YOLOXMobileNet
    from ciod.detectors.query.d_fine import DFINE, DEIMv2
    from ciod.detectors.query.deformable import DeformableDETR
    from ciod.detectors.query.lw_detr import LWDETR, RFDETR
    from ciod.detectors.query.rt_detr import RTDETR, RTDETRCSP, RTDETRv2
    from ciod.detectors.rcnn.detector import FasterRCNN
    from ciod.detectors.torchvision_models import FCOS, RetinaNet
    from ciod.detectors.yolox import YOLOX

    ours = (YOLOX, YOLOXMobileNet, GFL, RetinaNet, FCOS, FasterRCNN)
    return *ours, RTDETR, RTDETRv2, RTDETRCSP, DFINE, DEIMv2, DeformableDETR, LWDETR, RFDETR


def is_own(name: str) -> bool:
    """Whether it names a class in a file of the user, ``FILE.py:Class``."""
    return bool(split(name)[0])


def whole() -> Sequence[type[Any]]:
    """The classes whose whole network is one of ``transformers``, for ``hf:FOLDER``."""
    return [family for family in families() if getattr(family, "model_type", None)]


def available() -> list[str]:
    """Names for ``build``, in addition to ``mmdet:CONFIG``, ``hf:FOLDER`` and ``FILE.py:Class``."""
    return [name for family in families() for name in family.variants]


def find(name: str) -> type[Any]:
    """The Detector class that has a variant of this name.

    Raises:
        CiodError: no detector has that name; or it names a file that cannot be used.
    """
    if is_own(name):
        from ciod.detectors import own

        return own.find(name)
    if name.startswith("mmdet:"):
        from ciod.detectors.mmdet.detector import MMDet

        return MMDet
    if name.startswith(HF):
        from ciod.detectors.query import hf

        kind = hf.model_type(name)
        return next(family for family in whole() if family.model_type == kind)
    for family in families():
        if name in family.variants:
            return family
    raise CiodError(f"There is no detector '{name}'; {did_you_mean(name, available())}")


NOT_ALIGNED = (
    "Its queries show other objects in the student than in the teacher, so their outputs cannot be compared one by "
    "one; pseudo_label works on the detections alone."
)
"""Why a method that compares positions of teacher and student cannot use a query detector."""
OTHER_REGIONS = (
    "Its regions differ between student and teacher, so their outputs cannot be compared one by one; mma, "
    "faster_ilod, bpf and abr give both the same regions, and pseudo_label works on the detections alone."
)
"""The same of a detector with two stages."""
PACKAGES = {"detr": ("transformers", "scipy")}  # packages of an extra


def lacking(name: str) -> str | None:
    """The missing extra that a detector needs; None: it can be built.

    Raises:
        CiodError: no detector has that name.
    """
    if is_own(name):
        return None  # its import says what it lacks
    extra = "detr" if name.startswith(HF) else None if name.startswith("mmdet:") else find(name).extra
    return extra if extra and not all(find_spec(p) for p in PACKAGES[extra]) else None


def traits(name: str) -> frozenset[str]:
    """The traits of a detector, without building it.

    Raises:
        CiodError: no detector has that name, or a config of MMDetection cannot be used.
    """
    if name.startswith("mmdet:"):
        from ciod.detectors.mmdet.detector import traits_of

        return traits_of(name)
    return find(name).traits


def offering(needs: frozenset[str]) -> list[str]:
    """Names of the detectors that have all of these traits."""
    return [name for name in available() if needs <= traits(name)]


def run_defaults(name: str) -> Mapping[str, Any]:
    """Settings of the run that a detector brings along, by full key.

    Raises:
        CiodError: no detector has that name.
    """
    if name.startswith(HF):
        from ciod.detectors.query.whole import FINE_TUNED

        return FINE_TUNED
    return find(name).run_defaults


def default_backbone(name: str) -> str | None:
    """Default weights of the backbone of a new detector: ImageNet weights for ResNets."""
    return find(name).default_backbone(name.rpartition(":")[2] if is_own(name) else name)


def build(class_names: Sequence[str], *, name: str, **settings: Any) -> Detector:
    """A detector with random weights (backbone weights according to its settings).

    Raises:
        CiodError: no detector has that name.
    """
    if is_own(name):
        from ciod.detectors import own

        return own.build(class_names, name=name, **settings)
    return find(name)(class_names, name=name, **settings)
