"""RoIAlign over several levels in one call: nothing is sorted by level, so nothing waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

CELLS = 7  # side of the map of a region
SCALE, LEVEL = 224, 4  # a region of this side (px) is read at stride 2⁴ (Lin et al., CVPR 2017, eq. 1)


def pool(maps: Sequence[Tensor], strides: Sequence[int], boxes: Tensor) -> Tensor:
    """Maps of the regions, as ``MultiScaleRoIAlign`` of torchvision with a sampling ratio of 2.

    The maps of several levels lie one under the other in one map, each with its last row and column repeated, so that
    interpolation at a border reads what it reads at the border of a separate map. (Only of a region smaller than a
    cell, at the right or lower border, a part lies beyond the map; torchvision reads 0 there.)

    Args:
        maps: [B, F, h, w] per level, finest first; each level has twice the stride of the one before.
        boxes: [B, K, 4] in pixels, within the image.

    Returns:
        [B × K, F, 7, 7] float32.
    """
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=torch.float32)[:, None, None]
    image = image.expand_as(boxes[..., :1])
    if len(maps) == 1:
        return roi_align(maps[0].float(), torch.cat([image, boxes], -1).reshape(-1, 5), CELLS, 1 / strides[0], 2)
    widest = max(int(m.shape[3]) for m in maps) + 1
    rows, first = [], [0]
    for m in maps:
        edged = F.pad(m.float(), (0, 1, 0, 1), mode="replicate")
        rows.append(F.pad(edged, (0, widest - int(edged.shape[3]))))
        first.append(first[-1] + int(edged.shape[2]))
    atlas = torch.cat(rows, 2)
    level = level_of(boxes, strides)
    stride = torch.tensor(strides, dtype=torch.float32, device=boxes.device)[level][..., None]
    down = torch.tensor(first[:-1], dtype=torch.float32, device=boxes.device)[level]
    across = torch.zeros_like(down)
    place = boxes / stride + torch.stack([across, down, across, down], -1)
    return roi_align(atlas, torch.cat([image, place], -1).reshape(-1, 5), CELLS, 1.0, 2)


def level_of(boxes: Tensor, strides: Sequence[int]) -> Tensor:
    """[..., 4] → [...] int64: the level at which each region is read, by the root of its area."""
    low, high = (int(s).bit_length() - 1 for s in (strides[0], strides[-1]))
    side = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).clamp(min=1e-6).sqrt()
    wanted = torch.floor(LEVEL + torch.log2(side / SCALE) + 1e-6)
    return wanted.clamp(low, high).long() - low
