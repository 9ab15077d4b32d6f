"""Made-up outputs of a trained teacher and its student at full size, for benchmarks of the head mathematics."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ciod.core.types import Outputs, Targets

STRIDES = (8, 16, 32)


def grid(size: int) -> tuple[Tensor, Tensor]:
    """Points [P, 2] and strides [P] of a square image of ``size`` pixels."""
    points, strides = [], []
    for stride in STRIDES:
        n = size // stride
        axis = (torch.arange(n) + 0.5) * stride
        points.append(torch.stack([axis.repeat(n), axis.repeat_interleave(n)], 1))
        strides.append(torch.full((n * n,), float(stride)))
    return torch.cat(points), torch.cat(strides)


def scene(
    *,
    images: int = 8,
    size: int = 640,
    classes: int = 80,
    old: int = 40,
    objects: int = 31,
    real: int = 8,
    seed: int = 0,
) -> tuple[Outputs, Outputs, Targets]:
    """Student and teacher outputs and the real boxes.

    The teacher sees ``objects`` objects an image, each at the three positions nearest its centre, with boxes that
    overlap well but survive NMS at 0.95: about three kept positions an object.
    """
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    points, strides = grid(size)
    p = len(points)
    centre, side = rand(images, objects, 2) * size, 24 + rand(images, objects, 2) * size / 5
    found = torch.cat([centre - side / 2, centre + side / 2], 2)
    label = torch.randint(old, (images, objects), generator=g)
    level = strides[None, None] == torch.where(side.amax(2) < 64, 8.0, 16.0)[..., None]
    distance = (points[None, None] - centre[:, :, None]).square().sum(3).masked_fill(~level, 1e9)
    near = distance.topk(3, largest=False).indices.flatten(1)  # [B, 3 × objects]
    logits = -5 + 0.5 * torch.randn(images, p, classes, generator=g)
    objectness = -5 + 0.5 * torch.randn(images, p, generator=g)
    half = strides[None, :, None] * (1 + 2 * rand(images, p, 2))
    boxes = torch.cat([points - half, points + half], 2)
    rows = torch.arange(images)[:, None].expand_as(near)
    owner = label.repeat_interleave(3, 1)
    logits[rows, near, owner] = 1 + rand(*near.shape)
    objectness[rows, near] = 1 + rand(*near.shape)
    wide = found.repeat_interleave(3, 1)
    extent = (wide[..., 2:] - wide[..., :2]).repeat(1, 1, 2)
    boxes[rows, near] = wide + 0.06 * extent * torch.randn(*near.shape, 4, generator=g)
    teacher = Outputs(logits[..., :old].contiguous(), boxes, points, strides, objectness)

    student = replace(
        teacher,
        logits=logits + 0.3 * torch.randn(logits.shape, generator=g),
        boxes=boxes + torch.randn(boxes.shape, generator=g),
        objectness=objectness + 0.3 * torch.randn(objectness.shape, generator=g),
    )
    corner = rand(images, real, 2) * size * 0.8
    there = torch.cat([corner, corner + 20 + rand(images, real, 2) * size * 0.2], 2)
    names = torch.randint(old, classes, (images, real), generator=g)
    return student, teacher, Targets(there, names, torch.ones(images, real, dtype=torch.bool))


def trained(outputs: Outputs) -> Outputs:
    """The same with leaves that take gradients."""
    return replace(
        outputs,
        logits=outputs.logits.clone().requires_grad_(True),
        boxes=outputs.boxes.clone().requires_grad_(True),
        objectness=None if outputs.objectness is None else outputs.objectness.clone().requires_grad_(True),
    )
