"""How the dense heads of MMDetection match and sum their losses: one table and its terms.

Assigners and box losses are the head's own. The sums are written here, because methods mask positions, classes and
matches in them (``losses.supervise``), which MMDetection's ``loss`` cannot. tests/mmdet checks that both are equal.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.errors import CiodError
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.dense import class_targets, in_class_loss


@dataclass(frozen=True)
class Recipe:
    """The terms of a head's loss.

    Args:
        quality: class target of a matched position: 1, the IoU of its box, or TOOD's alignment.
        count: divisor of the class loss: all matches; the matches of each image, at least 1 per image; all matches, at
            least the number of images; or the sum of the qualities.
        weight: weight of a match's box loss: 1, the position's best probability, the target's centre-ness, the IoU, or
            the alignment. Weighted sums are divided by the sum of the weights, at least ``floor``; others like the
            class loss.
        factor: second factor of a score, and where it is trained: objectness everywhere, or centre-ness or IoU at
            matches.
    """

    quality: Literal["one", "iou", "alignment"]
    count: Literal["total", "each", "images", "quality"]
    weight: Literal["one", "best", "centerness", "iou", "alignment"]
    floor: float = 1.0
    factor: Literal["objectness", "centerness", "iou"] | None = None
    root: bool = False  # scores are square roots of class × factor
    several: bool = True  # a position can have several labels
    cut: bool = True  # boxes are clipped to the image before NMS

    @property
    def traits(self) -> frozenset[str]:
        kind = {"objectness": "objectness", "centerness": "centerness", "iou": "centerness"}
        return frozenset({"dense", "features", *([kind[self.factor]] if self.factor else [])})


RECIPES: dict[str, Recipe] = {
    "YOLOXHead": Recipe("iou", "total", "one", factor="objectness", several=False),
    "GFLHead": Recipe("iou", "each", "best"),
    "RetinaHead": Recipe("one", "each", "one"),
    "RetinaSepBNHead": Recipe("one", "each", "one"),
    "FCOSHead": Recipe("one", "total", "centerness", floor=1e-6, factor="centerness"),
    "ATSSHead": Recipe("one", "each", "centerness", factor="centerness"),
    "VFNetHead": Recipe("iou", "total", "iou"),
    "TOODHead": Recipe("alignment", "quality", "alignment", cut=False),
    "RTMDetHead": Recipe("iou", "quality", "iou"),
    "RTMDetSepBNHead": Recipe("iou", "quality", "iou"),
    "PAAHead": Recipe("one", "images", "iou", floor=1e-12, factor="iou", root=True),
}
CLASS_LOSSES = ("CrossEntropyLoss", "FocalLoss", "QualityFocalLoss", "VarifocalLoss")


def recipe_of(model: dict[str, Any], source: str) -> Recipe:
    """The recipe of a config's head.

    Raises:
        CiodError: the head or its configuration is not supported; the message lists those that are.
    """
    head = model["bbox_head"]
    kind = str(head.get("type", "")).removeprefix("mmdet.")
    if kind not in RECIPES:
        raise CiodError(f"{source}: a {kind or 'head without type'} is not supported; {', '.join(RECIPES)} are.")
    if kind == "VFNetHead" and not (head.get("use_atss", True) and head.get("use_vfl", True)):
        raise CiodError(f"{source}: a VFNetHead is supported with use_atss and use_vfl; without them FCOSHead is.")
    if kind == "YOLOXHead" and head.get("loss_bbox", {}).get("type", "IoULoss") not in _BOX_OF_BOXES:
        raise CiodError(f"{source}: loss_bbox of a YOLOXHead must compare boxes ({', '.join(_BOX_OF_BOXES)}).")
    return RECIPES[kind]


_BOX_OF_BOXES = ("IoULoss", "GIoULoss", "DIoULoss", "CIoULoss", "EIoULoss", "SIoULoss", "BoundedIoULoss")


def check_head(head: Any, recipe: Recipe, source: str) -> None:
    """Checks that need the built head.

    Raises:
        CiodError: it has no assigner, or an unknown class loss.
    """
    kind = type(head).__name__
    if not head.use_sigmoid_cls:
        raise CiodError(f"{source}: the {kind} has a softmax over classes and background; use_sigmoid=True is needed.")
    if type(head.loss_cls).__name__ not in CLASS_LOSSES:
        raise CiodError(
            f"{source}: loss_cls of the {kind} is a {type(head.loss_cls).__name__}; supported are "
            f"{', '.join(CLASS_LOSSES)}."
        )
    if kind != "FCOSHead" and assigner_of(head) is None:
        raise CiodError(f"{source}: model.train_cfg has no assigner, so the {kind} cannot be trained.")
    from mmdet.models.task_modules.samplers import PseudoSampler

    if not isinstance(getattr(head, "sampler", None), (PseudoSampler, type(None))):
        raise CiodError(f"{source}: the {kind} samples positions; only heads that use all of them are supported.")


# Matching -------------------------------------------------------------------------------------------------------------


def assigner_of(head: Any) -> Any:
    """TOOD has another assigner for its first epochs. It is left out, because a detector does not know the epoch."""
    return getattr(head, "alignment_assigner", None) or getattr(head, "assigner", None)


@torch.no_grad()
def match(head: Any, outputs: Outputs, targets: Targets) -> Matches:
    """Matches by the head's own assigner.

    MMDetection's assigners handle one image at a time and wait for the device: the only loop over images on the
    training path.
    """
    batch, count = outputs.boxes.shape[:2]
    target = torch.zeros(batch, count, dtype=torch.long, device=outputs.boxes.device)
    positive = torch.zeros_like(target, dtype=torch.bool)
    ignored = torch.zeros_like(positive)
    for b in range(batch):
        row = torch.nonzero(targets.valid[b]).squeeze(1)
        if not len(row):
            continue
        found = _assigned(head, outputs, b, targets.boxes[b, row], targets.labels[b, row])
        positive[b], ignored[b] = found > 0, found < 0
        target[b] = row[(found - 1).clamp(min=0)]
    limit = max(1, int(positive.sum(1).amax())) if batch else 1
    position, ok = bx.compact(positive, positive.float(), limit)
    which = target.gather(1, position)
    achieved = bx.iou(bx.gather_rows(outputs.boxes, position), bx.gather_rows(targets.boxes, which))
    return Matches(position, which, achieved, ok, positive, ignored)


def _assigned(head: Any, outputs: Outputs, b: int, boxes: Tensor, labels: Tensor) -> Tensor:
    """[P] int64 of image ``b``: the number of the box, from 1; 0: background; -1: neither."""
    from mmengine.structures import InstanceData

    if type(head).__name__ == "FCOSHead":
        # It has no assigner; its targets are labels, and negative numbers pass through.
        numbered = InstanceData(bboxes=boxes, labels=-1 - torch.arange(len(labels), device=labels.device))
        points = list(outputs.points.split(list(outputs.levels)))
        found = torch.cat(head.get_targets(points, [numbered])[0])
        return torch.where(found < 0, -found, torch.zeros_like(found))
    truth = InstanceData(bboxes=boxes, labels=labels)
    assign = assigner_of(head).assign
    known = inspect.signature(assign).parameters
    given = InstanceData(priors=_priors(head, outputs))
    if "num_level_priors" not in known:  # ATSS uses only anchors, and warns about the rest
        given.bboxes, given.scores = outputs.boxes[b], _scores(head, outputs, b)
    more: dict[str, Any] = {"num_level_priors": list(outputs.levels)} if "num_level_priors" in known else {}
    more |= {k: getattr(head, k) for k in ("alpha", "beta") if k in known and hasattr(head, k)}
    found = assign(pred_instances=given, gt_instances=truth, gt_instances_ignore=None, **more).gt_inds
    return _reassigned(head, outputs, b, found, truth) if hasattr(head, "paa_reassign") else found


def _priors(head: Any, outputs: Outputs) -> Tensor:
    """[P, 4]: anchors; or points with their strides."""
    if outputs.anchors is not None:
        return outputs.anchors
    return torch.cat([outputs.points, outputs.strides[:, None].expand(-1, 2)], 1)


def _scores(head: Any, outputs: Outputs, b: int) -> Tensor:
    """[P, C] for each assigner: square roots of class × objectness for SimOTA, logits for RTMDet, else scores."""
    if type(head).__name__.startswith("RTMDet"):
        return outputs.logits[b]
    scores = outputs.logits[b].sigmoid()
    if type(head).__name__ == "YOLOXHead" and outputs.objectness is not None:
        return (scores * outputs.objectness[b, :, None].sigmoid()).sqrt()
    return scores


def _reassigned(head: Any, outputs: Outputs, b: int, found: Tensor, truth: Any) -> Tensor:
    """PAA's second step: the candidates that the loss separates as positive."""
    assert outputs.anchors is not None and outputs.deltas is not None
    chosen = torch.nonzero(found > 0).squeeze(1)
    if not len(chosen):
        return found
    of = found[chosen] - 1
    label = torch.full_like(found, head.num_classes)
    label[chosen] = truth.labels[of]
    wanted, weight = torch.zeros_like(outputs.anchors), torch.zeros_like(outputs.anchors)
    wanted[chosen], weight[chosen] = truth.bboxes[of], 1
    label_weight = (found >= 0).float()
    anchors = list(outputs.anchors.split(list(outputs.levels)))
    maps = outputs.logits[b], outputs.deltas[b]
    (losses,) = head.get_pos_loss(anchors, *maps, label, label_weight, wanted, weight, chosen)
    label, label_weight, _, _ = head.paa_reassign(losses, label, label_weight, weight, chosen, of, anchors)
    kept = torch.where(label < head.num_classes, found, torch.zeros_like(found))
    return torch.where(label_weight > 0, kept, torch.full_like(found, -1))


# Losses ---------------------------------------------------------------------------------------------------------------


def class_loss(module: Any, logits: Tensor, target: Tensor) -> Tensor:
    """The head's class loss per element; ``target`` [..., C] is 0 for absent classes."""
    kind = type(module).__name__
    if kind == "FocalLoss":
        loss = sigmoid_focal_loss(logits, target, alpha=module.alpha, gamma=module.gamma)
    elif kind == "QualityFocalLoss":
        loss = L.quality_focal(logits, target, module.beta)
    elif kind == "VarifocalLoss":
        loss = L.varifocal(logits, target, module.alpha, module.gamma, weighted=module.iou_weighted)
    else:
        loss = L.bce(logits, target)
    return module.loss_weight * loss


def each(module: Any, found: Tensor, wanted: Tensor) -> Tensor:
    """A box loss of MMDetection per box: [..., 4] twice → [...], summed over coordinates."""
    loss = module(found.reshape(-1, 4), wanted.reshape(-1, 4), reduction_override="none")
    return (loss.sum(-1) if loss.dim() > 1 else loss).view(found.shape[:-1])


def centerness(point: Tensor, boxes: Tensor) -> Tensor:
    """FCOS's (Tian et al. 2019, eq. 3) of points [..., 2] in boxes [..., 4]; 0 outside."""
    before, after = point - boxes[..., :2], boxes[..., 2:] - point
    ratio = torch.minimum(before, after) / torch.maximum(before, after).clamp(min=1e-12)
    return ratio.clamp(min=0).prod(-1).sqrt()


def alignment(head: Any, outputs: Outputs, matches: Matches, labels: Tensor, boxes: int) -> Tensor:
    """TOOD's alignment (Feng et al., ICCV 2021, eq. 1 and section 3.2.2) [B, K]: p^α IoU^β, scaled so that the largest
    value of a box is its best IoU."""
    p = bx.gather_rows(outputs.logits.detach(), matches.position).sigmoid().gather(2, labels[..., None])[..., 0]
    metric = (p**head.alpha * matches.iou**head.beta).masked_fill(~matches.valid, 0)
    best = matches.iou.masked_fill(~matches.valid, 0)
    top = metric.new_zeros(len(metric), boxes)
    highest = top.scatter_reduce(1, matches.target, metric, "amax").gather(1, matches.target)
    return metric / (highest + 1e-7) * top.scatter_reduce(1, matches.target, best, "amax").gather(1, matches.target)


def losses(
    head: Any,
    recipe: Recipe,
    outputs: Outputs,
    targets: Targets,
    matches: Matches,
    supervision: L.Supervision,
) -> dict[str, Tensor]:
    """The head's losses with ciod's masks; without any they are MMDetection's."""
    at, which = matches.position, matches.target
    labels, wanted = targets.labels.gather(1, which), bx.gather_rows(targets.boxes, which)
    taken = bx.marked(at, supervision.counted, matches.positive.shape[1])

    quality = torch.ones_like(matches.iou)
    if recipe.quality == "iou":
        quality = matches.iou
    elif recipe.quality == "alignment":
        quality = alignment(head, outputs, matches, labels, targets.boxes.shape[1])
    cls = class_loss(
        head.loss_cls, outputs.logits, class_targets(outputs.logits, matches, labels, quality, supervision.counted)
    )
    seen = outputs.logits.detach().sigmoid()
    if supervision.channels is not None:
        cls, seen = cls * supervision.channels, seen * supervision.channels
    inside = taken if recipe.factor == "objectness" else in_class_loss(matches, supervision)
    n = _divisor(recipe, supervision.counted, quality)

    weight = _box_weight(recipe, outputs, matches, seen, wanted, quality)
    total = n if recipe.weight == "one" else _sum(weight, supervision.counted, recipe.floor)

    def boxes(module: Any, found: Tensor) -> Tensor:
        return L.masked_sum(each(module, found, wanted) * weight, supervision.counted) / total

    out = {"cls": L.masked_sum(cls.sum(2), inside) / n}
    found = bx.gather_rows(outputs.boxes, at)
    if hasattr(head, "loss_bbox_refine"):
        assert outputs.coarse is not None
        out["box"] = boxes(head.loss_bbox_refine, found)
        first = bx.gather_rows(outputs.coarse, at)
        weight = bx.iou(first.detach(), wanted)
        total = _sum(weight, supervision.counted, recipe.floor)
        out["coarse"] = boxes(head.loss_bbox, first)
    elif outputs.deltas is not None and not head.reg_decoded_bbox:
        assert outputs.anchors is not None
        anchors = outputs.anchors[at]
        aim = head.bbox_coder.encode(anchors.reshape(-1, 4), _proper(wanted).reshape(-1, 4)).view_as(wanted)
        out["box"] = (
            L.masked_sum(each(head.loss_bbox, bx.gather_rows(outputs.deltas, at), aim), supervision.counted) / total
        )
    else:
        out["box"] = boxes(head.loss_bbox, found)
    if outputs.distribution is not None:
        dfl = _distribution(head, outputs, at, wanted)
        out["dfl"] = L.masked_sum(dfl * weight, supervision.counted) / total
    return out | _factor(head, recipe, outputs, matches, supervision, wanted, at)


def _box_weight(
    recipe: Recipe, outputs: Outputs, matches: Matches, seen: Tensor, wanted: Tensor, quality: Tensor
) -> Tensor:
    """[B, M]: the weight of the box of a match.

    Args:
        seen: [B, P, C] scores.
        wanted: [B, M, 4] boxes of the matches.
        quality: [B, M] class targets of the matches.
    """
    at = matches.position
    if recipe.weight == "best":
        return bx.gather_rows(seen.amax(2) if seen.shape[2] else seen.sum(2), at)
    if recipe.weight == "centerness":
        return centerness(outputs.points[at], wanted)
    if recipe.weight == "one":
        return torch.ones_like(matches.iou)
    return quality if recipe.weight == recipe.quality else matches.iou


def _factor(
    head: Any,
    recipe: Recipe,
    outputs: Outputs,
    matches: Matches,
    supervision: L.Supervision,
    wanted: Tensor,
    at: Tensor,
) -> dict[str, Tensor]:
    if recipe.factor is None or outputs.objectness is None:
        return {}
    if recipe.factor == "objectness":
        obj = head.loss_obj.loss_weight * L.bce(outputs.objectness, matches.positive.float())
        if supervision.objectness is not None:
            obj = obj * supervision.objectness
        return {"obj": obj.sum() / L.count(supervision.matched)}
    aim = matches.iou if recipe.factor == "iou" else centerness(outputs.points[at], wanted)
    loss = head.loss_centerness.loss_weight * L.bce(outputs.objectness.gather(1, at), aim)
    n = L.count(supervision.matched) if recipe.factor == "iou" else _divisor(recipe, supervision.matched, aim)
    return {recipe.factor: L.masked_sum(loss, supervision.matched) / n}


def _divisor(recipe: Recipe, counted: Tensor, quality: Tensor) -> Tensor:
    rules: dict[str, Callable[[], Tensor]] = {
        "total": lambda: L.count(counted),
        "each": lambda: L.normaliser(counted.sum(1).clamp(min=1).sum().float()),
        "images": lambda: L.normaliser(counted.sum().float().clamp(min=len(counted))),
        "quality": lambda: _sum(quality, counted, 1.0),
    }
    return rules[recipe.count]()


def _sum(weight: Tensor, counted: Tensor, floor: float) -> Tensor:
    return L.normaliser(weight.masked_fill(~counted, 0).sum(), floor)


def _proper(boxes: Tensor) -> Tensor:
    """Gives padded boxes a size, because the logarithm of 0 would be infinite."""
    return torch.cat([boxes[..., :2], torch.maximum(boxes[..., 2:], boxes[..., :2] + 1e-3)], -1)


def _distribution(head: Any, outputs: Outputs, at: Tensor, wanted: Tensor) -> Tensor:
    assert outputs.distribution is not None
    point, stride = outputs.points[at], outputs.strides[at][..., None]
    side = torch.cat([point - wanted[..., :2], wanted[..., 2:] - point], -1) / stride
    side = side.clamp(min=0, max=head.reg_max - 0.1)
    loss = L.distribution_focal(bx.gather_rows(outputs.distribution, at), side).mean(2)
    return head.loss_dfl.loss_weight * loss
