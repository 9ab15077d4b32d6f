"""Layers with one row per class that can grow: old rows keep their weights and their arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ciod.detectors.layers.modules import Layers, bias_of

PRIOR = 0.01  # initial probability of a new class at every position
UNTRAINED = -1e4  # logit of a class that does not choose queries


@dataclass
class ClassRows:
    """A tensor with one row per class: rows ``first .. first + len(tensor)`` in the order of arrival."""

    name: str
    tensor: Tensor
    first: int


def start_rare(layer: nn.Conv2d | AnchorConv | ClassRow) -> None:
    """Sets the bias so that every output starts at p = 0.01."""
    nn.init.constant_(bias_of(layer), -math.log((1 - PRIOR) / PRIOR))


class ClassConv(nn.Module):
    """A convolution to class logits that can grow.

    Every growth appends a separate convolution, and the outputs are concatenated. The old convolutions keep their
    weights and their arithmetic, so old logits stay bit-equal on any device. (A single wider convolution might use
    another kernel, whose sums round differently.)
    """

    blocks: Layers[nn.Conv2d | AnchorConv | ClassRow]

    def __init__(self, channels: int, classes: int, kernel: int = 1):
        super().__init__()
        self.channels, self.kernel = channels, kernel
        self.blocks = Layers()
        if classes:
            self.grow(classes)

    def grow(self, classes: int) -> None:
        """Appends ``classes`` rows: weights N(0, 0.01), bias so that every new class starts at p = 0.01."""
        block = self.block(classes)
        nn.init.normal_(block.weight, std=0.01)
        start_rare(block)
        if len(self.blocks):
            block.to(next(self.blocks[0].parameters()))
        self.blocks.append(block)

    def block(self, classes: int) -> nn.Conv2d | AnchorConv | ClassRow:
        """The convolution of ``classes`` new classes."""
        return nn.Conv2d(self.channels, classes, self.kernel, padding=self.kernel // 2)

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows (ascending) and their arithmetic per block; empty blocks are removed."""
        first = 0
        blocks: list[nn.Conv2d | AnchorConv | ClassRow] = []
        for block in self.blocks:
            size = block.out_channels
            own = [r - first for r in rows if first <= r < first + size]
            first += size
            if len(own) < size:
                narrow = self.block(max(1, len(own)))
                narrow.to(block.weight)
                with torch.no_grad():
                    narrow.weight.copy_(block.weight[own or [0]])
                    bias_of(narrow).copy_(bias_of(block)[own or [0]])
                block = narrow
            if own:
                blocks.append(block)
        self.blocks = Layers(blocks)

    @property
    def sizes(self) -> list[int]:
        """Number of classes of each block, in order of arrival."""
        return [block.out_channels for block in self.blocks]

    def forward(self, x: Tensor) -> Tensor:
        if not len(self.blocks):
            return x.new_zeros(x.shape[0], 0, *x.shape[2:])
        parts = [block(x) for block in self.blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def rows(self, name: str) -> Iterator[ClassRows]:
        first = 0
        for i, block in enumerate(self.blocks):
            yield ClassRows(f"{name}.blocks.{i}.weight", block.weight, first)
            yield ClassRows(f"{name}.blocks.{i}.bias", bias_of(block), first)
            first += block.out_channels


class AnchorConv(nn.Module):
    """A convolution to the logits of several anchors per cell; its tensors have one row per class, as in ClassRows."""

    def __init__(self, channels: int, classes: int, anchors: int, kernel: int):
        super().__init__()
        self.out_channels, self.shape = classes, (classes * anchors, channels, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(classes, anchors, channels * kernel**2))
        self.bias = nn.Parameter(torch.empty(classes, anchors))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, h, w] → [B, classes, anchors, h, w]."""
        y = nn.functional.conv2d(x, self.weight.view(self.shape), self.bias.flatten(), padding=self.shape[2] // 2)
        return y.view(y.shape[0], *self.bias.shape, *y.shape[2:])


class AnchorClassConv(ClassConv):
    """ClassConv with several anchors per cell: [B, channels, h, w] → [B, classes, anchors, h, w]."""

    def __init__(self, channels: int, classes: int, anchors: int, kernel: int = 3):
        self.anchors = anchors
        super().__init__(channels, classes, kernel)

    def block(self, classes: int) -> AnchorConv:
        return AnchorConv(self.channels, classes, self.anchors, self.kernel)

    def forward(self, x: Tensor) -> Tensor:
        if not len(self.blocks):
            return x.new_zeros(x.shape[0], 0, self.anchors, *x.shape[2:])
        return super().forward(x)


class ClassRow(nn.Linear):
    """A linear layer to the logits of some classes, with the attributes of a convolution."""

    @property
    def out_channels(self) -> int:
        return self.out_features


class ClassLinear(ClassConv):
    """ClassConv on vectors instead of maps: [..., channels] → [..., classes]."""

    def block(self, classes: int) -> ClassRow:
        return ClassRow(self.channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        if not len(self.blocks):
            return x.new_zeros(*x.shape[:-1], 0)
        parts = [block(x) for block in self.blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


class RankedLinear(ClassLinear):
    """The class layer of an encoder whose best scores choose the queries.

    A row that was never trained must choose nothing, or the old detections would change as soon as classes are added:
    in evaluation only the first ``ranking`` rows choose (0: all, as none is older). Train mode makes them all rows.
    """

    ranking: Tensor

    def __init__(self, channels: int, classes: int):
        super().__init__(channels, classes)
        self.register_buffer("ranking", torch.tensor(classes))

    @property
    def classes(self) -> int:
        return sum(self.sizes)

    def grow(self, classes: int) -> None:
        if hasattr(self, "ranking"):  # not while the layer is constructed
            known = torch.full_like(self.ranking, self.classes)
            self.ranking.copy_(torch.where(self.ranking > 0, self.ranking.minimum(known), known))
        super().grow(classes)

    def select(self, rows: Sequence[int]) -> None:
        self.ranking.fill_(sum(r < int(self.ranking) for r in rows))
        super().select(rows)

    def train(self, mode: bool = True) -> RankedLinear:
        if mode:
            self.ranking.fill_(self.classes)
        return super().train(mode)

    def best(self, logits: Tensor) -> Tensor:
        """[..., C] of ``forward`` → [...]: the highest of the rows that choose; 0 where there are no classes."""
        if not logits.shape[-1]:
            return logits.new_zeros(logits.shape[:-1])
        if self.training:
            return logits.amax(-1)
        chooses = (torch.arange(logits.shape[-1], device=logits.device) < self.ranking) | (self.ranking == 0)
        return logits.masked_fill(~chooses, UNTRAINED).amax(-1)
