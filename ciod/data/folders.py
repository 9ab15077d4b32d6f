"""Finding images in folders: links are followed, loops are not, and skipped files are counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ciod.data.images import HEIF, is_picture

Passed = Callable[[str, str], None]  # kind of problem, where

# Files that are expected beside images; any other file that is not read is reported.
# fmt: off
_BESIDE = frozenset((
    ".txt", ".xml", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".tsv", ".md", ".rst", ".pdf", ".html", ".htm",
    ".zip", ".tar", ".gz", ".7z", ".rar", ".cache", ".npy", ".npz", ".pkl", ".pt", ".pth", ".safetensors", ".onnx",
    ".log", ".ini", ".cfg", ".db", ".lock", ".py", ".ipynb", ".sh", ".bat", ".names", ".data", ".labels", ".part",
    ".tmp",
    ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".wav",
    ".mp3", ".srt", ".lst", ".rec", ".idx", ".tfrecord", ".parquet", ".docx", ".xlsx", ".license", ".gitignore",
    ".gitkeep",
))
# fmt: on
_WITHOUT_SUFFIX = frozenset(("readme", "license", "copying", "notice", "makefile", "changelog"))
NOT_READ = "file that is not a picture ciod reads, skipped (convert it to JPEG or PNG if it is one)"
NOT_HEIF = "HEIC picture, skipped (convert it to JPEG, or install pillow-heif)"
NO_TARGET = "link to a missing file, skipped"
READ_ALREADY = "linked folder that is read already, not followed"


def passed_over(name: str) -> bool:
    """Whether a file that is not read could be an image, by its name."""
    stem, suffix = os.path.splitext(name.lower())  # noqa: PTH122 (names, not Paths)
    return not name.startswith(".") and suffix not in _BESIDE and not (not suffix and stem in _WITHOUT_SUFFIX)


def why_passed_over(name: str) -> str | None:
    """The problem with a file that is not read, or None if it is not an image anyway."""
    if not passed_over(name):
        return None
    return NOT_HEIF if os.path.splitext(name)[1].lower() in HEIF else NOT_READ  # noqa: PTH122


def below(root: str | Path, passed: Passed | None = None) -> Iterator[tuple[str, list[str]]]:
    """Each folder from ``root`` down, with the names of its files, sorted; hidden ones are skipped.

    Linked folders come after the others and are followed once: not into a folder that was read already, nor into a
    parent of ``root``.

    Args:
        passed: is called for linked folders that are not followed and for folders that cannot be read.
    """
    passed = passed or (lambda kind, where: None)
    root = str(root)
    seen: set[str] = set()
    above = os.path.realpath(root)
    waiting, links = [root], []
    while waiting or links:
        if not waiting:
            link = links.pop(0)
            target = os.path.realpath(link)
            if target in seen or f"{above}{os.sep}".startswith(f"{target.rstrip(os.sep)}{os.sep}"):
                passed(READ_ALREADY, link)
                continue
            waiting.append(link)
        folder = waiting.pop()
        if (real := os.path.realpath(folder)) in seen:
            passed(READ_ALREADY, folder)
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as found:
                entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            passed("folder that cannot be read, skipped", f"{folder} ({error.strerror or error})")
            continue
        names, inside = [], []
        for entry in entries:
            (inside if _is_folder(entry) else names).append(entry)
        yield folder, [e.name for e in names]
        links += [f"{folder}/{e.name}" for e in inside if e.is_symlink()]
        waiting += [f"{folder}/{e.name}" for e in reversed(inside) if not e.is_symlink()]


def pictures(root: str | Path, passed: Passed | None = None) -> Iterator[tuple[str, list[str]]]:
    """Like ``below``, but only images; ``passed`` is also called for files that could be images and are not read."""
    for folder, names in below(root, passed):
        if passed:
            for name in names:
                if not is_picture(name) and (kind := why_passed_over(name)):
                    passed(kind, f"{folder}/{name}")
        yield folder, [n for n in names if is_picture(n)]


def has_pictures(root: Path) -> bool:
    """Whether there is an image in a folder or below it."""
    return root.is_dir() and any(names for _, names in pictures(root))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False
