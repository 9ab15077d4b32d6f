"""One file of a detector and its branches: the old file, byte for byte, then the nodes of the branches; verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ciod.core.errors import CiodError
from ciod.core.files import atomic_write
from ciod.detectors.base import Input
from ciod.detectors.layers.maps_branch import MapsBranch
from ciod.detectors.onnx import arbiter_text, judging, second_stage, suppressed, taps, written
from ciod.detectors.onnx import file as f
from ciod.detectors.onnx import nodes as n
from ciod.detectors.onnx.detector import OnnxDetector
from ciod.detectors.onnx.file import OnnxFile
from ciod.detectors.onnx.recognise import equal, prepared

OLDEST = 9  # opset
TOLERANCE = 1e-3  # of scores; of boxes in pixels, relative above one pixel
HALF_TOLERANCE = 0.1  # of maps in half precision, which onnxruntime rounds at different places
LEVELS = ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL")
THREADS = (0, 1)


@dataclass
class Verified:
    """The result of comparing the old file with the new one."""

    pictures: int
    outputs: int  # number of old outputs
    moved: float  # largest difference of an old output; 0: all are bit-equal
    difference: float  # largest difference of a new output from PyTorch's, in units of ``TOLERANCE``


def merged(detector: OnnxDetector, *, nms: bool = False) -> bytes:
    """The old file followed by the branches of ``detector``.

    Args:
        nms: a further output ``detections`` of all classes, see ``suppressed.detections``.

    Raises:
        CiodError: the file has an opset that is too old, or ``nms`` needs outputs with a known layout.
    """
    onnx, opened = f.require("onnx"), detector.source.opened
    whole = opened.whole
    if whole.opset < OLDEST:
        raise CiodError(f"{whole.path} has opset {whole.opset}; {OLDEST} is the oldest that can be extended.")
    if nms:
        suppressed.check(detector, "nms")
    model, parts = onnx.ModelProto(), [] if opened.written is None else opened.written.parts[1:]
    first = len(detector.parts) - len(detector.branches)
    number = _number(whole)
    kinds = _kinds(detector)
    for i, module in enumerate(detector.branches):
        assert isinstance(module, MapsBranch)
        nodes = n.Nodes(f"ciod{number + i}/", initializers=whole.content.ir_version >= 4)
        maps = [[_map(nodes, t, kinds) for t in level.taps] for level in detector.source.found.levels]
        boxes, scores = n.branch(nodes, module, maps, whole.picture.side)
        if module.refiner is not None:
            boxes, scores = second_stage.corrected(
                nodes,
                module.refiner,
                maps[0][0],
                (boxes, scores),
                classes=len(module.columns),
                positions=None if whole.picture.side is None else detector.positions,
                opset=whole.opset,
            )
        batch: Any = (whole.picture.batch or 1) if whole.picture.single else (whole.picture.batch or "n")
        nodes.output(boxes, [batch, None, 4])
        nodes.output(scores, [batch, None, len(module.columns)])
        parts = [*parts, written.Part(columns=detector.parts[first + i], boxes=boxes, scores=scores)]
        if nms and i == len(detector.branches) - 1:
            every = suppressed.parts(nodes, detector, [(p.boxes, p.scores) for p in parts])
            every = judging.weigh(nodes, detector, every, _judged_maps(nodes, detector, kinds))
            limits = {"floor": detector.score_threshold, "iou": detector.nms_iou}
            nodes.output(suppressed.detections(nodes, every, **limits), [batch, suppressed.DETECTIONS * len(every), 6])
        nodes.into(model)
    content = _entry(detector, parts)
    onnx.helper.set_model_props(model, {f"ciod.{number + len(detector.branches) - 1}": content})
    # Protobuf messages can be merged by concatenating their bytes: the old part does not change.
    return whole.data + model.SerializeToString()


def _number(whole: OnnxFile) -> int:
    """The first number that is used by no extension and no tensor name of the file."""
    used = {key.removeprefix("ciod.") for key in whole.metadata if key.startswith("ciod.")}
    names = [t for node in whole.content.graph.node for t in (node.name, *node.output)]
    used |= {t.removeprefix("ciod").partition("/")[0] for t in names if t.startswith("ciod")}
    return 1 + max((int(u) for u in used if u.isdigit()), default=0)


def _kinds(detector: OnnxDetector) -> dict[str, str]:
    """onnxruntime's type name of each map."""
    source = detector.source
    names = taps.names_of(source.found.levels)
    session = f.start(source.opened.base.path, source.opened.base.exposing(names), optimised=False)
    return {o.name: o.type for o in session.get_outputs()}


def _map(nodes: n.Nodes, tap: taps.Tap, kinds: dict[str, str]) -> str:
    """The name of a map as [n, C, h, w] float32."""
    x = tap.name if kinds[tap.name] == "tensor(float)" else nodes.to_float(tap.name)
    return nodes.add("Transpose", x, perm=[0, 3, 1, 2]) if tap.channels_last else x


def _judged_maps(nodes: n.Nodes, detector: OnnxDetector, kinds: dict[str, str]) -> list[str]:
    """The maps that the arbiter reads; [] without one."""
    if detector.arbiter is None:
        return []
    return [_map(nodes, level.taps[0], kinds) for level in detector.source.found.levels]


def _entry(detector: OnnxDetector, parts: Sequence[written.Part]) -> str:
    """The metadata of this extension."""
    opened, found = detector.source.opened, detector.source.found
    columns = [p.columns for p in parts]
    old = detector.parts[1 : len(detector.parts) - len(detector.branches)]
    columns[: len(old)] = old  # of branches in the file: classes may have been dropped since
    asked = written.Asked(
        input=words(detector.input),
        size=found.input.size,
        names=None if found.given_names is None else list(found.given_names),
        old_outputs="none" if found.layout is None else found.layout.name,
        taps=taps.to_names(found.levels),
    )
    content = written.Written(
        format=written.FORMAT,
        class_names=list(detector.class_names),
        asked=asked,
        base=len(opened.base.data),
        before=len(opened.whole.data),
        sha256=hashlib.sha256(opened.whole.data).hexdigest(),
        parts=[
            written.Part(columns=detector.parts[0]),
            *(p.model_copy(update={"columns": c}) for p, c in zip(parts, columns, strict=True)),
        ],
        lineage=json.loads(json.dumps(detector.lineage)),
        arbiter=None if detector.arbiter is None else arbiter_text.encode(detector.arbiter),
    )
    return json.dumps(content.model_dump(), ensure_ascii=False)


def joined(detector: OnnxDetector, data: bytes) -> bytes:
    """The merged file in the form of YOLOv8's files: one output of all classes, whose names are in the metadata.

    Args:
        data: the merged file.

    Raises:
        CiodError: the layout of the old outputs is unknown, or the opset is too old.
    """
    suppressed.check(detector, "outputs")
    onnx = f.require("onnx")
    model = onnx.load_model_from_string(data)
    metadata = {p.key: p.value for p in model.metadata_props}
    last = max((k for k in metadata if k.startswith("ciod.")), key=lambda k: int(k.partition(".")[2]))
    branches = [(p["boxes"], p["scores"]) for p in json.loads(metadata[last])["parts"][1:]]
    nodes = n.Nodes("joined/", initializers=model.ir_version >= 4)
    every = suppressed.parts(nodes, detector, branches)
    every = judging.weigh(nodes, detector, every, _judged_maps(nodes, detector, _kinds(detector)))
    output = suppressed.joined(nodes, detector, every)
    del model.graph.output[:]
    nodes.output(output, [detector.source.opened.whole.picture.batch or "n", 4 + detector.num_classes, None])
    nodes.into(model)
    del model.metadata_props[:]
    size = detector.input.size
    defaults = {"task": "detect", "stride": "32", "imgsz": f"[{size}, {size}]", "batch": "1"}
    names = {"names": str(dict(enumerate(detector.class_names)))}
    kept = {k: v for k, v in metadata.items() if not k.startswith("ciod.")}
    onnx.helper.set_model_props(model, defaults | kept | names)
    return model.SerializeToString()


def words(network_input: Input) -> str:
    """An input as text that ``pictures.parse`` reads."""
    numbers = ",".join(repr(float(v)) for v in (*network_input.mean, *network_input.std))
    return f"{numbers},{'bgr' if network_input.bgr else 'rgb'},{network_input.place},{float(network_input.fill)!r}"


def save(path: Path, detector: OnnxDetector, images: np.ndarray) -> Verified:
    """Compares the merged file with the old one and with PyTorch, and then writes it.

    Args:
        images: [n, 3, size, size] RGB 0..255, to compare on.

    Raises:
        CiodError: the new outputs differ from those of the branch; then nothing is written.
    """
    data = merged(detector)
    found = verify(detector, data, images)
    atomic_write(path, data)
    return found


def verify(detector: OnnxDetector, data: bytes, images: np.ndarray) -> Verified:
    """Compares a merged file with the old one: every old output, at two levels of optimisation, with one thread and
    with several; and its new outputs with PyTorch's.

    Raises:
        CiodError: the new outputs are off by more than ``TOLERANCE``.
    """
    whole = detector.source.opened.whole
    ready = prepared(images, detector.input)
    batch = whole.picture.batch or 1
    feeds = [whole.feed(ready[i : i + batch]) for i in range(0, len(ready) - batch + 1, batch)]
    moved = 0.0
    for level in LEVELS:
        for threads in THREADS:
            old, new = (f.start(whole.path, d, level=level, threads=threads) for d in (whole.data, data))
            for feed in feeds:
                pair = (f.run(whole.path, s, whole.outputs, feed) for s in (old, new))
                moved = max([moved, *(_gap(a, b) for a, b in zip(*pair, strict=True))])
    return Verified(len(feeds) * batch, len(whole.outputs), moved, _difference(detector, data, images[:8]))


def _gap(a: Any, b: Any) -> float:
    """The largest difference between two values of an output; 0: they are bit-equal."""
    if equal(a, b):
        return 0.0
    if not isinstance(a, np.ndarray) or a.shape != b.shape or a.dtype.kind not in "fiu":
        return float("inf")
    return float(np.nanmax(np.abs(a.astype(np.float64) - b.astype(np.float64))))


@torch.no_grad()
def _difference(detector: OnnxDetector, data: bytes, images: np.ndarray) -> float:
    """The largest difference of the new outputs from those of the branches in PyTorch."""
    whole = detector.source.opened.whole
    detector.eval()
    ready = prepared(images, detector.input)
    session, batch = f.start(whole.path, data), whole.picture.batch or 1
    number, largest = _number(whole), 0.0
    maps = detector.tensors(detector.source.runner.maps(ready))
    for i in range(len(detector.branches)):
        wanted = detector.of_branch(i, maps)
        columns = detector.parts[len(detector.parts) - len(detector.branches) + i]
        scores, boxes = wanted.scores()[:, :, columns].cpu().numpy(), wanted.boxes.cpu().numpy()
        names = [f"ciod{number + i}/boxes", f"ciod{number + i}/scores"]
        for k in range(0, len(ready) - batch + 1, batch):
            got = f.run(whole.path, session, names, whole.feed(ready[k : k + batch]))
            box = np.abs(got[0] - boxes[k : k + batch]) / np.maximum(1, np.abs(boxes[k : k + batch]))
            largest = max(largest, float(box.max()), float(np.abs(got[1] - scores[k : k + batch]).max()))
    exact = all(kind == "tensor(float)" for kind in _kinds(detector).values())
    limit = TOLERANCE if exact else HALF_TOLERANCE
    if not largest <= limit:  # written so that NaN is refused too
        raise CiodError(
            f"The merged graph disagrees with the branch by {largest:.2g}; {limit:g} is allowed. No model was written. "
            "Export the detector in float32 if it is in another precision; else report it as a fault of ciod."
        )
    return largest
