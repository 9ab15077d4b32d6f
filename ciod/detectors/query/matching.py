"""One query per object: the assignment of least cost, separately in every set of queries (DETR, arXiv 2005.12872)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ciod.core import boxes as bx
from ciod.core.types import Matches, Outputs, Targets

CLASS_COST, L1_COST, GIOU_COST = 2.0, 5.0, 2.0  # Deformable DETR (arXiv 2010.04159), RT-DETR (arXiv 2304.08069)
ALPHA, GAMMA = 0.25, 2.0
PADDING, BROKEN = 1e6, 1e8  # cost of padding, and of a prediction that is not finite


def shares(boxes: Tensor, frame: tuple[int, int]) -> Tensor:
    """[..., 4] xyxy in pixels → centre x, y, width, height as fractions of the batch image, whose size is ``frame``."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    across, down = frame
    return torch.stack([(x1 + x2) / (2 * across), (y1 + y2) / (2 * down), (x2 - x1) / across, (y2 - y1) / down], -1)


def pixels(unit: Tensor, frame: tuple[int, int]) -> Tensor:
    """The inverse of ``shares``."""
    x, y, w, h = unit.unbind(-1)
    across, down = frame
    return torch.stack([(x - w / 2) * across, (y - h / 2) * down, (x + w / 2) * across, (y + h / 2) * down], -1)


def inside(outputs: Outputs) -> Tensor:
    """[B, P, 4]: the boxes, with centre and sides clamped to the image."""
    assert outputs.frame is not None
    return pixels(shares(outputs.boxes, outputs.frame).clamp(0, 1), outputs.frame)


def costs(outputs: Outputs, targets: Targets) -> Tensor:
    """[B, P, N]: 2 × focal class cost + 5 × L1 of boxes as fractions of the image - 2 × GIoU."""
    assert outputs.frame is not None
    n = targets.labels.shape[1]
    logits = outputs.logits
    if logits.shape[2]:
        logits = logits.gather(2, targets.labels[:, None].expand(-1, logits.shape[1], n))
    else:
        logits = logits.new_zeros(*logits.shape[:2], n)
    p = logits.sigmoid()
    yes = ALPHA * (1 - p).pow(GAMMA) * -(p + 1e-8).log()
    no = (1 - ALPHA) * p.pow(GAMMA) * -(1 - p + 1e-8).log()
    own, real = shares(outputs.boxes, outputs.frame), shares(targets.boxes, outputs.frame)
    apart = (own[:, :, None] - real[:, None]).abs().sum(-1)
    overlap = bx.giou(outputs.boxes[:, :, None], targets.boxes[:, None])
    cost = CLASS_COST * (yes - no) + L1_COST * apart - GIOU_COST * overlap
    cost = cost.nan_to_num(BROKEN, BROKEN, BROKEN)
    return cost.masked_fill(~targets.valid[:, None], PADDING)


@torch.no_grad()
def hungarian(outputs: Outputs, targets: Targets) -> Matches:
    """Each target gets one query in every set, also in those of earlier layers, and each query at most one target.

    This is the only place in a step that waits for the device: the assignment of all images and sets is computed on the
    CPU after one transfer. Padding also has slots, which are not ``valid``.
    """
    from scipy.optimize import linear_sum_assignment

    size = outputs.logits.shape[1]
    queries = outputs.answers or size
    sets = size // queries
    table = costs(outputs, targets).view(-1, sets, queries, targets.valid.shape[1]).cpu().numpy()
    pairs = np.array([[linear_sum_assignment(one) for one in image] for image in table], dtype=np.int64)
    pairs[:, :, 0] += queries * np.arange(sets)[:, None]
    pairs = np.ascontiguousarray(pairs.transpose(2, 0, 1, 3)).reshape(2, len(table), -1)
    position, target = torch.from_numpy(pairs).to(outputs.boxes.device, non_blocking=True)
    valid = targets.valid.gather(1, target)
    iou = bx.iou(bx.gather_rows(outputs.boxes, position), bx.gather_rows(targets.boxes, target))
    return Matches(position, target, iou, valid, bx.marked(position, valid, size))


@torch.no_grad()
def union(outputs: Outputs, targets: Targets, matches: Matches, counted: Tensor) -> tuple[Matches, Tensor]:
    """The union of the matches of all sets (GO-LSD, D-FINE, arXiv 2410.13842): a query that any set matched has its
    target in every set. Of several targets it keeps the most frequent one, of equally frequent ones the first.

    Args:
        counted: [B, K] bool; other matches are left out.

    Returns:
        Matches with a slot for every query of every set, and which slots count, [B, P] bool.
    """
    size, number = outputs.logits.shape[1], targets.valid.shape[1]
    if not number:
        return matches, counted
    queries = outputs.answers or size
    votes = torch.zeros(len(counted), queries * number, dtype=torch.long, device=counted.device)
    votes.scatter_add_(1, matches.position % queries * number + matches.target, counted.long())
    first = torch.arange(number, 0, -1, device=votes.device)
    votes = votes.view(-1, queries, number) * (number + 1)
    most, target = (votes + first).max(2)
    target, slots = (v.repeat(1, size // queries) for v in (target, most > number))
    iou = bx.iou(outputs.boxes, bx.gather_rows(targets.boxes, target))
    position = torch.arange(size, device=votes.device).expand_as(target)
    return Matches(position, target, iou, slots, slots), slots
