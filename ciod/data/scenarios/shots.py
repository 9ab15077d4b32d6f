"""Few-shot tasks: a few boxes per class instead of all images (``shots=5``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ciod.core.plural import counted
from ciod.data.index import Index


def choose(index: Index, rows: np.ndarray, counts: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Rows of images, ascending, that show each class at least ``shots`` times if there are as many boxes.

    The images are shuffled. The classes are served from the rarest to the most frequent: a class takes the next image
    whose boxes of it do not exceed the number that it still needs. If no such image is left, it takes those with the
    fewest boxes. All boxes of the task's classes in a chosen image count and are shown, so no new object of a training
    image is without a label; a class that is common beside others then has more than ``shots`` boxes.

    Args:
        rows: [k] the images of the task.
        counts: [A] bool: boxes that are shown.
        shots: boxes per class.
        seed: of the shuffled order.

    Source: Wang et al., Frustratingly Simple Few-Shot Object Detection (ICML 2020), section 4.1 and its splits, where
    K boxes per class are sampled and the other boxes of their images left out.
    """
    order = np.random.default_rng(seed).permutation(len(index))
    order = order[np.isin(order, rows)]
    place = np.full(len(index), -1)
    place[order] = np.arange(len(order))
    counts = counts & (place[index.image] >= 0)
    pairs, boxes = np.unique(np.stack([index.labels[counts], place[index.image[counts]]]), axis=1, return_counts=True)
    total = np.bincount(pairs[0], boxes, len(index.class_names)).astype(int)
    by_image = np.argsort(pairs[1], kind="stable")
    starts = np.searchsorted(pairs[1][by_image], np.arange(len(order) + 1))
    have, taken = np.zeros(len(total), int), np.zeros(len(order), bool)

    def take(image: int) -> None:
        own = by_image[starts[image] : starts[image + 1]]
        have[pairs[0, own]] += boxes[own]
        taken[image] = True

    for c in sorted(np.flatnonzero(total), key=lambda c: (total[c], c)):
        mine = np.flatnonzero(pairs[0] == c)  # in the shuffled order
        fewest = mine[np.argsort(boxes[mine], kind="stable")]
        for strict, candidates in ((True, mine), (False, fewest)):
            for k in candidates:
                if have[c] >= shots:
                    break
                if not taken[pairs[1, k]] and (not strict or have[c] + boxes[k] <= shots):
                    take(int(pairs[1, k]))
    return np.sort(order[taken])


def sentence(task: int, index: Index, names: Sequence[str], shots: int) -> str:
    """The numbers of images and boxes of a task, counted from 1.

    Args:
        index: the training images with the boxes that are shown.
        names: classes of the task.
    """
    boxes = dict(zip(index.class_names, index.boxes_per_class().tolist(), strict=True))
    each = [boxes[n] for n in names]
    few = [f"{boxes[n]} of {n}" for n in names if boxes[n] < shots]
    more = sum(n > shots for n in each)
    most = f"; {counted(more, 'class')} with more, up to {max(each)}" if more else ""
    lacking = f"; fewer in the data: {', '.join(few[:5])}{', …' if few[5:] else ''}" if few else ""
    return (
        f"Few-shot: task {task} has {counted(sum(each), 'box')} in {counted(len(index), 'image')}, at least {shots} of "
        f"each class{most}{lacking}."
    )
