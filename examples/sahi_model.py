"""Large pictures in slices: a ciod model as a detection model of SAHI (pip install sahi).

    from sahi.predict import get_sliced_prediction
    from sahi_model import CiodModel

    model = CiodModel(model_path="model.safetensors", confidence_threshold=0.3)
    found = get_sliced_prediction("large.jpg", model, slice_height=640, slice_width=640)

Small objects that vanish when a large picture is made as small as the model's input are found in its slices. A model
that ``ciod extend`` wrote works in the same way, also as an ONNX file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sahi.models.base import DetectionModel
from sahi.prediction import ObjectPrediction

import ciod


class CiodModel(DetectionModel):
    """``image_size`` is the side of the input in pixels; None: that of the model. ``device``: as in SAHI."""

    def load_model(self) -> None:
        self.set_model(ciod.load(self.model_path, size=self.image_size))

    def set_model(self, model: Any, **_: Any) -> None:
        self.model = model.to(self.device)
        self.category_mapping = {str(i): name for i, name in enumerate(model.class_names)}

    def perform_inference(self, image: np.ndarray) -> None:
        """``image``: [H, W, 3] uint8 RGB."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: list[np.ndarray]) -> None:
        found = self.model.predict(images, score_threshold=self.confidence_threshold, batch=len(images))
        self._original_shapes = [image.shape for image in images]
        self._original_predictions = found

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: Any = None, full_shape_list: Any = None
    ) -> None:
        many = len(self._original_predictions)
        shifts = _one_each(shift_amount_list, many) or [[0, 0]] * many
        shapes = _one_each(full_shape_list, many) or [list(shape[:2]) for shape in self._original_shapes or []]
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=[float(v) for v in one.box],
                    category_id=int(one.label),
                    category_name=one.name,
                    score=float(one.score),
                    shift_amount=shift,
                    full_shape=shape,
                )
                for one in found
            ]
            for found, shift, shape in zip(self._original_predictions, shifts, shapes, strict=True)
        ]


def _one_each(given: Any, many: int) -> list[Any] | None:
    """A list with an entry per picture; SAHI also passes the entry of a single picture."""
    if not given:
        return None
    listed = given if isinstance(given[0], (list, tuple)) else [given]
    return [list(x) for x in (listed * many if len(listed) == 1 else listed)]
