"""For how many views of each image the maps of a frozen detector are kept, so that epochs can use them again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ciod.core.errors import ConfigError
from ciod.core.plural import counted
from ciod.data import views
from ciod.detectors.base import Detector
from ciod.detectors.onnx.detector import OnnxDetector
from ciod.detectors.onnx.session import on_gpu
from ciod.detectors.packing import Packer, Packs
from ciod.extension.settings import Extend
from ciod.inference import maps
from ciod.methods.base.method import Method
from ciod.methods.freeze_branch import FreezeBranch

if TYPE_CHECKING:
    from ciod.core.distributed import World
    from ciod.data.scenarios.scenario import Task
    from ciod.extension.effort import Plan
    from ciod.extension.measure import Measure


def planned(
    plan: Plan, s: Extend, detector: Detector, method: tuple[str, Method], measured: Measure, world: World
) -> Plan:
    """The plan, and for how many views per image maps are kept, if the method trains a branch alone.

    Args:
        method: its name and itself.

    Raises:
        ConfigError: ``views=`` for another method or detector, or where maps cannot be kept.
    """
    name, made = method
    if not isinstance(detector, Packs) or not isinstance(made, FreezeBranch):
        if s.views:
            raise ConfigError(
                [
                    "views: maps are kept only for a branch (method=freeze_branch) of a dense detector, not for "
                    f"{name} on a {detector.settings['name']}; leave it out."
                ]
            )
        return plan
    images = len(measured.task.train) + sum(map(len, measured.negatives.train))
    each = max(1, 2 * detector.packed_width * images)
    fixed = possible(s, world)
    if s.views and not fixed:
        raise ConfigError(
            [
                "views: feature maps are kept for images of one size and one process; leave out views=, or "
                "augment.multiscale= and torchrun."
            ]
        )
    kept = s.views if s.views is not None else _fitting(detector, each) if fixed else 0
    if not kept or plan.epochs <= kept:
        return plan
    count = views.Schedule(kept).computed(plan.epochs)
    line = (
        f"maps of {kept} views per image are kept in the temporary folder ({kept * each / 1e9:.1f} GB); {count} views "
        f"per image are computed for {counted(plan.epochs, 'epoch')}"
    )
    return replace(plan, views=kept, why=[*plan.why, line])


def packer(plan: Plan, s: Extend, detector: Detector, method: Method, task: Task, world: World) -> Packer | None:
    """What computes the maps of the frozen detector; None: the detector, from images in every step."""
    if not isinstance(detector, Packs) or not isinstance(method, FreezeBranch) or not possible(s, world):
        return None
    if isinstance(detector, OnnxDetector):
        return detector if plan.views else None
    if detector.device.type != "cpu" and not plan.views:
        return None
    images = views.Schedule(plan.views).computed(plan.epochs) * len(task.train)
    return maps.packer(detector, s.train, images)


def possible(s: Extend, world: World) -> bool:
    """Whether maps can be kept: images have one size, and there is one process."""
    return s.augment.multiscale is None and world.size == 1


def _fitting(detector: Detector, each: int) -> int:
    """The default: for an ONNX file, whose network may be large, as many as there is room for; 0 on a GPU, where a new
    view costs little, and for a detector of ciod, which learns more from new views.

    Args:
        each: bytes of one view of all images.
    """
    if not isinstance(detector, OnnxDetector) or on_gpu(detector.device):
        return 0
    fitting = min(views.KEPT, views.room() // each)
    return fitting if fitting > 1 else 0
