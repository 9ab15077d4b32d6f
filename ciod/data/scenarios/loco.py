"""LoCo: class groups that rarely share an image, from the graph of co-occurrences (low co-occurrence protocol).

The published clusters are not available to us, so this rule is our own, and deterministic. The weight between two
classes is the number of training images that show both. Groups of the required sizes are grown greedily. Then classes
are swapped between groups as long as that lowers the weight between groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ciod.data.index import Index


def presence(index: Index) -> np.ndarray:
    """[I, C] bool: which images show which classes (including crowd boxes)."""
    shown = np.zeros((len(index), len(index.class_names)), dtype=bool)
    shown[index.image, index.labels] = True
    return shown


def cooccurrence(index: Index) -> np.ndarray:
    """[C, C] int64: images that show both classes; 0 on the diagonal."""
    shown = presence(index).astype(np.float32)  # exact: sums stay below 2^24
    together = (shown.T @ shown).astype(np.int64)
    np.fill_diagonal(together, 0)
    return together


def clusters(together: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """Rows of the classes of each group, ascending; classes that fit into no group are in none.

    Args:
        together: [C, C] symmetric weights; the order of the rows breaks ties.
        sizes: sizes of the groups, in the order of the tasks.

    Source: greedy growth, then the pairwise swaps of Kernighan and Lin (1970), best first.
    """
    n = len(together)
    sizes = [*sizes, *([n - sum(sizes)] if sum(sizes) < n else [])]
    group = np.full(n, -1)
    for g, size in enumerate(sizes):
        free = np.flatnonzero(group < 0)
        group[free[together[np.ix_(free, free)].sum(1).argmax()]] = g
        for _ in range(size - 1):
            free = np.flatnonzero(group < 0)
            group[free[together[np.ix_(free, np.flatnonzero(group == g))].sum(1).argmax()]] = g
    member = np.eye(len(sizes), dtype=np.int64)
    while True:  # every swap lowers a sum of integers, so this ends
        links = together @ member[group]  # [C, G] weight of a class to each group
        own = links[np.arange(n), group]
        gain = links[:, group] - own[:, None]  # [a, b]: a moves to b's group
        gain = gain + gain.T - 2 * together
        gain[group[:, None] == group[None, :]] = 0
        if gain.max(initial=0) <= 0:
            return [np.flatnonzero(group == g) for g in range(len(sizes))]
        a, b = np.unravel_index(gain.argmax(), gain.shape)
        group[[a, b]] = group[[b, a]]


def groups(index: Index, ordered: Sequence[str], sizes: Sequence[int]) -> list[tuple[str, ...]]:
    """Class names of each task; within a task they keep the order of ``ordered``."""
    names = tuple(ordered)
    found = clusters(cooccurrence(index.relabel(names)), sizes)
    return [tuple(names[int(c)] for c in rows) for rows in found[: len(sizes)]]


def deal(index: Index, tasks: Sequence[tuple[str, ...]], seed: int) -> np.ndarray:
    """[I] int64: the task that gets the image, drawn among the tasks of its classes; -1: no task."""
    shown = presence(index)
    where = {name: i for i, name in enumerate(index.class_names)}
    rows = [shown[:, [where[n] for n in names]].any(1) for names in tasks]
    wanted = np.stack(rows, 1)
    lots = np.random.default_rng(seed).random(wanted.shape) * wanted
    return np.where(wanted.any(1), lots.argmax(1), -1)


def shared_images(index: Index, tasks: Sequence[tuple[str, ...]]) -> int:
    """Number of images that show classes of more than one task, which the clustering minimises."""
    shown = presence(index)
    where = {name: i for i, name in enumerate(index.class_names)}
    return int((np.stack([shown[:, [where[n] for n in names]].any(1) for names in tasks]).sum(0) > 1).sum())
