"""Runs of a foreign graph: its outputs, and the maps that a branch reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ciod.detectors.onnx import file as f
from ciod.detectors.onnx import layouts
from ciod.detectors.onnx.file import OnnxFile, Proto
from ciod.detectors.onnx.graph import inputs_of
from ciod.detectors.onnx.layout import Arrays
from ciod.detectors.onnx.taps import Level, Tap


class Runner:
    """Sessions of one file, started when they are needed. Copies of a detector share it, because it never changes.

    Args:
        source: the file.
        outputs: names of the requested outputs.
        levels: the maps to read.
    """

    def __init__(self, source: OnnxFile, outputs: Sequence[str], levels: Sequence[Level]):
        self.source, self.wanted = source, list(outputs)
        self.strides = {t.name: v.stride for v in levels for t in v.taps}
        self.taps: list[Tap] = list({t.name: t for v in levels for t in v.taps}.values())
        self._sessions: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Runner:
        return self

    def outputs(self, ready: np.ndarray) -> list[Arrays]:
        """The requested outputs for each picture.

        Args:
            ready: [n, 3, H, W] float32 as the graph expects its values.
        """
        runs = self._run("outputs", self.source.data, self.wanted, ready)
        batch = self.source.picture.batch or 1
        return [picture for values in runs for picture in layouts.per_picture(values, batch)][: len(ready)]

    def both(self, ready: np.ndarray) -> tuple[list[Arrays], list[np.ndarray]]:
        """The requested outputs for each picture, and the maps as in ``maps``, in one run."""
        names = [t.name for t in self.taps]
        runs = self._run("both", self.source.exposing(names), [*self.wanted, *names], ready)
        n, batch = len(self.wanted), self.source.picture.batch or 1
        pictures = [picture for values in runs for picture in layouts.per_picture(values[:n], batch)]
        return pictures[: len(ready)], self._joined([values[n:] for values in runs], len(ready))

    def maps(self, ready: np.ndarray) -> list[np.ndarray]:
        """The maps that are read, each [n, C, h, w] float32; nothing else of the graph is computed."""
        names = [t.name for t in self.taps]
        return self._joined(self._run("maps", None, names, ready), len(ready))

    def bound(self, ready: Tensor) -> list[Tensor]:
        """The maps that are read, each [n, C, h, w] float32, for pictures on a GPU, without copies to the CPU.

        Args:
            ready: [n, 3, H, W] float32 as the graph expects its values, on the device of the session.
        """
        session = self._sessions.get("bound")
        if session is None:
            gpu = (ready.device.index or 0) if ready.device.type == "cuda" else None
            content = only(self.source, [t.name for t in self.taps])
            session = self._sessions["bound"] = f.start(self.source.path, content, gpu=gpu)
        batch = self.source.picture.batch or 1
        runs = [self._bound(session, given) for given in _filled(ready, batch)]
        found = [torch.cat(maps)[: len(ready)].float() for maps in zip(*runs, strict=True)]
        return [x.permute(0, 3, 1, 2) if t.channels_last else x for x, t in zip(found, self.taps, strict=True)]

    def _bound(self, session: Any, given: Tensor) -> list[Tensor]:
        """One run whose input and outputs are tensors of PyTorch."""
        picture, (height, width) = self.source.picture, given.shape[2:]
        x = given.permute(0, 2, 3, 1) if picture.channels_last else given
        x = x.round().clamp(0, 255) if picture.dtype == np.uint8 else x
        x = (x[0] if picture.single else x).to(_TORCH[np.dtype(picture.dtype).name]).contiguous()
        binding, place = session.io_binding(), (given.device.type, given.device.index or 0)
        binding.bind_input(picture.name, *place, picture.dtype, tuple(x.shape), x.data_ptr())
        for name in {i.name for i in session.get_inputs()} & set(self.source.sizes):
            binding.bind_cpu_input(name, self.source.sizes[name].value(len(given), height, width))
        kinds, maps = {o.name: o.type for o in session.get_outputs()}, []
        for tap in self.taps:
            side = -(-height // self.strides[tap.name])
            shape = (side, side, tap.channels) if tap.channels_last else (tap.channels, side, side)
            kind = "float16" if kinds[tap.name] == "tensor(float16)" else "float32"
            maps.append(torch.empty(len(given), *shape, dtype=_TORCH[kind], device=given.device))
            binding.bind_output(tap.name, *place, np.dtype(kind).type, tuple(maps[-1].shape), maps[-1].data_ptr())
        if given.device.type == "cuda":
            torch.cuda.current_stream(given.device).synchronize()  # onnxruntime uses a separate stream
        f.run_bound(self.source.path, session, binding)
        return maps

    def _joined(self, runs: list[list[np.ndarray]], count: int) -> list[np.ndarray]:
        found = []
        for i, tap in enumerate(self.taps):
            x = np.concatenate([values[i] for values in runs])[:count]
            x = x.transpose(0, 3, 1, 2) if tap.channels_last else x
            found.append(np.ascontiguousarray(x, np.float32))
        return found

    def _run(self, kind: str, content: bytes | None, names: Sequence[str], ready: np.ndarray) -> list[list[np.ndarray]]:
        """Outputs of each run; the last one is padded with its last picture."""
        session = self._sessions.get(kind)
        if session is None:
            content = only(self.source, names) if content is None else content
            # Threads that wait busily for the next run would take the cores from the branch.
            session = self._sessions[kind] = f.start(self.source.path, content, spin=False)
        batch, found = self.source.picture.batch or 1, []
        for i in range(0, len(ready), batch):
            given = ready[i : i + batch]
            if len(given) < batch:
                given = np.concatenate([given, np.repeat(given[-1:], batch - len(given), 0)])
            found.append(f.run(self.source.path, session, names, self.source.feed(given)))
        return found


_TORCH = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


def on_gpu(device: torch.device) -> bool:
    """Whether onnxruntime can run on this device."""
    return device.type == "cuda" and "CUDAExecutionProvider" in f.require("onnxruntime").get_available_providers()


def _filled(ready: Tensor, batch: int) -> list[Tensor]:
    """Runs of ``batch`` pictures; the last one is padded with its last picture."""
    lacking = -len(ready) % batch
    return list(torch.cat([ready, ready[-1:].expand(lacking, -1, -1, -1)]).split(batch))


def only(source: OnnxFile, names: Sequence[str]) -> bytes:
    """The model with these tensors as its outputs, and the nodes that they need."""
    onnx = f.require("onnx")
    needed, kept = set(names), []
    for node in reversed(source.content.graph.node):
        if any(t in needed for t in node.output):
            kept.append(node)
            needed.update(inputs_of(node))
    content: Proto = onnx.ModelProto()
    content.CopyFrom(source.content)
    graph = content.graph
    del graph.node[:], graph.output[:], graph.value_info[:]
    graph.node.extend(reversed(kept))
    graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    unused = {t.name for t in graph.initializer} - needed
    for field in (graph.initializer, graph.input):  # old files also list weights as inputs
        kept = [t for t in field if t.name not in unused]
        del field[:]
        field.extend(kept)
    return content.SerializeToString()
