"""Convolution blocks that CSPDarknet, PAFPN and the YOLOX head share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvBN(nn.Module):
    """Convolution, batch normalisation (YOLOX's eps 1e-3, momentum 0.03), SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU()  # in place it would copy its input, which the backward pass needs
        nn.init.kaiming_uniform_(self.conv.weight, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class DepthwiseConv(nn.Module):
    """A depthwise convolution and a pointwise one, each with BN and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__()
        self.depth = ConvBN(inputs, inputs, kernel, stride, groups=inputs)
        self.point = ConvBN(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(self.depth(x))


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, *, depthwise: bool = False) -> nn.Module:
    return (DepthwiseConv if depthwise else ConvBN)(inputs, outputs, kernel, stride)


class Bottleneck(nn.Module):
    """1×1, 3×3, and with ``shortcut`` the input is added."""

    def __init__(self, channels: int, *, shortcut: bool, depthwise: bool):
        super().__init__()
        self.conv1 = ConvBN(channels, channels, 1)
        self.conv2 = conv(channels, channels, 3, depthwise=depthwise)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class CSP(nn.Module):
    """Cross-stage partial block: half of the channels pass ``depth`` bottlenecks, the other half skips them."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, shortcut: bool = True, depthwise: bool = False):
        super().__init__()
        half = outputs // 2
        self.main = ConvBN(inputs, half, 1)
        self.short = ConvBN(inputs, half, 1)
        self.blocks = nn.Sequential(*(Bottleneck(half, shortcut=shortcut, depthwise=depthwise) for _ in range(depth)))
        self.final = ConvBN(2 * half, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.final(torch.cat([self.blocks(self.main(x)), self.short(x)], 1))
