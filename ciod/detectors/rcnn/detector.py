"""Faster R-CNN (Ren et al., NeurIPS 2015) with a feature pyramid (Lin et al., CVPR 2017), as torchvision builds it.

Layers, anchors and numbers are torchvision's, so its weights fit, and the losses equal those of its model for the same
samples; proposals, matching, samples and losses are computed without loops over images. The class part is a softmax
with background, so a class that is not labelled cannot be left out of it; it then counts as background (``losses``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ciod.core import boxes as bx
from ciod.core import losses as L
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.base import Detector, Input
from ciod.detectors.rcnn import losses, sampling
from ciod.detectors.rcnn.heads import PADDING, FirstStage, SecondStage
from ciod.detectors.rcnn.networks import SHAPES, Shape, trunk
from ciod.detectors.rcnn.outputs import RoIOutputs, move, within
from ciod.detectors.rcnn.pooling import pool
from ciod.detectors.rcnn.proposals import propose
from ciod.detectors.torchvision_models import anchors_of, correct

FOREGROUND = 0.5  # a region is matched with the box it overlaps most, from this IoU


class FasterRCNN(Detector):
    """A position is a region that the first stage proposes. ``settings`` are the keyword arguments of ``build``."""

    traits = frozenset({"rois", "features"})
    variants: ClassVar[Mapping[str, Shape]] = SHAPES
    multi_label = True

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        name: str = "fasterrcnn-pico",
        size: int | None = None,
        backbone_weights: str | None = None,
        frozen: bool = False,
    ):
        shape = self.variants[name]
        input_spec = Input(size=size or shape.size, **shape.input)
        settings: dict[str, Any] = {"name": name, "size": input_spec.size}
        super().__init__(class_names, settings, input_spec)
        self.shape, self.nms_iou = shape, 0.5
        self.backbone, self.neck = trunk(name, shape, backbone_weights, frozen)
        if shape.backbone != "csp":
            settings["frozen"] = self.backbone.pretrained
        self.anchor_generator = shape.anchors()
        per_cell = self.anchor_generator.num_anchors_per_location()[0]
        self.rpn = FirstStage(shape.width, per_cell, shape.convolutions[0])
        self.head = SecondStage(shape.width, shape.hidden, shape.convolutions[1], len(class_names))

    @classmethod
    def default_backbone(cls, name: str) -> str | None:
        return "imagenet" if name in cls.variants and cls.variants[name].backbone == "resnet50" else None

    def forward(self, images: Tensor) -> RoIOutputs:
        """[B, 3, H, W] RGB 0..255 → Outputs in float32."""
        stages = self.backbone.stages(self.normalise(images))
        maps = self.neck(stages if self.shape.backbone == "resnet50" else stages[-len(self.backbone.channels) :])
        objectness, deltas = self.rpn.flat(maps)
        anchors, _, levels = anchors_of(self.anchor_generator, images, maps)
        frame = (int(images.shape[3]), int(images.shape[2]))
        boxes = within(correct(anchors, deltas.detach()), frame)
        proposals, real = propose(objectness, boxes, levels, self.shape.limits)
        background, logits, class_deltas = self.judge(maps, proposals)
        nowhere = torch.zeros(0, device=images.device)
        return RoIOutputs(
            logits,
            best_boxes(proposals, logits, class_deltas, frame),
            nowhere.view(0, 2),
            nowhere,
            features=maps,
            frame=frame,
            background=torch.where(real, background, PADDING),
            class_deltas=class_deltas,
            proposals=proposals,
            real=real,
            rpn_logits=objectness,
            rpn_deltas=deltas,
            rpn_anchors=anchors,
            rpn_levels=levels,
            keys=sampling.keys(images),
        )

    def judge(self, maps: Sequence[Tensor], regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The second stage on any regions.

        Args:
            maps: ``Outputs.features``.
            regions: [B, K, 4] in pixels, within the image.

        Returns:
            background [B, K], logits [B, K, C] and deltas [B, K, C, 4], float32.
        """
        return self.head(self.pool(maps, regions), regions.shape[:2])

    def pool(self, maps: Sequence[Tensor], regions: Tensor) -> Tensor:
        """[B × K, F, 7, 7]: the maps of regions [B, K, 4]."""
        strides = self.shape.strides
        return pool(maps[: len(strides)], strides, regions)

    def box_of(self, outputs: Outputs, image: int, positions: Tensor, labels: Tensor) -> Tensor:
        """Every class has boxes of its own."""
        if not isinstance(outputs, RoIOutputs):  # as an exported graph gives them
            return super().box_of(outputs, image, positions, labels)
        return outputs.box_of(image, positions, labels)

    @torch.no_grad()
    def match(self, outputs: Outputs, targets: Targets) -> Matches:
        """A region is matched with the box it overlaps most, from IoU 0.5. Padding is matched with nothing."""
        assert isinstance(outputs, RoIOutputs)
        best, target = losses.overlaps(outputs.proposals, targets)
        positive = (best >= FOREGROUND) & outputs.real
        position, ok = bx.compact(positive, best, limit=positive.shape[1])
        return Matches(position, target.gather(1, position), best.gather(1, position).clamp(min=0), ok, positive)

    def losses(
        self, outputs: Outputs, targets: Targets, matches: Matches, supervision: L.Supervision
    ) -> dict[str, Tensor]:
        """cls (cross-entropy) and box (smooth L1) of 512 regions of each image, a quarter of them matched, among the
        proposals and the boxes themselves; obj (BCE) and rpn_box (smooth L1) of 256 anchors, half of them matched.

        A class that is not labelled in an image, or whose channel is not supervised, counts as background: of a
        region without a match, the probability of background or any such class is trained."""
        assert isinstance(outputs, RoIOutputs)
        real = self._boxes_as_regions(outputs, targets)
        second = losses.second_stage(outputs, real, targets, matches, supervision)
        return second | losses.first_stage(outputs, targets)

    def _boxes_as_regions(self, outputs: RoIOutputs, targets: Targets) -> losses.Regions:
        """The second stage on the boxes of the targets. In float32, and with fixed statistics of normalisation."""
        unit = targets.boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
        regions = torch.where(targets.valid[..., None], within(targets.boxes, outputs.frame), unit)
        normalising = [m for m in self.head.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
        for m in normalising:
            m.eval()
        with torch.autocast(regions.device.type, enabled=False):
            background, logits, deltas = self.judge([m.float() for m in outputs.features], regions)
        for m in normalising:
            m.train()
        return losses.Regions(regions, background, logits, deltas)

    def trunk(self) -> list[nn.Module]:
        return [self.backbone, self.neck]


def best_boxes(proposals: Tensor, logits: Tensor, deltas: Tensor, frame: tuple[int, int]) -> Tensor:
    """[B, K, 4]: the boxes of the best class of each region; without classes the regions."""
    if not logits.shape[2]:
        return proposals
    label = logits.argmax(2)[..., None, None].expand(-1, -1, 1, 4)
    return within(move(proposals, deltas.gather(2, label)[:, :, 0]), frame)
