"""The losses of both stages, without loops over images; for the same samples those of torchvision."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.types import Matches, Targets
from ciod.detectors.dense import in_class_loss
from ciod.detectors.rcnn import sampling
from ciod.detectors.rcnn.outputs import WEIGHTS, RoIOutputs
from ciod.detectors.torchvision_models import correction

ANCHORS, ANCHOR_SHARE = 256, 0.5  # sampled per image in the first stage, and how many of them may be matched
REGIONS, REGION_SHARE = 512, 0.25  # the same in the second stage
ABOVE, BELOW = 0.7, 0.3  # an anchor is matched from this IoU, and background below that
BETA = 1 / 9  # of smooth L1
SUSPECTS = 50  # regions per image that may show an object of a class that is not labelled


@dataclass
class Regions:
    """What the second stage says about regions [B, K, 4]."""

    boxes: Tensor
    background: Tensor  # [B, K]
    logits: Tensor  # [B, K, C]
    deltas: Tensor  # [B, K, C, 4]


def overlaps(boxes: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """IoU with the target that each box overlaps most, -1 without targets, and that target: [B, K] each.

    Args:
        boxes: [B, K, 4], or [K, 4] for all images.
    """
    table = bx.pairwise_iou(targets.boxes, boxes).masked_fill(~targets.valid[..., None], -1)
    best = table.max(1)
    return best.values, best.indices


def second_stage(
    outputs: RoIOutputs,
    real: Regions,
    targets: Targets,
    matches: Matches,
    supervision: L.Supervision,
) -> dict[str, Tensor]:
    """cls and box over a sample of proposals and of the targets' boxes.

    Args:
        real: the second stage on the boxes of the targets, [B, N].
    """
    taken = bx.marked(matches.position, supervision.counted, matches.positive.shape[1])
    label = _at_positions(targets.labels.gather(1, matches.target), matches)
    which = _at_positions(matches.target, matches)
    in_loss = in_class_loss(matches, supervision) & outputs.real
    own = targets.valid & _counts(targets, matches, supervision.counted, chosen=supervision.chosen)
    positive = torch.cat([taken & in_loss, own], 1)
    negative = torch.cat([in_loss & ~taken, torch.zeros_like(own)], 1)
    random = sampling.draws(outputs.keys, positive.shape[1], 2)
    positive, negative = sampling.balanced(positive, negative, random, REGIONS, REGION_SHARE)
    sampled = positive | negative

    logits = torch.cat([outputs.logits, real.logits], 1)
    background = torch.cat([outputs.background, real.background], 1)
    label = torch.cat([label, targets.labels], 1)
    labelled = _channels(logits, supervision.channels, outputs.logits.shape[1])
    cls = unbiased_cross_entropy(background, logits, label, positive, labelled)

    places = torch.arange(own.shape[1], device=own.device).expand_as(own)
    wanted = bx.gather_rows(targets.boxes, torch.cat([which, places], 1))
    regions = torch.cat([outputs.proposals, real.boxes], 1)
    aim = correction(regions, wanted) * regions.new_tensor(WEIGHTS)
    deltas = torch.cat([outputs.class_deltas, real.deltas], 1)
    deltas = deltas.gather(2, label[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
    box = F.smooth_l1_loss(deltas, aim, beta=BETA, reduction="none").sum(2)
    n = L.count(sampled)
    return {"cls": L.masked_sum(cls, sampled) / n, "box": L.masked_sum(box, positive) / n}


def unbiased_cross_entropy(
    background: Tensor, logits: Tensor, label: Tensor, positive: Tensor, labelled: Tensor | None
) -> Tensor:
    """[B, K]: -log p(label) at positives, elsewhere -log p(background or a class that is not labelled there).

    If every class is labelled this is the cross-entropy. For an increment, where the old classes are not, it is the
    loss of MMA (Cermelli et al., CVPRW 2022, eq. 3).

    Args:
        background, label, positive: [B, K].
        logits: [B, K, C].
        drawn: [B, K, C] bool, or None: all.
    """
    every = torch.cat([background[..., None], logits], 2)
    if labelled is None:
        none = background
    else:
        hidden = torch.cat([torch.zeros_like(positive)[..., None], labelled], 2)
        none = every.masked_fill(hidden, float("-inf")).logsumexp(2)
    right = logits.gather(2, label[..., None])[..., 0]
    if labelled is not None:  # a match whose class is not labelled counts as background
        positive = positive & labelled.gather(2, label[..., None])[..., 0]
    return every.logsumexp(2) - torch.where(positive, right, none)


def _at_positions(values: Tensor, matches: Matches) -> Tensor:
    """[B, K slots] of the matches → [B, P] of the positions; 0 where there is no match."""
    found = torch.zeros_like(matches.positive, dtype=values.dtype)
    return found.scatter_reduce(1, matches.position, values.masked_fill(~matches.valid, 0), "amax")


def _counts(targets: Targets, matches: Matches, counted: Tensor, *, chosen: bool) -> Tensor:
    """[B, N]: targets that are regions of their own. Not those that are doubtful; and if the caller chose matches, only
    those of a counted one."""
    sure = torch.ones_like(targets.valid) if targets.doubtful is None else ~targets.doubtful
    return sure & bx.marked(matches.target, counted, sure.shape[1]) if chosen else sure


def _channels(logits: Tensor, mask: Tensor | None, proposals: int) -> Tensor | None:
    """[B, P + N, C]: the supervised channels of proposals and, as of any of them, of the targets' boxes."""
    if mask is None:
        return None
    boxes = logits.shape[1] - proposals
    of_boxes = mask.any(1, keepdim=True).expand(len(logits), boxes, -1)
    return torch.cat([mask.expand(len(logits), proposals, -1), of_boxes], 1)


def first_stage(outputs: RoIOutputs, targets: Targets) -> dict[str, Tensor]:
    """obj and rpn_box over a sample of the anchors. The anchors that a box overlaps most are always matched."""
    positive, negative, target = match_anchors(outputs, targets)
    random = sampling.draws(outputs.keys, positive.shape[1], 1)
    positive, negative = sampling.balanced(positive, negative, random, ANCHORS, ANCHOR_SHARE)
    n = L.count(positive | negative)
    obj = L.bce(outputs.rpn_logits, positive.float())
    aim = correction(outputs.rpn_anchors, bx.gather_rows(targets.boxes, target))
    box = F.smooth_l1_loss(outputs.rpn_deltas, aim, beta=BETA, reduction="none").sum(2)
    return {"obj": L.masked_sum(obj, positive | negative) / n, "rpn_box": L.masked_sum(box, positive) / n}


@torch.no_grad()
def match_anchors(outputs: RoIOutputs, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """Which anchors are matched, which are background, and the target of each: [B, A] each.

    Background are none that a doubtful box overlaps, none in images whose labels are incomplete, and none that overlap
    a region which the student scores 0.3 or more for a class that is not labelled there.
    """
    table = bx.pairwise_iou(targets.boxes, outputs.rpn_anchors).masked_fill(~targets.valid[..., None], -1)
    best, target = table.max(1)
    top = table.amax(2, keepdim=True)
    positive = (best >= ABOVE) | ((table == top) & (top > 0)).any(1)
    negative = (best < BELOW) & ~positive
    if targets.doubtful is not None:
        positive = positive & ~targets.doubtful.gather(1, target)
    if targets.background is not None:
        negative = negative & targets.background[:, None]
    if targets.known is not None:
        negative = negative & ~_suspect(outputs, targets.known)
    return positive, negative, target


def _suspect(outputs: RoIOutputs, known: Tensor) -> Tensor:
    """[B, A]: anchors on a region that looks like an object of a class that is not labelled."""
    plain = replace(outputs, logits=outputs.logits.detach(), background=outputs.background.detach())
    score = plain.probability().masked_fill(known[:, None], 0).amax(2)
    value, at = score.topk(min(SUSPECTS, score.shape[1]), dim=1)
    table = bx.pairwise_iou(bx.gather_rows(outputs.boxes.detach(), at), outputs.rpn_anchors)
    return ((table >= BELOW) & (value >= L.SPARE)[..., None]).any(1)
