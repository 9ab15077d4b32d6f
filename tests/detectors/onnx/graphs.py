"""Small detectors as ONNX graphs, written node by node, with the tensors that a branch should read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="onnx is absent: pip install 'ciod[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'ciod[onnx]'")

TensorProto, helper, numpy_helper = onnx.TensorProto, onnx.helper, onnx.numpy_helper

SIZE = 96


@dataclass
class Expected:
    """The maps of a stride: the backbone's, the neck's, the towers."""

    early: str | None = None
    late: str | None = None
    towers: list[str] = field(default_factory=list)


class Net:
    """Builds a graph; every tensor gets a name that says nothing."""

    def __init__(self, seed: int = 0, *, opset: int = 17, last: bool = False, batch: object = 1, side: object = SIZE):
        self.rng = np.random.default_rng(seed)
        self.opset, self.nodes, self.weights = opset, [], []
        self.channels: dict[str, int] = {}
        self.expected: dict[int, Expected] = {s: Expected() for s in (8, 16, 32)}
        self.outputs: list = []
        shape = [batch, side, side, 3] if last else [batch, 3, side, side]
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        self.first = self.node("Transpose", ["x"], 3, perm=[0, 3, 1, 2]) if last else "x"
        self.channels["x"] = 3

    def name(self) -> str:
        return f"t{self.rng.integers(1 << 40):x}"

    def const(self, array: np.ndarray) -> str:
        name = self.name()
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, op: str, inputs: list[str], channels: int, **attributes) -> str:
        out = self.name()
        self.nodes.append(helper.make_node(op, inputs, [out], **attributes))
        self.channels[out] = channels
        return out

    def conv(self, x: str, channels: int, kernel: int = 3, stride: int = 1, *, act: str | None = "Relu") -> str:
        shape = (channels, self.channels[x], kernel, kernel)
        weight = (self.rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) / 2)).astype(np.float32)
        given = [x, self.const(weight), self.const(self.rng.standard_normal(channels).astype(np.float32) / 10)]
        y = self.node("Conv", given, channels, strides=[stride] * 2, pads=[kernel // 2] * 4, kernel_shape=[kernel] * 2)
        if act == "SiLU":
            return self.node("Mul", [y, self.node("Sigmoid", [y], channels)], channels)
        return y if act is None else self.node(act, [y], channels)

    def residual(self, x: str) -> str:
        c = self.channels[x]
        y = self.conv(self.conv(x, max(2, c // 2), 1), c, act=None)
        return self.node("Relu", [self.node("Add", [x, y], c)], c)

    def join(self, *parts: str) -> str:
        return self.node("Concat", list(parts), sum(self.channels[p] for p in parts), axis=1)

    def up(self, x: str) -> str:
        scales = self.const(np.array([1, 1, 2, 2], np.float32))
        if self.opset < 10:
            return self.node("Upsample", [x, scales], self.channels[x], mode="nearest")
        if self.opset < 11:
            return self.node("Resize", [x, scales], self.channels[x], mode="nearest")
        region = "" if self.opset > 12 else self.const(np.zeros(0, np.float32))
        return self.node("Resize", [x, region, scales], self.channels[x], mode="nearest")

    def backbone(self, widths: tuple[int, ...] = (4, 8, 12, 16, 24), *, residual: int = 1) -> list[str]:
        """Stages of strides 2 to 32; the last three are kept."""
        x, maps = self.first, []
        for i, width in enumerate(widths):
            x = self.conv(x, width, stride=2)
            for _ in range(residual if i >= 2 else 0):
                x = self.residual(x)
            maps.append(x)
        for stride, name in zip((8, 16, 32), maps[-3:]):
            self.expected[stride].early = name
        return maps[-3:]

    def fpn(self, maps: list[str], width: int, *, joined: bool = False, pan: bool = False) -> list[str]:
        """Top-down, and bottom-up again with ``pan``; every level's map ends in an activation."""
        found = [self.conv(maps[2], width, 1)]
        for c in maps[1::-1]:
            up = self.up(found[0])
            x = self.join(up, c) if joined else self.node("Add", [up, self.conv(c, width, 1, act=None)], width)
            found.insert(0, self.conv(x, width))
        for i in (1, 2) if pan else ():
            down = self.conv(found[i - 1], width, stride=2)
            found[i] = self.conv(self.join(down, found[i]), width)
        return found

    def head(
        self, maps: list[str], classes: int, *, towers: int, coupled: bool = False, act: str = "Relu"
    ) -> list[list[str]]:
        """Predictions of each level: [class, box, objectness], or one layer for all."""
        found = []
        for stride, x in zip((8, 16, 32), maps):
            expected = self.expected[stride]
            expected.late = x if x != expected.early else None
            if coupled:
                found.append([self.conv(x, 5 + classes, 1, act=None)])
                continue
            cls = reg = x
            for _ in range(towers):
                cls, reg = self.conv(cls, self.channels[x], act=act), self.conv(reg, self.channels[x], act=act)
            expected.towers = [cls, reg] if towers else []
            found.append([self.conv(t, n, 1, act=None) for t, n in ((reg, 4), (reg, 1), (cls, classes))])
        return found

    def rows(self, maps: list[list[str]], *, transposed: bool = False, probabilities: bool = True) -> str:
        """One output [1, P, 5 + C] (or [1, 5 + C, P]) of box, objectness and classes per position."""
        flat = []
        for parts in maps:
            parts = (
                [parts[0], *(self.node("Sigmoid", [p], self.channels[p]) for p in parts[1:])]
                if probabilities
                else parts
            )
            x = self.join(*parts) if len(parts) > 1 else parts[0]
            shape = self.const(np.array([0, self.channels[x], -1], np.int64))
            flat.append(self.node("Reshape", [x, shape], self.channels[x]))
        whole = self.node("Concat", flat, self.channels[flat[0]], axis=2)
        whole = whole if transposed else self.node("Transpose", [whole], 0, perm=[0, 2, 1])
        self.output(whole)
        return whole

    def output(self, name: str, kind: int = TensorProto.FLOAT) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, None))

    def model(self, **metadata: str):
        graph = helper.make_graph(self.nodes, "g", [self.input], self.outputs, self.weights)
        ir = 4 if self.opset < 11 else 8
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=ir)
        helper.set_model_props(model, metadata)
        return model

    def save(self, path: Path, **metadata: str) -> Path:
        path.write_bytes(self.model(**metadata).SerializeToString())
        return path


def small(seed: int = 0, classes: int = 3, **given) -> Net:
    """Like a YOLOX: FPN and PAN, towers, one output [1, P, 5 + C] with boxes relative to their cells."""
    net = Net(seed, **given)
    maps = net.fpn(net.backbone(), 8, joined=True, pan=True)
    net.rows(net.head(maps, classes, towers=1, act="SiLU"))
    return net
