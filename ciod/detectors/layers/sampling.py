"""Bilinear samples of maps in and around boxes."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

FARTHEST = 1e6  # pixels


def samples(m: Tensor, boxes: Tensor, stride: int, count: int, scale: float = 1.0) -> Tensor:
    """The map at evenly spaced points across boxes, between its cells; 0 more than a cell outside.

    ``roi_align`` with one point per bin: one operator, also in ONNX, where reading four cells per point and adding them
    takes ten times as long. Boxes are shifted by half a cell, so that a cell's value is at its centre; this works
    with old opsets.

    Args:
        m: [B, F, h, w].
        boxes: [B, n, 4] xyxy in pixels; they get no gradient.
        stride: pixels per cell.
        count: points per side.
        scale: of the box around its centre, before points are set. A side is then at least one cell.

    Returns:
        [B × n, F, count, count]: rows, then columns.
    """
    boxes = boxes.detach().nan_to_num().clamp(-FARTHEST, FARTHEST)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 - stride / 2
    half = ((boxes[..., 2:] - boxes[..., :2]) * scale).clamp(min=stride) / 2
    image = torch.arange(m.shape[0], device=m.device)[:, None, None].to(boxes) + boxes[..., :1] * 0
    rois = torch.cat([image, centre - half, centre + half], 2).flatten(0, 1)
    return torchvision.ops.roi_align(m, rois, count, 1 / stride, 1, aligned=False)
