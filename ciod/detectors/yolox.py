"""YOLOX (Ge et al. 2021, arXiv 2107.08430): nano to x on CSPDarknet, and ResNets with a 128-channel PAFPN.

The ResNet variants are the detector of ilYOLOX's tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ciod.core import losses as L
from ciod.core.boxes import gather_rows
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.assigners.sim_ota import sim_ota
from ciod.detectors.base import IMAGENET, Input
from ciod.detectors.dense import flatten, grid
from ciod.detectors.layers import backbones
from ciod.detectors.layers import branch as br
from ciod.detectors.layers.blocks import conv
from ciod.detectors.layers.class_layers import ClassConv, start_rare
from ciod.detectors.layers.modules import Layers
from ciod.detectors.layers.necks import PAFPN
from ciod.detectors.layers.refiner import Refiner
from ciod.detectors.staged_branches import STRIDES, StagedBranches

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
    """Official YOLOX uses BGR without normalisation; the ResNets use ImageNet's RGB, with its mean as the border."""
    if isinstance(VARIANTS[name], int):
        return Input(size=size or 640, **IMAGENET)
    return Input(size=size or (416 if name in ("yolox-pico", "yolox-nano", "yolox-tiny") else 640), bgr=True)


class Head(nn.Module):
    """Decoupled head with separate weights per level: class tower, box tower; class, box, objectness layers."""

    reg: Layers[nn.Conv2d]
    obj: Layers[nn.Conv2d]

    def __init__(self, width: int, classes: int, *, depthwise: bool):
        super().__init__()

        def tower() -> nn.Sequential:
            return nn.Sequential(*(conv(width, width, 3, depthwise=depthwise) for _ in range(2)))

        self.cls_tower = nn.ModuleList(tower() for _ in STRIDES)
        self.reg_tower = nn.ModuleList(tower() for _ in STRIDES)
        self.cls = nn.ModuleList(ClassConv(width, classes) for _ in STRIDES)
        self.reg = Layers(nn.Conv2d(width, 4, 1) for _ in STRIDES)
        self.obj = Layers(nn.Conv2d(width, 1, 1) for _ in STRIDES)
        for layer in self.obj:
            start_rare(layer)

    def towers(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Input of the class layers, and of the box and objectness layers, per level."""
        cls = [tower(x) for tower, x in zip(self.cls_tower, features, strict=True)]
        return cls, [tower(x) for tower, x in zip(self.reg_tower, features, strict=True)]

    def layers(self, cls: Sequence[Tensor], reg: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Class, box and objectness maps from the outputs of the towers."""
        return (
            [layer(x) for layer, x in zip(self.cls, cls, strict=True)],
            [layer(x) for layer, x in zip(self.reg, reg, strict=True)],
            [layer(x) for layer, x in zip(self.obj, reg, strict=True)],
        )

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        return self.layers(*self.towers(features))


def assemble(
    cls: Sequence[Tensor],
    reg: Sequence[Tensor],
    obj: Sequence[Tensor],
    features: Sequence[Tensor] = (),
    towers: Sequence[Tensor] = (),
    strides: Sequence[int] = STRIDES,
    box_towers: Sequence[Tensor] = (),
) -> Outputs:
    """Raw maps of the levels → Outputs.

    Args:
        cls, reg, obj: [B, C | 4 | 1, h, w] per stride; reg is dx, dy, log w, log h in cells, from the
            cell's corner.
    """
    corner, stride, levels = grid(cls, strides)
    raw = flatten(reg)
    centre = corner + raw[..., :2] * stride[:, None]
    # An untrained log size can be huge. A box beyond 22 000 cells is useless, and an infinite one would spread.
    half = raw[..., 2:].clamp(max=10).exp() * stride[:, None] / 2
    boxes = torch.cat([centre - half, centre + half], -1)
    point = corner + stride[:, None] / 2
    objectness = flatten(obj)[..., 0]
    return Outputs(
        flatten(cls),
        boxes,
        point,
        stride,
        objectness,
        features=list(features),
        towers=list(towers),
        box_towers=list(box_towers),
        levels=levels,
    )


def loss_of(
    outputs: Outputs,
    targets: Targets,
    matches: Matches,
    supervision: L.Supervision,
    box_weight: float,
    refiner: Refiner | None = None,
    channel_of: Tensor | None = None,
) -> dict[str, Tensor]:
    """The losses of ``YOLOX.loss``, for any positions that predict as YOLOX does; with ``refiner``, of the newest
    branch, that of its corrections too.

    Args:
        channel_of: [C] int64, the class row of the refiner; needed with it.
    """
    n = L.count(supervision.counted)
    logits = gather_rows(outputs.logits, matches.position)
    label = targets.labels.gather(1, matches.target)
    quality = torch.zeros_like(logits).scatter(2, label[..., None], matches.iou[..., None])
    cls = L.bce(logits, quality)
    if supervision.at_matches is not None:
        cls = cls * supervision.at_matches
    boxes = gather_rows(outputs.boxes, matches.position), gather_rows(targets.boxes, matches.target)
    box = L.iou_square(*boxes)
    assert outputs.objectness is not None
    obj = L.bce(outputs.objectness, matches.positive.float())
    if supervision.objectness is not None:
        obj = obj * supervision.objectness
    losses = {
        "cls": L.masked_sum(cls.sum(2), supervision.counted) / n,
        "box": box_weight * L.masked_sum(box, supervision.counted) / n,
        "obj": obj.sum() / L.count(supervision.matched),
    }
    if refiner is not None and outputs.near is not None:
        assert channel_of is not None
        newest = matches.position >= outputs.logits.shape[1] - sum(outputs.levels[-len(STRIDES) :])
        weights = supervision.at_matches
        if weights is not None:  # of its own classes, in the order of their rows
            weights = weights.expand_as(logits).index_select(2, channel_of.argsort()[: sum(refiner.cls.sizes)])
        counted, row = supervision.counted & newest, channel_of[label]
        losses["refine"] = refiner.loss(outputs.near, *boxes, matches.position, counted, row, weights)
    return losses


class YOLOX(StagedBranches):
    """See the module. ``settings`` are the keyword arguments of ``build``."""

    traits = frozenset({"dense", "objectness", "features", "head_inputs", "branches", "children"})
    variants = VARIANTS
    window = 1
    box_weight = 5.0
    backbone: backbones.Backbone
    branches: Layers[br.Branch]  # type: ignore[assignment]

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        name: str = "yolox-nano",
        size: int | None = None,
        backbone_weights: str | None = None,
        frozen: bool = False,
    ):
        input_spec = default_input(name, size)
        settings: dict[str, Any] = {"name": name, "size": input_spec.size}
        super().__init__(class_names, settings, input_spec)
        shape = VARIANTS[name]
        self.backbone = backbones.build(shape, backbone_weights, frozen=frozen)
        if isinstance(shape, int):
            settings["frozen"] = self.backbone.pretrained
            width, depth, depthwise = 128, 1, False
        else:
            deepen, widen, depthwise = shape
            width, depth = int(256 * widen), round(3 * deepen)
        self.neck = PAFPN(self.backbone.channels, width, depth, depthwise=depthwise)
        self._add_head(width, depthwise=depthwise)

    def _add_head(self, width: int, *, depthwise: bool) -> None:
        """The head, without branches yet."""
        self.head = Head(width, self.num_classes, depthwise=depthwise)
        self.start_parts(width)

    def respond(self, images: Tensor, maps: list[Tensor], features: list[Tensor]) -> Outputs:
        towers = self.head.towers(features)
        base = assemble(*self.head.layers(*towers), features, towers[0], box_towers=towers[1])
        if not len(self.branches):
            return base
        if self.arbiter is not None and not self.training:
            base = replace(base, maps=maps)
        parts = self.with_branches(base, maps, features, towers)
        return br.append([br.scatter_classes(p, row) for p, row in zip(parts, self.channel_of, strict=True)])

    def towers(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return self.head.towers(features)

    def answer_at(self, level: int, cls: Tensor, box: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``HeadInputs``."""
        return self.head.cls[level](cls).flatten(2).transpose(1, 2), self.head.obj[level](box).flatten(1)

    @property
    def has_children(self) -> bool:
        """Whether a branch names the objects of another part."""
        return any(isinstance(b, br.ChildBranch) for b in self.branches)

    def separate(self, images: Tensor) -> tuple[list[Outputs], list[Tensor]]:
        """Outputs of the detector itself and of each branch, with only their own classes, and the backbone's maps."""
        maps, features = self.extract(images)
        towers = self.head.towers(features)
        return self.with_branches(assemble(*self.head.layers(*towers)), maps, features, towers), maps

    def with_branches(
        self,
        base: Outputs,
        maps: Sequence[Tensor],
        features: Sequence[Tensor],
        towers: tuple[Sequence[Tensor], Sequence[Tensor]],
    ) -> list[Outputs]:
        """The outputs of every part, each with the classes of the part only."""
        parts = [base]
        for i, b in enumerate(self.branches):
            if isinstance(b, br.ChildBranch):
                of = next(n for n, columns in enumerate(self.parts) if b.parent in columns)
                logits = flatten(b.names(maps, features, towers[0]))
                found = br.under(parts[of], self.parts[of].index(b.parent), logits)
                parts.append(self.corrected(i, found, maps[0]))
            else:
                parts.append(self.of_branch(i, self.read_maps(maps, features, towers)))
        return parts

    def of_newest(self, read: Sequence[Sequence[Tensor]]) -> Outputs:
        if not isinstance(self.branches[-1], br.ChildBranch):
            return super().of_newest(read)
        maps, features, cls, reg = zip(*read, strict=True)  # another part has the boxes of its parent
        parts = self.with_branches(assemble(*self.head.layers(cls, reg)), maps, features, (cls, reg))
        return br.scatter_classes(parts[-1], self.channel_of[-1])

    def of_branch(self, i: int, read: Sequence[Sequence[Tensor]]) -> Outputs:
        maps, features, *towers = zip(*read, strict=True)
        return self.corrected(i, assemble(*self.branches[i](maps, features, *towers)), maps[0])

    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """SimOTA; with branches, separately per part, with the targets of its own classes."""
        if len(outputs.levels) <= len(STRIDES):
            return sim_ota(outputs, targets)
        n, own = len(self.parts), self.owned
        found = [sim_ota(br.part(outputs, i, n), br.only(targets, own[i])) for i in range(n)]
        return br.join(found, outputs.logits.shape[1] // n)

    def losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, supervision: L.Supervision
    ) -> dict[str, Tensor]:
        """cls (IoU-aware BCE), box (5 × (1 - IoU²)) over counted matches; obj (BCE) over all positions.

        cls and box are divided by the number of counted matches, obj by the number of all matches
        (except doubtful ones). refine: see ``Refiner.loss``.
        """
        refiner = self.branches[-1].refiner if len(self.branches) else None
        return loss_of(outputs, targets, matches, supervision, self.box_weight, refiner, self.channel_of[-1])

    def make_branch(self, columns: Sequence[int], new: int, inner: Sequence[int], refiner: Refiner | None) -> br.Branch:
        return br.Branch(self.backbone.channels, self.width, columns, new, inner, list(self.head.reg), refiner)

    def make_children(
        self, columns: Sequence[int], inner: Sequence[int], parent: int, refiner: Refiner | None
    ) -> br.ChildBranch:
        return br.ChildBranch(self.backbone.channels, self.width, columns, inner, parent=parent, refiner=refiner)
