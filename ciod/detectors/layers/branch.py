"""Branches: new classes on a separate small head next to a frozen detector, whose outputs stay bit-identical.

A branch reads maps that the frozen detector computes anyway (those of the backbone, the neck and the towers of the
head) and predicts class, box and objectness of its own classes. Its positions are appended to the detector's: existing
ones do not change, and decoding merges both like any other positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ciod.core.errors import CiodError
from ciod.core.types import Matches, Outputs, Targets
from ciod.detectors.layers.blocks import conv
from ciod.detectors.layers.class_layers import ClassConv, start_rare
from ciod.detectors.layers.modules import Layers, bias_of
from ciod.detectors.layers.refiner import Refiner

OFF = -30.0  # logit of a class that a position cannot have: probability 1e-13, far below every threshold


class BranchLevel(nn.Module):
    """One level: layers on the frozen towers, and a parallel bottleneck over three maps: the backbone's, the neck's and
    one from the level above it (with twice the resolution).

    The neck keeps what the old classes needed. What new classes need is often still in the backbone's maps, and small
    marks on large objects are only in those of high resolution. Batch normalisation matters most: without it the same
    branch learns a third less in the same steps (measured: docs/results/extend-cards6.md). The box layer starts as a
    copy of the frozen one, so that boxes fit objects from the first step.

    Args:
        tap: channels of the backbone's map.
        width: channels of the neck's map and of the towers.
        above: channels of the map from the level above; 0: there is none.
        inner: channels of the bottleneck; 0: only the layers on the towers, and the backbone's map is passed down.
        blocks: sizes of the blocks of class rows.
        box: the frozen box layer; None: the level predicts classes only.
        refine: a second, residual block, for the cheapest level.
    """

    def __init__(
        self,
        tap: int,
        width: int,
        above: int,
        inner: int,
        blocks: Sequence[int],
        box: nn.Conv2d | None,
        *,
        refine: bool,
    ):
        super().__init__()
        self.inner = inner
        self.given = inner or tap
        """Channels that are passed down."""
        if inner:
            most, less = max(1, 3 * inner // 4), max(1, 3 * inner // 8)
            self.tap, self.neck = conv(tap, most, 1), conv(width, less, 1)
            self.above = conv(above, less, 3, 2, depthwise=True) if above else None
            self.mix = conv(most + less + (less if above else 0), inner, 3, depthwise=True)
            self.refine = conv(inner, inner, 3, depthwise=True) if refine else None
        self.cls = ClassConv(width + inner, 0)
        for rows in blocks:
            self.cls.grow(rows)
        if box is None:
            return
        self.reg = nn.Conv2d(width + inner, 4, 1)
        self.obj = nn.Conv2d(width + inner, 1, 1)
        with torch.no_grad():
            self.reg.weight.zero_()
            self.reg.weight[:, :width] = box.weight
            bias_of(self.reg).copy_(bias_of(box))
        nn.init.normal_(self.obj.weight, std=0.01)
        start_rare(self.obj)

    def forward(
        self, tap: Tensor, neck: Tensor, above: Tensor | None, cls: Tensor, reg: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Class, box and objectness maps, and the map that is passed down."""
        x = self.read(tap, neck, above)
        if self.inner:
            cls, reg = torch.cat([cls, x], 1), torch.cat([reg, x], 1)
        return self.cls(cls), self.reg(reg), self.obj(reg), x

    def classes(self, tap: Tensor, neck: Tensor, above: Tensor | None, cls: Tensor) -> tuple[Tensor, Tensor]:
        """The class map alone, and the map that is passed down."""
        x = self.read(tap, neck, above)
        return self.cls(torch.cat([cls, x], 1) if self.inner else cls), x

    def read(self, tap: Tensor, neck: Tensor, above: Tensor | None) -> Tensor:
        """The bottleneck's map, which is passed down; the backbone's where there is no bottleneck."""
        x = tap
        if self.inner:
            parts = [self.tap(tap), self.neck(neck)]
            if self.above is not None and above is not None:
                parts.append(self.above(above))
            x = self.mix(torch.cat(parts, 1))
            if self.refine is not None:
                x = x + self.refine(x)
        return x


def default_widths(width: int) -> tuple[int, int, int]:
    """Channels of the bottleneck per level if the sizes of the new objects are unknown."""
    return max(4, width // 10), max(8, 3 * width // 8), max(12, 5 * width // 8)


def row_blocks(classes: int, new: int) -> list[int]:
    """Sizes of the blocks of class rows of a branch of ``classes``, the last ``new`` of which are new: a block per
    taught class, because they may not be adjacent, and one of the new ones."""
    return [1] * (classes - new) + [new] * (new > 0)


class Branch(nn.Module):
    """The head of the classes ``columns``, of which only the last ``new`` are new; one ``BranchLevel`` per level."""

    levels: Layers[BranchLevel]
    refiner: Refiner | None
    """Its second stage. None: of a model that was extended before there were such, or without boxes of its own."""

    def __init__(
        self,
        taps: Sequence[int],
        width: int,
        columns: Sequence[int],
        new: int,
        inner: Sequence[int],
        boxes: Sequence[nn.Conv2d | None],
        refiner: Refiner | None = None,
    ):
        super().__init__()
        self.columns = list(columns)
        self.refiner = refiner
        rows = row_blocks(len(self.columns), new)
        self.levels = Layers()
        above = 0
        for t, n, b in zip(taps, inner, boxes, strict=True):
            level = BranchLevel(t, width, above, n, rows, b, refine=len(self.levels) == len(boxes) - 1)
            self.levels.append(level)
            above = level.given

    def select(self, place: Mapping[int, int]) -> bool:
        """Keeps the classes in ``place`` (old number → new). False: none is left."""
        rows = [i for i, c in enumerate(self.columns) if c in place]
        self.columns = [place[self.columns[i]] for i in rows]
        for level in self.levels:
            level.cls.select(rows)
        if self.refiner is not None:
            self.refiner.cls.select(rows)
        return bool(rows)

    def forward(
        self, taps: Sequence[Tensor], neck: Sequence[Tensor], cls: Sequence[Tensor], reg: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        maps: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        above = None
        for level, tap, near, c, r in zip(self.levels, taps, neck, cls, reg, strict=True):
            *made, above = level(tap, near, above, c, r)
            for found, new in zip(maps, made, strict=True):
                found.append(new)
        return maps


class ChildBranch(Branch):
    """Names the objects of one class, the parent: its boxes and scores are the parent's.

    At every position the score of a child is the parent's score times the child's own, so children are found where
    their parent is, and nowhere else. Arguments: see ``Branch``.

    Args:
        parent: class number of the parent.
        refiner: its second stage, which corrects no boxes; None: of a model that was extended before there were such.
    """

    def __init__(
        self,
        taps: Sequence[int],
        width: int,
        columns: Sequence[int],
        inner: Sequence[int],
        *,
        parent: int,
        refiner: Refiner | None = None,
    ):
        super().__init__(taps, width, columns, len(columns), inner, [None] * len(inner), refiner)
        self.parent = parent

    def names(self, taps: Sequence[Tensor], neck: Sequence[Tensor], cls: Sequence[Tensor]) -> list[Tensor]:
        """Class maps per level."""
        maps, above = [], None
        for level, tap, near, c in zip(self.levels, taps, neck, cls, strict=True):
            made, above = level.classes(tap, near, above, c)
            maps.append(made)
        return maps

    def select(self, place: Mapping[int, int]) -> bool:
        """See ``Branch``. The parent's number changes too."""
        kept = super().select(place)
        self.parent = place.get(self.parent, self.parent)
        return kept


def under(parent: Outputs, channel: int, logits: Tensor) -> Outputs:
    """The positions of children at those of their parent.

    Args:
        parent: the positions of the part that has the parent.
        channel: the parent's channel in them.
        logits: [B, P, k] of the children.

    Returns:
        Boxes of the parent; its score, as a logit, is the objectness of the children.
    """
    score = parent.logits[..., channel].sigmoid()
    if parent.objectness is not None:
        score = score * parent.objectness.sigmoid()
    score = score.clamp(1e-7, 1 - 1e-7)
    return replace(parent, logits=logits, objectness=(score / (1 - score)).log())


def columns_of(known: Sequence[str], names: Sequence[str], taught: Sequence[str]) -> list[int]:
    """Class numbers of a new branch: of ``taught``, which are among ``known``, then of the new ``names``.

    Raises:
        CiodError: a taught class is not known, or there are no classes.
    """
    if set(taught) - set(known) or not (names or taught):
        raise CiodError(f"A branch needs classes, the taught ones among the known; got {[*names]}, {[*taught]}.")
    return [*(i for i, n in enumerate(known) if n in taught), *range(len(known), len(known) + len(names))]


def table_of(parts: Sequence[Sequence[int]], classes: int) -> Tensor:
    """[parts, classes] int64: the channel of a class in a part, or the part's number of channels if it has none."""
    table = torch.zeros(len(parts), classes, dtype=torch.long)
    for row, columns in zip(table, parts, strict=True):
        row.fill_(len(columns))
        row[list(columns)] = torch.arange(len(columns))
    return table


def scatter_classes(outputs: Outputs, row: Tensor) -> Outputs:
    """Logits of some classes → logits of all, the others OFF. A gather: kept values keep their bits.

    Args:
        row: [C] int64 of ``table_of``.
    """
    # Computed, so that in a graph it has the size of any batch.
    off = (outputs.boxes[..., :1] > 0).to(outputs.logits.dtype) * 0 + OFF
    return replace(outputs, logits=torch.cat([outputs.logits, off], 2).index_select(2, row))


def append(parts: Sequence[Outputs]) -> Outputs:
    """Positions of all parts in order; features and towers are those of the first.

    What only the first part has at its positions (distributions, anchors, deltas, first boxes) is left out.
    """

    def cat(name: str, dim: int) -> Tensor:
        return torch.cat([getattr(p, name) for p in parts], dim)

    return replace(
        parts[0],
        logits=cat("logits", 1),
        boxes=cat("boxes", 1),
        points=cat("points", 0),
        strides=cat("strides", 0),
        objectness=cat("objectness", 1),
        levels=tuple(n for p in parts for n in p.levels),
        near=parts[-1].near,
        parts=tuple(p.logits.shape[1] for p in parts),
        distribution=None,
        anchors=None,
        deltas=None,
        coarse=None,
    )


def part(outputs: Outputs, i: int, of: int) -> Outputs:
    """The positions of part ``i``, of ``of`` equal parts."""
    n, levels = outputs.logits.shape[1] // of, len(outputs.levels) // of
    own = slice(i * n, (i + 1) * n)
    assert outputs.objectness is not None
    return replace(
        outputs,
        logits=outputs.logits[:, own],
        boxes=outputs.boxes[:, own],
        points=outputs.points[own],
        strides=outputs.strides[own],
        objectness=outputs.objectness[:, own],
        levels=outputs.levels[i * levels : (i + 1) * levels],
        parts=(),
    )


def last(outputs: Outputs, levels: int) -> Outputs:
    """The positions of the last part, which has so many ``levels``."""
    own = sum(outputs.levels[-levels:])
    assert outputs.objectness is not None
    return replace(
        outputs,
        logits=outputs.logits[:, -own:],
        boxes=outputs.boxes[:, -own:],
        points=outputs.points[-own:],
        strides=outputs.strides[-own:],
        objectness=outputs.objectness[:, -own:],
        levels=outputs.levels[-levels:],
        parts=(),
        root=False,
    )


def only(targets: Targets, own: Tensor) -> Targets:
    """The same targets, where those of other classes are not valid; ``own`` is [C] bool."""
    return replace(targets, valid=targets.valid & own[targets.labels])


def join(matches: Sequence[Matches], positions: int) -> Matches:
    """Matches of the parts as matches of all positions; each part has ``positions`` positions."""
    return Matches(
        torch.cat([m.position + i * positions for i, m in enumerate(matches)], 1),
        torch.cat([m.target for m in matches], 1),
        torch.cat([m.iou for m in matches], 1),
        torch.cat([m.valid for m in matches], 1),
        torch.cat([m.positive for m in matches], 1),
    )
