"""The results of every test picture: which detections are right, and which class takes which object.

From these columns one can compute AP50 on resampled pictures, and which classes take the boxes of which others.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ciod.core.boxes import iou_table
from ciod.core.errors import CiodError
from ciod.core.files import atomic_write, explained
from ciod.core.types import Detections
from ciod.data.index import Index

NAME = "pictures.npz"
SHOWN = 0.3  # score from which a box counts as shown to a user
SAME = 0.5  # IoU from which a box is on an object
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Pictures:
    """The outcome of an evaluation, per picture. Class labels are positions in ``classes``."""

    classes: tuple[str, ...]
    files: tuple[str, ...]  # [I] names of the pictures
    image: np.ndarray  # [D] int64 picture of each detection that counts
    label: np.ndarray  # [D] int64
    score: np.ndarray  # [D] float32
    right: np.ndarray  # [D] bool: it is matched with an object of its class at IoU 0.5
    object_image: np.ndarray  # [T] int64 picture of each object
    object_label: np.ndarray  # [T] int64
    taken: np.ndarray  # [T] int64: class of the shown box with the highest score on the object; -1: none


def of(found: Sequence[Detections], truth: Index, classes: Sequence[str], max_detections: int = 100) -> Pictures | None:
    """Matches detections with objects at IoU 0.5 as COCO does: per picture and class, the highest score first.

    None for federated annotations (LVIS), in which a detection without an object may be right.

    Crowd and difficult boxes are not objects; a detection that matches only such a box is neither right nor wrong.

    Args:
        found: one per picture of ``truth``.
        classes: those that are evaluated.
        max_detections: number of best detections per class and picture that count.
    """
    if truth.federated is not None:
        return None
    where = {n: i for i, n in enumerate(classes)}
    known = np.array([where.get(n, -1) for n in truth.class_names] or [-1], np.int64)
    parts: list[tuple[np.ndarray, ...]] = []
    objects: list[tuple[np.ndarray, ...]] = []
    for i, d in enumerate(found):
        rows = truth.of_image(i)
        boxes, labels = truth.boxes[rows], known[truth.labels[rows]]
        crowd = truth.crowd[rows]
        ignored = crowd | truth.difficult[rows]
        own = np.array([where.get(n, -1) for n in d.class_names] or [-1], np.int64)[d.labels]
        overlap = iou_table(d.boxes, boxes)
        if ignored.any():
            overlap[:, ignored] = _inside(d.boxes, boxes[ignored])
        for c in np.unique(own[own >= 0]):
            mine = np.flatnonzero(own == c)
            mine = mine[np.argsort(-d.scores[mine], kind="stable")][:max_detections]
            theirs = np.flatnonzero(labels == c)
            state = _match(overlap[np.ix_(mine, theirs)], ignored[theirs])
            counts = state >= 0
            n = int(counts.sum())
            parts.append((np.full(n, i), np.full(n, c), d.scores[mine][counts], state[counts] == 1))
        real = np.flatnonzero((labels >= 0) & ~ignored)
        objects.append((np.full(len(real), i), labels[real], _takers(overlap[:, real], own, d.scores)))
    image, label, score, right = _joined(parts, (np.int64, np.int64, np.float32, bool))
    object_image, object_label, taken = _joined(objects, (np.int64,) * 3)
    files = tuple(f.name for f in truth.files)
    return Pictures(tuple(classes), files, image, label, score, right, object_image, object_label, taken)


def _inside(boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """[D, K] share of each box inside each crowd region, which replaces IoU there."""
    low = np.maximum(boxes[:, None, :2], crowd[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], crowd[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    return shared / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(-1), 1e-9)[:, None]


def _match(overlap: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """[D] 1: right, 0: wrong, −1: matched with something that is ignored. Detections are sorted by score."""
    state, free = np.zeros(len(overlap), np.int64), np.ones(overlap.shape[1], bool)
    for k in np.flatnonzero((overlap >= SAME).any(1)):
        row = overlap[k]
        for kind, candidates in ((1, free & ~ignored), (-1, ignored)):
            fits = np.where(candidates & (row >= SAME), row, -1.0)
            if len(fits) and fits.max() >= SAME:
                best = len(fits) - 1 - int(fits[::-1].argmax())  # COCO takes the last of equal ones
                state[k], free[best] = kind, False
                break
    return state


def _takers(overlap: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[T] class of the shown box with the highest score on each object; −1: none. ``overlap``: [D, T]."""
    if not len(scores):
        return np.full(overlap.shape[1], -1, np.int64)
    standing = np.where((overlap >= SAME) & (scores >= SHOWN)[:, None] & (labels >= 0)[:, None], scores[:, None], -1.0)
    best = standing.argmax(0)
    return np.where(standing.max(0) >= 0, labels[best], -1)


def _joined(parts: Sequence[tuple[np.ndarray, ...]], types: Sequence[type]) -> list[np.ndarray]:
    return [np.concatenate([np.zeros(0, t), *(p[k] for p in parts)]).astype(t) for k, t in enumerate(types)]


def write(folder: Path, pictures: Pictures | None) -> None:
    """``pictures.npz`` in the folder of a task; nothing for None."""
    if pictures is None:
        return
    out = io.BytesIO()
    columns: dict[str, Any] = {k: v for k, v in vars(pictures).items() if isinstance(v, np.ndarray)}
    columns |= {k: np.array(getattr(pictures, k), dtype=np.str_) for k in ("classes", "files")}
    np.savez_compressed(out, **columns)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / NAME, out.getvalue())


def read(folder: Path) -> Pictures | None:
    """Reads what ``write`` wrote; None if it is missing, as in folders of older versions.

    Raises:
        CiodError: the file cannot be read.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            columns = {k: content[k] for k in Pictures.__dataclass_fields__}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as e:
        raise CiodError(f"{path} cannot be read ({type(e).__name__}); remove it, or train the run again.") from e
    names = {k: tuple(columns.pop(k).tolist()) for k in ("classes", "files")}
    return Pictures(**names, **columns)


def ap50(pictures: Pictures, weights: np.ndarray) -> np.ndarray:
    """[B, C] AP50 of each class if every picture counts as often as ``weights`` says; NaN without an object.

    With weights of 1 it is COCO's AP50. All detections and objects of a picture that is drawn twice count twice.

    Args:
        weights: [B, I] counts of the pictures in each of B resamples.
    """
    found = np.full((len(weights), len(pictures.classes)), np.nan)
    for c in range(len(pictures.classes)):
        objects = pictures.object_image[pictures.object_label == c]
        running, pictures_of_right = _running(pictures, c), pictures.image[_sorted(pictures, c)[1]]
        size = max(1, _CELLS // max(1, running.shape[0]))
        for start in range(0, len(weights), size):
            part = weights[start : start + size]
            total = part[:, objects].sum(1)
            every = np.cumsum(running @ part.T.astype(float), 0)  # [R, b]
            right = np.cumsum(part.T[pictures_of_right], 0)
            for b in np.flatnonzero(total > 0):
                found[start + b, c] = _area(right[:, b], every[:, b], total[b])
    return found


_CELLS = 4_000_000  # right detections × resamples at a time


def _sorted(pictures: Pictures, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a class's detections, the highest score first, and the rows of the right ones."""
    mine = np.flatnonzero(pictures.label == c)
    mine = mine[np.argsort(-pictures.score[mine], kind="stable")]
    return mine, mine[pictures.right[mine]]


def _running(pictures: Pictures, c: int) -> Any:
    """[R, I] sparse: detections of each picture between one right detection and the next. Only the right ones are kept,
    because the precision at a wrong one is never the maximum of those from there on."""
    from scipy import sparse

    mine, _ = _sorted(pictures, c)
    at = np.flatnonzero(pictures.right[mine])
    before = mine[: at[-1] + 1] if len(at) else mine[:0]  # detections after the last right one have no effect
    step = np.searchsorted(at, np.arange(len(before)))
    cells = (np.ones(len(before)), (step, pictures.image[before]))
    return sparse.csr_matrix(cells, shape=(len(at), len(pictures.files)))


def _area(right: np.ndarray, every: np.ndarray, total: float) -> float:
    """Mean precision at 101 recalls, from running sums of right and of all detections at each right one."""
    if not len(right):
        return 0.0
    precision = np.maximum.accumulate((right / np.maximum(every, 1e-9))[::-1])[::-1]
    place = np.searchsorted(right / total, _RECALLS, side="left")
    return float(np.where(place < len(right), precision[np.minimum(place, len(right) - 1)], 0.0).mean())


def taken(pictures: Pictures) -> np.ndarray:
    """[C, C + 1] number of objects of each class (rows) by the class of the best box on them; the last column: no
    box."""
    classes = len(pictures.classes)
    table = np.zeros((classes, classes + 1), np.int64)
    np.add.at(table, (pictures.object_label, np.where(pictures.taken < 0, classes, pictures.taken)), 1)
    return table
