"""A copy of a detector that only detects: the same detections, except for rounding, in less time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ciod.detectors.base import Detector, Input
from ciod.detectors.layers.blocks import ConvBN
from ciod.detectors.onnx.detector import OnnxDetector
from ciod.training import speed

FEW = 8  # pictures: for fewer the copy takes longer than it saves


def quick(detector: Detector) -> Detector:
    """The copy. Batch normalisation is part of the convolutions, weights and pictures are channels last, activations
    overwrite their input where nothing else reads it, and pictures are prepared in one pass.

    Outputs are compared with those of ``detector`` on a picture of noise; if they differ by more than rounding,
    ``detector`` itself is returned, as it is for an ONNX file, whose runtime does all this. The copy must not be
    trained or saved.
    """
    if isinstance(detector, OnnxDetector):
        return detector
    copy: Any = speed.fold(detector)
    if copy is detector:
        return detector
    speed.lay_out(copy)
    for module in copy.modules():
        if type(module) is ConvBN:  # nothing else reads what its activation overwrites
            module.act.inplace = True
    if type(copy).normalise is Detector.normalise:
        copy.normalise = normaliser(copy.input, copy.mean, copy.std)
    return copy if speed.same(detector, copy) else detector


def normaliser(spec: Input, mean: Tensor, std: Tensor) -> Callable[[Tensor], Tensor]:
    """``Detector.normalise`` with bit-equal results: channels are swapped while they are bytes, the layout changes with
    the type, and nothing is subtracted or divided where that changes nothing.

    Args:
        mean, std: [3, 1, 1], RGB.
    """
    plain = not any(spec.mean) and all(s == 1 for s in spec.std)
    if spec.bgr:
        mean, std = mean.flip(0), std.flip(0)

    def normalise(images: Tensor) -> Tensor:
        x = images.flip(1) if spec.bgr else images
        x = x.to(mean.dtype, memory_format=torch.channels_last)
        return x if plain else (x - mean) / std

    return normalise
