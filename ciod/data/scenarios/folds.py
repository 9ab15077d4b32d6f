"""Cross-validation: which images are trained on and which are tested, with related images on the same side.

Neighbouring frames of a video or of a burst are nearly the same picture. If one is trained on and the other tested, the
test measures memory. A group (``group=REGEX``) is therefore never divided.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ciod.core.errors import CiodError
from ciod.core.plural import counted
from ciod.data.index import Index, Problems, natural

if TYPE_CHECKING:
    from ciod.data.scenarios.protocol import Protocol


def problems(protocol: Protocol) -> list[str]:
    """Contradictions between ``folds`` and related settings, before any data is read."""
    p = protocol
    if p.folds is None:
        given = [k for k in ("fold", "group", "fold_by", "guard") if getattr(p, k) is not None]
        return [f"{k}: the data is not cut into folds; also write folds=5 fold=1." for k in given]
    found = []
    if p.fold is None:
        found.append(
            f"fold: folds={p.folds} needs the tested fold: fold=1 to fold={p.folds} (ciod compare tests each "
            f"in turn with blocks={p.folds})."
        )
    elif p.fold > p.folds:
        found.append(f"fold: there is no fold {p.fold}; folds={p.folds} has 1 to {p.folds}.")
    if p.group is not None and (wrong := _regex_problem(p.group)):
        found.append(f"group: '{p.group}' is not a regular expression ({wrong}).")
    if p.guard and p.fold_by != "order":
        found.append("guard: only folds of neighbouring images have edges; also write fold_by=order.")
    return found


def _regex_problem(pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as e:
        return str(e)
    return None


def group_names(files: Sequence[Path], pattern: str | None) -> list[str]:
    """The group of each image: what ``pattern`` finds in its file name, or in its first brackets if it has any.

    Args:
        pattern: a regular expression; None: every image is a group.

    Raises:
        CiodError: nothing is found in a name.
    """
    if pattern is None:
        return [str(f) for f in files]
    found = [re.search(pattern, f.name) for f in files]
    missed = [f.name for f, m in zip(files, found, strict=True) if m is None]
    if missed:
        raise CiodError(
            f"group: '{pattern}' finds nothing in {len(missed)} of {len(files)} file names "
            f"({', '.join(missed[:3])}{', …' if missed[3:] else ''}); every image needs a group."
        )
    return ["\0".join(m.groups("")) if m.groups() else m[0] for m in found if m]


def cut(pooled: Index, protocol: Protocol) -> tuple[Index, Index]:
    """Training and test images of one fold.

    Args:
        pooled: all images, those of training and test split.

    Raises:
        CiodError: images without a group, or fewer groups than folds.
    """
    assert protocol.folds and protocol.fold
    names = group_names(pooled.files, protocol.group)
    groups, of_image = np.unique(np.array(names, dtype=object).astype(str), return_inverse=True)
    if len(groups) < protocol.folds:
        what = f"'{protocol.group}' makes" if protocol.group else "the images make"
        raise CiodError(
            f"group: {what} {len(groups)} groups, but folds={protocol.folds} needs at least as many; write smaller "
            "groups or fewer folds."
        )
    tested = protocol.fold - 1
    if protocol.fold_by == "order":
        order = sorted(range(len(pooled)), key=lambda i: (natural(names[i]), natural(pooled.files[i].name)))
        fold = _runs(of_image, np.array(order), protocol.folds)
        spared = _near(fold[order] == tested, protocol.guard or 0)
        kept = np.ones(len(pooled), bool)
        kept[np.array(order)[spared]] = False
    else:
        fold = _spread(pooled, of_image, len(groups), protocol.folds, protocol.image_seed)
        kept = np.ones(len(pooled), bool)
    return pooled.select(np.flatnonzero((fold != tested) & kept)), pooled.select(np.flatnonzero(fold == tested))


def _runs(of_image: np.ndarray, order: np.ndarray, folds: int) -> np.ndarray:
    """[I] fold of each image: groups in their order, cut so that folds have as equal numbers of images as groups
    allow."""
    rank = np.full(of_image.max() + 1, -1)
    seen, first = np.unique(of_image[order], return_index=True)
    rank[seen[np.argsort(first)]] = np.arange(len(seen))
    sizes = np.bincount(rank[of_image])
    ends = np.cumsum(sizes)
    cuts = [0]
    for k in range(1, folds):
        nearest = int(np.abs(ends - k * len(of_image) / folds).argmin()) + 1
        cuts.append(min(max(nearest, cuts[-1] + 1), len(sizes) - folds + k))  # every fold has a group
    return (np.searchsorted(np.array(cuts), np.arange(len(sizes)), side="right") - 1)[rank[of_image]]


def _near(tested: np.ndarray, guard: int) -> np.ndarray:
    """[I] bool: images that are not tested, with at most ``guard`` − 1 others between them and a tested one."""
    reach = tested.copy()
    for _ in range(guard):
        reach = reach | np.r_[reach[1:], False] | np.r_[False, reach[:-1]]
    return reach & ~tested


def _spread(pooled: Index, of_image: np.ndarray, groups: int, folds: int, seed: int) -> np.ndarray:
    """[I] fold of each image: groups, the largest first, each put into the fold that has least of its content.

    The content is its boxes per class and its images, each as a share of all of them.
    """
    classes = len(pooled.class_names)
    holds = np.zeros((groups, classes + 1))
    np.add.at(holds, (of_image[pooled.image], pooled.labels), 1)
    holds[:, classes] = np.bincount(of_image, minlength=groups)
    holds /= np.maximum(holds.sum(0), 1)
    shuffled = np.random.default_rng(seed).permutation(groups)
    largest = shuffled[np.argsort(-holds[shuffled].max(1), kind="stable")]
    have, fold = np.zeros((folds, classes + 1)), np.empty(groups, np.int64)
    for g in largest:  # the first groups go to empty folds: nothing is less
        fold[g] = np.lexsort((have[:, classes], have @ holds[g]))[0]
        have[fold[g]] += holds[g]
    return fold[of_image]


def pool(one: Index, other: Index) -> Index:
    """The images of two splits as one; an image that both have is taken from the first."""
    names = one.class_names + tuple(n for n in other.class_names if n not in one.class_names)
    had = {str(f) for f in one.files}
    new = np.array([i for i, f in enumerate(other.files) if str(f) not in had], np.int64)
    a, b = one.relabel(names), other.select(new).relabel(names)
    if not len(b):
        return a
    unique = not np.intersect1d(a.image_ids, b.image_ids).size
    ids = np.concatenate([a.image_ids, b.image_ids]) if unique else np.arange(len(a) + len(b))
    merged = Problems()
    for part in (one, other):
        merged.merge(part.problems)
    both = {k: np.concatenate([getattr(a, k), getattr(b, k)]) for k in _COLUMNS}
    has_annotated = a.annotated is not None or b.annotated is not None
    has_stored = a.stored is not None or b.stored is not None
    return replace(
        a,
        files=[*a.files, *b.files],
        image_ids=ids,
        image=np.concatenate([a.image, b.image + len(a)]),
        own_ids=[x.ids_of(i) for x in (a, b) for i in range(len(x))] if a.own_ids or b.own_ids or not unique else [],
        category_ids=a.category_ids if a.category_ids == b.category_ids else (),
        annotated=np.concatenate([x.sizes if x.annotated is None else x.annotated for x in (a, b)])
        if has_annotated
        else None,
        stored=np.concatenate([np.zeros(len(x), bool) if x.stored is None else x.stored for x in (a, b)])
        if has_stored
        else None,
        federated=None,  # LVIS's splits are not pooled
        problems=merged,
        **both,
    )


_COLUMNS = ("sizes", "boxes", "labels", "crowd", "difficult", "area")


def sentence(protocol: Protocol, train: Index, test: Index) -> str:
    """The sizes of both sides, for reports."""
    sides = [(x, group_names(x.files, protocol.group)) for x in (train, test)]
    counts = [
        counted(len(x), "image") + (f" of {counted(len({*g}), 'group')}" if protocol.group else "") for x, g in sides
    ]
    left = f"; {counted(protocol.guard, 'image')} on each side of the tested ones in neither" if protocol.guard else ""
    return f"Fold {protocol.fold} of {protocol.folds}: training on {counts[0]}, testing on {counts[1]}{left}."
