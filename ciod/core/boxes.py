"""Box arithmetic on batched tensors: IoU, GIoU, compaction of masks, NMS. No loops over boxes, images or classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms  # pyright: ignore[reportMissingTypeStubs]

# A greedy NMS decision depends on the chain of better boxes before it. On a GPU this many links are followed without
# reading from the device whether the chain has ended; chains of real detections are shorter than ten.
_NMS_ROUNDS = 64


def area(boxes: Tensor) -> Tensor:
    """[..., 4] xyxy → [...]; degenerate boxes have area 0."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection and union of boxes that broadcast against each other."""
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    side = (high - low).clamp(min=0)
    both = side[..., 0] * side[..., 1]
    return both, area(a) + area(b) - both


def iou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Elementwise IoU: [..., 4], [..., 4] → [...]."""
    both, union = _overlap(a, b)
    return both / union.clamp(min=eps)


def pairwise_iou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """IoU of every pair: [..., N, 4], [..., M, 4] → [..., N, M]."""
    x1, y1, x2, y2 = a[..., :, None, :].unbind(-1)
    u1, v1, u2, v2 = b[..., None, :, :].unbind(-1)
    # Per coordinate and in place: the table of pairs is the largest tensor, and each pass over it costs time.
    both = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp_(min=0)
    both = both * (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp_(min=0)
    union = (area(a)[..., :, None] + area(b)[..., None, :]) - both
    return both / union.clamp_(min=eps)


def iou_table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``pairwise_iou`` of arrays: [N, 4], [M, 4] → [N, M]."""
    return pairwise_iou(torch.as_tensor(a), torch.as_tensor(b)).numpy()


def giou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Generalised IoU (Rezatofighi et al., CVPR 2019), elementwise, in -1..1."""
    both, union = _overlap(a, b)
    union = union.clamp(min=eps)
    side = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull = (side[..., 0] * side[..., 1]).clamp(min=eps)
    return both / union - (hull - union) / hull


def diou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Distance IoU (Zheng et al., AAAI 2020), elementwise, in -1..1: IoU minus the squared distance of the centres
    divided by the squared diagonal of the common hull."""
    side = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    return iou(a, b, eps) - apart.square().sum(-1) / side.square().sum(-1).clamp(min=eps)


def compact(mask: Tensor, score: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The true positions of ``mask`` as a padded list, ascending.

    Args:
        mask: [B, P] bool.
        score: [B, P] ≥ 0; if an image has more than ``limit`` true positions, the best are taken.
        limit: maximum length. On a GPU lists always have this length, so that no size is read back from the device; on
            a CPU, where reading is free, they are only as long as necessary.

    Returns:
        index [B, K] int64 and valid [B, K] bool, K ≥ 1.
    """
    positions = mask.shape[1]
    width = min(limit, positions)
    if mask.device.type == "cpu":
        width = max(1, min(width, int(mask.sum(1).amax().numpy())))
    value, index = score.detach().masked_fill(~mask, -1.0).topk(width, dim=1)
    valid = value >= 0
    index, order = index.masked_fill(~valid, positions).sort(dim=1)
    valid = valid.gather(1, order)
    return index.masked_fill(~valid, 0), valid


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """[B, P, ...] at [B, K] → [B, K, ...]."""
    shape = (*index.shape, *values.shape[2:])
    return values.gather(1, index.view(*index.shape, *[1] * (values.dim() - 2)).expand(shape))


def marked(index: Tensor, mask: Tensor, length: int) -> Tensor:
    """[B, length] bool: the positions [B, K] of ``index`` where ``mask`` is true. Counts, because a maximum of booleans
    is not available on every device."""
    seen = torch.zeros(index.shape[0], length, dtype=torch.int32, device=index.device)
    return seen.scatter_add_(1, index, mask.int()) > 0 if length else seen > 0


def nms_keep(boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """Class-aware greedy NMS of a batch at once.

    Args:
        boxes, scores, labels, valid: [B, K, 4], [B, K], [B, K], [B, K] bool.
        threshold: a box is removed if its IoU with a better kept box of its class is above this.

    Returns:
        [B, K] bool: the kept boxes, in the order of the input. If scores are equal, the first box wins.
    """
    order = scores.masked_fill(~valid, -1.0).sort(dim=1, descending=True, stable=True).indices
    b, y, ok = gather_rows(boxes, order), labels.gather(1, order), valid.gather(1, order)
    rival = pairwise_iou(b, b) > threshold
    rival &= y[:, :, None] == y[:, None, :]
    rival &= torch.ones_like(rival[0]).tril(-1)  # only better boxes suppress
    kept = ok
    for _ in range(boxes.shape[1] if boxes.device.type == "cpu" else _NMS_ROUNDS):
        # The greedy result is the only fixed point: box i is right as soon as the boxes before it are.
        following = ok & ~(rival & kept[:, None, :]).any(2)
        if boxes.device.type == "cpu" and torch.equal(following, kept):
            break
        kept = following
    return torch.zeros_like(kept).scatter(1, order, kept)


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Class-aware greedy NMS of one image: [n, 4], [n], [n] → indices of the kept boxes, the best first.

    torchvision shifts the boxes of each class apart by the size of the picture, which in float32 rounds them by up to
    0.004 px: whether a box is kept would depend on which other classes there are. In float64 it does not.
    """
    exact = boxes if boxes.device.type == "mps" else boxes.double()  # Apple's GPUs have no float64
    return batched_nms(exact, scores.to(exact.dtype), labels, threshold)


def best_of_parts(positions: Tensor, parts: Sequence[int], most: int) -> Tensor:
    """Indices of the first ``most`` entries of each part, ascending.

    Args:
        positions: [n] int64, where each entry was found; the best entry first.
        parts: how many positions each part has, in order; empty: there is one part.
    """
    if len(parts) < 2:
        return torch.arange(min(most, len(positions)), device=positions.device)
    first = torch.tensor(parts, device=positions.device).cumsum(0)
    part = torch.bucketize(positions, first[:-1], right=True)
    rank = torch.nn.functional.one_hot(part, len(parts)).cumsum(0).gather(1, part[:, None])[:, 0]
    return torch.nonzero(rank <= most)[:, 0]
