"""ilYOLOX's head mathematics written out plainly, as loops over images, classes and objects.

This is the yardstick of ``benchmarks.head``: selection (CRS), SimOTA with the class cost expanded to candidates ×
boxes × classes, losses and CKD as the formulas are printed (docs/methods/ilyolox.md), without any thought of speed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

from ciod.core.types import Outputs, Targets


def step(student: Outputs, teacher: Outputs, real: Targets, old: int) -> dict[str, Tensor]:
    """Losses of one ilYOLOX step at the paper's settings, for comparison with ``methods.ilyolox.ILYOLOX``.

    Args:
        old: labels below it are old.

    Returns:
        cls, box, obj, distill_cls, distill_box, as the method names them.
    """
    sums = dict.fromkeys(("cls", "box", "obj", "distill_cls", "distill_box"), torch.zeros(()))
    n_old = n_new = 0
    for i in range(len(student.logits)):
        position = kept(teacher, i, old)
        n = int(real.valid[i].sum())
        boxes = torch.cat([teacher.boxes[i, position], real.boxes[i, :n]])
        pseudo = teacher.logits[i, position].argmax(1)
        labels = torch.cat([pseudo, real.labels[i, :n]])
        matched, target, overlap = assign(student, i, boxes, labels)
        is_old = target < len(position)
        n_old, n_new = n_old + int(is_old.sum()), n_new + int((~is_old).sum())
        for name, value in losses(student, teacher, i, position, boxes, labels, matched, target, overlap).items():
            sums[name] = sums[name] + value
    n_old, n_new = max(1, n_old), max(1, n_new)
    divisor = {"cls": n_new, "box": n_new, "obj": max(1, n_old + n_new), "distill_cls": n_old, "distill_box": n_old}
    return {k: v / divisor[k] for k, v in sums.items()}


def kept(teacher: Outputs, i: int, old: int) -> Tensor:
    """[m] positions that Center Re-Sampling keeps, ascending."""
    assert teacher.objectness is not None
    s, k = teacher.logits[i].sigmoid().max(1)
    f = s * teacher.objectness[i].sigmoid()
    valid = torch.zeros_like(k, dtype=torch.bool)
    for c in range(old):
        members = torch.nonzero(k == c).squeeze(1)
        centers = members[s[members] >= 0.3]
        if not len(centers):
            continue
        overlap = torchvision.ops.box_iou(teacher.boxes[i, members], teacher.boxes[i, centers])
        joined = members[(overlap >= 0.65).any(1)]
        valid[joined] = f[joined] >= 0.1
    candidates = torch.nonzero(valid).squeeze(1)
    stays = torchvision.ops.batched_nms(teacher.boxes[i, candidates], f[candidates], k[candidates], 0.95)
    return candidates[stays].sort().values


@torch.no_grad()
def assign(student: Outputs, i: int, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SimOTA of one image: positions, the box of each, the IoU with it."""
    if not len(boxes):
        empty = torch.zeros(0, dtype=torch.long)
        return empty, empty, torch.zeros(0)
    assert student.objectness is not None
    x, y = student.points[:, 0, None], student.points[:, 1, None]
    inside = (x > boxes[:, 0]) & (x < boxes[:, 2]) & (y > boxes[:, 1]) & (y < boxes[:, 3])
    reach = 2.5 * student.strides[:, None]
    center_x, center_y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
    near = ((x - center_x).abs() < reach) & ((y - center_y).abs() < reach)
    candidates = torch.nonzero((inside | near).any(1)).squeeze(1)
    overlap = torchvision.ops.box_iou(student.boxes[i, candidates], boxes)
    onehot = F.one_hot(labels, student.logits.shape[2]).float()
    q = (student.logits[i, candidates].sigmoid() * student.objectness[i, candidates, None].sigmoid()).sqrt()
    expanded = q[:, None, :].repeat(1, len(boxes), 1)
    targets = onehot[None].repeat(len(candidates), 1, 1)
    class_cost = F.binary_cross_entropy(expanded, targets, reduction="none").sum(2)
    outside = ~(inside & near)[candidates]
    cost = class_cost - 3 * (overlap + 1e-7).log() + 1e8 * outside
    claims = torch.zeros_like(cost, dtype=torch.bool)
    best = overlap.topk(min(10, len(candidates)), dim=0).values.sum(0).int().clamp(min=1)
    for j in range(len(boxes)):
        cheapest = cost[:, j].topk(int(best[j].item()), largest=False).indices
        claims[cheapest, j] = True
    contested = claims.sum(1) > 1
    if contested.any():
        winner = cost[contested].argmin(1)
        claims[contested] = False
        claims[contested, winner] = True
    rows = torch.nonzero(claims.any(1)).squeeze(1)
    target = claims[rows].int().argmax(1)
    return candidates[rows], target, overlap[rows, target]


def losses(
    student: Outputs,
    teacher: Outputs,
    i: int,
    position: Tensor,
    boxes: Tensor,
    labels: Tensor,
    matched: Tensor,
    target: Tensor,
    overlap: Tensor,
) -> dict[str, Tensor]:
    """Sums over one image, object by object; the normalisers come later."""
    assert student.objectness is not None
    hot = torch.zeros_like(student.objectness[i])
    hot[matched] = 1
    total = {"obj": F.binary_cross_entropy_with_logits(student.objectness[i], hot, reduction="sum")}
    for name in ("cls", "box", "distill_cls", "distill_box"):
        total[name] = torch.zeros(())
    for j in range(len(boxes)):
        mine = target == j
        if not mine.any():
            continue
        z, b = student.logits[i, matched[mine]], student.boxes[i, matched[mine]]
        goal = boxes[j].expand_as(b)
        square = 1 - overlap_of(b, goal).square()
        if j >= len(position):
            wanted = torch.zeros_like(z)
            wanted[:, int(labels[j].item())] = overlap[mine]
            total["cls"] = total["cls"] + F.binary_cross_entropy_with_logits(z, wanted, reduction="sum")
            total["box"] = total["box"] + 5 * square.sum()
            continue
        soft = torch.zeros_like(z)
        soft[:, : teacher.logits.shape[2]] = teacher.logits[i, position[j]].sigmoid()
        cls_error = F.binary_cross_entropy_with_logits(z, soft, reduction="none").sum(1)
        giou = torchvision.ops.generalized_box_iou_loss(b, goal, eps=1e-6)
        both = (cls_error + giou).detach()
        total["distill_cls"] = total["distill_cls"] + (2 * cls_error.detach() / both * cls_error).sum()
        total["distill_box"] = total["distill_box"] + 5 * (2 * giou.detach() / both * square).sum()
    return total


def overlap_of(a: Tensor, b: Tensor) -> Tensor:
    """[n] IoU of box pairs."""
    size = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    both = size.prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - both
    return both / union.clamp(min=1e-6)
