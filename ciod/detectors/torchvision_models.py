"""RetinaNet (Lin et al., ICCV 2017) and FCOS (Tian et al., ICCV 2019) as torchvision builds them.

Heads, pyramid, anchors and elementary losses are torchvision's, so its weights fit; matching and the sums of the losses
follow its ``compute_loss`` without loops over images. ``data.augment`` and Input do the resizing and normalising.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.base import IMAGENET, Input
from ciod.detectors.dense import class_targets, flatten, in_class_loss
from ciod.detectors.layers import backbones
from ciod.detectors.layers.class_layers import AnchorClassConv, ClassConv
from ciod.detectors.layers.necks import FPN
from ciod.detectors.maps_branches import MapsBranches

LARGEST = math.log(1000 / 16)  # a predicted log size is limited to this, as in torchvision
SIZES = (32, 64, 128, 256, 512)  # of RetinaNet's anchors; FCOS: the strides


class TorchvisionDetector(MapsBranches):
    """Backbone, pyramid and anchors of both. A variant is the depth of a ResNet, or (deepen, widen, depthwise) of a
    CSPDarknet with a pyramid and head of 64 channels."""

    multi_label = True
    window = 3
    anchors_a_cell: ClassVar[int]
    anchor_generator: AnchorGenerator
    head: Any  # torchvision's, whose parts have no types

    def __init__(self, class_names: Sequence[str], name: str, size: int | None, weights: str | None, frozen: bool):
        shape = self.variants[name]
        light = not isinstance(shape, int)
        input_spec = Input(size=size or 416, bgr=True) if light else Input(size=size or 640, **IMAGENET)
        settings: dict[str, Any] = {"name": name, "size": input_spec.size}
        super().__init__(class_names, settings, input_spec)
        self.backbone = backbones.build(shape, weights, frozen=frozen)
        if not light:
            settings["frozen"] = self.backbone.pretrained
        width = 64 if light else 256
        self.neck = FPN(self.backbone.channels, width, relu=True)
        self.start_parts(width)

    def towers(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        cls, reg = self.head.classification_head, self.head.regression_head
        return [cls.conv(x) for x in features], [reg.conv(x) for x in features]

    def anchors(self, images: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """See ``anchors_of``."""
        return anchors_of(self.anchor_generator, images, features)


def anchors_of(
    made: AnchorGenerator, images: Tensor, features: Sequence[Tensor]
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Anchors [P, 4] for the size of a batch, the stride of each, and the number of anchors per level."""
    sizes = [[x.shape[2], x.shape[3]] for x in features]
    steps = [[images.shape[2] // h, images.shape[3] // w] for h, w in sizes]
    levels = tuple(h * w * n for (h, w), n in zip(sizes, made.num_anchors_per_location(), strict=True))
    made.set_cell_anchors(torch.float32, images.device)
    scalars = [[torch.full((), s, device=images.device) for s in step] for step in steps]
    stride = [torch.full((n,), float(s), device=images.device) for n, (s, _) in zip(levels, steps, strict=True)]
    return torch.cat(made.grid_anchors(sizes, scalars)), torch.cat(stride), levels


def of_anchors(maps: Sequence[Tensor]) -> Tensor:
    """[B, F, anchors, h, w] per level → [B, P, F] float32, ordered by level, row, column and anchor."""
    last = [m.permute(0, 3, 4, 2, 1) for m in maps]
    # Not flatten(1, 3): ONNX export would fix the batch size to that of the example.
    return torch.cat([m.reshape(m.shape[0], m.shape[1] * m.shape[2] * m.shape[3], m.shape[4]) for m in last], 1).float()


def centres(boxes: Tensor) -> Tensor:
    """[..., 4] → [..., 2]."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def correct(anchors: Tensor, delta: Tensor) -> Tensor:
    """Anchors [P, 4] and corrections [B, P, 4] (shift in anchor sizes, log of the growth) → boxes [B, P, 4]; or any
    other shapes that broadcast."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = delta[..., :2] * size + centres(anchors)
    half = delta[..., 2:].clamp(max=LARGEST).exp() * size / 2
    return torch.cat([centre - half, centre + half], -1)


def correction(anchors: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of ``correct`` for boxes [..., 4], one anchor per box."""
    size = anchors[..., 2:] - anchors[..., :2]
    shift = (centres(boxes) - centres(anchors)) / size
    return torch.cat([shift, ((boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-6) / size).log()], -1)


class RetinaNet(TorchvisionDetector):
    """A position is an anchor, with nine per cell. ``settings`` are the keyword arguments of ``build``."""

    traits = frozenset({"dense", "features", "head_inputs", "branches"})
    variants: ClassVar[dict[str, Any]] = {
        "retinanet-nano": (0.33, 0.25, True),
        "retinanet-r18": 18,
        "retinanet-r50": 50,
    }
    anchors_a_cell = 9
    foreground, background = 0.5, 0.4

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        name: str = "retinanet-nano",
        size: int | None = None,
        backbone_weights: str | None = None,
        frozen: bool = False,
    ):
        super().__init__(class_names, name, size, backbone_weights, frozen)
        self.nms_iou = 0.5
        octaves = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in SIZES)
        self.anchor_generator = AnchorGenerator(octaves, ((0.5, 1.0, 2.0),) * len(SIZES))
        self.head = RetinaNetHead(self.width, self.anchors_a_cell, 1)
        layer = AnchorClassConv(self.width, len(class_names), self.anchors_a_cell)
        self.head.classification_head.cls_logits = layer  # type: ignore[assignment]

    def own(self, images: Tensor, features: list[Tensor], towers: tuple[list[Tensor], list[Tensor]]) -> Outputs:
        anchors, stride, levels = self.anchors(images, features)
        cls, reg = self.head.classification_head.cls_logits, self.head.regression_head.bbox_reg
        logits = of_anchors([cls(x) for x in towers[0]])
        found = [reg(x) for x in towers[1]]
        per_anchor = [x.view(x.shape[0], -1, 4, x.shape[2], x.shape[3]).transpose(1, 2) for x in found]
        deltas = of_anchors(per_anchor)
        return Outputs(
            logits,
            correct(anchors, deltas),
            centres(anchors),
            stride,
            features=features,
            towers=towers[0],
            box_towers=towers[1],
            levels=levels,
            anchors=anchors,
            deltas=deltas,
        )

    def answer_at(self, level: int, cls: Tensor, box: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``HeadInputs``."""
        return self.head.classification_head.cls_logits(cls)[..., 1, 1].transpose(1, 2), None

    @torch.no_grad()
    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """An anchor is matched with the box it overlaps most, from IoU 0.5; below 0.4 it is background. The best
        anchors of every box are always matched (with the box they overlap most). With branches: ``match_branch``."""
        if len(self.branches):
            return self.match_branch(outputs, targets)
        assert outputs.anchors is not None
        overlap = bx.pairwise_iou(targets.boxes, outputs.anchors).masked_fill(~targets.valid[..., None], -1)
        best, target = overlap.max(1)  # [B, P]
        top = overlap.amax(2, keepdim=True)  # [B, N, 1]
        positive = (best >= self.foreground) | ((overlap == top) & (top > 0)).any(1)
        ignored = (best >= self.background) & ~positive
        position, ok = bx.compact(positive, best, limit=targets.boxes.shape[1] * 100)
        target = target.gather(1, position)
        boxes = bx.gather_rows(outputs.boxes, position)
        achieved = bx.iou(boxes, bx.gather_rows(targets.boxes, target))
        return Matches(position, target, achieved, ok, positive, ignored)

    def losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, supervision: L.Supervision
    ) -> dict[str, Tensor]:
        """cls (focal loss) over anchors that are foreground or background; box (L1 of the corrections) over counted
        matches. The sum of each image is divided by its counted matches; then the mean over images is taken. With
        branches: the losses of the newest."""
        if len(self.branches):
            return self.losses_of_branch(outputs, targets, matches, supervision)
        assert outputs.anchors is not None and outputs.deltas is not None
        at, which = matches.position, matches.target
        one = torch.ones_like(matches.iou)
        wanted = class_targets(outputs.logits, matches, targets.labels.gather(1, which), one, supervision.counted)
        cls = sigmoid_focal_loss(outputs.logits, wanted)
        if supervision.channels is not None:
            cls = cls * supervision.channels
        aim = correction(outputs.anchors[at], bx.gather_rows(targets.boxes, which))
        box = (bx.gather_rows(outputs.deltas, at) - aim).abs().sum(2)
        share = 1 / supervision.counted.sum(1, keepdim=True).clamp(min=1) / len(box)  # [B, 1]
        return {
            "cls": L.masked_sum(cls.sum(2) * share, in_class_loss(matches, supervision)),
            "box": L.masked_sum(box * share, supervision.counted),
        }


class FCOS(TorchvisionDetector):
    """A position is a cell. The ``objectness`` of its outputs is the centre-ness, which is trained only at matches and
    says nothing about background; scores are the square root of class × centre-ness.

    ``settings`` are the keyword arguments of ``build``."""

    traits = frozenset({"dense", "centerness", "features", "head_inputs", "branches"})
    variants: ClassVar[dict[str, Any]] = {"fcos-nano": (0.33, 0.25, True), "fcos-r18": 18, "fcos-r50": 50}
    anchors_a_cell = 1
    radius = 1.5

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        name: str = "fcos-nano",
        size: int | None = None,
        backbone_weights: str | None = None,
        frozen: bool = False,
    ):
        super().__init__(class_names, name, size, backbone_weights, frozen)
        self.nms_iou = 0.6
        self.anchor_generator = AnchorGenerator(tuple((s // 4,) for s in SIZES), ((1.0,),) * len(SIZES))
        self.head = FCOSHead(self.width, self.anchors_a_cell, 1)
        layer = ClassConv(self.width, len(class_names), 3)
        self.head.classification_head.cls_logits = layer  # type: ignore[assignment]

    def own(self, images: Tensor, features: list[Tensor], towers: tuple[list[Tensor], list[Tensor]]) -> Outputs:
        anchors, stride, levels = self.anchors(images, features)
        cls, head = self.head.classification_head.cls_logits, self.head.regression_head
        reg = flatten([head.bbox_reg(x).relu() for x in towers[1]])
        point = centres(anchors)
        side = reg * (anchors[:, 2:3] - anchors[:, :1])  # left, top, right, bottom
        boxes = torch.cat([point - side[..., :2], point + side[..., 2:]], -1)
        quality = flatten([head.bbox_ctrness(x) for x in towers[1]])[..., 0]
        return Outputs(
            flatten([cls(x) for x in towers[0]]),
            boxes,
            point,
            stride,
            quality,
            features=features,
            towers=towers[0],
            box_towers=towers[1],
            levels=levels,
            anchors=anchors,
            root=True,
        )

    def answer_at(self, level: int, cls: Tensor, box: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``HeadInputs``."""
        logits = self.head.classification_head.cls_logits(cls)[:, None, :, 1, 1]
        return logits, self.head.regression_head.bbox_ctrness(box)[..., 1, 1]

    @torch.no_grad()
    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """A cell is matched with the smallest box that contains it near the centre of the box and whose farthest side
        is in the range of the cell's level (4 to 8 cells)."""
        if len(self.branches):
            return self.match_branch(outputs, targets)
        assert outputs.anchors is not None
        boxes, point = targets.boxes, outputs.points
        cell = outputs.anchors[:, 2] - outputs.anchors[:, 0]
        near = (centres(boxes)[:, :, None] - point).abs().amax(3) < self.radius * cell  # [B, N, P]
        sides = torch.cat([point - boxes[:, :, None, :2], boxes[:, :, None, 2:] - point], 3)
        first = torch.arange(len(cell), device=cell.device) < outputs.levels[0]
        last = torch.arange(len(cell), device=cell.device) >= len(cell) - outputs.levels[-1]
        low = (4 * cell).masked_fill(first, 0)
        high = (8 * cell).masked_fill(last, float("inf"))
        far = sides.amax(3)
        chosen = near & (sides.amin(3) > 0) & (far > low) & (far < high) & targets.valid[..., None]
        # In float32, as in torchvision: boxes whose areas differ by less than 8 px² are equal, and the first wins.
        area = bx.area(boxes)[..., None]
        best, target = (chosen * (1e8 - area)).max(1)
        positive = best >= 1e-5
        target = target.masked_fill(~positive, 0)
        position, ok = bx.compact(positive, positive.float(), limit=boxes.shape[1] * 50)
        target = target.gather(1, position)
        achieved = bx.iou(bx.gather_rows(outputs.boxes, position), bx.gather_rows(boxes, target))
        return Matches(position, target, achieved, ok, positive)

    def losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, supervision: L.Supervision
    ) -> dict[str, Tensor]:
        """cls (focal loss) over all cells except those whose match is not counted, box (1 - GIoU) over counted matches,
        centerness (BCE) over all matches; each divided by the number of its matches. With branches: the losses of the
        newest."""
        if len(self.branches):
            return self.losses_of_branch(outputs, targets, matches, supervision)
        assert outputs.objectness is not None
        at, which = matches.position, matches.target
        one = torch.ones_like(matches.iou)
        wanted = class_targets(outputs.logits, matches, targets.labels.gather(1, which), one, supervision.counted)
        cls = sigmoid_focal_loss(outputs.logits, wanted)
        if supervision.channels is not None:
            cls = cls * supervision.channels
        real, point = bx.gather_rows(targets.boxes, which), outputs.points[at]
        box = 1 - bx.giou(bx.gather_rows(outputs.boxes, at), real)
        before, after = point - real[..., :2], real[..., 2:] - point
        ratio = torch.minimum(before, after) / torch.maximum(before, after).clamp(min=1e-6)
        central = ratio.prod(2).masked_fill(~supervision.matched, 0).sqrt()
        centreness = L.bce(outputs.objectness.gather(1, at), central)
        n = L.count(supervision.counted)
        return {
            "cls": L.masked_sum(cls.sum(2), in_class_loss(matches, supervision)) / n,
            "box": L.masked_sum(box, supervision.counted) / n,
            "centerness": L.masked_sum(centreness, supervision.matched) / L.count(supervision.matched),
        }
