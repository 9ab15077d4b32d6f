"""The arbiter: which branch an object belongs to, from statistics of the frozen backbone.

A branch is never trained on the objects of the others, so it takes them for its own: scores do not separate a nut from
a bolt. But the backbone is frozen: means of its maps at the training boxes, collected in every extension, stay valid,
and linear discriminant analysis on them (as in streaming LDA, Hayes and Kanan, CVPR-W 2020) gives the probability of
each class at a box. A detection's score is multiplied by the total probability of its branch's classes; within a branch
its own scores decide. Scores of boxes that are far from all learnt objects of a branch, by Mahalanobis distance (Lee et
al., NeurIPS 2018), go to zero.

The stored statistics are sums: counts, means and one scatter matrix, no picture and no single object.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn

WIDEST = 1024  # features; the channels of a wider backbone are summed into this number, with signs
SHRINK = 0.1  # share of the diagonal in the covariance
CANDIDATES = (
    100  # best positions of all branches in an image that are judged, equally many of each; all others get their mean
)
LEAST = 20  # of a branch
SAMPLES = 4  # per side of a box, in every map
DIRECTIONS = 32  # random directions in which distances are measured
FAR = 3.0  # standard deviations beyond the mean logarithm of the objects' squared distances, where scores are halved
STEEP = 2.2  # one standard deviation closer, scores keep 90 %


class Arbiter(nn.Module):
    """Statistics of the backbone's maps for classes, and for boxes that show none of them.

    Rows of ``count`` [R] and ``mean`` [R, F]: the classes in the order of the detector, then prototypes of boxes that
    show none. ``scatter`` [F (F + 1) / 2] is the upper triangle of the sum of (x - mean)(x - mean)ᵀ over all objects.
    ``temperature`` [2] holds the sum of the logarithms of fitted temperatures, weighted by objects, and their number;
    ``distance`` [3] sum, sum of squares and number of the logarithms of the objects' squared distances.

    Args:
        channels: those of the backbone's maps.
        strides: pixels per cell of each map.
        classes: rows for classes.
        nothing: rows for prototypes of boxes without an object.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], classes: int, nothing: int = 0):
        super().__init__()
        self.channels, self.strides, self.classes = tuple(channels), tuple(strides), classes
        self.on = True
        """False: scores of branches are not changed."""
        self.features = min(WIDEST, sum(channels))
        rows, f = classes + nothing, self.features
        self.register_buffer("count", torch.zeros(rows))
        self.register_buffer("mean", torch.zeros(rows, f))
        self.register_buffer("scatter", torch.zeros(f * (f + 1) // 2))
        self.register_buffer("temperature", torch.zeros(2))
        self.register_buffer("distance", torch.zeros(3))
        drawn = torch.randn(f, DIRECTIONS, generator=torch.Generator().manual_seed(0)) / DIRECTIONS**0.5
        self.register_buffer("directions", drawn, persistent=False)
        place = torch.arange(sum(channels))
        self.register_buffer("column", place % f, persistent=False)
        # A fixed sequence of signs, so that channels that share a column do not all add up.
        sign = torch.where((place // f * 7 + place * place // 3) % 2 == 0, 1.0, -1.0)
        self.register_buffer("sign", torch.ones_like(sign) if f == sum(channels) else sign, persistent=False)
        self.register_load_state_dict_post_hook(_refresh)
        self.refresh()

    count: Tensor
    mean: Tensor
    scatter: Tensor
    temperature: Tensor
    distance: Tensor
    directions: Tensor
    column: Tensor
    sign: Tensor
    weight: Tensor
    bias: Tensor
    rows: Tensor

    # Statistics ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def pool(self, maps: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """Features of boxes: the mean of every map inside.

        Args:
            maps: [B, F, h, w] of each stride.
            boxes: [n, 4] in pixels of the batch image.
            image: [n] int64, their image in the batch.

        Returns:
            [n, features].
        """
        x = torch.cat([_inside(m.float(), boxes, image, s) for m, s in zip(maps, self.strides, strict=True)], 1)
        return x.new_zeros(len(x), self.features).index_add(1, self.column, x * self.sign)

    @torch.no_grad()
    def add(self, x: Tensor, row: Tensor, weight: float = 1.0) -> None:
        """Adds objects: ``x`` [n, features] of classes ``row`` [n]. The result does not depend on order or portions.

        Args:
            weight: of each of them; with v views of every object 1 / v.
        """
        x, rows = x.double(), len(self.count)
        seen = torch.bincount(row, minlength=rows).double()
        mean = x.new_zeros(rows, self.features).index_add(0, row, x) / seen.clamp(min=1)[:, None]
        apart = x - mean[row]
        before, n = self.count.double(), weight * seen
        total = (before + n).clamp(min=1e-6)
        step = mean - self.mean.double()
        # Chan, Golub and LeVeque's formula: two sets of observations as one, without cancellation.
        scatter = weight * apart.T @ apart + (step * (before * n / total)[:, None]).T @ step
        first, second = torch.triu_indices(self.features, self.features, device=x.device)
        self.scatter.copy_(self.scatter.double() + scatter[first, second])
        self.mean.copy_(self.mean.double() + step * (n / total)[:, None])
        self.count.copy_(before + n)
        self.refresh()

    @torch.no_grad()
    def add_nothing(self, mean: Tensor, count: Tensor) -> None:
        """Adds prototypes of boxes without an object: [k, features], and the number of boxes of each [k]."""
        self.count, self.mean = torch.cat([self.count, count.float()]), torch.cat([self.mean, mean.float()])
        self.refresh()

    @torch.no_grad()
    def grow(self, classes: int) -> None:
        """Adds rows for new classes."""
        k = self.classes
        self.count = torch.cat([self.count[:k], self.count.new_zeros(classes), self.count[k:]])
        self.mean = torch.cat([self.mean[:k], self.mean.new_zeros(classes, self.features), self.mean[k:]])
        self.classes = k + classes
        self.refresh()

    @torch.no_grad()
    def select(self, kept: Sequence[int]) -> None:
        """Keeps these classes, ascending; the covariance is not changed."""
        rows = [*kept, *range(self.classes, len(self.count))]
        self.count, self.mean, self.classes = self.count[rows], self.mean[rows], len(kept)
        self.refresh()

    # The discriminant ---------------------------------------------------------------------------------------------

    @property
    def degree(self) -> float:
        """The temperature: the mean of the fitted ones, weighted by their numbers of objects."""
        total, n = self.temperature.tolist()
        return float(torch.tensor(total / n).exp()) if n else 16.0

    def covariance(self) -> Tensor:
        """[features, features] float64, shrunk towards its diagonal."""
        f = self.features
        full = torch.zeros(f, f, dtype=torch.double, device=self.scatter.device)
        first, second = torch.triu_indices(f, f, device=full.device)
        full[first, second] = self.scatter.double()
        full = full + full.triu(1).T
        own = self.count[: self.classes]
        full = full / (own.sum() - (own > 0).sum()).clamp(min=1)
        diagonal = full.diagonal()
        # With one object per class there is no scatter: it is replaced by a share of the features' size.
        least = 1e-6 * (diagonal.mean() + (self.mean.double() ** 2).mean()) + 1e-12
        return (1 - SHRINK) * full + torch.diag(SHRINK * diagonal + least)

    @torch.no_grad()
    def refresh(self) -> None:
        """Computes the linear layer from the statistics; call it after every change of them."""
        rows = torch.nonzero(self.count > 0)[:, 0]
        mean = self.mean[rows].double()
        covariance = self.covariance()
        weight = torch.linalg.solve(covariance, mean.T).T if len(rows) else mean
        # x @ projection has, in expectation, the squared norm of the whitened x
        whiten = torch.linalg.cholesky(covariance)
        projection = torch.linalg.solve_triangular(whiten.T, self.directions.double(), upper=True)
        own = rows < self.classes
        self.listed: list[int] = rows.tolist()
        # All prototypes of nothing together weigh as much as one class.
        share = torch.where(own, 1.0, self.count[rows] / self.count[self.classes :].sum().clamp(min=1)).double()
        values = {
            "rows": rows,
            "weight": weight.float(),
            "bias": (-(weight * mean).sum(1) / 2).float(),
            "prior": share.log().float(),
            "projection": projection.float(),
            "centre": (mean @ projection).float(),
        }
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)

    prior: Tensor
    projection: Tensor
    centre: Tensor

    def discriminants(self, x: Tensor) -> Tensor:
        """[n, features] → [n, rows]: logarithms of the densities up to a constant, without prior and temperature."""
        return x @ self.weight.T + self.bias

    def posterior(self, discriminants: Tensor) -> Tensor:
        """[…, rows] → probabilities of the rows."""
        return (discriminants / self.degree + self.prior).softmax(-1)

    def distances(self, projected: Tensor) -> Tensor:
        """[…, DIRECTIONS] → logarithms of the squared distances from the rows, […, rows]."""
        square = (projected[..., None, :] - self.centre).square().sum(-1)
        return square.clamp(min=1e-6).log()

    def limit(self) -> tuple[float, float]:
        """The logarithm of the squared distance at which scores are halved, and how steeply they fall there."""
        total, squares, n = self.distance.tolist()
        if not n:
            return 1e4, 1.0
        mean = total / n
        deviation = max(0.25, (max(0.0, squares / n - mean**2)) ** 0.5)
        return mean + FAR * deviation, STEEP / deviation

    def known(self, logarithms: Tensor) -> Tensor:
        """How typical logarithms of squared distances are of learnt objects, 0..1; 1 before any was measured."""
        limit, slope = self.limit()
        return torch.sigmoid((limit - logarithms) * slope)

    @torch.no_grad()
    def learn(self, x: Tensor, row: Tensor, fold: Tensor, weight: float = 1.0) -> None:
        """Adds objects, the temperature under which their true classes are most probable among all classes, and their
        distances, each judged by statistics without the objects of its fold.

        Args:
            x, row, weight: see ``add``.
            fold: [n] int64; no fold has all objects of a class. Objects of -1 are judged by all statistics, themselves
                included.
        """
        degrees = torch.logspace(0, 7, 36, 2.0, dtype=torch.double, device=x.device)
        truth, logs = degrees.new_zeros(36), []
        for f in fold.unique().tolist():
            out = fold == f
            others, added = copy.deepcopy(self), ~out if f >= 0 else torch.ones_like(out)
            others.add(x[added], row[added], weight)
            at, place = torch.arange(int(out.sum()), device=x.device), torch.searchsorted(others.rows, row[out])
            value = others.discriminants(x[out])[:, others.rows < self.classes].double()
            log = (value[None] / degrees[:, None, None]).log_softmax(-1)
            truth += log[:, at, place].sum(1)
            logs.append(others.distances(x[out] @ others.projection)[at, place].double())
        self.add(x, row, weight)
        if logs:
            log, n = torch.cat(logs), weight * len(row)
            best = degrees[truth.argmax()].log()
            self.temperature += torch.stack([best * n, best.new_tensor(n)])
            self.distance += torch.stack([weight * log.sum(), weight * log.square().sum(), log.new_tensor(n)])

    # Prediction ---------------------------------------------------------------------------------------------------

    def judge(self, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """At boxes [B, n, 4] the probabilities of the rows, and how typical the box is of each: [B, n, rows]."""
        means = [_means(m.float(), boxes, s) for m, s in zip(maps, self.strides, strict=True)]
        layer = torch.cat([self.weight, self.projection.T])
        weights = (layer[:, self.column] * self.sign).split(self.channels, 1)
        bias = torch.cat([self.bias, self.bias.new_zeros(DIRECTIONS)])
        total = bias + torch.stack([(w @ x).transpose(1, 2) for w, x in zip(weights, means, strict=True)]).sum(0)
        discriminants, projected = total.split([len(self.bias), DIRECTIONS], 2)
        return self.posterior(discriminants), self.known(self.distances(projected))

    def weigh(
        self, scores: Tensor, boxes: Tensor, maps: Sequence[Tensor], branches: Sequence[Sequence[int]], *, first: int
    ) -> Tensor:
        """Scores [B, P, C] with those of branches multiplied by the probability of the branch's classes.

        Args:
            boxes: [B, P, 4]; those of the detector itself, then equally many of each branch.
            branches: class numbers of each branch. A branch without statistics is not changed.
            first: positions of the detector itself.
        """
        n = len(branches)
        best, near = (torch.stack(x[:, first:].chunk(n, 1), 1) for x in (scores.amax(2), boxes))
        factor = self.factors(best, near, maps, branches)
        return torch.cat([scores[:, :first], scores[:, first:] * factor.flatten(1)[..., None]], 1)

    def factors(self, best: Tensor, boxes: Tensor, maps: Sequence[Tensor], branches: Sequence[Sequence[int]]) -> Tensor:
        """The factors for the scores of branches, [B, n, P].

        Args:
            best: [B, n, P] the best score at each position of each branch.
            boxes: [B, n, P, 4].
            branches: see ``weigh``.
        """
        n, positions = best.shape[1:]
        own = self.own(branches)
        columns = torch.stack([best.new_zeros(len(self.listed)) if c is None else c for c in own])
        most = min(max(LEAST, CANDIDATES // n), positions)
        place = best.topk(most, 2).indices
        near = boxes.detach().gather(2, place[..., None].expand(-1, -1, -1, 4)).flatten(1, 2)
        probability, known = (x.unflatten(1, (n, most)) for x in self.judge(maps, near))
        columns = columns[:, None]
        right = (probability * columns).sum(3) * (known * columns).amax(3)
        rest = right.mean(2, keepdim=True).expand(-1, -1, positions)
        judged = torch.tensor([c is not None for c in own], device=best.device)[:, None]
        return torch.where(judged, rest.scatter(2, place, right), best.new_ones(()))

    def own(self, parts: Sequence[Sequence[int]]) -> list[Tensor | None]:
        """For each part [rows] float, 1 at its classes; None if one of them has no statistics."""
        known, device = set(self.listed), self.count.device
        return [
            torch.tensor([float(r in columns) for r in self.listed], device=device)
            if known.issuperset(columns)
            else None
            for columns in parts
        ]


def _refresh(arbiter: Arbiter, _: object) -> None:
    arbiter.refresh()


def _inside(m: Tensor, boxes: Tensor, image: Tensor, stride: int) -> Tensor:
    """The mean of a map [B, F, h, w] inside boxes [n, 4] → [n, F].

    Boxes are shifted by half a cell, so that a cell's value is at its centre; this works with old opsets of ONNX.
    """
    height, width = m.shape[2] * stride, m.shape[3] * stride
    low = torch.zeros(4, device=boxes.device)
    high = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    boxes = torch.minimum(torch.maximum(boxes.nan_to_num(), low), high) - stride / 2
    rois = torch.cat([image[:, None].to(boxes), boxes], 1)
    found = torchvision.ops.roi_align(m, rois, 1, 1 / stride, SAMPLES, aligned=False)
    return found[:, :, 0, 0]


def _means(m: Tensor, boxes: Tensor, stride: int) -> Tensor:
    """The mean of a map [B, F, h, w] inside boxes [B, n, 4] → [B, F, n]. Like ``_inside``, which interpolates at
    ``SAMPLES`` points per side. Their weights are those of rows times those of columns, so the mean is a product of
    matrices, which runtimes compute much faster.
    """
    height, width = m.shape[2:]
    rows = _shares(boxes[..., 1::2], height, stride)
    columns = _shares(boxes[..., 0::2], width, stride)
    return m.flatten(2) @ (rows[..., :, None] * columns[..., None, :]).flatten(2).transpose(1, 2)


def _shares(ends: Tensor, cells: int, stride: int) -> Tensor:
    """Weights of the cells in the mean along one side of boxes: [B, n, 2] in pixels → [B, n, cells]."""
    ends = ends.nan_to_num().clamp(0, cells * stride) / stride - 0.5
    extent = (ends[..., 1:] - ends[..., :1]).clamp(min=1)
    point = ends[..., :1] + extent * ((torch.arange(SAMPLES, device=ends.device) + 0.5) / SAMPLES)
    inside = (point <= cells).to(ends)  # a map is zero outside its border
    apart = point.clamp(0, cells - 1)[..., None] - torch.arange(cells, device=ends.device)
    return ((1 - apart.abs()).clamp(min=0) * inside[..., None]).mean(2)
