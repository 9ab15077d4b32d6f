"""A branch as nodes of an ONNX graph, written one by one. Their operators have not changed since opset 9, so the graph
they are added to keeps its opset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ciod.detectors.dense import grid
from ciod.detectors.layers.blocks import ConvBN, DepthwiseConv
from ciod.detectors.layers.maps_branch import MapsBranch, MapsLevel, Standard
from ciod.detectors.onnx import file as f
from ciod.detectors.onnx.file import Proto

LARGEST_LOG = 10.0  # log size of a side in cells, as in ``yolox.assemble``


class Nodes:
    """Nodes and weights that are added to a graph.

    Args:
        prefix: prefix of every name.
        initializers: False: weights are nodes, for old files whose initializers must be inputs too.
    """

    def __init__(self, prefix: str, *, initializers: bool = True):
        self.prefix, self.initializers = prefix, initializers
        self.nodes: list[Proto] = []
        self.weights: list[Proto] = []
        self.outputs: list[Proto] = []
        self._count = 0

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self.prefix}{what}.{self._count}"

    def const(self, array: Any, dtype: Any = np.float32) -> str:
        """The name of a constant."""
        onnx, name = f.require("onnx"), self._name("const")
        tensor = onnx.numpy_helper.from_array(np.ascontiguousarray(np.asarray(array, dtype)), name)
        if self.initializers:
            self.weights.append(tensor)
        else:
            self.nodes.append(onnx.helper.make_node("Constant", [], [name], name=name, value=tensor))
        return name

    def add(self, op: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """The name of the output of a new node."""
        name = output or self._name(op)
        self.nodes.append(f.require("onnx").helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def two(self, op: str, *inputs: str, **attributes: Any) -> tuple[str, str]:
        """The names of both outputs of a new node."""
        names = self._name(op), self._name(op)
        self.nodes.append(
            f.require("onnx").helper.make_node(op, list(inputs), list(names), name=names[0], **attributes)
        )
        return names

    def output(self, name: str, shape: Sequence[int | str | None]) -> None:
        """Makes a float32 tensor an output of the graph."""
        onnx = f.require("onnx")
        self.outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(shape)))

    def into(self, model: Proto) -> None:
        """Adds everything to a model."""
        model.graph.node.extend(self.nodes)
        model.graph.initializer.extend(self.weights)
        model.graph.output.extend(self.outputs)

    def to_float(self, x: str) -> str:
        return self.add("Cast", x, to=f.require("onnx").TensorProto.FLOAT)

    def silu(self, x: str) -> str:
        return self.add("Mul", x, self.add("Sigmoid", x))

    def conv(self, x: str, weight: np.ndarray, bias: np.ndarray, stride: int = 1, groups: int = 1) -> str:
        kernel = weight.shape[2]
        return self.add(
            "Conv",
            x,
            self.const(weight),
            self.const(bias),
            kernel_shape=[kernel] * 2,
            pads=[kernel // 2] * 4,
            strides=[stride] * 2,
            group=groups,
        )


def array(tensor: Any) -> np.ndarray:
    """Weights for ``Nodes.const``, in float64 for what is computed with them before."""
    return tensor.detach().cpu().double().numpy()


def layer(nodes: Nodes, x: str, module: nn.Module, standard: Standard | None = None, *, shifted: bool = True) -> str:
    """A block of ``layers.blocks``, its batch normalisation folded.

    Args:
        standard: standardisation of ``x``, folded into the first convolution, which must be pointwise with ``shifted``.
    """
    if isinstance(module, nn.Sequential):
        for part in module:
            x, standard = layer(nodes, x, part, standard), None
        return x
    if isinstance(module, DepthwiseConv):
        x = layer(nodes, x, module.depth, standard, shifted=shifted)
        return layer(nodes, x, module.point)
    assert isinstance(module, ConvBN)
    conv, norm = module.conv, module.bn
    factor = array(norm.weight) / np.sqrt(array(norm.running_var) + norm.eps)
    weight, bias = array(conv.weight), -array(norm.running_mean) * factor + array(norm.bias)
    if standard is not None:
        weight, more = _standardised(weight, standard, depthwise=conv.groups > 1, shifted=shifted)
        bias = bias + more * factor
    weight = weight * factor[:, None, None, None]
    return nodes.silu(nodes.conv(x, weight, bias, conv.stride[0], conv.groups))


def _standardised(
    weight: np.ndarray, standard: Standard, *, depthwise: bool = False, shifted: bool = True
) -> tuple[np.ndarray, Any]:
    """Weights for plain maps from weights for standardised ones, and what is added to the bias."""
    scale, shift = array(standard.scale)[:, None, None], array(standard.shift)
    ready = weight * (scale[:, None] if depthwise else scale)
    return ready, weight[:, :, 0, 0] @ shift if shifted else 0.0


def _predictions(nodes: Nodes, level: MapsLevel, maps: Sequence[str], inner: str | None) -> str:
    """[n, 5 + C, h, w]: box, objectness and classes, as a sum over their terms."""
    layers = [level.reg, level.obj, *level.cls.blocks]
    weight = np.concatenate([array(m.weight) for m in layers])
    total = np.concatenate([array(m.bias) for m in layers])
    parts: list[tuple[str, np.ndarray]] = []
    first = 0
    if level.tower is None:
        towers = len(level.maps.towers)
        for x, standard in zip(maps[-towers:], level.standards[-towers:], strict=True):
            width = len(standard.scale)
            ready, more = _standardised(weight[:, first : first + width], standard)
            parts.append((x, ready))
            total, first = total + more, first + width
    else:
        read = int(bool(level.maps.early and level.maps.late))  # the neck's map, if there is one
        width = weight.shape[1] - level.inner
        tower = layer(nodes, maps[read], level.tower, level.standards[read])
        parts.append((tower, weight[:, :width]))
        first = width
    if inner is not None:
        parts.append((inner, weight[:, first:]))
    found = ""
    for i, (x, w) in enumerate(parts):
        y = nodes.conv(x, w, total if i == 0 else np.zeros_like(total))
        found = nodes.add("Add", found, y) if found else y
    return found


def _level(
    nodes: Nodes, level: MapsLevel, maps: Sequence[str], above: tuple[str, Standard | None] | None
) -> tuple[str, tuple[str, Standard | None] | None]:
    """Predictions, and what is passed down: a map and its scale."""
    standards = level.standards
    early = (maps[0], standards[0]) if level.maps.early else None
    if not level.inner:
        return _predictions(nodes, level, maps, None), early
    place = int(level.maps.early > 0)
    parts = []
    if level.tap is not None:
        parts.append(layer(nodes, maps[0], level.tap, standards[0]))
    if level.neck is not None:
        parts.append(layer(nodes, maps[place], level.neck, standards[place]))
    if level.above is not None:
        assert above is not None
        parts.append(layer(nodes, above[0], level.above, above[1], shifted=False))
    x = layer(nodes, nodes.add("Concat", *parts, axis=1) if len(parts) > 1 else parts[0], level.mix)
    if level.refine is not None:
        x = nodes.add("Add", x, layer(nodes, x, level.refine))
    return _predictions(nodes, level, maps, x), (x, None)


def branch(nodes: Nodes, module: MapsBranch, maps: Sequence[Sequence[str]], size: int | None) -> tuple[str, str]:
    """A branch without its second stage: the names of boxes [n, P, 4] xyxy in pixels of the input, and scores
    [n, P, C] in 0..1, which are those of the outputs if there is no second stage.

    Args:
        maps: names of [n, C, h, w] float32 per level, in the order of ``Channels.taken``.
        size: side of the input in pixels; None: any size; the graph counts the cells.
    """
    flat: list[tuple[str, str]] = []
    above: tuple[str, Standard | None] | None = None
    for level, own in zip(module.levels, maps, strict=True):
        x, above = _level(nodes, level, own, above)
        flat.append((nodes.add("Reshape", x, nodes.const([0, 5 + len(module.columns), -1], np.int64)), x))
    rows = nodes.add("Concat", *(x for x, _ in flat), axis=2) if len(flat) > 1 else flat[0][0]
    rows = nodes.add("Transpose", rows, perm=[0, 2, 1])
    if size is None:
        corner, step = _counted(nodes, [x for _, x in flat], module.strides)
    else:
        corner, step = _cells(nodes, size, module.strides)

    def columns(*which: int) -> str:
        return nodes.add("Gather", rows, nodes.const(which, np.int64), axis=2)

    centre = nodes.add("Add", nodes.add("Mul", columns(0, 1), step), corner)
    log = nodes.add("Min", columns(2, 3), nodes.const(LARGEST_LOG))
    half = nodes.add("Mul", nodes.add("Mul", nodes.add("Exp", log), step), nodes.const(0.5))
    ends = nodes.add("Sub", centre, half), nodes.add("Add", centre, half)
    boxes = nodes.add("Concat", *ends, axis=2, output=None if module.refiner else f"{nodes.prefix}boxes")
    classes = nodes.add("Sigmoid", columns(*range(5, 5 + len(module.columns))))
    name = None if module.refiner else f"{nodes.prefix}scores"
    return boxes, nodes.add("Mul", classes, nodes.add("Sigmoid", columns(4)), output=name)


def _cells(nodes: Nodes, size: int, strides: Sequence[int]) -> tuple[str, str]:
    """Corners [1, P, 2] and strides [1, P, 1] of all cells, as constants."""
    sides = [-(-size // s) for s in strides]
    corner, step, _ = grid([torch.empty(1).expand(1, 1, side, side) for side in sides], strides)  # only for shapes
    return nodes.const(corner[None].numpy()), nodes.const(step[None, :, None].numpy())


def _counted(nodes: Nodes, maps: Sequence[str], strides: Sequence[int]) -> tuple[str, str]:
    """Like ``_cells``, from the shapes of the maps when the graph runs."""
    onnx = f.require("onnx")
    corners, steps = [], []
    for x, stride in zip(maps, strides, strict=True):
        sides = nodes.add("Gather", nodes.add("Shape", x), nodes.const([2, 3], np.int64), axis=0)
        one = onnx.numpy_helper.from_array(np.ones(1, np.float32))
        place = nodes.to_float(nodes.add("NonZero", nodes.add("ConstantOfShape", sides, value=one)))  # [2, h·w]: y, x
        place = nodes.add("Gather", nodes.add("Transpose", place, perm=[1, 0]), nodes.const([1, 0], np.int64), axis=1)
        corner = nodes.add("Mul", place, nodes.const(stride))
        corners.append(corner)
        only = nodes.add("Gather", corner, nodes.const([0], np.int64), axis=1)
        steps.append(nodes.add("Add", nodes.add("Mul", only, nodes.const(0)), nodes.const(stride)))
    if len(maps) == 1:
        return corners[0], steps[0]
    return nodes.add("Concat", *corners, axis=0), nodes.add("Concat", *steps, axis=0)
