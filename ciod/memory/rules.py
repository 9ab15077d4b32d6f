"""Which images a memory keeps: rules on plain arrays that return row numbers, sorted by priority if there is one.

Letters: N candidate images, C classes, k images to keep.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def herding(features: np.ndarray, k: int) -> np.ndarray:
    """iCaRL's order (Rebuffi et al., CVPR 2017): the next image brings the mean of the chosen images closest to the
    mean of all images.

    Args:
        features: [N, d].

    Returns:
        [N]: ``k`` rows in that order, then the others in their original order.
    """
    n = len(features)
    mean, total = features.mean(0), np.zeros(features.shape[1])
    free, chosen = np.ones(n, dtype=bool), []
    for step in range(min(k, n)):
        distance = np.linalg.norm(mean - (total + features) / (step + 1), axis=1)
        best = int(np.where(free, distance, np.inf).argmin())
        chosen.append(best)
        free[best] = False
        total = total + features[best]
    return np.concatenate([np.array(chosen, dtype=np.int64), np.flatnonzero(free)])


def calibrated(boxes: np.ndarray, wanted: np.ndarray, k: int) -> np.ndarray:
    """CL-DETR (Liu et al., CVPR 2023): greedily adds the image that brings the memory's distribution of boxes over
    classes closest to that of all data, by KL(memory ‖ data).

    Args:
        boxes: [N, C] boxes of each class in each image.
        wanted: [C] boxes of each class in all data.
    """
    n = len(boxes)
    log_wanted = np.log(np.maximum(wanted, 1e-12) / max(1e-12, wanted.sum()))
    total, free, chosen = np.zeros(boxes.shape[1]), np.ones(n, dtype=bool), []
    for _ in range(min(k, n)):
        counts = total + boxes
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        distance = (share * (np.log(np.maximum(share, 1e-12)) - log_wanted)).sum(1)
        best = int(np.where(free, distance, np.inf).argmin())
        chosen.append(best)
        free[best] = False
        total = counts[best]
    return np.array(chosen, dtype=np.int64)


def ocdm(present: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """OCDM (Liang and Li, 2022, as YOLO LwF uses it): greedily removes the image whose removal makes the numbers of
    images per class most uniform, by cross-entropy. The last image of a class is removed last. Ties are broken at
    random.

    Args:
        present: [N, C] bool, classes with a box in each image.

    Returns:
        [k] ascending rows.
    """
    # Images with the same set of classes are interchangeable, so sets are compared, of which there are far fewer.
    sets, member = np.unique(present, axis=0, return_inverse=True)
    member = member.reshape(-1)
    queues = [list(rng.permutation(np.flatnonzero(member == s))) for s in range(len(sets))]
    left = np.array([len(q) for q in queues])
    size, counts = sets.sum(1), present.sum(0).astype(np.float64)
    classes = counts > 0
    for _ in range(max(0, len(present) - k)):
        with np.errstate(divide="ignore"):
            loss = np.where(classes, np.log(np.maximum(counts, 1)) - np.log(np.maximum(counts - 1, 0)), 0.0)
        loss = np.minimum(loss, 1e9)  # removing the last image of a class: after everything else
        after = counts.sum() - size
        change = sets @ loss / max(1, classes.sum()) + np.log(np.maximum(after, 1e-12))
        change = np.where(left > 0, change, np.inf)
        ties = np.flatnonzero(np.isclose(change, change.min(), rtol=0, atol=1e-12))
        s = int(ties[rng.integers(len(ties))])
        queues[s].pop()
        left[s] -= 1
        counts -= sets[s]
    return np.sort(np.array([i for q in queues for i in q], dtype=np.int64))


def in_turn(queues: Sequence[Sequence[int]], k: int) -> np.ndarray:
    """Each class in turn adds the first image of its queue that is not chosen yet, until there are ``k``."""
    chosen: dict[int, None] = {}
    waiting = [iter(q) for q in queues]
    while waiting and len(chosen) < k:
        still = []
        for queue in waiting:
            row = next((int(i) for i in queue if int(i) not in chosen), None)
            if row is not None and len(chosen) < k:
                chosen[row] = None
                still.append(queue)
        waiting = still
    return np.array(list(chosen), dtype=np.int64)
