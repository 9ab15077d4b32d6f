"""Runs a detector on images in batches: files, arrays and PIL images of any size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ciod.core.errors import ConfigError, DataError
from ciod.core.files import nfc
from ciod.core.text_lists import near_name
from ciod.core.types import Detections, Outputs, in_original
from ciod.data.augment import put
from ciod.data.images import as_array


class Predictor(Protocol):
    """The part of ``Detector`` that this module needs. (``Detector.predict`` uses this module.)"""

    class_names: tuple[str, ...]
    input: Any
    training: bool
    parents: Any

    @property
    def device(self) -> torch.device: ...
    def __call__(self, images: Tensor) -> Outputs: ...
    @property
    def decode(self) -> Callable[..., list[Detections]]: ...
    def train(self, mode: bool = True) -> Any: ...


def mask_of(class_names: Sequence[str], wanted: Sequence[str] | None) -> Tensor | None:
    """[C] bool: which classes may be found. None: all.

    Raises:
        ConfigError: names that the model does not know, each with the nearest known name.
    """
    if wanted is None:
        return None
    wanted = [nfc(n) for n in ([wanted] if isinstance(wanted, str) else wanted)]
    problems = [
        f"classes: the model has no class '{n}'; {near_name('classes', n, class_names)}"
        for n in wanted
        if n not in class_names
    ]
    if problems or not wanted:
        raise ConfigError(problems or ["classes: there is no name in it."])
    return torch.tensor([n in wanted for n in class_names])


@torch.no_grad()
def detect(detector: Predictor, pictures: Sequence[np.ndarray], **decoding: Any) -> list[Detections]:
    """One forward pass over images [H, W, 3] uint8 of any sizes; boxes in pixels of each image.

    Args:
        decoding: arguments of ``Detector.decode``.
    """
    spec = detector.input
    placed = [put(p, spec.size, spec.fill, spec.place) for p in pictures]
    training = detector.training
    detector.train(False)
    try:
        outputs = detector(torch.stack([image for image, _ in placed]).to(detector.device))
        found = detector.decode(outputs, **decoding)
    finally:
        detector.train(training)
    return [in_original(d, frame, *p.shape[:2]) for d, (_, frame), p in zip(found, placed, pictures, strict=True)]


def stream(
    detector: Predictor,
    sources: Iterable[Any],
    *,
    batch: int = 8,
    score_threshold: float = 0.3,
    nms_iou: float | None = None,
    max_detections: int = 100,
    classes: Sequence[str] | None = None,
    finest: bool = False,
    read: Callable[[Any], np.ndarray] = as_array,
) -> Iterator[tuple[Any, np.ndarray | None, Detections | DataError]]:
    """Yields (source, image, detections) in order; (source, None, reason) if a source cannot be read.

    While the detector processes one batch, the next is decoded; at most two batches are in memory.

    Args:
        sources: files, arrays [H, W, 3] RGB or PIL images.
        finest: a box has one name where a class became several: see ``core.kinds.finest``.
        read: turns a source into an array; raises DataError if it cannot.

    Raises:
        ConfigError: a class that the model does not know, a batch below 1, or ``finest`` without kinds of a class.
    """
    if batch < 1:
        raise ConfigError([f"batch: {batch} is not at least 1."])
    if finest and not detector.parents:
        raise ConfigError(["finest: no class of the model became several (ciod extend split=); leave it out."])
    mask = mask_of(detector.class_names, classes)
    decoding = {
        "score_threshold": score_threshold,
        "nms_iou": nms_iou,
        "max_detections": max_detections,
        "classes": None if mask is None else mask.to(detector.device),
    }
    waiting = iter(sources)
    with ThreadPoolExecutor(max_workers=min(4, batch)) as pool:

        def ahead() -> tuple[list[Any], list[Any]]:
            chunk = list(itertools.islice(waiting, batch))
            return chunk, [pool.submit(_read, source, read) for source in chunk]

        chunk, reading = ahead()
        while chunk:
            decoded = [future.result() for future in reading]
            following = ahead()
            good = [picture for picture in decoded if not isinstance(picture, DataError)]
            found = iter(detect(detector, good, **decoding) if good else [])
            for source, picture in zip(chunk, decoded, strict=True):
                if isinstance(picture, DataError):
                    yield source, None, picture
                else:
                    yield source, picture, next(found).finest(detector.parents) if finest else next(found)
            chunk, reading = following


def _read(source: Any, read: Callable[[Any], np.ndarray]) -> np.ndarray | DataError:
    try:
        return read(source)
    except DataError as error:
        return error
