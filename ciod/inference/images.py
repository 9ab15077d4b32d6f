"""Detection in images, in batches: files, arrays, PIL images, lists and folders of them, frames of a video."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ciod.core.errors import CiodError
from ciod.core.files import exists, is_address, is_file, is_folder, near_path, stored
from ciod.core.types import Detections
from ciod.data.folders import NO_TARGET, below, has_pictures, why_passed_over
from ciod.data.images import SUFFIXES
from ciod.data.index import Problems
from ciod.detectors.inference import stream
from ciod.inference.quick import FEW, Engine, quick

if TYPE_CHECKING:
    from ciod.detectors.base import Detector

VIDEOS = frozenset((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv"))


def files(
    where: str | Path | Iterable[str | Path],
    *,
    videos: bool = False,
    without: Path | None = None,
    problems: Problems | None = None,
) -> list[Path]:
    """The given files, and the images (and videos) below the given folders, sorted and without duplicates.

    Links to folders are followed; hidden files and folders are skipped.

    Args:
        without: a folder to skip: that of the results.
        problems: counts skipped files in folders that could be images.

    Raises:
        CiodError: a path does not exist, or a folder has no images.
    """
    suffixes = SUFFIXES | VIDEOS if videos else SUFFIXES
    places = [where] if isinstance(where, (str, Path)) else list(where)
    found: list[Path] = []
    for place in map(stored, places):
        if is_folder(place):
            apart = None if without is None or place.resolve() == without.resolve() else without.resolve()
            inside = sorted(_below(place, suffixes, apart, Problems() if problems is None else problems))
            if not inside:
                what = "picture or video" if videos else "picture"
                raise CiodError(f"There is no {what} in {place} (looked for {', '.join(sorted(suffixes))}).")
            found += inside
        elif is_file(place):
            found.append(place)
        elif exists(place):
            raise CiodError(f"{place} is neither a file nor a folder.")
        elif is_address(place):
            raise CiodError(f"{place} is an address; ciod reads files only: download or record it first.")
        else:
            near = near_path(place, lambda p: has_pictures(p) or (is_file(p) and p.suffix.lower() in suffixes))
            raise CiodError(f"There is no file or folder {place}{near}")
    return list(dict.fromkeys(found))


def _below(folder: Path, suffixes: Collection[str], apart: Path | None, problems: Problems) -> Iterator[Path]:
    """Files with one of the suffixes in a folder and its subfolders, except ``apart``."""
    for place, names in below(folder, problems.add):
        if apart is not None and apart in (path := Path(place).resolve(), *path.parents):
            continue
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in suffixes:
                if is_file(path):
                    yield path
                elif exists(path):
                    problems.add("device, pipe or socket, skipped", str(path))
                else:
                    problems.add(NO_TARGET, str(path))
            elif kind := why_passed_over(name):
                problems.add(kind, str(path))


def predict(
    model: str | Path | Detector,
    images: str | Path | Iterable[str | Path],
    *,
    score_threshold: float = 0.3,
    nms_iou: float | None = None,
    max_detections: int = 100,
    classes: Sequence[str] | None = None,
    batch: int = 8,
    size: int | None = None,
    device: str = "auto",
    engine: Engine = "auto",
    names: Sequence[str] | None = None,
    arbiter: bool = True,
    finest: bool = False,
    detector: str | None = None,
) -> dict[Path, Detections]:
    """Detections in image files and folders. For a video: ``model.predict(list of frames)``, see ``ciod.frames``.

    Args:
        model: a detector, or a file for ``ciod.load``.
        classes: only these are detected (default: all).
        batch: images per forward pass.
        size: side of the input in pixels (default: that of the model).
        engine: what runs the network: ``torch``, ``onnx``, or ``auto``, see ``fast``.
        names: class names for a checkpoint without them.
        arbiter: False: scores of branches stay as the branches give them.
        finest: a box has one name where a class became several: see ``core.kinds.finest``.
        detector: for a model of a detector of your own, ``FILE.py:Class``.

    Raises:
        CiodError: no model, no image, a class that the model does not know, or ``engine="onnx"`` where it cannot be.
            Unreadable images are left out.
    """
    from ciod.core.distributed import pick_device
    from ciod.detectors.files.weights import open_detector

    paths = files(images)
    films = [p for p in paths if p.suffix.lower() in VIDEOS]
    if films:
        raise CiodError(f"{films[0]} is a video; give its pictures one by one: for frame in ciod.frames('{films[0]}').")
    opened = open_detector(model, size, names, arbiter=arbiter, detector=detector).to(pick_device(device))
    results = stream(
        quick(opened, engine, len(paths)) if len(paths) >= FEW or engine not in ("auto", "torch") else opened,
        paths,
        batch=batch,
        score_threshold=score_threshold,
        nms_iou=nms_iou,
        max_detections=max_detections,
        classes=classes,
        finest=finest,
    )
    return {path: found for path, _, found in results if isinstance(found, Detections)}
