"""Query detectors as ONNX files: the answers alone, the same as the model's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ciod.core.errors import ConfigError
from ciod.exporters.onnx_file import export, read_metadata
from tests.detectors.common import NAMES, SIZE, pictures
from tests.detectors.query.networks import ALL, trained

pytest.importorskip("transformers", reason="transformers is absent: pip install 'ciod[detr]'")
pytest.importorskip("scipy", reason="scipy is absent: pip install 'ciod[detr]'")
pytest.importorskip("onnx", reason="onnx is absent: pip install 'ciod[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")


@pytest.mark.parametrize("name", ALL)
def test_a_file_gives_the_answers_of_the_model(name, tmp_path):
    detector = trained(name)
    detector.grow(["dog"])
    with torch.no_grad():
        for rows in detector.class_layers():
            rows.tensor.mul_(0.5)  # larger rows multiply the rounding of the features
    done = export(detector, tmp_path / "a.onnx", opset=17)
    assert done.verified and done.opset == 17 and done.score_difference < 1e-4 and done.box_difference < 1e-2
    session = onnxruntime.InferenceSession(str(done.path), providers=["CPUExecutionProvider"])
    x = pictures(2).float()
    boxes, scores = session.run(None, {"images": x.numpy()})
    with torch.no_grad():
        answer = detector.eval()(x).answer()
    assert scores.shape == (2, detector.network.config.num_queries, len(NAMES) + 1)
    np.testing.assert_allclose(scores, answer.scores().numpy(), atol=1e-4)
    np.testing.assert_allclose(boxes, answer.boxes.numpy(), atol=1e-4 * SIZE)
    assert read_metadata(done.path)["class_names"] == [*NAMES, "dog"]


def test_detections_of_a_file_are_those_of_decode(tmp_path):
    done = export(trained(), tmp_path / "a.onnx", nms=True, score_threshold=0.3)
    assert done.verified and done.detections


def test_the_size_of_a_graph_is_fixed(tmp_path):
    match = (
        "dynamic_size: the graph of rtdetr-pico holds the places of its queries for one size; leave dynamic_size out"
    )
    with pytest.raises(ConfigError, match=match):
        export(trained(), tmp_path / "a.onnx", dynamic_size=True)
