"""Necks: PAFPN (YOLOX) and FPN (GFL, RetinaNet, FCOS)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from ciod.detectors.layers.blocks import CSP, ConvBN, conv


class PAFPN(nn.Module):
    """Path-aggregation feature pyramid over three maps: top-down, then bottom-up, then one 1×1 convolution per level to
    equal channels.

    Args:
        channels: those of the three inputs, stride 8 first.
        width: channels of every output.
        depth: bottlenecks in each CSP block.
    """

    def __init__(self, channels: Sequence[int], width: int, depth: int, *, depthwise: bool = False):
        super().__init__()
        c3, c4, c5 = channels

        def csp(inputs: int, outputs: int) -> CSP:
            return CSP(inputs, outputs, depth, shortcut=False, depthwise=depthwise)

        self.reduce = nn.ModuleList([ConvBN(c5, c4, 1), ConvBN(c4, c3, 1)])
        self.top_down = nn.ModuleList([csp(2 * c4, c4), csp(2 * c3, c3)])
        self.downsample = nn.ModuleList(
            [conv(c3, c3, 3, 2, depthwise=depthwise), conv(c4, c4, 3, 2, depthwise=depthwise)]
        )
        self.bottom_up = nn.ModuleList([csp(2 * c3, c4), csp(2 * c4, c5)])
        self.out = nn.ModuleList(ConvBN(c, width, 1) for c in channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        m3, m4, m5 = maps
        r5 = self.reduce[0](m5)
        p4 = self.top_down[0](torch.cat([F.interpolate(r5, scale_factor=2, mode="nearest"), m4], 1))
        r4 = self.reduce[1](p4)
        p3 = self.top_down[1](torch.cat([F.interpolate(r4, scale_factor=2, mode="nearest"), m3], 1))
        n4 = self.bottom_up[0](torch.cat([self.downsample[0](p3), r4], 1))
        n5 = self.bottom_up[1](torch.cat([self.downsample[1](n4), r5], 1))
        return [out(x) for out, x in zip(self.out, (p3, n4, n5), strict=True)]


class FPN(FeaturePyramidNetwork):
    """torchvision's feature pyramid over three maps, with two coarser levels convolved from its last map: five maps
    of ``width`` channels, at strides 8 to 128.

    Args:
        channels: those of the three inputs, stride 8 first.
        relu: ReLU before the last level (RetinaNet, FCOS); without it in GFL.
    """

    def __init__(self, channels: Sequence[int], width: int, *, relu: bool):
        super().__init__(list(channels), width, extra_blocks=(LastLevelP6P7 if relu else PlainP6P7)(width, width))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return list(super().forward(OrderedDict(zip("345", maps, strict=True))).values())


class PlainP6P7(LastLevelP6P7):
    """Two more levels, each made by one convolution with stride 2."""

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(p[-1])
        return [*p, p6, self.p7(p6)], [*names, "6", "7"]
