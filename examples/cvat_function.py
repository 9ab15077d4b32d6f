"""CVAT annotates with a ciod model: pip install cvat-cli, then

    cvat-cli --server-host https://app.cvat.ai task auto-annotate TASK_ID --function-file cvat_function.py \\
        -p model=str:model.safetensors --allow-unmatched-labels
"""

from __future__ import annotations

import cvat_sdk.auto_annotation as cvataa
import PIL.Image
from cvat_sdk import models

import ciod


class Function:
    """One label per class; the classes of task and model are matched by name."""

    def __init__(self, model: str, score: float):
        self.model, self.score = ciod.load(model), score
        labels = [cvataa.label_spec(name, i, type="rectangle") for i, name in enumerate(self.model.class_names)]
        self.spec = cvataa.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image
    ) -> list[models.LabeledShapeRequest]:
        least = self.score if context.conf_threshold is None else context.conf_threshold
        found = self.model.predict(image.convert("RGB"), score_threshold=least)
        return [cvataa.rectangle(label, list(box)) for _, _, box, label in found]


def create(model: str = "model.safetensors", score: float = 0.3) -> cvataa.DetectionFunction:
    return Function(model, score)
