"""YOLOX (Ge et al. 2021, arXiv 2107.08430): nano to x on CSPDarknet, and ResNets with a 128-channel PAFPN.

The ResNet variants are the detector of ilYOLOX's tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ciod import losses as L
from ciod.boxes import gather_rows
from ciod.detectors.assign import sim_ota
from ciod.detectors.backbones import CSPDarknet, ResNet
from ciod.detectors.blocks import conv
from ciod.detectors.dense import flatten, grid
from ciod.detectors.detector import IMAGENET, PRIOR, ClassConv, Detector, Input
from ciod.detectors.necks import PAFPN
from ciod.types import Matches, Outputs, Targets

STRIDES = (8, 16, 32)

# name: (deepen, widen, depthwise) on CSPDarknet, or the depth of a ResNet
VARIANTS: dict[str, tuple[float, float, bool] | int] = {
    "yolox-pico": (0.33, 0.125, False),  # ours: for demonstrations and small machines; no official weights
    "yolox-nano": (0.33, 0.25, True),
    "yolox-tiny": (0.33, 0.375, False),
    "yolox-s": (0.33, 0.50, False),
    "yolox-m": (0.67, 0.75, False),
    "yolox-l": (1.0, 1.0, False),
    "yolox-x": (1.33, 1.25, False),
    "yolox-r18": 18,
    "yolox-r50": 50,
    "yolox-r101": 101,
}


def default_input(name: str, size: int | None) -> Input:
    """Official YOLOX takes BGR without normalisation; the ResNets take ImageNet's RGB, filled with its mean."""
    if isinstance(VARIANTS[name], int):
        return Input(size=size or 640, **IMAGENET)
    return Input(size=size or (416 if name in ("yolox-pico", "yolox-nano", "yolox-tiny") else 640), bgr=True)


class Head(nn.Module):
    """Decoupled head with weights of its own on each level: class tower, box tower; class, box, objectness layers."""

    def __init__(self, width: int, classes: int, *, depthwise: bool):
        super().__init__()

        def tower() -> nn.Sequential:
            return nn.Sequential(*(conv(width, width, 3, depthwise=depthwise) for _ in range(2)))

        self.cls_tower = nn.ModuleList(tower() for _ in STRIDES)
        self.reg_tower = nn.ModuleList(tower() for _ in STRIDES)
        self.cls = nn.ModuleList(ClassConv(width, classes) for _ in STRIDES)
        self.reg = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in STRIDES)
        self.obj = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in STRIDES)
        for layer in self.obj:
            nn.init.constant_(layer.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """cls, reg, obj, and the class towers' features."""
        cls, reg, obj, towers = [], [], [], []
        for i, x in enumerate(features):
            towers.append(self.cls_tower[i](x))
            boxes = self.reg_tower[i](x)
            cls.append(self.cls[i](towers[i]))
            reg.append(self.reg[i](boxes))
            obj.append(self.obj[i](boxes))
        return cls, reg, obj, towers


def assemble(
    cls: Sequence[Tensor],
    reg: Sequence[Tensor],
    obj: Sequence[Tensor],
    features: Sequence[Tensor] = (),
    towers: Sequence[Tensor] = (),
) -> Outputs:
    """Raw maps of the levels → Outputs.

    Args:
        cls, reg, obj: [B, C | 4 | 1, h, w] for strides 8, 16, 32; reg is dx, dy, log w, log h in cells, from the
            cell's corner.
    """
    corner, stride, levels = grid(cls, STRIDES)
    raw = flatten(reg)
    centre = corner + raw[..., :2] * stride[:, None]
    # An untrained log size can be huge: a box beyond 22 000 cells helps nobody and its infinity would spread.
    half = raw[..., 2:].clamp(max=10).exp() * stride[:, None] / 2
    boxes = torch.cat([centre - half, centre + half], -1)
    point = corner + stride[:, None] / 2
    objectness = flatten(obj)[..., 0]
    return Outputs(
        flatten(cls), boxes, point, stride, objectness, features=list(features), towers=list(towers), levels=levels
    )


class YOLOX(Detector):
    """See the module. ``settings`` are the keyword arguments of ``build``."""

    traits = frozenset({"dense", "objectness", "features"})
    variants = VARIANTS
    box_weight = 5.0

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        name: str = "yolox-nano",
        size: int | None = None,
        backbone_weights: str | None = None,
        frozen: bool = False,
    ):
        taking = default_input(name, size)
        settings: dict[str, Any] = {"name": name, "size": taking.size}
        super().__init__(class_names, settings, taking)
        shape = VARIANTS[name]
        if isinstance(shape, int):
            self.backbone: nn.Module = ResNet(shape, backbone_weights, frozen=frozen)
            settings["frozen"] = self.backbone.pretrained
            width, depth, depthwise = 128, 1, False
        else:
            deepen, widen, depthwise = shape
            self.backbone = CSPDarknet(deepen, widen, depthwise=depthwise)
            width, depth = int(256 * widen), round(3 * deepen)
        self.neck = PAFPN(self.backbone.channels, width, depth, depthwise=depthwise)  # type: ignore[arg-type]
        self.head = Head(width, len(class_names), depthwise=depthwise)

    @classmethod
    def default_backbone(cls, name: str) -> str | None:
        return "imagenet" if isinstance(VARIANTS[name], int) else None

    def forward(self, images: Tensor) -> Outputs:
        features = self.neck(self.backbone(self.normalise(images)))
        cls, reg, obj, towers = self.head(features)
        return assemble(cls, reg, obj, features, towers)

    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        return sim_ota(outputs, targets)

    def loss(
        self,
        outputs: Outputs,
        targets: Targets,
        matches: Matches,
        *,
        counted: Tensor | None = None,
        channels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """cls (IoU-aware BCE), box (5 × (1 - IoU²)) over counted matches; obj (BCE) over all positions.

        cls and box are divided by the number of counted matches, obj by the number of all matches (but doubtful ones).
        """
        said = L.supervise(outputs, targets, matches, counted, channels)
        n = L.count(said.counted)
        logits = gather_rows(outputs.logits, matches.position)
        label = targets.labels.gather(1, matches.target)
        quality = torch.zeros_like(logits).scatter(2, label[..., None], matches.iou[..., None])
        cls = L.bce(logits, quality)
        if said.channels is not None:
            cls = cls * said.channels
        box = L.iou_square(gather_rows(outputs.boxes, matches.position), gather_rows(targets.boxes, matches.target))
        assert outputs.objectness is not None
        obj = L.bce(outputs.objectness, matches.positive.float())
        if said.objectness is not None:
            obj = obj * said.objectness
        return {
            "cls": L.masked_sum(cls.sum(2), said.counted) / n,
            "box": self.box_weight * L.masked_sum(box, said.counted) / n,
            "obj": obj.sum() / L.count(said.matched),
        }

    def trunk(self) -> list[nn.Module]:
        return [self.backbone, self.neck]
