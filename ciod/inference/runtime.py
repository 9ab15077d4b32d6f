"""A copy of a detector whose network runs in ONNX Runtime, from a graph that is made in memory.

On a CPU, ONNX Runtime needs less time for the same network than PyTorch: most for small ones, where PyTorch's
convolutions take longer to start than to compute.
"""

from __future__ import annotations

import copy
import importlib.util
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ciod.core.errors import CiodError
from ciod.core.types import Outputs
from ciod.detectors.base import Detector
from ciod.detectors.onnx import file as onnx_file
from ciod.detectors.parted import Parted
from ciod.detectors.query.branches import QueryBranches

OPSET = 17
CLOSE = 1e-4  # largest difference of a score, and of a box as a share of the input's side
INSTEAD = "Write engine=torch, or leave engine out."
PACKAGES = ("onnx", "onnxruntime")
SCORES = (Detector.scores, Parted.scores, QueryBranches.scores)  # they read no more of ``Outputs`` than the graph gives


def available() -> bool:
    """Whether the packages are installed."""
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES)


def known_decoding(detector: Detector) -> bool:
    """Whether scores, boxes and detections are made of logits, boxes and objectness as in ``Detector``: a detector with
    a way of its own may read anything of its outputs."""
    kind = type(detector)
    own = (kind.decode is Detector.decode, kind.box_of is Detector.box_of, kind.scores in SCORES)
    return all(own) and not {"decode", "scores", "box_of"} & vars(detector).keys()


def runtime(detector: Detector, normalise: Callable[[Tensor], Tensor] | None = None) -> Detector:
    """The copy. It takes batch images of the detector's own size, and gives the ``Outputs`` that decoding needs.

    The graph is compared with ``detector`` on pictures of noise. Every picture is computed by itself, so its detections
    do not depend on the others of its batch.

    Args:
        detector: on the CPU.
        normalise: replaces ``Detector.normalise``.

    Raises:
        CiodError: a package is not installed, or the network cannot be run so, or not with the same outputs.
    """
    for name in PACKAGES:
        onnx_file.require(name)
    name = detector.settings["name"]
    if why := _why_not(detector):
        raise CiodError(f"{name} cannot run in ONNX Runtime: {why}. {INSTEAD}")
    twin: Any = detector.frozen()
    if normalise is not None:
        twin.normalise = normalise
    trial = noise(detector.input.size)
    with torch.no_grad():
        outputs = twin(trial[:1])
        if type(outputs) is not Outputs:
            raise CiodError(f"{name} cannot run in ONNX Runtime: its outputs are of a kind of their own. {INSTEAD}")
        graph = Graph(twin, outputs.answer())
        session = started(graph, trial[:1], name)
    twin.forward = Run(session, graph, twin)
    if not agree(detector, twin, trial):
        raise CiodError(f"{name} cannot run in ONNX Runtime: its outputs would not be the same. {INSTEAD}")
    return twin


def _why_not(detector: Detector) -> str | None:
    """The reason why it cannot be used, as far as that is known before it is tried."""
    if detector.device.type != "cpu":
        return f"it is on {detector.device}, and this is for a CPU"
    if any(m._forward_hooks or m._forward_pre_hooks for m in detector.modules()):
        return "its modules have hooks, which would not be called"
    return None if known_decoding(detector) else "it has a way of its own to make detections"


class Graph(nn.Module):
    """uint8 images [1, 3, H, W] → the fields ``names`` of the outputs, all of one picture.

    Args:
        sample: outputs for one picture; what does not depend on the picture is kept from it.
    """

    def __init__(self, detector: Detector, sample: Outputs):
        super().__init__()
        self.detector = detector
        judged = detector.arbiter is not None and detector.arbiter.on
        self.names = ["logits", "boxes", *(["objectness"] if sample.objectness is not None else [])]
        self.maps = len(sample.maps) if judged else 0
        a = sample
        self.constant = Outputs(
            a.logits, a.boxes, a.points, a.strides, levels=a.levels, parts=a.parts, root=a.root, frame=a.frame
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self.detector(images).answer()
        return (*(getattr(outputs, k) for k in self.names), *outputs.maps[: self.maps])

    def outputs(self, pictures: Sequence[Sequence[Tensor]]) -> Outputs:
        """``Outputs`` of a batch from the results of each picture."""
        joined = [values[0] if len(values) == 1 else torch.cat(values) for values in zip(*pictures, strict=True)]
        given = dict(zip(self.names, joined, strict=False))
        return replace(self.constant, **given, maps=joined[len(self.names) :])


class Run:
    """``Detector.forward`` of the copy: uint8 images [B, 3, H, W] of the detector's size → Outputs. Other images, and
    a copy that has changed since, are for PyTorch."""

    def __init__(self, session: Any, graph: Graph, detector: Detector):
        self.session, self.graph, self.detector = session, graph, detector

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        return Run(self.session, self.graph, copy.deepcopy(self.detector, memo))

    def __call__(self, images: Tensor) -> Outputs:
        detector, side = self.detector, self.detector.input.size
        changed = detector.training or detector.num_classes != self.graph.constant.logits.shape[2]
        if changed or images.dtype != torch.uint8 or images.shape[1:] != (3, side, side):
            return type(detector).forward(detector, images)
        pictures = images.numpy()
        return self.graph.outputs([self._one(pictures[i : i + 1]) for i in range(len(pictures))])

    def _one(self, picture: Any) -> list[Tensor]:
        return [torch.from_numpy(x) for x in self.session.run(None, {"images": picture})]


def started(graph: nn.Module, sample: Tensor, name: str) -> Any:
    """A session of ONNX Runtime for the graph, whose input is ``images``, with as many threads as PyTorch has.

    Raises:
        CiodError: the network cannot be written as ONNX, or there is no room for it.
    """
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's deprecation notice, and intended constants
            path = Path(folder) / "network.onnx"
            torch.onnx.export(
                graph,
                (sample,),
                str(path),
                input_names=["images"],
                opset_version=OPSET,
                dynamo=False,
                training=torch.onnx.TrainingMode.PRESERVE,
            )
            content = path.read_bytes()
        return onnx_file.start(Path(name), content, threads=torch.get_num_threads(), spin=False)
    except Exception as error:  # the exporter has a class for each kind of problem
        why = " ".join(str(error).split())[:300].rstrip(".")
        raise CiodError(f"{name} cannot run in ONNX Runtime: {why}. {INSTEAD}") from error


def noise(size: int) -> Tensor:
    """uint8 [2, 3, size, size]: coarse and fine noise, the same every time."""
    random = torch.Generator().manual_seed(0)
    drawn = torch.zeros(2, 3, size, size)
    for cells in (2, 5, 13, max(1, size // 4)):
        coarse = torch.rand(2, 3, cells, cells, generator=random) * 64
        drawn += nn.functional.interpolate(coarse, (size, size), mode="nearest")
    return drawn.clamp(0, 255).round().to(torch.uint8)


@torch.no_grad()
def agree(one: Detector, other: Detector, images: Tensor) -> bool:
    """Whether two detectors give the same scores and boxes for the images, except for rounding."""
    a, b = one(images).answer(), other(images).answer()
    if a.logits.shape != b.logits.shape or a.parts != b.parts:
        return False
    gap = (one.scores(a) - other.scores(b)).abs()
    side = (a.boxes - b.boxes).abs() / a.boxes.abs().clamp(min=one.input.size)
    return bool((gap.amax() < CLOSE) & (side.amax() < CLOSE)) if gap.numel() else False
