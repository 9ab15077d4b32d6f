"""Exports a detector to an ONNX file that runs without torch: graph, class names, preprocessing.

The file is written by torch's TorchScript exporter (``dynamo=False``). It is part of every torch from 2.6 on, needs
only the package ``onnx``, and writes opset 17 (the newer exporter starts at 18 and needs onnxscript). Tracing misses
only control flow that depends on data, and a detector's forward has none. Every file is compared with its model
before it gets its final name. Batch normalisation stays a separate node: the file holds the weights of the model, and
runtimes fold it themselves.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ciod.core.errors import CiodError, ConfigError
from ciod.core.files import atomic_write, explained, is_file, temporary
from ciod.core.types import Outputs
from ciod.core.version import __version__
from ciod.exporters.agreement import TOLERANCE, Distance, distance, distance_of_sets
from ciod.exporters.graphs import Raw, Suppressed

if TYPE_CHECKING:
    from ciod.detectors.base import Detector

FORMAT = 1
OPSETS = range(13, 21)  # what the TorchScript exporter writes and this graph needs (NonMaxSuppression in float32)
LETTERBOX = (
    "scale = size / longest side; resized (bilinear, antialiased) to int(scale * side); put at the top left of size x "
    "size filled with fill; boxes / scale are pixels of the picture"
)
STRETCH = (
    "resized (bilinear, antialiased) to size x size; x of boxes * width / size and y * height / size are pixels of the "
    "picture"
)
KEY = "ciod"  # of the metadata property that holds everything as JSON


@dataclass(frozen=True)
class Exported:
    """What ``export`` wrote, and how much it differs from the original detector."""

    path: Path
    opset: int
    nms: bool
    score_difference: float | None  # largest, over every class at every position; None: onnxruntime is absent
    box_difference: float | None  # largest where a score matters, in pixels of the batch image
    detections: int | None  # with nms: number of compared detections

    @property
    def verified(self) -> bool:
        return self.score_difference is not None


def export(
    model: str | Path | Detector,
    onnx: str | Path,
    *,
    opset: int = 17,
    nms: bool = False,
    size: int | None = None,
    dynamic_size: bool = False,
    score_threshold: float | None = None,
    nms_iou: float | None = None,
    max_detections: int = 100,
    images: str | Path | None = None,
    tolerance: float = TOLERANCE,
    names: Sequence[str] | None = None,
    arbiter: bool = True,
    detector: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes ``model`` as an ONNX file and compares it with the original before it gets its final name.

    The batch size is always dynamic. docs/deploy.md describes the file.

    Args:
        model: a detector, or a file for ``ciod.load``.
        onnx: the file to write.
        opset: 13 to 20.
        nms: whether the graph suppresses non-maxima: its output is then that of ``Suppressed``, else that of ``Raw``.
        size: side of the input in pixels (default: the model's own).
        dynamic_size: also let height and width vary, in multiples of 32.
        score_threshold: for ``nms``, the lowest score of a detection; None: the detector's own.
        nms_iou: for ``nms``, the IoU from which two boxes of one class count as the same; None: the detector's own.
        max_detections: for ``nms``, per image: of the detector itself, and as many of each branch.
        images: an image or folder for the comparison (default: random noise).
        tolerance: largest difference of a score, and of a box with a score that matters as a share of its longer side.
        names: class names for a checkpoint without them.
        arbiter: False: raw scores of branches.
        detector: for a model of a detector of your own, ``FILE.py:Class``.
        overwrite: also replace a file that ``ciod export`` did not write.

    Raises:
        ConfigError: every problem of the arguments.
        CiodError: no model, onnx is not installed, or the outputs differ by more than ``tolerance``.
    """
    from ciod.detectors.files.weights import open_detector

    path = _checked_path(onnx, model, overwrite)
    opened = open_detector(model, size, names, arbiter=arbiter, detector=detector).frozen().cpu()
    limits = _limits(opened, score_threshold, nms_iou)
    _check(opset, *limits, max_detections, tolerance, opened, nms, dynamic_size)
    check = _require("onnx")
    graph = _graph(opened, nms, limits, max_detections)
    sample = pictures_to_compare(opened, images)
    content = _traced(graph, sample[:2], path, opset, dynamic_size, check)
    content.metadata_props.add(key=KEY, value=json.dumps(_metadata(opened, graph, opset), ensure_ascii=False))
    found = _compare(graph, content.SerializeToString(), sample, dynamic_size, tolerance)
    if nms:
        _prune(content.graph)
    check.checker.check_model(content, full_check=True)
    atomic_write(path, content.SerializeToString())
    return Exported(path, opset, nms, *found)


def _limits(detector: Detector, floor: float | None, limit: float | None) -> tuple[float, float]:
    """The given ones, or the detector's own."""
    return detector.score_threshold if floor is None else floor, detector.nms_iou if limit is None else limit


def _graph(detector: Detector, nms: bool, limits: tuple[float, float], most: int) -> Raw:
    floor, limit = limits
    if nms:
        return Suppressed(detector, score_threshold=floor, nms_iou=limit, max_detections=most).eval()
    return Raw(detector).eval()


def _checked_path(onnx: str | Path, model: str | Path | Detector, overwrite: bool) -> Path:
    path = Path(onnx)
    if path.suffix.lower() != ".onnx":
        raise CiodError(f"onnx: {path} must end in .onnx.")
    if isinstance(model, (str, Path)) and Path(model).suffix.lower() == ".onnx":
        raise CiodError(f"{model} is an ONNX file already.")
    if is_file(path) and not overwrite and not _is_own(path):
        raise CiodError(
            f"onnx: {path} already exists and was not written by 'ciod export'. Choose another name, or write "
            "overwrite=true."
        )
    return path


def _is_own(path: Path) -> bool:
    try:
        read_metadata(path)
    except Exception:  # no ONNX file: protobuf has errors of its own
        return False
    return True


def _traced(graph: Raw, sample: Tensor, path: Path, opset: int, dynamic_size: bool, onnx: Any) -> Any:
    """The graph as ONNX has it; first written to a temporary file, since PyTorch writes only files."""
    beside = temporary(path)
    with explained(path, 4 * sum(p.numel() for p in graph.parameters())):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(graph, sample, beside, opset, dynamic_size)
            return onnx.load(str(beside))
        finally:
            beside.unlink(missing_ok=True)


def _prune(graph: Any) -> None:
    """Removes the two raw outputs, and the nodes that no output needs; runtimes would compute them."""
    del graph.output[:2]
    needed, kept = {o.name for o in graph.output}, []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of an exported file.

    Raises:
        CiodError: onnx is not installed, or ciod did not write the file.
    """
    content = _require("onnx").load(str(path), load_external_data=False)
    found = {p.key: p.value for p in content.metadata_props}.get(KEY)
    if found is None:
        raise CiodError(f"{path} was not exported by ciod: it has no '{KEY}' in its metadata.")
    try:
        return json.loads(found)
    except (ValueError, RecursionError) as error:
        raise CiodError(f"{path} is damaged: its metadata are not JSON. Export it again.") from error


def _check(
    opset: int,
    floor: float,
    iou: float,
    most: int,
    tolerance: float,
    detector: Detector,
    nms: bool,
    dynamic_size: bool,
) -> None:
    problems = []
    if opset not in OPSETS:
        problems.append(f"opset: {opset} is not possible; allowed: {OPSETS[0]} to {OPSETS[-1]}.")
    for name, value in (("score_threshold", floor), ("nms_iou", iou)):
        if not 0 <= value <= 1:
            problems.append(f"{name}: {value} is not in 0..1.")
    if not 0 < tolerance <= 1:
        problems.append(f"tolerance: {tolerance} is not above 0 and at most 1.")
    if most < 1:
        problems.append(f"max_detections: {most} is not at least 1.")
    if not detector.num_classes:
        problems.append("The model has no classes yet; train it first.")
    if dynamic_size and {"query", "rois"} & detector.traits:
        what = "queries" if "query" in detector.traits else "anchors"
        problems.append(
            f"dynamic_size: the graph of {detector.settings['name']} holds the places of its {what} for one size; "
            "leave dynamic_size out, and choose with size=."
        )
    if detector.lacks_in_onnx:
        problems.append(
            f"onnx: {detector.settings['name']} has {detector.lacks_in_onnx}, which ONNX does not have; it runs "
            "in PyTorch only."
        )
    if nms and not detector.one_label:
        problems.append(
            f"nms: {detector.settings['name']} can give a position several labels, which the graph does not support; "
            "leave nms out."
        )
    if problems:
        raise ConfigError(problems)


def _require(package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise CiodError(f"Exporting needs {package}, which is not installed: pip install 'ciod[onnx]'") from error


def _metadata(detector: Detector, graph: Raw, opset: int) -> dict[str, Any]:
    decoding: dict[str, Any] = {"score_threshold": detector.score_threshold, "nms_iou": detector.nms_iou}
    if isinstance(graph, Suppressed):
        decoding = {"score_threshold": graph.floor, "nms_iou": graph.iou, "max_detections": graph.limit}
    input_spec = asdict(detector.input)
    return {
        "format": FORMAT,
        "ciod": __version__,
        "class_names": list(detector.class_names),
        "input": {
            "size": input_spec["size"],
            "fill": input_spec["fill"],
            "place": input_spec["place"],
            "layout": "images: float32 [batch, 3, height, width], RGB, 0..255",
            **({"stretch": STRETCH} if input_spec["place"] == "stretch" else {"letterbox": LETTERBOX}),
        },
        "normalised_in_graph": {k: input_spec[k] for k in ("mean", "std", "bgr")},
        "outputs": {
            "detections": f"[batch, {graph.limit * graph.parts.number}, 6]: x1, y1, x2, y2, score, label; unused rows "
            "have label -1"
        }
        if isinstance(graph, Suppressed)
        else {"boxes": "[batch, positions, 4]: x1, y1, x2, y2", "scores": "[batch, positions, classes]: 0..1"},
        "decoding": {**decoding, "in_graph": isinstance(graph, Suppressed)},
        "opset": opset,
        "detector": detector.settings,
        "lineage": detector.lineage,
    }


def _write(graph: Raw, sample: Tensor, path: Path, opset: int, dynamic_size: bool) -> None:
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in ("images", *graph.names)}
    if dynamic_size:
        axes["images"] |= {2: "height", 3: "width"}
        for name in Raw.names:
            axes[name][1] = "positions"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's deprecation notice, and intended constants
        torch.onnx.export(
            graph,
            (sample,),
            str(path),
            input_names=["images"],
            output_names=list(graph.names),
            dynamic_axes=axes,
            opset_version=opset,
            dynamo=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold batch normalisation into the weights
        )


# Comparing ------------------------------------------------------------------------------------------------------------


def pictures_to_compare(detector: Detector, images: str | Path | None) -> Tensor:
    """[3, 3, size, size] float32: three images of the user, or coarse and fine noise, the same every time."""
    size = detector.input.size
    if images is not None:
        from ciod.data.augment import put
        from ciod.data.images import read_image
        from ciod.inference.images import files

        where = (size, detector.input.fill, detector.input.place)
        found = [put(read_image(f), *where)[0].float() for f in files(images)[:3]]
        return torch.stack([found[i % len(found)] for i in range(3)])
    random = torch.Generator().manual_seed(0)
    drawn = torch.zeros(3, 3, size, size)
    for cells in (2, 5, 13, size // 4):
        coarse = torch.rand(3, 3, cells, cells, generator=random) * 64
        drawn += nn.functional.interpolate(coarse, (size, size), mode="nearest")
    return drawn.clamp(0, 255).round()


def _compare(
    graph: Raw, content: bytes, sample: Tensor, dynamic_size: bool, tolerance: float
) -> tuple[float | None, float | None, int | None]:
    """Largest differences over a batch of three, a batch of one, and (if the size may vary) another size.

    Raises:
        CiodError: differences above ``tolerance``, or other detections than those of ``Detector.decode``.
    """
    try:
        import onnxruntime
    except ImportError:
        return None, None, None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    side = sample.shape[2]
    batches = [sample, sample[:1]]
    if dynamic_size:
        batches.append(sample[:, :, : max(32, side // 2 // 32 * 32), :].contiguous())
    worst, count = Distance(0.0, 0.0, 0.0), 0
    for batch in batches:
        got = [torch.from_numpy(array) for array in session.run(list(graph.names), {"images": batch.numpy()})]
        with torch.no_grad():
            wanted = graph.wanted(batch)
        compare = distance_of_sets if {"rois", "first_stage"} & graph.detector.traits else distance
        found = compare(got[0], got[1], wanted[0], wanted[1])
        if not found.within(tolerance):
            raise CiodError(
                f"The exported graph differs from the model: scores by up to {found.score:.2g}, boxes by up to "
                f"{found.box:.2g} pixels ({found.share:.2g} of their side); {tolerance:g} is allowed, and tolerance= "
                "allows more. No file was written."
            )
        worst = worst.larger(found)
        if isinstance(graph, Suppressed):
            count += _compare_detections(graph, got[0], got[1], got[2], wanted[2])
    return worst.score, worst.box, count if isinstance(graph, Suppressed) else None


def _compare_detections(graph: Suppressed, boxes: Tensor, scores: Tensor, found: Tensor, parts: tuple[int, ...]) -> int:
    """Number of detections of the graph, after checking that ``Detector.decode`` makes the same from its outputs."""
    # The IoU of a pair may equal the threshold to the last bit; then both results are right.
    wanted = [_decoded(graph, boxes, scores, parts, graph.iou + e) for e in (0.0, -1e-5, 1e-5)]
    for i, rows in enumerate(found.numpy()):
        rows = rows[rows[:, 5] >= 0]
        if not any(_equal(rows, options[i]) for options in wanted):
            raise CiodError(
                f"The exported graph finds other objects than the model ({len(rows)} and {len(wanted[0][i])} in "
                "an image). No file was written."
            )
    return int((found[..., 5] >= 0).sum())


def _decoded(graph: Suppressed, boxes: Tensor, scores: Tensor, parts: tuple[int, ...], iou: float) -> list[np.ndarray]:
    positions = boxes.shape[1]
    given = _Given(scores, boxes, boxes.new_zeros(positions, 2), boxes.new_ones(positions), parts=parts)
    found = graph.detector.decode(given, score_threshold=graph.floor, nms_iou=iou, max_detections=graph.limit)
    return [np.column_stack([d.boxes, d.scores, d.labels]).astype(np.float32) for d in found]


class _Given(Outputs):
    """Outputs with precomputed scores."""

    def scores(self) -> Tensor:
        return self.logits


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two lists [n, 6] are the same except for the order of equal scores."""
    return a.shape == b.shape and np.array_equal(a[np.lexsort(a.T)], b[np.lexsort(b.T)])
