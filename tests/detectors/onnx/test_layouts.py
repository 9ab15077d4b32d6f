"""Every layout is recognised by shapes and values alone and gives back the detections it was made from."""

from __future__ import annotations

import numpy as np
import pytest

from ciod.core.errors import CiodError
from ciod.detectors.onnx.layout import Facts, corners, grid_of
from ciod.detectors.onnx.layouts import per_picture, recognise
from ciod.detectors.onnx.lists import one_hot

SIZE, CLASSES, STRIDES = 96, 5, (8, 16, 32)
CELLS = 144 + 36 + 9


def detections(seed: int, n: int = CELLS) -> tuple[np.ndarray, np.ndarray]:
    """A box and scores at every cell: boxes [n, 4] xyxy around the cells, scores [n, C]."""
    rng = np.random.default_rng(seed)
    corner, stride = corners(SIZE, STRIDES)
    centre = corner + rng.uniform(0.4, 0.6, (CELLS, 2)) * stride
    half = stride * rng.uniform(0.3, 3, (CELLS, 2)) / 2
    boxes = np.concatenate([centre - half, centre + half], 1)
    scores = rng.random((CELLS, CLASSES)) ** 4
    return boxes[:n].astype(np.float32), scores[:n].astype(np.float32)


def centred(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)


def logit(p: np.ndarray) -> np.ndarray:
    p = p.clip(1e-7, 1 - 1e-7)
    return np.log(p / (1 - p))


def raw(boxes: np.ndarray) -> np.ndarray:
    corner, stride = corners(SIZE, STRIDES)
    c = centred(boxes)
    return np.concatenate([(c[:, :2] - corner) / stride, np.log(c[:, 2:] / stride)], 1)


def grid(boxes, scores, *, box=centred, objectness=True, transposed=False, scale=1.0):
    parts = [box(boxes) * scale, *([np.full((len(boxes), 1), 0.5)] if objectness else []), scores]
    rows = np.concatenate(parts, 1).astype(np.float32)[None]
    return [rows.transpose(0, 2, 1) if transposed else rows]


def best(boxes, scores):
    return np.concatenate([boxes, scores.max(1, keepdims=True), scores.argmax(1)[:, None]], 1).astype(np.float32)


def softmax_logits(scores, background):
    """Logits whose softmax gives the scores, with an inserted column for the background."""
    scores = scores / (2 * scores.sum(1, keepdims=True))
    return np.log(np.insert(scores, background, 0.5, 1))


def distances(boxes):
    """Outputs of levels: for each stride classes and distributions over 0..7 that stand at two neighbouring bins."""
    corner, stride = corners(SIZE, STRIDES)
    centre = corner + stride / 2
    side = np.concatenate([centre - boxes[:, :2], boxes[:, 2:] - centre], 1) / stride
    bins = np.arange(8)
    share = (1 - np.abs(side[..., None] - bins)).clip(1e-9)
    return np.log(share).reshape(len(boxes), 32).astype(np.float32)


# name: (outputs of boxes and scores, how scores come back, number of named classes, a part of the words)
HALF = lambda s: s / 2  # noqa: E731
MADE = {
    "grid yolox raw": (lambda b, s: grid(b, s, box=raw), HALF, None, "relative to its cell, objectness"),
    "grid yolov5": (lambda b, s: grid(b, s), HALF, None, "centre and size in pixels, objectness, 5 classes"),
    "grid unit": (lambda b, s: grid(b, s, scale=1 / SIZE), HALF, None, "centre and size in 0..1, objectness"),
    "grid without": (lambda b, s: grid(b, s, objectness=False), None, CLASSES, "no objectness, 5 classes"),
    "grid corners": (lambda b, s: grid(b, s, box=lambda x: x), HALF, None, "corners in pixels, objectness"),
    "grid yolov8": (
        lambda b, s: grid(b, s, objectness=False, transposed=True), None, None, "one column per position",
    ),
    "grid segments": (
        lambda b, s: [*grid(b, np.hstack([s, s - 2]), objectness=False, transposed=True), np.zeros((1, 32, 24, 24))],
        None, CLASSES, "5 columns more, not read",
    ),
    "grid logits": (
        lambda b, s: grid(b, logit(s), objectness=False, transposed=True), None, None, "5 classes as logits",
    ),
    "rows": (lambda b, s: [best(b, s)[None]], "best", CLASSES, "corners, score, label"),
    "rows unit": (lambda b, s: [best(b / SIZE, s)[None]], "best", CLASSES, "label in 0..1"),
    "rows paddle": (
        lambda b, s: [best(b, s)[:, [5, 4, 0, 1, 2, 3]], np.array([len(b)], np.int32)], "best", CLASSES,
        "label, score, corners",
    ),
    "boxes-scores": (lambda b, s: [b[None], s[None]], None, None, "corners in pixels) and sigmoid of 5"),
    "boxes-scores transposed": (lambda b, s: [s.T[None], b[None]], None, None, "corners in pixels) and sigmoid of 5"),
    "boxes-scores detr": (
        lambda b, s: [logit(s)[None], centred(b)[None] / SIZE], None, None, "centre and size in 0..1) and logits of 5",
    ),
    "boxes-scores softmax": (
        lambda b, s: [b[None], np.exp(softmax_logits(s, 0))[None]], "shares", None, "background in column 0",
    ),
    "boxes-scores softmax logits": (
        lambda b, s: [b[None], softmax_logits(s, CLASSES)[None]], "shares", CLASSES, "background in column 5",
    ),
    "boxes-scores-labels": (
        lambda b, s: [b, s.max(1), s.argmax(1)], "best", CLASSES, "boxes (corners in pixels), score and label",
    ),
    "boxes-scores-labels batch": (
        lambda b, s: [np.array([[len(b)]]), b[None], s.max(1)[None], s.argmax(1)[None].astype(np.int32)], "best",
        CLASSES, "boxes (corners in pixels), score and label",
    ),
    "level-pairs": (
        lambda b, s: [
            x for i, j in ((0, 144), (144, 180), (180, 189)) for x in (s[None, i:j], distances(b)[None, i:j])
        ],
        None, None, "classes and distances of each stride (8, 16, 32), 8 bins, 5 classes",
    ),
    "level-pairs maps": (
        lambda b, s: [
            x[i:j].T.reshape(1, -1, k, k)
            for x in (logit(s), distances(b)) for i, j, k in ((0, 144, 12), (144, 180, 6), (180, 189, 3))
        ],
        None, CLASSES, "classes and distances of each stride",
    ),
    "grid-distances": (
        lambda b, s: [np.hstack([s, distances(b)])[None]], None, CLASSES,
        "classes and distances, one row per position (strides 8, 16, 32), 8 bins, 5 classes",
    ),
    "grid-distances columns": (
        lambda b, s: [np.hstack([s, distances(b)]).T[None]], None, CLASSES, "one column per position",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MADE)
def test_made_outputs_are_decoded_back(name):
    make, back, named, words = MADE[name]
    sources = [detections(seed) for seed in range(4)]
    pictures = [per_picture([np.asarray(a) for a in _floats(make(b, s))], 1)[0] for b, s in sources]
    layout = recognise(pictures, Facts(SIZE, named))
    assert layout is not None and layout.name == name.split()[0] and words in layout.words
    assert layout.classes == CLASSES
    for outputs, (boxes, scores) in zip(pictures, sources):
        got_boxes, got = layout.decode(outputs)
        assert got_boxes.dtype == got.dtype == np.float32
        np.testing.assert_allclose(got_boxes, boxes, atol=2e-3)
        if back == "best":
            scores = scores * (scores == scores.max(1, keepdims=True))
        elif back == "shares":
            scores = scores / (2 * scores.sum(1, keepdims=True))
        np.testing.assert_allclose(got, scores if back in (None, "best", "shares") else back(scores), atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_large_boxes_are_not_taken_for_corners(transposed):
    """Sizes above the centres in every row: only the cells tell centres from corners."""
    boxes, scores = detections(0)
    boxes = boxes + np.array([-200, -200, 200, 200], np.float32)
    outputs = _floats(per_picture(grid(boxes, scores, transposed=transposed), 1)[0])
    found = recognise([outputs], Facts(SIZE, CLASSES))
    assert found is not None and "centre and size in pixels" in found.words
    np.testing.assert_allclose(found.decode(outputs)[0], boxes, atol=1e-3)


def test_the_distances_of_four_strides_begin_in_the_corners_of_the_cells():
    """NanoDet-Plus has strides 8 to 64, and 80 classes without names are COCO's."""
    rng, cells = np.random.default_rng(0), sum((-(-416 // s)) ** 2 for s in (8, 16, 32, 64))
    outputs = [np.hstack([rng.random((cells, 80)), 9 * rng.standard_normal((cells, 32))]).astype(np.float32)]
    outputs[0][0, 80:] = np.tile([20, 0, 0, 0, 0, 0, 0, 0], 4)  # no distance: the box is the point
    found = recognise([outputs], Facts(416, None))
    assert found is not None and found.name == "grid-distances" and found.classes == 80
    np.testing.assert_allclose(found.decode(outputs)[0][0], 0, atol=1e-3)


@pytest.mark.parametrize("kind", ["sigmoid", "logits", "softmax"])
@pytest.mark.parametrize("first", [0, 1])
def test_four_columns_of_scores_are_not_boxes(first, kind):
    """Both outputs have four columns: of four classes, or of three and a background."""
    make = {"sigmoid": lambda s: s, "logits": logit, "softmax": lambda s: np.exp(softmax_logits(s[:, :3], 0))}[kind]
    pictures = []
    for seed in range(4):
        boxes, scores = detections(seed)
        outputs = [centred(boxes) / SIZE, make(scores[:, :4])]
        pictures.append(_floats(outputs[::-1] if first else outputs))
    found = recognise(pictures, Facts(SIZE, 3 if kind == "softmax" else 4))
    assert found.name == "boxes-scores" and found.boxes == first and found.kind == kind
    np.testing.assert_allclose(found.decode(pictures[0])[0], detections(0)[0], atol=1e-3)


def _floats(outputs):
    return [a.astype(np.float32) if np.asarray(a).dtype == np.float64 else a for a in outputs]


def test_the_same_by_name_and_not_by_another():
    pictures = [per_picture(grid(*detections(0)), 1)[0]]
    assert recognise(pictures, Facts(SIZE, None), "grid") is not None
    assert recognise(pictures, Facts(SIZE, None), "rows") is None
    assert recognise(pictures, Facts(SIZE, None), "none") is None


@pytest.mark.parametrize(
    "outputs",
    [
        [np.zeros((1, 85, 22, 22), np.float32)],  # FastestDet
        [np.zeros((1, 1000), np.float32)],  # a classifier
        [np.zeros((1, 190, 85), np.float32)],  # no grid of 96 pixels has 190 cells
        [np.zeros((1, CELLS, 9), np.float32)],  # all the same: nothing tells what it means
        [[np.zeros(3)]],  # a sequence
        [np.zeros((1, 4), np.float32), np.zeros((1, 3), np.int64)],
        [np.full((5, 4), [9, 9, 1, 1], np.float32), np.zeros(5, np.float32), np.zeros(5, np.int64)],  # corners reversed
        [np.full((5, 4), 1, np.float32), np.full(5, 7, np.float32), np.zeros(5, np.int64)],  # no scores
        [np.full((5, 6), [9, 9, 1, 1, 0.5, 2], np.float32)],
        [np.full((5, 6), [9, 9, 10, 10, 0.5, 2], np.int64)],
        [np.zeros((1, 144, 5), np.float32), np.zeros((1, 144, 32), np.float32)],  # one level alone
        [np.full((9, 3), 0.5, np.float32), np.tile([0.1, 0.2, -1, 1], (9, 1)).astype(np.float32)],  # offsets of anchors
    ],
)
def test_what_is_not_understood(outputs):
    assert recognise([outputs], Facts(SIZE, None)) is None


def test_no_detection_in_the_pictures_is_reported():
    layout = recognise([[np.zeros((300, 6), np.float32)]], Facts(SIZE, 3))
    assert layout is not None and "by shape alone" in layout.words
    boxes, scores = layout.decode([np.zeros((300, 6), np.float32)])
    assert boxes.shape == (0, 4) and scores.shape == (0, 3)


def test_a_label_without_a_name_is_an_error_not_a_class():
    with pytest.raises(CiodError, match=r"returned the label \d+, but only \d+ classes are known; give all names"):
        one_hot(np.zeros((1, 4)), np.ones(1), np.array([3]), 3)


def test_grids():
    assert grid_of(3549, 416) == ((8, 16, 32), 1)
    assert grid_of(8400, 640) == ((8, 16, 32), 1)
    assert grid_of(25200, 640) == ((8, 16, 32), 3)
    assert grid_of(2125, 320) == ((8, 16, 32, 64), 1)
    assert grid_of(400, 320) == ((16,), 1)
    assert grid_of(300, 640) is None and grid_of(1001, 640) is None


def test_pictures_of_a_batch_part():
    batch = [np.arange(6).reshape(2, 3), np.array(7)]
    assert [[np.asarray(a).tolist() for a in p] for p in per_picture(batch, 2)] == [[[0, 1, 2], 7], [[3, 4, 5], 7]]
    assert [a.shape for a in per_picture([np.zeros((1, 5, 6)), np.zeros((5, 4)), np.zeros((1, 5))], 1)[0]] == [
        (5, 6), (5, 4), (5,),
    ]  # fmt: skip
