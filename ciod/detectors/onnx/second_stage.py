"""The second stage of a branch as nodes of an ONNX graph."""

from __future__ import annotations

import numpy as np

from ciod.detectors.layers import refiner as r
from ciod.detectors.layers.refiner import Refiner
from ciod.detectors.onnx import file as f
from ciod.detectors.onnx.nodes import Nodes, array, layer
from ciod.detectors.onnx.old_nodes import Names, columns

OLDEST = 11  # opset: TopK by a number, GatherElements, ScatterElements
ALIGNED = 16  # opset from which RoiAlign must be told how it counts coordinates


def corrected(
    nodes: Nodes, refiner: Refiner, early: str, found: Names, *, classes: int, positions: int | None, opset: int
) -> Names:
    """Boxes and scores of a branch, the best of them corrected; as ``Refiner.answer``.

    Args:
        early: name of the map that the second stage reads, [n, F, h, w].
        found: boxes [n, P, 4] and scores [n, P, C] before.
        classes: C.
        positions: P; None: it depends on the image, and the graph counts them.
        opset: of the graph.
    """
    boxes, scores = found
    best = nodes.add("Reshape", largest(nodes, scores), nodes.const([0, -1], np.int64))
    if positions is None:
        count, at = _fewest(nodes, best, refiner.candidates)
    else:
        least = min(refiner.candidates, positions)
        count, at = nodes.const([least], np.int64), nodes.const([least - 1], np.int64)
    top, place = nodes.two("TopK", best, count, axis=1)
    last = nodes.add("Gather", top, at, axis=1)
    span = nodes.add("Add", nodes.add("Mul", last, nodes.const(r.FADE)), nodes.const(r.FLOOR))
    share = _within(nodes, nodes.add("Div", nodes.add("Sub", top, last), span), 0, 1)
    share = nodes.add("Reshape", share, nodes.const([0, -1, 1], np.int64))
    place = nodes.add("Reshape", place, nodes.const([0, -1, 1], np.int64))
    of_boxes = nodes.add("Expand", place, nodes.const([1, 1, 4], np.int64))
    before = nodes.add("GatherElements", boxes, of_boxes, axis=1)
    x = _samples(nodes, refiner, layer(nodes, early, refiner.read), before, top, opset)
    change, class_logits = _answers(nodes, refiner, x, top)
    name = f"{nodes.prefix}boxes", f"{nodes.prefix}scores"
    moved = nodes.add("Sub", _moved(nodes, before, change), before)
    after = nodes.add("Add", before, nodes.add("Mul", share, moved))
    boxes = nodes.add("ScatterElements", boxes, of_boxes, after, axis=1, output=name[0])
    if class_logits is None:
        return boxes, nodes.add("Identity", scores, output=name[1])
    power = nodes.add("Mul", share, nodes.const(r.CLASS_POWER))
    factor = nodes.add("Pow", nodes.add("Sigmoid", class_logits), power)
    of_classes = nodes.add("Expand", place, nodes.const([1, 1, classes], np.int64))
    lower = nodes.add("Mul", nodes.add("GatherElements", scores, of_classes, axis=1), factor)
    return boxes, nodes.add("ScatterElements", scores, of_classes, lower, axis=1, output=name[1])


def largest(nodes: Nodes, x: str) -> str:
    """[n, m, k] → [n, m, 1]."""
    return nodes.add("GatherElements", x, nodes.add("ArgMax", x, axis=2, keepdims=1), axis=2)


def _fewest(nodes: Nodes, best: str, most: int) -> tuple[str, str]:
    """``most``, or how many columns [n, P] has if they are fewer; and one less."""
    columns_of = nodes.add("Gather", nodes.add("Shape", best), nodes.const([1], np.int64), axis=0)
    least = nodes.add("Min", nodes.to_float(columns_of), nodes.const([most]))  # of whole numbers only from opset 12 on
    count = nodes.add("Cast", least, to=f.require("onnx").TensorProto.INT64)
    return count, nodes.add("Sub", count, nodes.const([1], np.int64))


def _within(nodes: Nodes, x: str, low: float, high: float) -> str:
    return nodes.add("Min", nodes.add("Max", x, nodes.const(low)), nodes.const(high))


def _samples(nodes: Nodes, refiner: Refiner, near: str, boxes: str, top: str, opset: int) -> str:
    """[n · k, WIDTH, side, side]: the map at points in and around boxes [n, k, 4], as ``layers.sampling.samples``.

    Args:
        top: any [n, k].
    """
    first, second = columns(nodes, boxes, (0, 1)), columns(nodes, boxes, (2, 3))
    centre = nodes.add("Mul", nodes.add("Add", first, second), nodes.const(0.5))
    centre = nodes.add("Sub", centre, nodes.const(refiner.stride / 2))
    side = nodes.add("Mul", nodes.add("Sub", second, first), nodes.const(r.AROUND))
    half = nodes.add("Mul", nodes.add("Max", side, nodes.const(refiner.stride)), nodes.const(0.5))
    rois = nodes.add("Concat", nodes.add("Sub", centre, half), nodes.add("Add", centre, half), axis=2)
    rois = nodes.add("Reshape", rois, nodes.const([-1, 4], np.int64))
    one = f.require("onnx").numpy_helper.from_array(np.ones(1, np.float32))
    ones = nodes.add("ConstantOfShape", nodes.add("Shape", top), value=one)
    number = nodes.add("Gather", nodes.add("NonZero", ones), nodes.const([0], np.int64), axis=0)
    image = nodes.add("Reshape", number, nodes.const([-1], np.int64))  # [n · k]
    more = {"coordinate_transformation_mode": "output_half_pixel"} if opset >= ALIGNED else {}
    size = {"output_height": refiner.side, "output_width": refiner.side}
    scale = {"sampling_ratio": 1, "spatial_scale": 1 / refiner.stride, "mode": "avg"}
    return nodes.add("RoiAlign", near, rois, image, **size, **scale, **more)


def _answers(nodes: Nodes, refiner: Refiner, x: str, top: str) -> tuple[str, str | None]:
    """Changes of boxes [n, k, 4] from samples, and class logits [n, k, C]; None: only boxes are corrected.

    Args:
        top: any [n, k].
    """
    points = refiner.side * refiner.side
    weight = array(refiner.hidden.weight)  # its columns are point by point; the samples are channel by channel
    weight = weight.reshape(len(weight), points, r.WIDTH).transpose(0, 2, 1).reshape(len(weight), -1)
    rows = nodes.add("Reshape", x, nodes.const([-1, points * r.WIDTH], np.int64))
    rows = nodes.add("MatMul", rows, nodes.const(weight.T))
    rows = nodes.silu(nodes.add("Add", rows, nodes.const(array(refiner.hidden.bias))))
    assert refiner.change is not None
    classes = [m for m in refiner.cls.blocks if hasattr(m, "weight")]
    weights = [r.STEP * array(refiner.change.weight), *(array(m.weight) for m in classes)]
    biases = [r.STEP * array(refiner.change.bias), *(array(m.bias) for m in classes)]
    total = sum(map(len, biases))
    rows = nodes.add("MatMul", rows, nodes.const(np.concatenate(weights).T))
    rows = nodes.add("Add", rows, nodes.const(np.concatenate(biases)))
    shape = nodes.add("Concat", nodes.add("Shape", top), nodes.const([total], np.int64), axis=0)
    rows = nodes.add("Reshape", rows, shape)
    return columns(nodes, rows, range(4)), columns(nodes, rows, range(4, total)) if classes else None


def _moved(nodes: Nodes, boxes: str, change: str) -> str:
    """As ``refiner.moved``."""
    first, second = columns(nodes, boxes, (0, 1)), columns(nodes, boxes, (2, 3))
    side = nodes.add("Sub", second, first)
    centre = nodes.add("Mul", nodes.add("Add", first, second), nodes.const(0.5))
    centre = nodes.add("Add", centre, nodes.add("Mul", columns(nodes, change, (0, 1)), side))
    grown = nodes.add("Exp", _within(nodes, columns(nodes, change, (2, 3)), -1, 1))
    half = nodes.add("Mul", nodes.add("Mul", side, grown), nodes.const(0.5))
    return nodes.add("Concat", nodes.add("Sub", centre, half), nodes.add("Add", centre, half), axis=2)
