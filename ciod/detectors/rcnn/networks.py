"""The networks of Faster R-CNN: backbone, pyramid and anchors of each variant."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from ciod.core.errors import CiodError
from ciod.core.files import is_file
from ciod.detectors.base import IMAGENET
from ciod.detectors.files.checkpoint import read_checkpoint
from ciod.detectors.layers import backbones
from ciod.detectors.layers.backbones import Backbone
from ciod.detectors.mobilenet import MobileNetV1
from ciod.detectors.rcnn.proposals import Limits

_HALF = (127.5, 127.5, 127.5)  # 0..255 to [-1, 1]


@dataclass(frozen=True)
class Shape:
    """A variant."""

    backbone: str  # csp, mobilenet_v1, mobilenet_v3 or resnet50
    size: int  # default side of the input
    width: int = 256  # channels of the pyramid
    hidden: int = 1024  # of the second stage
    convolutions: tuple[int, int] = (1, 0)  # of the first stage and of the second
    norm: bool = False  # batch normalisation in the pyramid
    sizes: tuple[tuple[int, ...], ...] = ((32,), (64,), (128,), (256,), (512,))  # of the anchors of each level
    limits: Limits = field(default_factory=Limits)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the levels from which regions are read."""
        return {"csp": (8, 16, 32), "mobilenet_v1": (8, 16, 32), "mobilenet_v3": (32,)}.get(
            self.backbone, (4, 8, 16, 32)
        )

    @property
    def input(self) -> dict[str, Any]:
        """Settings of ``Input``."""
        if self.backbone == "csp":
            return {"bgr": True}
        return {"mean": _HALF, "std": _HALF} if self.backbone == "mobilenet_v1" else IMAGENET

    def anchors(self) -> AnchorGenerator:
        return AnchorGenerator(self.sizes, ((0.5, 1.0, 2.0),) * len(self.sizes))


_FIVE = ((32, 64, 128, 256, 512),) * 3
SHAPES = {
    "fasterrcnn-pico": Shape(
        "csp", 192, 32, 64, sizes=((16,), (32,), (64,), (128,)), limits=Limits(before=100, after=100)
    ),
    "fasterrcnn-mobilenet-v1": Shape(
        "mobilenet_v1", 320, 96, 256, sizes=((24,), (48,), (96,), (192,)), limits=Limits(before=200, after=200)
    ),
    "fasterrcnn-mobilenet-v3-320": Shape(
        "mobilenet_v3", 320, sizes=_FIVE, limits=Limits(before=150, after=150, score=0.05)
    ),
    "fasterrcnn-mobilenet-v3": Shape("mobilenet_v3", 800, sizes=_FIVE, limits=Limits(score=0.05)),
    "fasterrcnn-r50": Shape("resnet50", 800),
    "fasterrcnn-r50-v2": Shape("resnet50", 800, convolutions=(2, 4), norm=True),
}


class MobileNetV3(Backbone):
    """torchvision's MobileNetV3-Large; its maps are those of its last four and its very last block, both at stride 32.

    Args:
        weights: a file with a state dict of torchvision's classifier, or None.
        frozen: freeze stem, first stage and statistics even if ``weights`` is None, because they are loaded later.

    Raises:
        CiodError: the file does not exist or contains another network.
    """

    def __init__(self, weights: str | None = None, *, frozen: bool = False):
        super().__init__()
        net = torchvision.models.mobilenet_v3_large(weights=None, norm_layer=nn.BatchNorm2d)
        self.pretrained = frozen or bool(weights)
        if weights:
            _load(net, weights)
        blocks = list(net.features)
        parts = (nn.Sequential(*blocks[a:b]) for a, b in SPLIT)
        self.stem, self.stage1, self.stage2, self.stage3, self.stage4, self.stage5 = parts
        self.channels = (160, 960)
        self.hold()

    def stages(self, x: Tensor | None, known: Sequence[Tensor] = ()) -> list[Tensor]:
        maps = super().stages(x, known)
        return [*maps, self.stage5(maps[-1])]


SPLIT = ((0, 2), (2, 4), (4, 7), (7, 13), (13, 14), (14, 17))  # blocks of MobileNetV3's stem and stages


def _load(net: nn.Module, weights: str) -> None:
    if not is_file(weights):
        raise CiodError(f"detector.backbone_weights: there is no file {weights}.")
    state = read_checkpoint(Path(weights))
    wanted = {k: v for k, v in net.state_dict().items() if k.startswith("features.") and "num_batches" not in k}
    wrong = [k for k, v in wanted.items() if k not in state or state[k].shape != v.shape]
    if wrong:
        raise CiodError(
            f"detector.backbone_weights: {weights} is not torchvision's MobileNetV3-Large; {len(wrong)} tensors are "
            f"missing or have another shape, for example {wrong[0]}."
        )
    net.load_state_dict({k: v for k, v in state.items() if k.startswith("features.")}, strict=False)


class Pyramid(FeaturePyramidNetwork):
    """torchvision's pyramid, with a coarser level that is the last one pooled."""

    def __init__(self, channels: Sequence[int], width: int, *, norm: bool):
        layer = nn.BatchNorm2d if norm else None
        super().__init__(list(channels), width, extra_blocks=LastLevelMaxPool(), norm_layer=layer)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return list(super().forward(OrderedDict((str(i), m) for i, m in enumerate(maps))).values())


def trunk(name: str, shape: Shape, weights: str | None, frozen: bool) -> tuple[Backbone, Pyramid]:
    """The backbone and its pyramid.

    Raises:
        CiodError: the backbone has no such weights.
    """
    if weights == "imagenet" and shape.backbone != "resnet50":
        raise CiodError(f"detector.backbone_weights: there is no download for {name}; give a file.")
    if shape.backbone == "csp":
        if weights not in (None, "random"):
            raise CiodError(f"detector.backbone_weights: {name} takes none; write weights=FILE for a whole model.")
        backbone: Backbone = backbones.build((0.33, 0.125, True))
    elif shape.backbone == "mobilenet_v1":
        backbone = MobileNetV1(0.75, weights, frozen=frozen)
    elif shape.backbone == "mobilenet_v3":
        backbone = MobileNetV3(weights, frozen=frozen)
    else:
        backbone = backbones.build(50, weights, frozen=frozen)
    channels = (256, *backbone.channels) if shape.backbone == "resnet50" else backbone.channels
    return backbone, Pyramid(channels, shape.width, norm=shape.norm)
