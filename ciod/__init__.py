"""Class-incremental object detection: a trained detector learns new classes without the old data.

Public names are imported when they are first used, so that ``import ciod`` is fast:

    ciod.train(data="folder", split="3+3", method="ilyolox", out="runs/mine")
    ciod.compare("shapes-6+4", methods="finetune,pseudo_label,ilyolox", seeds=3)
    ciod.extend("yolox_nano.pth", data="folder", out="runs/more")
    ciod.evaluate("runs/mine/task-2/model.safetensors", data="folder")
    ciod.load("runs/mine/task-2/model.safetensors").predict("photo.jpg")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ciod.core.gc_pause import uncollected
from ciod.core.version import __version__ as __version__

if TYPE_CHECKING:  # for editors and type checkers; at run time see __getattr__
    from ciod.api import draw, evaluate, extend, train
    from ciod.comparison import compare
    from ciod.core.errors import CiodError
    from ciod.core.types import Detections
    from ciod.data.scenarios.scenario import Scenario
    from ciod.detectors.base import Detector
    from ciod.detectors.files.weights import load
    from ciod.exporters.hub import push
    from ciod.exporters.onnx_file import export
    from ciod.inference.images import predict
    from ciod.inference.quick import fast
    from ciod.inference.video import frames
    from ciod.methods.base.method import Method
    from ciod.training.hooks import Hooks

_WHERE = {
    "train": "ciod.api",
    "compare": "ciod.comparison",
    "extend": "ciod.api",
    "evaluate": "ciod.api",
    "draw": "ciod.api",
    "predict": "ciod.inference.images",
    "fast": "ciod.inference.quick",
    "frames": "ciod.inference.video",
    "export": "ciod.exporters.onnx_file",
    "push": "ciod.exporters.hub",
    "load": "ciod.detectors.files.weights",
    "Scenario": "ciod.data.scenarios.scenario",
    "Detector": "ciod.detectors.base",
    "Method": "ciod.methods.base.method",
    "Hooks": "ciod.training.hooks",
    "Detections": "ciod.core.types",
    "CiodError": "ciod.core.errors",
}

__all__ = [
    "CiodError",
    "Detections",
    "Detector",
    "Hooks",
    "Method",
    "Scenario",
    "compare",
    "draw",
    "evaluate",
    "export",
    "extend",
    "fast",
    "frames",
    "load",
    "predict",
    "push",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "plot":
        return importlib.import_module("ciod.plot")
    if name in _WHERE:
        with uncollected():
            return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'ciod' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *_WHERE, "plot"]
