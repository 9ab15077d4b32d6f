"""Stand-ins for tests of losses: outputs made by hand, a network that returns them, tiny batches and tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ciod.core.types import Batch, Outputs, Targets
from ciod.data.index import Index, empty_columns
from ciod.data.scenarios.scenario import Task


def logit(p) -> Tensor:
    """Probabilities → logits."""
    return torch.logit(torch.as_tensor(p, dtype=torch.float32))


class Returns:
    """A network in eval mode that returns the same outputs for any input, and counts its calls."""

    training = False

    def __init__(self, outputs: Outputs):
        self.outputs, self.calls = outputs, 0

    @property
    def detector(self) -> Returns:
        """Itself, as ``Teacher.detector``."""
        return self

    def __call__(self, images: Tensor) -> Outputs:
        self.calls += 1
        return self.outputs


def outputs(logits, boxes, objectness, *, stride: float = 8.0, points=None) -> Outputs:
    """Outputs of one image or a batch; points default to the centres of the boxes of the first image."""
    logits, boxes, objectness = (torch.as_tensor(t, dtype=torch.float32) for t in (logits, boxes, objectness))
    if logits.dim() == 2:
        logits, boxes, objectness = logits[None], boxes[None], objectness[None]
    if points is None:
        points = (boxes[0, :, :2] + boxes[0, :, 2:]).detach() / 2
    return Outputs(
        logits, boxes, torch.as_tensor(points, dtype=torch.float32), torch.full((logits.shape[1],), stride), objectness
    )


def batch(targets: Targets, images: Tensor | None = None) -> Batch:
    n = len(targets.boxes)
    images = torch.zeros(n, 3, 64, 64, dtype=torch.uint8) if images is None else images
    return Batch(
        images=images,
        targets=targets,
        names=[f"{i}.png" for i in range(n)],
        sizes=torch.full((n, 2), images.shape[-1]),
        scales=torch.ones(n),
        index=torch.arange(n),
    )


def no_boxes(n: int = 1) -> Targets:
    return Targets.pad([torch.zeros(0, 4)] * n, [torch.zeros(0, dtype=torch.long)] * n)


def task(old: tuple[str, ...], new: tuple[str, ...]) -> Task:
    """A task without images: what ``begin_task`` needs."""
    index = Index(old + new, [], np.zeros((0, 2), np.int32), np.zeros(0, np.int64), **empty_columns())
    return Task(int(bool(old)), new, old, index, index, 0, 0)


def random_outputs(
    seed: int, classes: int, *, images: int = 2, size: int | tuple[int, int] = 64, grad: bool = False
) -> Outputs:
    """Random outputs of a YOLOX, with boxes near their cells. ``size``: length of a side, or (height, width)."""
    from ciod.detectors.yolox import STRIDES, assemble

    g = torch.Generator().manual_seed(seed)
    height, width = (size, size) if isinstance(size, int) else size

    def maps(channels: int, scale: float) -> list[Tensor]:
        return [
            (torch.randn(images, channels, height // s, width // s, generator=g) * scale).requires_grad_(grad)
            for s in STRIDES
        ]

    return assemble(maps(classes, 1.5), maps(4, 0.5), maps(1, 1.5))


def boxes_at_random(seed: int, counts: list[int], *, classes: int, size: int = 64) -> Targets:
    """``counts[i]`` boxes in image i, inside it, at least 4 pixels wide and high."""
    rng = np.random.default_rng(seed)
    boxes, labels = [], []
    for n in counts:
        side = rng.uniform(4, size / 2, (n, 2))
        corner = rng.uniform(0, 1, (n, 2)) * (size - side)
        boxes.append(torch.from_numpy(np.concatenate([corner, corner + side], 1).astype(np.float32)))
        labels.append(torch.from_numpy(rng.integers(0, classes, n)))
    return Targets.pad(boxes, labels)


def index_of(
    rows: list[tuple[int, str]],
    names: tuple[str, ...],
    images: int,
    *,
    folder: Path = Path("/nowhere"),
    crowd: tuple[int, ...] = (),
    difficult: tuple[int, ...] = (),
) -> Index:
    """An Index without files: ``rows`` are (image, class) in order of image; boxes are all different."""
    columns = empty_columns()
    n = len(rows)
    if n:
        start = np.arange(n, dtype=np.float32)
        columns = {
            "image": np.array([r[0] for r in rows], np.int64),
            "boxes": np.stack([start, start, start + 10, start + 10], 1),
            "labels": np.array([names.index(r[1]) for r in rows], np.int64),
            "crowd": np.isin(np.arange(n), crowd),
            "difficult": np.isin(np.arange(n), difficult),
            "area": np.full(n, 100, np.float32),
        }
    files = [folder / f"{i}.jpg" for i in range(images)]
    return Index(names, files, np.full((images, 2), 64, np.int32), np.arange(images) + 1, **columns, source="a test")


def slice_images(out: Outputs, i: int) -> Outputs:
    """One image of a batch of outputs."""
    return replace(
        out,
        logits=out.logits[i : i + 1],
        boxes=out.boxes[i : i + 1],
        objectness=None if out.objectness is None else out.objectness[i : i + 1],
        features=[],
    )


def overlaps(boxes: Tensor, box: Tensor) -> Tensor:
    """IoU of every box with one."""
    from ciod.core.boxes import iou

    return iou(boxes, box.expand_as(boxes))
