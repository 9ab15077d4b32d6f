"""Extending an ONNX file: opening it, measuring its maps, merging the new parts into it, and verifying the result."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ciod.config.load import data_folder
from ciod.core.errors import CiodError, ConfigError, DataError
from ciod.core.files import atomic_write
from ciod.core.plural import counted
from ciod.data.augment import put
from ciod.data.index import Index
from ciod.data.scenarios.scenario import Task
from ciod.detectors.base import Detector
from ciod.detectors.files import weights
from ciod.detectors.onnx import file as f
from ciod.detectors.onnx import merge, mirror, suppressed
from ciod.detectors.onnx.detector import OnnxDetector
from ciod.detectors.onnx.merge import Verified
from ciod.detectors.onnx.recognise import prepared
from ciod.extension.settings import Extend

OBSERVED = 48  # pictures on which the maps are measured
COMPARED = 60  # pictures on which old outputs are compared, at least 50 where there are so many
TIMED = 30  # runs of each file


def open_model(s: Extend) -> Detector:
    """The model that is extended.

    Raises:
        CiodError: it cannot be read.
    """
    path = data_folder(s.model) or s.model
    given = {"input": s.input, "size": s.size, "old_outputs": s.old_outputs, "taps": s.taps}
    return weights.load(path, classes=s.names, detector=s.detector, **given)


def name(detector: Detector) -> str:
    """File name of the model that an extension writes."""
    return "model.onnx" if isinstance(detector, OnnxDetector) else "model.safetensors"


def lines(detector: Detector) -> list[str]:
    """Lines on how an ONNX file was interpreted; [] for other models."""
    return detector.source.found.lines() if isinstance(detector, OnnxDetector) else []


def size(detector: Detector) -> int:
    """Bytes of the file of an ONNX detector, which are not parameters; 0 for others."""
    return len(detector.source.opened.whole.data) if isinstance(detector, OnnxDetector) else 0


def check(detector: Detector, method: str, s: Extend) -> None:
    """Refuses what cannot be done with an ONNX file, or with others.

    Raises:
        CiodError: the method trains what was there, or one output of all classes is asked for and cannot be.
        ConfigError: a setting of ONNX files, for another model.
    """
    asked = [k for k, wanted in (("nms", s.nms), ("outputs", s.outputs == "joined")) if wanted]
    if not isinstance(detector, OnnxDetector):
        if asked:
            raise ConfigError([f"{k}: this is a setting of ONNX files, and {s.model} is none." for k in asked])
        return
    if method != "freeze_branch":
        raise CiodError(
            f"method: {method} trains the weights of the model, which an ONNX file keeps as they are; use "
            "method=freeze_branch."
        )
    for setting in asked:
        suppressed.check(detector, setting)


def prepare(detector: Detector, task: Task) -> list[str]:
    """Measures the maps of an ONNX detector on pictures of the folder; and what is doubtful about it."""
    if not isinstance(detector, OnnxDetector):
        return []
    images = pictures(detector, task.train, OBSERVED)
    detector.observe(torch.from_numpy(images))
    return mirror.input_warnings(detector, images)


def pictures(detector: Detector, index: Index, count: int) -> np.ndarray:
    """[n, 3, size, size] uint8 RGB: up to ``count`` pictures, spread evenly over ``index``.

    Raises:
        DataError: none can be read.
    """
    found, network_input = [], detector.input
    for i in np.unique(np.linspace(0, len(index) - 1, count).astype(int)):
        try:
            picture = index_picture(index, int(i))
        except DataError:
            continue
        found.append(put(picture, network_input.size, network_input.fill, network_input.place)[0].numpy())
    if not found:
        raise DataError(f"None of the images of {index.source} can be read.")
    return np.stack(found)


def index_picture(index: Index, i: int) -> np.ndarray:
    """One picture of an index."""
    from ciod.data.images import read_image

    height, width = (int(v) for v in index.sizes[i])
    return read_image(index.files[i], (height, width), stored=index.is_stored(i))


@dataclass
class Made:
    """A merged file that was not written yet, and what is known about it."""

    data: bytes
    verified: Verified
    cost: str
    detector: OnnxDetector
    joined: bytes | None = None

    def sentence(self) -> str:
        """What became of the old outputs."""
        v = self.verified
        many = f"{v.outputs} old outputs" if v.outputs > 1 else "old output"
        if v.moved == 0:
            equal = "are" if v.outputs > 1 else "is"
            return f"The {many} {equal} bit-equal on {counted(v.pictures, 'picture')} (onnxruntime on a CPU)."
        return f"The {many} differ{'s' * (v.outputs < 2)} by up to {v.moved:.2g} on {counted(v.pictures, 'picture')}."

    def record(self) -> dict[str, Any]:
        """For results.json."""
        return {**asdict(self.verified), "sentence": self.sentence(), "recognised": self.detector.source.found.lines()}

    def save(self, out: Path) -> None:
        """Writes ``model.onnx``, and ``joined.onnx`` where that was asked for."""
        if self.joined is not None:
            atomic_write(out / "joined.onnx", self.joined)
        atomic_write(out / name(self.detector), self.data)


def make(detector: OnnxDetector, task: Task, s: Extend) -> Made:
    """The merged file, compared with the old one and with PyTorch.

    Raises:
        CiodError: its new outputs are not those of the branch.
    """
    share = min(len(task.test), COMPARED // 3)
    parts = [pictures(detector, task.train, COMPARED - share)]
    images = np.concatenate([*parts, pictures(detector, task.test, share)] if share else parts)
    data = merge.merged(detector, nms=s.nms)
    verified = merge.verify(detector, data, images)
    joined = merge.joined(detector, data) if s.outputs == "joined" else None
    return Made(data, verified, cost(detector, data, images), detector, joined)


def cost(detector: OnnxDetector, data: bytes, images: np.ndarray) -> str:
    """Milliseconds of one run of the old file and of the new one, taken in turn on one thread; and nodes."""
    whole = detector.source.opened.whole
    sessions = [f.start(whole.path, d, threads=1) for d in (whole.data, data)]
    batch = whole.picture.batch or 1
    ready = prepared(images[:batch], detector.input)
    feed = whole.feed(np.resize(ready, (batch, *ready.shape[1:])))
    taken: tuple[list[float], list[float]] = ([], [])
    for i in range(TIMED + 1):
        for session, times in zip(sessions, taken, strict=True):
            began = time.process_time()  # on one thread; other processes on the machine do not count
            f.run(whole.path, session, None, feed)
            times += [time.process_time() - began] * (i > 0)  # the first run warms up
    old, new = (1000 * statistics.median(times) for times in taken)
    nodes = len(whole.content.graph.node)
    added = sum(p.numel() for p in detector.branches.parameters())
    return (
        f"{old:.1f} → {new:.1f} ms per run on one thread ({100 * (new / old - 1):+.1f} %), {added:+,} parameters, "
        f"{nodes} → {len(f.parse(whole.path, data).graph.node)} nodes, {len(whole.data) / 1000:,.0f} → "
        f"{len(data) / 1000:,.0f} kB"
    )
