"""A faster detector and a cheaper teacher: memory layout, folded batch normalisation, lower precision."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

if TYPE_CHECKING:
    from ciod.config import Train
    from ciod.detectors.detector import Detector

CLOSE = 1e-4  # largest relative difference of folded outputs; rounding gives about 1e-6
PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}


def lay_out(detector: Detector, settings: Train) -> None:
    """Weights channels last: convolutions run up to a third faster, with the same results but for rounding."""
    if settings.channels_last:
        detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def cheap_teacher(detector: Detector, settings: Train) -> Detector:
    """The frozen copy of ``detector`` that ``settings.teacher`` asks for."""
    teacher = detector.frozen()
    lay_out(teacher, settings)
    if settings.teacher == "exact":
        return teacher
    teacher.precision = PRECISION.get(settings.teacher)
    return fold(teacher)


def fold(detector: Detector) -> Detector:
    """A copy in eval mode whose convolutions have swallowed the batch normalisation behind them.

    A pair is a convolution and the normalisation defined right after it in the same module. That order of definition
    is the order of execution is checked on noise: where outputs differ by more than rounding, nothing is folded.
    """
    folded = detector.frozen()
    folded.precision = detector.precision
    for module in folded.modules():
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _fit(conv, norm):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    folded.eval().requires_grad_(False)  # what took the place of a normalisation starts in train mode
    return folded if same(detector, folded) else detector


def _fit(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> bool:
    return conv.out_channels == norm.num_features and norm.running_mean is not None


@torch.no_grad()
def same(one: Detector, other: Detector) -> bool:
    """Whether two detectors give the same outputs, but for rounding, on a picture of noise."""
    noise = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float().to(one.device)
    a, b = one(noise), other(noise)
    pairs = [(a.logits, b.logits), (a.boxes, b.boxes)]
    if a.objectness is not None and b.objectness is not None:
        pairs.append((a.objectness, b.objectness))
    gaps = torch.stack([(x - y).abs().amax() / x.abs().amax().clamp(min=1) for x, y in pairs if x.numel()])
    return bool(gaps.amax() < CLOSE)
