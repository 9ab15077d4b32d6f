"""Random samples of positives and negatives, without a generator and without waiting for the device.

What is drawn depends on the pixels of an image alone. So a batch gives the same sample however it is divided among
processes, and a resumed run draws as the first one did. Augmentation gives an image other pixels in every epoch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ciod.core import boxes as bx

_MASK = 0xFFFFFFFF  # of 32 bits


def keys(images: Tensor) -> Tensor:
    """[B, 3, H, W] 0..255 → [B] int64: a number of each image, from every fourth row and column."""
    pixels = images[:, :, ::4, ::4].long().flatten(1)
    weight = torch.arange(1, pixels.shape[1] + 1, device=images.device) * 40503 % 65521
    return (pixels * weight).sum(1) & _MASK


def draws(key: Tensor, count: int, salt: int) -> Tensor:
    """[B, count] uniform in 0..1: numbers of each image, by an integer hash of its key [B], the place and ``salt``."""
    x = key[:, None] * 40503 + torch.arange(count, device=key.device) * 2654435761 + salt * 97
    for shift, factor in ((16, 0x7FEB352D), (15, 0x5F356495), (16, 1)):
        x = x & _MASK
        x = (x ^ (x >> shift)) * factor
    return ((x & _MASK) >> 8).float() / 2**24


def balanced(positive: Tensor, negative: Tensor, random: Tensor, most: int, share: float) -> tuple[Tensor, Tensor]:
    """A sample of each image: at most ``share`` of ``most`` are positives, and negatives fill it up.

    Args:
        positive, negative: [B, P] bool.
        random: [B, P]; the highest are drawn.

    Returns:
        The drawn positives and negatives, [B, P] bool each.
    """
    chosen = _highest(positive, random, int(most * share))
    room = most - chosen.sum(1, keepdim=True)
    return chosen, _highest(negative, random, most, room)


def _highest(mask: Tensor, random: Tensor, most: int, room: Tensor | None = None) -> Tensor:
    """[B, P] bool: of the true places of ``mask`` the ``most`` highest, or the ``room`` [B, 1] highest."""
    value, index = random.masked_fill(~mask, -1.0).topk(min(most, mask.shape[1]), dim=1)
    taken = value >= 0
    if room is not None:
        taken = taken & (torch.arange(taken.shape[1], device=mask.device) < room)
    return bx.marked(index, taken, mask.shape[1])
