"""The maps that a branch reads, in graphs with the heads of well-known families, written node by node."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciod.detectors.onnx import file, graph, recognise, taps
from ciod.detectors.onnx.recognise import Asked
from tests.detectors.onnx.graphs import SIZE, Net
from tests.detectors.onnx.test_taps import assert_as_built, find

CLASSES = 3


def flat(net: Net, x: str, features: int) -> str:
    """[1, A · features, h, w] → [1, h · w · A, features]."""
    rows = net.node("Transpose", [x], net.channels[x], perm=[0, 2, 3, 1])
    return net.node("Reshape", [rows, net.const(np.array([1, -1, features], np.int64))], features)


def joined(net: Net, parts: list[str]) -> str:
    return net.node("Concat", parts, net.channels[parts[0]], axis=1)


def ssd(net: Net, anchors: int = 3) -> None:
    """SSD: predictions straight from the backbone's maps, boxes in 0..1 and a softmax with background."""
    scores, boxes = [], []
    for x in net.backbone():
        scores.append(flat(net, net.conv(x, anchors * (CLASSES + 1), act=None), CLASSES + 1))
        boxes.append(flat(net, net.conv(x, anchors * 4, act=None), 4))
    net.output(net.node("Softmax", [joined(net, scores)], 4, axis=-1))
    net.output(net.node("Sigmoid", [joined(net, boxes)], 4))


def retinanet(net: Net, anchors: int = 3) -> None:
    """RetinaNet: FPN, two towers per level, boxes and a sigmoid per class."""
    scores, boxes = [], []
    for stride, x in zip((8, 16, 32), net.fpn(net.backbone(), 8)):
        cls, reg = (net.conv(net.conv(x, 8), 8) for _ in range(2))
        net.expected[stride].late, net.expected[stride].towers = x, [cls, reg]
        scores.append(flat(net, net.conv(cls, anchors * CLASSES, act=None), CLASSES))
        boxes.append(flat(net, net.conv(reg, anchors * 4, act=None), 4))
    net.output(net.node("Sigmoid", [joined(net, scores)], CLASSES))
    net.output(joined(net, boxes))


def yolov8(net: Net, bins: int = 16) -> None:
    """YOLOv8: FPN and PAN, two towers, a distribution per side that a convolution with fixed weights averages."""
    sides, scores = [], []
    maps = net.fpn(net.backbone(), 8, joined=True, pan=True)
    for stride, x in zip((8, 16, 32), maps):
        reg, cls = (net.conv(net.conv(x, 8, act="SiLU"), 8, act="SiLU") for _ in range(2))
        net.expected[stride].late, net.expected[stride].towers = x, [reg, cls]
        for tower, width, kept in ((reg, 4 * bins, sides), (cls, CLASSES, scores)):
            y = net.conv(tower, width, 1, act=None)
            kept.append(net.node("Reshape", [y, net.const(np.array([1, width, -1], np.int64))], width))
    side = net.node("Concat", sides, 4 * bins, axis=2)
    side = net.node("Reshape", [side, net.const(np.array([1, 4, bins, -1], np.int64))], bins)
    share = net.node("Softmax", [net.node("Transpose", [side], bins, perm=[0, 2, 1, 3])], bins, axis=1)
    weights = net.const(np.arange(bins, dtype=np.float32).reshape(1, bins, 1, 1))
    mean = net.node("Conv", [share, weights], 1, kernel_shape=[1, 1])
    box = net.node("Reshape", [mean, net.const(np.array([1, 4, -1], np.int64))], 4)
    score = net.node("Sigmoid", [net.node("Concat", scores, CLASSES, axis=2)], CLASSES)
    net.output(net.node("Concat", [box, score], 4 + CLASSES, axis=1))


def nanodet(net: Net, bins: int = 8) -> None:
    """NanoDet: one shared tower per level, one layer for all predictions; classes and distances of each stride."""
    outputs = []
    for stride, x in zip((8, 16, 32), net.fpn(net.backbone(), 8, pan=True)):
        tower = net.conv(net.conv(x, 8), 8)
        net.expected[stride].late = tower
        y = flat(net, net.conv(tower, CLASSES + 4 * bins, 1, act=None), CLASSES + 4 * bins)
        first = net.const(np.arange(CLASSES))
        score = net.node("Sigmoid", [net.node("Gather", [y, first], CLASSES, axis=2)], CLASSES)
        rest = net.const(np.arange(CLASSES, CLASSES + 4 * bins))
        outputs += [score, net.node("Gather", [y, rest], 4 * bins, axis=2)]
    for output in outputs:
        net.output(output)


@pytest.mark.parametrize("build", [ssd, retinanet, yolov8, nanodet])
def test_the_maps_of_a_family(tmp_path, build):
    net = Net()
    build(net)
    assert_as_built(net, find(net, tmp_path))


@pytest.mark.parametrize(
    ("build", "names", "words"),
    [
        (nanodet, ("a", "b", "c"), "classes and distances of each stride (8, 16, 32), 8 bins, 3 classes"),
        (ssd, ("a", "b", "c"), "softmax of 3 classes, background in column"),
    ],
)
def test_the_outputs_of_a_family(tmp_path, build, names, words):
    net = Net()
    build(net)
    found = recognise.recognise(net.save(tmp_path / "m.onnx"), Asked(input="imagenet,bgr,stretch", names=names))
    assert found.layout is not None and words in found.layout.words and found.names == names


def test_offsets_from_anchors_are_not_boxes(tmp_path):
    """The anchors are not in the file."""
    net = Net()
    retinanet(net)
    found = recognise.recognise(net.save(tmp_path / "m.onnx"), Asked(input="imagenet,bgr", names=("a", "b", "c")))
    assert found.layout is None and len(found.levels) == 3


def test_a_square_table_of_queries_is_not_a_map(tmp_path):
    """DETR's way at 800 pixels with 100 queries: the table of attention is as large as a map of stride 8."""
    net, count, width = Net(), SIZE // 8, 8
    maps = net.fpn(net.backbone(), width, pan=True)
    net.rows(net.head(maps, CLASSES, towers=1))
    tokens = net.node("Reshape", [maps[1], net.const(np.array([1, width, -1], np.int64))], width)
    tokens = net.node("Transpose", [tokens], width, perm=[0, 2, 1])
    queries = net.node("Gather", [tokens, net.const(np.arange(count))], width, axis=1)
    split = net.const(np.array([1, count, 2, width // 2], np.int64))
    heads = net.node("Reshape", [queries, split], width // 2)
    left, right = (net.node("Transpose", [heads], width, perm=p) for p in ([0, 2, 1, 3], [0, 2, 3, 1]))
    table = net.node("Softmax", [net.node("MatMul", [left, right], 2)], 2, axis=-1)
    net.output(net.node("MatMul", [table, left], 2))
    levels = find(net, tmp_path)
    assert [v.late and v.late.name for v in levels][::2] == [maps[0], maps[2]]
    assert all(net.channels[t.name] == t.channels != 2 for v in levels for t in v.taps)


WIDTHS = st.lists(st.integers(2, 6), min_size=5, max_size=5).map(lambda steps: tuple(int(w) for w in np.cumsum(steps)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 16),
    layout=st.tuples(st.booleans(), st.sampled_from([1, 2, "n"]), st.sampled_from([SIZE, "s"])),
    opset=st.sampled_from([9, 10, 11, 13, 17, 21]),
    widths=WIDTHS,
    residual=st.integers(0, 2),
    neck=st.one_of(st.none(), st.tuples(st.integers(4, 11), st.booleans(), st.booleans())),
    head=st.tuples(st.integers(1, 5), st.integers(0, 2), st.booleans(), st.sampled_from(["Relu", "SiLU"])),
)
def test_random_pyramids(tmp_path_factory, seed, layout, opset, widths, residual, neck, head):
    """Whatever widths, neck, towers and opset a graph has, what it was built with is found."""
    last, batch, side = layout
    net = Net(seed, opset=opset, last=last, batch=batch, side=side)
    maps = net.backbone(widths, residual=residual)
    if neck is not None:
        width, join, pan = neck
        maps = net.fpn(maps, width, joined=join, pan=pan)
    classes, towers, coupled, act = head
    net.rows(net.head(maps, classes, towers=towers, coupled=coupled, act=act))
    path = net.save(tmp_path_factory.mktemp("random") / "m.onnx")
    source = file.read(path)
    assert_as_built(net, taps.find(graph.Flow(source, SIZE), path))
