"""Class-incremental object detection: a trained detector learns new classes without the old data.

Public names, imported when first used, so that ``import ciod`` is instant:

    ciod.train(data="folder", split="3+3", method="ilyolox", out="runs/mine")
    ciod.compare("shapes-6+4", methods="finetune,pseudo_label,ilyolox", seeds=3)
    ciod.extend("yolox_nano.pth", data="folder", out="runs/more")
    ciod.evaluate("runs/mine/task-2/model.safetensors", data="folder")
    ciod.load("runs/mine/task-2/model.safetensors").predict("photo.jpg")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ciod.garbage import uncollected
from ciod.version import __version__ as __version__

if TYPE_CHECKING:  # for editors and type checkers; at run time see __getattr__
    from ciod.api import evaluate, extend, train
    from ciod.comparison import compare
    from ciod.data.scenario import Scenario
    from ciod.detectors.detector import Detector
    from ciod.detectors.weights import load
    from ciod.errors import CiodError
    from ciod.inference.onnx_file import export
    from ciod.inference.pictures import predict
    from ciod.inference.video import frames
    from ciod.methods.method import Method
    from ciod.types import Detections

_WHERE = {
    "train": "ciod.api",
    "compare": "ciod.comparison",
    "extend": "ciod.api",
    "evaluate": "ciod.api",
    "predict": "ciod.inference.pictures",
    "frames": "ciod.inference.video",
    "export": "ciod.inference.onnx_file",
    "load": "ciod.detectors.weights",
    "Scenario": "ciod.data.scenario",
    "Detector": "ciod.detectors.detector",
    "Method": "ciod.methods.method",
    "Detections": "ciod.types",
    "CiodError": "ciod.errors",
}

__all__ = [
    "CiodError",
    "Detections",
    "Detector",
    "Method",
    "Scenario",
    "compare",
    "evaluate",
    "export",
    "extend",
    "frames",
    "load",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        with uncollected():
            return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'ciod' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
