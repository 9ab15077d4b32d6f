"""Distributions of the sides of boxes and their losses (D-FINE, Peng et al., ICLR 2025, arXiv 2410.13842).

Each side of a box is a distribution over bins: how far the side lies from that of a first box, in units of that box's
width or height. Bins are narrow around 0 and wide at the ends.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.query.matching import shares

TEMPERATURE = 5.0  # of the distillation


def bins(number: int, reach: float, device: torch.device) -> Tensor:
    """[number + 1] the offset that each bin stands for: 0 in the middle, ± ``reach`` at the last but one, twice that at
    the ends.

    Args:
        number: even; a distribution has one logit more.
    """
    power = torch.arange(1, number // 2, device=device, dtype=torch.float32) * (2 / (number - 2))
    half = (reach + 1) ** power - 1
    right = torch.cat([half, half.new_full((1,), 2 * reach)])
    return torch.cat([-right.flip(0), right.new_zeros(1), right])


def offsets(refs: Tensor, real: Tensor, scale: float) -> Tensor:
    """How far the sides of real boxes lie outside those of reference boxes: [..., 4] left, top, right, bottom.

    Args:
        refs, real: [..., 4] centre, width and height, as shares of the image.
        scale: units of an offset per width or height of the reference.
    """
    low, high = (real[..., :2] + sign * real[..., 2:] / 2 for sign in (-1, 1))
    unit = refs[..., 2:] / scale + 1e-16
    return torch.cat([(refs[..., :2] - low) / unit, (high - refs[..., :2]) / unit], -1) - scale / 2


def between(offset: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """The bin below each offset, and the share 0..1 of the next bin; offsets beyond the ends are at the ends."""
    offset = offset.clamp(values[0], values[-1])
    low = (torch.searchsorted(values, offset.detach().contiguous(), right=True) - 1).clamp(0, len(values) - 2)
    return low, (offset - values[low]) / (values[low + 1] - values[low])


def localisation(
    outputs: Outputs, targets: Targets, matches: Matches, counted: Tensor, reach: float, scale: float
) -> Tensor:
    """Sum of the fine-grained localisation loss: cross-entropy with the two bins around the real side, times the IoU.

    Args:
        counted: [B, K] bool, matches that are trained; those of sets without a distribution are left out here.
        reach: offset of the last bin but one.
        scale: see ``offsets``.
    """
    assert outputs.distribution is not None and outputs.refs is not None and outputs.frame is not None
    size = outputs.distribution.shape[1]
    place = matches.position.clamp(max=size - 1)
    own = bx.gather_rows(outputs.distribution, place)  # [B, K, 4, R]
    refs = bx.gather_rows(outputs.refs, place)
    real = shares(bx.gather_rows(targets.boxes, matches.target), outputs.frame)
    low, share = between(offsets(refs, real, scale), bins(own.shape[-1] - 1, reach, own.device))
    log_p = own.log_softmax(-1)
    left, right = (log_p.gather(-1, index[..., None])[..., 0] for index in (low, low + 1))
    loss = -(left * (1 - share) + right * share).sum(-1) * matches.iou.detach()
    return L.masked_sum(loss, counted & (matches.position < size))


def distillation(outputs: Outputs, matches: Matches, counted: Tensor) -> Tensor:
    """The decoupled distillation focal loss: every earlier layer learns the distributions of the last one.

    A matched query counts by its IoU, any other by the best class score of the last layer. Means over both kinds are
    mixed by the roots of their numbers, over all processes.
    """
    dist, queries = outputs.distribution, outputs.answers
    assert dist is not None and queries is not None
    size, layers = dist.shape[1], dist.shape[1] // queries
    each = dist.unflatten(1, (layers, queries))  # [B, L, Q, 4, R], the last layer first
    last = (each[:, :1].detach() / TEMPERATURE).log_softmax(-1)
    learning = (each[:, 1:] / TEMPERATURE).log_softmax(-1)
    apart = TEMPERATURE**2 * (last.exp() * (last - learning)).sum((-1, -2))  # [B, L - 1, Q]: of all four sides
    every = outputs.logits.shape[1]
    trained = torch.where(counted, matches.iou, torch.zeros_like(matches.iou))
    iou = torch.zeros_like(outputs.logits[..., 0] if outputs.logits.shape[2] else outputs.boxes[..., 0])
    iou = iou.scatter_reduce(1, matches.position, trained, "amax")
    matched = bx.marked(matches.position, counted, every)
    iou, matched = (v[:, queries:size].unflatten(1, (layers - 1, queries)) for v in (iou, matched))
    logits = outputs.logits[:, :queries].detach()
    best = logits.sigmoid().amax(-1) if logits.shape[2] else logits.new_zeros(logits.shape[:2])
    loss = apart * torch.where(matched, iou, best[:, None].expand_as(iou)).detach()
    shared = loss.new_zeros(layers - 1)
    for mask in (matched, ~matched):
        number = L.normaliser(4 * mask.sum((0, 2)).float(), least=0.0)
        mean = torch.where(mask, loss, torch.zeros_like(loss)).sum((0, 2)) / number.clamp(min=1e-6)
        shared = shared + mean * number.sqrt()
    total = L.normaliser(4 * matched.sum((0, 2)).float(), least=0.0).sqrt()
    total = total + L.normaliser(4 * (~matched).sum((0, 2)).float(), least=0.0).sqrt()
    return (shared / total).sum()
