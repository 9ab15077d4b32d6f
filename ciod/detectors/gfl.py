"""GFL, generalized focal loss (Li et al., NeurIPS 2020, arXiv 2006.04388): a box side is a distribution over bins.

ResNets with FPN are the detector of ERD's tables; the light variants have YOLOX's backbones and necks, so that both
heads can be compared on the same trunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ciod.core import losses as L
from ciod.core.boxes import gather_rows, giou
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.assigners.atss import atss
from ciod.detectors.base import IMAGENET, Input
from ciod.detectors.dense import class_targets, flatten, grid, in_class_loss
from ciod.detectors.layers import backbones
from ciod.detectors.layers.class_layers import ClassConv
from ciod.detectors.layers.modules import bias_of
from ciod.detectors.layers.necks import FPN, PAFPN
from ciod.detectors.maps_branches import MapsBranches

BINS = 17  # a side is the mean of a distribution over 0, 1, …, 16 strides

# name: the depth of a ResNet, or (deepen, widen, depthwise) of the YOLOX trunk below the head
VARIANTS: dict[str, int | tuple[float, float, bool]] = {
    "gfl-pico": (0.33, 0.125, False),
    "gfl-nano": (0.33, 0.25, True),  # the trunk of yolox-nano: weights=yolox_nano.pth fits
    "gfl-r18": 18,
    "gfl-r50": 50,
    "gfl-r101": 101,
}


class ConvGN(nn.Module):
    """3×3 convolution, group normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.gn = nn.GroupNorm(min(32, outputs // 4), outputs)
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.gn(self.conv(x)).relu()


class Head(nn.Module):
    """One head for all levels: class tower, box tower, and a factor for the boxes of each level."""

    def __init__(self, width: int, convs: int, classes: int, levels: int):
        super().__init__()
        self.cls_tower = nn.Sequential(*(ConvGN(width, width) for _ in range(convs)))
        self.reg_tower = nn.Sequential(*(ConvGN(width, width) for _ in range(convs)))
        self.cls = ClassConv(width, classes, 3)
        self.reg = nn.Conv2d(width, 4 * BINS, 3, padding=1)
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in range(levels))
        nn.init.normal_(self.reg.weight, std=0.01)
        nn.init.zeros_(bias_of(self.reg))

    def towers(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Input of the class layer, and of the box layer, per level."""
        return [self.cls_tower(x) for x in features], [self.reg_tower(x) for x in features]

    def layers(self, cls: Sequence[Tensor], reg: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Class and box maps from the outputs of the towers."""
        return [self.cls(x) for x in cls], [self.reg(x) * s for x, s in zip(reg, self.scales, strict=True)]

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return self.layers(*self.towers(features))


def integral(distribution: Tensor) -> Tensor:
    """Mean of a distribution given by its logits: [..., R] → [...] in bins."""
    bins = torch.arange(distribution.shape[-1], device=distribution.device, dtype=distribution.dtype)
    return (distribution.softmax(-1) * bins).sum(-1)


def assemble(
    cls: Sequence[Tensor],
    reg: Sequence[Tensor],
    strides: Sequence[int],
    features: Sequence[Tensor] = (),
    towers: Sequence[Tensor] = (),
    box_towers: Sequence[Tensor] = (),
) -> Outputs:
    """Raw maps of the levels → Outputs.

    Args:
        cls, reg: [B, C | 4 × 17, h, w] per level; reg is the logits of the distances to left, top, right, bottom in
            strides, from the cell's upper left corner (MMDetection's anchors have no offset).
    """
    point, stride, levels = grid(cls, strides)
    distribution = flatten(reg).unflatten(2, (4, BINS))
    side = integral(distribution) * stride[:, None]
    boxes = torch.cat([point - side[..., :2], point + side[..., 2:]], -1)
    return Outputs(
        flatten(cls),
        boxes,
        point,
        stride,
        distribution=distribution,
        features=list(features),
        towers=list(towers),
        box_towers=list(box_towers),
        levels=levels,
    )


class GFL(MapsBranches):
    """See the module. ``settings`` are the keyword arguments of ``build``."""

    multi_label = True
    traits = frozenset({"dense", "box_distribution", "features", "head_inputs", "branches"})
    variants = VARIANTS
    window = 3
    box_weight, distribution_weight = 2.0, 0.25

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        name: str = "gfl-nano",
        size: int | None = None,
        backbone_weights: str | None = None,
        frozen: bool = False,
    ):
        shape = VARIANTS[name]
        if isinstance(shape, int):
            input_spec = Input(size=size or 640, **IMAGENET)
        else:
            input_spec = Input(size=size or 416, bgr=True)
        settings: dict[str, Any] = {"name": name, "size": input_spec.size}
        super().__init__(class_names, settings, input_spec)
        self.nms_iou = 0.6
        self.backbone = backbones.build(shape, backbone_weights, frozen=frozen)
        if isinstance(shape, int):
            settings["frozen"] = self.backbone.pretrained
            width, convs, self.strides = 256, 4, (8, 16, 32, 64, 128)
            self.neck = FPN(self.backbone.channels, width, relu=False)
        else:
            deepen, widen, depthwise = shape
            width, convs, self.strides = int(256 * widen), 2, (8, 16, 32)
            self.neck = PAFPN(self.backbone.channels, width, round(3 * deepen), depthwise=depthwise)
        self.head = Head(width, convs, len(class_names), len(self.strides))
        self.start_parts(width)

    def towers(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return self.head.towers(features)

    def own(self, images: Tensor, features: list[Tensor], towers: tuple[list[Tensor], list[Tensor]]) -> Outputs:
        return assemble(*self.head.layers(*towers), self.strides, features, *towers)

    def answer_at(self, level: int, cls: Tensor, box: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``HeadInputs``."""
        return self.head.cls(cls)[:, None, :, 1, 1], None

    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """ATSS; with branches, the newest is matched as ``match_branch`` does."""
        return self.match_branch(outputs, targets) if len(self.branches) else atss(outputs, targets)

    def losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, supervision: L.Supervision
    ) -> dict[str, Tensor]:
        """cls (quality focal loss) over all positions except those whose match is not counted; box (2 × (1 - GIoU)) and
        dfl (0.25 × distribution focal loss, mean of four sides) over counted matches.

        cls is divided by the number of counted matches. box and dfl are weighted by the position's best probability
        (of ``channels``) and divided by the sum of these weights. With branches: the losses of the newest.
        """
        if len(self.branches):
            return self.losses_of_branch(outputs, targets, matches, supervision)
        assert outputs.distribution is not None
        at, which = matches.position, matches.target
        quality = class_targets(
            outputs.logits, matches, targets.labels.gather(1, which), matches.iou, supervision.counted
        )
        cls = L.quality_focal(outputs.logits, quality)
        seen = outputs.logits.detach().sigmoid()
        if supervision.channels is not None:
            cls, seen = cls * supervision.channels, seen * supervision.channels
        weight = gather_rows(seen.amax(2), at).masked_fill(~supervision.counted, 0)
        total = L.normaliser(weight.sum())

        wanted = gather_rows(targets.boxes, which)
        box = 1 - giou(gather_rows(outputs.boxes, at), wanted)
        point, stride = outputs.points[at], outputs.strides[at][..., None]
        side = torch.cat([point - wanted[..., :2], wanted[..., 2:] - point], -1) / stride
        side = side.clamp(min=0, max=BINS - 1.1)
        dfl = L.distribution_focal(gather_rows(outputs.distribution, at), side).mean(2)
        return {
            "cls": L.masked_sum(cls.sum(2), in_class_loss(matches, supervision)) / L.count(supervision.counted),
            "box": self.box_weight * L.masked_sum(box * weight, supervision.counted) / total,
            "dfl": self.distribution_weight * L.masked_sum(dfl * weight, supervision.counted) / total,
        }
