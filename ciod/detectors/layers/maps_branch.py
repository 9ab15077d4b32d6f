"""The branch of a detector of which only maps are known: new classes on the tensors of a frozen foreign graph.

Like ``branch.Branch``, but every map is standardised first, since activations of foreign networks may have any scale;
there is no box layer to copy; and if the graph has no towers, the branch has small ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ciod.detectors.layers.blocks import conv
from ciod.detectors.layers.branch import row_blocks
from ciod.detectors.layers.class_layers import ClassConv, start_rare
from ciod.detectors.layers.modules import Layers, bias_of
from ciod.detectors.layers.refiner import Refiner

NARROWEST, WIDEST = 48, 96  # channels from which widths of the branch are derived
USUAL_CELLS = 4.0  # side of a box in cells before training


@dataclass(frozen=True)
class Channels:
    """Channels of the maps of one level; 0 or (): there is none."""

    stride: int
    early: int
    late: int
    towers: tuple[int, ...] = ()

    @property
    def taken(self) -> list[int]:
        """Channels of each map that is read, in the order early, late, towers."""
        return [c for c in (self.early, self.late, *self.towers) if c]


class Standard(nn.Module):
    """Maps with mean 0 and deviation 1 per channel. A channel that was constant when it was measured stays 0."""

    scale: Tensor
    shift: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(channels))

    @torch.no_grad()
    def measured(self, mean: Tensor, deviation: Tensor) -> None:
        """Sets mean and deviation per channel, [channels] each."""
        typical = deviation.square().mean().sqrt()
        silent = deviation <= 1e-6 * typical.clamp(min=1e-12)
        self.scale.copy_(torch.where(silent, 0.0, 1 / (deviation + 0.01 * typical).clamp(min=1e-12)))
        self.shift.copy_(-mean * self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None] + self.shift[:, None, None]


class MapsLevel(nn.Module):
    """One level: predictions read the towers, and a bottleneck over the backbone's map, the neck's and one from the
    level above (with twice the resolution).

    Args:
        maps: the maps that exist.
        above: channels of the map from the level above; 0: there is none.
        inner: channels of the bottleneck; 0: there is none, and the backbone's map is passed down.
        blocks: sizes of the blocks of class rows.
        refine: a second, residual block, for the level that costs least.
    """

    standards: Layers[Standard]

    def __init__(self, maps: Channels, above: int, inner: int, blocks: Sequence[int], *, refine: bool):
        super().__init__()
        self.maps, self.inner = maps, inner
        self.standards = Layers(Standard(c) for c in maps.taken)
        self.given = inner or maps.early
        """Channels that are passed down."""
        if inner:
            most, less = max(1, 3 * inner // 4), max(1, 3 * inner // 8)
            self.tap = conv(maps.early, most, 1) if maps.early else None
            self.neck = conv(maps.late, less, 1) if maps.late else None
            self.above = conv(above, less, 3, 2, depthwise=True) if above else None
            wide = most * bool(maps.early) + less * (bool(maps.late) + bool(above))
            self.mix = conv(wide, inner, 3, depthwise=True)
            self.refine = conv(inner, inner, 3, depthwise=True) if refine else None
        width = sum(maps.towers)
        self.tower = None
        if not width:
            read = maps.late or maps.early
            width = min(max(read, NARROWEST), WIDEST)
            blocks_of = (conv(width, width, 3, depthwise=True) for _ in range(2))
            self.tower = nn.Sequential(conv(read, width, 1), *blocks_of)
        self.cls = ClassConv(width + inner, 0)
        for rows in blocks:
            self.cls.grow(rows)
        self.reg = nn.Conv2d(width + inner, 4, 1)
        self.obj = nn.Conv2d(width + inner, 1, 1)
        for layer in (self.reg, self.obj):
            nn.init.normal_(layer.weight, std=0.01)
        start_rare(self.obj)
        with torch.no_grad():
            side = math.log(USUAL_CELLS)
            bias_of(self.reg).copy_(torch.tensor([0.5, 0.5, side, side]))

    def forward(self, maps: Sequence[Tensor], above: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Class, box and objectness maps, and the map that is passed down.

        Args:
            maps: those that are read, in the order of ``Channels.taken``.
        """
        ready = [standard(x) for standard, x in zip(self.standards, maps, strict=True)]
        early = ready[0] if self.maps.early else None
        late = ready[int(self.maps.early > 0)] if self.maps.late else None
        handed = None
        if self.tower is None:
            parts = ready[len(ready) - len(self.maps.towers) :]
        else:
            parts = [self.tower(early if late is None else late)]
        if self.inner:
            given = ((self.tap, early), (self.neck, late), (self.above, above))
            handed = self.mix(torch.cat([layer(x) for layer, x in given if layer is not None], 1))
            if self.refine is not None:
                handed = handed + self.refine(handed)
            parts.append(handed)
        elif early is not None:
            # Without the shift: the next layer's border is filled with 0, and its normalisation removes the mean.
            handed = maps[0] * self.standards[0].scale[:, None, None]
        x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return self.cls(x), self.reg(x), self.obj(x), handed


def width_of(levels: Sequence[Channels]) -> int:
    """The width from which those of a bottleneck are derived: the channels of the neck, within bounds."""
    found = sorted(v.late or v.early for v in levels)
    return min(max(found[len(found) // 2], NARROWEST), WIDEST)


class MapsBranch(nn.Module):
    """The head of ``columns``, of which only the last ``new`` are new; one ``MapsLevel`` per level, finest first.

    Args:
        inner: channels of the bottleneck of each level.
        refiner: its second stage; None: there is none.
    """

    levels: Layers[MapsLevel]
    refiner: Refiner | None

    def __init__(
        self,
        levels: Sequence[Channels],
        columns: Sequence[int],
        new: int,
        inner: Sequence[int],
        refiner: Refiner | None = None,
    ):
        super().__init__()
        self.columns = list(columns)
        self.refiner = refiner
        self.strides = tuple(v.stride for v in levels)
        rows = row_blocks(len(self.columns), new)
        self.levels = Layers()
        above, before = 0, 0
        for maps, n in zip(levels, inner, strict=True):
            above *= 2 * before == maps.stride
            level = MapsLevel(maps, above, n, rows, refine=len(self.levels) == len(levels) - 1)
            self.levels.append(level)
            above, before = level.given, maps.stride

    def select(self, place: Mapping[int, int]) -> bool:
        """Keeps the classes in ``place`` (old number → new). False: none is left."""
        rows = [i for i, c in enumerate(self.columns) if c in place]
        self.columns = [place[self.columns[i]] for i in rows]
        for level in self.levels:
            level.cls.select(rows)
        if self.refiner is not None:
            self.refiner.cls.select(rows)
        return bool(rows)

    def forward(self, maps: Sequence[Sequence[Tensor]]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Class, box and objectness maps of each level, from the maps of each level."""
        found: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        above = None
        for level, own in zip(self.levels, maps, strict=True):
            *made, above = level(own, above)
            for kind, x in zip(found, made, strict=True):
                kind.append(x)
        return found
