"""What the model as it was finds in the new images, kept in the run folder: a resumed extension does not look again."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ciod.core.files import atomic_write
from ciod.core.types import Detections

if TYPE_CHECKING:
    from ciod.core.results_schema import Identity
    from ciod.data.index import Index
    from ciod.detectors.base import Detector
    from ciod.extension.measure import Measure
    from ciod.extension.settings import Extend

NAME = "looked.npz"
MOST = 5_000_000  # detections, of 24 bytes each


def detections(measured: Measure, before: Detector, identity: Identity, place: Path) -> list[Detections]:
    """What the model as it was finds in the new images: computed once.

    Args:
        place: the file that keeps it; an earlier process may have written it.
    """
    train = measured.task.train
    own = key(measured.settings, identity, before)
    known = read(place, own, train, before.class_names)
    there = measured.world.all(known is not None)  # of all processes, as all of them look together
    if there and known is not None:
        measured.remember(train, known)
    found = measured.of_old(before, train)
    if not there and measured.world.main:
        write(place, own, found)
    return found


def key(settings: Extend, identity: Identity, before: Detector) -> str:
    """Fingerprint of everything that the detections depend on."""
    asked = {"eval": settings.eval.model_dump(mode="json"), "size": before.input.size, "input": settings.input}
    parts = [asked, identity.get("data"), identity.get("model"), identity.get("code"), before.class_names]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def write(path: Path, key: str, found: Sequence[Detections]) -> None:
    """Writes the detections of every image, if they are not too many."""
    if sum(len(d) for d in found) > MOST:
        return
    counts = np.array([len(d) for d in found], np.int64)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(d.boxes for d in found)])
    scores = np.concatenate([np.zeros(0, np.float32), *(d.scores for d in found)])
    labels = np.concatenate([np.zeros(0, np.int64), *(d.labels for d in found)]).astype(np.int32)
    content = io.BytesIO()
    np.savez(content, key=np.array(key), counts=counts, boxes=boxes, scores=scores, labels=labels)
    atomic_write(path, content.getvalue())


def read(path: Path, key: str, index: Index, names: tuple[str, ...]) -> list[Detections] | None:
    """The detections on ``index``; None: there are none, of this key, or the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key or len(file["counts"]) != len(index):
                return None
            ends = np.cumsum(file["counts"])[:-1]
            columns = [np.split(file[k], ends) for k in ("boxes", "scores", "labels")]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return [Detections(b, s, y, names) for b, s, y in zip(*columns, strict=True)]
