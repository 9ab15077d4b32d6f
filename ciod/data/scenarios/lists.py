"""Image lists: the training images of every task, each in a file of its own (``images: [task1.txt, task2.txt]``)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ciod.core.errors import CiodError, ConfigError
from ciod.core.files import is_file, near_path, nfc
from ciod.core.plural import counted
from ciod.core.reading import ANNOTATIONS, Unreadable, read_json, read_text
from ciod.data.index import Index

FORMATS = "one file name or image id per line, a COCO JSON, or a JSON list of them"


def problems(paths: Sequence[str], tasks: int) -> list[str]:
    """A wrong number of lists, and missing files, before any data is read."""
    found = []
    if len(paths) != tasks:
        found.append(f"images: {counted(len(paths), 'list')} for {counted(tasks, 'task')}; name one file per task.")
    missing = [p for p in paths if not is_file(p)]
    return [*found, *(f"images: there is no file {p}{near_path(Path(p), is_file)}" for p in missing)]


def digests(paths: Sequence[str]) -> list[str]:
    """``name (digest)`` of each file, for fingerprints: the folder does not count."""
    return [f"{Path(p).name} ({hashlib.sha256(Path(p).read_bytes()).hexdigest()[:16]})" for p in paths]


def read(path: str) -> list[str | int]:
    """The names or ids in a list; a number of a JSON is an id.

    Text has one per line; empty lines and those that begin with # are left out. Of a COCO JSON the ``images`` count,
    by file name, and by id if they have none.

    Raises:
        CiodError: the file cannot be read, is not in this form or is empty.
    """
    try:
        if Path(path).suffix.lower() == ".json":
            content = read_json(path, ANNOTATIONS)
            items = content.get("images") if isinstance(content, dict) else content
            names = [_name(item) for item in items] if isinstance(items, list) else [None]
        else:
            lines = [line.strip() for line in read_text(path, ANNOTATIONS).splitlines()]
            names = [nfc(line) for line in lines if line and not line.startswith("#")]
    except Unreadable as e:
        raise CiodError(f"images: {e}") from e
    known = [n for n in names if n is not None]
    if len(known) < len(names):
        raise CiodError(f"images: {path} is not a list of images; write {FORMATS}.")
    if not known:
        raise CiodError(f"images: {path} lists no image.")
    return known


def _name(item: Any) -> str | int | None:
    if isinstance(item, dict):
        item = item.get("file_name") or item.get("id")
    if isinstance(item, int) and not isinstance(item, bool):
        return item
    return nfc(item) if isinstance(item, str) and item else None


class _Images:
    """Images by what a list may call them."""

    def __init__(self, index: Index):
        self.index = index
        self.names: dict[str, list[int]] = {}
        self.stems: dict[str, list[int]] = {}
        self.ids: dict[str, list[int]] = {}
        for i, file in enumerate(index.files):
            self.names.setdefault(nfc(file.name), []).append(i)
            self.stems.setdefault(nfc(file.stem), []).append(i)
            for own in index.ids_of(i):
                self.ids.setdefault(str(own), []).append(i)

    def find(self, entry: str | int) -> list[int]:
        """Rows of the images that an entry may mean: by file name, with its folders if needed; else by name without
        ending or by id."""
        if isinstance(entry, int):
            return self.ids.get(str(entry), [])
        path = entry.replace("\\", "/")
        name = path.rpartition("/")[2]
        rows = self.names.get(name, [])
        if len(rows) > 1 and "/" in path:
            rows = [i for i in rows if nfc(self.index.files[i].as_posix()).endswith("/" + path.removeprefix("./"))]
        return rows or sorted({*self.stems.get(name, []), *self.ids.get(entry, [])})


def rows(index: Index, paths: Sequence[str]) -> list[np.ndarray]:
    """Rows of the images in each list, ascending.

    Args:
        index: the training images.

    Raises:
        ConfigError: every problem of every list, with counts and the first names.
    """
    images, found, wrong = _Images(index), [], []
    for path in paths:
        try:
            entries = read(path)
        except CiodError as e:
            wrong.append(str(e))
            continue
        meant = [images.find(e) for e in entries]
        absent = [e for e, r in zip(entries, meant, strict=True) if not r]
        unclear = [e for e, r in zip(entries, meant, strict=True) if len(r) > 1]
        each = Counter(r[0] for r in meant if len(r) == 1)
        twice = [index.files[i].name for i, n in each.items() if n > 1]
        if absent:
            wrong.append(f"images: {path} names {_some(absent, entries)} that are not in the data ({index.source}).")
        if unclear:
            wrong.append(
                f"images: {path} has {_some(unclear, entries)} that fit several images of the data; write their file "
                "names, with the folder if two are equal."
            )
        if twice:
            wrong.append(f"images: {path} lists {_some(twice, entries)} twice; list each image once.")
        found.append(np.array(sorted(each), np.int64))
    if wrong:
        raise ConfigError(wrong)
    return found


def _some(names: Sequence[str | int], entries: Sequence[str | int]) -> str:
    """``3 of 120 images (a.jpg, b.jpg, c.jpg)``."""
    few = f"{', '.join(map(str, names[:3]))}{', …' if names[3:] else ''}"
    return f"{len(names)} of {counted(len(entries), 'image')} ({few})"


def without_boxes(
    paths: Sequence[str],
    listed: Sequence[np.ndarray],
    used: Sequence[np.ndarray],
    index: Index,
    tasks: Sequence[Sequence[str]],
) -> list[str]:
    """Lists of which no image has a box of the task's classes.

    Args:
        listed, used: per task, rows of the images in its list, and of those with such a box.
        tasks: classes that each task teaches.
    """
    return [
        f"images: none of the {counted(len(a), 'image')} in {path} "
        f"({', '.join(index.files[i].name for i in a[:3])}{', …' if len(a) > 3 else ''}) has a box of the classes of "
        f"task {t} ({', '.join(names[:5])}{', …' if names[5:] else ''})."
        for t, (path, a, b, names) in enumerate(zip(paths, listed, used, tasks, strict=True), 1)
        if not len(b)
    ]  # fmt: skip


def sentence(listed: Sequence[np.ndarray], used: Sequence[np.ndarray]) -> str:
    """How many images of the lists are used, and how many are in several lists."""
    parts = [f"{len(b)} of {len(a)}" for a, b in zip(listed, used, strict=True)]
    every, times = np.unique(np.concatenate([*listed]), return_counts=True)
    shared = int((times > 1).sum())
    also = f"; {shared} of {len(every)} images are in several lists" if shared else ""
    return f"Listed images that show the classes of their task: {', '.join(parts)}{also}."
