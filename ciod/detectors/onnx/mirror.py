"""Whether the input is right: a detector should find in a mirrored picture what it finds in the original."""

from __future__ import annotations

import numpy as np
import torch

from ciod.core.boxes import iou_table
from ciod.core.plural import counted
from ciod.core.types import Detections
from ciod.detectors.onnx.detector import OnnxDetector

PICTURES = 24
LEAST = 0.5  # share of detections found again below which a warning is given
ENOUGH = 10  # minimum number of detections for a warning
FEW = 8  # fewer than one detection in this number of images: the detector may not see the objects
SCORE, IOU = 0.3, 0.5


def found_again(detector: OnnxDetector, images: np.ndarray) -> tuple[int, int]:
    """Number of old detections that are found again in the mirrored pictures, and number of all.

    Args:
        images: [n, 3, size, size] RGB 0..255.
    """
    again = count = 0
    for image in images:
        pair = torch.from_numpy(np.stack([image, image[:, :, ::-1]]))
        with torch.no_grad():
            plain, mirrored = detector.decode(detector(pair), score_threshold=SCORE)
        again += _pairs(plain, mirrored, image.shape[2])
        count += len(plain)
    return again, count


def _pairs(plain: Detections, mirrored: Detections, width: int) -> int:
    if not len(plain) or not len(mirrored):
        return 0
    back = mirrored.boxes[:, [2, 1, 0, 3]] * np.array([-1, 1, -1, 1]) + np.array([width, 0, width, 0])
    overlap = iou_table(plain.boxes, back.astype(np.float32))
    overlap[plain.labels[:, None] != mirrored.labels[None]] = 0
    return int((overlap.max(1) >= IOU).sum())


def input_warnings(detector: OnnxDetector, images: np.ndarray) -> list[str]:
    """A warning if too few detections are found again; otherwise []."""
    if detector.source.found.layout is None:
        return []
    images = images[:PICTURES]
    again, count = found_again(detector, images)
    if count * FEW < len(images):
        return [
            f"The old detector finds {counted(count, 'object')} in {counted(len(images), 'image')}: is input= "
            f"right? (It can be right "
            "if the images have none of the old classes.)"
        ]
    if count < ENOUGH or again >= LEAST * count:
        return []
    return [f"{again} of {count} old detections are found again in the mirrored picture: is input= right?"]
