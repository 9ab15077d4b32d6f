"""Query detectors whose choice of places depends on no rounding."""

from __future__ import annotations

import torch
from torch import nn

from ciod import detectors
from ciod.detectors.query.detector import QueryDetector
from tests.detectors.common import NAMES, make, pictures

ALL = [n for n in detectors.available() if "query" in detectors.traits(n)]


def trained(name: str = "rtdetr-pico", names=NAMES) -> QueryDetector:
    """Class rows that choose places in earnest, and the statistics of the pictures, from which features differ."""
    detector = make(name, names)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        detector(pictures(6))  # fewer: rounding would grow
    for rows in detector.class_layers():
        nn.init.normal_(rows.tensor, std=0.5)
    assert isinstance(detector, QueryDetector)
    return detector.eval()
