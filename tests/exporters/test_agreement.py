"""What counts as the same graph: errors of float32 pass, wrong boxes and scores do not."""

from __future__ import annotations

import math

import pytest
import torch

from ciod import detectors
from ciod.core.errors import ConfigError
from ciod.detectors.base import Detector
from ciod.exporters.agreement import MATTERS, POSITIONS, TOLERANCE, distance, distance_of_sets
from ciod.exporters.onnx_file import export
from tests.inference.networks import SIZE, pictures, settled

BOXES = torch.tensor([[[0.3, 0.3, 200.3, 100.3], [300.0, 300.0, 302.0, 302.0]]])
SCORES = torch.tensor([[[0.9], [0.5]]])


def moved(position: int, by: float) -> torch.Tensor:
    boxes = BOXES.clone()
    boxes[0, position, 0] += by
    return boxes


def test_an_error_of_a_box_is_a_share_of_its_side():
    """An edge at 0.3 pixels that is 0.0014 off: half a percent of the coordinate, and nothing of the box."""
    found = distance(moved(0, 0.0014), SCORES, BOXES, SCORES)
    assert found.within(TOLERANCE) and found.box == pytest.approx(0.0014, rel=1e-3)
    assert found.share == pytest.approx(0.0014 / 200, rel=1e-3) and found.score == 0
    assert not distance(moved(0, 0.4), SCORES, BOXES, SCORES).within(TOLERANCE)
    assert distance(moved(1, 0.014), SCORES, BOXES, SCORES).within(TOLERANCE), "a box of two pixels counts as sixteen"
    assert not distance(moved(1, 0.02), SCORES, BOXES, SCORES).within(TOLERANCE)


def test_unused_boxes_do_not_count():
    many, scores = BOXES[:, :1].repeat(1, 300, 1), torch.full((1, 300, 1), 0.9)
    scores[0, 200:] = MATTERS / 2
    wrong = many.clone()
    wrong[0, 250] += 50
    assert distance(wrong, scores, many, scores).within(TOLERANCE)
    scores[0, 250] = MATTERS * 2
    assert not distance(wrong, scores, many, scores).within(TOLERANCE)
    low = torch.linspace(1e-4, 1e-3, 300)[None, :, None]  # a model that is sure of nothing: its best boxes count
    assert distance(wrong, low, many, low).share > 0.1 and POSITIONS < 300
    assert distance(wrong, low.flip(1), many, low.flip(1)).share == 0
    seen_by_the_graph_alone = low.flip(1).clone()
    seen_by_the_graph_alone[0, 250] = 0.5
    assert not distance(many, seen_by_the_graph_alone, many, low.flip(1)).within(TOLERANCE)


def test_of_a_set_the_order_does_not_count_and_one_position_in_twenty_may_be_another():
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(1, 60, 2, generator=g) * 300
    boxes, scores = torch.cat([corner, corner + 40], 2), torch.linspace(1e-3, 5e-3, 60)[None, :, None]
    order = torch.randperm(60, generator=g)
    assert distance_of_sets(boxes[:, order], scores[:, order], boxes, scores).within(TOLERANCE)
    wrong = boxes.clone()
    for n, within in ((3, True), (4, False)):  # of the lowest scores
        wrong[:, :n] += 5
        assert distance_of_sets(wrong[:, order], scores[:, order], boxes, scores).within(TOLERANCE) == within
    wrong = boxes.clone()
    wrong[:, -1] += 5  # the best
    assert not distance_of_sets(wrong, scores, boxes, scores).within(TOLERANCE)
    wrong[:, 0] = math.nan
    assert not distance_of_sets(wrong, scores, boxes, scores).within(1.0)


@pytest.mark.parametrize("of", ["boxes", "scores"])
def test_nan_is_never_within(of):
    boxes, scores = moved(1, math.nan if of == "boxes" else 0), SCORES + (math.nan if of == "scores" else 0)
    assert not distance(boxes, scores, BOXES, SCORES).within(1.0)


def extended(twice: str) -> Detector:
    """Taught two more classes, and then two more."""
    torch.manual_seed(0)
    detector = detectors.build(("cat", "dog"), name="yolox-pico", size=SIZE)
    for names, way in zip((("eel", "fox"), ("gnu", "hen")), twice.split("+")):
        if way == "branch":
            detector.add_branch(names)
        else:
            detector.grow(names)
    with torch.no_grad():
        for seed in range(12):
            detector.train()(pictures(4, seed))
    for layer in detector.class_layers():
        torch.nn.init.normal_(layer.tensor)
    return detector.eval()


MODES = [{}, {"nms": True}, {"dynamic_size": True}, {"nms": True, "dynamic_size": True, "max_detections": 20}]


@pytest.mark.parametrize("twice", ["rows+rows", "branch+branch", "rows+branch"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "+".join(mode) or "raw")
def test_a_model_that_was_extended_twice_is_exported_in_every_mode(twice, mode, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    done = export(extended(twice), tmp_path / "a.onnx", **mode)
    assert done.verified and (done.detections is None or done.detections > 0)


def test_the_official_yolox_is_exported_with_photographs(weights, datasets, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    photos = datasets / "coco671" / "images"
    done = export(weights / "yolox_nano_coco.pth", tmp_path / "a.onnx", nms=True, images=photos, dynamic_size=True)
    assert done.verified and done.detections and done.score_difference < 1e-4


def test_a_tolerance_set_by_the_user(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")
    detector = settled()
    with pytest.raises(ConfigError, match=r"tolerance: 0 is not above 0 and at most 1"):
        export(detector, tmp_path / "a.onnx", tolerance=0)
    with pytest.raises(Exception, match="1e-09 is allowed, and tolerance= allows more"):
        export(detector, tmp_path / "a.onnx", tolerance=1e-9)
    assert export(detector, tmp_path / "a.onnx", tolerance=0.1).verified
