"""Statistics from training pictures: of the maps a branch reads, and for the arbiter, of their objects and of boxes
without objects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torchvision
from torch import Tensor

from ciod.core.boxes import gather_rows, pairwise_iou
from ciod.core.types import Batch, Outputs, Targets
from ciod.data.augment import Augment, TrainTransform
from ciod.data.index import Index
from ciod.data.loader import Order, batches, eval_loader, train_loader
from ciod.detectors.base import Detector
from ciod.detectors.branched import Branched
from ciod.detectors.layers.arbiter import Arbiter
from ciod.detectors.maps_branches import MapsBranches

OBSERVED = 32  # pictures on which maps are measured
MOST = 4000  # pictures that are used, of each index
RANDOM = 4  # boxes at random per picture
CLAIMED = 10  # boxes per picture that a branch, or the detector under it, takes for objects
BRANCH, OWN = 0.05, 0.3  # their minimum scores
APART = 0.2  # IoU with all objects below which a box shows none
PROTOTYPES = 4  # of boxes without an object, per extension
VIEWS, ENOUGH = 4, 1200  # views of each picture with objects: at least 2, and no more than these if they make that many
FOLDS = 4  # of the objects of a class, to judge each by statistics without its fold


@torch.no_grad()
def standardise(detector: Branched, pictures: Index) -> None:
    """The newest branch reads maps with mean 0 and deviation 1, as they are on up to 32 of the pictures, spread evenly.

    Nothing is done for a detector whose maps are normalised already, and without pictures.
    """
    if not isinstance(detector, MapsBranches) or not len(pictures):
        return
    training = detector.training
    detector.eval()
    chosen = pictures.select(np.unique(np.linspace(0, len(pictures) - 1, OBSERVED).astype(int)))
    found = [batch.images for batch in _batches(chosen, detector, 8, 0)]
    detector.observe(torch.cat(found))
    detector.train(training)


@torch.no_grad()
def gather(
    detector: Branched,
    learnt: Index,
    *,
    without: Sequence[Index] = (),
    seed: int = 0,
    batch: int = 16,
    workers: int = 0,
) -> None:
    """Adds the statistics of the newest branch's classes to the detector's arbiter, which is created if needed.

    Objects are read in two to four views of their pictures: with one, the covariance is too small, and the arbiter too
    sure on new pictures (docs/results/extend-again.md).

    Args:
        detector: with a trained branch. Nothing is done if it has no arbiter.
        learnt: the pictures the branch was trained on, labelled in the order of the detector's classes.
        without: pictures that show none of its classes.
    """
    arbiter = detector.arbiter or detector.add_arbiter()
    if arbiter is None:
        return
    training, on = detector.training, arbiter.on
    detector.eval()
    arbiter.on = False
    random = torch.Generator().manual_seed(seed)
    learnt, without = _some(learnt, seed), [_some(index, seed) for index in without]
    objects: list[_Objects] = []
    nothing: list[Tensor] = []
    for index in (learnt, *without):
        for found in _batches(index, detector, batch, workers):
            outputs = detector(found.images.to(detector.device, non_blocking=True))
            if index is learnt:
                objects.append(_pooled(detector, arbiter, outputs, found))
            targets = found.targets.to(detector.device)
            boxes, real = _apart(_candidates(outputs, found, random), targets, index is learnt)
            image, place = torch.nonzero(real, as_tuple=True)
            nothing.append(arbiter.pool(outputs.maps, boxes[image, place], image))
    views = max(2, min(VIEWS, ENOUGH // max(1, len(learnt))))
    for found in _views(learnt, detector, batch, workers, seed, views - 1):
        outputs = detector(found.images.to(detector.device, non_blocking=True))
        objects.append(_pooled(detector, arbiter, outputs, found))
    x, row, image = (torch.cat(v) for v in zip(*objects, strict=True))
    order = torch.from_numpy(np.argsort(learnt.by_name())).to(image.device)
    arbiter.learn(x, row, _folds(row, order[image]), 1 / views)
    empty = torch.cat(nothing)
    if len(empty):
        arbiter.add_nothing(*_prototypes(empty, arbiter.covariance().diagonal().float(), random))
    arbiter.on = on
    detector.train(training)


_Objects = tuple[Tensor, Tensor, Tensor]  # features, class and picture of each object


def _pooled(detector: Branched, arbiter: Arbiter, outputs: Outputs, batch: Batch) -> _Objects:
    """The objects of the newest branch in a batch."""
    targets = batch.targets.to(detector.device)
    columns = torch.tensor(detector.parts[-1], device=detector.device)
    image, place = torch.nonzero(targets.valid & torch.isin(targets.labels, columns), as_tuple=True)
    x = arbiter.pool(outputs.maps, targets.boxes[image, place], image)
    assert batch.index is not None
    return x, targets.labels[image, place], batch.index.to(image.device)[image]


def _folds(row: Tensor, place: Tensor) -> Tensor:
    """[n] folds of objects: of each class, its pictures in order, cut into ``FOLDS`` runs, because neighbours resemble
    each other. -1 where all objects of a class are in one picture.

    Args:
        row: [n] their classes.
        place: [n] places of their pictures in the order of file names.
    """
    pairs, of = torch.stack([row, place]).unique(dim=1, return_inverse=True)  # sorted by class, then by place
    first = torch.searchsorted(pairs[0].contiguous(), pairs[0].contiguous())
    n = torch.bincount(pairs[0])[pairs[0]]
    fold = (torch.arange(len(n), device=n.device) - first) * FOLDS // n
    return torch.where(n > 1, fold, -1)[of]


def _some(index: Index, seed: int) -> Index:
    if len(index) <= MOST:
        return index
    return index.select(np.sort(np.random.default_rng([seed, 13]).permutation(len(index))[:MOST]))


def _batches(index: Index, detector: Detector, batch: int, workers: int) -> Iterator[Batch]:
    size, fill, place = detector.input.size, detector.input.fill, detector.input.place
    pin = detector.device.type == "cuda"
    return batches(eval_loader(index, size, fill, batch=batch, workers=workers, pin=pin, place=place))


def _views(index: Index, detector: Detector, batch: int, workers: int, seed: int, number: int) -> Iterator[Batch]:
    """``number`` views of each picture, with zoom, place and colours as in training. They are not mirrored: a mirrored
    object may be another."""
    transform = TrainTransform(Augment(flip=0), detector.input.size, detector.input.fill, detector.input.place)
    pin, batch = detector.device.type == "cuda", min(batch, max(1, len(index)))
    if not len(index):
        return
    loader = train_loader(index, transform, batch=batch, seed=seed, task=0, workers=workers, pin=pin, cache="off")
    order = loader.batch_sampler
    assert isinstance(order, Order)
    for order.epoch in range(number):
        yield from batches(loader)


def _candidates(outputs: Outputs, batch: Batch, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Boxes [B, n, 4] that may show nothing, and which of them are real [B, n]: boxes that the parts of the detector
    take for objects, and random boxes."""
    scores, boxes = outputs.scores().amax(2).split(outputs.parts, 1), outputs.boxes.split(outputs.parts, 1)
    chosen, real = [], []
    for i, score in enumerate(scores):
        best, place = score.topk(min(CLAIMED * 4, score.shape[1]), 1)
        near = gather_rows(boxes[i], place)
        image = torch.arange(len(near), device=near.device).repeat_interleave(near.shape[1])
        kept = torchvision.ops.batched_nms(near.flatten(0, 1), best.flatten(), image, 0.65)
        single = torch.zeros_like(image, dtype=torch.bool)
        single[kept] = True
        single = single.view_as(best) & (best > (BRANCH if i else OWN))
        chosen.append(near)
        real.append(single & (single.cumsum(1) <= CLAIMED))
    assert batch.frames is not None
    extent = (batch.sizes.flip(1) * batch.frames[:, :2])[:, None]  # width and height in the batch image
    share = torch.exp(torch.rand(len(near), RANDOM, 2, generator=random) * -2.5)  # 8 to 100 % of a side
    corner = torch.rand(len(near), RANDOM, 2, generator=random) * (1 - share)
    drawn = torch.cat([corner, corner + share], 2) * extent.tile(1, 1, 2) + batch.frames[:, None, 2:].tile(1, 1, 2)
    chosen.append(drawn.to(near))
    real.append(torch.ones_like(chosen[-1][..., 0], dtype=torch.bool))
    return torch.cat(chosen, 1), torch.cat(real, 1)


def _apart(given: tuple[Tensor, Tensor], targets: Targets, labelled: bool) -> tuple[Tensor, Tensor]:
    """The boxes, and which of them are on no object."""
    boxes, real = given
    if labelled:
        overlap = pairwise_iou(boxes, targets.boxes).masked_fill(~targets.valid[:, None], 0)
        real = real & (overlap.amax(2) < APART)
    return boxes, real


def _prototypes(x: Tensor, variance: Tensor, random: torch.Generator, rounds: int = 10) -> tuple[Tensor, Tensor]:
    """Means and counts of the ``PROTOTYPES`` clusters of k-means on [n, F]."""
    scaled = x / variance.clamp(min=1e-9).sqrt()
    start = torch.randperm(len(x), generator=random)[:PROTOTYPES].to(x.device)
    centre = scaled[start]
    for _ in range(rounds):
        group = torch.cdist(scaled, centre).argmin(1)
        n = torch.bincount(group, minlength=len(centre)).to(x)
        total = torch.zeros_like(centre).index_add(0, group, scaled)
        centre = torch.where(n[:, None] > 0, total / n.clamp(min=1)[:, None], centre)
    mean = torch.zeros_like(centre).index_add(0, group, x) / n.clamp(min=1)[:, None]
    return mean[n > 0], n[n > 0]
