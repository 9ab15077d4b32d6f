"""Runs of a foreign graph: its outputs, and the maps that a branch reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ciod.detectors.onnx import file as f
from ciod.detectors.onnx import layouts
from ciod.detectors.onnx.file import OnnxFile, Proto
from ciod.detectors.onnx.graph import inputs_of
from ciod.detectors.onnx.layout import Arrays
from ciod.detectors.onnx.taps import Tap


class Runner:
    """Sessions of one file, started when they are needed. Copies of a detector share it: nothing in it changes.

    Args:
        source: the file.
        outputs: those that are wanted.
        taps: the maps that are read.
    """

    def __init__(self, source: OnnxFile, outputs: Sequence[str], taps: Sequence[Tap]):
        self.source, self.wanted, self.taps = source, list(outputs), list(taps)
        self._sessions: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Runner:
        return self

    def outputs(self, ready: np.ndarray) -> list[Arrays]:
        """The wanted outputs for each picture.

        Args:
            ready: [n, 3, H, W] float32 as the graph expects its values.
        """
        runs = self._run("outputs", self.source.data, self.wanted, ready)
        batch = self.source.picture.batch or 1
        return [picture for values in runs for picture in layouts.per_picture(values, batch)][: len(ready)]

    def both(self, ready: np.ndarray) -> tuple[list[Arrays], list[np.ndarray]]:
        """The wanted outputs for each picture, and the maps as ``maps`` gives them, in one go."""
        names = [t.name for t in self.taps]
        runs = self._run("both", self.source.exposing(names), [*self.wanted, *names], ready)
        n, batch = len(self.wanted), self.source.picture.batch or 1
        pictures = [picture for values in runs for picture in layouts.per_picture(values[:n], batch)]
        return pictures[: len(ready)], self._joined([values[n:] for values in runs], len(ready))

    def maps(self, ready: np.ndarray) -> list[np.ndarray]:
        """The maps that are read, each [n, C, h, w] float32; nothing else of the graph is computed."""
        names = [t.name for t in self.taps]
        return self._joined(self._run("maps", None, names, ready), len(ready))

    def _joined(self, runs: list[list[np.ndarray]], count: int) -> list[np.ndarray]:
        found = []
        for i, tap in enumerate(self.taps):
            x = np.concatenate([values[i] for values in runs])[:count]
            x = x.transpose(0, 3, 1, 2) if tap.channels_last else x
            found.append(np.ascontiguousarray(x, np.float32))
        return found

    def _run(self, kind: str, content: bytes | None, names: Sequence[str], ready: np.ndarray) -> list[list[np.ndarray]]:
        """Outputs of each run; the last one is filled up with its last picture."""
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
    for field in (graph.initializer, graph.input):  # old files list weights among the inputs too
        kept = [t for t in field if t.name not in unused]
        del field[:]
        field.extend(kept)
    return content.SerializeToString()
