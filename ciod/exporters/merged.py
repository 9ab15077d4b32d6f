"""All branches of a detector as one: the same sums in as few operators as one branch has.

A runtime spends more on each small operator than on its sums. The branches read the same maps, so their convolutions
on them become one that has the channels of all. Where each branch reads its own channels, weights between different
branches are zero. Batch normalisation is folded into the convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ciod.detectors.layers.blocks import ConvBN, DepthwiseConv
from ciod.detectors.layers.branch import Branch, BranchLevel
from ciod.detectors.layers.modules import Layers, bias_of
from ciod.detectors.layers.refiner import AROUND, SIDE, STEP, WIDTH, Refiner, chosen, log_factor, moved
from ciod.detectors.layers.sampling import samples

Rows = tuple[Tensor, Tensor]  # weights [outputs, inputs, height, width] and biases [outputs] of a convolution


class Merged(nn.Module):
    """Branches in eval mode that have bottlenecks at the same levels (see ``alike``)."""

    levels: Layers[MergedLevel]

    def __init__(self, branches: Sequence[Branch]):
        super().__init__()
        levels = list(zip(*(b.levels for b in branches), strict=True))
        before = [(), *([level.inner for level in row] for row in levels)]
        self.levels = Layers(MergedLevel(row, above) for row, above in zip(levels, before, strict=False))

    def forward(
        self, taps: Sequence[Tensor], neck: Sequence[Tensor], cls: Sequence[Tensor], reg: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each level the class maps of all branches, and their box maps followed by their objectness maps."""
        maps: tuple[list[Tensor], list[Tensor]] = ([], [])
        above = None
        for level, tap, near, c, r in zip(self.levels, taps, neck, cls, reg, strict=True):
            *made, above = level(tap, near, above, c, r)
            for found, new in zip(maps, made, strict=True):
                found.append(new)
        return maps


def alike(branches: Sequence[Branch]) -> list[list[int]]:
    """The numbers of the branches in groups that have bottlenecks at the same levels, in order of the first one."""
    groups: dict[tuple[bool, ...], list[int]] = {}
    for i, branch in enumerate(branches):
        groups.setdefault(tuple(bool(level.inner) for level in branch.levels), []).append(i)
    return list(groups.values())


class MergedLevel(nn.Module):
    """One level of all branches. Channels of the bottleneck are ordered by what they come from (backbone, neck, the
    level above), and by branch within that.

    Args:
        given: channels of the bottleneck of each branch in the level above; zeros: the backbone's map is handed down.
    """

    def __init__(self, levels: Sequence[BranchLevel], given: Sequence[int]):
        super().__init__()
        self.inner = bool(levels[0].inner)
        self.above = self.refine = None
        if self.inner:
            taps, necks = [_folded(v.tap) for v in levels], [_folded(v.neck) for v in levels]
            self.tap, self.neck = _conv(_beside(taps)), _conv(_beside(necks))
            widths = [_outputs(taps), _outputs(necks)]
            above = [v.above for v in levels if isinstance(v.above, DepthwiseConv)]
            if above:
                self.above = _Separable(above, [given] if sum(given) else None)
                widths.append([v.point.conv.out_channels for v in above])
            self.mix = _Separable([_separable(v.mix) for v in levels], widths)
            if levels[0].refine is not None:
                self.refine = _Separable([_separable(v.refine) for v in levels], [[v.inner for v in levels]])
        shared = levels[0].reg.in_channels - levels[0].inner
        inner = [v.inner for v in levels]
        cls, reg, obj = ([_rows(layers) for layers in kind] for kind in _layers(levels))
        self.cls_shared, self.cls_own = _both([cls], shared, inner)
        self.reg_shared, self.reg_own = _both([reg, obj], shared, inner)

    def forward(
        self, tap: Tensor, neck: Tensor, above: Tensor | None, cls: Tensor, reg: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class maps, box and objectness maps, and the map that is handed down."""
        x, cls, reg = tap, self.cls_shared(cls), self.reg_shared(reg)
        if self.cls_own is not None and self.reg_own is not None:
            act = nn.functional.silu
            parts = [act(self.tap(tap)), act(self.neck(neck))]
            if self.above is not None and above is not None:
                parts.append(self.above(above))
            x = self.mix(torch.cat(parts, 1))
            if self.refine is not None:
                x = x + self.refine(x)
            cls, reg = cls + self.cls_own(x), reg + self.reg_own(x)
        return cls, reg, x


class MergedRefiners(nn.Module):
    """The second stages of n branches, which read the same map."""

    def __init__(self, refiners: Sequence[Refiner]):
        super().__init__()
        self.stride = refiners[0].stride
        self.read = _conv(_beside([_folded(r.read) for r in refiners]))
        # Samples come channel by channel here, and point by point to the layer.
        hidden = [r.hidden.weight.unflatten(1, (SIDE * SIDE, WIDTH)).transpose(1, 2).flatten(1).T for r in refiners]
        self.hidden = _stacked(hidden, [bias_of(r.hidden) for r in refiners])
        change = [r.change for r in refiners if r.change is not None]
        self.change = _stacked([c.weight.T for c in change], [bias_of(c) for c in change])
        rows = [_class_rows(r) for r in refiners]
        self.cls = _stacked([w.T for w, _ in rows], [bias for _, bias in rows], CERTAIN)
        self.scored = any(r.cls.sizes for r in refiners)

    def forward(self, early: Tensor, boxes: Sequence[Tensor], scores: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Boxes and scores of each branch, with its best positions corrected. See ``Refiner.answer``.

        Args:
            early: [B, F, h, w].
            boxes: [B, P, 4] of each branch.
            scores: [B, k, P] of each branch, which has k classes.
        """
        n, (height, width) = len(boxes), early.shape[2:]
        near = nn.functional.silu(self.read(early)).reshape(-1, WIDTH, height, width)
        place, share = chosen(torch.stack([s.amax(1) for s in scores], 1))
        together, of_boxes = torch.stack(list(boxes), 1), torch.stack([place] * 4, -1)
        before = together.gather(2, of_boxes)
        x = samples(near, before.reshape(-1, before.shape[2], 4), self.stride, SIDE, AROUND)
        x = x.reshape(-1, n, before.shape[2], WIDTH * SIDE * SIDE)
        x = nn.functional.silu(x @ self.hidden[0] + self.hidden[1])
        after = moved(before, STEP * (x @ self.change[0] + self.change[1]))
        found = together.scatter(2, of_boxes, before + share * (after - before)).unbind(1)
        if not self.scored:
            return list(zip(found, scores, strict=True))
        factor = log_factor(x @ self.cls[0] + self.cls[1], share).exp().transpose(2, 3)  # [B, n, most classes, k]
        lower = []
        for i, s in enumerate(scores):
            classes = s.shape[1]
            at = torch.stack([place[:, i]] * classes, 1)
            lower.append(s.scatter(2, at, s.gather(2, at) * factor[:, i, :classes]))
        return list(zip(found, lower, strict=True))


CERTAIN = 30.0  # logit of classes that a second stage does not judge: their factor is 1


def _class_rows(refiner: Refiner) -> tuple[Tensor, Tensor]:
    """Weights [k, hidden] and biases [k] of the class rows; without any, of one class whose factor is 1."""
    if not refiner.cls.sizes:
        bias = bias_of(refiner.hidden)
        return bias.new_zeros(1, len(bias)), bias.new_full((1,), CERTAIN)
    blocks = [b for b in refiner.cls.blocks if isinstance(b, nn.Linear)]
    return torch.cat([b.weight for b in blocks]), torch.cat([bias_of(b) for b in blocks])


@torch.no_grad()
def _stacked(weights: Sequence[Tensor], biases: Sequence[Tensor], rest: float = 0.0) -> nn.ParameterList:
    """Linear layers of n branches, [inputs, outputs] and [outputs] each, as weights [n, inputs, outputs] and biases
    [n, 1, outputs]. Smaller layers are filled up with zeros, their biases with ``rest``: of a unit that is 0 nothing
    arrives in the next layer."""
    inputs, outputs = (max(w.shape[i] for w in weights) for i in (0, 1))
    wide = weights[0].new_zeros(len(weights), inputs, outputs)
    shift = biases[0].new_full((len(weights), 1, outputs), rest)
    for n, (w, bias) in enumerate(zip(weights, biases, strict=True)):
        wide[n, : w.shape[0], : w.shape[1]] = w
        shift[n, 0, : len(bias)] = bias
    return nn.ParameterList([wide, shift])


class _Separable(nn.Module):
    """Depthwise and pointwise convolutions of all branches.

    Args:
        widths: channels of each branch in each part of the input; None: all read the same map.
    """

    def __init__(self, blocks: Sequence[DepthwiseConv], widths: Sequence[Sequence[int]] | None = None):
        super().__init__()
        depth, stride = [_folded(b.depth) for b in blocks], blocks[0].depth.conv.stride[0]
        point = [_folded(b.point) for b in blocks]
        if widths is None:
            self.depth = Layers(_conv(rows, stride, depthwise=True) for rows in depth)
            widths = [_outputs(depth)]
        else:
            self.depth = Layers([_conv(_interleaved(depth, widths), stride, depthwise=True)])
        self.point = _conv(_apart(point, widths))

    def forward(self, x: Tensor) -> Tensor:
        act = nn.functional.silu
        return act(self.point(torch.cat([act(layer(x)) for layer in self.depth], 1)))


def _separable(module: nn.Module | None) -> DepthwiseConv:
    assert isinstance(module, DepthwiseConv)
    return module


def _layers(levels: Sequence[BranchLevel]) -> tuple[list[list[nn.Conv2d]], ...]:
    """Class, box and objectness layers of each branch."""
    cls = [[b for b in v.cls.blocks if isinstance(b, nn.Conv2d)] for v in levels]
    return cls, [[v.reg] for v in levels], [[v.obj] for v in levels]


def _rows(layers: Sequence[nn.Conv2d]) -> Rows:
    return torch.cat([v.weight for v in layers]), torch.cat([bias_of(v) for v in layers])


@torch.no_grad()
def _folded(block: nn.Module) -> Rows:
    """A convolution and its batch normalisation as one convolution."""
    assert isinstance(block, ConvBN)
    bn = block.bn
    assert bn.running_mean is not None and bn.running_var is not None
    scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    bias = bn.bias.double() - bn.running_mean.double() * scale
    return (block.conv.weight.double() * scale[:, None, None, None]).float(), bias.float()


def _outputs(rows: Sequence[Rows]) -> list[int]:
    return [len(bias) for _, bias in rows]


def _beside(rows: Sequence[Rows]) -> Rows:
    """Convolutions of one input as one."""
    return torch.cat([weight for weight, _ in rows]), torch.cat([bias for _, bias in rows])


def _columns(widths: Sequence[Sequence[int]]) -> list[Tensor]:
    """The channels of each branch, those of its first part first. In the merged layer the branches follow each other
    within each part."""
    flat = [n for part in widths for n in part]
    pieces = torch.arange(sum(flat)).split(flat)
    branches = len(widths[0])
    return [torch.cat([pieces[p * branches + b] for p in range(len(widths))]) for b in range(branches)]


def _interleaved(rows: Sequence[Rows], widths: Sequence[Sequence[int]]) -> Rows:
    """Depthwise convolutions of the branches as one, in the order of its input."""
    order = torch.cat(_columns(widths)).argsort()
    weight, bias = _beside(rows)
    return weight[order], bias[order]


def _apart(rows: Sequence[Rows], widths: Sequence[Sequence[int]]) -> Rows:
    """Pointwise convolutions of the branches, each on its own channels, as one with zeros between them."""
    total = sum(n for part in widths for n in part)
    weights = []
    for (weight, _), columns in zip(rows, _columns(widths), strict=True):
        wide = weight.new_zeros(len(weight), total, 1, 1)
        wide[:, columns] = weight
        weights.append(wide)
    return torch.cat(weights), torch.cat([bias for _, bias in rows])


def _both(kinds: Sequence[Sequence[Rows]], shared: int, inner: Sequence[int]) -> tuple[nn.Conv2d, nn.Conv2d | None]:
    """Layers on a map of ``shared`` channels and on the bottleneck behind it: a convolution of each."""
    rows = [r for kind in kinds for r in kind]
    front = _beside([(weight[:, :shared], bias) for weight, bias in rows])
    if not sum(inner):
        return _conv(front), None
    back = [_apart([(w[:, shared:], b) for w, b in kind], [inner]) for kind in kinds]
    weight, bias = _beside(back)
    return _conv(front), _conv((weight, torch.zeros_like(bias)))


@torch.no_grad()
def _conv(rows: Rows, stride: int = 1, *, depthwise: bool = False) -> nn.Conv2d:
    weight, bias = rows
    outputs, inputs, kernel = weight.shape[:3]
    groups = outputs if depthwise else 1
    made = nn.Conv2d(inputs * groups, outputs, kernel, stride, kernel // 2, groups=groups)
    made.weight.copy_(weight)
    bias_of(made).copy_(bias)
    return made
