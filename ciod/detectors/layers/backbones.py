"""Backbones: CSPDarknet (YOLOX) and torchvision's ResNets. Each returns three maps, at strides 8, 16 and 32."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from ciod.core.errors import CiodError
from ciod.core.files import is_file
from ciod.detectors.files.checkpoint import read_checkpoint
from ciod.detectors.layers.blocks import CSP, ConvBN, conv


class Focus(nn.Module):
    """Every 2×2 block of pixels becomes channels, then a 3×3 convolution."""

    def __init__(self, outputs: int):
        super().__init__()
        self.conv = ConvBN(12, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]  # the order official weights expect
        return self.conv(torch.cat(corners, 1))


class SPP(nn.Module):
    """Spatial pyramid pooling with windows 5, 9 and 13."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = ConvBN(inputs, inputs // 2, 1)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.conv2 = ConvBN(inputs // 2 * 4, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat([x, *(pool(x) for pool in self.pools)], 1))


class Backbone(nn.Module):
    """A stem and four stages; returns the maps of the last three, at strides 8, 16 and 32.

    With pretrained weights the stem and the first stage are frozen, and every batch normalisation keeps its statistics;
    its scale and shift are still trained in unfrozen stages.
    """

    pretrained: bool = False
    channels: tuple[int, ...]  # of the three maps

    stem: nn.Module
    stage1: nn.Module
    stage2: nn.Module
    stage3: nn.Module
    stage4: nn.Module

    def hold(self) -> None:
        """Freezes the parts that stay fixed, if there are weights."""
        if self.pretrained:
            self.stem.requires_grad_(False)
            self.stage1.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.pretrained:
            for m in self.modules():
                if isinstance(m, nn.BatchNorm2d):
                    m.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.stages(x)[1:]

    def stages(self, x: Tensor | None, known: Sequence[Tensor] = ()) -> list[Tensor]:
        """The maps of all four stages, at strides 4, 8, 16 and 32.

        Args:
            x: the input of the stem; not used if ``known`` has maps.
            known: maps of the first stages; these stages are not computed again.
        """
        maps = list(known) or [self.stage1(self.stem(x))]
        for stage in (self.stage2, self.stage3, self.stage4)[len(maps) - 1 :]:
            maps.append(stage(maps[-1]))
        return maps


class CSPDarknet(Backbone):
    """YOLOX's backbone (Ge et al. 2021; CSPDarknet of YOLOv5)."""

    def __init__(self, deepen: float, widen: float, *, depthwise: bool = False):
        super().__init__()
        c = int(widen * 64)
        n = max(round(deepen * 3), 1)
        self.channels = (4 * c, 8 * c, 16 * c)
        self.stem = Focus(c)

        def stage(inputs: int, outputs: int, depth: int, *extra: nn.Module, shortcut: bool = True) -> nn.Sequential:
            first = conv(inputs, outputs, 3, 2, depthwise=depthwise)
            return nn.Sequential(first, *extra, CSP(outputs, outputs, depth, shortcut=shortcut, depthwise=depthwise))

        self.stage1 = stage(c, 2 * c, n)
        self.stage2 = stage(2 * c, 4 * c, 3 * n)
        self.stage3 = stage(4 * c, 8 * c, 3 * n)
        self.stage4 = stage(8 * c, 16 * c, n, SPP(16 * c, 16 * c), shortcut=False)


class ResNet(Backbone):
    """torchvision's ResNet without its classifier.

    As in the paper (ilYOLOX, R50), ImageNet weights are partly frozen, see ``Backbone``. From random weights
    everything is trained.

    Args:
        depth: 18, 50 or 101.
        weights: ``imagenet`` (downloaded by torchvision), a path to a torchvision state dict, or None.
        frozen: freeze stem, first stage and statistics even if ``weights`` is None, because they are loaded later.
    """

    def __init__(self, depth: int, weights: str | None = None, *, frozen: bool = False):
        super().__init__()
        net = getattr(torchvision.models, f"resnet{depth}")(weights=None)
        wide = 1 if depth == 18 else 4
        self.channels = (128 * wide, 256 * wide, 512 * wide)
        self.pretrained = frozen or (bool(weights) and load_resnet(net, depth, str(weights)))
        # ReLU keeps the order of values, so pooling can come first and leaves ReLU a quarter of the pixels.
        self.stem = nn.Sequential(net.conv1, net.bn1, net.maxpool, net.relu)
        self.stage1, self.stage2, self.stage3, self.stage4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.hold()


def build(shape: int | tuple[float, float, bool], weights: str | None = None, *, frozen: bool = False) -> Backbone:
    """A ResNet of this depth, or a CSPDarknet of this (deepen, widen, depthwise), which has no pretrained weights."""
    if isinstance(shape, int):
        return ResNet(shape, weights, frozen=frozen)
    deepen, widen, depthwise = shape
    return CSPDarknet(deepen, widen, depthwise=depthwise)


def load_resnet(net: nn.Module, depth: int, weights: str) -> bool:
    if weights == "imagenet":
        patience = socket.getdefaulttimeout()
        try:
            socket.setdefaulttimeout(15)  # so that it does not hang without a network
            entry = torchvision.models.get_model_weights(f"resnet{depth}")["IMAGENET1K_V1"]
            net.load_state_dict(entry.get_state_dict(progress=False, check_hash=True))
            return True
        except Exception as problem:  # without network or cache: many kinds of error with the same meaning
            warnings.warn(
                f"ImageNet weights of ResNet-{depth} could not be downloaded ({problem}); the backbone starts from "
                "random weights. Give detector.backbone_weights=PATH to use a file.",
                stacklevel=2,
            )
            return False
        finally:
            socket.setdefaulttimeout(patience)
    if not is_file(weights):
        raise CiodError(f"detector.backbone_weights: there is no file {weights}.")

    state = read_checkpoint(Path(weights))
    state = state.get("state_dict", state)
    state = {k: v for k, v in state.items() if isinstance(k, str) and not k.startswith("fc.")}
    missing = [k for k in net.state_dict() if k not in state and not k.startswith("fc.") and "num_batches" not in k]
    if missing:
        raise CiodError(
            f"detector.backbone_weights: {weights} is not a torchvision ResNet-{depth}; it lacks {len(missing)} "
            f"tensors, for example {missing[0]}."
        )
    net.load_state_dict(state, strict=False)
    return True
