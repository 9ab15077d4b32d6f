"""Bilinear samples of maps at points of boxes, from operators that every runtime and every ONNX opset has."""

from __future__ import annotations

import torch
from torch import Tensor


def points(boxes: Tensor, stride: int, count: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Evenly spaced points across boxes, in cells of a map, where the centre of the first cell is 0.

    Args:
        boxes: [B, n, 4] xyxy in pixels.
        stride: pixels per cell.
        count: points per side.
        scale: of the box around its centre, before points are set.

    Returns:
        Columns and rows, [B, n, count] each.
    """
    place = ((torch.arange(count, device=boxes.device) + 0.5) / count - 0.5) * scale
    centre, side = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    at = (centre[..., None] + side[..., None] * place) / stride - 0.5
    return at[..., 0, :], at[..., 1, :]


def at_points(m: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """The map between its cells; beyond the border it has the values of the border.

    Args:
        m: [B, F, h, w].
        columns, rows: [B, n, k] in cells; each row meets each column.

    Returns:
        [B, n, k, k, F]: rows, then columns.
    """
    images, _, height, width = m.shape
    cells = m.permute(0, 2, 3, 1).flatten(0, 2)
    first = torch.arange(images, device=m.device)[:, None, None, None] * (height * width)
    (top, down), (left, right) = _between(rows, height), _between(columns, width)
    found = None
    for y, below in zip(top, down, strict=True):
        for x, beside in zip(left, right, strict=True):
            place = first + y[..., :, None] * width + x[..., None, :]
            share = (below[..., :, None] * beside[..., None, :])[..., None]
            part = cells.index_select(0, place.flatten()).view(*place.shape, -1) * share
            found = part if found is None else found + part
    assert found is not None
    return found


def _between(at: Tensor, cells: int) -> tuple[list[Tensor], list[Tensor]]:
    """The two cells that a coordinate is between, and their shares."""
    at = at.nan_to_num().clamp(0, cells - 1)
    low = at.floor()
    after = (low + 1).clamp(max=cells - 1)
    share = at - low
    return [low.long(), after.long()], [1 - share, share]
