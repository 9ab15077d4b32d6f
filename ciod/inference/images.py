"""A detector on pictures, in batches: files, arrays, PIL images, lists and folders of them, frames of a video."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ciod.core.errors import CiodError, ConfigError, DataError, did_you_mean
from ciod.core.files import exists, is_file, is_folder
from ciod.core.types import Detections
from ciod.data.augment import letterbox
from ciod.data.folders import below, why_passed_over
from ciod.data.images import SUFFIXES, as_array
from ciod.data.index import Problems
from ciod.data.text_files import nfc

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
    """Files as they are, folders as the pictures (and videos) below them, sorted; each once.

    Links to folders are followed; hidden files and folders are skipped.

    Args:
        without: a folder that is not looked into: that of the results.
        problems: is told of what is passed over in folders though it may be a picture.

    Raises:
        CiodError: a path that is not there, or a folder without any.
    """
    suffixes = SUFFIXES | VIDEOS if videos else SUFFIXES
    places = [where] if isinstance(where, (str, Path)) else list(where)
    found: list[Path] = []
    for place in map(Path, places):
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
        else:
            beside = [p.name for p in place.parent.iterdir()] if is_folder(place.parent) else []
            raise CiodError(f"There is no file or folder {place}; {did_you_mean(place.name, beside, listing=4)}")
    return list(dict.fromkeys(found))


def _below(folder: Path, suffixes: Collection[str], apart: Path | None, problems: Problems) -> Iterator[Path]:
    """Files of a folder and of those in it, but ``apart``, that have one of the suffixes."""
    for place, names in below(folder, problems.add):
        if apart is not None and apart in (path := Path(place).resolve(), *path.parents):
            continue
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in suffixes:
                if is_file(path):
                    yield path
                else:
                    problems.add("link to a file that is not there, passed over", str(path))
            elif kind := why_passed_over(name):
                problems.add(kind, str(path))


def mask_of(class_names: Sequence[str], wanted: Sequence[str] | None) -> Tensor | None:
    """[C] bool: which classes may be found. None: all.

    Raises:
        ConfigError: names the model does not know, each with the nearest one it does.
    """
    if wanted is None:
        return None
    wanted = [nfc(n) for n in ([wanted] if isinstance(wanted, str) else wanted)]
    problems = [
        f"classes: the model has no class '{n}'; {did_you_mean(n, class_names)}" for n in wanted if n not in class_names
    ]
    if problems or not wanted:
        raise ConfigError(problems or ["classes: no class is named."])
    return torch.tensor([n in wanted for n in class_names])


@torch.no_grad()
def detect(detector: Detector, pictures: Sequence[np.ndarray], **decoding: Any) -> list[Detections]:
    """One forward pass over pictures [H, W, 3] uint8 of any sizes; boxes in pixels of each.

    Args:
        decoding: as ``Detector.decode`` takes it.
    """
    from ciod.detectors.base import in_original

    placed = [letterbox(p, detector.input.size, detector.input.fill) for p in pictures]
    training = detector.training
    detector.eval()
    try:
        outputs = detector(torch.stack([image for image, _ in placed]).to(detector.device))
        found = detector.decode(outputs, **decoding)
    finally:
        detector.train(training)
    return [in_original(d, scale, *p.shape[:2]) for d, (_, scale), p in zip(found, placed, pictures, strict=True)]


def stream(
    detector: Detector,
    sources: Iterable[Any],
    *,
    batch: int = 8,
    score_threshold: float = 0.3,
    nms_iou: float | None = None,
    max_detections: int = 100,
    classes: Sequence[str] | None = None,
    read: Callable[[Any], np.ndarray] = as_array,
) -> Iterator[tuple[Any, np.ndarray | None, Detections | DataError]]:
    """(source, picture, detections) one by one, in order; of what cannot be read (source, None, why).

    While one batch is in the detector the next is decoded; no more than two batches are in memory.

    Args:
        sources: files, arrays [H, W, 3] RGB or PIL images.
        read: makes an array of a source; raises DataError where it cannot.

    Raises:
        ConfigError: a class the model does not know, or a batch below 1.
    """
    if batch < 1:
        raise ConfigError([f"batch: {batch} is not at least 1."])
    mask = mask_of(detector.class_names, classes)
    decoding = {
        "score_threshold": score_threshold,
        "nms_iou": nms_iou,
        "max_detections": max_detections,
        "classes": None if mask is None else mask.to(detector.device),
    }
    waiting = iter(sources)
    with ThreadPoolExecutor(max_workers=min(4, batch)) as pool:

        def ahead() -> tuple[list[Any], list[Any]]:
            chunk = list(itertools.islice(waiting, batch))
            return chunk, [pool.submit(_read, source, read) for source in chunk]

        chunk, reading = ahead()
        while chunk:
            decoded = [future.result() for future in reading]
            following = ahead()
            good = [picture for picture in decoded if not isinstance(picture, DataError)]
            found = iter(detect(detector, good, **decoding) if good else [])
            for source, picture in zip(chunk, decoded, strict=True):
                if isinstance(picture, DataError):
                    yield source, None, picture
                else:
                    yield source, picture, next(found)
            chunk, reading = following


def _read(source: Any, read: Callable[[Any], np.ndarray]) -> np.ndarray | DataError:
    try:
        return read(source)
    except DataError as error:
        return error


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
    names: Sequence[str] | None = None,
) -> dict[Path, Detections]:
    """Detections in files and folders of pictures. Of a video: ``model.predict(list of frames)``, see ``ciod.frames``.

    Args:
        model: a detector or a file ``ciod.load`` reads.
        classes: only these are found (default: all).
        batch: pictures per forward pass.
        size: side of the input in pixels (default: the model's own).
        names: class names for a checkpoint without them.

    Raises:
        CiodError: no model, no picture, or a class the model does not know. An unreadable picture is left out.
    """
    from ciod.api import open_detector
    from ciod.core.distributed import pick_device

    paths = files(images)
    films = [p for p in paths if p.suffix.lower() in VIDEOS]
    if films:
        raise CiodError(f"{films[0]} is a video; give its pictures one by one: for frame in ciod.frames('{films[0]}').")
    detector = open_detector(model, size, names).to(pick_device(device))
    results = stream(
        detector,
        paths,
        batch=batch,
        score_threshold=score_threshold,
        nms_iou=nms_iou,
        max_detections=max_detections,
        classes=classes,
    )
    return {path: found for path, _, found in results if isinstance(found, Detections)}
