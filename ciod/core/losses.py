"""Losses as pure functions of float32 tensors. Sums are divided by counts that the caller averages over ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ciod.core import boxes as bx
from ciod.core.types import Matches, Outputs, Targets

SPARE = 0.3  # a position where the student scores an unlabelled class at least this high is not background


def count(mask: Tensor) -> Tensor:
    """Number of true values, as a normaliser: summed over ranks, at least 1, divided by the number of ranks.

    DDP averages gradients over ranks, so a loss divided by this equals the loss of one process with the whole
    batch. A batch without any positive divides by 1, not by a tiny epsilon. Stays on the device.
    """
    return normaliser(mask.sum().float())


def normaliser(n: Tensor, least: float = 1.0) -> Tensor:
    """The same for a sum of weights, at least ``least``. It has no gradient, because ``n`` is detached."""
    n = n.detach().clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(n)
        return n.clamp(min=least) / dist.get_world_size()
    return n.clamp(min=least)


def bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy on logits, elementwise; targets may be soft."""
    return F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def bernoulli_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) of independent Bernoulli logits, elementwise: ``bce`` minus the teacher's entropy.

    Its gradient is that of ``bce`` with the teacher's probabilities as target; its value is 0 at equal logits.
    """
    yes = F.logsigmoid(teacher) - F.logsigmoid(student)
    no = F.logsigmoid(-teacher) - F.logsigmoid(-student)
    return teacher.sigmoid() * yes + (-teacher).sigmoid() * no


def entropy(p: Tensor) -> Tensor:
    """Entropy of independent Bernoulli probabilities, elementwise: the minimum of ``bce`` for a soft target."""
    p = p.clamp(1e-7, 1 - 1e-7)
    return -(p * p.log() + (1 - p) * (1 - p).log())


def iou_square(predicted: Tensor, target: Tensor) -> Tensor:
    """YOLOX's box loss 1 - IoU² (Ge et al. 2021): [..., 4], [..., 4] → [...]."""
    return 1 - bx.iou(predicted, target).clamp(min=1e-16).square()


def quality_focal(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss (Li et al. 2020, arXiv 2006.04388, eq. 2), elementwise; quality 0 is background."""
    return bce(logits, quality) * (quality - logits.sigmoid()).abs().pow(beta)


def varifocal(
    logits: Tensor, quality: Tensor, alpha: float = 0.75, gamma: float = 2.0, *, weighted: bool = True
) -> Tensor:
    """Varifocal loss (Zhang et al., CVPR 2021, arXiv 2008.13367, eq. 2), elementwise; quality 0 is background.

    Args:
        weighted: the weight of a positive is its quality; else 1.
    """
    gap = alpha * (logits.sigmoid() - quality).abs().pow(gamma)
    return bce(logits, quality) * torch.where(quality > 0, quality if weighted else torch.ones_like(quality), gap)


def distribution_focal(logits: Tensor, value: Tensor) -> Tensor:
    """Distribution focal loss (Li et al. 2020, eq. 6): cross-entropy with the two bins around ``value``.

    Args:
        logits: [..., R].
        value: [...] in bins, 0 ≤ value < R - 1.
    """
    log_p = logits.log_softmax(-1)
    low = value.long()
    left = log_p.gather(-1, low[..., None])[..., 0]
    right = log_p.gather(-1, low[..., None] + 1)[..., 0]
    return -(left * (low + 1 - value) + right * (value - low))


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum where ``mask`` is set; values elsewhere have no effect, even if they are not finite."""
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum()


def over_images(values: Tensor, reduction: str) -> Tensor:
    """One value per image, [B] → scalar.

    Args:
        reduction: ``image_mean``, or ``image_sum``: over the images of all ranks, whose gradients DDP averages.
    """
    if reduction == "image_mean":
        return values.mean()
    ranks = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    return values.sum() * ranks


@dataclass
class Supervision:
    """For which matches, channels and positions the labels of a batch are complete. None: for all."""

    counted: Tensor  # [B, K] bool: matches in the class and box losses
    matched: Tensor  # [B, K] bool: matches that are positive for objectness
    channels: Tensor | None  # [1 or B, 1 or P, C] bool: class channels with supervision, of positions
    at_matches: Tensor | None  # [1 or B, 1 or K, C] bool: the same, of matches
    positions: Tensor | None  # [B, P] bool: positions in the losses over all positions
    objectness: Tensor | None  # [B, P] bool: the same for class-agnostic objectness
    chosen: bool = False  # whether the caller chose the counted matches


def supervise(
    outputs: Outputs, targets: Targets, matches: Matches, counted: Tensor | None = None, channels: Tensor | None = None
) -> Supervision:
    """Partial labels as masks, for the loss of any dense detector.

    - A class that is not labelled in an image (``targets.known``) has no class loss in that image, except at counted
      matches, because a labelled object is known to be of no other class. Objectness has no classes: positions that
      the student scores ``SPARE`` or more for such a class are not negatives.
    - Positions matched with a doubtful box are neither positive nor negative.
    - Where ``targets.background`` is False, positions without a match are not negatives.

    Args:
        counted, channels: see ``Detector.loss``.
    """
    chosen, counted = counted is not None, matches.valid if counted is None else counted & matches.valid
    matched, positions, size = matches.valid, None, matches.positive.shape[1]
    mask = at_matches = None
    if channels is not None:
        mask = channels if channels.ndim == 3 else channels.view(-1, 1, channels.shape[-1])
        at_matches = bx.gather_rows(mask, matches.position) if channels.ndim == 3 else mask
    if targets.doubtful is not None:
        doubtful = targets.doubtful.gather(1, matches.target) & matches.valid
        counted, matched = counted & ~doubtful, matched & ~doubtful
        positions = ~bx.marked(matches.position, doubtful, size)
    if targets.background is not None:
        in_loss = matches.positive | targets.background[:, None]
        positions = in_loss if positions is None else positions & in_loss
    objectness = positions
    if targets.known is not None:
        known = targets.known[:, None, :]
        labelled = known | bx.marked(matches.position, counted, size)[..., None]
        mask = labelled if mask is None else mask & labelled
        if outputs.objectness is not None:
            seen = outputs.scores().detach().masked_fill(known, 0).amax(2) >= SPARE
            in_loss = matches.positive | ~seen
            objectness = in_loss if objectness is None else objectness & in_loss
    return Supervision(counted, matched, mask, at_matches, positions, objectness, chosen)
