"""The arbiter between the branches of an ONNX file, as nodes of its graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from ciod.detectors.layers import arbiter as a
from ciod.detectors.onnx import file as f
from ciod.detectors.onnx.nodes import Nodes
from ciod.detectors.onnx.old_nodes import Names, columns
from ciod.detectors.onnx.second_stage import largest

if TYPE_CHECKING:
    from ciod.detectors.onnx.detector import OnnxDetector


def weigh(nodes: Nodes, detector: OnnxDetector, every: Sequence[Names], maps: Sequence[str]) -> list[Names]:
    """Boxes and scores of all parts, those of branches times the probability that the branch is right; as
    ``Arbiter.weigh``.

    Args:
        every: boxes [n, P, 4] and scores [n, P, C] of each part, the original detector first.
        maps: names of the arbiter's maps [n, F, h, w] in float32.
    """
    arbiter, branches = detector.arbiter, every[1:]
    if arbiter is None or not arbiter.on or not arbiter.listed:
        return list(every)
    most = min(max(a.LEAST, a.CANDIDATES // len(branches)), detector.positions)
    places, boxes = [], []
    for near, scores in branches:
        best = nodes.add("Reshape", largest(nodes, scores), nodes.const([0, -1], np.int64))
        _, place = nodes.two("TopK", best, nodes.const([most], np.int64), axis=1)
        places.append(nodes.add("Reshape", place, nodes.const([0, -1, 1], np.int64)))
        four = nodes.add("Concat", *[places[-1]] * 4, axis=2)
        boxes.append(nodes.add("GatherElements", near, four, axis=1))
    judged = nodes.add("Concat", *boxes, axis=1) if len(boxes) > 1 else boxes[0]
    probability, known = _judge(nodes, arbiter, judged, maps)
    found = [every[0]]
    for k, (near, scores) in enumerate(branches):
        own = arbiter.own([detector.kept(k + 1)])[0]
        if own is None:
            found.append((near, scores))
            continue
        mine = range(k * most, (k + 1) * most)
        share = nodes.add("MatMul", columns(nodes, probability, mine, axis=1), nodes.const(own[:, None].numpy()))
        near_known = columns(nodes, columns(nodes, known, mine, axis=1), torch.nonzero(own)[:, 0].tolist())
        right = nodes.add("Mul", share, largest(nodes, near_known))  # [n, most, 1]
        mean = nodes.add("MatMul", nodes.const(np.full((1, most), 1 / most)), right)  # [n, 1, 1]
        rest = nodes.add("Add", nodes.add("Mul", columns(nodes, scores, (0,)), nodes.const(0)), mean)
        factor = nodes.add("ScatterElements", rest, places[k], right, axis=1)
        found.append((near, nodes.add("Mul", scores, factor)))
    return found


def _judge(nodes: Nodes, arbiter: a.Arbiter, boxes: str, maps: Sequence[str]) -> tuple[str, str]:
    """``Arbiter.judge``: probabilities of the rows at boxes [n, m, 4], and how well known each is, [n, m, rows]."""
    layer = torch.cat([arbiter.weight, arbiter.projection.T])
    weights = (layer[:, arbiter.column] * arbiter.sign).split(arbiter.channels, 1)
    total = nodes.const(torch.cat([arbiter.bias, arbiter.bias.new_zeros(a.DIRECTIONS)]).numpy())
    for x, weight, stride in zip(maps, weights, arbiter.strides, strict=True):
        mean = _means(nodes, x, boxes, stride)
        total = nodes.add("Add", nodes.add("MatMul", mean, nodes.const(weight.T.numpy())), total)
    rows = len(arbiter.listed)
    discriminants = columns(nodes, total, range(rows))
    projected = columns(nodes, total, range(rows, rows + a.DIRECTIONS))
    ready = nodes.add("Mul", discriminants, nodes.const(1 / arbiter.degree))
    probability = nodes.add("Softmax", nodes.add("Add", ready, nodes.const(arbiter.prior.numpy())), axis=2)
    apart = nodes.add("Reshape", projected, nodes.const([0, 0, 1, -1], np.int64))
    apart = nodes.add("Sub", apart, nodes.const(arbiter.centre[None, None].numpy()))
    ones = nodes.const(np.ones((a.DIRECTIONS, 1)))
    square = nodes.add("MatMul", nodes.add("Mul", apart, apart), ones)
    square = nodes.add("Reshape", square, nodes.const([0, 0, rows], np.int64))
    log = nodes.add("Log", nodes.add("Max", square, nodes.const(1e-6)))
    limit, slope = arbiter.limit()
    known = nodes.add("Sigmoid", nodes.add("Mul", nodes.add("Sub", nodes.const(limit), log), nodes.const(slope)))
    return probability, known


def _means(nodes: Nodes, x: str, boxes: str, stride: int) -> str:
    """The mean of a map [n, F, h, w] inside boxes [n, m, 4] → [n, m, F]."""
    rows = nodes.add("Transpose", _shares(nodes, x, boxes, stride, 2), perm=[0, 1, 3, 2])  # [n, m, h, 1]
    share = nodes.add("Mul", rows, _shares(nodes, x, boxes, stride, 3))
    share = nodes.add("Reshape", share, nodes.const([0, 0, -1], np.int64))
    cells = nodes.add("Reshape", x, nodes.const([0, 0, -1], np.int64))
    return nodes.add("MatMul", share, nodes.add("Transpose", cells, perm=[0, 2, 1]))


def _shares(nodes: Nodes, x: str, boxes: str, stride: int, axis: int) -> str:
    """Weights [n, m, 1, cells] of the cells in the mean along one side of the boxes, as ``arbiter._shares``.

    Args:
        axis: of the map: 2, its height, or 3.
    """
    side = nodes.add("Gather", nodes.add("Shape", x), nodes.const([axis], np.int64), axis=0)
    one = f.require("onnx").numpy_helper.from_array(np.ones(1, np.float32))
    numbers = nodes.to_float(nodes.add("NonZero", nodes.add("ConstantOfShape", side, value=one)))
    numbers = nodes.add("Reshape", numbers, nodes.const([1, 1, 1, -1], np.int64))
    cells, none = nodes.to_float(side), nodes.const(0)

    def within(value: str, high: str) -> str:
        return nodes.add("Min", nodes.add("Max", value, none), high)

    ends = nodes.add("Mul", columns(nodes, boxes, (3 - axis, 5 - axis)), nodes.const(1 / stride))
    ends = nodes.add("Sub", within(ends, cells), nodes.const(0.5))
    low = columns(nodes, ends, (0,))
    extent = nodes.add("Max", nodes.add("Sub", columns(nodes, ends, (1,)), low), nodes.const(1))
    step = nodes.const(((np.arange(a.SAMPLES) + 0.5) / a.SAMPLES)[None, None])
    point = nodes.add(
        "Reshape", nodes.add("Add", low, nodes.add("Mul", extent, step)), nodes.const([0, 0, -1, 1], np.int64)
    )
    apart = nodes.add("Abs", nodes.add("Sub", within(point, nodes.add("Sub", cells, nodes.const(1))), numbers))
    weight = nodes.add("Max", nodes.add("Sub", nodes.const(1), apart), none)
    inside = nodes.to_float(nodes.add("Not", nodes.add("Greater", point, cells)))
    return nodes.add("MatMul", nodes.const(np.full((1, a.SAMPLES), 1 / a.SAMPLES)), nodes.add("Mul", weight, inside))
