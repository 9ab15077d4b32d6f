"""A copy of a detector that only detects: the same detections, except for rounding, in less time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ciod.core.errors import CiodError, ConfigError, did_you_mean
from ciod.core.types import Detections, Outputs
from ciod.detectors.base import Detector, Input
from ciod.detectors.layers.blocks import ConvBN
from ciod.detectors.onnx.detector import OnnxDetector
from ciod.inference.runtime import available, known_decoding, runtime
from ciod.training import speed

Engine = Literal["auto", "torch", "onnx"]
FEW = 8  # pictures: for fewer the copy takes longer than it saves
MANY = 100  # pictures: from here on a graph for ONNX Runtime saves more than it costs to make (1 to 3 s)


def quick(detector: Detector, engine: Engine = "torch", pictures: int | None = None) -> Detector:
    """The copy, which must not be trained or saved; ``detector`` itself if it is an ONNX file.

    Args:
        engine: what runs the network. ``onnx``: ONNX Runtime, which is fastest on a CPU. ``auto``: ONNX Runtime for
            ``MANY`` pictures on a CPU, if it is installed and can; else PyTorch.
        pictures: how many there are; None: unknown, probably many.

    Raises:
        ConfigError: there is no such engine.
        CiodError: engine is ``onnx``, and ONNX Runtime is not installed or cannot run the network.
    """
    if engine not in get_args(Engine):
        raise ConfigError([f"engine: there is no '{engine}'; {did_you_mean(engine, list(get_args(Engine)))}"])
    if isinstance(detector, OnnxDetector):
        return detector
    copy: Any = None
    many = detector.device.type == "cpu" and (pictures is None or pictures >= MANY)
    if engine == "onnx":
        copy = in_runtime(detector)
    elif engine == "auto" and many and available():
        try:
            copy = in_runtime(detector)
        except CiodError:  # not every network can
            copy = None
    copy = in_torch(detector) if copy is None else copy
    if copy is not detector and known_decoding(copy):
        copy.decode = candidates_only(copy)
    return copy


def fast(model: Detector, engine: Engine = "auto") -> Detector:
    """A copy for many calls of ``predict``: the same detections, except for rounding, in less time. Making it takes 1
    to 3 seconds. It must not be trained or saved, and does not follow later changes of ``model``.

    Args:
        engine: ``onnx``: ONNX Runtime runs the network, on a CPU. ``torch``: PyTorch does, with batch normalisation
            folded. ``auto``: ONNX Runtime where it is installed and can run the network, on a CPU; else PyTorch.

    Raises:
        ConfigError: there is no such engine.
        CiodError: engine is ``onnx``, and ONNX Runtime is not installed or cannot run the network.
    """
    return quick(model, engine)


def in_runtime(detector: Detector) -> Detector:
    """See ``runtime``; raises its error as one of ``engine``."""
    own = type(detector).normalise is not Detector.normalise
    try:
        return runtime(detector, None if own else normaliser(detector.input, detector.mean, detector.std))
    except CiodError as error:
        raise CiodError(f"engine: {error}") from error


def in_torch(detector: Detector) -> Detector:
    """A copy whose batch normalisation is part of the convolutions. Weights and pictures are channels last, activations
    overwrite their input where nothing else reads it, and pictures are prepared in one pass.

    Outputs are compared with those of ``detector`` on a picture of noise; if they differ by more than rounding,
    ``detector`` itself is returned.
    """
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


def candidates_only(detector: Detector) -> Callable[..., list[Detections]]:
    """``Detector.decode`` for less: scores are computed only where one can be above the threshold.

    No score is above its objectness (or the root of it), and none is above that of the highest logit, so the detections
    are the same. An arbiter weighs all positions against each other, so with one nothing is left out.
    """
    whole = detector.decode

    def decode(
        outputs: Outputs, *, score_threshold: float | None = None, multi_label: bool = False, **more: Any
    ) -> list[Detections]:
        outputs = outputs.answer()
        floor = detector.score_threshold if score_threshold is None else score_threshold
        given = {"score_threshold": floor, "multi_label": multi_label, **more}
        highest = None if outputs.maps and detector.arbiter is not None else _highest(outputs, multi_label)
        if highest is None:
            return whole(outputs, **given)
        places = [torch.nonzero(row > floor)[:, 0] for row in highest]
        return [found for i, at in enumerate(places) for found in whole(_at(outputs, i, at), **given)]

    return decode


def _highest(outputs: Outputs, multi_label: bool) -> Tensor | None:
    """[B, P]: what no score of a position exceeds; None: that is not cheaper to know than the scores."""
    if outputs.objectness is not None:
        quality = outputs.objectness.sigmoid()
        return quality.sqrt() if outputs.root else quality
    if multi_label or not outputs.logits.shape[2]:
        return None
    return outputs.logits.amax(2).sigmoid()


def _at(outputs: Outputs, image: int, places: Tensor) -> Outputs:
    """The outputs of one image at these positions [n], ascending."""
    first = [sum(outputs.parts[:i]) for i in range(len(outputs.parts) + 1)]
    inside = [int(((places >= a) & (places < b)).sum()) for a, b in itertools.pairwise(first)]
    quality = outputs.objectness
    return replace(
        outputs,
        logits=outputs.logits[image, places][None],
        boxes=outputs.boxes[image, places][None],
        objectness=None if quality is None else quality[image, places][None],
        parts=tuple(inside),
        answers=None,
    )
