"""The heads of both stages. The class layers of the second one grow."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead

from ciod.detectors.layers.class_layers import PRIOR, ClassLinear, ClassRow
from ciod.detectors.layers.modules import bias_of
from ciod.detectors.rcnn.pooling import CELLS
from ciod.detectors.torchvision_models import of_anchors

PADDING = 1e4  # background's logit at padding: every class gets exactly 0


class FirstStage(RPNHead):
    """torchvision's RPN head on maps of all levels."""

    def flat(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Objectness [B, A] and corrections [B, A, 4] of all anchors, float32."""
        logits, deltas = self(list(maps))
        per_anchor = [x.view(x.shape[0], -1, 4, x.shape[2], x.shape[3]).transpose(1, 2) for x in deltas]
        return of_anchors([x[:, None] for x in logits])[..., 0], of_anchors(per_anchor)


class SoftmaxLinear(ClassLinear):
    """The class logits of a softmax, whose background has a row of its own.

    New classes start as background does, with a bias that gives all of them together 1 % of its probability at any
    region. So the scores of old classes fall by less than 1 %, relatively, and their logits stay as they are.
    """

    def __init__(self, channels: int, classes: int):
        super().__init__(channels, 0)
        self.background = ClassRow(channels, 1)
        nn.init.normal_(self.background.weight, std=0.01)
        nn.init.zeros_(bias_of(self.background))
        if classes:
            self.grow(classes)

    def grow(self, classes: int) -> None:
        block = self.block(classes).to(self.background.weight)
        with torch.no_grad():
            block.weight.copy_(self.background.weight.expand_as(block.weight))
            share = math.log(classes * (1 - PRIOR) / PRIOR)
            bias_of(block).copy_((bias_of(self.background) - share).expand(classes))
        self.blocks.append(block)


class BoxRows(nn.Module):
    """A linear layer to four numbers per class; its tensors have one row per class, as in ClassRows."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.out_channels = classes
        self.weight = nn.Parameter(torch.empty(classes, 4, channels))
        self.bias = nn.Parameter(torch.empty(classes, 4))

    def forward(self, x: Tensor) -> Tensor:
        """[R, channels] → [R, classes, 4]."""
        y = nn.functional.linear(x, self.weight.flatten(0, 1), self.bias.flatten())
        return y.view(-1, self.out_channels, 4)


class ClassBoxes(ClassLinear):
    """The corrections of each class: [R, channels] → [R, classes, 4]. New rows move a region hardly at all."""

    def block(self, classes: int) -> BoxRows:
        return BoxRows(self.channels, classes)

    def grow(self, classes: int) -> None:
        block = self.block(classes)
        nn.init.normal_(block.weight, std=0.001)
        nn.init.zeros_(block.bias)
        if len(self.blocks):
            block.to(next(self.blocks[0].parameters()))
        self.blocks.append(block)

    def forward(self, x: Tensor) -> Tensor:
        if not len(self.blocks):
            return x.new_zeros(len(x), 0, 4)
        parts = [block(x) for block in self.blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class SecondStage(nn.Module):
    """torchvision's box head, then the class layers.

    Args:
        width: channels of the maps.
        hidden: outputs of the last fully connected layer.
        convolutions: 3×3 convolutions before the one fully connected layer; 0: two such layers and no convolution.
    """

    def __init__(self, width: int, hidden: int, convolutions: int, classes: int):
        super().__init__()
        self.trunk: nn.Module = (
            FastRCNNConvFCHead((width, CELLS, CELLS), [width] * convolutions, [hidden], nn.BatchNorm2d)
            if convolutions
            else TwoMLPHead(width * CELLS**2, hidden)
        )
        self.cls, self.box = SoftmaxLinear(hidden, classes), ClassBoxes(hidden, classes)

    def forward(self, pooled: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """[B × K, F, 7, 7] → background [B, K], logits [B, K, C] and deltas [B, K, C, 4], float32; shape: (B, K)."""
        x = self.trunk(pooled)
        background, logits, deltas = (v.float() for v in (self.cls.background(x)[:, 0], self.cls(x), self.box(x)))
        return background.view(*shape), logits.view(*shape, logits.shape[1]), deltas.view(*shape, *deltas.shape[1:])
