"""The maps of a frozen detector while a branch is trained, from a copy that computes nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ciod.config.settings import Train
from ciod.core.errors import CiodError
from ciod.detectors.base import Detector
from ciod.detectors.packing import Packer, Packs
from ciod.inference.quick import normaliser
from ciod.inference.runtime import available, noise, started
from ciod.training import speed

MANY = 2000  # images from which on ONNX Runtime saves more than its graph costs to make
CLOSE = 0.01  # largest difference of a map, as a share of the largest value of all


def packer(detector: Packs, settings: Train, images: int) -> Packer:
    """The copy.

    Args:
        detector: not trained except for its newest branch.
        images: how many will be computed in total. For many, on a CPU, ONNX Runtime runs the copy if it is installed
            and can, unless ``settings.teacher`` is ``exact``.
    """
    assert isinstance(detector, Detector)
    if images >= MANY and detector.device.type == "cpu" and settings.teacher != "exact" and available():
        try:
            return InRuntime(detector)
        except Exception:  # not every network can, and each part of the way has errors of its own; PyTorch always can
            pass
    return speed.packer(detector, settings)


class _Rows(nn.Module):
    """uint8 images [1, 3, H, W] → their row, as ``Packs.rows``."""

    def __init__(self, detector: Any):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        return self.detector.rows(images)


class InRuntime:
    """``Packs.packed`` by ONNX Runtime.

    Raises:
        CiodError: the network cannot be written as ONNX, or its maps would not be the same.
    """

    def __init__(self, detector: Any):
        twin, trial = detector.frozen(), noise(detector.input.size)
        if type(twin).normalise is Detector.normalise:
            twin.normalise = normaliser(twin.input, twin.mean, twin.std)
        self.packed_width: int = twin.packed_width
        with torch.no_grad():
            self.session = started(_Rows(twin), trial[:1], twin.settings["name"])
            a, b = self.packed(trial).float(), detector.frozen().packed(trial).float()
        if not bool((a - b).abs().amax() <= CLOSE * b.abs().amax()):
            raise CiodError(f"{twin.settings['name']} cannot run in ONNX Runtime: its maps would not be the same.")

    def packed(self, images: Tensor) -> Tensor:
        """See ``Packs.packed``."""
        return torch.cat([torch.from_numpy(self.session.run(None, {"images": x[None]})[0]) for x in images.numpy()])
