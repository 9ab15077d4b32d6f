"""Functions that dense detectors share: flattening maps into positions, their points, and their class targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ciod.core import boxes as bx
from ciod.core.losses import Supervision
from ciod.core.types import Matches


def flatten(maps: Sequence[Tensor]) -> Tensor:
    """[B, F, h, w] per level → [B, P, F] float32, ordered by level, then row by row."""
    return torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2).float()


def grid(maps: Sequence[Tensor], strides: Sequence[int]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Upper left corners of all cells [P, 2] in pixels, the stride of each [P], and the number of cells per level."""
    corners, steps, levels = [], [], []
    for stride, x in zip(strides, maps, strict=True):
        height, width = x.shape[2:]
        rows = torch.arange(height, device=x.device, dtype=torch.float32) * stride
        columns = torch.arange(width, device=x.device, dtype=torch.float32) * stride
        corners.append(torch.stack([columns.repeat(height), rows.repeat_interleave(width)], 1))
        steps.append(torch.full((height * width,), float(stride), device=x.device))
        levels.append(height * width)
    return torch.cat(corners), torch.cat(steps), tuple(levels)


def class_targets(logits: Tensor, matches: Matches, labels: Tensor, value: Tensor, counted: Tensor) -> Tensor:
    """[B, P, C]: ``value`` at the label of each counted match, 0 elsewhere.

    Args:
        logits: [B, P, C], only for the shape.
        labels, value, counted: [B, K], of the matches.
    """
    out = torch.zeros_like(logits)
    if not logits.shape[2]:
        return out
    place = matches.position * logits.shape[2] + labels
    # Unused slots are at position 0, where another match may be: the larger value is the real one.
    return out.flatten(1).scatter_reduce(1, place, value.masked_fill(~counted, 0), "amax").view_as(out)


def in_class_loss(matches: Matches, supervision: Supervision) -> Tensor:
    """[B, P] bool: positions of a class loss over all positions. It leaves out positions that are neither foreground
    nor background: those whose match is not counted, that the matcher ignores, or for which labels are incomplete."""
    taken = bx.marked(matches.position, supervision.counted, matches.positive.shape[1])
    inside = taken | ~matches.positive
    for out in (None if matches.ignored is None else ~matches.ignored, supervision.positions):
        inside = inside if out is None else inside & out
    return inside
