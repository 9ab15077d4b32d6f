"""Losses as pure functions of float32 tensors. Sums are divided by counts the caller averages over ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ciod import boxes as bx


def count(mask: Tensor) -> Tensor:
    """How many are true, as a normaliser: summed over ranks, at least 1, divided by the number of ranks.

    DDP averages gradients over ranks, so a loss divided by this equals the loss of one process with the whole
    batch. A batch without any positive divides by 1, not by a tiny epsilon. Stays on the device.
    """
    n = mask.sum().float()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(n)
        return n.clamp(min=1) / dist.get_world_size()
    return n.clamp(min=1)


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy on logits, element by element; targets may be soft."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def entropy(p: Tensor) -> Tensor:
    """Entropy of independent Bernoulli probabilities, element by element: the floor of ``bce`` for a soft target."""
    p = p.clamp(1e-7, 1 - 1e-7)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def iou_square(predicted: Tensor, target: Tensor) -> Tensor:
    """YOLOX's box loss 1 - IoU² (Ge et al. 2021): [..., 4], [..., 4] → [...]."""
    return 1 - bx.iou(predicted, target).clamp(min=1e-16).square()


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum where ``mask``; a value that is not finite elsewhere does not spread."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum()
