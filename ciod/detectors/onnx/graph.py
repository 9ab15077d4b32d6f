"""The data flow of an ONNX graph: which tensors depend on the pictures, their shapes, and the paths between them.

Shapes of tensors are known before a run. What is made of them alone (anchors, masks and position embeddings of a graph
for any size) does not depend on the pictures.

Everything follows the order of the nodes, never that of sets: the same file gives the same result in every process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np

from ciod.core.errors import CiodError
from ciod.detectors.onnx import file as f
from ciod.detectors.onnx.file import OnnxFile, Proto

AT_ONCE = 1 << 27  # elements of the tensors that one run returns
INTEGER = {"ConvInteger", "MatMulInteger"}
WEIGHTED = {"Conv", "Gemm", "MatMul", "QLinearConv", "QLinearMatMul", "ConvTranspose", *INTEGER}


class Flow:
    """Tensors that depend on the pictures.

    Attributes:
        order: their names, each after those it is made of.
        maker: the node that makes each (absent: the input).
        parents: for each, the tensors it is made of that depend on the pictures.
        children: the reverse.
        above: for each, its nearest dominator: the last tensor through which every path from the pictures passes.
        shapes: for each, as measured in one run at ``size`` pixels.
    """

    def __init__(self, source: OnnxFile, size: int):
        self.size, self.batch = size, source.picture.batch or 1
        self.order: list[str] = [source.picture.name]
        self.maker: dict[str, Proto] = {}
        self.parents: dict[str, list[str]] = {source.picture.name: []}
        for node in source.content.graph.node:
            if node.op_type in ("Shape", "Size"):
                continue
            given = [t for t in dict.fromkeys(inputs_of(node)) if t in self.parents]
            for made in node.output if given else ():
                if made:
                    self.order.append(made)
                    self.maker[made], self.parents[made] = node, given
        self._forget_unused(source.outputs)
        self.place = {t: i for i, t in enumerate(self.order)}
        self.children: dict[str, list[str]] = {t: [] for t in self.order}
        for tensor in self.order:
            for parent in self.parents[tensor]:
                self.children[parent].append(tensor)
        self.above = self._dominators()
        self.shapes = _measured(source, size, self.order)

    def common(self, tensors: Iterable[str]) -> str | None:
        """The last tensor through which every path to any of ``tensors`` passes; for one tensor, itself."""
        found: str | None = None
        for tensor in tensors:
            found = tensor if found is None else self._meet(found, tensor)
        return found

    def chain(self, tensor: str | None) -> Iterator[str]:
        """A tensor and its dominators, up to the pictures."""
        while tensor is not None:
            yield tensor
            tensor = self.above[tensor]

    def below(self, tensor: str) -> Iterator[str]:
        """Everything that is made of ``tensor``, in order."""
        reached = {tensor}
        for other in self.order[self.place[tensor] + 1 :]:
            if any(p in reached for p in self.parents[other]):
                reached.add(other)
                yield other

    def weighted(self, tensor: str) -> bool:
        """Whether a layer with weights makes it: one input from the pictures, the others constant. Where quantisation
        is dynamic, the zero point is a further input that depends on them."""
        node = self.maker.get(tensor)
        if node is None or node.op_type not in WEIGHTED:
            return False
        if node.op_type in INTEGER:
            return node.input[1] not in self.parents
        return len(self.parents[tensor]) == 1

    def _forget_unused(self, outputs: Sequence[str]) -> None:
        """Removes tensors on which no output depends."""
        used = {t for t in outputs if t in self.parents}
        for tensor in reversed(self.order):
            if tensor in used:
                used.update(self.parents[tensor])
        self.order = [t for t in self.order if t in used]

    def _dominators(self) -> dict[str, str | None]:
        self.above: dict[str, str | None] = {}
        self._depth: dict[str, int] = {}
        for tensor in self.order:
            parents = self.parents[tensor]
            found = reduce(self._meet, parents) if parents else None
            self.above[tensor] = found
            self._depth[tensor] = 0 if found is None else self._depth[found] + 1
        return self.above

    def _meet(self, a: str, b: str) -> str:
        while a != b:
            if self._depth[a] < self._depth[b]:
                a, b = b, a
            above = self.above[a]
            assert above is not None  # the pictures are above everything
            a = above
        return a


def inputs_of(node: Proto) -> Iterator[str]:
    """Tensors that a node reads, including those that graphs inside it take from outside."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inputs_of(inner)


def probe(source: OnnxFile, size: int, count: int = 1) -> np.ndarray:
    """Pictures of noise, coarse and fine, [count × batch, 3, size, size] float32 in 0..1, the same every time."""
    rng = np.random.default_rng(0)
    pictures = np.zeros((count * (source.picture.batch or 1), 3, size, size), np.float32)
    for cells in (3, 9, size // 4):
        coarse = rng.random((len(pictures), 3, cells, cells), np.float32) / 3
        at = np.arange(size) * cells // size
        pictures += coarse[:, :, at[:, None], at]
    return pictures


def _measured(source: OnnxFile, size: int, order: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in a run without optimisation; sequences, which are not tensors, are left out."""
    inferred = _inferred(source, size)
    if any(math.prod(s) > f.ELEMENTS for s in inferred.values()):
        raise CiodError(
            f"{source.path} makes a tensor of more than {f.ELEMENTS:,} elements; it is not run. Export the detector "
            "for smaller pictures."
        )
    feed = source.feed(probe(source, size))
    shapes: dict[str, tuple[int, ...]] = {source.picture.name: tuple(feed[source.picture.name].shape)}
    for names in _portions(order[1:], inferred):
        session = f.start(source.path, source.exposing(names), optimised=False)
        for name, value in zip(names, f.run(source.path, session, names, feed), strict=True):
            if isinstance(value, np.ndarray):
                shapes[name] = value.shape
    return shapes


def _portions(names: Sequence[str], shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Groups of tensors that one run can return together."""
    portion, filled = [], 0
    for name in names:
        filled += math.prod(shapes.get(name, (1 << 20,)))
        if portion and filled > AT_ONCE:
            yield portion
            portion, filled = [], math.prod(shapes.get(name, (1 << 20,)))
        portion.append(name)
    if portion:
        yield portion


def _inferred(source: OnnxFile, size: int) -> dict[str, tuple[int, ...]]:
    """Shapes that are known without a run; those stated in the file are not trusted."""
    onnx = f.require("onnx")
    content = onnx.ModelProto()
    content.CopyFrom(source.content)
    del content.graph.value_info[:]
    for info in content.graph.input:
        if info.name == source.picture.name:
            fixed = onnx.helper.make_tensor_type_proto(info.type.tensor_type.elem_type, source.picture.shape(size))
            info.type.CopyFrom(fixed)
    try:
        known: Any = onnx.shape_inference.infer_shapes(content, data_prop=True)
    except Exception:  # it fails on unknown operators; then the run shows it
        return {}
    found = {}
    for info in known.graph.value_info:
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in info.type.tensor_type.shape.dim]
        if info.type.tensor_type.HasField("shape") and all(d >= 0 for d in dims):
            found[info.name] = tuple(dims)
    return found
