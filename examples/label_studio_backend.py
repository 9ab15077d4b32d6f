"""Label Studio asks a ciod model for pre-annotations: install label-studio-ml (docs/labelling.md), put this file as
``model.py`` into the folder of a backend (``label-studio-ml create``), and start it with CIOD_MODEL=model.safetensors.
"""

from __future__ import annotations

import inspect
import os
from typing import Any

import PIL.Image
from label_studio_ml.model import LabelStudioMLBase

import ciod


class Ciod(LabelStudioMLBase):
    """Boxes of the model's classes, for a project with the tags RectangleLabels "label" and Image "image"."""

    def setup(self) -> None:
        self.detector, self.least = ciod.load(os.environ["CIOD_MODEL"]), float(os.environ.get("CIOD_SCORE", "0.3"))

    def predict(self, tasks: list[dict[str, Any]], context: Any = None, **_: Any) -> list[dict[str, Any]]:
        if not hasattr(self, "detector"):  # older versions do not call setup
            self.setup()
        answers = []
        for task in tasks:
            address, known = task["data"]["image"], inspect.signature(self.get_local_path).parameters
            more = {"task_id": task.get("id")} if "task_id" in known else {}  # not in the release on PyPI
            picture = PIL.Image.open(self.get_local_path(address, **more)).convert("RGB")
            found = self.detector.predict(picture, score_threshold=self.least)
            answers.append(found.to_label_studio(*picture.size))
        return answers
