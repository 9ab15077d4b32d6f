"""One output of all classes, old and new: after NMS (``nms=true``), or in the form of YOLOv8's files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ciod.core.errors import CiodError
from ciod.detectors.onnx.grids import Grid
from ciod.detectors.onnx.nodes import Nodes
from ciod.detectors.onnx.old_nodes import Names, columns, decoded

if TYPE_CHECKING:
    from ciod.detectors.onnx.detector import OnnxDetector

OLDEST = 11  # opset: ScatterND and GatherElements
DETECTIONS = 100


def check(detector: OnnxDetector, setting: str) -> None:
    """Refuses impossible settings.

    Raises:
        CiodError: the layout of the old outputs is unknown, or the opset is too old.
    """
    opened = detector.source.opened
    if detector.source.found.layout is None:
        raise CiodError(f"{setting}: the old outputs of {opened.whole.path.name} are not understood; leave it out.")
    if opened.whole.opset < OLDEST:
        raise CiodError(f"{setting}: {opened.whole.path.name} has opset {opened.whole.opset}; this needs {OLDEST}.")


def parts(nodes: Nodes, detector: OnnxDetector, branches: Sequence[Names]) -> list[Names]:
    """Boxes, and scores of all classes, of each part of the outputs.

    Args:
        branches: boxes and scores of each branch, those of the file first.
    """
    source = detector.source
    assert source.found.layout is not None
    outputs = source.opened.base.outputs
    shapes = [source.found.flow.shapes.get(o, ()) for o in outputs]
    found = [decoded(nodes, source.found.layout, outputs, shapes), *branches]
    table, counts = detector.channel_of.tolist(), [len(p) for p in detector.parts]
    return [
        (boxes, scatter_classes(nodes, scores, row, count))
        for (boxes, scores), row, count in zip(found, table, counts, strict=True)
    ]


def scatter_classes(nodes: Nodes, scores: str, row: Sequence[int], count: int) -> str:
    """Scores of some classes → scores of all, the others 0.

    Args:
        row: the column of each class; ``count``: it has none.
        count: of columns.
    """
    blocks: list[list[int]] = []
    for k in row:
        if blocks and k == blocks[-1][-1] + (k < count):  # columns in a row are cut out at once
            blocks[-1].append(k)
        else:
            blocks.append([k])
    first = columns(nodes, scores, (0,))
    parts = [
        columns(nodes, scores, b) if b[0] < count else nodes.add("Mul", first, nodes.const(np.zeros((1, 1, len(b)))))
        for b in blocks
    ]
    return nodes.add("Concat", *parts, axis=2) if len(parts) > 1 else parts[0]


def detections(nodes: Nodes, every: Sequence[Names], *, floor: float, iou: float) -> str:
    """[n, DETECTIONS × parts, 6], the best first: x1, y1, x2, y2, score, label; unused rows have the label -1.

    Each part has DETECTIONS rows: new classes never push out old boxes.
    """
    room = DETECTIONS * len(every)
    boxes = nodes.add("Concat", *(b for b, _ in every), axis=1)
    scores = nodes.add("Concat", *(s for _, s in every), axis=1)
    label = nodes.add("ArgMax", scores, axis=2, keepdims=1)  # [n, P, 1]
    best = nodes.add("GatherElements", scores, label, axis=2)  # [n, P, 1]
    count = nodes.add("Gather", nodes.add("Shape", scores), nodes.const([2], np.int64), axis=0)
    numbers = nodes.add("NonZero", nodes.add("ConstantOfShape", count, value=_one()))  # 0, 1, … [1, C]
    numbers = nodes.add("Reshape", numbers, nodes.const([1, 1, -1], np.int64))
    single = nodes.add("Mul", scores, nodes.to_float(nodes.add("Equal", label, numbers)))  # one label per position
    limits = nodes.const([room], np.int64), nodes.const([iou]), nodes.const([floor])
    kept = nodes.add("NonMaxSuppression", boxes, nodes.add("Transpose", single, perm=[0, 2, 1]), *limits)
    place = columns(nodes, kept, (0, 2), axis=1)
    found = nodes.add("Gather", nodes.add("Shape", kept), nodes.const([0], np.int64), axis=0)
    ones = nodes.add("ConstantOfShape", found, value=_one())
    flat = nodes.add("Reshape", best, nodes.const([0, -1], np.int64))
    mark = nodes.add("ScatterND", nodes.add("Mul", flat, nodes.const(0)), place, ones)
    score, chosen = _best(nodes, nodes.add("Mul", nodes.add("Add", flat, nodes.const(1)), mark), every)
    chosen = nodes.add("Reshape", chosen, nodes.const([0, -1, 1], np.int64))
    score = nodes.add("Reshape", score, nodes.const([0, -1, 1], np.int64))
    rows = nodes.add("Concat", boxes, nodes.to_float(label), axis=2)  # [n, P, 5]
    empty = nodes.add("Mul", columns(nodes, rows, [0] * DETECTIONS, axis=1), nodes.const(0))
    rows = nodes.add("Concat", rows, empty, axis=1)
    rows = nodes.add("GatherElements", rows, nodes.add("Concat", *[chosen] * 5, axis=2), axis=1)
    rows = nodes.add("Concat", columns(nodes, rows, range(4)), score, columns(nodes, rows, (4,)), axis=2)
    used = nodes.to_float(nodes.add("Greater", score, nodes.const(0)))
    unused = nodes.add("Mul", nodes.add("Sub", used, nodes.const(1)), nodes.const([0, 0, 0, 0, 0, 1]))
    return nodes.add("Add", nodes.add("Mul", rows, used), unused, output=f"{nodes.prefix}detections")


def _best(nodes: Nodes, ranked: str, every: Sequence[Names]) -> tuple[str, str]:
    """Score and position [n, DETECTIONS × parts] of the best of each part, the best first; score ≤ 0: an empty row.

    Args:
        ranked: [n, P]: score + 1 of what NMS keeps, else 0.
    """
    first = [columns(nodes, s, (0,)) for _, s in every]  # [n, positions of the part, 1]
    scores, chosen = [], []
    # Enough empty rows at the end to fill the list in any case.
    padding = nodes.add("Mul", columns(nodes, ranked, [0] * DETECTIONS, axis=1), nodes.const(0))
    for k in range(len(every)):
        own = [nodes.add("Mul", s, nodes.const(0)) for s in first]
        own[k] = nodes.add("Add", own[k], nodes.const(1))
        mask = nodes.add("Concat", *own, axis=1) if len(own) > 1 else own[0]
        mask = nodes.add("Reshape", mask, nodes.const([0, -1], np.int64))
        full = nodes.add("Concat", nodes.add("Mul", ranked, mask), padding, axis=1)
        score, place = nodes.two("TopK", full, nodes.const([DETECTIONS], np.int64), axis=1)
        scores.append(score)
        chosen.append(place)
    score, order = nodes.two(
        "TopK", nodes.add("Concat", *scores, axis=1), nodes.const([DETECTIONS * len(every)], np.int64), axis=1
    )
    places = nodes.add("GatherElements", nodes.add("Concat", *chosen, axis=1), order, axis=1)
    return nodes.add("Sub", score, nodes.const(1)), places


def _one() -> object:
    from ciod.detectors.onnx import file as f

    return f.require("onnx").numpy_helper.from_array(np.ones(1, np.float32))


def joined(nodes: Nodes, detector: OnnxDetector, every: Sequence[Names]) -> str:
    """[n, 4 + C, P] of all classes and positions, as YOLOv8's files have it: centre and size in pixels, then scores.

    The columns of the old positions are bit-equal to those of the old file, if it has the same kind of output.
    """
    layout, blocks = detector.source.found.layout, []
    for i, (boxes, scores) in enumerate(every):
        if i == 0 and isinstance(layout, Grid) and plain(detector):
            output = detector.source.opened.base.outputs[0]
            more = detector.num_classes - layout.classes
            none = nodes.add("Mul", columns(nodes, output, [0] * more, axis=1), nodes.const(0))
            blocks.append(nodes.add("Concat", output, none, axis=1) if more else output)
            continue
        first, last = (columns(nodes, boxes, which) for which in ((0, 1), (2, 3)))
        centre = nodes.add("Mul", nodes.add("Add", first, last), nodes.const(0.5))
        rows = nodes.add("Concat", centre, nodes.add("Sub", last, first), scores, axis=2)
        blocks.append(nodes.add("Transpose", rows, perm=[0, 2, 1]))
    return nodes.add("Concat", *blocks, axis=2, output=f"{nodes.prefix}joined")


def plain(detector: OnnxDetector) -> bool:
    """Whether the old output has YOLOv8's form and all its classes are kept."""
    layout, outputs = detector.source.found.layout, detector.source.opened.base.outputs
    if not isinstance(layout, Grid) or detector.parts[0] != list(range(layout.classes)):
        return False
    as_is = layout.transposed and not layout.objectness and not layout.logits and not layout.further
    kinds = {o.name: o.type.tensor_type.elem_type for o in detector.source.opened.base.content.graph.output}
    return as_is and layout.box == "pixels" and kinds[outputs[0]] == 1
