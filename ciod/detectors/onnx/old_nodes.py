"""The layouts of old outputs as nodes: boxes and scores in the graph, as ``Layout.decode`` computes them from
arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ciod.detectors.onnx.grids import Grid, GridDistances, LevelPairs
from ciod.detectors.onnx.layout import Layout, corners
from ciod.detectors.onnx.lists import Pair, Rows, Triple
from ciod.detectors.onnx.nodes import Nodes

Names = tuple[str, str]
"""Boxes [n, P, 4] xyxy in pixels of the input, scores [n, P, C] in 0..1."""


def columns(nodes: Nodes, x: str, which: Sequence[int], axis: int = 2) -> str:
    """Some columns along an axis, in this order."""
    first, last = which[0], which[-1]
    if len(which) > 1 and list(which) == list(range(first, last + 1)):  # far faster than Gather; from opset 10 on
        ends = (nodes.const([k], np.int64) for k in (first, last + 1, axis))
        return nodes.add("Slice", x, *ends)
    return nodes.add("Gather", x, nodes.const(which, np.int64), axis=axis)


def decoded(nodes: Nodes, layout: Layout, outputs: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Names:
    """Boxes and scores from the outputs of a graph.

    Args:
        outputs: their names, in order.
        shapes: their measured shapes.
    """
    if isinstance(layout, Grid):
        return _grid(nodes, layout, outputs[0])
    if isinstance(layout, GridDistances):
        return _grid_distances(nodes, layout, outputs[0])
    if isinstance(layout, Pair):
        return _pair(nodes, layout, outputs, shapes)
    if isinstance(layout, Rows):
        return _rows(nodes, layout, outputs[0])
    if isinstance(layout, Triple):
        boxes, score, label = (outputs[i] for i in layout.places)
        score, label = (nodes.add("Reshape", x, nodes.const([1, -1, 1], np.int64)) for x in (score, label))
        place = nodes.add("Reshape", boxes, nodes.const([1, -1, 4], np.int64))
        return _one_hot(nodes, place, score, label, layout.size if layout.unit else 1, layout.classes or 0)
    assert isinstance(layout, LevelPairs)
    return _levels(nodes, layout, outputs, shapes)


def xyxy(nodes: Nodes, boxes: str) -> str:
    """Centre and size → corners."""
    centre = columns(nodes, boxes, (0, 1))
    half = nodes.add("Mul", columns(nodes, boxes, (2, 3)), nodes.const(0.5))
    return nodes.add("Concat", nodes.add("Sub", centre, half), nodes.add("Add", centre, half), axis=2)


def _grid(nodes: Nodes, layout: Grid, output: str) -> Names:
    rows = nodes.to_float(output)
    rows = nodes.add("Transpose", rows, perm=[0, 2, 1]) if layout.transposed else rows
    boxes = columns(nodes, rows, range(4))
    scores = columns(nodes, rows, range(4 + layout.objectness, 4 + layout.objectness + layout.classes))
    scores = nodes.add("Sigmoid", scores) if layout.logits else scores
    if layout.objectness:
        sure = columns(nodes, rows, (4,))
        scores = nodes.add("Mul", scores, nodes.add("Sigmoid", sure) if layout.logits else sure)
    if layout.box == "cell":
        corner, stride = (nodes.const(a[None]) for a in corners(layout.size, layout.strides))
        centre = nodes.add("Add", nodes.add("Mul", columns(nodes, boxes, (0, 1)), stride), corner)
        log = nodes.add("Min", columns(nodes, boxes, (2, 3)), nodes.const(10.0))
        boxes = nodes.add("Concat", centre, nodes.add("Mul", nodes.add("Exp", log), stride), axis=2)
    if layout.box == "unit":
        boxes = nodes.add("Mul", boxes, nodes.const(layout.size))
    return boxes if layout.box == "corners" else xyxy(nodes, boxes), scores


def _pair(nodes: Nodes, layout: Pair, outputs: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Names:
    boxes, scores = (
        nodes.to_float(_batched(nodes, outputs[i], shapes[i], 2)) for i in (layout.boxes, 1 - layout.boxes)
    )
    scores = nodes.add("Transpose", scores, perm=[0, 2, 1]) if layout.transposed else scores
    if "logits" in layout.kind:
        scores = nodes.add("Sigmoid", scores) if layout.kind == "logits" else nodes.add("Softmax", scores, axis=2)
    if layout.background is not None:
        kept = [i for i in range(layout.classes + 1) if i != layout.background]
        scores = columns(nodes, scores, kept)
    boxes = nodes.add("Mul", boxes, nodes.const(layout.size)) if layout.unit else boxes
    return xyxy(nodes, boxes) if layout.centres else boxes, scores


def _batched(nodes: Nodes, output: str, shape: tuple[int, ...], rank: int) -> str:
    """An output with a batch dimension, which torchvision's exports lack."""
    return nodes.add("Reshape", output, nodes.const([1, *shape], np.int64)) if len(shape) == rank else output


def _rows(nodes: Nodes, layout: Rows, output: str) -> Names:
    rows = nodes.add("Reshape", nodes.to_float(output), nodes.const([1, -1, 6], np.int64))
    places = ((2, 3, 4, 5), (1,), (0,)) if layout.label_first else ((0, 1, 2, 3), (4,), (5,))
    boxes, score, label = (columns(nodes, rows, which) for which in places)
    return _one_hot(nodes, boxes, score, label, layout.size if layout.unit else 1, layout.classes or 0)


def _one_hot(nodes: Nodes, boxes: str, score: str, label: str, factor: int, classes: int) -> Names:
    """Boxes with one score and label each [1, n, 1] → boxes, and scores for every class."""
    onnx_int = 7  # TensorProto.INT64
    boxes = nodes.to_float(boxes)
    boxes = nodes.add("Mul", boxes, nodes.const(factor)) if factor != 1 else boxes
    own = nodes.add("Equal", nodes.add("Cast", label, to=onnx_int), nodes.const(range(classes), np.int64))
    return boxes, nodes.add("Mul", nodes.to_float(score), nodes.to_float(own))


def _levels(nodes: Nodes, layout: LevelPairs, outputs: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Names:
    boxes, scores = [], []
    for stride, c, d in layout.levels:
        cells = (-(-layout.size // stride)) ** 2
        score, distance = (_cells_first(nodes, outputs[i], shapes[i], cells) for i in (c, d))
        scores.append(nodes.add("Sigmoid", score) if layout.logits else score)
        centre = corners(layout.size, (stride,))[0] + stride / 2
        boxes.append(_of_distances(nodes, distance, layout.bins, centre, np.float32(stride)))
    return nodes.add("Concat", *boxes, axis=1), nodes.add("Concat", *scores, axis=1)


def _grid_distances(nodes: Nodes, layout: GridDistances, output: str) -> Names:
    rows = nodes.to_float(output)
    rows = nodes.add("Transpose", rows, perm=[0, 2, 1]) if layout.transposed else rows
    distances = columns(nodes, rows, range(layout.classes, layout.classes + 4 * layout.bins))
    boxes = _of_distances(nodes, distances, layout.bins, *layout.centres)
    return boxes, columns(nodes, rows, range(layout.classes))


def _of_distances(nodes: Nodes, distances: str, bins: int, centres: np.ndarray, strides: Any) -> str:
    """Boxes [n, P, 4] from distributions [n, P, 4 · bins] over the distances to their sides, in cells."""
    count = len(centres)
    share = nodes.add("Reshape", distances, nodes.const([0, count, 4, bins], np.int64))
    share = nodes.add("Softmax", share, axis=3)
    side = nodes.add("MatMul", share, nodes.const(np.arange(bins)[:, None]))
    side = nodes.add("Reshape", side, nodes.const([0, count, 4], np.int64))
    side = nodes.add("Mul", side, nodes.const(np.broadcast_to(strides, (1, count, 1))))
    centre = nodes.const(centres[None])
    first = nodes.add("Sub", centre, columns(nodes, side, (0, 1)))
    last = nodes.add("Add", centre, columns(nodes, side, (2, 3)))
    return nodes.add("Concat", first, last, axis=2)


def _cells_first(nodes: Nodes, output: str, shape: tuple[int, ...], cells: int) -> str:
    """[n, cells, F] from [n, cells, F], [n, F, cells] or [n, F, h, w]."""
    x = nodes.to_float(output)
    if len(shape) == 4:
        x = nodes.add("Reshape", x, nodes.const([0, shape[1], cells], np.int64))
        return nodes.add("Transpose", x, perm=[0, 2, 1])
    return x if shape[1] == cells else nodes.add("Transpose", x, perm=[0, 2, 1])
